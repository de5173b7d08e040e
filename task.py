"""The task file: what the teacher is asked, how its answer is read, what the student reads and must write.

    task = load_task(Path("prompts/reviews.toml"))        strict: unknown keys and missing variables are refused
    system, user = render_prompt(task, "train", shots, "positive")
    fields, reason = parse_completion(task, completion, "positive")
    user = render_label_prompt(task, record, shots)       what the teacher is asked to label a record
    is_correct(task, prediction, record)                  by the metric of the task

One template, `prompt.example`, renders the shots, begins the answer and, read backwards, parses it. `prompt.label_example`
does the same where the teacher labels: there the answer comes last.
"""

import functools
import re
import string
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gold.text
from equations import equations_agree, evaluate_equation, states_value
from gold.reasoning import strip_reasoning
from gold.text import exact_form, holds_span, words
from records import fail

# ---------------------------------------------------------------------------------------------------------------------
# Loading

METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "text2text": ("exact_match", "equation_value", "squad", "rouge_l", "optimum", "chrf"),
}
KEYS = {  # table: (required keys, optional keys)
    "": ("name version description kind metric fields answer_field seed_examples prompt student", "labels parse"),
    "prompt": ("train validation example", "system feedback label label_example"),
    "parse": ("", "stop min_words max_words evaluates gives span_of solves max_overlap"),
    "student": ("source target", ""),
}


RESERVED = {  # what records hold besides the task's fields
    *"id source target task iteration split shots feedback sampling_seed finish_reason completion reason".split(),
    *"prediction correct f1 rouge_l nll msp entropy margin embedding tfidf error hard_negative random score rank".split(),
    *"teacher_label label_probs temperature".split(),
}


@dataclass(frozen=True)
class Task:
    """One task file, checked. `labels` is empty for text2text; its order fixes the class ids of an encoder student."""

    path: Path
    name: str
    version: int
    description: str
    kind: str  # classification | text2text
    metric: str
    fields: list[str]  # what the teacher writes, in order
    answer_field: str  # what the student must produce
    seed_examples: Path
    labels: dict[str, str]  # name: definition shown to the teacher
    prompt: dict[str, str]  # system, train, validation, example, perhaps feedback, label and label_example
    parse: dict[str, Any]  # stop: [str], max_overlap: float, and what check_fields checks
    student: dict[str, str]  # source, target

    @property
    def written_fields(self) -> list[str]:
        """The fields that the teacher writes: for text2text the answer too; a label is given to it."""
        return self.fields if self.labels else [*self.fields, self.answer_field]


