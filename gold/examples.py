"""Records as examples of a task: fields checked, `source` and `target` rendered.

    examples = read_examples([Path("train.jsonl")], task)            a broken line ends the stage with file:line
    key = example_key(task, example)                                 equal keys = duplicates

A user's records need only the task's fields: an id is made of file and line, `source` and `target` are rendered from
[student], columns with the name of a stage's field are kept as `original_<name>`, and labels in other capitals are read
as the task's. Several correct answers stand in the list `<answer_field>s`, beside the one to train on.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gold.command import fail, say
from gold.equations import evaluate_equation
from gold.jsonl import SHARD, read_records
from gold.metrics import is_correct
from gold.scores import SCORES, STORED
from gold.task import Task
from gold.templates import render, render_known
from gold.text import exact_form, text_key

Paths = Path | Iterable[Path]
STAGE_FIELDS = {
    *"source target prediction correct f1 rouge_l score rank teacher_label label_probs".split(), *SCORES, *STORED
}  # fmt: skip
OF_ANSWER = ("correct", "error", "hard_negative", "nll", "f1", "rouge_l")  # of a prediction beside the answer


def read_examples(
    paths: Paths, task: Task, keep: Sequence[str] | None = None, answers: bool = True, counts: dict | None = None,
    foreign: bool = False, use: Collection[str] = (), among: Iterable[Path] = (),
) -> list[dict]:  # fmt: skip
    """The examples of the files, each with a unique `id`, the task's fields, `source` and `target`.

    keep: of each only these fields: a million whole ones take gigabytes. answers=False allows records without the answer
    field, foreign=True also an answer that is no label of the task. use: a stage's fields that an option asks for, which
    the user's own columns may be. among: the other files of the command, so that a file given to two options has the same
    ids in both. Of a text that the teacher wrote in two shards of a set the first stays; the others are counted in
    counts["duplicates_between_shards"].
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    examples, names, ids, dropped = [], names_of([*paths, *among]), {}, 0
    texts: dict[tuple, dict[str, Path]] = defaultdict(dict)  # by shard set: text -> the first shard that has it
    for path in paths:
        shard = SHARD.fullmatch(path.name)
        for here, example in examples_of(path, names[path], task, answers, foreign, use):
            if (identifier := example["id"]) in ids:
                problem = f"the id {identifier!r} is already in {ids[identifier]}; ids must be unique"
                fail(f"{here}: {problem}, so change one, or leave the id out, and it is made of file and line")
            ids[identifier] = path
            if shard and "sampling_seed" in example:  # generated: one shard cannot know what the others write
                first = texts[path.parent, shard[1], shard[3]].setdefault(example_key(task, example), path)
                if first != path:
                    dropped += 1
                    continue
            examples.append(example if keep is None else {k: example[k] for k in keep if k in example})
    if dropped:
        say(f"{dropped:,} duplicates between shards dropped, {len(ids) - dropped:,} examples stay")
        if counts is not None:
            counts["duplicates_between_shards"] = dropped
    return examples


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """How the ids begin that are made for a file: its stem, or as much of its path as tells it from the others."""
    parts = {path: path.absolute().with_suffix("").parts for path in paths}
    for count in itertools.count(1):
        names = {path: "/".join(whole[-count:]) for path, whole in parts.items()}
        if len(set(names.values())) == len(set(parts.values())):
            return names


def examples_of(
    path: Path, name: str, task: Task, answers: bool, foreign: bool, use: Collection[str]
) -> Iterator[tuple[str, dict]]:
    """(file:line, example) of one file, checked and rendered; in the end it is said what was changed."""
    changed: Counter[str] = Counter()  # what was read in another form: records
    needed, here = [*task.fields, *[task.answer_field] * answers], ""
    if path == task.seed_examples:  # the teacher writes what it is shown
        needed = task.shown_fields[1:]
    for number, record in read_records(path):
        here = f"{path}:{number}"
        for field in needed:
            if field not in record:
                other = record.get("task") if "sampling_seed" in record else None  # a generated record says its own
                of = f", a record of the task {other!r}" if other not in (None, task.name) else ""
                cure = "give another file or --task-file" if of else "add the field"
                fail(f"{here}: no field {field!r}; found {', '.join(record) or 'nothing'}{of}; {cure}")
        record = with_answers(here, record, task, foreign, changed)
        optional = [task.rationale_field] * (record.get(task.rationale_field) is not None)
        for field in [*needed, *optional]:
            if not is_text(record[field]):
                problem = f"must be a text (in quotes) that is not empty, found {repr(record[field])[:200]}"
                fail(f"{here}: {field!r} {problem}; mend or delete the line")
        identifier = f"{name}:{number}" if record.get("id") is None else record["id"]
        if type(identifier) not in (str, int):
            fail(f"{here}: the id must be a text or a whole number, found {identifier!r}; put it in quotes")
        record = {"id": ""} | record | {"id": str(identifier)}
        yield here, with_rendered(here, record, task, use, changed)
    if not here:
        fail(f"{path}: no records in it; run the stage that writes it, or check the path")
    for change, count in changed.most_common(5):
        say(f"{path}: {change} in {count:,} records")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def with_answers(here: str, record: dict, task: Task, foreign: bool, changed: Counter[str]) -> dict:
    """The record with its answer, and the list of correct answers, as the task writes them; ends the stage for others."""
    name, listed = task.answer_field, f"{task.answer_field}s"
    read = {name: as_answer(record[name], task, changed)} if name in record else {}
    if listed in record and not foreign:
        golds = record[listed] if isinstance(record[listed], list) else []
        read[listed] = [as_answer(gold, task, changed) for gold in golds]
        if not golds or not all(map(is_text, read[listed])):
            problem = f"{listed!r} must be a list of correct answers, each a text that is not empty"
            fail(f"{here}: {problem}; found {record[listed]!r}; mend it, or rename a column of another meaning")
    for label in [read.get(name), *read.get(listed, [])] if task.labels and not foreign else []:
        if label is not None and label not in list(task.labels):
            known = ", ".join(task.labels)
            fail(f"{here}: no such label: {label!r}; {task.path} has {known}; correct the line (docs/records.md)")
    return record | read


