"""Records as examples of a task: fields checked, `source` and `target` rendered.

    examples = read_examples([Path("train.jsonl")], task)            a broken line ends the stage with file:line
    key = example_key(task, example)                                 equal keys = duplicates

Human data need only the task's fields: an id is made from file and line, `source` and `target` are rendered from
[student], columns of the user's with a name of ours are kept as `original_<name>`, and labels in other capitals are
read as the task's. Several right answers stand in the list `<answer_field>s`, beside the answer field, which holds the
one to train on.
"""

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gold.command import fail, say
from gold.correctness import is_correct
from gold.equations import evaluate_equation
from gold.jsonl import SHARD, name_the_format, read_records
from gold.scores import SCORES
from gold.task import Task, render
from gold.text import text_key

# What stages put into a record, or take from it
MADE = {
    "source",
    "target",
    "prediction",
    "correct",
    "f1",
    "rouge_l",
    "score",
    "rank",
    "teacher_label",
    "label_probs",
    *SCORES,
}


def read_examples(
    paths: Path | Iterable[Path], task: Task, keep: Sequence[str] | None = None, **how: Any
) -> list[dict]:
    """All examples of the files, as iter_examples gives them.

    keep: of each example only these fields, where it has them; all are checked. A million whole ones take gigabytes.
    """
    examples = iter_examples(paths, task, **how)
    return list(examples) if keep is None else [{k: e[k] for k in keep if k in e} for e in examples]


def iter_examples(
    paths: Path | Iterable[Path], task: Task, answers: bool = True, counts: dict | None = None, foreign: bool = False,
    use: Collection[str] = (), among: Iterable[Path] = (),
) -> Iterator[dict]:  # fmt: skip
    """Yield the examples of the files, each with `id`, the task's fields, `source` and `target`.

    answers=False allows records without the answer field, foreign=True also an answer that is no label of the task.
    use: columns that an option asks for: the user's too is taken then. among: the other files of the command, so that a
    file that is given twice has the same ids both times. Where the teacher wrote one text in two shards
    of a set, the first one stays: how many were dropped is said, and noted in counts["duplicates_between_shards"].
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    names = names_of([*paths, *among])
    seen: dict[str, Path] = {}
    written: dict[tuple, dict[str, Path]] = {}  # by shard set: text -> the shard that has it
    dropped = stayed = 0
    for path, name in zip(paths, names, strict=False):
        shard_set = SHARD.fullmatch(path.name) and (path.parent, *SHARD.fullmatch(path.name).group(1, 3))
        for number, record in examples_of(path, name, task, answers, foreign, use):
            if (identifier := record["id"]) in seen:
                cure = "change one, or leave the id out: then it is made from the file's path and the line"
                fail(
                    f"{path}:{number}: the id {identifier!r} is already in {seen[identifier]}; ids must be unique, so {cure}"
                )
            seen[identifier] = path
            if shard_set and "sampling_seed" in record:  # generated: one shard cannot know what the others write
                first = written.setdefault(shard_set, {}).setdefault(example_key(task, record), path)
                if first != path:
                    dropped += 1
                    continue
            stayed += 1
            yield record
    if dropped:
        say(f"{dropped:,} duplicates between shards dropped, {stayed:,} examples stay")
    if counts is not None and dropped:
        counts["duplicates_between_shards"] = dropped


def examples_of(
    path: Path, name: str, task: Task, answers: bool, foreign: bool, use: Collection[str]
) -> Iterator[tuple[int, dict]]:
    """(line number, example) of one file, checked and rendered; at its end it is said what was changed."""
    changed: Counter[str] = Counter()  # what was read in another form: records
    empty = True
    for number, record in read_records(path):
        here = f"{path}:{number}"
        check_fields(here, record, task, answers, path if empty else None)
        record, empty = with_answers(here, record, task, path, answers, foreign, changed), False
        rendered = {"source": render(task.student.source, record)}
        if record.get(task.answer_field) is not None:
            rendered["target"] = render(task.student.target, record)
        if task.metric == "equation_value" and evaluate_equation(rendered.get("target", "0")) is None:
            cure = "write it with + - * / ( ) and numbers"
            fail(f"{here}: {rendered['target']!r} has no value, so no prediction could be right; {cure}")
        identifier = record.get("id")
        identifier = (
            f"{name}:{number}" if identifier is None else str(identifier) if type(identifier) is int else identifier
        )
        if not isinstance(identifier, str):
            fail(f"{here}: the id must be a text or a whole number, found {identifier!r}; put it in quotes")
        yield (
            number,
            with_rendered(here, {"id": identifier} | record | {"id": identifier}, rendered, task, use, changed),
        )
    if empty:
        fail(f"{path}: no records in it; run the stage that writes it, or check the path")
    for change, count in changed.most_common(5):
        say(f"{path}: {change} in {count:,} records")


def with_rendered(
    here: str, record: dict, rendered: dict, task: Task, use: Collection[str], changed: Counter[str]
) -> dict:
    """The record with `source` and `target` as the task renders them.

    Whose are columns with a name of ours? The toolkit's, where the record was generated (it has a `sampling_seed`), or
    its `source` is what the task renders. A `source` or `target` that no longer fits is refused there: the string that
    is scored would not be the one that was edited. In any other record they are the user's, and stay as
    `original_<name>`; no stage takes them for its own.
    """
    if "sampling_seed" in record or record.get("source") == rendered["source"]:
        for name, text in rendered.items():
            if record.get(name, text) != text:
                problem = (
                    f"{name!r} is not what {task.path} makes of the fields: found {record[name]!r}, expected {text!r}"
                )
                fail(f"{here}: {problem}; delete {name!r} from the line (it is made anew) or edit both alike")
        return record | rendered
    found = {}
    for name, value in record.items():
        theirs = name in MADE and name not in use and value != rendered.get(name)
        found[f"original_{name}" if theirs else name] = value
        if theirs:
            changed[f"{name!r} is a column of yours with a name that the stages write: kept as 'original_{name}'"] += 1
    return found | rendered


def column_of(name: str | None, examples: Sequence[dict]) -> str | None:
    """The name under which a column that an option asks for stands now: see with_rendered."""
    original = f"original_{name}"
    theirs = any(original in e for e in examples)
    return original if theirs and (name in ("source", "target") or not any(name in e for e in examples)) else name


def names_of(paths: Sequence[Path]) -> list[str]:
    """How ids that are made begin: the stem of a file, or as much of its path as tells it from the others."""
    whole = [path.absolute().with_suffix("") for path in paths]
    for count in range(1, max((len(path.parts) for path in whole), default=0) + 1):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(set(whole)):
            return names
    return []


def check_fields(here: str, record: dict, task: Task, answers: bool, first_of: Path | None) -> None:
    """End the stage where a field of the task is not there, or no text. first_of: the file that begins with this
    record."""
    for name in [*task.fields, *([task.answer_field] if answers else [])]:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            continue
        if first_of and (what := name_the_format(first_of)):
            fail(f"{first_of}: not JSON Lines but {what}")
        if name not in record:
            fail(f"{here}: no field {name!r}; found {', '.join(record) or 'nothing'}; add the field")
        if name in task.fields or not isinstance(value, int | float):  # with_answers knows what a number may mean
            fail(
                f"{here}: {name!r} must be a text that is not empty, found {repr(value)[:200]}; mend or delete the line"
            )


def with_answers(
    here: str, record: dict, task: Task, path: Path, answers: bool, foreign: bool, changed: Counter[str]
) -> dict:
    """The record with its answer, and the list of right answers, as the task writes them; ends the stage for others."""
    name, listed = task.answer_field, f"{task.answer_field}s"
    answer, golds = as_text(record.get(name), task, changed), record.get(listed, [])
    if listed in record and not foreign:
        golds = [as_text(gold, task, changed) for gold in golds] if isinstance(golds, list) else golds
        if not (golds and isinstance(golds, list) and all(isinstance(g, str) and g.strip() for g in golds)):
            problem = f"{listed!r} must be a list of right answers, each a text that is not empty; found {golds!r}"
            fail(f"{here}: {problem}; mend it, or call the column otherwise if it means something else")
        record = record | {listed: golds}
    for label in [answer, *golds] if task.labels and not foreign else []:
        if label is not None and label not in list(task.labels):
            has, cure = ", ".join(task.labels), cure_of_label(label, task, path)
            fail(f"{here}: no such label: {label!r}; {task.path} has {has}; {cure}")
    if answers and not isinstance(answer, str):
        fail(f"{here}: {name!r} must be a text that is not empty, found {answer!r}; put it in quotes")
    return record if answer is record.get(name) else record | {name: answer}


def cure_of_label(label: Any, task: Task, path: Path) -> str:
    """For a number the command that puts the names of labels in the place of their numbers."""
    if str(label).strip().removesuffix(".0") not in map(str, range(len(task.labels))):
        return "correct the line"
    order = ", ".join(f"{i} is {known}" for i, known in enumerate(task.labels))
    names, new = json.dumps(list(task.labels), ensure_ascii=False), path.with_suffix(".named.jsonl")
    code = f'."{task.answer_field}" |= {names}[tonumber]'
    return f"if {order}: {shlex.join(['jq', '-c', code, str(path)])} > {shlex.quote(str(new))}"


def as_text(answer: Any, task: Task, changed: Counter[str]) -> Any:
    """A label in other capitals as the task's, a whole number as the text of an answer; anything else as it is."""
    found = str(answer) if type(answer) is int and not task.labels else None
    if task.labels and isinstance(answer, str | int) and answer not in task.labels:
        same = [name for name in task.labels if name.strip().casefold() == str(answer).strip().casefold()]
        found = same[0] if len(same) == 1 else None
    if found is None:
        return answer
    changed[f"{answer!r} is read as {found!r}"] += 1
    return found


