"""data/prepare.py: every official format becomes records; what cannot be used is counted, what is wrong is one line.

All files are made here, with sentences of our own; nothing is downloaded. The hub's form is a parquet folder with its card.
"""

import csv
import gzip
import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT, call, read_lines, write_lines

from data.prepare import TASKS, expression, formulation_of, hub_rows, likeness, number_of, variable_name
from gold.examples import read_examples
from gold.programmes import optimum
from gold.task import load_task


def prepare(folder: Path, task: str, *args: object) -> tuple[list[dict], str]:
    """(records of test.jsonl without their ids, what was said) of the command, which must work."""
    done = call("data.prepare", task, "--output-dir", folder / "out", *args)
    assert done.returncode == 0, done.stderr
    records = read_lines(folder / "out" / "test.jsonl")
    for record in records:
        assert record.pop("id").startswith(f"{task}-test-")
    return records, done.stderr


def refused(*args: object) -> str:
    """The one line of a command that must end with exit code 1."""
    done = call("data.prepare", *args)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines[-1].startswith("error: "), done.stderr
    assert all(" skipped: " in line or " records" in line for line in lines[:-1]), done.stderr
    return lines[-1]


def table(path: Path, rows: list[list[str]], between: str = "\t", **how: str) -> Path:
    """A file without any quoting, as GLUE's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(between.join(row) + "\n" for row in rows), encoding=how.get("encoding", "utf-8"))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# GLUE's tables


MNLI_HEADER = "index promptID genre sentence1_parse sentence1 sentence2 label1 label2 gold_label".split()


def mnli_rows(*labels: str) -> list[list[str]]:
    rows = [[str(i), "7", "letters", "( x )", f"Premise {i}.", f"Claim {i}.", "neutral", "-", label] for i, label in
            enumerate(labels)]  # fmt: skip
    return [MNLI_HEADER, *rows]


def test_mnli_takes_the_gold_label_and_skips_what_has_none(tmp_path):
    table(tmp_path / "dev_matched.tsv", mnli_rows("entailment", "-", "contradiction", "neutral"))
    table(tmp_path / "dev_mismatched.tsv", mnli_rows("neutral"))
    table(tmp_path / "train.tsv", mnli_rows("contradiction", "entailment"))
    records, said = prepare(tmp_path, "mnli", "--source", tmp_path, "--train")
    assert [(r["premise"], r["label"]) for r in records] == [
        ("Premise 0.", "entailment"), ("Premise 2.", "contradiction"), ("Premise 3.", "neutral"),
    ]  # fmt: skip
    assert {r["genre"] for r in records} == {"letters"}
    assert "1 of 4 rows skipped: the annotators did not agree (-)" in said
    train = read_lines(tmp_path / "out" / "train.jsonl")
    assert [(r["id"], r["label"]) for r in train] == [("mnli-train-1", "contradiction"), ("mnli-train-2", "entailment")]
    records, _ = prepare(tmp_path, "mnli", "--source", tmp_path, "--split", "validation_mismatched", "--overwrite")
    assert [r["label"] for r in records] == ["neutral"]


@pytest.mark.parametrize(
    "task, columns, fields, zero, one",
    [
        ("wnli", ["sentence1", "sentence2"], ["premise", "hypothesis"], "not_entailment", "entailment"),
        ("mrpc", ["sentence1", "sentence2"], ["sentence1", "sentence2"], "not_equivalent", "equivalent"),
        ("rte", ["sentence1", "sentence2"], ["premise", "hypothesis"], "entailment", "not_entailment"),
        ("qnli", ["question", "sentence"], ["question", "sentence"], "entailment", "not_entailment"),
        ("sst2", ["sentence"], ["text"], "negative", "positive"),
    ],
)
def test_integers_stand_for_the_labels_of_glue_and_quotation_marks_for_nothing(
    tmp_path, task, columns, fields, zero, one
):
    texts = [[f'"{c}  {n}\u00a0.' for c in columns] for n in (0, 1)]
    rows = [[*columns, "label"], *([*row, str(n)] for n, row in enumerate(texts)), [*columns, "-1"]]
    path = table(tmp_path / "dev.tsv", rows)
    packed = tmp_path / "folder" / "dev.tsv.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    plain = [[*(f'"{c} {n} .' for c in columns), label] for n, label in ((0, zero), (1, one))]
    expected = [dict(zip([*fields, "label"], row, strict=True)) for row in plain]
    for source in (path, packed, packed.parent):
        records, said = prepare(tmp_path, task, "--source", source, "--overwrite")
        assert records == expected
        assert "1 of 3 rows skipped: the label is hidden (-1)" in said


def test_mrpc_of_microsoft_begins_with_a_byte_order_mark(tmp_path):
    path = table(
        tmp_path / "msr_paraphrase_test.txt",
        [
            ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            ["1", "10", "11", 'The mill closed, "he said.', "The mill was closed."],
            ["0", "12", "13", "Prices rose.", "Prices fell."],
            ["1", "14"],
        ],
        encoding="utf-8-sig",
    )
    expected = [
        {"sentence1": 'The mill closed, "he said.', "sentence2": "The mill was closed.", "label": "equivalent"},
        {"sentence1": "Prices rose.", "sentence2": "Prices fell.", "label": "not_equivalent"},
    ]
    records, said = prepare(tmp_path, "mrpc", "--source", path)
    assert records == expected and "1 of 3 rows skipped: nothing in '#1 String'" in said
    assert prepare(tmp_path, "mrpc", "--source", tmp_path, "--split", "test", "--overwrite")[0] == expected


# ---------------------------------------------------------------------------------------------------------------------
# The other official formats


def test_anli_tells_its_rounds_apart(tmp_path):
    for number, label in (("1", "e"), ("2", "n"), ("3", "c")):
        for split in ("test", "dev", "train"):
            row = {"uid": f"u{number}", "context": f"{split}<br>of {number}", "hypothesis": "It is.", "label": label}
            (tmp_path / f"R{number}").mkdir(exist_ok=True)
            write_lines(tmp_path / f"R{number}" / f"{split}.jsonl", [row])
    records, _ = prepare(tmp_path, "anli", "--source", tmp_path, "--train")
    assert [(r["premise"], r["label"], r["round"], r["original_id"]) for r in records] == [
        ("test of 1", "entailment", "R1", "u1"), ("test of 2", "neutral", "R2", "u2"),
        ("test of 3", "contradiction", "R3", "u3"),
    ]  # fmt: skip
    assert [r["premise"] for r in read_lines(tmp_path / "out" / "train.jsonl")] == [f"train of {n}" for n in "123"]
    records, _ = prepare(tmp_path, "anli", "--source", tmp_path, "--split", "dev", "--overwrite")
    assert [r["premise"] for r in records] == ["dev of 1", "dev of 2", "dev of 3"]
    records, _ = prepare(tmp_path, "anli", "--source", tmp_path / "R2", "--overwrite")
    assert [(r["premise"], r["round"]) for r in records] == [("test of 2", "R2")]


def squad(*answers: list[str]) -> dict:
    qas = [{"id": f"q{i}", "question": f"Which  one is {i}?", "answers": [{"text": t, "answer_start": 0} for t in texts]}
           for i, texts in enumerate(answers)]  # fmt: skip
    return {"version": "1.1", "data": [{"title": "Boats", "paragraphs": [{"context": "Two\nred boats.", "qas": qas}]}]}


@pytest.mark.parametrize("task, name", [("squad", "dev-v1.1.json"), ("adversarial_qa", "combined/dev.json")])
def test_squad_form_gives_every_gold_answer_once(tmp_path, task, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(squad(["red boats", "two red boats", "red boats"], ["Two\nred"], [])))
    records, said = prepare(tmp_path, task, "--source", tmp_path)
    shared = {"context": "Two red boats.", "title": "Boats"}
    assert records == [
        {**shared, "question": "Which one is 0?", "answer": "red boats", "answers": ["red boats", "two red boats"],
         "original_id": "q0"},
        {**shared, "question": "Which one is 1?", "answer": "Two red", "answers": ["Two red"], "original_id": "q1"},
    ]  # fmt: skip
    assert "1 of 3 rows skipped: no answer (SQuAD 2.0, or a hidden one)" in said and "1 with several answers" in said


def test_svamp_is_one_test_set_of_values_that_agree(tmp_path):
    rows = [
        {"ID": "chal-1", "Body": "Ada had 9 nets. 4 tore", "Question": "How many held?", "Equation": "( 9.0 - 4.0 )",
         "Answer": 5.0, "Type": "Subtraction"},
        {"ID": "chal-2", "Body": "Two sums.", "Question": "Product?", "Equation": "( ( 1.5 + 2.0 ) * ( 3.0 - 1.0 ) )",
         "Answer": "7.0", "Type": "Multiplication"},
        {"ID": "chal-3", "Body": "Odd.", "Question": "What?", "Equation": "( 1.0 + 1.0 ) * ( 2.0 )", "Answer": 4,
         "Type": "Multiplication"},
        {"ID": "chal-4", "Body": "Wrong.", "Question": "What?", "Equation": "( 9.0 - 4.0 )", "Answer": 6.0, "Type": "x"},
        {"ID": "chal-5", "Body": "None.", "Question": "What?", "Equation": "9 miles", "Answer": 6.0, "Type": "x"},
    ]  # fmt: skip
    (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
    records, said = prepare(tmp_path, "svamp", "--source", tmp_path)
    assert records[0] == {
        "body": "Ada had 9 nets. 4 tore", "question": "How many held?", "answer": "5", "equation": "9 - 4",
        "type": "Subtraction", "original_id": "chal-1",
    }  # fmt: skip
    assert [(r["equation"], r["answer"]) for r in records[1:]] == [
        ("( 1.5 + 2 ) * ( 3 - 1 )", "7"), ("( 1 + 1 ) * ( 2 )", "4"),
    ]  # fmt: skip
    assert "1 of 5 rows skipped: the equation does not give its answer" in said
    assert "1 of 5 rows skipped: the equation has no value" in said


def test_imdb_is_a_folder_of_reviews(tmp_path):
    for side, number, rating, text in (
        ("neg", 0, 2, "Dull.<br /><br />Long."), ("neg", 10, 4, "Flat\nfilm."), ("pos", 0, 9, "Bright."),
    ):  # fmt: skip
        path = tmp_path / "aclImdb" / "test" / side / f"{number}_{rating}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "aclImdb" / "train" / "unsup").mkdir(parents=True)
    (tmp_path / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("Not labelled.")
    for source in (tmp_path / "aclImdb", tmp_path / "aclImdb" / "test"):
        records, said = prepare(tmp_path, "imdb", "--source", source, "--overwrite")
        assert records == [
            {"text": "Dull. Long.", "label": "negative", "rating": "2"},
            {"text": "Flat film.", "label": "negative", "rating": "4"},
            {"text": "Bright.", "label": "positive", "rating": "9"},
        ]
        assert "negative 2, positive 1" in said
    assert "holds none of" in refused(
        "imdb", "--source", tmp_path / "aclImdb", "--train", "--output-dir", tmp_path / "b"
    )
    assert not (tmp_path / "b").exists()


def test_ag_news_counts_its_classes_from_one(tmp_path):
    path = tmp_path / "test.csv"
    with path.open("w", newline="") as file:
        rows = [[n, f"Title {n}", 'He said "so", twice'] for n in ("3", "1", "2", "4")]
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    records, _ = prepare(tmp_path, "ag_news", "--source", tmp_path)
    assert records == [
        {"text": f'Title {n} He said "so", twice', "label": label}
        for n, label in (("3", "Business"), ("1", "World"), ("2", "Sports"), ("4", "Sci/Tech"))
    ]


def test_banking77_has_the_names_of_the_file(tmp_path):
    table(
        tmp_path / "banking_data" / "test.csv",
        [["text", "category"], ['"My card, is it\nhere?"', "card_arrival"], ["Oh", "reverted_card_payment?"]],
        between=",",
    )
    records, said = prepare(tmp_path, "banking77", "--source", tmp_path)
    assert records == [
        {"text": "My card, is it here?", "label": "card_arrival"},
        {"text": "Oh", "label": "reverted_card_payment?"},
    ]
    assert "2 records: 2 of 77 labels, 1 to 1 each" in said


def test_integers_stand_for_the_other_labels_too():
    assert TASKS["mnli"].labels == TASKS["anli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["ag_news"].labels == ("World", "Sports", "Business", "Sci/Tech")
    assert TASKS["imdb"].labels == ("negative", "positive")
    names = TASKS["banking77"].labels  # the hub's order: the alphabet's, whatever the capitals
    assert len(names) == 77 and list(names) == sorted(names, key=str.lower)
    assert names[51] == "Refund_not_showing_up" and names[76] == "wrong_exchange_rate_for_cash_withdrawal"


# ---------------------------------------------------------------------------------------------------------------------
# NL4Opt


def nl4opt(**more: object) -> dict:
    """A record in the official form; `more` replaces parts of it."""
    return {
        "document": "A bakery bakes plain loaves and rye loaves.",
        "vars": ["plain loaves", "rye"],
        "order_mapping": {"plain loaves": 0, "rye": 1, "rye loaf": 1, "the former": 0},
        "obj_declaration": {"type": "objective", "direction": "maximize", "name": "profit",
                            "terms": {"the former": "$2", "rye loaf": "3.50"}},
        "const_declarations": [],
        **more,
    }  # fmt: skip


def constraint(kind: str, operator: str = "LESS_OR_EQUAL", **more: object) -> dict:
    return {"type": kind, "direction": "at most", "operator": operator, **more}


@pytest.mark.parametrize(
    "declaration, clause",
    [
        (constraint("linear", limit="1,200", terms={"plain loaves": "0.5", "rye loaf": "2"}),
         "0.5 plain loaves + 2 rye at most 1200"),
        (constraint("linear", "GREATER_OR_EQUAL", limit="0", terms={"rye": "-1", "plain loaves": "1"}),
         "-rye + plain loaves at least 0"),
        (constraint("sum", limit="one hundred thousand"), "plain loaves + rye at most 100000"),
        (constraint("upperbound", limit="8000 minutes", var="rye loaf"), "rye at most 8000"),
        (constraint("lowerbound", "GREATER_OR_EQUAL", limit="five", var="the former"), "plain loaves at least 5"),
        (constraint("ratio", "GREATER_OR_EQUAL", limit="70%", var="rye"), "rye at least 0.7 plain loaves + 0.7 rye"),
        (constraint("ratio", limit="a third", var="rye"), "3 rye at most plain loaves + rye"),
        (constraint("xy", x_var="rye", y_var="plain loaves"), "rye at most plain loaves"),
        (constraint("xby", "GREATER_OR_EQUAL", x_var="rye", param="twice", y_var="plain loaves"),
         "rye at least 2 plain loaves"),
        (constraint("xby", "EQUAL", x_var="rye", param="third", y_var="plain loaves"), "3 rye equals plain loaves"),
    ],
)  # fmt: skip
def test_nl4opt_constraints(declaration, clause):
    found = formulation_of(nl4opt(const_declarations=[declaration]), "here")
    assert found == f"maximize 2 plain loaves + 3.5 rye; {clause}"


def test_nl4opt_through_the_command(tmp_path):
    sound = nl4opt(
        obj_declaration={"type": "objvar", "direction": "reduce", "name": "loaves", "vars": ["plain loaves", "rye"]},
        const_declarations=[
            constraint("linear", "GREATER_OR_EQUAL", limit="8", terms={"plain loaves": "1", "rye": "2"})
        ],
    )
    own_form = {"id": "7", "document": "B.", "vars": ["saws"], "objective": {"direction": "maximum", "terms": {"saw": "2"}},
                "constraints": [constraint("upperbound", limit="3", var="Saws")]}  # fmt: skip
    faults = [
        nl4opt(obj_declaration={"direction": "maximize", "terms": {}}),
        nl4opt(obj_declaration={"direction": "ponder", "terms": {"rye": "1"}}),
        nl4opt(obj_declaration={"direction": "maximize", "terms": {"rye": "some"}}),
        nl4opt(obj_declaration={"direction": "maximize", "terms": {"rye": "1", "rye loaf": "2"}}),
        nl4opt(const_declarations=[constraint("sum")]),
        nl4opt(const_declarations=[constraint("parabola", limit="1")]),
        nl4opt(const_declarations=[constraint("sum", "UNEQUAL", limit="1")]),
        nl4opt(const_declarations=["rye"]),
        nl4opt(vars=["rye", "Rye"]),
    ]
    path = write_lines(
        tmp_path / "test.jsonl", [{"-17": sound}, own_form, *({str(i): f} for i, f in enumerate(faults))]
    )
    records, said = prepare(tmp_path, "nl4opt", "--source", path)
    assert records == [
        {"problem": sound["document"], "original_id": "-17",
         "formulation": "minimize plain loaves + rye; plain loaves + 2 rye at least 8"},
        {"problem": "B.", "formulation": "maximize 2 saws; saws at most 3", "original_id": "7"},
    ]  # fmt: skip
    for reason in ("a declaration without terms", "no direction: 'ponder'", "no number in 'some'",
                   "two mentions of a term mean one variable", "a constraint of the type 'parabola'",
                   "two variables of one name, or none", "a declaration that cannot be read (KeyError: 'limit')",
                   "a declaration that cannot be read (KeyError: 'UNEQUAL')"):  # fmt: skip
        assert f"1 of 11 rows skipped: {reason}" in said
    assert "not on the hub; give its official files with --source" in refused("nl4opt", "--output-dir", tmp_path / "b")


def test_nl4opt_formulations_have_the_optimum_of_the_record():
    record = nl4opt(
        const_declarations=[
            constraint("sum", limit="10"),
            constraint("ratio", limit="third", var="rye"),
            constraint("xby", "GREATER_OR_EQUAL", x_var="plain loaves", param="twice", y_var="rye"),
        ]
    )
    # 2 p + 3.5 r, p + r <= 10, r at most a third: r = 10/3, p = 20/3
    assert optimum(formulation_of(record, "here")) == pytest.approx(2 * 20 / 3 + 3.5 * 10 / 3)


@pytest.mark.parametrize(
    "text, value",
    [
        ("12", 12), ("$1,000", 1000), ("20%", Fraction(1, 5)), ("7.5 %", Fraction(3, 40)), (".5", Fraction(1, 2)),
        ("third", Fraction(1, 3)), ("two thirds", Fraction(2, 3)), ("3/4", Fraction(3, 4)), ("2 1/2", Fraction(5, 2)),
        ("one and a half", Fraction(3, 2)), ("twice", 2), ("three times", 3), ("3 times", 3), ("half", Fraction(1, 2)),
        ("thirty percent", Fraction(3, 10)), ("twenty-five", 25), ("one hundred thousand", 100_000), ("-4", -4),
        ("two hundred and five", 205), ("1.5 million", 1_500_000), ("three thousand two hundred", 3200),
    ],
)  # fmt: skip
def test_numbers_of_the_declarations(text, value):
    assert number_of(text) == value


def test_variables_are_words():
    assert variable_name("truck B.") == "truck B" and variable_name("“puff of air” test") == "puff of air test"
    assert variable_name("2-piece") == "type 2-piece" and variable_name("all - in - one") == "all-in-one"
    assert variable_name("children's café_bars") == "childrens cafe bars"
    names = ["red", "green vans"]
    assert max(names, key=lambda name: likeness("red vans", name)) == "red"
    assert max(names, key=lambda name: likeness("Green van", name)) == "green vans"
    assert expression({}) == "0" and expression({"a": Fraction(0), "": Fraction(-2)}) == "0 a - 2"


# ---------------------------------------------------------------------------------------------------------------------
# The hub's form


CARD = """---
configs:
- config_name: rte
  data_files:
  - {split: validation, path: rte/validation-*}
  - {split: train, path: rte/train-*}
