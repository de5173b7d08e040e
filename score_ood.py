"""Score examples by how far out of distribution the student finds them, and select feedback for the next iteration.

Reads a task file, examples (validation.jsonl) and a trained student. Writes --output-file, the same records with every
score, prediction and correctness, and --feedback-file, the selected ones. One forward pass an example, on a GPU if there
is one.

    python score_ood.py --task-file prompts/reviews.toml --model runs/a/iter-00/student \
        --input-file runs/a/iter-00/validation.jsonl --output-file runs/a/iter-00/scored.jsonl \
        --feedback-file runs/a/iter-00/feedback.jsonl
    python score_ood.py ... --score msp --low 0.8 --high 1            # the top fifth by another score
    python score_ood.py --task-file prompts/reviews.toml --input-file runs/a/iter-00/scored.jsonl \
        --score nll --feedback-file /tmp/f.jsonl                      # another band of a scored file; no student
    python score_ood.py --task-file prompts/reviews.toml --score tfidf --input-file runs/a/iter-00/train.jsonl \
        --train-file runs/a/iter-00/train.jsonl --output-file /tmp/s.jsonl --feedback-file /tmp/f.jsonl      # needs no student
    python score_ood.py ... --score embedding --train-file runs/a/iter-00/train.jsonl
    python score_ood.py ... --input-file pool.jsonl --unlabelled --score entropy --low 0 --high 1 --num-selected 100
    python score_ood.py --task-file prompts/reviews.toml --model critic/student --input-file runs/a/iter-00/train.jsonl \
        --score nll --low 0 --high 0.8 --output-file /tmp/s.jsonl --feedback-file kept.jsonl --rejected-file dropped.jsonl
    python score_ood.py ... --ood-file ood.jsonl                      # how well each score tells these from --input-file

Every score: HIGHER = more out of distribution, or more uncertain; gold/scores.py has the formulas.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from gold.command import DryRun, Limit, Overwrite, TaskFile, fail, files, new_app, option_name, run_command, say
from gold.disk import beside
from gold.examples import OF_ANSWER, as_unanswered, example_key, has_answer, read_examples, tell_without_reasons
from gold.jsonl import expand, write_file
from gold.model_folder import check_model_folder
from gold.nearest import embedding_distances, k_center_distances, tfidf_distances
from gold.predict import PerDeviceEvalBatchSize, predict, rounded, score_examples
from gold.runs import finish_run, start_run
from gold.scores import REDUCTIONS, SCORES, STORED, detection, random_score
from gold.selection import ERRORS, MIN_EXAMPLES, select_feedback
from gold.student import MaxSourceLength, MaxTargetLength, Student, family_of, lengths_of, load_student, load_trained
from gold.task import Task, load_task
from gold.templates import render_known
from gold.text import exact_form

NEEDS = {"energy_delta": "base_model", "embedding": "train_file", "k_center": "train_file", "tfidf": "train_file"}
INPUTS = ["task_file", "model", "input_file", "ood_file", "base_model", "train_file"]
NOT_COMPARED = ["per_device_eval_batch_size"]
Score = Literal[*SCORES, *STORED]

app = new_app()
selection = partial(typer.Option, rich_help_panel="Selection")
scoring = partial(typer.Option, rich_help_panel="Scoring")


@app.command()
def main(
    task_file: TaskFile,
    input_file: Annotated[list[Path], files(help="Examples to score (validation.jsonl); repeat, or a glob in quotes.")],
    output_file: Annotated[Path | None, files(dir_okay=False, help="The same with scores (none = scored already).")] = None,
    feedback_file: Annotated[Path | None, files(dir_okay=False, help="Selection for generate.py (none = score only).")] = None,
    rejected_file: Annotated[Path | None, files(dir_okay=False, help="The others, with their reasons.")] = None,
    model: Annotated[str | None, files(help="Trained student: a folder or a name on the hub (none = tfidf, random).")] = None,
    base_model: Annotated[str | None, files(help="Untrained student, for energy_delta.")] = None,
    train_file: Annotated[list[Path] | None, files(help="What it was trained on: embedding, k_center, tfidf.")] = None,
    ood_file: Annotated[list[Path] | None, files(
        help="OOD examples: prints how well each score tells them from --input-file (AUROC, AUPR, FPR@95TPR = the share of "
        "--input-file at or above the threshold to flag 95 % of these); their scores go beside the output, scored.ood.jsonl.",
    )] = None,
    score: Annotated[Score, selection(help="What the selection goes by; higher = more OOD.")] = "energy",
    low: Annotated[float, selection(min=0, max=1, help="Lower quantile of the band, within each label.")] = 0.5,
    high: Annotated[float, selection(min=0, max=1, help="Upper quantile (1 = the top is kept).")] = 0.8,
    confirmed: Annotated[bool, selection(help="Only where teacher_label agrees (label.py, generate.py --verify).")] = False,
    group_size: Annotated[int | None, selection(min=2, help="The band within each so many examples, not by label.")] = None,
    unlabelled: Annotated[bool, selection(
        help="Texts without answers: the student's predictions stand for them. Those that stand in --train-file are left out.",
    )] = False,
    num_selected: Annotated[int | None, selection(min=1, help="Only the highest ranks, the labels in turn.")] = None,
    max_overlap: Annotated[float, selection(min=0, max=1, help="Most overlap of two selected ones (ROUGE-L F1).")] = 1.0,
    energy_temperature: Annotated[float, scoring(min=1e-3, help="T of the energy; not the sampling temperature.")] = 1.0,
    per_device_eval_batch_size: PerDeviceEvalBatchSize = 64,
    max_source_length: MaxSourceLength = None,
    max_target_length: MaxTargetLength = None,
    seed: Annotated[int, scoring(help="Seed of the random score.")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16"], scoring(help="Of the weights; bfloat16 blurs ranks.")] = "float32",
    limit: Limit = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Score --input-file with a student and select feedback."""
    options = dict(locals())
    # Load
    task, counts, stored = load_task(task_file), {}, check_options(options)
    examples, train_examples, ood = read_inputs(options, task, stored, counts)
    band = {name: options[name] for name in ("low", "high", "confirmed", "group_size")}
    # A filter keeps what there is of a label; of feedback a handful means nothing
    band |= {"most": num_selected, "least": 0 if unlabelled or rejected_file else MIN_EXAMPLES}
    selected, reasons = [], {}
    if feedback_file and not unlabelled:  # too few of a label is an error that needs no model
        tried = examples if stored else [e | {score: i + 1.0} for i, e in enumerate(examples)]
        selected, reasons = select_feedback(tried, task, score, **band, max_overlap=max_overlap if stored else 1.0)
    if dry_run:
        return print_plan(options, stored, len(examples), len(ood), len(selected))
    if model:
        check_model(model, base_model, score, task, ood)
    lengths = lengths_of(model, max_source_length, max_target_length) if model else {}
    output = feedback_file if stored else output_file
    ood_output = output.with_name(f"{output.stem}.ood{output.suffix}")
    also = [feedback_file] * bool(feedback_file and not stored) + [rejected_file] * bool(rejected_file)
    also += [ood_output] * bool(ood)
    options |= lengths
    run = start_run("score_ood.py", output, options, INPUTS, also, overwrite=overwrite, not_compared=NOT_COMPARED)
    if run is None:
        return

    # Score
    student = load_trained(model, task, lengths, dtype) if model else None
    how = {"temperature": energy_temperature, "padded": score == "energy_padded", "seed": seed}
    how["batch_size"] = per_device_eval_batch_size
    if not stored:
        if unlabelled and student:
            examples = pseudo_labelled(student, examples, per_device_eval_batch_size, counts)
        farthest = (num_selected or len(examples)) if score == "k_center" else 0
        scores = all_scores(student, examples, train_examples, base_model, how, farthest)
        examples = [ordered(e, s, task) for e, s in zip(examples, scores, strict=True)]
        write_file(run.partial, examples)
        counts |= {"correct": sum(s["correct"] for s in scores)} if student and not unlabelled else {}
    counts |= {"scored": len(examples)} | ({"ood": len(ood)} if ood else {})
    # Select
    if feedback_file:
        if not stored:
            selected, reasons = select_feedback(examples, task, score, **band, max_overlap=max_overlap)
        counts |= {"selected": len(selected), "not_selected": dict(Counter(reasons.values()))}
        write_selection(options, task, examples, selected, reasons)
    names = [score] if stored else [name for name in SCORES if name in examples[0]]
    means = {name: round(sum(e[name] for e in examples) / len(examples), 4) for name in names}
    # Tell OOD from in-distribution
    found = {"ood_detection": tell_ood(student, ood, examples, how, ood_output)} if ood else {}
    finish_run(run, counts, means=means, **found)
    said = f"{len(examples):,} {'read' if stored else 'scored'}"
    said += f", {counts['correct']:,} predicted right" if "correct" in counts else ""
    said += f"; {counts['selected']:,} selected by {score}" if feedback_file else ""
    for name in ("known_texts", "without_label"):
        said += f"; {counts[name]:,} left out ({name})" if counts.get(name) else ""
    say(f"{output}: {said}, mean {score} {means[score]}")


