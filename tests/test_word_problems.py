"""The second embedded task: equations by value, the grammar of word problems and its oracle, correctness by value."""

import collections
import itertools
import json
import math
import random
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import ROOT, call, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from data import word_problems_grammar as grammar
from gold.correctness import is_correct
from gold.equations import MAX_LENGTH, equations_agree, evaluate_equation
from gold.examples import read_examples
from gold.parsing import parse_completion
from gold.predict import score_examples
from gold.student import lengths_of, load_trained
from gold.task import load_task
from gold.text import text_key

# ---------------------------------------------------------------------------------------------------------------------
# Equations


@pytest.mark.parametrize(
    "text, value",
    [
        ("12 - 5", 7),
        ("( 12 - 5 ) * 3", 21),
        ("12-5*3", -3),  # the product first
        ("84 / 4", 21),
        ("7 / 2", 3.5),
        ("2 - 3 - 4", -5),  # from the left
        ("-3 + 5", 2),
        ("2 * -3", -6),
        (" 1.5 +\t.5\n", 2),
        ("2. + 2", 4),
        ("007", 7),
        ("x = 12 - 5", 7),
        ("X=7", 7),
        ("(" * 30 + "4" + ")" * 30, 4),
        ("9" * 150, float("9" * 150)),
        ("1 / 0", None),
        ("0 / 0", None),
        ("9 / (3 - 3)", None),
        ("(" * 99 + "4" + ")" * 99, 4),
        ("(" * 100 + "4" + ")" * 100, None),  # 201 characters
        ("-" * 198 + "4", 4),
        ("9" * 180 + " * " + "9" * 16, float("9" * 180) * float("9" * 16)),
        ("*".join(["9" * 60] * 3), 1e180),
        ("1 + " * 49 + "1", 50),
        ("1 + " * 50 + "1", None),  # 201 characters
        ("2 ** 99", None),
        ("2 * * 9", None),
        ("7 // 2", None),
        ("7 % 2", None),
        ("1e3", None),
        ("0x10", None),
        ("1_000", None),
        ("1,000", None),
        ("3 4", None),
        ("2(3)", None),
        ("(2)(3)", None),
        ("1.2.3", None),
        (".", None),
        ("", None),
        ("   ", None),
        ("()", None),
        ("12 -", None),
        ("( 12 - 5", None),
        ("x", None),
        ("x =", None),
        ("xy = 3", None),
        ("x = y = 3", None),
        ("12 - 5 = 7", None),  # which side would count?
        ("twelve - 5", None),
        ("abs(3)", None),
        ("__import__('os')", None),
        ("٣ + 1", None),  # digits of other scripts, which float() would take
        ("\uff12 + 1", None),
        ("² + 1", None),
        ("3 \u00d7 4", None),
        ("1\x00", None),
    ],
)
def test_values_by_hand(text, value):
    found = evaluate_equation(text)
    assert found == pytest.approx(value) if value is not None else found is None


PIECES = ["(", ")", "((((((((((", "))))))))))", "9" * 60, "0", ".", "5", " ", "/ 0", "**", "//", "x = ", "--", "+", "*"]