- config_name: wnli
  data_files:
  - {split: validation, path: wnli/validation-*}
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder as a repository of the hub is: parquet files with classes, a card with two configurations."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "glue"

    def write(path: str, names: list[str], labels: list[int]) -> None:
        features = datasets.Features(
            {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"),
             "label": datasets.ClassLabel(names=names), "idx": datasets.Value("int32")}
        )  # fmt: skip
        n = len(labels)
        rows = {
            "sentence1": [f"{path[:3]} {i}" for i in range(n)],
            "sentence2": ["So."] * n,
            "label": labels,
            "idx": range(n),
        }
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / path)

    write("rte/validation-00000-of-00001.parquet", ["entailment", "not_entailment"], [1, 0, -1])
    write("rte/train-00000-of-00001.parquet", ["entailment", "not_entailment"], [0])
    write("wnli/validation-00000-of-00001.parquet", ["not_entailment", "entailment"], [1, 0])
    (folder / "README.md").write_text(CARD)
    return folder


def test_hub_form_is_read_by_the_names_of_its_classes(tmp_path, hub):
    rows = list(hub_rows(str(hub), "rte", "validation"))  # the function that also gets the name of a repository
    assert [(where.rsplit("/", 1)[-1], row["label"]) for where, row in rows] == [
        ("glue validation row 0", "not_entailment"), ("glue validation row 1", "entailment"), ("glue validation row 2", -1),
    ]  # fmt: skip
    records, said = prepare(tmp_path, "rte", "--source", hub, "--train")
    assert records == [
        {"premise": "rte 0", "hypothesis": "So.", "label": "not_entailment"},
        {"premise": "rte 1", "hypothesis": "So.", "label": "entailment"},
    ]
    assert "1 of 3 rows skipped: the label is hidden (-1)" in said
    assert [r["label"] for r in read_lines(tmp_path / "out" / "train.jsonl")] == ["entailment"]
    records, _ = prepare(tmp_path, "wnli", "--source", hub, "--overwrite")
    assert [r["label"] for r in records] == ["entailment", "not_entailment"]
    file = hub / "wnli" / "validation-00000-of-00001.parquet"
    assert prepare(tmp_path, "wnli", "--source", file, "--overwrite")[0] == records
    line = refused("mnli", "--source", hub, "--output-dir", tmp_path / "b")
    assert "cannot be loaded" in line and "check the folder" in line


