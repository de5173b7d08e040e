"""JSON Lines files: reading, writing, shards. Records are plain dicts here; gold/examples.py knows the task's fields.

for number, record in read_records(path): ...             number is the line's; a broken line ends the stage with file:line
write_file(path, records); append_records(path, records)  down to the disk; NaN is an error
paths = expand("--train-file", [Path("train-*-of-00004.jsonl")])
"""

import glob
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import typer

from gold.command import fail
from gold.disk import naming

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.jsonl")  # as `datasets` names them: train-00000-of-00004.jsonl


@dataclass
class Lines:
    """The lines of a file, and which one was read last."""

    number: int = 0
    last: bytes = b""

    def of(self, file: IO[bytes]) -> Iterator[bytes]:
        try:
            for self.number, self.last in enumerate(file, 1):
                yield self.last
        except EOFError as error:  # a .gz that is cut off; jsonlines would take it for the end of the file
            raise OSError(f"{error}") from error


def read_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, record) of a JSON Lines file, perhaps a .gz; a broken line ends the stage with `file:line:
    problem`."""
    import gzip
    import zlib

    import jsonlines

    lines, read = Lines(), False
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            reader = jsonlines.Reader(lines.of(file), loads=parse_line)
            for record in reader.iter(type=dict, skip_empty=True):
                read = True
                yield lines.number, record
    except (OSError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or error
        fail(f"{path}: cannot be read: {problem}; check the path, or run the stage that writes it")
    except jsonlines.InvalidLineError as error:
        if not read and (what := name_the_format(path)):
            fail(f"{path}: not JSON Lines but {what}")
        problem, cure = str(error.__cause__ or error), "mend or delete the line"
        if not lines.last.endswith(b"\n"):
            problem, cure = "torn last line, its writer was cut off", "delete the line, or run that stage again"
        shown = lines.last[:60].decode("utf-8", "replace")
        fail(f"{path}:{lines.number}: not a JSON object: {problem}; found {shown!r}; {cure}")


def name_the_format(path: Path) -> str | None:
    """What a file of another format is, and the command that makes JSON Lines of it; None where it may be that."""
    import gzip
    import zlib

    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(2**16)
    except (OSError, EOFError, zlib.error):
        return None
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    first, second = (text + "\n\n").split("\n")[:2]
    counts = {mark: first.count(mark) for mark in ",\t;"}
    table = text[:1] not in ("{", "[") and any(n and n == second.count(mark) for mark, n in counts.items())
    what = (
        "a Parquet file" if head[:4] == b"PAR1"
        else "UTF-16 text" if head[:2] in (b"\xff\xfe", b"\xfe\xff")
        else "JSON Lines with a carriage return alone at each end" if text[:1] == "{" and "\r" in text and "\n" not in text
        else "a JSON list" if re.match(r"\[\s*\{", text)
        else "JSON over several lines" if re.match(r"\{[ \t\r]*\n", text)
        else "a table (CSV or TSV)" if table or {".csv", ".tsv"} & set(path.suffixes)
        else None
    )  # fmt: skip
    if head[:4] == b"PK\x03\x04":
        return "a ZIP archive or a spreadsheet: unpack it, or save the sheet as CSV"
    new = path.with_name(path.name.removesuffix(".gz")).with_suffix(".lines.jsonl")
    return (
        what
        and f"{what}: python -m data.to_jsonl {shlex.quote(str(path))} > {shlex.quote(str(new))} makes JSON Lines of it"
    )


def parse_line(line: str | bytes) -> Any:
    """The value of a line, by msgspec: several times as fast as json, and strict where json is not (1e999)."""
    import msgspec

    try:
        return msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    try:  # json says better what is wrong with it; what it takes, it may not be able to write
        json.dumps(json.loads(line, parse_constant=refuse_constant), ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        problem = "nested too deeply"
    raise ValueError(problem)


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def dump_line(record: dict) -> str:
    import msgspec

    line = msgspec.json.encode(record)
    if b"null" in line:  # what msgspec writes for NaN and infinity too
        bad = [f"{k} is {v}" for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            fail(f"{record.get('id')}: {', '.join(bad)}: not finite, so nothing is written; train with a lower rate?")
    return msgspec.json.format(line, indent=0).decode()  # with a blank after each comma and colon, for reading


def write_file(path: Path, records: Iterable[dict], mode: str = "w") -> None:
    """A whole file of JSON Lines, down to the disk; NaN and infinity are errors, never written."""
    import jsonlines

    with naming(path), path.open(mode, encoding="utf-8") as file:
        jsonlines.Writer(file, dumps=dump_line).write_all(records)
        file.flush()
        os.fsync(file.fileno())  # before anybody notes that they are there: a power cut may come too


def append_records(path: Path, records: Iterable[dict]) -> None:
    write_file(path, records, "a")


def cut_torn_line(path: Path) -> None:
    """Cut the rest of a line whose writer was killed; a whole one that an editor has left without its end gets one."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 2**16)
            file.seek(begin)
            place = file.read(end - begin).rfind(b"\n")
            if place >= 0:
                end = begin + place + 1
                break
            end = begin
        file.seek(end)
        try:
            parse_line(file.read())
            file.write(b"\n")
        except ValueError:
            file.truncate(end)


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def parse_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of the option --shard i/n, 0 <= i < n; (0, 1) where it is not given. A bad value is a bad option (exit
    code 2)."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise typer.BadParameter(f"{text!r} is not i/n with 0 <= i < n, such as 0/4 to 3/4", param_hint="--shard")
    return int(match[1]), int(match[2])


