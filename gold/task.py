"""The task file: what the teacher is asked, how its answer is parsed, what the student reads and must write.

task = load_task(Path("prompts/reviews.toml"))     strict: unknown keys and missing variables are refused
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from gold.command import fail
from gold.task_checks import problems
from gold.templates import mark_before_answer, render_known, variables, without_attributes

WITHOUT_LINE_ENDS = AfterValidator(lambda text: text.strip("\n"))
Text = Annotated[str, Field(pattern=r"\S"), WITHOUT_LINE_ENDS]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]  # as string.Template has names
Values = Annotated[  # of an attribute: for all, or a list by label
    Annotated[list[Text], Tag("list")] | Annotated[dict[str, list[Text]], Tag("table")],
    Discriminator(lambda v: "table" if isinstance(v, dict) else "list"),
]
Words = dict[str, Annotated[int, Field(gt=0)]]  # a number of words by field


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Prompt(Table):
    """Templates. `example` renders one shot, begins the answer and, read backwards, parses it."""

    system: Annotated[str, WITHOUT_LINE_ENDS] = ""
    train: Text
    validation: Text
    feedback: Text | None = None
    rewrite: Text | None = None
    example: Text
    label: Text | None = None
    label_example: Text | None = None  # ends in the answer
    unlabelled: Text | None = None  # in place of `train` where texts without answers are asked for
    attributes: dict[str, Values] = {}

    @property
    def between(self) -> str:
        """What stands between two examples: a line's end in a list, else a blank line."""
        return "\n" if re.search(r"\$\{?shots\}?\n\$\{?start", without_attributes(self.train)) else "\n\n"

    def values_for(self, label: str | None) -> dict[str, list[str]]:
        """The values that each attribute may have in a prompt for the label."""
        return {name: v[label] if isinstance(v, dict) else v for name, v in self.attributes.items()}


class Parse(Table):
    """What a completion must be besides its form: see gold/parsing.py."""

    stop: list[Annotated[str, Field(min_length=1)]] = []
    min_words: Words = {}
    max_words: Words = {}
    evaluates: list[str] = []
    solves: list[str] = []
    gives: dict[str, str] = {}
    span_of: dict[str, str] = {}
    max_overlap: Annotated[float, Field(gt=0, le=1)] = 1.0


class Lesson(Table):
    source: Text
    target: Text


class Student(Lesson):
    rationale: Lesson | None = None  # a second row for each example, whose target is the reasons