def load_task(path: Path) -> Task:
    """Read and check `prompts/<task>.toml`. Errors name file and key, and end the stage with exit code 1."""

    def bad(key: str, problem: str) -> NoReturn:
        fail(f"{path}: {key}: {problem}")

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail(f"{path}: no such task file; the ones here: {', '.join(map(str, sorted(Path('prompts').glob('*.toml'))))}")
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        fail(f"{path}: not a readable TOML file: {error}")

    for table, (required, optional) in KEYS.items():
        values = data.get(table, {}) if table else data
        prefix = f"{table}." if table else ""
        if not isinstance(values, dict):
            bad(table, f"must be a table ([{table}]), found {values!r}")
        allowed = required.split() + optional.split()
        for key in values:
            if key not in allowed:
                bad(prefix + key, f"unknown key; the keys here are {', '.join(allowed)}")
        for key in required.split():
            if key not in values:
                bad(prefix + key, "missing; add it (README, 'A new task')")

    for key in ("name", "description", "kind", "metric", "answer_field", "seed_examples"):
        if not isinstance(data[key], str) or not data[key].strip():
            bad(key, f"must be a text that is not empty, found {data[key]!r}")
    for table in ("prompt", "student"):
        for key, value in data[table].items():
            if not isinstance(value, str):
                bad(f"{table}.{key}", f"must be a text, found {value!r}")
    if not re.fullmatch(r"[a-z0-9_]+", data["name"]):
        bad("name", f"must be lower-case letters, digits and _ (it begins every id), found {data['name']!r}")
    if type(data["version"]) is not int:
        bad("version", f"must be a whole number, found {data['version']!r}")
    if data["kind"] not in METRICS:
        bad("kind", f"must be one of {', '.join(METRICS)}, found {data['kind']!r}")
    if data["metric"] not in METRICS[data["kind"]]:
        bad("metric", f"must be one of {', '.join(METRICS[data['kind']])} for {data['kind']}, found {data['metric']!r}")
    names = data["fields"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.isidentifier() for n in names):
        bad("fields", f'must be a list of names such as ["premise", "hypothesis"], found {names!r}')
    answer = data["answer_field"]
    for name in [*names, answer]:
        if name in RESERVED or name.startswith("energy"):
            bad("fields", f"the name {name!r} is one that the stages write; choose another")
    if not answer.isidentifier() or answer in names or f"{answer}s" in names or len(set(names)) < len(names):
        problem = (
            f"must be a name of its own beside {names}, each once, without a field {answer}s, which lists right answers"
        )
        bad("answer_field", f"{problem}; found {answer!r}")

    labels = data.get("labels", {})
    if not isinstance(labels, dict):
        bad("labels", f'must be a table ([labels]) of name = "definition", found {labels!r}')
    if data["kind"] == "classification" and len(labels) < 2:
        bad("labels", f"a classification task needs two or more, found {len(labels)}")
    if data["kind"] == "text2text" and labels:
        bad("labels", 'a text2text task has none; delete the table or set kind = "classification"')
    if len({exact_form(name) for name in labels} - {""}) < len(labels):
        bad(
            "labels",
            "names must differ in more than capitals and blanks, and not be empty: predictions are compared so",
        )
    for name, definition in labels.items():
        if not isinstance(definition, str) or not definition.strip():
            bad(f"labels.{name}", "a label needs a definition that the teacher can read, as text")

    # Templates: variables that may be used, variables that must be used
    about_label = {"label", "definition"} if labels else set()
    common = about_label | ({"labels"} if labels else set())
    rules = {
        ("prompt", "system"): (set(), set()),
        ("prompt", "train"): (common | {"shots", "start"}, {"shots", "start"}),
        ("prompt", "validation"): (common | {"shots", "start"}, {"shots", "start"}),
        ("prompt", "feedback"): (common | {"shots", "feedback", "report", "start"}, {"shots", "feedback", "start"}),
        ("prompt", "example"): ({*names, answer}, {*names, answer}),
        ("prompt", "label"): (({"labels"} if labels else set()) | {"shots", "start"}, {"shots", "start"}),
        ("prompt", "label_example"): ({*names, answer}, {answer}),
        ("student", "source"): (set(names), set()),
        ("student", "target"): ({answer}, {answer}),
    }
    for (table, key), (allowed, needed) in rules.items():
        if key not in data[table]:
            continue
        template = string.Template(data[table][key])
        if not template.is_valid():
            bad(f"{table}.{key}", "a lone $; write $$ for a dollar sign")
        used = set(template.get_identifiers())
        if used - allowed:
            unknown = min(used - allowed)
            bad(
                f"{table}.{key}",
                f"unknown variable ${unknown}; known here: {', '.join(f'${v}' for v in sorted(allowed))}",
            )
        if needed - used:
            bad(f"{table}.{key}", f"the variable ${min(needed - used)} is missing; add it")
        if (table, key) == ("prompt", "label") and not re.search(r"\$(start|\{start\})\s*$", data[table][key]):
            bad("prompt.label", "must end with $start: the answer stands after it")
        if (table, key) == ("student", "source") and not used:
            bad("student.source", f"shows the student nothing; use {' or '.join(f'${n}' for n in names)}")
    for name, count in ((n, len(re.findall(rf"\$\{{?{n}\b", data["prompt"]["example"]))) for n in [*names, answer]):
        if count != 1:
            bad("prompt.example", f"${name} must occur once (the parser is made from this template), found {count}")
    if "label_example" in data["prompt"] and "label" not in data["prompt"]:
        bad("prompt.label_example", "shows examples to a prompt that is not there; add prompt.label")
    if "label" in data["prompt"]:
        key = "label_example" if "label_example" in data["prompt"] else "example"  # label_template
        text = data["prompt"][key].strip()
        mark = re.findall(rf"\$(?:{answer}\b|\{{{answer}\}})", text)
        if len(mark) != 1 or not text.endswith(mark[0]) or len(string.Template(text).get_identifiers()) < 2:
            bad(
                f"prompt.{key}",
                f"must show a field and end with ${answer}, once, for prompt.label; add a label_example",
            )

    parse = data.get("parse", {})
    stop = parse.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        bad("parse.stop", f"must be a list of texts that are not empty, found {stop!r}")
    for key in ("min_words", "max_words"):
        limits = parse.get(key, {})
        if not isinstance(limits, dict) or not all(type(v) is int and v > 0 for v in limits.values()):
            bad(
                f"parse.{key}", f"must be whole numbers above 0 by field, such as {{{names[0]} = 40}}, found {limits!r}"
            )
        for name in limits:
            if name not in [*names, answer]:
                bad(f"parse.{key}", f"no such field: {name}; the fields are {', '.join([*names, answer])}")

    for name, most in parse.get("max_words", {}).items():
        if most < parse.get("min_words", {}).get(name, 0):
            bad("parse.max_words", f"{name} may have at most {most} words and needs {parse['min_words'][name]}")

    written = names if labels else [*names, answer]
    for key in ("evaluates", "solves"):
        listed = parse.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            bad(f"parse.{key}", f'must be a list of fields such as ["{written[-1]}"], found {listed!r}')
        for name in listed:
            if name not in written:
                bad(f"parse.{key}", f"no field that the teacher writes: {name}; these are {', '.join(written)}")
    for key in ("gives", "span_of"):
        pairs = parse.get(key, {})
        if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs.values()):
            bad(f"parse.{key}", f'must be fields by field, such as {{{written[-1]} = "{written[0]}"}}, found {pairs!r}')
        for name in [*pairs, *pairs.values()]:
            if name not in written:
                bad(f"parse.{key}", f"no field that the teacher writes: {name}; these are {', '.join(written)}")
        if any(name == other for name, other in pairs.items()):
            bad(f"parse.{key}", "a field is compared with itself; name another")
    overlap = parse.get("max_overlap", 1)
    if type(overlap) not in (int, float) or not 0 < overlap <= 1:
        bad("parse.max_overlap", f"must be a share above 0 and up to 1, found {overlap!r}")

    strip = {k: v.strip("\n") for k, v in data["prompt"].items()}
    return Task(
        path=path, name=data["name"], version=data["version"], description=data["description"], kind=data["kind"],
        metric=data["metric"], fields=names, answer_field=answer, seed_examples=path.parent / data["seed_examples"],
        labels=labels, prompt={"system": "", **strip}, parse=parse,
        student={k: v.strip("\n") for k, v in data["student"].items()},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def split_example(task: Task, known: dict[str, str], template: str = "example") -> tuple[str, list[tuple[str, str]]]:
    """Cut an example template at what the teacher writes: (start, [(field, literal text after it), ...])."""
    return _split(task.prompt[template], tuple(known.items()))


@functools.lru_cache(maxsize=1_000)  # one for each label, of every prompt and every completion
def _split(text: str, values: tuple[tuple[str, str], ...]) -> tuple[str, list[tuple[str, str]]]:
    known = dict(values)
    pieces: list[list[str]] = [["", ""]]  # [field, text after it]; the first has no field
    end = 0
    for match in string.Template.pattern.finditer(text):
        pieces[-1][1] += text[end : match.start()]
        end = match.end()
        name = match["named"] or match["braced"]
        if name is None:
            pieces[-1][1] += "$"
        elif name in known:
            pieces[-1][1] += known[name]
        else:
            pieces.append([name, ""])
    pieces[-1][1] += text[end:]
    return pieces[0][1].rstrip(" "), [(name, after) for name, after in pieces[1:]]


def render_prompt(
    task: Task, split: str, shots: list[dict], label: str | None, feedback: Sequence[dict] = (), report: str = ""
) -> tuple[str, str]:
    """(system text, user text) of one attempt; `shots` are shown in their order, the last is nearest to the answer.

    feedback: examples that the student does not know, and report: its results as text; [prompt] feedback shows them.
    Without that template the feedback examples are the last of the shots. No report leaves no empty lines.
    """

    def joined(examples: Sequence[dict]) -> str:
        return "\n\n".join(render(task.prompt["example"], example) for example in examples)

    template = task.prompt[split]
    if feedback and "feedback" in task.prompt:
        template = task.prompt["feedback"]
        if not report:
            template = _without_report(template)
    else:
        shots = [*shots, *feedback]
    known = {task.answer_field: label} if label is not None else {}
    values = {"shots": joined(shots), "feedback": joined(feedback), "report": report}
    values["start"] = split_example(task, known)[0]
    if label is not None:
        values["labels"] = "\n".join(f"{name}: {definition}" for name, definition in task.labels.items())
        values |= {"label": label, "definition": task.labels[label]}
    return task.prompt["system"], render(template, values)


@functools.cache
def _without_report(template: str) -> str:
    return re.sub(r"(?m)^\$(report|\{report\})\n+", "", template)


def label_template(task: Task) -> str:
    """Which template shows a record with its answer at the end, where the teacher labels."""
    return "label_example" if "label_example" in task.prompt else "example"


def another_begins(task: Task, value: str, text: str, template: str = "example") -> bool:
    """Whether `text` goes on with another example after `value`, the last field of its first: then that one is whole, even
    where the text was cut off later, as that of a base model in a chat template, which ends no turn."""
    opening = task.prompt[template].split("$", 1)[0].strip()
    return bool(
        opening and value and re.search(rf"{re.escape(value)}\s*\n\s*{re.escape(opening)}", text, re.IGNORECASE)
    )


def render_label_prompt(task: Task, record: dict, shots: list[dict]) -> str:
    """The prompt that asks the teacher for the answer of a record, up to where the answer stands; it has no system text.

    Ends the stage (exit 1) when the task file has no [prompt] label.
    """
    if "label" not in task.prompt:
        fail(f"{task.path}: prompt.label: missing: it asks the teacher for the answer; add it (README, 'A new task')")
    template = label_template(task)
    known = {name: record[name] for name in task.fields}
    values = {
        "shots": "\n\n".join(render(task.prompt[template], shot) for shot in shots),
        "start": split_example(task, known, template)[0],
        "labels": "\n".join(f"{name}: {definition}" for name, definition in task.labels.items()),
    }
    return render(task.prompt["label"], values)


def structured_pattern(task: Task, label: str | None) -> str:
    """A regular expression that every completion in the form of `example` matches, for vLLM's structured outputs.

    A field is one line of words with single blanks between them, as many as [parse] allows; where it `evaluates`, of the
    characters of an equation. Between the fields stands what stands in `example`, at the end perhaps a stop string, for
    teachers that do not write an end token.
    """

    def literal(text: str) -> str:  # re.escape escapes blanks and newlines too, which not all engines read
        return "".join("\\n" if c == "\n" else "\\" + c if c in r"\.^$*+?{}[]()|/-" else c for c in text)

    pattern = " ?"
    for name, after in split_example(task, {task.answer_field: label} if label is not None else {})[1]:
        least = task.parse.get("min_words", {}).get(name, 1)
        most = task.parse.get("max_words", {}).get(name, "")
        equations = [*task.parse.get("evaluates", []), *task.parse.get("gives", {})]
        word = r"[0-9.+*/()-]+" if name in equations else r"[^\x00-\x20]+"
        pattern += word + ("" if most == 1 else f"( {word}){{{least - 1},{most and most - 1}}}") + literal(after)
    stops = "|".join(map(literal, task.parse.get("stop", [])))
    return pattern + (f"({stops})?" if stops else "")


# ---------------------------------------------------------------------------------------------------------------------
# Parsing: the `example` template, read backwards


def parse_completion(task: Task, completion: str, label: str | None) -> tuple[dict[str, str], str | None]:
    """(fields by name, reason of rejection or None). The fields found so far come back with a reason too."""
    start, parts = split_example(task, {task.answer_field: label} if label is not None else {})
    text, reason = strip_reasoning(completion, task.prompt["example"])
    if reason:
        return {}, reason
    text = plain_marks(text, task.prompt["example"], label)
    # A chat model may repeat where it was to begin, perhaps after a line like "Here is one:"
    preface, found, rest = text, "", ""
    begins = r"\s+".join(map(re.escape, start.split()))
    if begins and (at := re.search(begins, text, re.IGNORECASE)):
        preface, found, rest = text[: at.start()], at[0], text[at.end() :]
    last = start.strip().rsplit("\n", 1)[-1].strip()
    if found and (not preface.strip() or (preface.rstrip().endswith(":") and "\n" not in preface.strip())):
        text = rest
    elif last and text.lstrip().lower().startswith(last.lower()):
        text = text.lstrip()[len(last) :]
    opening = task.prompt["example"].split("$", 1)[0].strip()  # with it the teacher begins an example too many
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
            for stop in task.parse.get("stop", []):
                value = value.lstrip().split(stop)[0]
        fields[name] = value.strip()
    return fields, check_fields(task, fields)


# What surrounds an example in a chat, or stands in place of one; compiled when it is first used, not at every `--help`
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
        r"(?:example|sample|sentence|text|headline|review|article|paraphrase|version|message|tweet|comment|question|problem|premise|hypothesis)s?\b[^.!?]{0,80}:",
    ]
)


