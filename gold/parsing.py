"""Completions as examples: the `example` template read backwards, and the checks that an example must pass.

fields, reason = parse_completion(task, completion, "positive")        reason: None, or one of REASONS
"""

import functools
import re

from gold.equations import evaluate_equation, states_value
from gold.prompts import known_label, split_example
from gold.reasoning import strip_reasoning
from gold.task import Task
from gold.text import holds_span, text_key, words

REASONS = (  # why an attempt was rejected: a closed list, in the order of the checks
    "prompt_too_long", "truncated", "engine_error", "reasoning", "no_match", "empty_field", "debris", "too_short", "too_long",
    "check_failed", "copied_shot", "duplicate", "label_disagrees", "surplus", "removed",
)  # fmt: skip
MIN_WORDS_COMPARED = 5  # of a field: overlaps of fewer words mean nothing

# What surrounds an example in a chat, or stands in place of one
DEBRIS = "|".join(
    [
        # Tokens of chat templates
        r"<\|[\w ]+\|>",
        r"\[/?INST\]|<</?SYS>>|</?s>",
        r"\byou are a (?:helpful|knowledgeable) assistant\b",
        # Slots that were left open
        r"(?-i:<[A-Z]{1,12}>)|\{\{.*?\}\}|\[(?:insert|your|name|title|topic|company|product)\b[^\]]*\]",
        # Refusals
        r"\bas an? (?:ai|language model)\b|\bai language model\b",
        r"\b(?:cannot|can['\u2019]t|can not|unable to) (?:fulfill?|comply|assist)\b.{0,20}\b(?:request|that|this)\b",
        # Preambles
        r"^\W*(?:sure|certainly|of course)\b[,!.]* here(?: is| are|['\u2019]s| it)\b",
        r"^\W*here(?: is| are|['\u2019]s) .{0,80}\b"
        r"(?:example|sample|sentence|text|headline|review|article|paraphrase|version|message|tweet|comment|question|"
        r"problem|premise|hypothesis)s?\b[^.!?]{0,80}:",
    ]
)


def parse_completion(task: Task, completion: str, label: str | None) -> tuple[dict[str, str], str | None]:
    """(fields by name, reason of rejection or None). The fields that could be parsed come back with a reason too."""
    template = task.prompt.example
    start, parts = split_example(template, known_label(task, label))
    text, reason = strip_reasoning(completion, template)
    if reason:
        return {}, reason
    text = without_opening(plain_marks(text, template, label), start.strip())
    opening = template.split("$", 1)[0].strip()  # with it the teacher begins an example too many
    fields = {}
    for position, (name, after) in enumerate(parts):
        mark = after.strip() or after
        whole_word = r"(?!\w)" if mark[-1:].isalnum() else ""  # "Kind: warm" is not in "Kind: warmest"
        end = re.search(re.escape(mark) + whole_word, text) if mark else None
        if end:
            value, text = text[: end.start()], text[end.end() :]
        elif position < len(parts) - 1 or (mark and mark.split()[0] in text):
            return fields, "no_match"
        else:  # the last field; a stop string may have cut off what follows it
            value = re.split(rf"\n\s*{re.escape(opening)}", text)[0] if opening else text
            for stop in task.parse.stop:
                value = value.lstrip().split(stop)[0]
        fields[name] = value.strip()
    return fields, check_fields(task, fields)


def without_opening(text: str, start: str) -> str:
    """A chat model may repeat where it was to begin, perhaps after a line like "Here is one:"."""
    begins = r"\s+".join(map(re.escape, start.split()))
    last = start.rsplit("\n", 1)[-1].strip()
    if begins and (at := re.search(begins, text, re.IGNORECASE)):
        preface = text[: at.start()].strip()
        if not preface or (preface.endswith(":") and "\n" not in preface):
            return text[at.end() :]
    if last and text.lstrip().lower().startswith(last.lower()):
        return text.lstrip()[len(last) :]
    return text


