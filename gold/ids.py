"""Ids of records that came without one: `<file>:<line>`.

file_names([Path("a/train.jsonl"), Path("b/train.jsonl")])     ["a/train", "b/train"]
text_id(7)                                                     "7"
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def file_names(paths: Sequence[Path], among: Iterable[Path] = ()) -> list[str]:
    """For each file the end of its path that no other file here or in `among` has: the stem, where that tells them apart."""
    whole = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (a link has the name that was given)
    others = {*whole, *(Path(os.path.abspath(path)) for path in among)}  # noqa: PTH100
    ends = {path: _ends(path) for path in others}
    names = []
    for path in whole:
        taken = {end for other, of in ends.items() if other != path for end in of}
        names.append(next((end for end in ends[path] if end not in taken), str(path)))
    return names


def _ends(path: Path) -> list[str]:
    """train, a/train, x/a/train, ..., of /x/a/train.jsonl"""
    return ["/".join((*path.parts[len(path.parts) - n : -1], path.stem)) for n in range(1, len(path.parts))]


def text_id(value: Any) -> Any:
    """Whole numbers are ids too, as texts; anything else as it is."""
    return str(value) if type(value) is int else value