def check_fields(task: Task, fields: dict[str, str]) -> str | None:
    """Why fields that were read are no example (a reason of generate.py's closed list), or None: what is always checked,
    then what [parse] asks for:

    min_words, max_words {field: n}, as gold/text.py counts words; evaluates [field]: an equation with a value; gives
    {equation: field}: its value is the number in that field; span_of {answer: context}: it occurs there word for word;
    solves [field]: a linear programme with an optimum.
    """
    if not all(fields.values()):
        return "empty_field"
    # "Here is one:" is no example, and a field that holds another field's name (with the label, perhaps) is none either:
    # as `example` writes it anywhere, or however it is written at the beginning of a line
    names = field_marks(task.prompt["example"])
    for value in fields.values():
        lines = [line.strip().lower() for line in value.splitlines()]
        if value.endswith(":") or any(m in value or line.startswith(m.lower()) for m in names for line in lines):
            return "no_match"
    if any(re.search(DEBRIS, value, re.IGNORECASE) for value in fields.values()):
        return "debris"
    for name, value in fields.items():
        count = len(words(value))
        if count < task.parse.get("min_words", {}).get(name, 1):
            return "too_short"
        if count > task.parse.get("max_words", {}).get(name, count):
            return "too_long"
    holds = [evaluate_equation(fields[name]) is not None for name in task.parse.get("evaluates", [])]
    holds += [states_value(fields[other], fields[name]) for name, other in task.parse.get("gives", {}).items()]
    holds += [holds_span(fields[other], fields[name]) for name, other in task.parse.get("span_of", {}).items()]
    if task.parse.get("solves") and all(holds):
        from formulations import optimum

        holds += [optimum(fields[name]) is not None for name in task.parse["solves"]]
    return None if all(holds) else "check_failed"


