"""Prompts as text: what the teacher reads for an example, and for the label of a record.

prompt = render_prompt(task, "train", shots, "positive")                  Prompt(system, user)
prompt = render_label_prompt(task, record, shots)                         ends where the answer stands
"""

import functools
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from gold.command import fail
from gold.task import Task
from gold.templates import render, render_known, without_attributes, without_passages


class Prompt(NamedTuple):
    system: str
    user: str


class Example(NamedTuple):
    """An example template, cut at what the teacher writes."""

    start: str  # what stands before the first field
    parts: list[tuple[str, str]]  # (field, the literal text after it)


def split_example(template: str, known: dict[str, str]) -> Example:
    """Fill the known fields in; the teacher writes the others."""
    return split_once(template, tuple(known.items()))


@functools.lru_cache(maxsize=1000)  # of a label it is asked for with every attempt
def split_once(template: str, items: tuple[tuple[str, str], ...]) -> Example:
    known = dict(items)
    names, texts, end = [], [""], 0
    for match in string.Template.pattern.finditer(template):
        texts[-1] += template[end : match.start()]
        end, name = match.end(), match["named"] or match["braced"]
        if name is None or name in known:
            texts[-1] += "$" if name is None else known[name]
        else:
            names.append(name)
            texts.append("")
    texts[-1] += template[end:]
    return Example(texts[0].rstrip(" "), list(zip(names, texts[1:], strict=True)))


def known_label(task: Task, label: str | None) -> dict[str, str]:
    """What of an example is given to the teacher: the label that it is asked for."""
    return {} if label is None else {task.answer_field: label}


def join_shots(template: str, examples: Sequence[dict], between: str = "\n\n") -> str:
    return between.join(render_known(template, example) for example in examples)


def label_list(task: Task) -> str:
    return "\n".join(f"{name}: {definition}" for name, definition in task.labels.items())


def render_prompt(
    task: Task, split: str, shots: Sequence[dict], label: str | None, feedback: Sequence[dict] = (), report: str = "",
    *, passages: Sequence[dict] = (), attributes: dict[str, str] | None = None,
) -> Prompt:  # fmt: skip
    """The prompt for one example of the split; `shots` are shown in their order, the last is nearest to the answer.

    feedback: examples that the student has not learnt, and report: its results as text; [prompt] feedback shows both.
    Without that template the feedback examples are the last of the shots. Without a report its line goes, without
    passages (texts of a corpus) theirs, and without attributes (by name the value that the example shall have) theirs.
    """
    template, example, between = getattr(task.prompt, split), task.prompt.example, task.prompt.between
    if feedback and task.prompt.feedback:
        template = task.prompt.feedback
        if not report:
            template = re.sub(r"(?m)^\$(report|\{report\})\n+", "", template)
    else:
        shots = [*shots, *feedback]
    if not attributes:
        template = without_attributes(template)
    if not passages:
        template = without_passages(template)
    values = {
        "attributes": ", ".join((attributes or {}).values()),
        "shots": join_shots(example, shots, between), "feedback": join_shots(example, feedback, between), "report": report,
        "passages": join_shots(task.passage_template, passages, between),
        "start": split_example(example, known_label(task, label)).start,
        "labels": label_list(task), "label": label, "definition": task.labels.get(label),
    }  # fmt: skip
    return Prompt(task.prompt.system, render(template, values))


def render_label_prompt(task: Task, record: dict, shots: Sequence[dict]) -> Prompt:
    """The prompt that asks the teacher for the answer of a record, up to where the answer stands.

    Ends the stage (exit 1) where the task file has no [prompt] label.
    """
    if task.prompt.label is None:
        fail(f"{task.path}: prompt.label: missing: it asks the teacher for the answer; add it (docs/tasks.md)")
    start = split_example(task.label_template, {name: record[name] for name in task.fields}).start
    values = {"shots": join_shots(task.label_template, shots), "labels": label_list(task), "start": start}
    return Prompt("", render(task.prompt.label, values))


def structured_pattern(task: Task, label: str | None) -> str:
    """A regular expression that every completion in the form of `example` matches, for vLLM's structured outputs.

    A field is one line of words with single blanks between them, as many as [parse] allows; an equation is of its own
    characters. At the end a stop string may stand, for teachers without an end token.
    """

    def literal(text: str) -> str:  # re.escape escapes blanks and newlines too, which not all engines read
        return re.sub(r"[][\\.^$*+?{}()|/-]", r"\\\g<0>", text).replace("\n", r"\n")

    pattern, parse = " ?", task.parse
    for name, after in split_example(task.prompt.example, known_label(task, label)).parts:
        least, most = parse.min_words.get(name, 1), parse.max_words.get(name)
        word = r"[0-9.+*/()-]+" if name in [*parse.evaluates, *parse.gives] else r"[^\x00-\x20]+"
        more = "" if most == 1 else f"( {word}){{{least - 1},{most - 1 if most else ''}}}"
        pattern += word + more + literal(after)
    stops = "|".join(map(literal, parse.stop))
    return pattern + (f"({stops})?" if stops else "")