def check_options(given: dict) -> bool:
    """Options that do not go together are bad options (exit code 2); whether the scores stand in the input already."""
    score, model, output_file = given["score"], given["model"], given["output_file"]
    stored = not model and not (score in ("random", "tfidf") and output_file)
    alone = f"without --model, {score} must stand in --input-file, and --feedback-file is all that is written"
    needed = NEEDS.get(score)
    scoring_alone = "is for scoring: give the --model too"
    problems = [
        (given[name] and not (model or given["unlabelled"] or needed == name), name, scoring_alone)
        for name in ("base_model", "train_file", "ood_file")
    ] + [
        (not stored and needed and not given[needed], "score", f"{score} needs {needed and option_name(needed)}"),
        (not stored and not output_file, "output_file", "is missing: where the scores go"),
        (stored and output_file, "output_file", alone),
        (model and score in STORED, "model", f"{score} stands in --input-file: leave it out"),
        (stored and not given["feedback_file"], "feedback_file", alone),
        (given["rejected_file"] and not given["feedback_file"], "rejected_file", "is what --feedback-file leaves: give both"),
        (given["unlabelled"] and stored, "unlabelled", f"{scoring_alone}, or --score random"),
        (given["unlabelled"] and given["confirmed"], "unlabelled", "nobody has labelled them yet: leave --confirmed out"),
        (given["unlabelled"] and score in ERRORS, "score", f"{score}: a prediction is no error of itself: choose another"),
        (given["low"] >= given["high"], "low", f"{given['low']} is not below --high {given['high']}"),
    ]  # fmt: skip
    for wrong, name, problem in problems:
        if wrong:
            raise typer.BadParameter(problem, param_hint=option_name(name))
    for name in filter(None, (model, given["base_model"])):
        check_model_folder(name)
    return stored


