"""The stages' own functions in one process, for experiments of many runs: imports and the teacher's engine are paid once."""

import contextlib
import fcntl
import inspect
import io
import json
import math
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import gold.engine
import train_student
from gold.disk import beside, remove
from gold.examples import read_examples
from gold.soft_labels import soft_examples, weighted
from gold.stopping import STOPPED
from gold.student import load_student
from gold.task import load_task

BATCH = 32
LEARNING_RATE = 5e-4  # random weights need more than pretrained ones
PARAMETERS = inspect.signature(train_student.main).parameters
TRAIN_OPTIONS = {name: p.default for name, p in PARAMETERS.items() if p.default is not p.empty} | {"processes": 1}


def quietly(function: Any, *args: Any, **kwargs: Any) -> None:
    """Call a stage's command without its tables and bars. Where it fails: RuntimeError with its last words."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors := io.StringIO()):
        try:
            function(*args, **kwargs)
        except typer.BadParameter as error:
            raise RuntimeError(error.message) from None
        except SystemExit as error:
            if error.code == STOPPED:  # a signal: end the process
                raise
            said = (str(error) or errors.getvalue().strip())[-300:]
            raise RuntimeError(said) from None
        finally:  # what generate.py does with them is for its chunks
            for number in (signal.SIGUSR1, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Wait until no other process is in here: runs of one seed share what comes before they differ."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep_engine(model: str, max_model_len: int = 1024) -> None:
    """Start the teacher's engine; from here on every stage of this process gets this one."""
    llm = gold.engine.start_llm(model, max_model_len)
    gold.engine.start_llm = lambda *args, **kwargs: llm


def train(
    task_file: Path, base: Path, files: list[Path], folder: Path, steps: int, seed: int, loss: dict,
    best_epoch: bool = False, learning_rate: float = LEARNING_RATE,
) -> None:  # fmt: skip
    """The last of `steps` optimiser steps, however many examples the files hold; none is held out, but for best_epoch."""
    if (folder / "config.json").exists():
        return
    task = load_task(task_file)
    examples = read_examples(files, task)
    held_out = [e for e in examples if best_epoch and train_student.is_held_out(e["id"])]
    examples = [e for e in examples if e not in held_out]
    a_pass = math.ceil(len(examples) / BATCH)
    # Trainer rounds the number of steps up
    options = TRAIN_OPTIONS | {"learning_rate": learning_rate, "per_device_train_batch_size": BATCH, "seed": seed}
    options |= {"num_train_epochs": (steps - 0.5) / a_pass} | loss
    draft, checkpoints = beside(folder, ".partial"), beside(folder, ".checkpoints")
    with contextlib.redirect_stderr(io.StringIO()):
        student = load_student(str(base), task, seed)
        if options["confidence_weights"]:
            examples = weighted(examples, task)
        if options["loss"] == "kl":
            examples = soft_examples(examples, task, student.family)
        counts, _ = train_student.fit(student, examples, held_out, checkpoints, options)
        student.save(draft, counts["dtype"])
    assert counts["steps"] == steps
    remove(checkpoints)
    draft.rename(folder)


def lines_of(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def note(results: Path, line: dict) -> None:
    """Append a line; another process may do so too."""
    with results.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


def told(values: list[float], form: str = ".2f") -> str:
    """Median [min, max]."""
    middle, low, high = (format(f(values), form) for f in (statistics.median, min, max))
    return f"{middle} [{low}, {high}]"
