"""Labels that people write in another form than the task: mapped where it is certain, else told how to.

as_label("Positive ", ["negative", "positive"])      "positive"
as_label(1, ["negative", "positive"])                None: no order is certain
label_cure(1, ...)                                   the message's end, with the command that maps 0, 1, ...
"""

import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

MOST_SHOWN = 12


def as_label(value: Any, labels: Collection[str]) -> str | None:
    """The one label that is the same text but for capitals and outer blanks; true and 1 are the texts "true" and "1"."""
    if not isinstance(value, str | int):
        return None
    same = [name for name in labels if name.strip().casefold() == str(value).strip().casefold()]
    return same[0] if len(same) == 1 else None


def label_cure(value: Any, labels: Collection[str], field: str, task_file: Path, path: Path) -> str:
    """What to do about a value that is no label: for numbers the command that puts names in their place."""
    number = float(value) if isinstance(value, int | float) else None
    if isinstance(value, str) and value.strip().isdecimal():
        number = int(value)
    if number == -1:
        return f"-1 often means that there is none: leave {field!r} out, or correct the line"
    if number not in range(len(labels)):
        return "correct the line"
    order = ", ".join(f"{n} is {name}" for n, name in zip(range(MOST_SHOWN), labels, strict=False))
    more = " ..." * (len(labels) > MOST_SHOWN) + " (false counts as 0, true as 1)" * isinstance(value, bool)
    opened = (
        'gzip.open(sys.argv[2],"rt",encoding="utf-8")'
        if path.suffix == ".gz"
        else 'open(sys.argv[2],encoding="utf-8-sig")'
    )
    code = (
        'import gzip,json,sys,tomllib; n=list(tomllib.load(open(sys.argv[1],"rb"))["labels"]); '
        f'[print(json.dumps(r|{{"{field}":n[int(r["{field}"])]}})) for r in map(json.loads,{opened})]'
    )
    new = (path.with_suffix("") if path.suffix == ".gz" else path).with_suffix(".named.jsonl")
    words = [os.path.relpath(sys.executable), "-c", code, str(task_file), str(path)]
    return f"if {order}{more}, as in the task file: {shlex.join(words)} > {shlex.quote(str(new))}"
