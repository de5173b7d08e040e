"""Files that outlive a power cut, a kill and a second process: written whole or not at all, locked, removed."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gold.command import fail


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """Add the name of the file to an error that has none: one of an open file, or of a library."""
    try:
        yield
    except Exception as error:
        if not getattr(error, "filename", None):
            error.filename = str(path)
        raise


def beside(path: Path, suffix: str) -> Path:
    """`train.jsonl` -> `train.jsonl.run.json`, and so on."""
    return path.with_name(path.name + suffix)


def read_json(path: Path) -> dict:
    """A JSON file that a stage wrote; {} where there is none. Ends the stage (exit 1) where it cannot be read."""
    import msgspec  # here: it takes a tenth of the time of a --help

    try:
        return msgspec.json.decode(path.read_bytes(), type=dict) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        fail(f"{path}: not a readable JSON file: {error}; delete it, and run the stage that writes it with --overwrite")


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file atomically: a reader sees the old one or the new one, whole."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def write_text(path: Path, text: str) -> Path:
    """The same of a text."""
    draft = beside(path, ".draft")
    with naming(draft), draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return draft.replace(path)


def sync(*paths: Path) -> None:
    """Have files, or the names in folders, on the disk before a run record tells of them: the power may fail."""
    for path in paths:
        with naming(path):
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def take_lock(output: Path) -> IO[bytes]:
    """An exclusive lock, held while the file is open: it ends with the process, however that dies."""
    path = beside(output, ".lock")
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{output}: another process is writing it (left by a killed shell?); wait, or end it: fuser {path}")
        with contextlib.suppress(FileNotFoundError):  # its holder removed it between our two calls
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