class Task(Table):
    """One task file, checked. `labels` is empty for text2text; its order fixes the class ids of an encoder student."""

    path: Annotated[Path, Field(alias="the task file")]  # no key of the file
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]  # it begins every id
    version: int = 1  # the user's own count; a run record has the hash of the file
    description: Text
    kind: Literal["classification", "text2text"]
    metric: str
    fields: Annotated[list[Name], Field(min_length=1)]  # what the teacher writes, in order
    answer_field: Name  # what the student must produce
    rationale_field: Name | None = None  # the teacher's reasons: no student reads them, and people's records have none
    seed_examples: Path
    labels: dict[str, Text] = {}  # name: definition shown to the teacher
    prompt: Prompt
    completion: Prompt | None = None  # the form for base models and small ones: a list of examples under a heading
    parse: Parse = Parse()
    student: Student

    @property
    def names(self) -> list[str | None]:
        """The labels; [None] for text2text, whose attempts ask for none."""
        return list(self.labels) or [None]

    @property
    def shown_fields(self) -> list[str]:
        """What stands first in a record of any stage: the text, the reasons, the answer."""
        return ["id", *self.fields, *filter(None, [self.rationale_field]), self.answer_field]

    @property
    def written_fields(self) -> list[str]:
        """The fields that the teacher writes: for text2text the answer too; a label is given to it."""
        return self.shown_fields[1 : -1 if self.labels else None]

    @property
    def read_fields(self) -> list[str]:
        """The fields that the student reads."""
        return [name for name in self.fields if name in variables(self.student.source)]

    @property
    def label_template(self) -> str:
        """Shows a record with its answer at the end, where the teacher labels."""
        return self.prompt.label_example or self.prompt.example

    @property
    def is_list(self) -> bool:
        """Whether the heading alone tells the label: then all examples that a prompt shows have the label asked for."""
        return bool(self.labels) and self.answer_field not in variables(self.prompt.example)

    @property
    def passage_template(self) -> str:
        """Shows a text of a corpus, which has no answer: as an item of a list, else as the student reads it."""
        return self.prompt.example if self.is_list else self.student.source

    def in_form(self, form: str) -> "Task":
        """The task as a teacher gets it. completion: [completion] in place of [prompt], where the file has one; what stands
        between two of its examples ends the one that the teacher writes."""
        if form == "chat" or self.completion is None:
            return self
        kept = {"system": "", "feedback": None, "label_example": self.label_template}
        prompt = self.prompt.model_copy(update=kept | self.completion.model_dump(exclude_unset=True))
        parse = self.parse.model_copy(update={"stop": [prompt.between]})
        return self.model_copy(update={"prompt": prompt, "parse": parse, "completion": None})

    def without_answers(self) -> "Task":
        """The task of generate.py --unlabelled: no label is asked for, and no answer is shown or written. That is how
        Generation-Distillation gets its texts (Melas-Kyriazi et al. 2020, arXiv 2002.00733)."""
        answer, parse, changed = self.answer_field, self.parse, {}
        for key, form in (("prompt", self.prompt), ("completion", self.completion)):
            if form is None:
                continue
            if form.unlabelled is None:
                fail(f"{self.path}: {key}.unlabelled: missing: --unlabelled asks with it; add it (docs/tasks.md)")
            lines = form.example.split("\n")
            for used in map(variables, lines):
                if answer in used and used & {*self.fields}:
                    cure = f"give ${answer} a line of its own: --unlabelled shows all lines but that"
                    fail(f"{self.path}: {key}.example: ${answer} stands on one line with another field; {cure}")
            example = "\n".join(line for line in lines if answer not in variables(line)).strip("\n")
            changed[key] = form.model_copy(update={"train": form.unlabelled, "feedback": None, "example": example})
        checks = {key: [name for name in getattr(parse, key) if name != answer] for key in ("evaluates", "solves")}
        for key in ("gives", "span_of"):
            checks[key] = {name: other for name, other in getattr(parse, key).items() if answer not in (name, other)}
        return self.model_copy(update=changed | {"labels": {}, "parse": parse.model_copy(update=checks)})

    @property
    def targets(self) -> list[str]:
        """What the student answers for each label, in the order of the labels."""
        return [self.as_written(name) for name in self.labels]

    @property
    def target_has_reasons(self) -> bool:
        """Whether the student writes reasons before every answer."""
        return self.rationale_field in variables(self.student.target)

    @property
    def teaches_reasons(self) -> bool:
        """Whether it learns them at all: in its target, or as a second task."""
        return self.target_has_reasons or self.student.rationale is not None

    def as_written(self, answer: str) -> str:
        """An answer as answer_of reads it in what the student writes."""
        return self.answer_of(render_known(self.student.target, {self.answer_field: answer}))

    def answer_of(self, text: str) -> str:
        """What counts of what the student wrote: all of it, or with reasons in the target what stands behind their mark, the
        last one; "" where it wrote none."""
        mark = mark_before_answer(self.student.target, self.rationale_field)
        return ["", *mark.split(text)[1:]][-1].strip() if mark else text


def load_task(path: Path) -> Task:
    """Read and check `prompts/<task>.toml`. Errors name file and key, and end the stage with exit code 1."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        if isinstance(data.get("seed_examples"), str):
            data["seed_examples"] = path.parent / data["seed_examples"]
        task = Task.model_validate(data | {"the task file": path})
    except FileNotFoundError:
        fail(f"{path}: no such task file; the ones here: {', '.join(map(str, sorted(Path('prompts').glob('*.toml'))))}")
    except ValidationError as error:
        # A misspelt key goes before the one that it makes missing
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        told = {"missing": "missing; add it", "extra_forbidden": "unknown key"}
        problem = told.get(first["type"], f"{first['msg']}; found {first['input']!r}")
        fail(f"{path}: {'.'.join(map(str, first['loc']))}: {problem}; docs/tasks.md lists the keys")
    except IsADirectoryError:
        fail(f"{path}: is a folder; give a task file, such as prompts/reviews.toml")
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        fail(f"{path}: not a readable TOML file: {error}")
    for key, problem in problems(task):
        fail(f"{path}: {key}: {problem}")
    return task
