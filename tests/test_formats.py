"""Files that are no JSON Lines: each is named as what it is, and the command that is printed makes the same records."""

import csv
import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, pair, refusal, write_lines

from gold.examples import read_examples
from gold.jsonl import name_the_format, read_records

ROWS = [pair(n) | {"note": note} for n, note in enumerate(['a "quoted", word', "tab\tand\nline", "naïve, 中文", "x"])]
PLAIN = [pair(n) | {"note": f"{n}"} for n in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table(path: Path, rows: list[dict], delimiter: str, **how) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, **how)
        writer.writeheader()
        writer.writerows(rows)


def raw_tsv(path: Path) -> None:
    """GLUE's tables: a quotation mark is a letter."""
    rows = [{**row, "note": '"unfinished'} for row in PLAIN]
    table(path, rows, "\t", quoting=csv.QUOTE_NONE, quotechar=None)


def parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def packed(path: Path) -> None:
    table(path.with_suffix(""), ROWS, ",")
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


def text(content: str, **how):
    return lambda path: path.write_text(content, newline="", **how)


COLUMNS = {key: {f"{n}": row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]}
FILES = {  # name: (how it is made, what it is said to be, the rows that its command makes)
    "it's a.csv": (lambda p: table(p, ROWS, ","), "a table", ROWS),
    "bom.csv": (lambda p: (table(p, ROWS, ","), p.write_bytes(b"\xef\xbb\xbf" + p.read_bytes())), "a table", ROWS),
    "excel.csv": (lambda p: table(p, ROWS, ";"), "a table", ROWS),
    "quoted.tsv": (lambda p: table(p, ROWS, "\t"), "a table", ROWS),
    "glue.tsv": (raw_tsv, "a table", [{**row, "note": '"unfinished'} for row in PLAIN]),
    "table.jsonl": (lambda p: table(p, PLAIN, ","), "a table", PLAIN),
    "table.csv.gz": (packed, "a table", ROWS),
    "some.parquet": (parquet, "a Parquet file", ROWS),
    "list.json": (text(json.dumps(ROWS)), "a JSON list", ROWS),
    "list.jsonl": (text(json.dumps(ROWS, indent=2)), "a JSON list", ROWS),
    "data.json": (text(json.dumps({"n": 4, "data": ROWS}, indent=2)), "JSON over several lines", ROWS),
    "one.json": (text(json.dumps(ROWS[0], indent=2)), "JSON over several lines", ROWS[:1]),
    "several.json": (text("\n".join(json.dumps(row, indent=2) for row in ROWS)), "JSON over several lines", ROWS),
    "columns.json": (text(json.dumps(COLUMNS, indent=2)), "JSON over several lines", ROWS),
    "utf16.jsonl": (text(LINES, encoding="utf-16"), "UTF-16 text", ROWS),
    "mac.jsonl": (text(LINES.replace("\n", "\r")), "carriage return alone", ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_and_its_command_makes_the_same_records(name, tmp_path, pairs):
    make, told, rows = FILES[name]
    path = tmp_path / name
    make(path)
    message = refusal(read_examples, path, pairs)
    assert message.startswith(f"error: {path}: not JSON Lines but ") and told in message and len(message) < 900
    command = message.partition(": python -m ")[2].removesuffix(" makes JSON Lines of it")
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m {command}", shell=True, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, (command, done.stderr)
    (new,) = [p for p in tmp_path.iterdir() if p != path]
    assert [record for _, record in read_records(new)] == rows
    assert len(read_examples(new, pairs)) == len(rows)


def test_what_cannot_be_made_json_lines_of(tmp_path, pairs):
    archive = tmp_path / "book.xlsx"
    archive.write_bytes(b"PK\x03\x04 ...")
    assert "a spreadsheet: unpack it, or save the sheet as CSV" in refusal(read_examples, archive, pairs)
    for name, content, told in (
        ("latin.csv", b"text,label\nna\xefve,1\n", "is no text in UTF-8"),
        ("rows.csv", b"text,label\na,1\nb\n", "its rows have different numbers of fields"),
        ("broken.json", b'[{"a": 1}, {', "not JSON: "),
        ("list.json", b"[1, 2]", "holds a list of int instead of objects"),
        ("none.csv", None, "cannot be read"),
        ("cut.csv.gz", gzip.compress(b"text,label\n" * 99, mtime=0)[:-12], "cannot be read"),
        ("empty.json", b"", "holds no records"),
        ("some.parquet", b"PAR1 no", "not a readable Parquet file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-m", "data.to_jsonl", tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / name}: "), (name, done.stderr)
        assert told in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    "content",
    [
        "",
        LINES,
        LINES[:30],
        '["the lake", "snow"]\n["the lake", "snow"]\n',
        "One review, and no more.\n",
        "A review\nAnother review, longer, with commas\n",
        '{"messages": [{"role": "user"}]}\n{"messages": [{"role": "user"}]}\n',
        "null\n",
    ],
)
def test_what_may_be_json_lines_is_not_named(content, tmp_path):
    (tmp_path / "some.jsonl").write_text(content)
    assert name_the_format(tmp_path / "some.jsonl") is None


def test_a_broken_line_further_on_is_a_broken_line(tmp_path, pairs):
    path = write_lines(tmp_path / "some.jsonl", [pair(0)])
    with path.open("a") as file:
        file.write("first,second,label\nthe lake,snow,Warm\n")
    assert f"{path}:2: not a JSON object: " in refusal(read_examples, path, pairs)
