"""One split of an iteration: what is asked for, what stands in its files, and how completions are settled."""

import re
from collections import Counter

import typer

from gold.attempts import VALIDATION_SHOTS, Attempt, Plan, Pools, draw_attempt, shares_of
from gold.command import fail, option_name
from gold.disk import beside
from gold.examples import example_key
from gold.jsonl import append_records, cut_torn_line, parse_shard, read_records, shard_path
from gold.labels import draw_label_shots, label_rows
from gold.prompts import Prompt, join_shots, render_prompt, structured_pattern
from gold.runs import Run, start_run
from gold.task import Task
from gold.teacher import ENGINE_OPTIONS, Encoder, teacher_files

OPTIONS_OF = {  # options of one split: the other one does not depend on them
    "train": ["num_examples", "temperature", "num_fewshot", "feedback_file", "report_file", "feedback_rate",
              "num_feedback_shots", "feedback_label"],
    "validation": ["num_validation", "validation_temperature"],
}  # fmt: skip

WITHOUT_ANSWERS = {  # options of which --unlabelled takes one value alone: (the value, why)
    "num_validation": (0, "the OOD pool shows training examples with their answers: give --num-validation 0"),
    "verify": (False, "has no answer to compare the teacher's with: leave it out"),
    "feedback_label": ("any", "no label is asked for: leave it out"),
    "report_file": (None, "is about answers, and no prompt shows any: leave it out"),
}


def check_unlabelled(options: dict) -> None:
    """Refuse what needs answers beside --unlabelled, as a bad option (exit code 2)."""
    for name, (value, why) in WITHOUT_ANSWERS.items():
        if options[name] != value:
            raise typer.BadParameter(f"with --unlabelled {why}", param_hint=option_name(name))


class Split:
    """The training or the validation split. known: keys of texts that are duplicates; report: the student's results."""

    def __init__(self, name: str, task: Task, options: dict, pools: Pools, known: set[str], report: str = ""):
        self.name, self.options, self.pools, self.report = name, options, pools, report
        self.take_form(task)
        folder, shard, (number, temperature, *_) = options["output_dir"], options["shard"], OPTIONS_OF[name]
        match = re.fullmatch(r"iter-(\d+)", folder.resolve().name)
        self.iteration = int(match[1]) if match else 0
        self.output = shard_path(folder / f"{name}.jsonl", shard)
        self.also = self.output.with_suffix(".rejected.jsonl")
        self.rejected = beside(self.also, ".partial")
        self.temperature, wanted = options[temperature], min(options["limit"] or options[number], options[number])
        shares = shares_of(wanted, len(task.names), parse_shard(shard))
        if not sum(shares):
            fail(f"--shard {shard}: {wanted} {name} examples leave it none; use fewer shards or more examples")
        self.plan = Plan(shares, options["max_attempts"] or 5 * sum(shares), parse_shard(shard))
        self.seen = set(known)
        self.outcomes: dict[int | None, str | None] = {}  # attempts in the files: key of the text, None = rejected
        self.under_way: dict[int, Attempt] = {}
        self.reasons: Counter[str] = Counter()
        self.run: Run | None = None

    def take_form(self, task: Task) -> None:
        """The task with the prompts that the teacher gets: see Task.in_form."""
        self.task, structured = task, self.options["structured"]
        self.patterns = {name: structured_pattern(task, name) if structured else None for name in task.names}

    def start(self, check_only: bool) -> None:
        """See start_run. The validation split shows this very train.jsonl, so that file is no input of it."""
        mine, others = OPTIONS_OF[self.name], OPTIONS_OF["validation" if self.name == "train" else "train"]
        inputs = ["task_file", "seed_examples", "exclude_file", *(n for n in mine if n.endswith("_file"))]
        inputs += teacher_files(self.options)
        self.run = start_run(
            "generate.py", self.output, self.options, inputs, also=[self.also], resumable=True, extends=mine[0],
            overwrite=self.options["overwrite"], check_only=check_only,
            not_compared=[*ENGINE_OPTIONS, "max_attempts", *others],
        )  # fmt: skip

    def draw(self, number: int) -> Attempt:
        return draw_attempt(self.task, self.iteration, self.name, number, self.pools, self.options)

    def prompt(self, a: Attempt) -> Prompt:
        return render_prompt(self.task, self.name, a.shots, a.label, a.feedback, self.report)

    def read_outcomes(self) -> None:
        """What the partial files hold. What was deleted by hand from a finished file that is extended stays deleted.

        A text counts as seen when its attempt is settled again; those of a finished file, and the user's own, at once.
        """
        own, names = re.compile(rf"{self.task.name}-{self.iteration:02d}-{self.name}-(\d+)"), self.task.names
        settled = enumerate(self.run.notes.get("settled", []))  # when the file was finished, by label
        finished = {number for slot, count in settled for number in self.plan.numbers(slot, range(count))}
        for path in (self.run.partial, self.rejected):
            path.touch()
            cut_torn_line(path)
            for line, record in read_records(path):
                match, key = own.fullmatch(str(record.get("id"))), None
                number = int(match[1]) if match else None  # None: a line of the user's
                if path == self.rejected:
                    self.reasons[record.get("reason")] += 1
                elif any(not isinstance(record.get(name), str) for name in self.task.fields):
                    fail(f"{path}:{line}: lacks {' or '.join(self.task.fields)}; mend or delete the line")
                else:
                    key = example_key(self.task, record)
                    label = record.get(self.task.answer_field) if self.task.labels else None
                    if number is None and label in names:
                        self.plan.accepted[names.index(label)] += 1
                    if number is None or number in finished:
                        self.seen.add(key)
                self.outcomes[number] = key
        self.outcomes.pop(None, None)
        gone = sorted(finished - self.outcomes.keys())
        append_records(self.rejected, ({"id": self.draw(n).id, "reason": "removed"} for n in gone))
        self.outcomes |= dict.fromkeys(gone)
        self.reasons["removed"] += len(gone)


