"""One split of an iteration at work: what is asked for, what stands in its files, and how completions are settled."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gold.attempts import Attempt, Plan, Pools, draw_attempt, shares_of
from gold.command import fail
from gold.examples import agrees, example_key
from gold.jsonl import append_records, cut_torn_line, read_records, shard_path
from gold.prompts import known_label, structured_pattern
from gold.runs import Run, beside, save_notes, start_run
from gold.task import Task, render
from gold.teacher import ENGINE_OPTIONS

OF_VALIDATION = ["num_validation", "validation_temperature"]  # options that the other split does not depend on
OF_TRAIN = [
    "num_examples", "temperature", "num_fewshot", "feedback_file", "report_file", "feedback_rate", "num_feedback_shots",
    "feedback_label",
]  # fmt: skip


class Split:
    """The training or the validation split: what is asked for, and what stands in its files so far."""

    def __init__(
        self, name: str, task: Task, iteration: int, options: dict, wanted: int, part: tuple[int, int], pools: Pools,
        known: set[str], report: str = "",
    ):  # fmt: skip
        self.name, self.task, self.iteration, self.options, self.pools, self.report = (
            name,
            task,
            iteration,
            options,
            pools,
            report,
        )
        self.output = shard_path(options["output_dir"] / f"{name}.jsonl", options["shard"])
        self.temperature = options["temperature" if name == "train" else "validation_temperature"]
        shares = shares_of(min(options["limit"] or wanted, wanted), len(task.names), part)
        if not sum(shares):
            fail(
                f"--shard {options['shard']}: {wanted} {name} examples leave it none; use fewer shards or more examples"
            )
        self.plan = Plan(shares, options["max_attempts"] or 5 * sum(shares), part)
        self.patterns = {n: structured_pattern(task, n) if options["structured"] else None for n in task.names}
        self.seen = set(known)  # keys of texts that are there already
        self.outcomes: dict[int, bool] = {}  # attempt: accepted? of those that stand in the files
        self.reasons: Counter[str] = Counter()
        self.run: Run | None = None

    def begin(self, check_only: bool) -> None:
        """start_run; see there. The validation split is made from this very train.jsonl, so that file is no input of
        it."""
        mine, others = (OF_TRAIN, OF_VALIDATION) if self.name == "train" else (OF_VALIDATION, OF_TRAIN)
        inputs = ["task_file", "model", "seed_examples", "exclude_file", *(n for n in mine if n.endswith("_file"))]
        self.run = start_run(
            "generate.py", self.output, self.options, inputs, also=[self.output.with_suffix(".rejected.jsonl")], resumable=True,
            extends=mine[0], overwrite=self.options["overwrite"], check_only=check_only,
            not_compared=[*ENGINE_OPTIONS, "max_attempts", *others],
        )  # fmt: skip

    @property
    def rejected(self) -> Path:
        return beside(self.run.also[0], ".partial")

    def draw(self, number: int) -> Attempt:
        return draw_attempt(self.task, self.iteration, self.name, number, self.pools, self.options)

    def read_outcomes(self) -> None:
        """What the partial files hold. Of a finished file that is extended, what was deleted by hand stays deleted."""
        own = re.compile(rf"{self.task.name}-{self.iteration:02d}-{self.name}-(\d+)")
        for path in (self.run.partial, self.rejected):
            path.touch()
            cut_torn_line(path)
            for number, record in read_records(path):
                if match := own.fullmatch(str(record.get("id"))):
                    self.outcomes[int(match[1])] = path == self.run.partial
                if path == self.rejected:
                    self.reasons[record.get("reason")] += 1
                elif any(not isinstance(record.get(name), str) for name in self.task.fields):
                    fail(f"{path}:{number}: lacks {' or '.join(self.task.fields)}; mend or delete the line")
                else:
                    self.seen.add(example_key(self.task, record))
                    if not match and (label := record.get(self.task.answer_field)) in self.task.names:  # the user's own
                        self.plan.accepted[self.task.names.index(label)] += 1
        if self.run.state["extended"]:
            attempts = Plan(
                [max(self.outcomes, default=-1) + 1] * len(self.task.names), 10**9, self.plan.shard
            ).next_attempts()
            gone = [n for n in attempts if n not in self.outcomes and n <= max(self.outcomes, default=-1)]
            append_records(self.rejected, ({"id": self.draw(n).id, "reason": "removed"} for n in gone))
            self.outcomes |= dict.fromkeys(gone, False)
            self.reasons["removed"] += len(gone)
            self.run.state["extended"] = False
            save_notes(self.run)


@dataclass
class Candidate:
    """A completion that was parsed. reason: why it is rejected, None = not yet."""

    attempt: Attempt
    fields: dict[str, str] = field(default_factory=dict)
    reason: str | None = "prompt_too_long"
    completion: str | None = None
    finish_reason: str | None = None
    answer: dict | None = field(default_factory=dict)  # --verify: the teacher's own; None: it cannot be asked

    def example(self, task: Task) -> dict:
        return self.fields | known_label(task, self.attempt.label)


def settle(split: Split, chunk: list[int], candidates: dict[int, Candidate]) -> tuple[list[dict], list[dict]]:
    """Accept or reject, in the order of the attempts: the records of both. What stands in the files is as it was."""
    task, plan = split.task, split.plan
    accepted, rejected = [], []
    for number in chunk:
        slot = number % len(task.names)
        if number in split.outcomes:
            plan.settle(slot, split.outcomes[number])
            continue
        c = candidates[number]
        example, key = c.example(task), c.reason is None and example_key(task, c.fields)
        if c.reason is None:
            c.reason = (
                "duplicate" if key in split.seen
                else "prompt_too_long" if c.answer is None
                else "label_disagrees" if c.answer and not agrees(task, example, c.answer["teacher_label"])
                else "surplus" if plan.is_full(slot)
                else None
            )  # fmt: skip
        plan.settle(slot, c.reason is None)
        a = c.attempt
        lineage = {
            "task": task.name, "iteration": split.iteration, "split": split.name, "feedback": bool(a.feedback),
            "shots": [shot["id"] for shot in a.shown], "sampling_seed": a.sampling_seed, "finish_reason": c.finish_reason,
            "completion": c.completion,
        }  # fmt: skip
        if c.reason is None:
            split.seen.add(key)
            rendered = {"source": render(task.student.source, example), "target": render(task.student.target, example)}
            accepted.append({"id": a.id, **example, **rendered, **(c.answer or {}), **lineage})
        else:
            split.reasons[c.reason] += 1
            rejected.append({"id": a.id, "reason": c.reason, **example, **(c.answer or {}), **lineage})
    return accepted, rejected