def plain_marks(text: str, example: str, label: str | None) -> str:
    """The text with the fields' marks, and the label behind one, as `example` writes them where they stand in bold:
    **Review:** or **Review**: is Review:."""
    for mark in field_marks(example):
        name = re.escape(mark.removesuffix(":"))
        text = re.sub(rf"\*\*({name})(?::\*\*|\*\*:)", r"\1:", text, flags=re.IGNORECASE)
        if label is not None:
            given = re.escape(label)
            text = re.sub(rf"(?m)^(\s*{name}: *)\*\*({given})\*\*", r"\1\2", text, flags=re.IGNORECASE)
            text = re.sub(rf"(?m)^(\s*)\*\*({name}: *{given})\*\*", r"\1\2", text, flags=re.IGNORECASE)
    return text


@functools.cache
def field_marks(example: str) -> list[str]:
    """What stands before the fields in an example template: "Review:", ..."""
    return [mark.strip() for mark in re.findall(r"[\w ]+:", example) if mark.strip(" :")]


def overlap(text: str, other: str) -> float:
    """ROUGE-L F1 of two texts (Lin 2004), 0 to 1, on the words of gold/text.py: 2 LCS / (words of both)."""
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(words(text), words(other))


def copies(task: Task, record: dict, shots: list[dict]) -> bool:
    """Whether a record repeats one of the shots: the same text_key, or with [parse] max_overlap any single field
    of 5 words or more whose overlap with the shot's is above it."""
    if text_key(task, record) in {text_key(task, shot) for shot in shots}:
        return True
    if (most := task.parse.get("max_overlap", 1)) == 1:
        return False
    long = [name for name in task.fields if len(words(record[name])) >= 5]
    return any(overlap(record[name], shot[name]) > most for name in long for shot in shots)


