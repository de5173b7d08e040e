"""What feedback and --verify do to the teacher's texts, from the runs of bench/real_teacher.py.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.followed sst2

followed   the larger TF-IDF cosine of a text with the two feedback examples that its prompt showed; beside it, of texts
           whose prompts showed none, with two of the same label drawn at random
rejected   of what --verify rejects, how much a classifier of human examples would label otherwise too (rightly rejected)
"""

import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from bench.human import accuracy, classifier, load_human
from bench.prompts import WORK as CLASSIFIERS
from bench.real_teacher import ARMS, RESULTS, folder_of, round_0
from bench.stages import lines_of
from gold.examples import read_examples
from gold.jsonl import read_records
from gold.task import Task, load_task
from gold.templates import render
from gold.text import words


def cosines(task: Task, texts: Path, feedback: Path) -> tuple[list[float], list[float]]:
    """(of texts with feedback to what they were shown, of the others to two of the label drawn at random)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    written, shown = read_examples([texts], task), read_examples([feedback], task)
    vectorizer = TfidfVectorizer(analyzer=words).fit([e["source"] for e in [*written, *shown]])
    rows, columns = (vectorizer.transform([e["source"] for e in part]) for part in (written, shown))
    table, rng = (rows @ columns.T).toarray(), random.Random(0)
    found: tuple[list[float], list[float]] = ([], [])
    for row, e in zip(table, written, strict=True):
        alike = [k for k, f in enumerate(shown) if f[task.answer_field] == e[task.answer_field]]
        own = [k for k, f in enumerate(shown) if f["id"] in e["shots"]]
        chosen = own if e["feedback"] else rng.sample(alike, min(2, len(alike)))
        if chosen:
            found[not e["feedback"]].append(max(row[k] for k in chosen))
    return found


def rejected(task: Task, paths: list[Path]) -> list[dict]:
    """What --verify rejected, as examples."""
    rows = [r for path in paths for _, r in read_records(path) if r["reason"] == "label_disagrees"]
    return [r | {name: render(getattr(task.student, name), r) for name in ("source", "target")} for r in rows]


def main(task: Annotated[str, typer.Argument(help="A task with runs.")]) -> None:
    """Print both tables."""
    loaded = load_task(Path(f"prompts/{task}.toml"))
    data = load_human(loaded)
    judge = classifier(loaded, data, CLASSIFIERS / task / "classifier")
    runs = [line for line in lines_of(RESULTS) if line["task"] == task and line["arm"] in ARMS]
    for arm in dict.fromkeys(line["arm"] for line in runs):
        with_, without, thrown, kept = [], [], [], 0
        for run in (line for line in runs if line["arm"] == arm):
            root = folder_of(run)
            for i in (1, 2):
                feedback = root / arm / f"feedback-{i - 1}.jsonl"
                if feedback.exists() and feedback.stat().st_size:
                    pair = cosines(loaded, root / arm / f"iter-{i:02d}" / "train.jsonl", feedback)
                    with_, without = with_ + pair[0], without + pair[1]
            if "verify" in ARMS[arm][1]:
                folders = [round_0(root, arm), *(root / arm / f"iter-{i:02d}" for i in (1, 2))]
                thrown += rejected(loaded, [p for f in folders for p in f.glob("*.rejected.jsonl")])
                kept += sum(1 for f in folders for p in f.glob("[tv]*n.jsonl") for _ in read_records(p))
        if with_:
            print(f"{arm:<20}followed: {statistics.mean(with_):.3f}, without feedback {statistics.mean(without):.3f}")
        if thrown:
            right, labels = 1 - accuracy(judge, thrown), Counter(e[loaded.answer_field] for e in thrown)
            print(
                f"{arm:<20}rejected by --verify: {len(thrown):,} beside {kept:,} accepted, {right:.2f} rightly; {dict(labels)}"
            )


if __name__ == "__main__":
    typer.run(main)