def test_hub_splits_of_other_tasks(tmp_path, hub):
    """Three splits as one test side (ANLI), both splits of SVAMP, answers as the hub nests them (SQuAD)."""
    from datasets import Dataset

    folder = tmp_path / "anli"
    folder.mkdir()
    for r in "123":
        row = {"uid": ["u" + r], "premise": ["P" + r], "hypothesis": ["H"], "label": [int(r) - 1], "reason": [""]}
        Dataset.from_dict(row).to_parquet(folder / f"test_r{r}.parquet")
    files = "".join(f"  - {{split: test_r{r}, path: test_r{r}.parquet}}\n" for r in "123")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: plain_text\n  data_files:\n{files}---\n")
    records, _ = prepare(tmp_path, "anli", "--source", folder)
    assert [(r["premise"], r["round"], r["label"]) for r in records] == [
        ("P1", "R1", "entailment"), ("P2", "R2", "neutral"), ("P3", "R3", "contradiction"),
    ]  # fmt: skip

    folder = tmp_path / "svamp"
    for split in ("train", "test"):
        row = {"ID": [split], "Body": ["B."], "Question": ["Q?"], "Equation": ["( 1.0 + 2.0 )"], "Answer": ["3.0"]}
        row |= {"Type": ["Addition"]}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(row).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    records, _ = prepare(tmp_path / "s", "svamp", "--source", folder)
    assert [(r["original_id"], r["equation"], r["answer"]) for r in records] == [
        ("train", "1 + 2", "3"),
        ("test", "1 + 2", "3"),
    ]

    folder = tmp_path / "squad"
    folder.mkdir()
    row = {"id": "q", "title": "T", "context": "A boat.", "question": "What?",
           "answers": {"text": ["A boat", "boat"], "answer_start": [0, 2]}}  # fmt: skip
    Dataset.from_list([row]).to_parquet(folder / "validation-00000-of-00001.parquet")
    records, _ = prepare(tmp_path / "q", "squad", "--source", folder)
    assert records[0]["answer"] == "A boat" and records[0]["answers"] == ["A boat", "boat"]


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    """HF_HUB_OFFLINE is set by conftest.py, and the cache is empty."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    line = refused("rte", "--output-dir", tmp_path / "out")
    assert "nyu-mll/glue rte validation: cannot be loaded" in line and "--source" in line
    assert not (tmp_path / "out").exists()


def test_without_datasets_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "install requirements.txt" in refused("rte", "--output-dir", tmp_path / "out")
    (tmp_path / "x.parquet").write_bytes(b"")
    assert "install requirements.txt" in refused(
        "rte", "--source", tmp_path / "x.parquet", "--output-dir", tmp_path / "out"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Our own form, the task files, bad input


def own(task: str) -> dict:
    origin = TASKS[task]
    record = {name: f"Some {name}." for name in origin.columns}
    if origin.labels:
        return record | {"label": origin.labels[-1]}
    return record | {
        "svamp": {"answer": "3", "equation": "1 + 2"},
        "nl4opt": {"formulation": "maximize 2 saws; saws at most 3"},
    }.get(task, {"answer": "Some", "answers": ["Some", "A"]})


@pytest.mark.parametrize("task", TASKS)
def test_our_own_form_always_works_and_loads(tmp_path, task):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(own(task)).encode() + b"\n"))
    records, _ = prepare(tmp_path, task, "--source", path)
    assert records == [own(task)]
    loaded = load_task(ROOT / "prompts" / f"{task}.toml")
    assert list(loaded.labels) == list(TASKS[task].labels)
    assert [r["id"] for r in read_examples(tmp_path / "out" / "test.jsonl", loaded)] == [f"{task}-test-1"]


def test_several_files_a_limit_and_overwriting(tmp_path):
    rows = [{"premise": f"P {n}.", "hypothesis": "H.", "label": "entailment"} for n in range(4)]
    paths = [write_lines(tmp_path / "a.jsonl", rows[:2]), write_lines(tmp_path / "b.jsonl", rows[2:])]
    sources = [word for path in paths for word in ("--source", path)]
    out = tmp_path / "out" / "test.jsonl"
    assert len(prepare(tmp_path, "rte", *sources)[0]) == 4
    assert [r["id"] for r in read_lines(out)] == [f"rte-test-{n}" for n in (1, 2, 3, 4)]
    before = out.read_bytes()
    assert "is there already; replace it with --overwrite" in refused("rte", *sources, "--output-dir", out.parent)
    assert out.read_bytes() == before
    records, _ = prepare(tmp_path, "rte", *sources, "--overwrite", "--limit", 3)
    assert [r["premise"] for r in records] == ["P 0.", "P 1.", "P 2."]
    assert [p.name for p in out.parent.iterdir()] == ["test.jsonl"]


GOOD = '{"premise": "P.", "hypothesis": "H.", "label": "entailment"}\n'


@pytest.mark.parametrize(
    "task, name, content, wanted",
    [
        ("rte", "a.tsv", "sentence1\tlabel\nP.\tentailment\n", "a.tsv:2: no column 'hypothesis' or 'sentence2'; found"),
        ("rte", "a.tsv", "index\tsentence1\tsentence2\n0\tP.\tH.\n", "a side with public labels"),
        ("rte", "a.tsv", "", "holds no rows"),
        ("rte", "a.tsv", "index\tsentence1\tsentence2\tlabel\n", "holds no rows"),
        ("rte", "a.tsv", "sentence1\tsentence2\tlabel\nP.\tH.\t-1\n", "none of its rows can be used"),
        ("rte", "a.tsv", "sentence1\tsentence2\tlabel\nP.\tH.\tneutral\n", "a.tsv:2: no such label: 'neutral'"),
        ("rte", "a.tsv", "sentence1\tsentence2\tlabel\nP.\tH.\t2\n", "a.tsv:2: no such label: '2'"),
        ("ag_news", "a.csv", '"5","T","D"\n"1","T","D"\n', "a.csv:2: no column 'text'"),
        ("ag_news", "a.csv", '"4","T","D"\n"5","T","D"\n', "a.csv:2: no such label: '4'"),
        ("rte", "a.tsv", b"sentence1\tsentence2\tlabel\n\xff\tH.\tentailment\n", "a.tsv: not UTF-8"),
        ("rte", "a.tsv.gz", b"not packed", "a.tsv.gz: not a whole .gz file"),
        ("rte", "a.tsv.gz", gzip.compress(b"sentence1\tsentence2\n" * 9, mtime=0)[:-12], "a.tsv.gz: not a whole .gz file"),
        ("rte", "a.jsonl.gz", gzip.compress(GOOD.encode() * 9, mtime=0)[:-12], "a.jsonl.gz: cannot be read"),
        ("rte", "a.jsonl", GOOD + "{broken\n", "a.jsonl:2: not a JSON object"),
        ("rte", "a.jsonl", GOOD + "[" * 100_000 + "\n", "a.jsonl:2: not a JSON object"),
        ("rte", "a.jsonl", GOOD.encode() + b'{"premise": "\xff"}\n', "a.jsonl:2: not a JSON object"),
        ("squad", "a.json", '{"data": [{"paragraphs": 3}]}', "data > paragraphs > qas"),
        ("squad", "a.json", '{"data": 3}', "must be a list of records or SQuAD's form"),
        ("squad", "a.json", "{", "a.json: not JSON"),
        ("squad", "a.json", "[" * 100_000, "a.json: not JSON"),
        ("squad", "a.json", '[{"context": "C.", "question": "Q?", "answers": [3]}]', "the answers must be texts"),
        ("squad", "a.json", '[{"context": "C.", "question": "Q?", "answers": {"text": 3}}]', "the answers must be texts"),
        ("squad", "a.json", '[{"context": ["C."], "question": "Q?", "answer": "C"}]', "'context' must be a text, found"),
        ("squad", "a.json", '[{"context": "C.", "question": "Q?"}]', "no column 'answer'"),
        ("svamp", "a.json", '[{"Body": "B", "Question": "Q", "Equation": "1 + 2", "Answer": "few"}]', "must be a number"),
        ("rte", "a.parquet", b"PAR1 no", "a.parquet: not a readable parquet file"),
        ("rte", "a.xlsx", "", "cannot be read by its ending '.xlsx'"),
        ("rte", "a", "", "cannot be read by its ending ''"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, task, name, content, wanted):
    if name.endswith("parquet"):
        pytest.importorskip("datasets", reason="datasets is not installed (requirements.txt)")
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert wanted in refused(task, "--source", path, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_options(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [json.loads(GOOD)])
    out = ("--output-dir", tmp_path / "out")
    assert "no such file or folder" in refused("rte", "--source", tmp_path / "none.tsv", *out)
    assert "holds none of dev.tsv (validation)" in refused("rte", "--source", tmp_path, *out)
    assert "a file is read whole" in refused("rte", "--source", path, "--split", "validation", *out)
    assert "a file is read whole" in refused("rte", "--source", path, "--train", *out)
    assert "no training side" in refused("svamp", "--train", *out)
    for words in (["rtee"], ["rte", "--split", "test"], ["rte", "--limit", "0"], []):
        done = call("data.prepare", *words, *out)
        assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
