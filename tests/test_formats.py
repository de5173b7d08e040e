"""Files that are no JSON Lines: the message prints a command that makes the same records of them."""

import csv
import gzip
import io
import json
import shlex

import pyarrow.parquet
import pytest
from conftest import call, pair, refusal, write_lines

from gold.examples import read_examples
from gold.jsonl import read_records

ROWS = [pair(n) | {"note": note} for n, note in enumerate(['a "quoted", word', "tab\tand\nline", "naïve, 中文", "x"])]
PLAIN = [pair(n) | {"note": f"{n}"} for n in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table(rows: list[dict], delimiter: str, **how) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, **how)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def pretty(value) -> bytes:
    return json.dumps(value, indent=2).encode()


UNPAIRED = [{**row, "note": '"unfinished'} for row in PLAIN]  # in GLUE's tables a quotation mark is a letter
COLUMNS = {key: {f"{n}": row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]}
FILES = {  # name: (content, the rows that the command makes)
    "it's a.csv": (table(ROWS, ","), ROWS),
    "bom.csv": (b"\xef\xbb\xbf" + table(ROWS, ","), ROWS),
    "excel.csv": (table(ROWS, ";"), ROWS),
    "quoted.tsv": (table(ROWS, "\t"), ROWS),
    "glue.tsv": (table(UNPAIRED, "\t", quoting=csv.QUOTE_NONE, quotechar=None), UNPAIRED),
    "table.jsonl": (table(PLAIN, ","), PLAIN),
    "table.csv.gz": (gzip.compress(table(ROWS, ",")), ROWS),
    "some.parquet": (parquet(ROWS), ROWS),
    "list.json": (json.dumps(ROWS).encode(), ROWS),
    "list.jsonl": (pretty(ROWS), ROWS),
    "data.json": (pretty({"n": 4, "data": ROWS}), ROWS),
    "one.json": (pretty(ROWS[0]), ROWS[:1]),
    "several.json": (b"\n".join(map(pretty, ROWS)), ROWS),
    "columns.json": (pretty(COLUMNS), ROWS),
    "utf16.jsonl": (LINES.encode("utf-16"), ROWS),
    "mac.jsonl": (LINES.replace("\n", "\r").encode(), ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_the_command_in_the_message_makes_the_same_records(name, tmp_path, pairs):
    content, rows = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(read_examples, path, pairs)
    assert message.startswith(f"error: {path}:1: not a JSON object: ") and len(message) < 900
    command = message.partition(": python -m ")[2].removesuffix(" prints JSON Lines")
    done = call(*shlex.split(command))
    assert done.returncode == 0, (command, done.stderr)
    new = tmp_path / "new.jsonl"
    new.write_text(done.stdout, encoding="utf-8")
    assert [record for _, record in read_records(new)] == rows
    assert len(read_examples(new, pairs)) == len(rows)


@pytest.mark.parametrize("name, content, problem", [
    ("latin.csv", b"text,label\nna\xefve,1\n", "is no text in UTF-8"),
    ("rows.csv", b"text,label\na,1\nb\n", "its rows have different numbers of fields"),
    ("broken.json", b'[{"a": 1}, {', "not JSON: "),
    ("list.json", b"[1, 2]", "holds a list of int instead of objects"),
    ("none.csv", None, "cannot be read"),
    ("cut.csv.gz", gzip.compress(b"text,label\n" * 99, mtime=0)[:-12], "cannot be read"),
    ("empty.json", b"", "holds no records"),
    ("some.parquet", b"PAR1 no", "not a readable Parquet file"),
])  # fmt: skip
def test_what_cannot_be_made_json_lines_of(name, content, problem, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = call("data.to_jsonl", tmp_path / name)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / name}: "), (name, done.stderr)
    assert problem in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_a_broken_line_further_on(tmp_path, pairs):
    path = write_lines(tmp_path / "some.jsonl", [pair(0)])
    with path.open("a") as file:
        file.write("first,second,label\nthe lake,snow,Warm\n")
    message = refusal(read_examples, path, pairs)
    assert f"{path}:2: not a JSON object: " in message and "to_jsonl" not in message