def shard_path(path: Path, shard: str | None) -> Path:
    """train.jsonl -> train-00000-of-00004.jsonl for the shard 0/4; unchanged without one."""
    i, n = parse_shard(shard)
    return path.with_name(f"{path.stem}-{i:05d}-of-{n:05d}{path.suffix}") if shard else path


def expand(option: str, paths: Iterable[Path] | None) -> list[Path]:
    """The files of an option that may be repeated and may hold a glob (in quotes); shards must be there as a whole set.

    A glob takes finished .jsonl files, and rejects only where it names them. Ends the stage (exit 1) when a glob finds
    nothing, a shard is missing, a folder holds two sets of one file, or shards were made with other options.
    """
    found: list[Path] = []
    for path in paths or []:
        pattern = str(path)
        if path.exists() or not glob.has_magic(pattern):
            found.append(path)
            continue
        names = [p for p in sorted(glob.glob(pattern)) if p.endswith((".jsonl", ".jsonl.gz"))]
        found += [Path(p) for p in names if "rejected" in path.name or ".rejected.jsonl" not in p]
        if not names:
            begun = "none of them is finished" if glob.glob(pattern + ".partial") else "no such files"
            fail(f"{option} {pattern}: {begun}; check the path, or run the stage that writes them")
    sets: dict[tuple[Path, str], dict[int, set[int]]] = {}
    for path in found:
        if match := SHARD.fullmatch(path.name):
            sets.setdefault((path.parent, match[1]), {}).setdefault(int(match[3]), set()).add(int(match[2]))
    for (folder, stem), by_size in sets.items():
        check_shards(option, folder, stem, by_size)
    return found


def check_shards(option: str, folder: Path, stem: str, by_size: dict[int, set[int]]) -> None:
    """One whole set of shards, made alike: see expand. by_size: number of shards -> the numbers of those given."""
    if len(by_size) > 1:
        sizes, one = " and of ".join(map(str, sorted(by_size))), f"{stem}-*-of-{max(by_size):05d}.jsonl"
        fail(f"{option}: {folder / stem}-*.jsonl holds shards of {sizes}; give one set, such as {one}")
    (size, there), *_ = by_size.items()
    paths = [folder / f"{stem}-{i:05d}-of-{size:05d}.jsonl" for i in range(size)]
    for i in sorted(set(range(size)) - there):
        problem = (
            f"shard {i} of {size} is not among the files; give the whole set: {stem}-*-of-{size:05d}.jsonl in quotes"
        )
        if not paths[i].exists():
            state = "not finished" if paths[i].with_name(paths[i].name + ".partial").exists() else "missing"
            problem = f"shard {i} of {size} is {state}; run its stage (again) with --shard {i}/{size}"
        fail(f"{option}: {paths[i]}: {problem}")
    first: dict | None = None
    for path in paths:
        try:
            record = json.loads(path.with_name(path.name + ".run.json").read_text(encoding="utf-8"))
            made = {k: v for k, v in record["options"].items() if k not in ["shard", *record["not_compared"]]}
            made |= {f"{k}'s content": v for k, v in record["inputs"].items()}
        except (OSError, ValueError, LookupError, AttributeError):
            continue  # a shard of the user's own
        first = first or made
        for name in sorted(made):
            if made[name] != first.get(name, made[name]):
                problem = f"were not made alike: {name.replace('_', '-')} differs; run the stage of both again"
                fail(f"{option}: {path} and {paths[0]} {problem}")
