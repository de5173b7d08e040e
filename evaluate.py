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

What is reported, by the task's metric; shares, 0 to 1, higher = better; each with its 95 % bootstrap interval over examples:

    accuracy, macro_f1   both, and precision, recall and F1 of each label; the confusion table. macro_f1 is the mean over the
                         labels that are a gold or a prediction
    exact_match          equal when stripped, lower-cased and composed (NFC: é is one character or two)
    equation_value       equations that have the value of the target
    squad                exact match (the headline) and F1 over words: on ASCII text the official script's numbers
    rouge_l              ROUGE-L F1 of words, mean over examples: on ASCII text the numbers of Google's rouge-score
    optimum              linear programmes that have the optimum of the target (formulations.py), and rouge_l
    chrf                 chrF2 of the whole set; 100 times it is what sacrebleu prints

Words of all scripts count in squad and rouge_l; metrics.json holds the rule in `rouge_l_tokenizer`, `squad_tokenizer`.
Of a record's right answers (the answer field, and the list `<answer_field>s`) the best counts. What is no label, no equation or
no programme is wrong, and so is an empty or absent prediction.
"""

import string
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from formulations import optimum
from gold.columns import asked_for
from gold.text import exact_form
from gold.trained import trained_lengths
from metrics import WORD_RULES, chrf_counts, chrf_interval, class_intervals, mean_interval, rouge_l, squad_scores
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
from score_ood import EXAMPLES_HELP, score_examples
from task import Task, golds_of, is_correct, load_task
from train_student import targets_of

# The number that stands for a metric in a table, where it has another name: GOLD's for SQuAD
HEADLINE = {"squad": "exact_match"}
# Per-example values besides right and wrong
VALUES = {"squad": ("f1",), "rouge_l": ("rouge_l",), "optimum": ("rouge_l",)}
# What a record gets here: a column of this name in people's own file makes room (gold/columns.py)
WRITTEN = {"source", "target", "prediction", "correct", *(name for names in VALUES.values() for name in names)}
MOST_LABELS = 12  # of a confusion table that fits a terminal


def of_example(task: Task, prediction: str, record: dict) -> dict[str, Any]:
    """`prediction`, `correct` and the values that the metric has for one example (f1, rouge_l)."""
    golds = golds_of(task, record)
    values = {"f1": lambda: squad_scores(prediction, golds)[1], "rouge_l": lambda: rouge_l(prediction, golds)}
    return {
        "prediction": prediction,
        "correct": is_correct(task, prediction, record),
        **{name: round(values[name](), 6) for name in VALUES.get(task.metric, ())},
    }


def confusion_cells(task: Task, records: list[dict]) -> Counter:
    """{(gold, predicted, or None for no label): examples}. A right prediction is its own gold, should there be several."""
    names = {exact_form(target): name for name, target in zip(task.labels, targets_of(task), strict=True)}
    predicted = [names.get(exact_form(r["prediction"])) for r in records]
    return Counter((p if r["correct"] else r[task.answer_field], p) for r, p in zip(records, predicted, strict=True))


def measure(task: Task, records: list[dict], seed: int, resamples: int) -> dict[str, dict[str, float]]:
    """The numbers of the task's metric over records with the values of of_example, the headline first."""
    how, headline = (seed, resamples), HEADLINE.get(task.metric, task.metric)
    if task.metric == "chrf":
        return {"chrf": chrf_interval([chrf_counts(r["prediction"], golds_of(task, r)) for r in records], *how)}
    columns = {"accuracy" if task.labels else headline: "correct"} | {
        name: name for name in VALUES.get(task.metric, ())
    }
    found = {name: mean_interval([r[column] for r in records], *how) for name, column in columns.items()}
    if task.labels:
        found["macro_f1"] = class_intervals(confusion_cells(task, records), list(task.labels), *how)[0]
    return {headline: found[headline], **found}


