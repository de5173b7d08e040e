"""Print what happened in a run, one line an iteration, and write the same rows to RUN/metrics.jsonl.

Reads the run records and metrics that the stages left in RUN, and the accepted training examples; loads no model.

    python report.py runs/demo
    python report.py runs/demo runs/mine

The column with the interval, and those of the groups, hold the headline number of metrics.json, which is their title.
distinct-2: different / all pairs of neighbouring words in the first W words of the iteration's train.jsonl, W the same
for all iterations of the run (the ratio falls with the length, so only equal lengths compare). energy, tfidf, ...: mean
over all that was scored of the score that selected; the student differs from iteration to iteration, so compare with
care. tokens: what the teacher computed for an accepted example, prompt tokens that were not in the prefix cache and new
ones, rejected attempts included.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gold.command import fail, new_app, run_command
from gold.jsonl import read_records, write_file
from gold.runs import beside
from gold.text import words

STAGES = {"generate": "train.jsonl", "train": "student", "score": "scored.jsonl", "evaluate": "predictions.jsonl"}

app = new_app()


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
        draft = run / "metrics.jsonl.draft"
        write_file(draft, rows)
        draft.replace(run / "metrics.jsonl")


def rows_of(run: Path) -> list[dict]:
    """One row an iteration, then the final student, the untrained one and the teacher, as far as they are there."""
    folders = sorted(run.glob("iter-*"))
    if not folders:
        fail(f"{run}: no iter-00 in it, so no run; give the run folder that loop.sh wrote")
    texts = {folder: training_words(folder) for folder in folders}
    budget = min((sum(map(len, t)) for t in texts.values() if t), default=0)
    rows = []
    for folder in folders:
        paths = [path for name in ("train.jsonl", "validation.jsonl") for path in shards(folder, name)]
        records = [found for path in paths if (found := load(beside(path, ".run.json")))]
        counts = [record["counts"] for record in records]
        scored = load(folder / "scored.jsonl.run.json")
        score = scored.get("options", {}).get("score")
        total = {name: sum(c[name] for c in counts) for name in ("attempted", "accepted")}
        computed = sum(c.get("computed_tokens", 0) for c in counts)  # runs of earlier builds have none
        rows.append({
            "iteration": folder.name,
            "attempted": total["attempted"],
            "accepted": total["accepted"],
            "tokens": round(computed / total["accepted"], 1) if computed else None,
            "distinct_2": round(distinct_n(first_words(texts[folder], budget), 2), 4),
            "score": score,
            "mean_score": scored.get("means", {}).get(score),
            **measured(folder),
            # One start writes both splits, and shards work at the same time
            "seconds": seconds_of(folder) | {"generate": max((record["seconds"] for record in records), default=0)},
        })  # fmt: skip
    others = [run / "final", *sorted(path.parent for path in (run / "final").glob("*/metrics.json"))]
    for folder in [*others, run / "untrained", run / "teacher"]:
        if found := measured(folder):
            labelled = load(folder / "labelled.jsonl.run.json").get("seconds", 0)
            rows.append(
                {
                    "iteration": str(folder.relative_to(run)),
                    **found,
                    "seconds": seconds_of(folder) | {"generate": labelled},
                }
            )
    return rows


def shards(folder: Path, name: str) -> list[Path]:
    """The file, or the shards of it that are there; duplicates between shards count here, as what was accepted."""
    path = folder / name
    return sorted(folder.glob(f"{path.stem}-?????-of-?????{path.suffix}")) or [path]


def training_words(folder: Path) -> list[list[str]]:
    files = [path for path in shards(folder, "train.jsonl") if path.exists()]
    return [words(str(record.get("source", ""))) for path in files for _, record in read_records(path)]


def distinct_n(texts: list[list[str]], n: int) -> float:
    """Different n-grams / all n-grams within the texts (lists of words), 0 to 1; higher = more diverse (Li et al.
    2016)."""
    grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def first_words(texts: list[list[str]], budget: int) -> list[list[str]]:
    """The texts up to `budget` words in all; the last one may be cut."""
    taken = []
    for text in texts:
        taken.append(text[:budget])
        budget -= len(taken[-1])
    return taken


def load(path: Path) -> dict:
    """A JSON file that a stage wrote; {} where it is not there (that stage has not run)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} instead of an object")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        fail(f"{path}: not a readable JSON file: {error}; run the stage that writes it again with --overwrite")


def seconds_of(folder: Path) -> dict[str, float]:
    return {stage: load(folder / f"{output}.run.json").get("seconds", 0) for stage, output in STAGES.items()}


def measured(folder: Path) -> dict[str, Any]:
    """The headline number of folder/metrics.json, under its name, with interval and groups; nothing where it is not
    there."""
    metrics = load(folder / "metrics.json")
    if not metrics:
        return {}
    try:
        name, found = metrics["metric"], metrics["overall"][metrics["metric"]]
        row = {"metric": name, name: found["value"], "low": found["low"], "high": found["high"], "n": metrics["n"]}
        for key, groups in metrics.items():
            if key.startswith("by_") and key != "by_label":
                row |= {f"{name}_{group}": m[name]["value"] for group, m in groups.items()}
        return row
    except (AttributeError, LookupError, TypeError):
        fail(f"{folder / 'metrics.json'}: not what evaluate.py writes; run it again with --overwrite")


def print_table(run: Path, rows: list[dict]) -> None:
    metrics = sorted({row["metric"] for row in rows if "metric" in row})
    if len(metrics) > 1:
        fail(
            f"{run}: measured by {' and by '.join(metrics)}; run evaluate.py --overwrite with the same task file for all"
        )
    metric = metrics[0] if metrics else "metric"
    groups = sorted({key for row in rows for key in row if key.startswith(f"{metric}_")})
    scores = {row["score"] for row in rows if row.get("score")}
    formats = {"attempted": ",", "accepted": ",", "tokens": ".0f", "distinct_2": ".3f", "mean_score": ".2f"}
    head = ["", "attempted", "accepted", "tokens", "distinct-2", scores.pop() if len(scores) == 1 else "score"]
    head += [f"{metric} [95 % interval]", *(g.removeprefix(f"{metric}_") for g in groups), *(f"{s} s" for s in STAGES)]
    cells = [head]
    for row in rows:
        interval = f"{row[metric]:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if metric in row else "-"
        cells.append(
            [row["iteration"], *("-" if row.get(k) is None else format(row[k], how) for k, how in formats.items()), interval]
            + [f"{row[g]:.3f}" if g in row else "-" for g in groups]
            + [f"{row['seconds'][s]:.1f}" if row["seconds"][s] else "-" for s in STAGES]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    print(run)
    for first, *line in cells:
        print(
            "  ".join(
                [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line, widths[1:], strict=True))]
            )
        )
    total = sum(s for row in rows for s in row["seconds"].values())
    print(f"attempted, accepted and tokens are those of both splits; all stages: {total:,.0f} s\n")


if __name__ == "__main__":
    run_command(app)
