"""data/prepare.py: every official format becomes records; what cannot be used is counted, what is wrong is one line.

All files are made here, with sentences of our own; nothing is downloaded. The hub's form is a parquet folder with its card.
"""

import gzip
import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT, call, read_lines, write_lines

from data.prepare import TASKS, formulation_of, number_of, variable_name
from gold.examples import read_examples
from gold.programmes import optimum
from gold.task import load_task


def prepare(folder: Path, task: str, *args: object) -> tuple[list[dict], str]:
    """(records of test.jsonl without their ids, what was said) of the command, which must work."""
    done = call("data.prepare", task, "--output-dir", folder / "out", "--overwrite", *args)
    assert done.returncode == 0, done.stderr
    records = read_lines(folder / "out" / "test.jsonl")
    for record in records:
        assert record.pop("id").startswith(f"{task}-test-")
    return records, done.stderr


def refused(*args: object) -> str:
    """The one line of a command that must end with exit code 1."""
    done = call("data.prepare", *args)
    *counts, line = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith("error: "), done.stderr
    assert all(" skipped: " in count or " records" in count for count in counts), done.stderr
    return line


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def tsv(*rows: list[str]) -> str:
    """A table without any quoting, as GLUE's are."""
    return "".join("\t".join(row) + "\n" for row in rows)


def records_of(names: str, *rows: tuple) -> list[dict]:
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Official formats


def mnli(*labels: str) -> str:
    rows = [[str(i), "letters", f"Premise {i}.", f"Claim {i}.", "-", label] for i, label in enumerate(labels)]
    return tsv("index genre sentence1 sentence2 label1 gold_label".split(), *rows)


def anli(split: str) -> dict[str, str]:
    row = {"context": f"{split}<br>text", "hypothesis": "It is."}
    return {f"R{r}/{split}.jsonl": json.dumps({"uid": f"u{r}", "label": "enc"[r - 1], **row}) for r in (1, 2, 3)}


def squad(*answers: list[str]) -> str:
    qas = [{"id": f"q{i}", "question": f"Which  one is {i}?", "answers": [{"text": t} for t in texts]}
           for i, texts in enumerate(answers)]  # fmt: skip
    return json.dumps({"data": [{"title": "Boats", "paragraphs": [{"context": "Two\nred boats.", "qas": qas}]}]})