def read_inputs(options: dict, task: Task, stored: bool, counts: dict) -> tuple[list[dict], list[dict], list[dict]]:
    """(the examples to score, training examples, OOD examples) of the files, whose paths are expanded in the options."""
    for name in ("input_file", "train_file", "ood_file"):
        options[name] = expand(option_name(name), options[name])
    unlabelled, limit = options["unlabelled"], options["limit"]
    if unlabelled and options["model"] and not task.labels:
        problem = "needs a task with labels, which the student can choose from: run label.py on the texts instead"
        raise typer.BadParameter(problem, param_hint="--unlabelled")
    train_examples = read_examples(options["train_file"], task, among=options["input_file"])
    ood = read_examples(options["ood_file"], task, answers=False, foreign=True)[:limit]
    how = {"among": options["train_file"], "answers": not unlabelled, "foreign": unlabelled, "counts": counts}
    use = [options["score"]] * stored + ["teacher_label"] * options["confirmed"]  # the user's columns too
    examples = read_examples(options["input_file"], task, use=use, **how)[:limit]
    if task.target_has_reasons and options["model"]:
        tell_without_reasons(examples, task, "scored by")
    return new_texts(examples, train_examples, task, counts) if unlabelled else examples, train_examples, ood


def check_model(model: str, base_model: str | None, score: str, task: Task, ood: list[dict]) -> None:
    """What a config tells before any weights are read."""
    family = family_of(model, task)
    if family == "encoder" and score in REDUCTIONS:
        fail(f"--score {score}: an encoder student has one position, where every reduction is the same: use energy")
    if family == "decoder" and score == "energy_padded":
        fail(f"--score {score}: the authors' setting for T5, whose targets are padded; a decoder has none: use energy")
    if base_model and (other := family_of(base_model, task)) != family:
        fail(f"--base-model {base_model}: its kind is {other}, that of --model {family}; give the base of its training")
    unknown = [e["id"] for e in ood if not has_answer(e, task)]
    if unknown and family != "encoder":
        problem = f"{unknown[0]} has no {task.answer_field!r} that the task knows, which this student's scores need"
        fail(f"--ood-file: {problem}; add one to every record, or use an encoder")


