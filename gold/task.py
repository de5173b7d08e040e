"""The task file: what the teacher is asked, how its answer is parsed, what the student reads and must write.

task = load_task(Path("prompts/reviews.toml"))     strict: unknown keys and missing variables are refused
render(task.student.source, record)                a template with a record's fields
is_correct(task, prediction, record)               by the metric of the task
"""

import functools
import re
import string
import tomllib
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gold.command import fail
from gold.equations import equations_agree
from gold.text import exact_form

METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "text2text": ("exact_match", "equation_value", "squad", "rouge_l", "optimum", "chrf"),
}
RESERVED = {  # what records hold besides the task's fields
    *"id source target task iteration split shots feedback sampling_seed finish_reason completion reason".split(),
    *"prediction correct f1 rouge_l nll msp entropy margin embedding tfidf error hard_negative random score rank".split(),
    *"teacher_label label_probs".split(),
}
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Words = dict[str, Annotated[int, Field(gt=0)]]  # a number of words by field


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Prompt(Table):
    """Templates. `example` renders one shot, begins the answer and, read backwards, parses it; `label_example` ends in
    the answer."""

    system: str = ""
    train: Text
    validation: Text
    feedback: Text | None = None
    example: Text
    label: Text | None = None
    label_example: Text | None = None


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

    path: Path
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]  # it begins every id
    version: int
    description: Text
    kind: Literal["classification", "text2text"]
    metric: str
    fields: Annotated[list[str], Field(min_length=1)]  # what the teacher writes, in order
    answer_field: str  # what the student must produce
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
    for table in ("prompt", "student"):
        if isinstance(data.get(table), dict):
            data[table] = {k: v.strip("\n") if isinstance(v, str) else v for k, v in data[table].items()}
    try:
        task = Task.model_validate({**data, "path": path})
    except ValidationError as error:
        fail(f"{path}: {schema_problem(error)}")
    check_names(task)
    check_labels(task)
    check_templates(task)
    check_parse(task)
    return task


def schema_problem(error: ValidationError) -> str:
    """`key: problem; cure` of the first thing that the schema refuses."""
    first = error.errors()[0]
    *tables, key = map(str, first["loc"])
    if first["type"] == "missing":
        return f"{'.'.join([*tables, key])}: missing; add it (docs/tasks.md)"
    if first["type"] == "extra_forbidden":
        known = {"prompt": Prompt, "parse": Parse, "student": Student}.get(
            tables[0] if tables else "", Task
        ).model_fields
        return (
            f"{'.'.join([*tables, key])}: unknown key; the keys here are {', '.join(k for k in known if k != 'path')}"
        )
    return f"{'.'.join([*tables, key])}: {first['msg'].lower()}; found {first['input']!r}"


def bad(task: Task, key: str, problem: str) -> NoReturn:
    fail(f"{task.path}: {key}: {problem}")


def check_names(task: Task) -> None:
    names, answer = task.fields, task.answer_field
    if task.metric not in METRICS[task.kind]:
        bad(task, "metric", f"must be one of {', '.join(METRICS[task.kind])} for {task.kind}, found {task.metric!r}")
    if not all(name.isidentifier() for name in names):
        bad(task, "fields", f'must be a list of names such as ["premise", "hypothesis"], found {names!r}')
    for name in [*names, answer]:
        if name in RESERVED or name.startswith("energy"):
            bad(task, "fields", f"the name {name!r} is one that the stages write; choose another")
    if not answer.isidentifier() or answer in names or f"{answer}s" in names or len(set(names)) < len(names):
        problem = (
            f"must be a name of its own beside {names}, each once, without a field {answer}s, which lists right answers"
        )
        bad(task, "answer_field", f"{problem}; found {answer!r}")


def check_labels(task: Task) -> None:
    if task.kind == "classification" and len(task.labels) < 2:
        bad(task, "labels", f"a classification task needs two or more, found {len(task.labels)}")
    if task.kind == "text2text" and task.labels:
        bad(task, "labels", 'a text2text task has none; delete the table or set kind = "classification"')
    if len({exact_form(name) for name in task.labels} - {""}) < len(task.labels):
        bad(
            task,
            "labels",
            "names must differ in more than capitals and blanks, and not be empty: predictions are compared so",
        )


