"""Completions as examples: the `example` template read backwards, and the checks that an example must pass.

fields, reason = parse_completion(task, completion, "positive")        reason: None, or one of REASONS
"""

import functools
import re
from collections.abc import Sequence

from gold.equations import evaluate_equation, states_value
from gold.programmes import optimum
from gold.prompts import known_label, split_example
from gold.reasoning import strip_reasoning
from gold.task import Task
from gold.text import holds_span, text_key, words

REASONS = (  # why an attempt was rejected: a closed list, in the order of the checks
    "prompt_too_long", "truncated", "engine_error", "reasoning", "no_match", "empty_field", "debris", "echo", "too_short",
    "too_long", "check_failed", "copied_shot", "duplicate", "near_duplicate", "label_disagrees", "surplus", "removed",
)  # fmt: skip
ECHO = 5  # words in a row of the instruction that the prompt gives: no text of 17,000 human ones has any
MIN_WORDS_COMPARED = 5  # of a field: overlaps of fewer words mean nothing

DEBRIS = "|".join((  # what surrounds an example in a chat, or stands in place of one
    # Tokens of chat templates
    r"<\|[\w ]+\|>", r"\[/?INST\]|<</?SYS>>|</?s>", r"\byou are a (?:helpful|knowledgeable) assistant\b",
    # Slots that were left open
    r"(?-i:<[A-Z]{1,12}>)|\{\{.*?\}\}|\[(?:insert|your|name|title|topic|company|product)\b[^\]]*\]",
    # Refusals
    r"\bas an? (?:ai|language model)\b|\bai language model\b",
    r"\b(?:cannot|can['\u2019]t|can not|unable to) (?:fulfill?|comply|assist)\b.{0,20}\b(?:request|that|this)\b",
    # Talk of the request instead of what it asks for, and the dates of Llama's system prompt
    r"\b(?:cutting knowledge|today) date:", r"\b(?:texts?|examples?|sentences?|reviews?|tweets?) that fits? the\b",
    r"\bi(?:['\u2019](?:ll|ve)| will| can) generated? (?:\w+ ){0,3}(?:text samples|texts)\b",
    r"^\W*i['\u2019](?:d be (?:happy|glad)|m (?:here|ready)) to (?:help|assist)"
    r"(?: (?:you )?with (?:that|this|your request))?[.!]",
    # Preambles
    r"^\W*(?:sure|certainly|of course)\b[,!.]* here(?: is| are|['\u2019]s| it)\b",
    r"^\W*here(?: is| are|['\u2019]s) .{0,80}\b(?:example|sample|sentence|text|headline|review|article|paraphrase|version"
    r"|message|tweet|comment|question|problem|premise|hypothesis)s?\b[^.!?]{0,80}:",
))  # fmt: skip


def parse_completion(task: Task, completion: str, label: str | None) -> tuple[dict[str, str], str | None]:
    """(fields by name, reason of rejection or None). The fields that could be parsed come back with a reason too."""
    template = task.prompt.example
    start, parts = split_example(template, known_label(task, label))
    text, reason = strip_reasoning(completion, template)
    if reason:
        return {}, reason
    text, fields = without_opening(plain_marks(text, template, label), start), {}
    for position, (name, after) in enumerate(parts):
        mark = after.strip() or after
        whole_word = r"(?!\w)" if mark[-1:].isalnum() else ""  # "Kind: warm" is not in "Kind: warmest"
        end = re.search(re.escape(mark) + whole_word, text) if mark else None
        if end:
            value, text = text[: end.start()], text[end.end() :]
        elif position < len(parts) - 1 or (mark and mark.split()[0] in text):
            return fields, "no_match"
        else:  # the last field; a stop string may have cut off what follows it
            value = first_example(text, template, task.parse.stop)
        fields[name] = value.strip()
    return fields, check_fields(task, fields)


def plain_marks(text: str, template: str, label: str | None) -> str:
    """The text with the fields' marks, and the label behind one, as the template has them where they stand in bold:
    **Review:** or **Review**: is Review:."""
    if "**" not in text:
        return text
    for mark in field_marks(template):
        name = re.escape(mark.removesuffix(":"))
        text = re.sub(rf"(?i)\*\*({name})(?::\*\*|\*\*:)", r"\1:", text)
        if label is not None:  # **Sentiment: positive** or Sentiment: **positive**
            text = re.sub(rf"(?im)^(\s*)(?:\*\*)?({name}: *)(?:\*\*)?({re.escape(label)})\*\*", r"\1\2\3", text)
    return text