def plain_marks(text: str, template: str, label: str | None) -> str:
    """The text with the fields' marks, and the label behind one, as the template has them where they stand in bold:
    **Review:** or **Review**: is Review:."""
    for mark in field_marks(template):
        name = re.escape(mark.removesuffix(":"))
        text = re.sub(rf"\*\*({name})(?::\*\*|\*\*:)", r"\1:", text, flags=re.IGNORECASE)
        if label is not None:
            given = re.escape(label)
            text = re.sub(rf"(?m)^(\s*{name}: *)\*\*({given})\*\*", r"\1\2", text, flags=re.IGNORECASE)
            text = re.sub(rf"(?m)^(\s*)\*\*({name}: *{given})\*\*", r"\1\2", text, flags=re.IGNORECASE)
    return text


@functools.cache
def field_marks(template: str) -> list[str]:
    """What stands before the fields in an example template: "Review:", ..."""
    return [mark.strip() for mark in re.findall(r"[\w ]+:", template) if mark.strip(" :")]


def another_begins(template: str, value: str, text: str) -> bool:
    """Whether `text` goes on with another example after `value`, the last field of its first: then that one is whole,
    even where the text was cut off later, as that of a base model in a chat template, which ends no turn."""
    opening = template.split("$", 1)[0].strip()
    return bool(
        opening and value and re.search(rf"{re.escape(value)}\s*\n\s*{re.escape(opening)}", text, re.IGNORECASE)
    )


def check_fields(task: Task, fields: dict[str, str]) -> str | None:
    """Why parsed fields are no example, or None: what is always checked, then what [parse] asks for.

    min_words, max_words {field: n}; evaluates [field]: an equation with a value; gives {equation: field}: its value is
    the number in that field; span_of {answer: context}: it occurs there word for word; solves [field]: a linear
    programme with an optimum.
    """
    if not all(fields.values()):
        return "empty_field"
    # "Here is one:" is no example, and a field that holds another field's name (with the label, perhaps) is none
    # either: as `example` has it anywhere, or in any capitals at the beginning of a line
    marks = field_marks(task.prompt.example)
    for value in fields.values():
        lines = [line.strip().lower() for line in value.splitlines()]
        if value.endswith(":") or any(m in value or line.startswith(m.lower()) for m in marks for line in lines):
            return "no_match"
    if any(re.search(DEBRIS, value, re.IGNORECASE) for value in fields.values()):
        return "debris"
    for name, value in fields.items():
        count = len(words(value))
        if count < task.parse.min_words.get(name, 1):
            return "too_short"
        if count > task.parse.max_words.get(name, count):
            return "too_long"
    holds = [evaluate_equation(fields[name]) is not None for name in task.parse.evaluates]
    holds += [states_value(fields[other], fields[name]) for name, other in task.parse.gives.items()]
    holds += [holds_span(fields[other], fields[name]) for name, other in task.parse.span_of.items()]
    if task.parse.solves and all(holds):
        from gold.programmes import optimum

        holds += [optimum(fields[name]) is not None for name in task.parse.solves]
    return None if all(holds) else "check_failed"


def overlap(text: str, other: str) -> float:
    """ROUGE-L F1 of two texts (Lin 2004), 0 to 1: 2 LCS / (words of both)."""
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(words(text), words(other))


def copies_shot(task: Task, example: dict, shots: list[dict]) -> bool:
    """Whether an example repeats one of the shots: the same text_key of all fields, or with [parse] max_overlap any
    single field of 5 words or more whose overlap with the shot's is above it."""
    if any(all(text_key(example[name]) == text_key(shot[name]) for name in task.read_fields) for shot in shots):
        return True
    if task.parse.max_overlap == 1:
        return False
    long = [name for name in task.fields if len(words(example[name])) >= MIN_WORDS_COMPARED]
    return any(overlap(example[name], shot[name]) > task.parse.max_overlap for name in long for shot in shots)
