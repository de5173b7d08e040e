"""One split of an iteration at work: what is asked for, what stands in its files, and how completions are settled."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gold.attempts import VALIDATION_SHOTS, Attempt, Plan, Pools, draw_attempt, shares_of
from gold.command import fail
from gold.examples import agrees, example_key
from gold.jsonl import append_records, cut_torn_line, read_records, shard_path
from gold.labels import draw_label_shots, label_rows
from gold.prompts import join_shots, known_label, render_prompt, structured_pattern
from gold.runs import Run, beside, start_run
from gold.task import Task, render
from gold.teacher import ENGINE_OPTIONS, Encoder

LABEL_SHOTS = 6  # seed examples in a label prompt of --verify
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
        self.name, self.task, self.iteration, self.options = name, task, iteration, options
        self.pools, self.report = pools, report
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
        self.outcomes: dict[int, str | None] = {}  # attempts that stand in the files: key of the text, None = rejected
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
        """What the partial files hold. Of a finished file that is extended, what was deleted by hand stays deleted.

        A text counts as seen when its attempt is settled again; those of a finished file, and the user's own, at once.
        """
        own = re.compile(rf"{self.task.name}-{self.iteration:02d}-{self.name}-(\d+)")
        settled = enumerate(self.run.notes.get("settled", []))  # when the file was finished, by label
        finished = {number for slot, count in settled for number in self.plan.numbers(slot, range(count))}
        for path in (self.run.partial, self.rejected):
            path.touch()
            cut_torn_line(path)
            for number, record in read_records(path):
                match, key = own.fullmatch(str(record.get("id"))), None
                if path == self.rejected:
                    self.reasons[record.get("reason")] += 1
                elif any(not isinstance(record.get(name), str) for name in self.task.fields):
                    fail(f"{path}:{number}: lacks {' or '.join(self.task.fields)}; mend or delete the line")
                else:
                    key = example_key(self.task, record)
                    label = record.get(self.task.answer_field) if self.task.labels else None
                    if not match and label in self.task.names:  # the user's own
                        self.plan.accepted[self.task.names.index(label)] += 1
                    if not match or int(match[1]) in finished:
                        self.seen.add(key)
                if match:
                    self.outcomes[int(match[1])] = key
        gone = sorted(finished - self.outcomes.keys())
        append_records(self.rejected, ({"id": self.draw(n).id, "reason": "removed"} for n in gone))
        self.outcomes |= dict.fromkeys(gone)
        self.reasons["removed"] += len(gone)


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
            known = split.outcomes[number]
            plan.settle(slot, known is not None)
            split.seen |= {known} - {None}
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


def longest_need(splits: list[Split], encoder: Encoder) -> int:
    """Upper bound, in tokens, on what a prompt of these splits and its completion can have."""
    train = splits[0]
    task, options, pools = train.task, train.options, train.pools

    def longest(examples: list[dict], count: int) -> int:
        texts = ["\n\n" + join_shots(task.prompt.example, [example]) for example in examples]
        return sum(sorted(map(len, encoder.token_ids(texts)), reverse=True)[:count])

    def bare(split: str, feedback: list[dict]) -> int:
        prompts = [render_prompt(task, split, [], name, feedback, train.report) for name in task.names]
        return max(map(len, encoder.encode(prompts)))

    shots = longest(pools.seed, options["num_fewshot"]) + longest(pools.feedback, options["num_feedback_shots"])
    generated = options["max_tokens"] + 16  # with the template's own words, label, ends
    empty = dict.fromkeys([*task.fields, task.answer_field], "")  # the prompt is rendered as those with feedback are
    need = max(bare("train", []), bare("train", [empty]) if pools.feedback else 0) + shots
    need = max(need, bare("validation", []) + VALIDATION_SHOTS * generated) + 8 + options["max_tokens"]
    if options["verify"]:
        label_shots = draw_label_shots(task, pools.seed, LABEL_SHOTS, options["seed"])
        row = label_rows(task, encoder, pools.seed[:1], label_shots)[0]
        need = max(need, len(row.root) + 2 * options["max_tokens"] + 16)
        if (room := options["max_model_len"] or encoder.context) and need > room:
            fail(f"--verify: its prompts may have {need:,} tokens, the context holds {room:,}; lower --max-tokens")
    return need