@functools.cache
def field_marks(template: str) -> list[str]:
    """What stands before the fields in an example template: "Review:", ..."""
    return [mark.strip() for mark in re.findall(r"[\w ]+:", template) if mark.strip(" :")]


def without_opening(text: str, start: str) -> str:
    """A chat model may repeat where it was to begin (start), perhaps after a line like "Here is one:"."""
    begins, last = r"\s+".join(map(re.escape, start.split())), start.strip().rsplit("\n", 1)[-1]
    if begins and (at := re.search(begins, text, re.IGNORECASE)):
        preface = text[: at.start()].strip()
        if not preface or (preface.endswith(":") and "\n" not in preface):
            return text[at.end() :]
    return re.sub(rf"(?i)^\s*{re.escape(last)}", "", text)


def opening_of(template: str) -> str:
    """What an example begins with: after it the teacher writes one too many."""
    return template.split("$", 1)[0].strip()


def first_example(text: str, template: str, stops: Sequence[str]) -> str:
    """The text up to a stop string, or up to the opening of another example."""
    if opening := opening_of(template):
        text = re.split(rf"\n\s*{re.escape(opening)}", text)[0]
    for stop in stops:
        text = text.lstrip().split(stop)[0]
    return text


def another_begins(template: str, value: str, text: str) -> bool:
    """Whether another example follows `value`, the last field of the first one in `text`: then the first one is whole,
    even where the text was cut off later, as that of a base model in a chat template, which ends no turn."""
    opening, value = opening_of(template), value.lower()
    if not (opening and value):
        return False
    following = re.finditer(rf"(?i)\s*\n\s*{re.escape(opening)}", text)  # one pattern a task: to compile takes 0.5 ms
    return any(text[: match.start()].lower().endswith(value) for match in following)


def check_fields(task: Task, fields: dict[str, str]) -> str | None:
    """Why parsed fields are no example, or None: what is always checked, then what [parse] asks for (docs/tasks.md)."""
    if not all(fields.values()):
        return "empty_field"
    # "Here is one:" is no example. Nor is a field with the name of a field in it: as `example` has it, anywhere, or in
    # any capitals at the beginning of a line
    marks, parse = field_marks(task.prompt.example), task.parse
    for value in fields.values():
        lines = [line.strip().lower() for line in value.splitlines()]
        if value.endswith(":") or any(m in value or line.startswith(m.lower()) for m in marks for line in lines):
            return "no_match"
    if any(re.search(DEBRIS, value, re.IGNORECASE) for value in fields.values()):
        return "debris"
    if any(echoes(task, value) for value in fields.values()):
        return "echo"
    for name, value in fields.items():
        count = len(words(value))
        if count < parse.min_words.get(name, 1):
            return "too_short"
        if count > parse.max_words.get(name, count):
            return "too_long"
    holds = [
        *(evaluate_equation(fields[name]) is not None for name in parse.evaluates),
        *(states_value(fields[other], fields[name]) for name, other in parse.gives.items()),
        *(holds_span(fields[other], fields[name]) for name, other in parse.span_of.items()),
        *(optimum(fields[name]) is not None for name in parse.solves),
    ]
    return None if all(holds) else "check_failed"


def echoes(task: Task, text: str) -> bool:
    """Whether a text repeats ECHO words in a row of the prompt's instruction, or a label's whole definition, or begins as
    the list of labels does ("Positive: ...")."""
    prompt = task.prompt
    if task.labels and label_opening(*task.labels).match(text):
        return True
    instruction = instruction_runs(prompt.system, prompt.train, prompt.validation, prompt.feedback or "")
    said = " ".join(words(text))
    return not instruction.isdisjoint(runs_of(text)) or any(d in said for d in definitions(*task.labels.values()))


@functools.cache
def label_opening(*labels: str) -> re.Pattern:
    return re.compile(rf"\W*(?:labels?|{'|'.join(map(re.escape, labels))})\s*:", re.IGNORECASE)


@functools.cache
def definitions(*texts: str) -> list[str]:
    """The words of those that are long enough to be told from the language of the task."""
    return [" ".join(words(text)) for text in texts if len(words(text)) >= ECHO]


def runs_of(text: str) -> set[tuple[str, ...]]:
    """All runs of ECHO words."""
    some = words(text)
    return {tuple(some[i : i + ECHO]) for i in range(len(some) - ECHO + 1)}


@functools.cache
def instruction_runs(*texts: str) -> set[tuple[str, ...]]:
    """Those of the prompt's templates; a variable or a blank line ends a run."""
    parts = [part for text in texts for part in re.split(r"\$\{?\w+\}?|\n\s*\n", text)]
    return set().union(*map(runs_of, parts))


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