@settings(deadline=timedelta(seconds=1), max_examples=300)
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
        lambda t: (
            f"( {t[0][0]} {t[1]} {t[2][0]} )",
            {"+": t[0][1] + t[2][1], "-": t[0][1] - t[2][1], "*": t[0][1] * t[2][1]}[t[1]],
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(tree=TREES)
def test_a_tree_has_the_value_of_its_parts(tree):
    text, value = tree
    assert evaluate_equation(text) == (pytest.approx(value) if len(text) <= MAX_LENGTH else None)


@pytest.mark.parametrize(
    "prediction, target, agree",
    [
        ("12 - 5", "12 - 5", True),
        ("7", "12 - 5", True),
        ("(12-5)*3", "3 * ( 12 - 5 )", True),
        ("12 - 5 * 3", "( 12 - 5 ) * 3", False),
        ("5 - 12", "12 - 5", False),
        ("1 / 3", "0.333333333", True),
        ("1 / 3", "0.3333", False),
        ("0", "3 - 3", True),
        ("nonsense", "nonsense", False),  # no equation is not right, whatever the target
        ("1 / 0", "1 / 0", False),
        ("", "12 - 5", False),
    ],
)
def test_agreement_by_hand(prediction, target, agree):
    assert equations_agree(prediction, target) is agree is equations_agree(target, prediction)


# ---------------------------------------------------------------------------------------------------------------------
# Grammar and oracle


def test_the_oracle_reads_back_every_problem():
    rng = random.Random(7)
    for setting in grammar.SETTINGS:
        for operation in grammar.OPERATIONS:
            for _ in range(10):
                made = grammar.make_problem(rng, setting, operation)
                assert grammar.oracle_equation(made["problem"]) == made["equation"], made
                assert grammar.topic_of(made["problem"]) == setting
                value = evaluate_equation(made["equation"])
                assert value == int(value) >= 0


@pytest.mark.parametrize(
    "problem, equation",
    [
        ("There were 12 loaves. 4 were burnt black. How many loaves was that?", "12 - 4"),
        ("There were 12 loaves, and 4 were burnt black. How many buns was that?", "12 - 4"),  # of the same setting
        ("Before 4 were burnt black, there were 12 loaves. How many loaves was that?", "12 - 4"),
        (
            "There were 12 rolls. 4 were burnt black. Then 2 were burnt black. Later one table of 3 was fed. "
            "How many rolls was that?",
            "( ( 12 - 4 ) - 2 ) / 3",
        ),
        ("There were 12 loaves. 4 were lent out. How many loaves was that?", None),  # a clause of another setting
        ("There were 12 loaves. 4 were burnt black. How many books was that?", None),
        ("There were 12 loaves. How many loaves was that?", None),
        ("4 were burnt black. How many loaves was that?", None),
        ("4 were burnt black. There were 12 loaves. How many loaves was that?", None),
        ("There were 12 loaves. There were 8 loaves. 4 were burnt black. How many loaves was that?", None),
        ("There were 12 loaves. 4 were burnt black.", None),
        ("There were 12 loaves. 4 were burnt black. How many loaves was that? 8", None),
        ("There were twelve loaves. 4 were burnt black. How many loaves was that?", None),
        ("There were 12 loaves. 4 were burnt blackish. How many loaves was that?", None),
        ("", None),
    ],
)
def test_the_oracle_by_hand(problem, equation):
    assert grammar.oracle_equation(problem) == equation


def test_the_table_keeps_its_promises():
    nouns = [noun for names, _ in grammar.SETTINGS.values() for noun in names]
    assert len(set(nouns)) == len(nouns) == 60 and len(grammar.SETTINGS) == 20
    clauses = [c for _, by_sign in grammar.SETTINGS.values() for line in by_sign.values() for c in line]
    assert len(set(clauses)) == len(clauses) == 160 and all(c.count("#") == 1 for c in clauses)
    assert all(list(by_sign) == list("+-*/") for _, by_sign in grammar.SETTINGS.values())


def test_words_of_other_settings_do_not_tell_the_operation():
    """Naive Bayes over words and pairs of words, taught all other settings: it tells + - from * /, and no more."""

    def features(clause: str) -> set[str]:
        words = clause.split()
        return {*words, *map(" ".join, itertools.pairwise(words))}

    right = []
    for held, (_, by_sign) in grammar.SETTINGS.items():
        counts = {sign: collections.Counter() for sign in by_sign}
        for name, (_, others) in grammar.SETTINGS.items():
            for sign, line in others.items() if name != held else ():
                counts[sign].update(feature for clause in line for feature in features(clause))
        for sign, line in by_sign.items():
            for clause in line:
                score = {s: sum(math.log(c[f] + 0.3) for f in features(clause)) for s, c in counts.items()}
                right.append(max(score, key=score.get) == sign)
    assert sum(right) / len(right) < 0.55


def test_numbers_do_not_tell_the_operation():
    rng = random.Random(3)
    seen = {
        operation: {
            tuple(re.findall(r"\d+", grammar.make_problem(rng, "bakery", operation)["equation"])) for _ in range(2000)
        }
        for operation in list(grammar.OPERATIONS)[:4]
    }
    assert len({frozenset(pairs) for pairs in seen.values()}) == 1 and len(seen["add"]) == len(grammar.PAIRS)


def test_the_data_files_are_those_of_the_grammar(tmp_path, capsys):
    grammar.write_data(tmp_path)
    for name in ("seed_examples", "test", "test_zipf"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (ROOT / f"data/word_problems/{name}.jsonl").read_bytes()
    test, zipf = read_lines(tmp_path / "test.jsonl"), read_lines(tmp_path / "test_zipf.jsonl")
    assert set(collections.Counter((r["setting"], r["operation"]) for r in test).values()) == {5}
    assert {r["group"] for r in test} == {"head", "tail"}
    assert collections.Counter(r["setting"] for r in zipf).most_common(1)[0][0] == "bakery"
    assert collections.Counter(r["operation"] for r in zipf).most_common(1)[0][0] == "add"
    seeds = read_lines(tmp_path / "seed_examples.jsonl")
    assert {grammar.topic_of(r["problem"]) for r in seeds} == {"bakery", "library", "harbour"}
    assert all(grammar.oracle_equation(r["problem"]) == r["equation"] for r in seeds)
    problems = [text_key(r["problem"]) for r in seeds + test + zipf]
    assert len(set(problems)) == len(problems)


# ---------------------------------------------------------------------------------------------------------------------
# The task: checks of completions, correctness by value


@pytest.fixture(scope="module")
def word_problems():
    return load_task(ROOT / "prompts/word_problems.toml")


GOOD = " There were 12 loaves. 4 were burnt black. How many loaves was that?\nEquation:"


@pytest.mark.parametrize(
    "equation, reason",
    [
        ("12 - 4", None),
        ("( 12 - 4 ) * 2", None),
        ("x = 12 - 4", None),
        ("12 minus 4", "check_failed"),
        ("12 - 4 = 8", "check_failed"),
        ("12 / 0", "check_failed"),
        ("2 ** 9", "check_failed"),
        ("1" + " + 1" * 8, "too_long"),
        ("", "empty_field"),
    ],
)
def test_an_equation_must_evaluate(equation, reason, word_problems):
    fields, found = parse_completion(word_problems, f"{GOOD} {equation}", None)
    assert found == reason and fields["equation"] == equation


def test_correctness_follows_the_metric(word_problems, pairs, flip):
    assert is_correct(word_problems, "8", {"target": "12 - 4"})
    assert not is_correct(word_problems, "eight", {"target": "eight"})
    assert is_correct(flip, " Lake sun", {"target": "lake SUN "}) and not is_correct(flip, "8", {"target": "12 - 4"})
    assert is_correct(pairs, "warm", {"target": "Warm"}) and not is_correct(pairs, "hot", {"target": "Warm"})


def test_evaluate_compares_by_value(tmp_path):
    answers = {"12 - 4": "4 * 2", "6 * 3": "X = 18", "8 / 2": "8 - 2", "5 + 1": "five + 1"}
    rows = [{"problem": f"What is {e}?", "equation": e, "answer": a} for e, a in answers.items()]
    test = write_lines(tmp_path / "some.jsonl", rows)
    task = ("--task-file", ROOT / "prompts/word_problems.toml", "--test-file", test)
    done = call("evaluate.py", *task, "--output-dir", tmp_path / "out", "--prediction-field", "answer")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["metric"] == "equation_value" and metrics["overall"]["equation_value"]["value"] == 0.5
    assert done.stdout.split()[0] == "equation_value"
    predictions = read_lines(tmp_path / "out/predictions.jsonl")
    assert [p["correct"] for p in predictions] == [True, True, False, False]


def test_a_student_is_scored_by_the_metric(home, trained, flip):
    """The same student and texts, words that are no equations: right by exact match, all wrong by value."""
    examples = read_examples(home / "flip_train.jsonl", flip)[:8]
    for task, wanted in ((flip, True), (flip.model_copy(update={"metric": "equation_value"}), False)):
        scores, _ = score_examples(
            load_trained(str(trained["flip"]), task, lengths_of(str(trained["flip"])), "float32"), examples, 8
        )
        assert any(s["correct"] for s in scores) is wanted
        for s, e in zip(scores, examples, strict=True):
            assert s["correct"] == is_correct(task, s["prediction"], e)


def test_no_encoder_for_equations(tmp_path):
    command = [sys.executable, "-m", "data.build_models", "word_problems", "bert", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "word_problems has none" in " ".join(done.stderr.replace("│", " ").split())


def test_a_target_without_a_value_is_refused_by_file_and_line(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"problem": "a", "equation": "6 + 3"}\n{"problem": "b", "equation": "48 ÷ 2"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"test.jsonl:2: '48 ÷ 2' has no value, so no prediction could be right"):
        read_examples(path, load_task(Path("prompts/word_problems.toml")))