def as_answer(value: Any, task: Task, changed: Counter[str]) -> Any:
    """A label in other capitals as the task's, a whole number as the text of an answer; anything else as it is."""
    answer = value
    if task.labels and isinstance(value, str | int) and value not in task.labels:
        answer = next((name for name in task.labels if exact_form(name) == exact_form(str(value))), value)
    elif type(value) is int and not task.labels:
        answer = str(value)
    if answer is not value:
        changed[f"{value!r} is read as {answer!r}"] += 1
    return answer


def with_rendered(here: str, record: dict, task: Task, use: Collection[str], changed: Counter[str]) -> dict:
    """The record with `source` and `target` as the task renders them.

    A record is a stage's where it has a `sampling_seed`, or its `source` is what the task renders. There a `source` or
    `target` that no longer fits is refused: the string that is scored would not be the one that was edited. In any other
    record the stages' fields are the user's columns: they stay as `original_<name>`, and no stage reads them as its own.
    """
    rendered = {"source": render(task.student.source, record)}
    if record.get(task.answer_field) is not None:
        rendered["target"] = render_known(task.student.target, record)
    answer = task.answer_of(rendered["target"]) if "target" in rendered else "0"
    if task.metric == "equation_value" and evaluate_equation(answer) is None:
        problem = f"{answer!r} has no value, so no prediction could be correct"
        fail(f"{here}: {problem}; write it with + - * / ( ) and numbers")
    if "sampling_seed" in record or record.get("source") == rendered["source"]:
        for name, text in rendered.items():
            if record.get(name, text) != text:
                problem = f"{name!r} is not what {task.path} renders: found {record[name]!r}, expected {text!r}"
                fail(f"{here}: {problem}; delete {name!r} from the line (it is rendered anew) or edit both alike")
        return record | rendered
    kept = {}
    for name, value in record.items():
        if name in STAGE_FIELDS and name not in use and value != rendered.get(name):
            changed[f"{name!r} is a column of yours with a name that the stages write: kept as 'original_{name}'"] += 1
            name = f"original_{name}"
        kept[name] = value
    return kept | rendered


def column_of(name: str | None, examples: Sequence[dict]) -> str | None:
    """The name under which a column that an option asks for stands now: see with_rendered."""
    original = f"original_{name}"
    theirs = any(original in e for e in examples)
    return original if theirs and (name in ("source", "target") or not any(name in e for e in examples)) else name


def example_key(task: Task, example: dict) -> str:
    """What makes two examples duplicates: the keys of the fields that the student reads, a line each, whatever the
    answer."""
    return "\n".join(text_key(example[name]) for name in task.read_fields)


def has_answer(example: dict, task: Task) -> bool:
    """Whether an example has an answer that the task knows: a label of it, or any text of a text2text task."""
    answer = example.get(task.answer_field)
    return is_text(answer) and (not task.labels or answer in task.labels)


def as_unanswered(example: dict, task: Task) -> dict:
    """The example without its answers and their reasons, which stay as `earlier_<field>`, and without what was measured by
    them."""
    names = (task.answer_field, f"{task.answer_field}s", task.rationale_field)
    rest = {k: v for k, v in example.items() if k not in (*names, "target", *OF_ANSWER)}
    return rest | {f"earlier_{name}": example[name] for name in names if example.get(name) is not None}


def with_answer(example: dict, task: Task) -> dict:
    """The example; where only the teacher has labelled it, teacher_label is its answer."""
    if example.get(task.answer_field) is not None:
        return example
    answer = {task.answer_field: example.get("teacher_label")}
    if not has_answer(answer, task):
        problem = f"neither {task.answer_field!r} nor a teacher_label, found {example.get('teacher_label')!r}"
        fail(f"{example['id']}: {problem}; run label.py on the file")
    return example | answer | {"target": render_known(task.student.target, example | answer)}


def agrees(task: Task, record: dict, teacher_label: str) -> bool:
    """Whether the teacher's own answer is the record's, by the metric of the task."""
    if task.labels:
        return teacher_label == record[task.answer_field]
    target = render_known(task.student.target, record)
    return is_correct(task, task.as_written(teacher_label), record | {"target": target})


def rationale_rows(examples: list[dict], task: Task) -> list[dict]:
    """The second row of each example that has reasons: [student.rationale] in place of `source` and `target`."""
    second = task.student.rationale
    explained = [e for e in examples if second and e.get(task.rationale_field)]
    return [e | {name: render(getattr(second, name), e) for name in ("source", "target")} for e in explained]


def tell_without_reasons(examples: list[dict], task: Task, what: str) -> None:
    if bare := sum(not e.get(task.rationale_field) for e in examples):
        say(f"warning: {bare:,} of {len(examples):,} examples have no {task.rationale_field!r}: {what} the answer")
