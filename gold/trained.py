"""What a student was trained with: gold.json beside its weights, written by train_student.py, read by the later stages.

write_trained(folder, task, lengths, dtype)     {"max_source_length": 128, "max_target_length": 32, "dtype": "bfloat16",
                                                 "source": "review: $text", "target": "$label"}
lengths = trained_lengths(model, task, max_source_length=None, max_target_length=None)     as the student was trained
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from records import fail, say, write_json

if TYPE_CHECKING:
    from task import Task

NAME = "gold.json"
SOURCE_LENGTH, TARGET_LENGTH = 512, 128  # in tokens: of a training, and of a base model, where no option says more
LENGTHS = {"max_source_length": SOURCE_LENGTH, "max_target_length": TARGET_LENGTH}


def write_trained(folder: Path, task: "Task", lengths: dict[str, int], dtype: str) -> None:
    """dtype: that of the training's computations. The weights are float32, and so is what measures the student."""
    write_json(folder / NAME, {**{name: lengths[name] for name in LENGTHS}, "dtype": dtype, **task.student})


def read_trained(model: str) -> dict[str, Any]:
    """What stands in a student's gold.json; nothing for a model without it. Ends the stage where it is not readable."""
    path = Path(model) / NAME
    if not Path(model).is_dir():  # a name of the hub
        from transformers.utils import cached_file

        quiet = ("missing_entries", "connection_errors", "gated_repo")
        found = cached_file(model, NAME, **{f"_raise_exceptions_for_{what}": False for what in quiet})
        if found is None:
            return {}
        path = Path(found)
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(told, dict) and all(type(told[name]) is int and told[name] > 0 for name in LENGTHS)
    except (OSError, ValueError, LookupError):
        sound = False
    if not sound:
        cure = "train the student again, or delete the file and give the lengths as options"
        fail(f"{path}: must hold the lengths that the student was trained with, {' and '.join(LENGTHS)}; {cure}")
    return told


def trained_lengths(model: str, task: "Task", **given: int | None) -> dict[str, int]:
    """max_source_length and max_target_length to measure with: as given, else as the student was trained.

    Where an option, or what the task file has the student read and write, is not that of the training, it is said.
    """
    told = read_trained(model)
    chosen = {name: given[name] or told.get(name, default) for name, default in LENGTHS.items()}
    for name, value in chosen.items():
        if told and value != told[name]:
            say(f"--{name.replace('_', '-')} {value}: {model} was trained with {told[name]}")
    for name, template in task.student.items():
        if told.get(name, template) != template:
            say(f"{task.path}: student.{name} is {template!r}: {model} was trained with {told[name]!r}")
    return chosen
