"""Files that are no JSON Lines, named as what they are, with the one command that makes JSON Lines of them.

    name_the_format(Path("reviews.csv"), first_bytes)   "a table with commas (CSV); make JSON Lines of it: python -c '...'"

The commands need Python alone, but for Parquet, which pyarrow reads (`datasets` of requirements.txt brings it).
"""

import csv
import json
import os
import re
import shlex
import sys
from pathlib import Path

HEAD = 2**16  # bytes: enough of a file to know it by
MAGIC = {  # how a file begins, in lower case -> what it is, and the command, or None: fetch it again
    b"par1": ("a Parquet file", "python"),
    b"pk\x03\x04": ("a ZIP archive", "unzip {old}"),
    b"\x1f\x8b": ("compressed by gzip, which its name does not tell", "mv {old} {old}.gz"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "zstd -dc {old} > {new}"),
    b"bzh": ("compressed by bzip2", "bzip2 -dc {old} > {new}"),
    b"\xfd7zxz": ("compressed by xz", "xz -dc {old} > {new}"),
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {old} > {new}"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {old} > {new}"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the data", "git lfs pull"),
    b"<!doctype html": ("a web page, so the download went wrong", None),
    b"<html": ("a web page, so the download went wrong", None),
}
SHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
DELIMITERS = {",": "commas (CSV)", "\t": "tabs (TSV)", ";": "semicolons (CSV)"}
# Python for the rows of the file that is argument 1; no single quotes, for they stand around it in the shell
OPEN = 'open(sys.argv[1],encoding="utf-8-sig"{more})'
PARQUET = ("import pyarrow.parquet as p", "p.read_table(sys.argv[1]).to_pylist()")
LIST = ("", f"json.load({OPEN.format(more='')})")
OBJECT = (f"d=json.load({OPEN.format(more='')})", "next((v for v in d.values() if isinstance(v,list)),[d])")
COLUMNS = (OBJECT[0], "(dict(zip(d,v)) for v in zip(*(c.values() for c in d.values())))")
OBJECTS = ("import re", rf'json.loads("["+re.sub(r"\n}}\s*{{","\n}},{{",{OPEN.format(more="")}.read())+"]")')


def name_the_format(path: Path, first_bytes: bytes) -> str | None:
    """What the file is, and the command that makes JSON Lines of it; None where it may be JSON Lines, or is unknown.

    first_bytes: HEAD bytes of the content; of a .gz file of what is in it.
    """
    packed = path.suffix == ".gz"
    old = path.with_suffix("") if packed else path
    ends = (".jsonl", ".lines.jsonl", *(f".lines{n}.jsonl" for n in range(2, 1000)))
    new = next(new for new in map(old.with_suffix, ends) if not new.exists() and new != old)
    start = first_bytes.removeprefix(b"\xef\xbb\xbf")
    text = start.decode("utf-8", "ignore")
    what, how = next((v for magic, v in MAGIC.items() if start[: len(magic)].lower() == magic), (None, None))
    if old.suffix.lower() in SHEETS or (what and b"xl/" in start):
        return "a spreadsheet; save it there as CSV (UTF-8), and give the CSV file: what to do with that is said then"
    if what and not how:
        return f"{what}; fetch it again"
    if how == "python":
        how = _python(*PARQUET)
    elif not what:
        what, how = _json_kind(text) or _table(old, text) or (None, None)
    if not what:
        return None
    command = how.format(old=shlex.quote(str(old)), new=shlex.quote(str(new)))
    return f"{what}; the command for it: {f'gunzip -k {shlex.quote(str(path))} && ' * packed}{command}"


def _python(before: str, rows: str) -> str:
    """The command that prints each of the rows as a line of JSON, in ASCII: the same in every locale."""
    code = f"import json,sys; {before}{'; ' * bool(before)}[print(json.dumps(r,default=str)) for r in {rows}]"
    python = shlex.quote(os.path.relpath(sys.executable))
    return f"{python} -c '{code}'".replace("{", "{{").replace("}", "}}") + " {old} > {new}"


def _json_kind(text: str) -> tuple[str, str] | None:
    """JSON of another shape, by how it begins."""
    one_line = "\n" not in text.strip()
    if re.match(r"\s*\[\s*(\{|$)", text):
        return "a JSON list", _python(*LIST)
    if re.match(r"\s*\{[ \t\r]*\n", text):
        if re.search(r"\n\}\s*\{", text):
            return "JSON objects of several lines each", _python(*OBJECTS)
        return "one JSON object of several lines", _python(*OBJECT)
    if text.startswith("{") and "\r" in text.strip() and "\n" not in text:
        return "lines that end in a carriage return alone", r"tr '\r' '\n' < {old} > {new}"
    if one_line and re.match(r'\{\s*"[^"]*":\s*\{\s*"0":', text):
        return "a table by columns in JSON (of pandas)", _python(*COLUMNS)
    if one_line and re.match(r'\{\s*"[^"]*":\s*\[\s*\{', text):
        return "one JSON object with the records in a list", _python(*OBJECT)
    return None


def _table(path: Path, text: str) -> tuple[str, str] | None:
    """Rows of one length, or a name that says so: a table whose first row names the fields."""
    lines = text.splitlines(keepends=True)
    lines = lines[:-1] if len(text) > HEAD // 2 else lines  # the last one may be cut
    if not lines or "\0" in text or text.lstrip().startswith(("{", "[")):
        return None
    named = path.suffix.lower() in (".csv", ".tsv", ".tab")
    delimiter = max(DELIMITERS, key=lines[0].count)
    if not named and (len(lines) < 2 or not _even(lines, delimiter, csv.QUOTE_MINIMAL)):
        return None
    # GLUE's quotation marks mean nothing, those of other tables hold line ends and tabs together
    plain = delimiter == "\t" and _even(lines, delimiter, csv.QUOTE_NONE)
    how = f",delimiter={json.dumps(delimiter)}" * (delimiter != ",") + ",quoting=3" * plain
    more = ',newline=""'
    reader = f"csv.DictReader({OPEN.format(more=more)}{how})"
    return f"a table with {DELIMITERS[delimiter]}, whose first line must name the fields", _python("import csv", reader)


def _even(lines: list[str], delimiter: str, quoting: int) -> bool:
    """Whether all rows have the same number of fields, two or more."""
    try:
        widths = {len(row) for row in csv.reader(lines, delimiter=delimiter, quoting=quoting) if row}
    except csv.Error:
        return False
    return len(widths) == 1 and min(widths) > 1
