"""One split of an iteration: what is asked for, what stands in its files, and how completions are settled."""

import re
from collections import Counter

import typer

from gold.attempts import VALIDATION_SHOTS, Attempt, Plan, Pools, attempt_id, draw_attempt, shares_of
from gold.command import fail, option_name
from gold.disk import beside
from gold.examples import example_key
from gold.feedback import first_half, with_rewrite
from gold.journal import Journal
from gold.jsonl import append_records, cut_torn_line, parse_shard, read_records, shard_path
from gold.labels import draw_label_shots, label_rows
from gold.near_duplicates import NearDuplicates
from gold.parsing import MIN_WORDS_COMPARED, copies_shot
from gold.prompts import Prompt, render_prompt, structured_pattern
from gold.retrieval import with_passages
from gold.runs import Run, start_run
from gold.task import Task
from gold.teacher import ENGINE_OPTIONS, Encoder, teacher_files
from gold.templates import render_known, variables
from gold.text import text_key, words

OPTIONS_OF = {  # options of one split: the other one does not depend on them
    "train": ["num_examples", "temperature", "num_fewshot", "feedback_file", "report_file", "feedback_rate",
              "num_feedback_shots", "feedback_label", "corpus_file", "num_passages", "rewrite"],
    "validation": ["num_validation", "validation_temperature"],
}  # fmt: skip

