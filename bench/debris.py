"""What the checks `debris`, `echo` and `no_match` find, beside 400 texts of LLMs that were read by eye.

    python -m bench.debris                       # SmolLM2's texts
    python -m bench.debris --datasets DIR        # those of DIR/llm_kinit_agnews, DIR/llm_fusegen_imdb ... too

bench/results/debris.jsonl has a text a line: SmolLM2's as it is, one of a public data set as its hash; `mark` says what a
reader who did not know the checks took it for: fine (an example, good or bad), request (talk of the task), echo (of the
prompt), several (examples in one), chat (openings, closings, template tokens), slot (left open).
"""

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from gold.parsing import check_fields
from gold.task import load_task

MARKS = Path("bench/results/debris.jsonl")
CHECKS = ("debris", "echo", "no_match")
TASK_OF = {"sst2": "sst2", "trec": "trec", "imdb": "sst2", "yelp": "sst2", "sst5": "sst2"}  # by a word of the source


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def texts_of(line: dict, datasets: Path | None) -> str | None:
    """The text of a line; None where it is in a data set that is not here."""
    if "text" in line or datasets is None:
        return line.get("text")
    with gzip.open(datasets / line["source"], "rt", encoding="utf-8") as file:
        return next(t for t in (json.loads(row)["text"] for row in file) if digest(t) == line["sha256"])


def main(datasets: Annotated[Path | None, typer.Option(help="Folder of the public data sets.")] = None) -> None:
    """Print a table: marks by what the checks said."""
    found: dict[str, Counter] = {"SmolLM2": Counter(), "other LLMs": Counter()}
    for line in map(json.loads, MARKS.read_text(encoding="utf-8").splitlines()):
        if (text := texts_of(line, datasets)) is None:
            continue
        name = next((task for word, task in TASK_OF.items() if word in line["source"]), "ag_news")
        reason = check_fields(load_task(Path(f"prompts/{name}.toml")), {"text": text})
        group = "SmolLM2" if line["source"].startswith("SmolLM2") else "other LLMs"
        found[group][line["mark"], reason in CHECKS] += 1
        if (reason in CHECKS) != (line["mark"] != "fine"):
            print(f"{'missed' if reason not in CHECKS else 'false alarm':<12}{line['mark']:<9}{text[:90]!r}")
    for group, counts in found.items():
        print(f"\n{group}: mark, rejected by {', '.join(CHECKS)} / all")
        for mark in sorted({mark for mark, _ in counts}):
            print(f"  {mark:<9}{counts[mark, True]:>4} / {counts[mark, True] + counts[mark, False]}")
        rejected = sum(n for (_, hit), n in counts.items() if hit)
        bad = sum(n for (mark, _), n in counts.items() if mark != "fine")
        right = sum(n for (mark, hit), n in counts.items() if hit and mark != "fine")
        print(f"  precision {right} / {rejected}, recall {right} / {bad}")


if __name__ == "__main__":
    typer.run(main)
