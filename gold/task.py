"""The task file: what the teacher is asked, how its answer is parsed, what the student reads and must write.

task = load_task(Path("prompts/reviews.toml"))     strict: unknown keys and missing variables are refused
render(task.student.source, record)                a template with a record's fields
"""

import functools
import re
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gold.command import fail
from gold.text import exact_form

METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "text2text": ("exact_match", "equation_value", "squad", "rouge_l", "optimum", "chrf"),
}
RESERVED = """id source target task iteration split shots feedback sampling_seed finish_reason completion reason prediction
    correct f1 rouge_l nll msp entropy margin embedding tfidf error hard_negative random score rank teacher_label
    label_probs""".split()  # what records hold besides the task's fields
WITHOUT_LINE_ENDS = AfterValidator(lambda text: text.strip("\n"))
Text = Annotated[str, Field(pattern=r"\S"), WITHOUT_LINE_ENDS]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]  # as string.Template has names
Words = dict[str, Annotated[int, Field(gt=0)]]  # a number of words by field
Problems = Iterator[tuple[str, str]]  # (key, what is wrong and the cure)


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Prompt(Table):
    """Templates. `example` renders one shot, begins the answer and, read backwards, parses it."""

    system: Annotated[str, WITHOUT_LINE_ENDS] = ""
    train: Text
    validation: Text
    feedback: Text | None = None
    example: Text
    label: Text | None = None
    label_example: Text | None = None  # ends in the answer


class Parse(Table):
    """What a completion must be besides its form: see gold/parsing.py."""

    stop: list[Annotated[str, Field(min_length=1)]] = []
    min_words: Words = {}
    max_words: Words = {}
    evaluates: list[str] = []
    gives: dict[str, str] = {}
    span_of: dict[str, str] = {}
    solves: list[str] = []
    max_overlap: Annotated[float, Field(gt=0, le=1)] = 1.0


class Student(Table):
    source: Text
    target: Text


class Task(Table):
    """One task file, checked. `labels` is empty for text2text; its order fixes the class ids of an encoder student."""

    path: Annotated[Path, Field(alias="the task file")]  # no key of the file
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]  # it begins every id
    version: int
    description: Text
    kind: Literal["classification", "text2text"]
    metric: str
    fields: Annotated[list[Name], Field(min_length=1)]  # what the teacher writes, in order
    answer_field: Name  # what the student must produce
    seed_examples: Path
    labels: dict[str, Text] = {}  # name: definition shown to the teacher
    prompt: Prompt
    parse: Parse = Parse()
    student: Student

    @property
    def names(self) -> list[str | None]:
        """The labels; [None] for text2text, whose attempts ask for none."""
        return list(self.labels) or [None]

    @property
    def written_fields(self) -> list[str]:
        """The fields that the teacher writes: for text2text the answer too; a label is given to it."""
        return self.fields if self.labels else [*self.fields, self.answer_field]

    @property
    def read_fields(self) -> list[str]:
        """The fields that the student reads."""
        return [name for name in self.fields if name in variables(self.student.source)]

    @property
    def label_template(self) -> str:
        """What shows a record with its answer at the end, where the teacher labels."""
        return self.prompt.label_example or self.prompt.example

    @property
    def targets(self) -> list[str]:
        """What the student writes for each label, in the order of the labels."""
        return [render(self.student.target, {self.answer_field: name}) for name in self.labels]


def load_task(path: Path) -> Task:
    """Read and check `prompts/<task>.toml`. Errors name file and key, and end the stage with exit code 1."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail(f"{path}: no such task file; the ones here: {', '.join(map(str, sorted(Path('prompts').glob('*.toml'))))}")
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        fail(f"{path}: not a readable TOML file: {error}")
    if isinstance(data.get("seed_examples"), str):
        data["seed_examples"] = path.parent / data["seed_examples"]
    try:
        task = Task.model_validate(data | {"the task file": path})
    except ValidationError as error:
        fail(f"{path}: {schema_problem(error)}")
    for key, problem in [*name_problems(task), *template_problems(task), *parse_problems(task)]:
        fail(f"{path}: {key}: {problem}")
    return task


def schema_problem(error: ValidationError) -> str:
    """`key: problem; cure` of the first thing that the schema refuses."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a misspelt key, before it is missing
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{key}: missing; add it (docs/tasks.md)"
    if first["type"] == "extra_forbidden":
        table = Task.model_fields[first["loc"][0]].annotation if "." in key else Task
        return f"{key}: unknown key; the keys here are {', '.join(k for k in table.model_fields if k != 'path')}"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}; found {first['input']!r}"