@functools.cache
def variables(template: str) -> frozenset[str]:
    """The names of a template's variables."""
    return frozenset(string.Template(template).get_identifiers())


@functools.cache
def _percent_form(template: str) -> str:
    parts, end = [], 0
    for match in string.Template.pattern.finditer(template):
        name = match["named"] or match["braced"]
        parts += [template[end : match.start()].replace("%", "%%"), f"%({name})s" if name else "$"]
        end = match.end()
    return "".join(parts) + template[end:].replace("%", "%%")


def render(template: str, values: dict) -> str:
    """string.Template(template).substitute(values), ten times as fast: of a million records it is most of the checking."""
    return _percent_form(template) % values


def text_key(task: Task, record: dict) -> str:
    """What makes two examples duplicates: the keys of the fields that the student reads, a line each, whatever the answer."""
    read = variables(task.student["source"])
    return "\n".join(gold.text.text_key(record[name]) for name in task.fields if name in read)


# ---------------------------------------------------------------------------------------------------------------------
# Correctness: one definition, for score_ood.py and evaluate.py


def golds_of(task: Task, record: dict) -> list[str]:
    """Every right answer of a record, as the student is to write it: its target and, where there is the list
    `<answer_field>s`, the targets of those."""
    template = string.Template(task.student["target"])
    others = record.get(f"{task.answer_field}s", [])
    return list(dict.fromkeys([record["target"], *(template.substitute({task.answer_field: gold}) for gold in others)]))


def is_correct(task: Task, prediction: str, record: dict) -> bool:
    """Whether a prediction is one of a record's right answers, by the task's metric.

    equation_value and optimum: equal in value; squad: exact match as SQuAD's official script has it; the others: equal
    when stripped, lower-cased and composed (NFC). An empty prediction is never right.
    """
    if task.metric == "squad":
        from metrics import squad_scores

        return squad_scores(prediction, golds_of(task, record))[0] == 1
    if task.metric == "optimum":
        from formulations import optima_agree

        return any(optima_agree(prediction, gold) for gold in golds_of(task, record))
    if task.metric == "equation_value":
        return any(equations_agree(prediction, gold) for gold in golds_of(task, record))
    return exact_form(prediction) in map(exact_form, golds_of(task, record))
