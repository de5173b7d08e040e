"""JSON Lines files: reading, writing, shards. Records are plain dicts here; gold/examples.py knows the task's fields.

for number, record in read_records(path): ...             number is the line's; a broken line ends the stage with file:line
write_file(path, records); append_records(path, records)  down to the disk; NaN is an error
paths = expand("--train-file", [Path("train-*-of-00004.jsonl")])
"""

import codecs
import collections
import functools
import glob
import gzip
import json
import os
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from gold.command import fail
from gold.disk import beside, naming, read_json

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.jsonl")  # as `datasets` names them: train-00000-of-00004.jsonl


def read_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, record) of a JSON Lines file, perhaps a .gz. A broken line ends the stage with `file:line:
    problem; found ...; cure`; of the first record the cure names the command that converts other formats."""
    number, line, first = 0, b"", True
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if text := line.removeprefix(codecs.BOM_UTF8).strip():
                    yield number, decoder().decode(text)
                    first = False
    except (OSError, EOFError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or error
        fail(f"{path}: cannot be read: {problem}; check the path, or run the stage that writes it")
    except (ValueError, RecursionError) as error:
        problem, cure = str(error), "mend or delete the line"
        if first:
            command = f"python -m data.to_jsonl {shlex.quote(str(path))}"
            cure += f"; a file of another format (CSV, Parquet, a JSON list): {command} prints JSON Lines"
        elif not line.endswith(b"\n"):
            problem, cure = "torn last line, its writer was cut off", "delete the line, or run that stage again"
        shown = line[:60].decode("utf-8", "replace")
        fail(f"{path}:{number}: not a JSON object: {problem}; found {shown!r}; {cure}")


@functools.cache
def decoder() -> Any:
    import msgspec  # here: it takes a tenth of the time of a --help

    return msgspec.json.Decoder(dict)  # twice as fast as decode(line, type=dict)


def dump_line(record: dict) -> str:
    import msgspec

    line = msgspec.json.encode(record)
    if b"null" in line:  # what msgspec writes for NaN and infinity too
        for name, value in record.items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                problem = f"{name} is {value}: not finite, so nothing is written"
                fail(f"{record.get('id')}: {problem}; train with a lower rate?")
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
        last = b"".join(collections.deque(file, maxlen=1))
        if last.endswith(b"\n"):
            return
        try:
            decoder().decode(last)
            file.write(b"\n")
        except (ValueError, RecursionError):
            file.seek(-len(last), os.SEEK_END)
            file.truncate()


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def parse_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of the option --shard i/n, 0 <= i < n; (0, 1) without it."""
    match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", "0/1" if text is None else text)
    if not match or not int(match[1]) < int(match[2]):
        raise typer.BadParameter(f"{text!r} is not i/n with 0 <= i < n, such as 0/4 to 3/4", param_hint="--shard")
    return int(match[1]), int(match[2])


def shard_path(path: Path, shard: str | None) -> Path:
    """train.jsonl -> train-00000-of-00004.jsonl for the shard 0/4; unchanged without one."""
    i, n = parse_shard(shard)
    return path.with_name(f"{path.stem}-{i:05d}-of-{n:05d}{path.suffix}") if shard else path


def expand(option: str, paths: Iterable[Path] | None) -> list[Path]:
    """The files of an option that may be repeated and may hold a glob; shards must be there as a whole set.

    A glob takes finished .jsonl files, and rejects only where it names them. Ends the stage (exit 1) when a glob finds
    nothing, a shard is missing, a folder holds two sets of one file, or shards differ in their options.
    """
    found: list[Path] = []
    for path in paths or []:
        pattern = str(path)
        if path.exists() or not glob.has_magic(pattern):
            found.append(path)
            continue
        names = [p for p in sorted(glob.glob(pattern)) if p.endswith((".jsonl", ".jsonl.gz"))]
        names = [Path(p) for p in names if "rejected" in path.name or ".rejected.jsonl" not in p]
        found += names
        if not names:
            state = "none of them is finished" if glob.glob(pattern + ".partial") else "no such files"
            fail(f"{option} {pattern}: {state}; check the path, or run the stage that writes them")
    sets = collections.defaultdict(set)
    for path in found:
        if match := SHARD.fullmatch(path.name):
            sets[path.with_name(f"{match[1]}.jsonl")].add((int(match[2]), int(match[3])))
    for whole, shards in sets.items():
        check_shards(option, whole, shards)
    return found


def check_shards(option: str, whole: Path, shards: set[tuple[int, int]]) -> None:
    """End the stage where `shards` (i, n) are not one whole set, made alike. whole: the path without a number."""
    sizes = sorted({n for _, n in shards})
    size, pattern = sizes[-1], f"{whole.stem}-*-of-{sizes[-1]:05d}.jsonl"
    if len(sizes) > 1:
        several = f"{whole.with_suffix('')}-*.jsonl holds shards of {' and of '.join(map(str, sizes))}"
        fail(f"{option}: {several}; give one set, such as {pattern}")
    paths = [shard_path(whole, f"{i}/{size}") for i in range(size)]
    seen: dict = {}
    for i, path in enumerate(paths):
        if (i, size) not in shards:
            cure = f"give the whole set, {pattern} in quotes, or run its stage with --shard {i}/{size}"
            fail(f"{option}: {path}: shard {i} of {size} is not among the files; {cure}")
        for name, value in how_made(path).items():
            if seen.setdefault(name, value) != value:
                problem = f"were not made alike: {name.replace('_', '-')} differs; run the stage of both again"
                fail(f"{option}: {path} and {paths[0]} {problem}")


def how_made(path: Path) -> dict:
    """The options and hashes of inputs that shards must share, by the run record; {} for a shard of the user's own."""
    record = read_json(beside(path, ".run.json"))
    differ = {"shard", *record.get("not_compared", [])}
    made = {k: v for k, v in record.get("options", {}).items() if k not in differ}
    return made | {f"{k}'s content": v for k, v in record.get("inputs", {}).items()}