def name_problems(task: Task) -> Problems:
    """Metric, fields and labels."""
    names, answer, known = task.fields, task.answer_field, METRICS[task.kind]
    if task.metric not in known:
        yield "metric", f"must be one of {', '.join(known)} for {task.kind}, found {task.metric!r}"
    for name in [*names, answer]:
        if name in RESERVED or name.startswith("energy"):
            yield "fields", f"the name {name!r} is one that the stages write; choose another"
    if answer in names or f"{answer}s" in names or len(set(names)) < len(names):
        rule = f"each once, without a field {answer}s, which lists right answers"
        yield "answer_field", f"must be a name of its own beside {names}, {rule}; found {answer!r}"
    if task.kind == "classification" and len(task.labels) < 2:
        yield "labels", f"a classification task needs two or more, found {len(task.labels)}"
    if task.kind == "text2text" and task.labels:
        yield "labels", 'a text2text task has none; delete the table or set kind = "classification"'
    if len({exact_form(name) for name in task.labels} - {""}) < len(task.labels):
        yield "labels", "names must differ in more than capitals and blanks, and not be empty"


def template_problems(task: Task) -> Problems:
    """Variables that a template may use, and those that it must use; what a schema cannot say."""
    fields, answer, prompt = set(task.fields), task.answer_field, task.prompt
    labels = {"labels"} if task.labels else set()
    asked = {"shots", "start", *labels, *(("label", "definition") if labels else ())}
    rules = {  # template: (variables that it may have, variables that it must have)
        "prompt.system": (set(), set()),
        "prompt.train": (asked, {"shots", "start"}),
        "prompt.validation": (asked, {"shots", "start"}),
        "prompt.feedback": ({*asked, "feedback", "report"}, {"shots", "feedback", "start"}),
        "prompt.example": ({*fields, answer}, {*fields, answer}),
        "prompt.label": ({*labels, "shots", "start"}, {"shots", "start"}),
        "prompt.label_example": ({*fields, answer}, {answer}),
        "student.source": (fields, set()),
        "student.target": ({answer}, {answer}),
    }
    for key, (allowed, needed) in rules.items():
        table, name = key.split(".")
        text = getattr(getattr(task, table), name) or ""
        used = variables(text)
        if not string.Template(text).is_valid():
            yield key, "a lone $; write $$ for a dollar sign"
        if used - allowed:
            yield key, f"unknown variable ${min(used - allowed)}; known here: {', '.join(sorted(allowed))}"
        if text and needed - used:
            yield key, f"the variable ${min(needed - used)} is missing; add it"
    if not task.read_fields:
        yield "student.source", f"shows the student nothing; use {' or '.join(f'${n}' for n in task.fields)}"
    for name in [*task.fields, answer]:
        if (count := len(re.findall(rf"\$\{{?{name}\b", prompt.example))) != 1:
            yield "prompt.example", f"${name} must occur once (the parser is made from this template), found {count}"
    if prompt.label_example and not prompt.label:
        yield "prompt.label_example", "shows examples to a prompt that is not there; add prompt.label"
    if prompt.label and not re.search(r"\$(start|\{start\})\s*$", prompt.label):
        yield "prompt.label", "must end with $start: the answer stands after it"
    behind = re.split(rf"\$(?:{answer}\b|\{{{answer}\}})", task.label_template.strip())[1:]
    if prompt.label and (behind != [""] or len(variables(task.label_template)) < 2):
        key = "prompt.label_example" if prompt.label_example else "prompt.example"
        yield key, f"must show a field and end with ${answer}, once, for prompt.label; add a label_example"


def parse_problems(task: Task) -> Problems:
    parse, written = task.parse, task.written_fields
    for key in ("min_words", "max_words", "evaluates", "solves", "gives", "span_of"):
        listed = getattr(parse, key)
        pairs = listed.items() if key in ("gives", "span_of") else ()
        for name in [*listed, *(other for _, other in pairs)]:
            if name not in written:
                yield f"parse.{key}", f"no field that the teacher writes: {name}; these are {', '.join(written)}"
        if any(name == other for name, other in pairs):
            yield f"parse.{key}", "a field is compared with itself; name another"
    for name, most in parse.max_words.items():
        if most < parse.min_words.get(name, 0):
            yield "parse.max_words", f"{name} may have at most {most} words and needs {parse.min_words[name]}"


@functools.cache
def variables(template: str) -> frozenset[str]:
    """The names of a template's variables."""
    return frozenset(string.Template(template).get_identifiers())


@functools.cache
def percent_form(template: str) -> str:
    return string.Template(template.replace("%", "%%")).substitute({v: f"%({v})s" for v in variables(template)})


def render(template: str, values: dict) -> str:
    """string.Template(template).substitute(values), ten times as fast: it is most of the checking of records."""
    return percent_form(template) % values