WITHOUT_ANSWERS = {  # options of which --unlabelled takes one value alone: (the value, why)
    "num_validation": (0, "the OOD pool shows training examples with their answers: give --num-validation 0"),
    "verify": (False, "has no answer to compare the teacher's with: leave it out"),
    "feedback_label": ("any", "no label is asked for: leave it out"),
    "report_file": (None, "is about answers, and no prompt shows any: leave it out"),
    "rewrite": (False, "no label is asked for: leave it out"),
    "attributes": (False, "the values are for labelled prompts: leave it out"),
    "corpus_file": (None, "prompt.unlabelled shows no passages: leave it out"),
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
        self.seen: set[str] = set()
        limit = task.parse.max_overlap
        self.near = NearDuplicates(limit) if limit < 1 else None
        for key in known:
            self.see(key)
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
        a = draw_attempt(self.task, self.iteration, self.name, number, self.pools, self.options)
        passages = self.name == "train" and self.pools.nearest
        return with_passages(a, self.task, passages, self.options) if passages else a

    def prompt(self, a: Attempt) -> Prompt:
        begun = self.beginning(a)
        more = {"report": self.report, "passages": a.passages or (), "attributes": a.attributes}
        prompt = render_prompt(self.task, self.name, a.shots, a.label, feedback=() if begun else a.feedback, **more)
        return prompt._replace(user=prompt.user + begun)

    def beginning(self, a: Attempt) -> str:
        """What of a feedback text the teacher continues (--rewrite in the completion form); empty in other prompts."""
        continues = a.feedback and self.options["rewrite"] and not self.task.prompt.rewrite
        return first_half(a.feedback[0][self.task.fields[0]]) if continues else ""

    def copies(self, a: Attempt, fields: dict[str, str]) -> bool:
        """Whether the teacher gives back what its prompt shows, or adds nothing to the beginning of a text."""
        begun = self.beginning(a)
        if begun and text_key(begun).startswith(text_key(fields[self.task.fields[0]])):
            return True
        return copies_shot(self.task, fields, [*a.shown, *(a.passages or ())])

    def see(self, key: str) -> None:
        """From here on its like are duplicates, and with [parse] max_overlap near-duplicates."""
        self.seen.add(key)
        if self.near and len(words(key)) >= MIN_WORDS_COMPARED:
            self.near.add(key)

    def repeats(self, key: str) -> str | None:
        """duplicate or near_duplicate, where a text says again what one that counts as seen says; else None."""
        if key in self.seen:
            return "duplicate"
        compared = self.near and len(words(key)) >= MIN_WORDS_COMPARED
        return "near_duplicate" if compared and self.near.overlaps(key) else None

    def read_outcomes(self) -> None:
        """What the partial files and the journal hold. What was deleted by hand from a finished file stays deleted.

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
                if number is not None and not self.plan.owns(number):
                    fail(
                        f"{path}:{line}: {record['id']} is of another shard, or of an earlier version; use --overwrite"
                    )
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
                        self.see(key)
                self.outcomes[number] = key
        self.outcomes.pop(None, None)
        gone = sorted(finished - self.outcomes.keys())
        append_records(self.rejected, ({"id": self.draw(n).id, "reason": "removed"} for n in gone))
        self.outcomes |= dict.fromkeys(gone)
        self.reasons["removed"] += len(gone)
        settled = (attempt_id(self.task, self.iteration, self.name, number) for number in self.outcomes)
        self.journal = Journal(beside(self.output, ".journal"), self.options["teacher_nll"], settled)


def task_in_form(task: Task, form: str, options: dict, has_feedback: bool) -> Task:
    """The task as the teacher gets it. Ends the stage (exit 1) where a template lacks what an option needs."""
    given, table = task.in_form(form), "completion" if form == "completion" and task.completion else "prompt"
    if options["attributes"] and not task.prompt.attributes:
        fail(f"{task.path}: prompt.attributes: missing: --attributes draws from it; add it (docs/tasks.md)")
    if options["rewrite"]:
        given = with_rewrite(given, form)
        if options["structured"] and form == "completion":
            fail("--structured: the form is that of a whole example, --rewrite begins with half of one; leave one out")
    fed = {"rewrite" if options["rewrite"] else "feedback": given.prompt.feedback} if has_feedback else {}
    train, validation = {"train": given.prompt.train} | fed, {"validation": given.prompt.validation}
    shown = {"passages": train if options["corpus_file"] else {}}
    shown["attributes"] = train | (validation if options["num_validation"] else {}) if options["attributes"] else {}
    for name, templates in shown.items():
        for key, template in templates.items():
            if template and name not in variables(template):
                option = {"passages": "--corpus-file", "attributes": "--attributes"}[name]
                fail(f"{task.path}: {table}.{key}: has no ${name} to show {option} in; add it (docs/tasks.md)")
    return given


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
                record["reason"] = split.repeats(key) or record["reason"] or full
            if reason := record["reason"]:
                key = None
                split.reasons[reason] += 1
                rejected.append(record)
            else:
                del record["reason"]
                accepted.append(record)
        plan.settle(slot, key is not None)
        if key is not None and key not in split.seen:
            split.see(key)
    return accepted, rejected


def count_values(split: Split) -> dict[str, dict[str, Counter]]:
    """By attribute and value: how many attempts had it, and how many of them are accepted."""
    found: dict[str, dict[str, Counter]] = {name: {} for name in split.task.prompt.attributes}
    for path, kinds in ((split.run.partial, ("attempted", "accepted")), (split.rejected, ("attempted",))):
        for _, record in read_records(path):
            for name in found if isinstance(record.get("attributes"), dict) else ():
                found[name].setdefault(str(record["attributes"].get(name)), Counter(accepted=0)).update(kinds)
    return found


def longest_need(train: Split, encoder: Encoder) -> int:
    """Upper bound, in tokens, on what a prompt of either split and its completion can have."""
    task, options, pools = train.task, train.options, train.pools
    if encoder.context and options["max_tokens"] >= encoder.context:
        held = f"the model's context holds {encoder.context:,} tokens"
        fail(f"--max-tokens {options['max_tokens']:,}: {held}; lower it")

    def longest(examples: list[dict], count: int, template: str = task.prompt.example) -> list[dict]:
        ids = encoder.encode([Prompt("", render_known(template, example)) for example in examples])
        return [examples[i] for i in sorted(range(len(ids)), key=lambda i: -len(ids[i]))[:count]]

    def longest_values(label: str | None) -> dict[str, str]:
        values = task.prompt.values_for(label) if options["attributes"] else {}
        return {n: max(v, key=lambda text: len(encoder.encode([Prompt("", text)])[0])) for n, v in values.items()}

    shots = longest(pools.seed, options["num_fewshot"])
    kinds = [[], longest(pools.feedback, options["num_feedback_shots"])]
    near = [text for texts in pools.nearest.values() for text in texts]
    more = {"report": train.report, "passages": longest(near, options["num_passages"], task.passage_template)}
    names, drawn = task.names, {name: {"attributes": longest_values(name)} for name in task.names}
    prompts = [render_prompt(task, "train", shots, n, feedback=fed, **more, **drawn[n]) for n in names for fed in kinds]
    bare = [render_prompt(task, "validation", [], n, **drawn[n]) for n in names]  # its shots come later
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
