"""Files that are no JSON Lines: each is named as what it is, and the command that is printed makes the same records."""

import bz2
import csv
import gzip
import json
import lzma
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
from conftest import pair, write_lines

from gold.formats import HEAD, name_the_format
from records import expand, read_examples, read_records

ROWS = [pair(n) | {"note": note} for n, note in enumerate(['a "quoted", word', "tab\tand\nline", "naïve, 中文", "x"])]
PLAIN = [pair(n) | {"note": f"{n}"} for n in range(4)]


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


def packed(path: Path, opened) -> None:
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS))


def zipped_table(path: Path) -> None:
    table(path.with_suffix(""), ROWS, ",")
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FILES = {  # name: (how it is made, what it is said to be, the rows that its command makes)
    "it's a.csv": (lambda p: table(p, ROWS, ","), "a table with commas (CSV)", ROWS),
    "bom.csv": (lambda p: (table(p, ROWS, ","), p.write_bytes(b"\xef\xbb\xbf" + p.read_bytes())), "(CSV)", ROWS),
    "excel.csv": (lambda p: table(p, ROWS, ";"), "a table with semicolons (CSV)", ROWS),
    "quoted.tsv": (lambda p: table(p, ROWS, "\t"), "a table with tabs (TSV)", ROWS),
    "glue.tsv": (raw_tsv, "(TSV)", [{**row, "note": '"unfinished'} for row in PLAIN]),
    "table.jsonl": (lambda p: table(p, PLAIN, ","), "(CSV)", PLAIN),
    "table.csv.gz": (zipped_table, "(CSV)", ROWS),
    "some.parquet": (parquet, "a Parquet file", ROWS),
    "list.json": (lambda p: p.write_text(json.dumps(ROWS)), "a JSON list", ROWS),
    "list.jsonl": (lambda p: p.write_text(json.dumps(ROWS, indent=2)), "a JSON list", ROWS),
    "data.json": (lambda p: p.write_text(json.dumps({"n": 4, "data": ROWS}, indent=2)), "one JSON object", ROWS),
    "line.json": (lambda p: p.write_text(json.dumps({"data": ROWS})), "one JSON object with the records", ROWS),
    "one.json": (lambda p: p.write_text(json.dumps(ROWS[0], indent=2)), "of several lines", ROWS[:1]),
    "several.json": (
        lambda p: p.write_text("".join(json.dumps(row, indent=2) + "\n" for row in ROWS)),
        "JSON objects of several lines each",
        ROWS,
    ),
    "columns.json": (
        lambda p: p.write_text(json.dumps({k: {f"{n}": row[k] for n, row in enumerate(ROWS)} for k in ROWS[0]})),
        "a table by columns in JSON",
        ROWS,
    ),
    "utf16.jsonl": (lambda p: p.write_text(LINES, encoding="utf-16"), "UTF-16 text", ROWS),
    "mac.jsonl": (lambda p: p.write_bytes(LINES.replace("\n", "\r").encode()), "carriage return alone", ROWS),
    "bare.jsonl": (lambda p: packed(p, gzip.open), "compressed by gzip", ROWS),
    "some.jsonl.bz2": (lambda p: packed(p, bz2.open), "compressed by bzip2", ROWS),
    "some.jsonl.xz": (lambda p: packed(p, lzma.open), "compressed by xz", ROWS),
}


def refused(path: Path, pairs) -> str:
    with pytest.raises(SystemExit) as end:
        read_examples(path, pairs)
    assert "\n" not in end.value.code and len(end.value.code) < 900
    return end.value.code


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_and_its_command_makes_the_same_records(name, tmp_path, pairs):
    make, told, rows = FILES[name]
    path = tmp_path / name
    make(path)
    before = {p.name for p in tmp_path.iterdir()}
    message = refused(path, pairs)
    assert message.startswith(f"error: {path}: not JSON Lines but ") and told in message
    command = message.partition("; the command for it: ")[2]
    if "bzip2 " in command or "xz " in command or "iconv " in command:
        for tool in ("bzip2", "xz", "iconv"):
            if f"{tool} " in command and subprocess.run(["which", tool], capture_output=True, check=False).returncode:
                pytest.skip(f"no {tool} here")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    (new,) = {p.name for p in tmp_path.iterdir()} - before - {"table.csv"}
    assert [record for _, record in read_records(tmp_path / new)] == rows
    assert len(read_examples(tmp_path / new, pairs)) == len(rows)


def test_what_no_command_reads(tmp_path, pairs):
    """A spreadsheet, an archive, a pointer of Git LFS, a web page."""
    book = tmp_path / "book.xlsx"
    with zipfile.ZipFile(book, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
        file.writestr("xl/workbook.xml", "<workbook/>")
    assert "a spreadsheet; save it there as CSV (UTF-8)" in refused(book, pairs)
    archive = tmp_path / "some.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("train.csv", "a,b\n1,2\n")
    assert refused(archive, pairs).endswith(f"a ZIP archive; the command for it: unzip {archive}")
    pointer = tmp_path / "lfs.jsonl"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "a pointer of Git LFS" in refused(pointer, pairs)
    page = tmp_path / "page.jsonl"
    page.write_text("<!DOCTYPE html>\n<html></html>\n")
    assert refused(page, pairs).endswith("a web page, so the download went wrong; fetch it again")


def test_a_glob_that_finds_other_files_says_so(tmp_path):
    table(tmp_path / "a.csv", ROWS, ",")
    with pytest.raises(SystemExit, match=r"--train-file \S+a\.csv: not JSON Lines but a table with commas"):
        expand("--train-file", [tmp_path / "*.csv"])


@pytest.mark.parametrize(
    "text",
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
def test_what_may_be_json_lines_is_not_named(text):
    assert name_the_format(Path("some.jsonl"), text.encode()) is None


def test_a_large_table_is_known_by_its_beginning(tmp_path, pairs):
    """Cut in the middle of a row, and of a letter."""
    words = random.Random(0)
    rows = [pair(n) | {"note": "é" * words.randint(1, 50)} for n in range(3_000)]
    table(tmp_path / "large.jsonl", rows, ",")
    assert (tmp_path / "large.jsonl").stat().st_size > HEAD
    assert "(CSV)" in refused(tmp_path / "large.jsonl", pairs)


def test_a_broken_line_further_on_is_a_broken_line(tmp_path, pairs):
    path = write_lines(tmp_path / "some.jsonl", [pair(0)])
    with path.open("a") as file:
        file.write("first,second,label\nthe lake,snow,Warm\n")
    assert f"{path}:2: not a JSON object: " in refused(path, pairs)