def new_texts(examples: list[dict], train_examples: list[dict], task: Task, counts: dict) -> list[dict]:
    """The examples as texts without answers; what stands in the training examples, or twice, is left out and counted."""
    known, new = {example_key(task, e) for e in train_examples}, {}
    for e in examples:
        if (key := example_key(task, e)) not in known:
            new.setdefault(key, as_unanswered(e, task))
    if not new:
        fail(f"--input-file: all of the {len(examples):,} texts in it stand in --train-file already; give more")
    counts["known_texts"] = len(examples) - len(new)
    return list(new.values())


def pseudo_labelled(student: Student, examples: list[dict], batch_size: int, counts: dict) -> list[dict]:
    """The examples with the label that the student predicts; those for which it writes no label are left out, and counted."""
    task, any_answer = student.task, {student.task.answer_field: next(iter(student.task.labels))}
    names = {exact_form(target): name for name, target in zip(task.labels, task.targets, strict=True)}
    predictions = predict(student, [e | any_answer | {"target": task.targets[0]} for e in examples], batch_size)
    labels = [names.get(exact_form(text)) for text in predictions]
    counts["without_label"] = labels.count(None)
    if len(labels) == counts["without_label"]:
        fail(f"--unlabelled: the student writes no label for any of {len(labels):,} texts; train it first")
    found = [{task.answer_field: name} for name in labels]
    whole = (
        e | answer | {"target": render_known(task.student.target, e | answer)}
        for e, answer, name in zip(examples, found, labels, strict=True)
        if name
    )
    return list(whole)


def all_scores(
    student: Student | None, examples: list[dict], train_examples: list[dict], base_model: str | None, how: dict,
    farthest: int = 0,
) -> list[dict]:  # fmt: skip
    """Every score of each example; without a student those that need none. how: options of score_examples. farthest: how
    many steps k_center takes, 0 = none."""
    more: dict[str, list[float]] = {}
    if student:
        results, points = score_examples(student, examples, embed=bool(train_examples), **how)
    else:
        results = [{"random": random_score(how["seed"], e["id"])} for e in examples]
    if base_model:
        # With the seed, as in train_student.py: it draws an encoder's head
        base = load_student(base_model, student.task, how["seed"])
        base.lengths = student.lengths
        base.network.to(student.network.device, student.network.dtype)
        untrained, _ = score_examples(base, examples, decode=False, **how)
        more["energy_delta"] = [s["energy"] - b["energy"] for s, b in zip(results, untrained, strict=True)]
    if train_examples:
        more["tfidf"] = tfidf_distances(examples, train_examples)
    if train_examples and student:
        _, known = score_examples(student, train_examples, embed=True, decode=False, **how)
        more["embedding"] = embedding_distances(points.numpy(), known.numpy(), examples, train_examples)
        if farthest:
            more["k_center"] = k_center_distances(points.numpy(), more["embedding"], farthest)
    return [s | {name: rounded(values[i]) for name, values in more.items()} for i, s in enumerate(results)]


