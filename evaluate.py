"""Measure a student, an untrained student or stored predictions on test sets: the task's metric with its interval.

Writes predictions.jsonl (the test records, each with `prediction` and `correct`) and metrics.json into --output-dir, for
each further test file into a folder of its name in there; prints the metrics.

    python evaluate.py --task-file prompts/reviews.toml --model runs/a/final/student \
        --test-file data/reviews/test.jsonl --group-by group --output-dir runs/a/final
    python evaluate.py ... --model google-t5/t5-base                  # the untrained student: a row of every table
    python evaluate.py ... --prediction-field teacher_label           # predictions that the test file holds already

What is reported, by the task's metric; from 0 to 1, higher = better; with 95 % bootstrap intervals over examples:

    accuracy, macro_f1   both, and precision, recall and F1 of each label; the confusion table
    exact_match          equal when stripped and lower-cased
    equation_value       equations that have the value of the target
    squad                exact match (the headline) and F1 over words, by SQuAD's official rules
    rouge_l              ROUGE-L F1 of words, mean over examples
    optimum              linear programmes that have the optimum of the target (gold/programmes.py), and rouge_l
    chrf                 chrF2 of the whole set; 100 times it is what sacrebleu prints

Of a record's right answers (the answer field, and the list `<answer_field>s`) the best counts. A prediction that is
absent, empty, or no label, equation or programme is wrong.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gold.command import DryRun, Limit, Overwrite, TaskFile, fail, files, new_app, run_command, say
from gold.disk import beside, write_json
from gold.examples import column_of, read_examples
from gold.jsonl import write_file
from gold.metrics import (
    HEADLINE,
    WORD_RULES,
    class_intervals,
    confusion_cells,
    confusions,
    golds_of,
    measure,
    of_example,
)
from gold.model_folder import check_model_folder
from gold.predict import PerDeviceEvalBatchSize, predict
from gold.programmes import optimum
from gold.runs import finish_run, start_run
from gold.student import MaxSourceLength, MaxTargetLength, lengths_of, load_trained
from gold.task import Task, load_task
from gold.text import exact_form

MAX_LABELS = 12  # of a confusion table that fits a terminal

app = new_app()


@app.command()
def main(
    task_file: TaskFile,
    test_file: Annotated[list[Path], files(help="Test records; only the task's fields are needed. May be repeated.")],
    output_dir: Annotated[Path, files(help="Folder for predictions.jsonl and metrics.json.")],
    model: Annotated[str | None, files(help="Student to measure: a folder or a name on the hub.")] = None,
    prediction_field: Annotated[str | None, files(help="Instead of --model: the field that holds predictions.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Also by the values of this field, such as group.")] = None,
    num_resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the 95 % interval.")] = 10_000,
    per_device_eval_batch_size: PerDeviceEvalBatchSize = 64,
    max_source_length: MaxSourceLength = None,
    max_target_length: MaxTargetLength = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    limit: Limit = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure --model, or --prediction-field, on every --test-file."""
    options = dict(locals())
    task = load_task(task_file)
    if (model is None) == (prediction_field is None):
        raise typer.BadParameter("give one of --model and --prediction-field", param_hint="--model")
    if prediction_field == task.answer_field:
        raise typer.BadParameter("is the answer that predictions are compared with", param_hint="--prediction-field")
    if model:
        check_model_folder(model)
    use = [prediction_field] if prediction_field else []
    test_sets = {path: read_examples(path, task, use=use)[:limit] for path in test_file}
    for path, examples in test_sets.items():
        check_fields(path, examples, task, column_of(group_by, examples), prediction_field)
        if dry_run:
            print(f"would measure {model or prediction_field} on {len(examples):,} records of {path}")
    if dry_run:
        return
    lengths = lengths_of(model, max_source_length, max_target_length) if model else {}
    folders = [output_dir, *(output_dir / path.stem for path in list(test_sets)[1:])]
    if len(set(folders)) < len(folders):
        fail("--test-file: two files have the same name, and so the same output folder; rename one")
    runs = {}
    for path, folder in zip(test_sets, folders, strict=True):
        runs[path] = start_run(
            "evaluate.py", folder / "predictions.jsonl", options | lengths | {"test_file": path},
            ["task_file", "model", "test_file"], also=[folder / "metrics.json"], overwrite=overwrite,
            not_compared=["per_device_eval_batch_size"],
        )  # fmt: skip
    if model and any(runs.values()):
        student = load_trained(model, task, lengths, dtype)
    for path, run in runs.items():
        if not run:
            continue
        examples = test_sets[path]
        if model:
            predictions = predict(student, examples, per_device_eval_batch_size)
            if task.target_has_reasons and (lost := predictions.count("")):
                told = f"{lost:,} of {len(examples):,} texts of the student have no answer behind its reasons"
                say(f"{path}: {told}; is --max-target-length too low for both?")
        else:
            predictions = stored_predictions(examples, task, prediction_field)
        records = [e | of_example(task, p, e) for e, p in zip(examples, predictions, strict=True)]
        shown = [*task.shown_fields, "prediction", "correct"]
        write_file(run.partial, ({k: r[k] for k in shown if k in r} | r for r in records))
        metrics = report(task, path, records, column_of(group_by, records), seed, num_resamples)
        write_json(beside(run.also[0], ".partial"), metrics)
        finish_run(run, {"records": len(records), "correct": sum(r["correct"] for r in records)})
        print_metrics(metrics)


