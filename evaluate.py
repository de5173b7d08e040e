"""Measure a student, an untrained student or stored predictions on a test set: the task's metric with its interval.

Reads a task file and a test file with human or trusted answers. Writes predictions.jsonl (the test records, each with
`prediction` and `correct`) and metrics.json into --output-dir; prints the metrics.

    python evaluate.py --task-file prompts/reviews.toml --model runs/a/final/student \
        --test-file data/reviews/test.jsonl --group-by group --output-dir runs/a/final
    python evaluate.py ... --model google-t5/t5-base                  # the untrained student: a row of every table
    python evaluate.py ... --prediction-field teacher_label           # predictions that the test file holds already
    python evaluate.py ... --shard 0/4                                # predict a quarter, in one process of four; then measure:
    python evaluate.py --task-file prompts/reviews.toml --prediction-field prediction \
        --test-file 'runs/a/final/predictions-*-of-00004.jsonl' --group-by group --output-dir runs/a/final

Predictions and targets are stripped and lower-cased, equations compared by value (metric equation_value); what is no label
of the task, or no equation, counts as wrong; the former is reported.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from records import (
    beside,
    expand,
    fail,
    finish_run,
    parse_shard,
    read_examples,
    run_command,
    say,
    shard_path,
    start_run,
    take_shard,
    write_json,
    write_records,
)
from score_ood import score_examples
from task import is_correct, load_task
from train_student import targets_of


def accuracy_with_interval(correct: list[bool], seed: int, resamples: int) -> dict[str, Any]:
    """Share of correct examples with its 95 % percentile-bootstrap interval over examples (Efron 1979).

    A resample of n right-or-wrong outcomes is a binomial draw, so no resampling loop is needed.
    """
    import numpy as np

    n, hits = len(correct), sum(correct)
    draws = np.random.default_rng(seed).binomial(n, hits / n, resamples) / n
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"accuracy": round(hits / n, 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": n}


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)


@app.command()
def main(
    task_file: Annotated[Path, typer.Option(help="Task, as prompts/<task>.toml.")],
    test_file: Annotated[
        list[Path], typer.Option(help="Test records; only the task's fields are needed. Repeat, or a glob in quotes.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder for predictions.jsonl and metrics.json.")],
    model: Annotated[str | None, typer.Option(help="Student to measure: a folder or a name on the hub.")] = None,
    prediction_field: Annotated[
        str | None, typer.Option(help="Instead of --model: the field of --test-file that holds predictions.")
    ] = None,
    group_by: Annotated[str | None, typer.Option(help="Also by the values of this field, such as group.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Predict only every N-th record: predictions-0000I-of-0000N.jsonl."),
    ] = None,
    num_resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the 95 % interval.")] = 10_000,
    per_device_eval_batch_size: Annotated[int, typer.Option(min=1, help="Examples a batch. Not compared.")] = 64,
    max_source_length: Annotated[int, typer.Option(min=1, help="Tokens read.")] = 512,
    max_target_length: Annotated[int, typer.Option(min=1, help="Tokens written.")] = 128,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Try out: the first so many records.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be measured; no model.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Measure anew.")] = False,
) -> None:
    """Measure --model, or --prediction-field, on --test-file."""
    task = load_task(task_file)
    if (model is None) == (prediction_field is None):
        raise typer.BadParameter("give one of --model and --prediction-field", param_hint="--model")
    part, counts = parse_shard(shard), {}
    if part and not model:
        raise typer.BadParameter("stored predictions are measured in one go; leave it out", param_hint="--shard")
    test_file = expand("--test-file", test_file)
    examples = read_examples(test_file, task, counts=counts)[:limit]
    examples = take_shard(examples, part)
    names = ", ".join(map(str, test_file))
    for option, name in (("--group-by", group_by), ("--prediction-field", prediction_field)):
        for example in examples if name else []:
            if name not in example:
                fail(f"{names}: {example['id']} has no field {name!r} ({option}); found {', '.join(example)}")
    if dry_run:
        print(f"would measure {model or prediction_field} on {len(examples):,} records of {names}")
        return
    lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length, "dtype": dtype}
    compared = {
        "prediction_field": prediction_field,
        "group_by": group_by,
        "num_resamples": num_resamples,
        "seed": seed,
    } | ({"shard": shard} if part else {})
    output_file, metrics_file = shard_path(output_dir / "predictions.jsonl", part), output_dir / "metrics.json"
    run = start_run(
        "evaluate.py", output_file, (lengths if model else {}) | compared | {"limit": limit},
        {"task_file": task_file, "model": model, "test_file": test_file}, also=[] if part else [metrics_file],
        overwrite=overwrite,
    )  # fmt: skip
    if run is None:
        return

    if model:
        scores = score_examples(examples, task, model, per_device_eval_batch_size, **lengths)
        results = [{k: s[k] for k in ("prediction", "correct")} for s in scores]
    else:
        answers = [str(e[prediction_field]).strip().lower() for e in examples]
        results = [
            {"prediction": a, "correct": is_correct(task, a, e["target"])}
            for a, e in zip(answers, examples, strict=True)
        ]
    records = [e | r for e, r in zip(examples, results, strict=True)]
    shown = ["id", *task.fields, task.answer_field, "prediction", "correct"]
    with run.partial.open("w", encoding="utf-8") as file:
        write_records(
            file, [{k: r[k] for k in shown} | {k: v for k, v in r.items() if k not in shown} for r in records]
        )
    counts |= {"records": len(records), "correct": sum(r["correct"] for r in records)}
    if part:
        finish_run(run, counts)
        say(f"{output_file}: {len(records):,} predicted; measure the whole set with --prediction-field prediction")
        return

    def measure(rows: list[dict]) -> dict:
        return accuracy_with_interval([r["correct"] for r in rows], seed, num_resamples)

    metrics: dict[str, Any] = {"metric": task.metric, "test_file": names, "overall": measure(records)}
    if task.labels:
        known = {target.strip().lower() for target in targets_of(task)}
        metrics["no_label"] = sum(r["prediction"] not in known for r in records)
        metrics["by_label"] = {
            name: measure(rows)
            for name in task.labels
            if (rows := [r for r in records if r[task.answer_field] == name])
        }
    if group_by:
        values = sorted({str(r[group_by]) for r in records})
        metrics[f"by_{group_by}"] = {v: measure([r for r in records if str(r[group_by]) == v]) for v in values}
    write_json(beside(metrics_file, ".partial"), metrics)
    finish_run(run, counts)

    def line(name: str, m: dict) -> None:
        print(f"{name:<24} {m['accuracy']:.3f}  [{m['low']:.3f}, {m['high']:.3f}]  n={m['n']}")

    line(task.metric, metrics["overall"])
    for key in dict.fromkeys(("by_label", f"by_{group_by}")):
        for name, m in metrics.get(key, {}).items():
            line(f"  {key.removeprefix('by_')} {name}", m)
    if metrics.get("no_label"):
        say(f"{metrics['no_label']:,} predictions are no label of the task: counted as wrong")


if __name__ == "__main__":
    run_command(app)
