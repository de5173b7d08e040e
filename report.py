"""Print what happened in a run, one line an iteration, and write the same rows to RUN/metrics.jsonl.

Reads the run records, metrics and accepted training examples in RUN; loads no model.

    python report.py runs/demo
    python report.py runs/demo --html               # and one page with figures and all records: runs/demo/report.html
    python report.py runs/demo runs/zerogen --html  # the runs side by side, in one page: runs/demo/comparison.html

The columns with the interval and of the groups have the headline number of metrics.json; its name is their title.
tokens: what the teacher computed for an accepted example, rejected attempts included: prompt tokens that were not in the
prefix cache, and new ones. distinct-2: different / all pairs of neighbouring words in the first W words of train.jsonl;
the ratio falls with the length, so all iterations of a run have the same W. energy, tfidf, ...: mean of the score that
selected, over all that was scored; each iteration has another student, so compare with care. The last line counts the
training examples whose text, as duplicates are told, stands in a test set too (`repeats_of_test` in the rows).
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from gold.command import fail, files, new_app, run_command
from gold.disk import beside, read_json
from gold.gather import Gathered, gather, shards, training_files
from gold.jsonl import read_records, write_file
from gold.text import distinct_2, text_key, words

TEACHERS = (
    "train.jsonl",
    "validation.jsonl",
    "labelled.jsonl",
    "annotated.jsonl",
)  # files that the teacher's work is in
STAGES = {  # the outputs of the other stages
    "train": ["student"], "score": ["scored.jsonl", "kept.jsonl", "criticised.jsonl", "texts.jsonl"],
    "evaluate": ["predictions.jsonl"],
}  # fmt: skip

app = new_app()


@app.command()
def main(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, as loop.sh writes them.")],
    html: Annotated[
        bool, files(help="Also a page: RUN/report.html; of several runs, comparison.html in the first.")
    ] = False,
) -> None:
    """Print the table of each run."""
    try:
        gathered = [report(run, html) for run in runs]
        if html:
            from gold.page import write_page  # here: its libraries take a second

            page = runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")
            write_page(page, gathered)
            print(f"the page: {page}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"a run record or metrics.json is not what a stage writes: {type(error).__name__}: {error}"
        fail(f"{', '.join(map(str, runs))}: {problem}; run that stage again with --overwrite")


def report(run: Path, html: bool) -> Gathered | None:
    """Print the table of a run and write its rows; what the page shows of it."""
    rows = rows_of(run)
    print_table(run, rows)
    gathered, draft = gather(run, rows) if html else None, run / "metrics.jsonl.draft"
    write_file(draft, rows)
    draft.replace(run / "metrics.jsonl")
    return gathered


def rows_of(run: Path) -> list[dict]:
    """One row an iteration, then the final student, the untrained one and the teacher, as far as they are there."""
    folders = sorted(run.glob("iter-*"))
    if not folders:
        problem = "no iter-00 in it, so no run" if run.exists() else "no such folder"
        fail(f"{run}: {problem}; give the run folder that loop.sh wrote, such as runs/demo")
    texts = {folder: training_texts(folder) for folder in folders}
    tested = {text_key(str(r.get("source"))) for path in test_predictions(run) for _, r in read_records(path)}
    budget = min((sum(len(words(text)) for text in t) for t in texts.values() if t), default=0)
    rows = []
    for folder in folders:
        paths = [path for name in TEACHERS for path in shards(folder, name)]
        records = [record for path in paths if (record := read_json(beside(path, ".run.json")))]
        counts = [record["counts"] for record in records]
        attempted, computed = (sum(c.get(name, 0) for c in counts) for name in ("attempted", "computed_tokens"))
        attempted += read_json(folder / "annotated.jsonl.run.json").get("counts", {}).get("records", 0)
        accepted = sum(c.get("accepted", 0) for c in counts)
        if any(not path.name.startswith("train") for path in training_files(folder)):  # labelled, filtered, annotated
            accepted += len(texts[folder]) - accepted_at(folder, "train.jsonl")
        scored = read_json(folder / "scored.jsonl.run.json")
        score = scored.get("options", {}).get("score")
        rows.append({
            "iteration": folder.name,
            "attempted": attempted,
            "accepted": accepted,
            "tokens": round(computed / accepted, 1) if computed and accepted else None,
            "distinct_2": round(distinct_2(texts[folder], budget), 4),
            "repeats_of_test": sum(text_key(text) in tested for text in texts[folder]) if tested else None,
            "score": score,
            "mean_score": scored.get("means", {}).get(score),
            **measured(folder),
            "seconds": seconds_of(folder, teacher_seconds(folder)),
        })  # fmt: skip
    others = [run / "final", *sorted(path.parent for path in (run / "final").glob("*/metrics.json"))]
    for folder in [*others, run / "untrained", run / "teacher"]:
        if found := measured(folder):
            seconds = seconds_of(folder, read_json(folder / "labelled.jsonl.run.json").get("seconds", 0))
            rows.append({"iteration": str(folder.relative_to(run)), **found, "seconds": seconds})
    return rows


def accepted_at(folder: Path, name: str) -> int:
    records = [read_json(beside(path, ".run.json")) for path in shards(folder, name)]
    return sum(record.get("counts", {}).get("accepted", 0) for record in records)


def training_texts(folder: Path) -> list[str]:
    return [str(record.get("source", "")) for path in training_files(folder) for _, record in read_records(path)]


def test_predictions(run: Path) -> list[Path]:
    """The predictions on test sets: those of an iteration may be on its own validation examples."""
    return [path for name in ("untrained", "final") for path in sorted((run / name).glob("**/predictions.jsonl"))]


def seconds_at(path: Path) -> float:
    return read_json(beside(path, ".run.json")).get("seconds", 0)


def teacher_seconds(folder: Path) -> float:
    """Of generate.py and label.py: one start writes both splits, and shards work at the same time."""
    sets = [
        [path for name in TEACHERS[:2] for path in shards(folder, name)],
        *([folder / name] for name in TEACHERS[2:]),
    ]
    return sum(max(map(seconds_at, paths)) for paths in sets)


def seconds_of(folder: Path, generate: float) -> dict[str, float]:
    return {"generate": generate} | {s: sum(seconds_at(folder / out) for out in outs) for s, outs in STAGES.items()}


def measured(folder: Path) -> dict[str, Any]:
    """The headline number of metrics.json, under its name, with interval and groups; {} where there is no such file."""
    metrics = read_json(folder / "metrics.json")
    if not metrics:
        return {}
    name = metrics["metric"]
    found = metrics["overall"][name]
    row = {"metric": name, name: found["value"], "low": found["low"], "high": found["high"], "n": metrics["n"]}
    for key, groups in metrics.items():
        if key.startswith("by_") and key != "by_label":
            row |= {f"{name}_{group}": m[name]["value"] for group, m in groups.items()}
    return row


def print_table(run: Path, rows: list[dict]) -> None:
    metrics = sorted({row["metric"] for row in rows if "metric" in row})
    if len(metrics) > 1:
        names = " and by ".join(metrics)
        fail(f"{run}: measured by {names}; run evaluate.py --overwrite with the same task file for all")
    metric = metrics[0] if metrics else "metric"
    groups = sorted({key for row in rows for key in row if key.startswith(f"{metric}_")})
    scores = {row["score"] for row in rows if row.get("score")}
    formats = {"attempted": ",", "accepted": ",", "tokens": ".0f", "distinct_2": ".3f", "mean_score": ".2f"}
    head = ["", "attempted", "accepted", "tokens", "distinct-2", scores.pop() if len(scores) == 1 else "score"]
    head += [f"{metric} [95 % interval]", *(g.removeprefix(f"{metric}_") for g in groups)]
    lines = [[*head, *(f"{stage} s" for stage in rows[0]["seconds"])]]
    for row in rows:
        interval = f"{row[metric]:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if metric in row else "-"
        line = [row["iteration"], *("-" if row.get(k) is None else format(row[k], how) for k, how in formats.items())]
        line += [interval, *(f"{row[g]:.3f}" if g in row else "-" for g in groups)]
        lines.append(line + [f"{seconds:.1f}" if seconds else "-" for seconds in row["seconds"].values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(run)
    for first, *line in lines:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, line, widths[1:])]))
    total = sum(s for row in rows for s in row["seconds"].values())
    print(f"attempted, accepted and tokens are those of both splits; all stages: {total:,.0f} s")
    counted = [row["repeats_of_test"] for row in rows if row.get("repeats_of_test") is not None]
    if counted:
        print(f"{sum(counted):,} training examples repeat a text of the test sets")
    print()


if __name__ == "__main__":
    run_command(app)