def check_fields(path: Path, examples: list[dict], task: Task, group: str | None, predictions: str | None) -> None:
    """End the stage where a record is without the group's field, or none has the predictions' (one without is wrong)."""
    absent = [(group, e) for e in examples if group and group not in e]
    if predictions and not any(predictions in e for e in examples):
        absent = [(predictions, examples[0])]
    for name, example in absent:
        fail(f"{path}: {example['id']} has no field {name!r}; found {', '.join(example)}")
    if group == "label" and not (task.labels and task.answer_field == "label"):
        fail("--group-by label: by_label is kept for the labels of a classification task; rename the field 'label'")


def stored_predictions(examples: list[dict], task: Task, field: str) -> list[str]:
    """What stands in the field, as a student would write it: a teacher's label becomes the label's target."""
    predictions = ["" if e.get(field) is None else str(e[field]).strip() for e in examples]
    if task.labels:
        names = {} if field == "prediction" else dict(zip(map(exact_form, task.labels), task.targets, strict=True))
        names |= {exact_form(target): target for target in task.targets}
        return [exact_form(names.get(exact_form(p), p)) for p in predictions]
    if field == "teacher_label":
        return [p and task.as_written(p) for p in predictions]
    return predictions


def report(task: Task, path: Path, records: list[dict], group_by: str | None, *how: int) -> dict[str, Any]:
    """All numbers of metrics.json, the whole first. how: seed and number of resamples."""
    metrics: dict[str, Any] = {
        "task": task.name,
        "metric": HEADLINE.get(task.metric, task.metric),
        "test_file": str(path),
        "n": len(records),
        "overall": measure(task, records, *how),
    }
    if task.labels:
        labels, cells = list(task.labels), confusion_cells(task, records)
        metrics["no_label"] = sum(n for (_, predicted), n in cells.items() if predicted is None)
        metrics["by_label"] = class_intervals(cells, labels, *how)[1]
        columns = [*labels, *([None] if metrics["no_label"] else [])]
        metrics["confusion"] = {
            "labels": labels,
            "columns": [name or "no label" for name in columns],
            "matrix": [[cells[gold, predicted] for predicted in columns] for gold in labels],
        }
    for name in {task.metric, *metrics["overall"]} & WORD_RULES.keys():
        metrics[f"{name}_tokenizer"] = WORD_RULES[name]
    if task.metric == "optimum":
        metrics["no_optimum"] = sum(all(optimum(gold) is None for gold in golds_of(task, r)) for r in records)
    if group_by and group_by != "label":
        groups: dict[str, list[dict]] = {}
        for record in sorted(records, key=lambda r: str(r[group_by])):
            groups.setdefault(str(record[group_by]), []).append(record)
        metrics[f"by_{group_by}"] = {v: {"n": len(rows), **measure(task, rows, *how)} for v, rows in groups.items()}
    return metrics


def print_metrics(metrics: dict[str, Any]) -> None:
    """Each number with its interval: a table for the whole and the groups, one for the labels; then the confusions."""
    tables = [[("all", {"n": metrics["n"], **metrics["overall"]})], []]
    for key, groups in metrics.items():
        if key.startswith("by_"):
            tables[key == "by_label"] += [(f"{key.removeprefix('by_')} {name}", m) for name, m in groups.items()]
    for table in filter(None, tables):
        names = [name for name in table[0][1] if name != "n"]
        print(f"{'':<24} " + "  ".join(f"{name:<21}" for name in names))
        for title, m in table:
            numbers = "  ".join(f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for x in map(m.get, names))
            print(f"{title:<24} {numbers}  n={m['n']}")
    if "confusion" in metrics:
        print_confusion(**metrics["confusion"])
    if metrics.get("no_label"):
        say(f"{metrics['no_label']:,} predictions are no label of the task: counted as wrong")
    if metrics.get("no_optimum"):
        say(f"{metrics['no_optimum']:,} targets have no finite optimum: every prediction for them counts as wrong")


def print_confusion(labels: list[str], columns: list[str], matrix: list[list[int]]) -> None:
    """The table; of many labels the ten most frequent confusions."""
    if len(labels) > MAX_LABELS:
        print("\nmost frequent confusions")
        for count, gold, predicted in confusions(labels, columns, matrix)[:10]:
            print(f"{count:>6}  {gold} as {predicted}")
        return
    width = max(map(len, ["gold, predicted:", *labels]))
    print(f"\n{'gold, predicted:':<{width}}  " + "  ".join(columns))
    for name, row in zip(labels, matrix, strict=True):
        print(f"{name:<{width}}  " + "  ".join(f"{x:>{len(c)}}" for x, c in zip(row, columns, strict=True)))


if __name__ == "__main__":
    run_command(app)
