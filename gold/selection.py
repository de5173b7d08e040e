"""Which scored examples are fed back to the teacher."""

import math
from typing import Any

from gold.command import fail, say
from gold.examples import agrees, example_key
from gold.near_duplicates import NearDuplicates
from gold.scores import STORED
from gold.task import Task

MIN_EXAMPLES = 10  # of a label: ranks of a handful mean nothing
ERRORS = ("error", "hard_negative")  # scores above 0 of wrong examples alone, of which there may be few or none


def select_feedback(
    examples: list[dict], task: Task, score: str, low: float, high: float,
    confirmed: bool = False, max_overlap: float = 1.0, group_size: int | None = None,
    most: int | None = None, least: int = MIN_EXAMPLES,
) -> tuple[list[dict], dict[str, str]]:  # fmt: skip
    """(the examples whose score lies in the quantile band [low, high) of their own label, most OOD first; the reasons of
    the others, by id: unconfirmed, outside_band, near_duplicate, surplus).

    n examples of a label in ascending order (ties by id): those at floor(low n) .. floor(high n) - 1 are selected, each
    with `score` and `rank` (1 = the highest score of its label). Fewer than `least` of a label, or a score that is no
    number, end the stage; with least = 0, for filters, ceil(high n) takes the place of floor: a few of a label stay. Of
    error and hard_negative the band is one of the wrong examples.

    confirmed: only examples with whose answer the teacher's own agrees. max_overlap: from the most OOD down, an example
    is left out whose text overlaps more than this (ROUGE-L F1) with a selected one's. group_size: the band within each
    so many successive examples instead of within each label. most: only so many of the highest ranks, the labels in turn.
    """
    reasons = {e["id"]: "unconfirmed" for e in examples if confirmed and not confirms(e, task)}
    examples = [e for e in examples if e["id"] not in reasons]
    groups: dict[Any, list[dict]] = {name: [] for name in ([] if group_size else task.names)}
    for place, example in enumerate(examples):
        if example.get(score) is None:
            cure = "make it with generate.py --teacher-nll" if score in STORED else "score it with --model"
            fail(f"--score {score}: {example['id']} has none; {cure}, or choose another")
        if not math.isfinite(value := example[score]):
            fail(f"--score {score}: is {value} for {example['id']}; the student is broken: train it with a lower rate")
        group = place // group_size if group_size else example.get(task.answer_field) if task.labels else None
        groups.setdefault(group, []).append(example)
    selected = []
    for name, group in groups.items():
        if len(group) < least and not group_size and score not in ERRORS:
            found = f"only {len(group)} {'confirmed ' * confirmed}examples of the label {name!r}"
            cure = "make more (generate.py --num-validation, or --num-examples)"
            fail(f"--input-file: {found}, a band needs {least}; {cure}")
        selected += band(group, name, score, low, high, whole=not least)
    if not selected and score not in ERRORS:
        fail(f"--low {low} --high {high}: holds none of {len(examples):,} examples; make the band wider")
    reasons |= dict.fromkeys({e["id"] for e in examples} - {e["id"] for e in selected}, "outside_band")
    selected.sort(key=lambda e: (e["rank"], e["id"]))
    if max_overlap < 1:
        near, kept = NearDuplicates(max_overlap), []
        for example in selected:
            text = example_key(task, example)
            if near.overlaps(text):
                reasons[example["id"]] = "near_duplicate"
            else:
                near.add(text)
                kept.append(example)
        selected = kept
    reasons |= {e["id"]: "surplus" for e in selected[most:]} if most else {}
    return selected[:most], reasons


def band(group: list[dict], name: Any, score: str, low: float, high: float, whole: bool) -> list[dict]:
    """The examples of one label in the quantile band, with `score` and `rank`. whole: its upper end is rounded up."""
    group = sorted((e for e in group if score not in ERRORS or e[score] > 0), key=lambda e: (e[score], e["id"]))
    n = len(group)
    if n > 1 and group[0][score] == group[-1][score] and (low, high) != (0, 1) and score != "random":
        say(f"--score {score}: is the same for all examples of {name!r}: the band is one of ids; try --low 0 --high 1")
    upper = math.ceil(high * n - 1e-9) if whole else math.floor(high * n + 1e-9)
    places = range(math.floor(low * n + 1e-9), upper)
    return [group[place] | {"score": group[place][score], "rank": n - place} for place in places]


def confirms(example: dict, task: Task) -> bool:
    """Whether the teacher's own answer agrees with the example's."""
    if not isinstance(example.get("teacher_label"), str):
        fail(f"--confirmed: {example['id']} has no teacher_label; run label.py on the file, or generate.py --verify")
    return agrees(task, example, example["teacher_label"])