def example_key(task: Task, example: dict) -> str:
    """What makes two examples duplicates: the keys of the fields that the student reads, a line each, whatever the
    answer."""
    return "\n".join(text_key(example[name]) for name in task.read_fields)


def has_answer(example: dict, task: Task) -> bool:
    """Whether an example has an answer that the task knows: a label of it, or any text of a text2text task."""
    answer = example.get(task.answer_field)
    return isinstance(answer, str) and bool(answer.strip()) and (not task.labels or answer in task.labels)


def with_answer(example: dict, task: Task) -> dict:
    """The example; where only the teacher has labelled it, teacher_label is its answer."""
    if example.get(task.answer_field) is not None:
        return example
    answer = example.get("teacher_label")
    if not isinstance(answer, str) or not answer.strip() or (task.labels and answer not in task.labels):
        problem = f"neither {task.answer_field!r} nor a teacher_label, found {answer!r}"
        fail(f"{example['id']}: {problem}; run label.py on the file")
    return example | {task.answer_field: answer, "target": render(task.student.target, {task.answer_field: answer})}


def agrees(task: Task, record: dict, teacher_label: str) -> bool:
    """Whether the teacher's own answer is the record's, by the metric of the task."""
    if task.labels:
        return teacher_label == record[task.answer_field]
    target = render(task.student.target, record)
    return is_correct(
        task, render(task.student.target, {task.answer_field: teacher_label}), {**record, "target": target}
    )
