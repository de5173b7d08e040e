"""Human data, split once by a hash of the text: no choice is made on what is reported at the end.

human   60 %: classifiers, and students of human data
dev     15 %: every choice
report  25 %: read once, at the end

Where a data set has a training and a test side (SST-2: its dev set), report comes from the test side alone.

    data = load_human(task)                                   data.human, data.dev, data.report: examples
    judge = classifier(task, data, folder)                    a student of human examples: tells label noise
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bench.stages import train
from gold.examples import example_key, read_examples
from gold.jsonl import write_file
from gold.metrics import of_example
from gold.predict import predict
from gold.student import Student, lengths_of, load_trained
from gold.task import Task

PARTS = {"human": 0.6, "dev": 0.75, "report": 1.0}  # part: upper end of the hash, 0 to 1
BASE, RATE = Path("data/models/all-minilm-l6-v2"), 1.5e-4
JUDGE = {"rows": 4000, "steps": 200}


@dataclass
class Human:
    human: list[dict]
    dev: list[dict]
    report: list[dict]


def part_of(text: str) -> str:
    share = hashlib.sha256(" ".join(text.split()).encode()).digest()[0] / 256
    return next(name for name, end in PARTS.items() if share < end)


def load_human(task: Task) -> Human:
    """The parts of data/TASK/{train,test}.jsonl, as data/prepare.py writes them. A text stands in one part, once."""
    test, train_side = Path("data") / task.name / "test.jsonl", Path("data") / task.name / "train.jsonl"
    parts, known = Human([], [], []), set()
    for path in filter(Path.exists, (test, train_side)):
        for e in read_examples([path], task):
            part, key = part_of(e["source"]), example_key(task, e)
            if key not in known and not (part == "report" and path == train_side):
                getattr(parts, part).append(e)
                known.add(key)
    return parts


def classifier(task: Task, data: Human, folder: Path) -> Student:
    """A student (BASE) of human examples, trained once: where it disagrees with a generated label, that is taken for noise."""
    file = folder / "human.jsonl"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, data.human[: JUDGE["rows"]])
    train(task.path, BASE, [file], folder / "student", JUDGE["steps"], 0, {}, learning_rate=RATE)
    return measured(task, folder / "student")


def measured(task: Task, folder: Path) -> Student:
    return load_trained(str(folder), task, lengths_of(str(folder)), "float32")


def accuracy(student: Student, examples: list[dict]) -> float:
    """Share of the examples whose label the student gives."""
    answers = predict(student, examples, 64)
    right = [of_example(student.task, a, e)["correct"] for a, e in zip(answers, examples, strict=True)]
    return sum(right) / len(right)