def check_templates(task: Task) -> None:
    """Variables that a template may use, and those that it must use; what a schema cannot say."""
    names, answer = set(task.fields), task.answer_field
    labels = {"labels"} if task.labels else set()
    asked = labels | ({"label", "definition"} if task.labels else set()) | {"shots", "start"}
    rules = {  # template: (variables that it may have, variables that it must have)
        "prompt.system": (set(), set()),
        "prompt.train": (asked, {"shots", "start"}),
        "prompt.validation": (asked, {"shots", "start"}),
        "prompt.feedback": (asked | {"feedback", "report"}, {"shots", "feedback", "start"}),
        "prompt.example": ({*names, answer}, {*names, answer}),
        "prompt.label": (labels | {"shots", "start"}, {"shots", "start"}),
        "prompt.label_example": ({*names, answer}, {answer}),
        "student.source": (names, set()),
        "student.target": ({answer}, {answer}),
    }
    for key, (allowed, needed) in rules.items():
        table, _, name = key.partition(".")
        text = getattr(getattr(task, table), name)
        if text is None:
            continue
        if not string.Template(text).is_valid():
            bad(task, key, "a lone $; write $$ for a dollar sign")
        used = variables(text)
        if used - allowed:
            known = ", ".join(f"${v}" for v in sorted(allowed))
            bad(task, key, f"unknown variable ${min(used - allowed)}; known here: {known}")
        if needed - used:
            bad(task, key, f"the variable ${min(needed - used)} is missing; add it")
    if not variables(task.student.source):
        bad(task, "student.source", f"shows the student nothing; use {' or '.join(f'${n}' for n in task.fields)}")
    for name in [*task.fields, answer]:
        if (count := len(re.findall(rf"\$\{{?{name}\b", task.prompt.example))) != 1:
            bad(
                task,
                "prompt.example",
                f"${name} must occur once (the parser is made from this template), found {count}",
            )
    if task.prompt.label_example and not task.prompt.label:
        bad(task, "prompt.label_example", "shows examples to a prompt that is not there; add prompt.label")
    if task.prompt.label:
        if not re.search(r"\$(start|\{start\})\s*$", task.prompt.label):
            bad(task, "prompt.label", "must end with $start: the answer stands after it")
        mark = re.findall(rf"\$(?:{answer}\b|\{{{answer}\}})", task.label_template)
        if (
            len(mark) != 1
            or not task.label_template.strip().endswith(mark[0])
            or len(variables(task.label_template)) < 2
        ):
            key = "label_example" if task.prompt.label_example else "example"
            bad(
                task,
                f"prompt.{key}",
                f"must show a field and end with ${answer}, once, for prompt.label; add a label_example",
            )


def check_parse(task: Task) -> None:
    parse, written = task.parse, task.written_fields
    for key in ("min_words", "max_words"):
        for name in getattr(parse, key):
            if name not in [*task.fields, task.answer_field]:
                bad(
                    task,
                    f"parse.{key}",
                    f"no such field: {name}; the fields are {', '.join([*task.fields, task.answer_field])}",
                )
    for name, most in parse.max_words.items():
        if most < parse.min_words.get(name, 0):
            bad(task, "parse.max_words", f"{name} may have at most {most} words and needs {parse.min_words[name]}")
    listed = {"evaluates": parse.evaluates, "solves": parse.solves}
    listed |= {key: [*pairs, *pairs.values()] for key, pairs in (("gives", parse.gives), ("span_of", parse.span_of))}
    for key, names in listed.items():
        for name in names:
            if name not in written:
                bad(task, f"parse.{key}", f"no field that the teacher writes: {name}; these are {', '.join(written)}")
    for key, pairs in (("gives", parse.gives), ("span_of", parse.span_of)):
        if any(name == other for name, other in pairs.items()):
            bad(task, f"parse.{key}", "a field is compared with itself; name another")


# ---------------------------------------------------------------------------------------------------------------------
# Templates


@functools.cache
def variables(template: str) -> frozenset[str]:
    """The names of a template's variables."""
    return frozenset(string.Template(template).get_identifiers())


@functools.cache
def percent_form(template: str) -> str:
    parts, end = [], 0
    for match in string.Template.pattern.finditer(template):
        name = match["named"] or match["braced"]
        parts += [template[end : match.start()].replace("%", "%%"), f"%({name})s" if name else "$"]
        end = match.end()
    return "".join(parts) + template[end:].replace("%", "%%")


def render(template: str, values: dict) -> str:
    """string.Template(template).substitute(values), ten times as fast: of a million records it is most of the
    checking."""
    return percent_form(template) % values


# ---------------------------------------------------------------------------------------------------------------------
# Correctness: one definition, for every stage


def golds_of(task: Task, record: dict) -> list[str]:
    """Every right answer of a record, as the student is to write it: its target and, where there is the list
    `<answer_field>s`, the targets of those."""
    others = record.get(f"{task.answer_field}s", [])
    targets = [render(task.student.target, {task.answer_field: gold}) for gold in others]
    return list(dict.fromkeys([record["target"], *targets]))


def is_correct(task: Task, prediction: str, record: dict) -> bool:
    """Whether a prediction is one of a record's right answers, by the task's metric.

    equation_value and optimum: equal in value; squad: exact match as SQuAD's official script has it; the others: equal
    when stripped, lower-cased and composed (NFC). An empty prediction is never right.
    """
    golds = golds_of(task, record)
    if task.metric == "squad":
        from gold.metrics import squad_scores

        return squad_scores(prediction, golds)[0] == 1
    if task.metric == "optimum":
        from gold.programmes import optima_agree

        return any(optima_agree(prediction, gold) for gold in golds)
    if task.metric == "equation_value":
        return any(equations_agree(prediction, gold) for gold in golds)
    return exact_form(prediction) in map(exact_form, golds)
