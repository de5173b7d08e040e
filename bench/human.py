"""Human data, split once by a hash of the text: no choice is made on what is reported at the end.

human   60 %: classifiers, and students of human data
dev     15 %: every choice
report  25 %: read once, at the end
"""

import hashlib
from pathlib import Path

from gold.examples import read_examples
from gold.jsonl import write_file
from gold.task import Task

PARTS = {"human": 0.6, "dev": 0.75, "report": 1.0}  # part: upper end of the hash, 0 to 1


def part_of(text: str) -> str:
    share = hashlib.sha256(" ".join(text.split()).encode()).digest()[0] / 256
    return next(name for name, end in PARTS.items() if share < end)


def split_human(files: list[Path], task: Task, folder: Path) -> dict[str, Path]:
    """Write human.jsonl, dev.jsonl and report.jsonl of a data set (as data/prepare.py writes it); where they stand."""
    examples = read_examples(files, task)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in PARTS}
    for name, path in paths.items():
        write_file(path, [e for e in examples if part_of(e["source"]) == name])
    return paths
