"""Print what happened in a run, one line an iteration, and write the same rows to RUN/metrics.jsonl.

Reads the run records and metrics that the stages left in RUN, and the accepted training examples; loads no model.

    python report.py runs/demo
    python report.py runs/demo runs/mine

The column with the interval, and those of the groups, hold the headline number of metrics.json, which is their title.
distinct-2: different / all pairs of neighbouring words (gold/text.py) in the first W words of the iteration's train.jsonl, W
the same for all iterations of the run (the ratio falls with the length, so only equal lengths compare). tfidf, energy, ...:
mean over all that was scored of the score that selected; another student every iteration, or for tfidf more texts, so
compare with care.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from gold.text import words as words_of
from records import beside, fail, read_records, run_command, write_records

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def distinct_n(texts: list[list[str]], n: int) -> float:
    """Different n-grams / all n-grams within the texts (lists of words), 0 to 1; higher = more diverse (Li et al. 2016)."""
    grams = [gram for words in texts for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def first_words(texts: list[list[str]], budget: int) -> list[list[str]]:
    """The texts up to `budget` words in all; the last one may be cut."""
    taken = []
    for words in texts:
        taken.append(words[:budget])
        budget -= len(taken[-1])
    return taken


def load(path: Path) -> dict:
    """A JSON file that a stage wrote; {} when it is not there (that stage has not run)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} instead of an object")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        fail(f"{path}: not a readable JSON file: {error}; run the stage that writes it again with --overwrite")


def measured(folder: Path) -> dict:
    """The headline number of folder/metrics.json, under its name, with interval and groups; nothing when it is not there."""
    path = folder / "metrics.json"
    metrics = load(path)
    if not metrics:
        return {}
    try:
        name, found = metrics["metric"], metrics["overall"][metrics["metric"]]
        row = {"metric": name, name: found["value"], "low": found["low"], "high": found["high"], "n": metrics["n"]}
        for key, groups in metrics.items():
            if key.startswith("by_") and key != "by_label":
                row |= {f"{name}_{group}": m[name]["value"] for group, m in groups.items()}
        return row
    except (AttributeError, KeyError, TypeError):
        fail(f"{path}: not what evaluate.py writes now, perhaps of an earlier version; run it again with --overwrite")


def parts(folder: Path, name: str) -> list[Path]:
    """The file, or the shards of it that are there; duplicates between shards count here, as what was accepted."""
    path = folder / name
    return sorted(folder.glob(f"{path.stem}-?????-of-?????{path.suffix}")) or [path]


def rows_of(run: Path) -> list[dict]:
    """One row an iteration, then the final student, the untrained one and the teacher, as far as they are there."""
    folders = sorted(run.glob("iter-*"))
    if not folders:
        fail(f"{run}: no iter-00 in it, so no run; give the run folder that loop.sh wrote")
    words = {}
    for folder in folders:
        files = [path for path in parts(folder, "train.jsonl") if path.exists()]
        records = [record for path in files for _, record in read_records(path)]
        words[folder] = [words_of(str(r.get("source", ""))) for r in records]
    budget = min((sum(map(len, w)) for w in words.values() if w), default=0)
    rows = []
    for folder in folders:
        made = [
            load(beside(path, ".run.json"))
            for name in ("train.jsonl", "validation.jsonl")
            for path in parts(folder, name)
        ]
        stages = {name: load(folder / f"{name}.run.json") for name in ("student", "scored.jsonl", "predictions.jsonl")}
        counts = [m["counts"] for m in made if m]
        score = stages["scored.jsonl"].get("options", {}).get("score")
        rows.append({
            "iteration": folder.name,
            "attempted": sum(c["attempted"] for c in counts),
            "accepted": sum(c["accepted"] for c in counts),
            "distinct_2": round(distinct_n(first_words(words[folder], budget), 2), 4),
            "score": score,
            "mean_score": stages["scored.jsonl"].get("means", {}).get(score),
            **measured(folder),
            "seconds": {
                "generate": max((m.get("seconds", 0) for m in made), default=0),  # one start writes both, shards work at once
                "train": stages["student"].get("seconds", 0),
                "score": stages["scored.jsonl"].get("seconds", 0),
                "evaluate": stages["predictions.jsonl"].get("seconds", 0),
            },
        })  # fmt: skip
    others = [run / "final", *sorted(p.parent for p in (run / "final").glob("*/metrics.json"))]
    others += [run / "untrained", run / "teacher"]
    for folder in others:
        if found := measured(folder):
            seconds = {
                "generate": load(folder / "labelled.jsonl.run.json").get("seconds", 0),
                "train": load(folder / "student.run.json").get("seconds", 0),
                "evaluate": load(folder / "predictions.jsonl.run.json").get("seconds", 0),
            }
            rows.append({"iteration": str(folder.relative_to(run)), **found, "seconds": seconds})
    return rows


def print_table(run: Path, rows: list[dict]) -> None:
    metrics = sorted({row["metric"] for row in rows if "metric" in row})
    if len(metrics) > 1:
        fail(
            f"{run}: measured by {' and by '.join(metrics)}; run evaluate.py --overwrite with the same task file for all"
        )
    metric = metrics[0] if metrics else "metric"
    groups = sorted({key for row in rows for key in row if key.startswith(f"{metric}_")})
    stages = ("generate", "train", "score", "evaluate")
    scores = {row["score"] for row in rows if row.get("score")}
    score = scores.pop() if len(scores) == 1 else "score"
    head = ["", "attempted", "accepted", "distinct-2", score, f"{metric} [95 % interval]"]
    head += [g.removeprefix(f"{metric}_") for g in groups] + [f"{s} s" for s in stages]
    cells = [head]
    for row in rows:
        interval = f"{row[metric]:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if metric in row else "-"
        numbers = [
            (row.get("attempted"), ","),
            (row.get("accepted"), ","),
            (row.get("distinct_2"), ".3f"),
            (row.get("mean_score"), ".2f"),
        ]
        cells.append(
            [row["iteration"]]
            + ["-" if value is None else format(value, how) for value, how in numbers]
            + [interval]
            + [f"{row[g]:.3f}" if g in row else "-" for g in groups]
            + [f"{row['seconds'][s]:.1f}" if row["seconds"].get(s) else "-" for s in stages]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    print(f"{run}")
    for line in cells:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
        )
    total = sum(s for row in rows for s in row["seconds"].values())
    print(f"attempted and accepted count both splits; all stages: {total:,.0f} s\n")


@app.command()
def main(runs: Annotated[list[Path], typer.Argument(help="Run folders, as loop.sh writes them.")]) -> None:
    """Print the table of each run."""
    for run in runs:
        try:
            rows = rows_of(run)
            print_table(run, rows)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            problem = f"a run record or metrics.json in it is not what a stage writes: {type(error).__name__}: {error}"
            fail(f"{run}: {problem}; run that stage again with --overwrite")
        draft = run / "metrics.jsonl.tmp"
        with draft.open("w", encoding="utf-8") as file:
            write_records(file, rows)
        draft.replace(run / "metrics.jsonl")


if __name__ == "__main__":
    run_command(app)