def settle(split: Split, chunk: list[int], records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Accept or reject, in the order of the attempts. records: of the attempts that are in no file yet."""
    task, plan, accepted, rejected, new = split.task, split.plan, [], [], iter(records)
    for number in chunk:
        slot = number % len(task.names)
        if number in split.outcomes:
            key = split.outcomes[number]
        else:
            record = next(new)
            if record["reason"] in (None, "label_disagrees"):
                key = example_key(task, record)
                full = "surplus" if plan.is_full(slot) else None
                record["reason"] = "duplicate" if key in split.seen else record["reason"] or full
            if reason := record["reason"]:
                key = None
                split.reasons[reason] += 1
                rejected.append(record)
            else:
                del record["reason"]
                accepted.append(record)
        plan.settle(slot, key is not None)
        split.seen |= {key} - {None}
    return accepted, rejected


def longest_need(train: Split, encoder: Encoder) -> int:
    """Upper bound, in tokens, on what a prompt of either split and its completion can have."""
    task, options, pools = train.task, train.options, train.pools
    if encoder.context and options["max_tokens"] >= encoder.context:
        held = f"the model's context holds {encoder.context:,} tokens"
        fail(f"--max-tokens {options['max_tokens']:,}: {held}; lower it")

    def longest(examples: list[dict], count: int) -> list[dict]:
        ids = encoder.encode([Prompt("", join_shots(task.prompt.example, [example])) for example in examples])
        return [examples[i] for i in sorted(range(len(ids)), key=lambda i: -len(ids[i]))[:count]]

    shots = longest(pools.seed, options["num_fewshot"])
    kinds = [[], longest(pools.feedback, options["num_feedback_shots"])]
    prompts = [render_prompt(task, "train", shots, name, shown, train.report) for name in task.names for shown in kinds]
    bare = [render_prompt(task, "validation", [], name) for name in task.names]  # its shots are not generated yet
    most, validation = (max(map(len, encoder.encode(some))) for some in (prompts, bare))
    generated = options["max_tokens"] + 16  # with the template's own words, the label and the ends
    need = max(most + 16, validation + VALIDATION_SHOTS * generated + 8) + options["max_tokens"]
    if options["verify"]:
        label_shots = draw_label_shots(task, pools.seed, None, options["seed"])
        row = label_rows(task, encoder, pools.seed[:1], label_shots)[0]
        need = max(need, len(row.root) + 2 * options["max_tokens"] + 16)
        if (room := options["max_model_len"] or encoder.context) and need > room:
            fail(f"--verify: its prompts may have {need:,} tokens, the context holds {room:,}; lower --max-tokens")
    return need
