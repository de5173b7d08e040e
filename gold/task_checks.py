"""What a task file must be besides its keys and types: names, templates and their variables."""

import re
import string
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from gold.templates import mark_before_answer, variables, without_attributes, without_passages
from gold.text import exact_form

METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "text2text": ("exact_match", "equation_value", "squad", "rouge_l", "optimum", "chrf"),
}
RESERVED = """id source target task iteration split shots feedback sampling_seed finish_reason completion reason prediction
    correct f1 rouge_l nll msp entropy margin embedding k_center tfidf error hard_negative random score rank teacher_label
    label_probs teacher_nll attributes passages""".split()  # what records hold besides the task's fields


def problems(task: Any) -> Iterator[tuple[str, str]]:
    """(key, what is wrong and the cure) of a gold.task.Task."""
    yield from name_problems(task)
    yield from attribute_problems(task)
    yield from template_problems(task)
    yield from rationale_problems(task)


def name_problems(task: Any) -> Iterator[tuple[str, str]]:
    """Metric, fields, labels and [parse]: (key, what is wrong and the cure)."""
    _, *names, answer = task.shown_fields
    metrics, written = METRICS[task.kind], task.written_fields
    if task.metric not in metrics:
        yield "metric", f"must be one of {', '.join(metrics)} for {task.kind}, found {task.metric!r}"
    for name in [*names, answer]:
        if name in RESERVED or name.startswith("energy"):
            yield "fields", f"the name {name!r} is one that the stages write; choose another"
    if task.student.rationale and not task.rationale_field:
        yield "rationale_field", "missing; add it: it names the reasons that [student.rationale] teaches"
    if {answer, f"{answer}s"} & set(names) or len(set(names)) < len(names):
        yield "fields", f"{names} and {answer!r} must differ; {answer}s is kept for lists of correct answers"
    if len(task.labels) == 1 or bool(task.labels) != (task.kind == "classification"):
        yield "labels", f"a classification task has two or more, a text2text task none; found {len(task.labels)}"
    if len({exact_form(name) for name in task.labels} - {""}) < len(task.labels):
        yield "labels", "names must differ in more than capitals and blanks, and not be empty"
    for key in ("min_words", "max_words", "evaluates", "solves", "gives", "span_of"):
        listed = getattr(task.parse, key)
        for name in [*listed, *(listed.values() if key in ("gives", "span_of") else ())]:
            if name not in written:
                yield f"parse.{key}", f"no field that the teacher writes: {name}; these are {', '.join(written)}"


def attribute_problems(task: Any) -> Iterator[tuple[str, str]]:
    """[prompt.attributes]: names, labels and lists."""
    given = task.prompt.attributes
    taken = ["", *map(exact_form, [*task.fields, task.answer_field, *given])]
    for name, v in given.items():
        key, lists = f"prompt.attributes.{name}", v if isinstance(v, dict) else dict.fromkeys(task.names, v)
        if taken.count(exact_form(name)) > 1:
            yield key, "must have a name, and not that of a field or of another attribute; choose another"
        if set(lists) != set(task.names):
            asked = f"a list for each of {', '.join(task.labels)}" if task.labels else "one list: it has no labels"
            yield key, f"must have {asked}; found {', '.join(lists) or 'nothing'}"
        if not all(lists.values()):
            yield key, "has an empty list; give it values, or delete the attribute"
    if task.completion and task.completion.attributes:
        yield "completion.attributes", "belongs into [prompt.attributes], which both forms draw from"


def template_problems(task: Any) -> Iterator[tuple[str, str]]:
    """Variables that a template may use, those that it must use, and where the answer stands."""
    fields, answer, shown = set(task.fields), task.answer_field, {"shots", "start"}
    reasons = {task.rationale_field} - {None}
    written = fields | reasons | {answer}
    asked = shown | ({"labels", "label", "definition"} if task.labels else set())
    asked |= {"attributes"} if task.prompt.attributes else set()
    of_prompt = {  # template: (variables that it may have, variables that it must have)
        "system": (set(), set()),
        "train": (asked | {"passages"}, shown),
        "validation": (asked, shown),
        "feedback": (asked | {"feedback", "report", "passages"}, shown | {"feedback"}),
        "rewrite": (asked | {"feedback"}, shown | {"feedback"}),
        "example": (written, written),
        "label": (asked - {"label", "definition", "attributes"}, shown),
        "label_example": (written, {answer}),
        "unlabelled": (shown, shown),
    }
    rules = {f"prompt.{key}": rule for key, rule in of_prompt.items()}
    rules |= {"student.source": (fields, set()), "student.target": ({answer} | reasons, {answer})}
    if task.student.rationale:
        rules |= {"student.rationale.source": (fields, set()), "student.rationale.target": (reasons, reasons)}
    if task.completion:
        rules |= {f"completion.{key}": rule for key, rule in of_prompt.items()}
        rules["completion.example"] = (written, {*task.written_fields})
    for key, (allowed, needed) in rules.items():
        text = attrgetter(key)(task) or ""
        used = variables(text)
        if not string.Template(text).is_valid():
            yield key, "a lone $; write $$ for a dollar sign"
        if used - allowed:
            yield key, f"unknown variable ${min(used - allowed)}; known here: {', '.join(sorted(allowed))}"
        if text and needed - used:
            yield key, f"the variable ${min(needed - used)} is missing; add it"
        elif text and (gone := needed - variables(without_attributes(without_passages(text)))):
            yield key, f"${min(gone)} would go with the lines of $passages or $attributes; give it a line of its own"
    if task.completion and task.completion.rewrite:
        yield "completion.rewrite", "is not read: the completion form continues a text; leave it out"
    if not task.read_fields:
        yield "student.source", f"shows the student nothing; use {' or '.join(f'${n}' for n in task.fields)}"
    for name in task.shown_fields[1:]:
        if (count := len(re.findall(rf"\$\{{?{name}\b", task.prompt.example))) != 1:
            yield "prompt.example", f"${name} must occur once (the parser is made from this template), found {count}"
    ends = {"prompt.label": (task.prompt.label, "start"), "prompt.label_example": (task.label_template, answer)}
    for key, (text, name) in ends.items() if task.prompt.label else ():
        if not text.rstrip().endswith((f"${name}", f"${{{name}}}")):
            yield key, f"must end with ${name}: the teacher's answer stands there"


def rationale_problems(task: Any) -> Iterator[tuple[str, str]]:
    """Where the reasons may stand: (key, what is wrong and the cure)."""
    name, answer, target = task.rationale_field, task.answer_field, task.student.target
    if task.target_has_reasons and not mark_before_answer(target, name):
        yield "student.target", f"needs ${name}, a mark such as 'So:', and ${answer}, which is read behind it"
    shows = task.prompt.label and name in variables(task.label_template)
    if shows and task.labels:
        yield "prompt.label_example", f"must not show ${name}: the probability of a label is read where the prompt ends"
    elif shows and string.Template(task.label_template).get_identifiers()[-2:] != [name, answer]:
        yield "prompt.label_example", f"${name} must stand behind all fields, for what is before it is the prompt"