def print_metrics(metrics: dict[str, Any]) -> None:
    """Each number with its interval, a table for the whole and the groups and one for the labels; then the confusion."""
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
    if confusion := metrics.get("confusion"):
        labels, columns, matrix = (confusion[k] for k in ("labels", "columns", "matrix"))
        if len(labels) <= MOST_LABELS:
            width = max(map(len, ["gold, predicted:", *labels]))
            print(f"\n{'gold, predicted:':<{width}}  " + "  ".join(columns))
            for name, row in zip(labels, matrix, strict=True):
                print(f"{name:<{width}}  " + "  ".join(f"{x:>{len(c)}}" for x, c in zip(row, columns, strict=True)))
        else:
            pairs = [
                (x, f"{gold} as {predicted}")
                for gold, row in zip(labels, matrix, strict=True)
                for predicted, x in zip(columns, row, strict=True)
                if x and gold != predicted
            ]
            print("\nmost frequent confusions")
            for x, pair in sorted(pairs, key=lambda pair: -pair[0])[:10]:
                print(f"{x:>6}  {pair}")


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
    per_device_eval_batch_size: Annotated[int, typer.Option(min=1, help=EXAMPLES_HELP)] = 64,
    max_source_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens read (none = as the student was trained, 512 of a base).")
    ] = None,
    max_target_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens written (none = as the student was trained, 128 of a base).")
    ] = None,
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
    use = {prediction_field, group_by} - WRITTEN
    examples = read_examples(test_file, task, counts=counts, use=use)[:limit]
    examples = take_shard(examples, part)
    prediction_field, group_by = asked_for(prediction_field, examples), asked_for(group_by, examples)
    names = ", ".join(map(str, test_file))
    absent = [e for e in examples if group_by not in e]
    untold = [] if any(prediction_field in e for e in examples) else examples  # one without is wrong, all are a typo
    for option, name, rows in (("--group-by", group_by, absent), ("--prediction-field", prediction_field, untold)):
        if name and rows:
            fail(f"{names}: {rows[0]['id']} has no field {name!r} ({option}); found {', '.join(rows[0])}")
    by_label = bool(task.labels) and group_by == "label"  # which is measured anyhow
    if group_by == "label" and not (by_label and task.answer_field == "label"):
        fail(
            f"--group-by label: by_label holds the labels ({task.answer_field}) themselves; rename the field {group_by!r}"
        )
    if dry_run:
        print(f"would measure {model or prediction_field} on {len(examples):,} records of {names}")
        return
    lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length}
    lengths = (trained_lengths(model, task, **lengths) if model else lengths) | {"dtype": dtype}
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
        predictions = [
            s["prediction"] for s in score_examples(examples, task, model, per_device_eval_batch_size, **lengths)
        ]
    else:
        predictions = ["" if e.get(prediction_field) is None else str(e[prediction_field]).strip() for e in examples]
    if task.labels:
        written = {}
        if prediction_field not in (None, "prediction"):  # of a teacher, say: a label's name stands for its target
            written = dict(zip(map(exact_form, task.labels), targets_of(task), strict=True))
            written |= {exact_form(target): target for target in targets_of(task)}
        predictions = [exact_form(written.get(exact_form(p), p)) for p in predictions]
    elif prediction_field == "teacher_label":  # an answer, which a student may write in another form
        target = string.Template(task.student["target"])
        predictions = [p and target.substitute({task.answer_field: p}) for p in predictions]
    records = [e | of_example(task, p, e) for p, e in zip(predictions, examples, strict=True)]
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

    how = (seed, num_resamples)
    metrics: dict[str, Any] = {
        "task": task.name,
        "metric": HEADLINE.get(task.metric, task.metric),
        "test_file": names,
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
    metrics |= {
        f"{name}_tokenizer": rule for name, rule in WORD_RULES.items() if name in (task.metric, *metrics["overall"])
    }
    if task.metric == "optimum":
        metrics["no_optimum"] = sum(all(optimum(gold) is None for gold in golds_of(task, r)) for r in records)
    if group_by and not by_label:
        groups: dict[str, list[dict]] = {}
        for record in sorted(records, key=lambda r: str(r[group_by])):
            groups.setdefault(str(record[group_by]), []).append(record)
        metrics[f"by_{group_by}"] = {v: {"n": len(rows), **measure(task, rows, *how)} for v, rows in groups.items()}
    write_json(beside(metrics_file, ".partial"), metrics)
    finish_run(run, counts)

    print_metrics(metrics)
    if metrics.get("no_label"):
        say(f"{metrics['no_label']:,} predictions are no label of the task: counted as wrong")
    if metrics.get("no_optimum"):
        say(f"{metrics['no_optimum']:,} targets have no finite optimum: every prediction for them counts as wrong")


if __name__ == "__main__":
    run_command(app)
