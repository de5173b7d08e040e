"""What an input of a stage holds, as a short text in its run record. Content decides, never a path or a time.

    fingerprint(Path("train.jsonl"), cache)                 "sha256:ba78..."
    fingerprint("runs/a/iter-00/student", cache)            "sha256:51d0... of 5 files, 0.9 MB"
    fingerprint("google-t5/t5-base", cache)                 "hub:google-t5/t5-base@a9723ea7..."

A model folder counts by the files that stages compute with: no training logs, Markdown or hidden files. A name of the
hub counts by the commit in the hub's local cache; before the first download there is none, so the name alone counts.
"""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

CACHE = ".hashes.json"  # in a run folder: hashes of large files, so that a teacher is read once a run
LARGE = 2**26  # bytes; smaller files are read in a tenth of a second
LOGS = {"training_log.jsonl", "held_out.jsonl"}  # written into a student's folder by train_student.py, read by people


def fingerprint(value: Any, cache: Path) -> Any:
    """The text that stands for an input; of a list the list; None: no input. FileNotFoundError: no such file or folder.

    cache: the folder in which the hashes of large files are kept.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [fingerprint(v, cache) for v in value]
    path = Path(value)
    if path.is_dir():
        digest, size, number = hashlib.sha256(), 0, 0
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            is_log = file.name in LOGS or "tfevents" in file.name or file.suffix.lower() == ".md"
            if not is_log and not f"/{name}".count("/."):
                digest.update(f"{name}\0{hash_of(file, cache)}\n".encode())
                size, number = size + file.stat().st_size, number + 1
        return f"sha256:{digest.hexdigest()} of {number} files, {size / 1e6:,.1f} MB"
    if path.is_file():
        return f"sha256:{hash_of(path, cache)}"
    if isinstance(value, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) and not Path(value.split("/")[0]).exists():
        return with_commit(f"hub:{value}")
    raise FileNotFoundError(value)


def with_commit(value: Any) -> Any:
    """hub:name or hub:name@commit -> hub:name@commit as it is now in the hub's local cache; anything else as it is.

    A stage asks again at its end, when the model has been downloaded.
    """
    if not str(value).startswith("hub:"):
        return value
    from huggingface_hub import try_to_load_from_cache

    name, found = value.removeprefix("hub:").split("@")[0], None
    with contextlib.suppress(ValueError):  # no name that the hub allows: loading the model says so
        found = try_to_load_from_cache(name, "config.json")
    return f"hub:{name}@{Path(found).parent.name}" if isinstance(found, str) else value


def same_content(old: Any, new: Any) -> bool:
    """Whether an input is what it was. A name of the hub whose commit was not known yet is compared by name."""
    of_the_hub = all(str(value).startswith("hub:") for value in (old, new))
    if of_the_hub and ("@" not in old or "@" not in new):
        return old.split("@")[0] == new.split("@")[0]
    return old == new


def hash_of(path: Path, cache: Path) -> str:
    """SHA-256 of a file's content; a large file's is kept in `cache`, under its path, size and times.

    One of the times is the inode's (ctime), which no program can set: a copy that keeps the old file's mtime is read.
    """
    stat = path.stat()
    if stat.st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    key, kept = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}", {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # none yet, or a broken one: it only saves time
        kept = dict(json.loads((cache / CACHE).read_text(encoding="utf-8")))
    if key not in kept:
        with path.open("rb") as file:
            kept[key] = hashlib.file_digest(file, "sha256").hexdigest()
        draft = cache / f"{CACHE}.{os.getpid()}"  # replaced in one step: another shard may be reading it
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            draft.replace(cache / CACHE)
    return kept[key]
