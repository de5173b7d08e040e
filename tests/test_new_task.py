"""data/new_task.py: rows in the forms that people have become a task whose prompts the stages render."""

import json

import pytest
from conftest import call, read_lines

from gold.examples import read_examples
from gold.task import load_task

HOTELS = (
    "ID,My Review,Sentiment\n"
    '1,"Clean, and the staff was kind.",Positive\n2,Two hours in a queue.,negative\n3,Breakfast was cold.,Negative\n'
    "4,A view over the bay.,positive\n5,The lift was broken.,negative\n6,A better room for free.,positive\n"
    "7,Close to the station.,positive\n8,The bed squeaked.,NEGATIVE\n9,,positive\n10,Good value.,positive\n"
)
MAIL = [{"body": f"Win a boat of {n} metres now!", "spam": n % 2, "length": n} for n in range(12)]
PAIRS = "first\tsecond\tlabel\n" + "".join(
    f"There are {n} mills.\tThere are {n + 1} mills.\t{'yes' if n % 2 else 'no'}\n" for n in range(10)
)
SUMS = [{"question": f"Ada has {n} nets and finds {n * 3} more?", "answer": f"{n} + {n * 3}"} for n in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in MAIL)


@pytest.fixture
def made(tmp_path):
    def run(name, content, *options):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        done = call("data.new_task", path, "--folder", tmp_path, *options)
        task = tmp_path / "prompts" / f"{path.name.split('.')[0].lower()}.toml"
        return done, task

    return run


def test_a_table_with_capitals_in_labels(made, models, tmp_path):
    done, path = made("Hotels.csv", HOTELS)
    assert done.returncode == 0, done.stderr
    assert "the answer is the column 'Sentiment'" in done.stderr and "'My Review' is 'my_review'" in done.stderr
    assert "left out, for they hold no texts, or few different ones: ID" in done.stderr
    assert "1 of 10 rows lack a field" in done.stderr
    task = load_task(path)
    assert (task.kind, list(task.labels), task.fields) == ("classification", ["positive", "negative"], ["my_review"])
    seeds, test = (read_examples(tmp_path / f"data/hotels/{name}.jsonl", task) for name in ("seed_examples", "test"))
    assert len(seeds) == 5 and len(test) == 4 and {e["sentiment"] for e in test} == {"positive", "negative"}
    assert task.is_list is False and task.in_form("completion").is_list
    how = ("--task-file", path, "--model", models["llama"], "--output-dir", tmp_path / "iter-00", "--dry-run")
    shown = call("generate.py", *how)
    assert shown.returncode == 0, shown.stderr
    assert "=== would write 600 examples of the train split; prompt form: completion" in shown.stdout
    assert "lines with TODO are left" in shown.stderr
    again, _ = made("Hotels.csv", HOTELS)
    assert again.returncode == 1 and "is there already" in again.stderr


def test_lines_with_numbers_for_labels(made):
    done, path = made("mail.jsonl", LINES, "--answer", "spam")
    assert done.returncode == 1 and '--labels "0=...,1=..."' in done.stderr and not path.exists()
    done, path = made("mail.jsonl", LINES, "--answer", "spam", "--labels", "0=ham,1=spam")
    assert done.returncode == 0, done.stderr
    assert list(load_task(path).labels) == ["ham", "spam"] and load_task(path).fields == ["body"]
    assert {r["spam"] for r in read_lines(path.parents[1] / "data/mail/test.jsonl")} == {"ham", "spam"}


def test_pairs_and_texts(made):
    done, path = made("pairs.tsv", PAIRS)
    assert done.returncode == 0, done.stderr
    task = load_task(path)
    assert task.fields == ["first", "second"] and task.in_form("completion").is_list
    done, path = made("sums.jsonl", "".join(json.dumps(row) + "\n" for row in SUMS))
    assert done.returncode == 0 and "taken for texts" in done.stderr
    task = load_task(path)
    assert (task.kind, task.labels, task.written_fields) == ("text2text", {}, ["question", "answer"])
    assert len(read_lines(path.parents[1] / "data/sums/seed_examples.jsonl")) == 8


@pytest.mark.parametrize("content, options, told", [
    (HOTELS.replace("Sentiment", "Mood"), [], "which column must the student produce? give --answer"),
    ("text,label\n", [], "no rows in it; give twenty or more"),
    (HOTELS, ["--answer", "mood"], "--answer mood: no such column"),
    ("a,label\n" + "1,x\n2,y\n" * 9, [], "no column holds texts"),
    ("text,label\n" + "".join(f"mill no {n},x\n" for n in range(9)), [], "all 9 rows have the answer 'x'"),
    (HOTELS, ["--labels", "negative"], "'negative' is no pair"),
    (HOTELS, ["--fields", "My Review, Sentiment"], "must differ in name"),
    ("text,label\na mill,x\nthe mill,y\n", [], "only 2 whole rows; give twenty or more"),
    (HOTELS, ["--labels", "yes=no"], "--labels: no row has yes"),
])  # fmt: skip
def test_what_cannot_be_guessed_is_asked_for(content, options, told, made):
    done, path = made("own.csv", content, *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert told in done.stderr
    assert not path.exists() and not (path.parents[1] / "data").exists()


def test_columns_that_tell_the_answer_and_repeated_texts_stay_out(made):
    """A column of few values is no text; a text in other capitals is the same one, so none is in both files."""
    rows = [(f"The mill no {n}.", "very good" if n % 2 else "not good", f"{n % 2}.0") for n in range(12)]
    table = [("Text", "words", "label"), *rows, *((text.upper(), more, label) for text, more, label in rows)]
    done, path = made("mills.csv", "".join(",".join(row) + "\n" for row in table), "--labels", "0=bad,1=good")
    assert done.returncode == 0, done.stderr
    task = load_task(path)
    assert task.fields == ["text"] and list(task.labels) == ["bad", "good"]
    seeds, test = (read_lines(path.parents[1] / f"data/mills/{name}.jsonl") for name in ("seed_examples", "test"))
    texts = [r["text"].lower() for r in [*seeds, *test]]
    assert len(texts) == len(set(texts)) == 12