def scores_without_answer(student: Student, examples: list[dict], how: dict) -> list[dict]:
    """As score_examples, for examples that may have no label of the task: what needs it is left out."""
    task = student.task
    first = {task.answer_field: next(iter(task.labels)), "target": task.targets[0]} if task.labels else {}
    known = [has_answer(e, task) for e in examples]
    scores, _ = score_examples(student, [e if k else e | first for e, k in zip(examples, known, strict=True)], **how)
    rows = zip(scores, known, strict=True)
    return [{name: row[name] for name in row if k or name not in OF_ANSWER} for row, k in rows]


def ordered(example: dict, scores: dict, task: Task) -> dict:
    """Readable fields first, then the scores (none of an earlier student's), then the rest as it was."""
    first = task.shown_fields
    rest = {k: v for k, v in example.items() if k not in {*first, *SCORES, "prediction", "correct", "score", "rank"}}
    return {k: example[k] for k in first if k in example} | scores | rest


def tell_ood(student: Student, ood: list[dict], examples: list[dict], how: dict, path: Path) -> dict[str, dict]:
    """How well each score tells the OOD examples from the others: printed; the OOD examples' scores are written."""
    scores = scores_without_answer(student, ood, how)
    table = detection(examples, scores)
    write_file(beside(path, ".partial"), (ordered(e, s, student.task) for e, s in zip(ood, scores, strict=True)))
    heading = f"{'score':<14} {'AUROC':>7} {'AUPR':>7} {'FPR@95TPR':>10}"
    print(f"{heading}   {len(ood):,} OOD beside {len(examples):,} examples")
    for name, m in table.items():
        print(f"{name:<14} {m['auroc']:>7.3f} {m['aupr']:>7.3f} {m['fpr95']:>10.3f}")
    return table


def write_selection(options: dict, task: Task, examples: list[dict], selected: list[dict], reasons: dict) -> None:
    """--feedback-file, and --rejected-file where it is given."""
    first = [*task.shown_fields, "score", "rank"]
    write_file(beside(options["feedback_file"], ".partial"), ({k: e[k] for k in first if k in e} | e for e in selected))
    if path := options["rejected_file"]:
        rest = ({"id": "", "reason": reasons[e["id"]]} | e for e in examples if e["id"] in reasons)
        write_file(beside(path, ".partial"), rest)
    if not selected:
        say(f"{options['feedback_file']}: no example is wrong: nothing is selected")


def print_plan(options: dict, stored: bool, num_examples: int, num_ood: int, num_selected: int) -> None:
    names, score, model = ", ".join(map(str, options["input_file"])), options["score"], options["model"]
    by_student, ood = f" with {model}" if model else "", f" and {num_ood:,} OOD examples" if num_ood else ""
    print(f"would {'read' if stored else 'score'} {num_examples:,} examples of {names}{ood}{by_student}")
    if options["unlabelled"]:
        num_selected = min(options["num_selected"] or num_examples, num_examples)
    most = "at most " * (options["max_overlap"] < 1 or score in ERRORS or options["unlabelled"])
    chosen = f"{most}{num_selected:,} by {score} in [{options['low']}, {options['high']})"
    print(f"would select {chosen if options['feedback_file'] else 'none'}")


if __name__ == "__main__":
    run_command(app)
