"""Records of another format as JSON Lines, on stdout: CSV, TSV, Parquet, a JSON list, an object that holds one,
pretty-printed JSON.

    python -m data.to_jsonl reviews.csv > reviews.jsonl
    python -m data.to_jsonl reviews.parquet > reviews.jsonl

A table's first line must name the fields. In a TSV whose quotation marks do not pair, they are letters, as in GLUE's
files.
"""

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Annotated

import typer

from gold.command import fail, new_app, run_command

app = new_app()


@app.command()
def main(path: Annotated[Path, typer.Argument(help="A .csv, .tsv, .parquet or .json file, perhaps .gz.")]) -> None:
    """Print one JSON object a line."""
    for record in records_in(path):
        print(json.dumps(record, ensure_ascii=False, default=str))


def records_in(path: Path) -> list[dict]:
    """The records of a file of any of these formats, or of JSON Lines."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        fail(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}; check the path, or fetch it again")
    return read_parquet(path) if content[:4] == b"PAR1" else read_text(path, decode(path, content))


def decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        fail(
            f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start:,}); save a spreadsheet as CSV in UTF-8"
        )


def read_parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        fail(f"{path}: not a readable Parquet file: {error}; fetch it again")


def read_text(path: Path, text: str) -> list[dict]:
    if not text.strip():
        fail(f"{path}: holds no records; check the path, or fetch it again")
    return read_json(path, text) if text.lstrip()[:1] in ("[", "{") else read_table(path, text)


def read_table(path: Path, text: str) -> list[dict]:
    delimiter = max(",\t;", key=text.lstrip().split("\n", 1)[0].count)
    for quoting in [csv.QUOTE_NONE] * (delimiter == "\t") + [csv.QUOTE_MINIMAL]:
        lines = io.StringIO(text, newline="")
        try:
            names, *rows = filter(None, csv.reader(lines, delimiter=delimiter, quoting=quoting))
        except csv.Error:
            continue
        if {len(row) for row in rows} <= {len(names)}:
            return [dict(zip(names, row, strict=True)) for row in rows]
    fail(f"{path}: its rows have different numbers of fields; mend it where it was made")


def read_json(path: Path, text: str) -> list[dict]:
    """A list of objects, an object with a list of objects in it, objects one after the other, or columns as pandas
    writes them."""
    decoder, values, place = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            values.append(value)
            place += len(text[place:]) - len(text[place:].lstrip())
    except ValueError as error:
        fail(f"{path}: not JSON: {error}; mend it where it was made")
    value = values[0] if len(values) == 1 else values
    if isinstance(value, dict) and all(isinstance(column, dict) for column in value.values()):
        return [dict(zip(value, row, strict=True)) for row in zip(*(c.values() for c in value.values()), strict=True)]
    found = next((v for v in value.values() if isinstance(v, list)), [value]) if isinstance(value, dict) else value
    if not all(isinstance(record, dict) for record in found):
        fail(f"{path}: holds a list of {type(found[0]).__name__} instead of objects; give each record its fields")
    return found


if __name__ == "__main__":
    run_command(app)
