"""The second embedded task: equations by value, the grammar of word problems and its oracle."""

import math
import operator
from datetime import timedelta

import pytest
from conftest import ROOT, read_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data import build_models
from data import word_problems_grammar as grammar
from gold.equations import MAX_LENGTH, equations_agree, evaluate_equation
from gold.examples import read_examples
from gold.parsing import parse_completion
from gold.task import load_task
from gold.text import text_key

# ---------------------------------------------------------------------------------------------------------------------
# Equations

VALUES = {
    "12 - 5": 7, "( 12 - 5 ) * 3": 21, "84 / 4": 21, "7 / 2": 3.5, "-3 + 5": 2, "2 * -3": -6, " 1.5 +\t.5\n": 2, "2. + 2": 4,
    "007": 7, "x = 12 - 5": 7, "X=7": 7,
    "12-5*3": -3,  # the product first
    "2 - 3 - 4": -5,  # from the left
    "(" * 99 + "4" + ")" * 99: 4,
    "9" * 150: float("9" * 150),
    "9" * 180 + " * " + "9" * 16: float("9" * 180) * float("9" * 16),
    "*".join(["9" * 60] * 3): 1e180,
    "1 + " * 49 + "1": 50,
}  # fmt: skip
NO_VALUE = [
    "1 / 0", "0 / 0", "9 / (3 - 3)", "2 ** 99", "2 * * 9", "7 // 2", "7 / / 2", "7 % 2", "1e3", "0x10", "1_000", "1,000", "3 4",
    "2(3)", "(2)(3)", "1.2.3", ".", "", "   ", "()", "12 -", "( 12 - 5", "x", "x =", "xy = 3", "x = y = 3", "twelve - 5",
    "abs(3)", "__import__('os')", "² + 1", "3 \u00d7 4", "1\x00",
    "12 - 5 = 7",  # which side would count?
    "٣ + 1", "\uff12 + 1",  # digits of other scripts, which float() would take
    "1 + " * 50 + "1", "(" * 100 + "4" + ")" * 100,  # 201 characters
]  # fmt: skip


@pytest.mark.parametrize("text, value", [*VALUES.items(), *((text, None) for text in NO_VALUE)])
def test_values_by_hand(text, value):
    assert evaluate_equation(text) == (pytest.approx(value) if value is not None else None)


PIECES = ["(", ")", "((((((((((", "))))))))))", "9" * 60, "0", ".", "5", " ", "/ 0", "**", "//", "x = ", "--", "+", "*"]


@settings(deadline=timedelta(seconds=1), max_examples=200)
@given(
    text=st.text(max_size=300)
    | st.lists(st.sampled_from([*PIECES, "٣", "²", "e", "j", "\n"]), max_size=60).map("".join)
)
def test_any_text_has_a_finite_value_or_none(text):
    value = evaluate_equation(text)
    assert value is None or (type(value) is float and math.isfinite(value) and len(text) <= MAX_LENGTH)
    assert equations_agree(text, text) == (value is not None)


TREES = st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), float(n))),
    lambda tree: st.tuples(tree, st.sampled_from("+-*"), tree).map(
        lambda t: (f"( {t[0][0]} {t[1]} {t[2][0]} )", SIGNS[t[1]](t[0][1], t[2][1]))
    ),
    max_leaves=8,
)
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@settings(deadline=None, max_examples=60)
@given(tree=TREES)
def test_a_tree_has_the_value_of_its_parts(tree):
    text, value = tree
    assert evaluate_equation(text) == (pytest.approx(value) if len(text) <= MAX_LENGTH else None)


@pytest.mark.parametrize("prediction, target, agree", [
    ("7", "12 - 5", True), ("(12-5)*3", "3 * ( 12 - 5 )", True), ("1 / 3", "0.333333333", True), ("0", "3 - 3", True),
    ("12 - 5 * 3", "( 12 - 5 ) * 3", False), ("5 - 12", "12 - 5", False), ("1 / 3", "0.3333", False),
    ("nonsense", "nonsense", False),  # no equation is not correct, whatever the target
    ("1 / 0", "1 / 0", False), ("", "12 - 5", False),
])  # fmt: skip
def test_agreement_by_hand(prediction, target, agree):
    assert equations_agree(prediction, target) is agree is equations_agree(target, prediction)


# ---------------------------------------------------------------------------------------------------------------------
# Grammar and oracle


def test_the_data_files_are_those_of_the_grammar(tmp_path):
    grammar.write_data(tmp_path)
    for name in ("seed_examples", "test", "test_zipf"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (ROOT / f"data/word_problems/{name}.jsonl").read_bytes()
    records = [r for path in tmp_path.glob("*.jsonl") for r in read_lines(path)]
    assert all(grammar.oracle_equation(r["problem"]) == r["equation"] for r in records)
    assert len({text_key(r["problem"]) for r in records}) == len(records)


# ---------------------------------------------------------------------------------------------------------------------
# The task

WORD_PROBLEMS = load_task(ROOT / "prompts/word_problems.toml")


@pytest.mark.parametrize("equation, reason", [
    ("12 - 4", None), ("( 12 - 4 ) * 2", None), ("x = 12 - 4", None), ("1" + " + 1" * 8, "too_long"),
    ("12 minus 4", "check_failed"), ("12 / 0", "check_failed"), ("", "empty_field"),
])  # fmt: skip
def test_an_equation_must_evaluate(equation, reason):
    fields, found = parse_completion(
        WORD_PROBLEMS, f" There were 12 loaves. 4 were sold. How many are left?\nEquation: {equation}", None
    )
    assert found == reason and fields["equation"] == equation


def test_no_encoder_for_equations(tmp_path):
    done = CliRunner().invoke(build_models.app, ["word_problems", "bert", "--output-dir", str(tmp_path)])
    assert done.exit_code == 2 and "word_problems has none" in " ".join(done.stderr.replace("│", " ").split())


def test_a_target_without_a_value_is_refused_by_file_and_line(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"problem": "a", "equation": "6 + 3"}\n{"problem": "b", "equation": "48 ÷ 2"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"test.jsonl:2: '48 ÷ 2' has no value, so no prediction could be correct"):
        read_examples(path, WORD_PROBLEMS)