SVAMP = records_of(
    "ID Body Question Equation Answer Type",
    ("c1", "Ada had 9 nets. 4 tore", "How many held?", "( 9.0 - 4.0 )", 5.0, "Subtraction"),
    ("c2", "Two sums.", "Product?", "( ( 1.5 + 2.0 ) * ( 3.0 - 1.0 ) )", "7.0", "Multiplication"),
    ("c3", "Odd.", "What?", "( 1.0 + 1.0 ) * ( 2.0 )", 4, "x"),
    ("c4", "Wrong.", "What?", "( 9.0 - 4.0 )", 6.0, "x"),
    ("c5", "None.", "What?", "9 miles", 6.0, "x"),
)
MRPC = tsv(
    ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],  # Microsoft's begins with a byte order mark
    ["1", "10", "11", 'The mill closed, "he said.', "The mill was closed."],
    ["0", "12", "13", "Prices rose.", "Prices fell."],
    ["1", "14"],
)
OFFICIAL = {  # task: (its files, options, the records, what is said)
    "mnli": (
        {"dev_matched.tsv": mnli("entailment", "-", "neutral"), "dev_mismatched.tsv": mnli("neutral")}, [],
        records_of("premise hypothesis label genre", ("Premise 0.", "Claim 0.", "entailment", "letters"),
                   ("Premise 2.", "Claim 2.", "neutral", "letters")),
        ["1 of 3 rows skipped: the annotators did not agree (-)"],
    ),
    "anli": (
        anli("test") | anli("dev"), [],
        records_of("premise hypothesis label round original_id", ("test text", "It is.", "entailment", "R1", "u1"),
                   ("test text", "It is.", "neutral", "R2", "u2"), ("test text", "It is.", "contradiction", "R3", "u3")),
        [],
    ),
    "mrpc": (
        {"msr_paraphrase_test.txt": MRPC}, ["--split", "test"],
        records_of("sentence1 sentence2 label", ('The mill closed, "he said.', "The mill was closed.", "equivalent"),
                   ("Prices rose.", "Prices fell.", "not_equivalent")),
        ["1 of 3 rows skipped: nothing in '#1 String'"],
    ),
    "squad": (
        {"dev-v1.1.json": squad(["red boats", "two red boats", "red boats"], ["Two\nred"], [])}, [],
        records_of("context question answer answers title original_id",
                   ("Two red boats.", "Which one is 0?", "red boats", ["red boats", "two red boats"], "Boats", "q0"),
                   ("Two red boats.", "Which one is 1?", "Two red", ["Two red"], "Boats", "q1")),
        ["1 of 3 rows skipped: no answer (SQuAD 2.0, or a hidden one)", "1 with several answers"],
    ),
    "svamp": (
        {"SVAMP.json": json.dumps(SVAMP)}, [],
        records_of("body question answer equation type original_id",
                   ("Ada had 9 nets. 4 tore", "How many held?", "5", "9 - 4", "Subtraction", "c1"),
                   ("Two sums.", "Product?", "7", "( 1.5 + 2 ) * ( 3 - 1 )", "Multiplication", "c2"),
                   ("Odd.", "What?", "4", "( 1 + 1 ) * ( 2 )", "x", "c3")),
        ["1 of 5 rows skipped: the equation has no value",
         "1 of 5 rows skipped: the equation does not give its answer"],
    ),
    "imdb": (
        {"test/neg/10_4.txt": "Flat<br /><br />long\nfilm.", "test/pos/0_9.txt": "Bright.", "train/unsup/0_0.txt": "-"}, [],
        records_of("text label rating", ("Flat long film.", "negative", "4"), ("Bright.", "positive", "9")),
        ["negative 1, positive 1"],
    ),
    "ag_news": (
        {"test.csv": '"3","Title","He said ""so"", twice"\n"1","T","D"\n'}, [],
        records_of("text label", ('Title He said "so", twice', "Business"), ("T D", "World")),
        [],
    ),
    "trec": (
        {"TREC_10.label": "HUM:ind Who rows a caf\u00e9 boat ?\n\nNUM:dist How far is the mill ?\n".encode("latin-1")}, [],
        records_of("text label fine", ("Who rows a caf\u00e9 boat ?", "human", "HUM:ind"),
                   ("How far is the mill ?", "number", "NUM:dist")),
        ["human 1", "number 1"],
    ),
    "banking77": (
        {"banking_data/test.csv": 'text,category\n"My card, is it\nhere?",card_arrival\nOh,reverted_card_payment?\n'}, [],
        records_of("text label", ("My card, is it here?", "card_arrival"), ("Oh", "reverted_card_payment?")),
        ["2 records: 2 of 77 labels, 1 to 1 each"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", OFFICIAL)
def test_official_files_become_records(task, tmp_path):
    files, options, expected, words = OFFICIAL[task]
    records, said = prepare(tmp_path, task, "--source", write(tmp_path / "files", files), *options)
    assert records == expected
    assert all(text in said for text in words), said


@pytest.mark.parametrize("task, columns, fields, labels", [
    ("wnli", ["sentence1", "sentence2"], "premise hypothesis", "not_entailment entailment"),
    ("mrpc", ["sentence1", "sentence2"], "sentence1 sentence2", "not_equivalent equivalent"),
    ("rte", ["sentence1", "sentence2"], "premise hypothesis", "entailment not_entailment"),
    ("qnli", ["question", "sentence"], "question sentence", "entailment not_entailment"),
    ("sst2", ["sentence"], "text", "negative positive"),
])  # fmt: skip
def test_integers_of_glue_are_labels_and_quotation_marks_mean_nothing(task, columns, fields, labels, tmp_path):
    texts = [[f'"{c}  {n}\u00a0.' for c in columns] for n in (0, 1)]
    table = tsv([*columns, "label"], *([*row, str(n)] for n, row in enumerate(texts)), [*columns, "-1"])
    path = write(tmp_path, {"dev.tsv": table, "folder/x": ""}) / "dev.tsv"
    (tmp_path / "folder" / "dev.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    rows = [[*(f'"{c} {n} .' for c in columns), label] for n, label in enumerate(labels.split())]
    for source in (path, tmp_path / "folder"):
        records, said = prepare(tmp_path, task, "--source", source)
        assert records == records_of(f"{fields} label", *rows)
        assert "1 of 3 rows skipped: the label is hidden (-1)" in said


def test_other_sides(tmp_path):
    sides = {"dev_matched.tsv": "neutral", "dev_mismatched.tsv": "entailment", "train.tsv": "contradiction"}
    folder = write(tmp_path / "mnli", {name: mnli(label) for name, label in sides.items()})
    prepare(tmp_path, "mnli", "--source", folder, "--train")
    (row,) = read_lines(tmp_path / "out" / "train.jsonl")
    assert (row["id"], row["label"]) == ("mnli-train-1", "contradiction")
    records, _ = prepare(tmp_path, "mnli", "--source", folder, "--split", "validation_mismatched")
    assert [r["label"] for r in records] == ["entailment"]
    folder = write(tmp_path / "anli", anli("test") | anli("dev"))
    records, _ = prepare(tmp_path, "anli", "--source", folder, "--split", "dev")
    assert [r["premise"] for r in records] == ["dev text"] * 3
    records, _ = prepare(tmp_path, "anli", "--source", folder / "R2")
    assert [(r["premise"], r["round"]) for r in records] == [("test text", "R2")]


# ---------------------------------------------------------------------------------------------------------------------
# NL4Opt


def nl4opt(**more: object) -> dict:
    """A record in the official form; `more` replaces parts of it."""
    return {
        "document": "A bakery bakes plain loaves and rye loaves.",
        "vars": ["plain loaves", "rye"],
        "order_mapping": {"plain loaves": 0, "rye": 1, "rye loaf": 1, "the former": 0},
        "obj_declaration": {"direction": "maximize", "terms": {"the former": "$2", "rye loaf": "3.50"}},
        "const_declarations": [],
        **more,
    }


def constraint(kind: str, operator: str = "LESS_OR_EQUAL", **more: object) -> dict:
    return {"type": kind, "operator": operator, **more}


LEAST = "GREATER_OR_EQUAL"


CONSTRAINTS = {  # what stands in the formulation: the declaration
    "0.5 plain loaves + 2 rye at most 1200": constraint("linear", limit="1,200", terms={"plain loaves": ".5", "rye loaf": "2"}),
    "-rye + plain loaves at least 0": constraint("linear", LEAST, limit="0", terms={"rye": "-1", "plain loaves": "1"}),
    "plain loaves + rye at most 100000": constraint("sum", limit="one hundred thousand"),
    "rye at most 8000": constraint("upperbound", limit="8000 minutes", var="rye loaf"),
    "plain loaves at least 5": constraint("lowerbound", LEAST, limit="five", var="the former"),
    "rye at least 0.7 plain loaves + 0.7 rye": constraint("ratio", LEAST, limit="70%", var="rye"),
    "3 rye at most plain loaves + rye": constraint("ratio", limit="a third", var="rye"),
    "rye at most plain loaves": constraint("xy", x_var="rye", y_var="plain loaves"),
    "rye at least 2 plain loaves": constraint("xby", LEAST, x_var="rye", param="twice", y_var="plain loaves"),
    "3 rye equals plain loaves": constraint("xby", "EQUAL", x_var="rye", param="third", y_var="plain loaves"),
}  # fmt: skip


def test_nl4opt_constraints():
    formulation = formulation_of(nl4opt(const_declarations=list(CONSTRAINTS.values())), "here")
    assert formulation.split("; ") == ["maximize 2 plain loaves + 3.5 rye", *CONSTRAINTS]
    # 2 p + 3.5 r, p + r <= 10, r at most a third: r = 10/3, p = 20/3
    limits = [constraint("sum", limit="10"), constraint("ratio", limit="third", var="rye")]
    formulation = formulation_of(nl4opt(const_declarations=limits), "here")
    assert optimum(formulation) == pytest.approx(2 * 20 / 3 + 3.5 * 10 / 3)


def test_nl4opt_through_the_command(tmp_path):
    limit = constraint("linear", LEAST, limit="8", terms={"plain loaves": "1", "rye": "2"})
    sound = nl4opt(obj_declaration={"direction": "reduce", "vars": ["plain loaves", "rye"]}, const_declarations=[limit])
    own_form = {"id": "7", "document": "B.", "vars": ["saws"], "objective": {"direction": "maximum", "terms": {"saw": "2"}},
                "constraints": [constraint("upperbound", limit="3", var="Saws")]}  # fmt: skip

    def aim(direction: str, terms: dict) -> dict:
        return nl4opt(obj_declaration={"direction": direction, "terms": terms})

    faults = [
        (aim("maximize", {}), "a declaration without terms"),
        (aim("ponder", {"rye": "1"}), "no direction: 'ponder'"),
        (aim("maximize", {"rye": "some"}), "no number in 'some'"),
        (aim("maximize", {"rye": "1", "rye loaf": "2"}), "two mentions of a term mean one variable"),
        (nl4opt(const_declarations=[constraint("sum")]), "a declaration that cannot be read (KeyError: 'limit')"),
        (nl4opt(const_declarations=[constraint("parabola", limit="1")]), "a constraint of the type 'parabola'"),
        (nl4opt(const_declarations=[constraint("sum", "UNEQUAL")]), "a declaration that cannot be read (KeyError: 'UNEQUAL')"),
        (nl4opt(const_declarations=["rye"]), "a declaration that cannot be read (TypeError: "),
        (nl4opt(vars=["rye", "Rye"]), "two variables of one name, or none"),
    ]  # fmt: skip
    rows = [{"-17": sound}, own_form, *({str(i): fault} for i, (fault, _) in enumerate(faults))]
    records, said = prepare(tmp_path, "nl4opt", "--source", write_lines(tmp_path / "test.jsonl", rows))
    assert records == records_of(
        "problem formulation original_id",
        (sound["document"], "minimize plain loaves + rye; plain loaves + 2 rye at least 8", "-17"),
        ("B.", "maximize 2 saws; saws at most 3", "7"),
    )
    assert all(f"1 of 11 rows skipped: {reason}" in said for _, reason in faults), said
    assert "not on the hub; give its official files with --source" in refused("nl4opt", "--output-dir", tmp_path / "b")


def test_numbers_of_the_declarations():
    numbers = {
        "$1,000": 1000, "7.5 %": Fraction(3, 40), ".5": Fraction(1, 2), "two thirds": Fraction(2, 3), "3/4": Fraction(3, 4),
        "2 1/2": Fraction(5, 2), "one and a half": Fraction(3, 2), "three times": 3, "thirty percent": Fraction(3, 10),
        "twenty-five": 25, "-4": -4, "two hundred and five": 205, "1.5 million": 1_500_000, "three thousand two hundred": 3200,
    }  # fmt: skip
    assert {text: number_of(text) for text in numbers} == numbers


def test_variables_are_words():
    names = {"truck B.": "truck B", "2-piece": "type 2-piece", "children's café_bars": "childrens cafe bars"}
    assert {text: variable_name(text) for text in names} == names


# ---------------------------------------------------------------------------------------------------------------------
# The hub's form


PAIR = "sentence1 sentence2 label"
HUB = {  # repository: configuration: split: rows
    "glue": {
        "rte": {
            "validation": records_of(PAIR, ("P0", "So.", 1), ("P1", "So.", 0), ("P2", "So.", -1)),
            "train": records_of(PAIR, ("P0", "So.", 0)),
        },
        "wnli": {"validation": records_of(PAIR, ("P0", "So.", 1), ("P1", "So.", 0))},
    },
    "anli": {"plain_text": {f"test_r{r}": records_of(PAIR, (f"P{r}", "H", r - 1)) for r in (1, 2, 3)}},
    "squad": {"plain_text": {"validation": records_of(
        "id title context question answers", ("q", "T", "A boat.", "What?", {"text": ["A boat", "boat"], "answer_start": [0]})
    )}},
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folders as repositories of the hub are: parquet files, GLUE's with classes, and a card that names the files."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, configs in HUB.items():
        card = []
        for config, splits in configs.items():
            (tmp_path / name / config).mkdir(parents=True)
            for split, rows in splits.items():
                data = datasets.Dataset.from_list(rows)
                if name == "glue":
                    data = data.cast_column("label", datasets.ClassLabel(names=list(TASKS[config].labels)))
                data.to_parquet(tmp_path / name / config / f"{split}.parquet")
            files = [{"split": split, "path": f"{config}/{split}.parquet"} for split in splits]
            card.append({"config_name": config, "data_files": files})
        (tmp_path / name / "README.md").write_text(f"---\nconfigs: {json.dumps(card)}\n---\n")
    return tmp_path


def test_the_hub_is_read_by_the_names_of_its_classes(tmp_path, hub):
    records, said = prepare(tmp_path, "rte", "--source", hub / "glue", "--train")
    expected = records_of("premise hypothesis label", ("P0", "So.", "not_entailment"), ("P1", "So.", "entailment"))
    assert records == expected and "1 of 3 rows skipped: the label is hidden (-1)" in said
    assert [r["label"] for r in read_lines(tmp_path / "out" / "train.jsonl")] == ["entailment"]
    for source in (hub / "glue", hub / "glue" / "wnli" / "validation.parquet"):
        labels = [r["label"] for r in prepare(tmp_path, "wnli", "--source", source)[0]]
        assert labels == ["entailment", "not_entailment"]
    line = refused("mnli", "--source", hub / "glue", "--output-dir", tmp_path / "b")
    assert "cannot be loaded" in line and "check the folder" in line
    # Three splits as one test side; answers nested as in SQuAD
    records, _ = prepare(tmp_path, "anli", "--source", hub / "anli")
    rounds = [("P1", "R1", "entailment"), ("P2", "R2", "neutral"), ("P3", "R3", "contradiction")]
    assert [(r["premise"], r["round"], r["label"]) for r in records] == rounds
    records, _ = prepare(tmp_path, "squad", "--source", hub / "squad")
    assert records[0]["answer"] == "A boat" and records[0]["answers"] == ["A boat", "boat"]


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    """HF_HUB_OFFLINE is set by conftest.py, and the cache is empty."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    line = refused("rte", "--output-dir", tmp_path / "out")
    assert "nyu-mll/glue rte validation: cannot be loaded" in line and "--source" in line
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "x.parquet").write_bytes(b"")
    for source in ([], ["--source", tmp_path / "x.parquet"]):
        assert "install requirements.txt" in refused("rte", *source, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Our own form, the task files, bad input


def own(task: str) -> dict:
    record, labels = {name: f"Some {name}." for name in TASKS[task].columns}, TASKS[task].labels
    answers = {
        "svamp": {"answer": "3", "equation": "1 + 2"},
        "nl4opt": {"formulation": "maximize 2 saws; saws at most 3"},
    }
    return record | (
        {"label": labels[-1]} if labels else answers.get(task, {"answer": "Some", "answers": ["Some", "A"]})
    )


@pytest.mark.parametrize("task", TASKS)
def test_our_own_form_always_works_and_loads(tmp_path, task):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(own(task)).encode() + b"\n"))
    assert prepare(tmp_path, task, "--source", path)[0] == [own(task)]
    loaded = load_task(ROOT / "prompts" / f"{task}.toml")
    assert list(loaded.labels) == list(TASKS[task].labels)
    assert [r["id"] for r in read_examples(tmp_path / "out" / "test.jsonl", loaded)] == [f"{task}-test-1"]


def test_several_files_a_limit_and_overwriting(tmp_path):
    rows = [{"premise": f"P {n}.", "hypothesis": "H.", "label": "entailment"} for n in range(4)]
    paths = [write_lines(tmp_path / "a.jsonl", rows[:2]), write_lines(tmp_path / "b.jsonl", rows[2:])]
    sources = [word for path in paths for word in ("--source", path)]
    out = tmp_path / "out" / "test.jsonl"
    prepare(tmp_path, "rte", *sources)
    assert [r["id"] for r in read_lines(out)] == [f"rte-test-{n}" for n in (1, 2, 3, 4)]
    before = out.read_bytes()
    assert "is there already; replace it with --overwrite" in refused("rte", *sources, "--output-dir", out.parent)
    assert out.read_bytes() == before
    records, _ = prepare(tmp_path, "rte", *sources, "--limit", 3)
    assert [r["premise"] for r in records] == ["P 0.", "P 1.", "P 2."]
    assert [p.name for p in out.parent.iterdir()] == ["test.jsonl"]


GOOD = '{"premise": "P.", "hypothesis": "H.", "label": "entailment"}\n'
HEAD = "sentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize("task, name, content, wanted", [
    ("rte", "a.tsv", "sentence1\tlabel\nP.\tentailment\n", "a.tsv:2: no column 'hypothesis' or 'sentence2'; found"),
    ("rte", "a.tsv", "index\tsentence1\tsentence2\n0\tP.\tH.\n", "a side with public labels"),
    ("rte", "a.tsv", HEAD, "holds no rows"),
    ("rte", "a.tsv", HEAD + "P.\tH.\t-1\n", "none of its rows can be used"),
    ("rte", "a.tsv", HEAD + "P.\tH.\tneutral\n", "a.tsv:2: no such label: 'neutral'"),
    ("ag_news", "a.csv", '"5","T","D"\n"1","T","D"\n', "a.csv:2: no column 'text'"),
    ("rte", "a.tsv", HEAD.encode() + b"\xff\tH.\tentailment\n", "a.tsv: not UTF-8"),
    ("rte", "a.tsv.gz", gzip.compress(HEAD.encode() * 9, mtime=0)[:-12], "a.tsv.gz: not a whole .gz file"),
    ("rte", "a.jsonl", GOOD + "{broken\n", "a.jsonl:2: not a JSON object"),
    ("squad", "a.json", '{"data": [{"paragraphs": 3}]}', "data > paragraphs > qas"),
    ("squad", "a.json", "[" * 100_000, "a.json: not JSON"),
    ("squad", "a.json", '[{"context": "C.", "question": "Q?", "answers": [3]}]', "the answers must be texts"),
    ("svamp", "a.json", '[{"Body": "B", "Question": "Q", "Equation": "1 + 2", "Answer": "few"}]', "must be a number"),
    ("rte", "a.parquet", b"PAR1 no", "a.parquet: not a readable parquet file"),
    ("trec", "a.label", "NUM:dist How far ?\nWhy\n", "a.label:2: no such label: 'Why'"),
    ("rte", "a.xlsx", "", "cannot be read by its ending '.xlsx'"),
])  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, task, name, content, wanted):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert wanted in refused(task, "--source", path, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_options(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [json.loads(GOOD)])
    out = ("--output-dir", tmp_path / "out")
    assert "no such file or folder" in refused("rte", "--source", tmp_path / "none.tsv", *out)
    assert "holds none of dev.tsv (validation)" in refused("rte", "--source", tmp_path, *out)
    assert "holds none of " in refused("imdb", "--source", tmp_path, "--train", *out)
    for option in (["--split", "validation"], ["--train"]):
        assert "a file is read whole" in refused("rte", "--source", path, *option, *out)
    assert "no training side" in refused("svamp", "--train", *out)
    for words in (["rtee"], ["rte", "--split", "test"], ["rte", "--limit", "0"], []):
        done = call("data.prepare", *words, *out)
        assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
