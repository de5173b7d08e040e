"""What an input of a stage holds, as a short text in its run record. Content decides, never a path or a time.

    fingerprint("train_file", Path("train.jsonl"))          "sha256:ba78..."
    fingerprint("model", "runs/a/iter-00/student")          "sha256:51d0... of 5 files, 0.9 MB"
    fingerprint("model", "google-t5/t5-base")               "hub:google-t5/t5-base@a9723ea7..."
    same_content(old, new)                                  whether two of them mean the same content

A model folder counts by all of its files, but for those that no stage computes with: the logs of the training
(training_log.jsonl, held_out.jsonl), Markdown, hidden files. A name of the hub counts by the commit in the local cache of
the hub: it is what transformers and vLLM read. Before the first download there is none, so the name alone counts.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CACHE = ".hashes.json"  # beside a run: hashes of large files, which several stages read
LARGE = (
    2**26
)  # bytes; a file from here on is worth an entry in that cache. Smaller ones are read in a tenth of a second
LOGS = {"training_log.jsonl", "held_out.jsonl"}  # written into a student's folder by train_student.py, read by people


def fingerprint(value: Any, cache: Path | None = None) -> Any:
    """The text that stands for an input; None: no input. Of a list the list. FileNotFoundError: no such file or folder.

    cache: a folder in which the hashes of large files are kept (see _hashes), so that a teacher is read once a run.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [fingerprint(v, cache) for v in value]
    path = Path(value)
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and _counts(p.relative_to(path))]
        digest = hashlib.sha256()
        for file, found in zip(files, _hashes(files, cache), strict=True):
            digest.update(f"{file.relative_to(path).as_posix()}\0{found}\n".encode())
        size = sum(file.stat().st_size for file in files)
        return f"sha256:{digest.hexdigest()} of {len(files)} files, {size / 1e6:,.1f} MB"
    if path.is_file():
        return f"sha256:{_hashes([path], cache)[0]}"
    if isinstance(value, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) and not Path(value.split("/")[0]).exists():
        return with_commit(f"hub:{value}")
    raise FileNotFoundError(value)


def with_commit(value: Any) -> Any:
    """hub:name or hub:name@commit -> hub:name@commit as it is now in the hub's local cache; anything else as it is.

    A stage asks once more at its end: what it has downloaded meanwhile is what it has read.
    """
    if not isinstance(value, str) or not value.startswith("hub:"):
        return value
    from huggingface_hub import try_to_load_from_cache

    name = value.removeprefix("hub:").split("@")[0]
    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that the hub allows: loading the model says so
        return value
    return f"hub:{name}@{Path(found).parent.name}" if isinstance(found, str) else value


def same_content(old: Any, new: Any) -> bool:
    """Whether an input is what it was. A name of the hub whose commit was not known yet is compared by name."""
    of_hub = all(isinstance(value, str) and value.startswith("hub:") for value in (old, new))
    if of_hub and not ("@" in old and "@" in new):
        return old.split("@")[0] == new.split("@")[0]
    return old == new


def _counts(path: Path) -> bool:
    """Whether a stage may compute with this file of a model folder."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.name not in LOGS and path.suffix.lower() != ".md"


def _hashes(files: list[Path], cache: Path | None) -> list[str]:
    """SHA-256 of each file, several at a time.

    Of large files those in `<cache>/.hashes.json` are taken, where path, size and times are as they were then. Of the times
    the inode's too (ctime): no program can set it, so a copy that keeps the old file's time (cp -p) is read.
    """
    stats = [file.stat() for file in files]
    keys = [
        f"{file.resolve()} {s.st_size} bytes, written {s.st_mtime_ns}, changed {s.st_ctime_ns}"
        for file, s in zip(files, stats, strict=True)
    ]
    large = [key for key, s in zip(keys, stats, strict=True) if s.st_size >= LARGE]
    kept = _read_cache(cache / CACHE) if cache and large else {}
    new = [key for key in large if key not in kept]
    if (size := sum(s.st_size for key, s in zip(keys, stats, strict=True) if key in new)) > 2**30:
        print(f"reading {size / 1e9:,.1f} GB of {files[0].parent} to know its content, once a run", file=sys.stderr)
    unread = {key: file for key, file in zip(keys, files, strict=True) if key not in kept}
    with ThreadPoolExecutor() as pool:
        found = kept | dict(zip(unread, pool.map(_sha256, unread.values()), strict=True))
    if cache and new:
        _write_cache(cache / CACHE, kept | {key: found[key] for key in new})
    return [found[key] for key in keys]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_cache(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {k: v for k, v in found.items() if isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v)}
    except (OSError, ValueError, AttributeError):  # none yet, or one that nobody can read: it only saves time
        return {}


def _write_cache(path: Path, hashes: dict[str, str]) -> None:
    """In one step, so that a shard that reads it finds the old one or the new one. Without it nothing is lost but time."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
