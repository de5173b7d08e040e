"""Score examples by how far out of distribution the student finds them, and select feedback for the next iteration.

Reads a task file, examples (validation.jsonl) and a trained student. Writes --output-file, the same records with every
score, prediction and correctness, and --feedback-file, the selected ones. One forward pass an example, on the GPU if any.

    python score_ood.py --task-file prompts/reviews.toml --model runs/a/iter-00/student \
        --input-file runs/a/iter-00/validation.jsonl --output-file runs/a/iter-00/scored.jsonl \
        --feedback-file runs/a/iter-00/feedback.jsonl
    python score_ood.py ... --score msp --low 0.8 --high 1            # the top fifth by another score
    python score_ood.py ... --score embedding --train-file runs/a/iter-00/train.jsonl
    python score_ood.py --task-file prompts/reviews.toml --score tfidf --input-file runs/a/iter-00/train.jsonl \
        --train-file runs/a/iter-00/train.jsonl --output-file /tmp/s.jsonl --feedback-file /tmp/f.jsonl    # needs no student
    python score_ood.py ... --shard 0/4                               # score a quarter, in one process of four; then select:
    python score_ood.py --task-file prompts/reviews.toml --input-file 'runs/a/iter-00/scored-*-of-00004.jsonl' \
        --output-file runs/a/iter-00/scored.jsonl --feedback-file runs/a/iter-00/feedback.jsonl
    python score_ood.py ... --ood-file far.jsonl                      # how well each score tells these from --input-file
    python score_ood.py ... --dry-run                                 # how many would be scored and selected; no model

Every score: HIGHER = more out of distribution, or more uncertain. Energy: E(x) = -T * logsumexp(z / T) (Liu et al. 2020,
arXiv 2010.03759) of the class logits, or the mean over the target tokens of that of the logits over the vocabulary, with
the target teacher-forced (GOLD, arXiv 2403.19754).
"""

import math
import random
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gold.decoding import greedy_texts
from gold.text import words
from gold.trained import trained_lengths
from labelling import agrees
from records import (
    beside,
    drop_run,
    expand,
    fail,
    finish_run,
    iter_examples,
    parse_shard,
    read_examples,
    records_at,
    run_command,
    say,
    shard_path,
    start_run,
    take_shard,
    write_records,
)
from task import Task, is_correct, load_task, overlap, text_key
from train_student import answer_length, encode, family_of, load_student, positions_of, targets_of

EXAMPLE_TOKENS = 128  # an example of --per-device-eval-batch-size: so many tokens, padding and target included
EXAMPLES_HELP = (
    f"Examples of {EXAMPLE_TOKENS} tokens in a batch: more if they are shorter, fewer if longer. Out of memory: halve it. "
    "Not compared."
)

# ---------------------------------------------------------------------------------------------------------------------
# Scores


def position_scores(logits: Any, labels: Any, temperature: float) -> dict[str, Any]:
    """Scores at single positions, in float32 whatever the model's dtype: logits (n, K >= 2), labels (n,) -> each (n,).

    energy   -T * logsumexp(z / T)          Liu et al. 2020
    nll      -log p_label, in nats
    msp      1 - max_k p_k                  Hendrycks & Gimpel 2017, as uncertainty
    entropy  -sum_k p_k log p_k, in nats
    margin   1 - (p_1 - p_2), of the two likeliest
    hit      the label is the likeliest class or token, and no other is as likely (bool)
    T scales the energy alone; the probabilities are those of T = 1.
    """
    import torch

    z = logits.float()
    log_p = z.log_softmax(-1)
    two = log_p.topk(2)
    first, second = two.values.unbind(-1)
    return {
        "energy": -temperature * torch.logsumexp(z / temperature, -1),
        "nll": -log_p.gather(-1, labels[:, None]).squeeze(-1),
        "msp": -torch.expm1(first),  # 1 - p loses all digits where p is near 1
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "margin": second.exp() - torch.expm1(first),
        "hit": (two.indices[:, 0] == labels) & (first > second),
    }


def reduce_positions(values: Any, real: Any) -> dict[str, Any]:
    """Sequence energies, each (B,), from those at positions: values (B, L), real (B, L) = target tokens incl. EOS (bool).

    energy = mean over real tokens, energy_sum, energy_first (free of the label), energy_padded = mean over all L positions.
    """
    on_real = values.masked_fill(~real, 0.0).sum(-1)
    return {
        "energy": on_real / real.sum(-1),
        "energy_sum": on_real,
        "energy_first": values[:, 0],
        "energy_padded": values.sum(-1) / values.shape[1],
    }


def check_score(score: str, model: str, task: Task) -> None:
    """Ends the stage where a student of this kind has no such score, before its weights are read."""
    _, family = family_of(model, task)
    if family == "encoder" and score in REDUCTIONS:
        fail(f"--score {score}: an encoder student has one position, where every reduction is the same: use energy")
    if family == "decoder" and score == "energy_padded":
        fail(
            f"--score {score}: the authors' setting for T5, which pads its targets; a decoder student has none: use energy"
        )


def score_examples(
    examples: list[dict], task: Task, model: str, batch_size: int = 64, energy_temperature: float = 1.0,
    padded: bool = False, max_source_length: int = 512, max_target_length: int = 128, seed: int = 0, dtype: str = "float32",
    base_model: str | None = None, train_examples: list[dict] | None = None,
) -> list[dict]:  # fmt: skip
    """Score examples with a student; one dict of scores an example, in input order.

    batch_size: in examples of EXAMPLE_TOKENS tokens; shorter ones make larger batches, longer ones smaller, at least one.
    padded: also `energy_padded`, over max_target_length positions as the authors' code does (dearer). dtype: of the
    weights; with bfloat16 neighbouring ranks may change places. `random` is a function of the seed and the id.
    `prediction`: the label's target, lower-cased, or the greedily decoded text, stripped; `correct`: of the prediction,
    by the task's metric. Tokens of a target that are all the likeliest ones are those that greedy decoding would write,
    so only the other examples are decoded (gold/decoding.py).

    error          1 = not correct, else 0 (S3, Wang et al. 2023)
    hard_negative  1 - msp where not correct, else 0: wrong and sure of it (PGKD, arXiv 2411.05045)
    energy_delta   energy minus that of base_model, the untouched student; its new classification head is drawn with seed
    embedding      1 - the largest cosine between the example's representation and one of the other train_examples;
                   the representation: mean of the last hidden states over what the student reads (Liu et al. 2024)
    tfidf          the same of the TF-IDF vectors of the sources' words: how far a text is from all training examples
                   without any student
    """
    import torch

    how = {
        "batch_size": batch_size, "energy_temperature": energy_temperature, "padded": padded,
        "max_source_length": max_source_length, "max_target_length": max_target_length, "seed": seed, "dtype": dtype,
    }  # fmt: skip
    results, points = score_pass(examples, task, model, embed=bool(train_examples), **how)
    for result in results:
        wrong = float(not result["correct"])
        result |= {"error": wrong, "hard_negative": float(f"{wrong * (1 - result['msp']):.9g}")}
    if base_model:
        base, _ = score_pass(examples, task, base_model, predict=False, **how)
        for result, other in zip(results, base, strict=True):
            result["energy_delta"] = float(f"{result['energy'] - other['energy']:.9g}")
    if train_examples:
        _, known = score_pass(train_examples, task, model, embed=True, predict=False, **how)
        points, known = (torch.nn.functional.normalize(p, dim=-1).numpy() for p in (points, known))
        distances = {"embedding": (points, known.T), "tfidf": tfidf_vectors(examples, train_examples)}
        for name, (own, others) in distances.items():
            for result, distance in zip(results, nearest_distances(own, others, examples, train_examples), strict=True):
                result[name] = float(f"{distance:.9g}")
    return results


def random_score(seed: int, identifier: str) -> float:
    """A number in [0, 1) for an example: the same whatever else is scored beside it."""
    return random.Random(f"{seed}/{identifier}").random()


def tfidf_vectors(examples: list[dict], train_examples: list[dict]) -> tuple[Any, Any]:
    """Unit vectors of TF-IDF of the sources' words: (n, V) of the examples, (V, m) of the training examples, sparse.

    Words are those of gold/text.py: a character in scripts without blanks, and symbols, so that no text is a row of zeros.
    Document frequencies are those of both sets together: a word that no training example has counts too.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, known = [e["source"] for e in examples], [e["source"] for e in train_examples]
    vectorizer = TfidfVectorizer(analyzer=words).fit([*texts, *known])
    return vectorizer.transform(texts), vectorizer.transform(known).T


def nearest_distances(points: Any, known: Any, examples: list[dict], train_examples: list[dict]) -> list[float]:
    """1 - the largest cosine of each example with a training example other than itself (by id); 1 where there is none.

    points (n, d) and known (d, m) are of unit length, dense or sparse.
    """
    import numpy as np

    places: dict[str, int] = {e["id"]: k for k, e in enumerate(train_examples)}
    found: list[float] = []
    rows = max(1, 2**24 // len(train_examples))  # 128 MiB of cosines at a time
    for begin in range(0, len(examples), rows):
        cosines = points[begin : begin + rows] @ known
        cosines = cosines.toarray() if hasattr(cosines, "toarray") else cosines
        for k, example in enumerate(examples[begin : begin + rows]):
            if example["id"] in places:
                cosines[k, places[example["id"]]] = -np.inf
        nearest = cosines.max(axis=1)
        found += np.where(np.isfinite(nearest), 1 - nearest, 1.0).tolist()
    return found


def score_pass(
    examples: list[dict], task: Task, model: str, batch_size: int, energy_temperature: float, padded: bool,
    max_source_length: int, max_target_length: int, seed: int, dtype: str, embed: bool = False, predict: bool = True,
) -> tuple[list[dict], Any]:  # fmt: skip
    """One pass of a student over the examples: (what score_examples says it gives from it, representations or None).

    embed: representations (n, d) in float32, on the CPU. predict: without it `prediction` and `correct` mean nothing.
    """
    import torch
    from tqdm import tqdm

    if padded:
        check_score("energy_padded", model, task)
    network, tokenizer, family = load_student(model, task, seed)
    decoder = family == "decoder"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device, getattr(torch, dtype))
    positions = positions_of(network, family)
    features = encode(examples, tokenizer, family, task, max_source_length, max_target_length, positions)
    results: list[dict] = [{} for _ in examples]
    points: Any = None
    below_head: list[Any] = []  # an encoder's last hidden states (B, S, d), which its outputs do not have
    if embed and family == "encoder":
        network.base_model.register_forward_hook(lambda module, given, out: below_head.append(out[0]))
    # Longest first: little padding, and the batch that needs most memory comes first. By tokens, not by examples: short
    # texts fill the device as long ones do, and long ones do not run out of its memory
    written = [0 if family == "encoder" else max_target_length if padded else len(f["labels"]) for f in features]
    sizes = [len(f["input_ids"]) + n for f, n in zip(features, written, strict=True)]
    order = sorted(range(len(examples)), key=lambda i: -sizes[i])
    batches, begin = [], 0
    while begin < len(order):
        count = max(1, batch_size * EXAMPLE_TOKENS // max(1, sizes[order[begin]]))
        batches.append(order[begin : begin + count])
        begin += count
    pad = tokenizer.pad_token_id

    def batch_of(rows: list[list[int]], value: int, length: int = 0) -> Any:
        length = max(length, *map(len, rows))
        return torch.tensor([row + [value] * (length - len(row)) for row in rows], device=device)

    targets = targets_of(task)
    max_new_tokens = 0 if family == "encoder" else answer_length(task, tokenizer, family, max_target_length)
    bar = tqdm(total=len(examples), desc="score", unit="example")
    with torch.inference_mode():
        for chosen in batches:
            batch = [features[i] for i in chosen]
            # A decoder reads its target behind the prompt; padding on the right is seen by no real token
            read = [f["input_ids"] + f["labels"] if decoder else f["input_ids"] for f in batch]
            inputs = {
                "input_ids": batch_of(read, pad),
                "attention_mask": batch_of([[1] * len(row) for row in read], 0),
            }
            if family == "encoder":
                labels = torch.tensor([f["labels"] for f in batch], device=device)
                logits = network(**inputs).logits
                columns = position_scores(logits, labels, energy_temperature)
                reading, read = below_head.pop() if embed else None, inputs["attention_mask"].bool()
                columns.pop("hit")
                predictions = [targets[k] for k in logits.argmax(-1).tolist()]
            else:
                labels = batch_of([f["labels"] for f in batch], pad, max_target_length if padded else 0)
                real = batch_of([[1] * len(f["labels"]) for f in batch], 0, labels.shape[1]).bool()
                scored = torch.ones_like(real) if padded else real
                # The output layer sees only scored positions, some at a time: no (B, L, V) block is ever built.
                head, network.lm_head = network.get_output_embeddings(), torch.nn.Identity()
                if decoder:
                    outputs = network(**inputs, use_cache=False)
                    # (B, 1) + (T,): target token j is predicted at the position before it; clamped where there is none
                    last = torch.tensor([[len(f["input_ids"]) - 1] for f in batch], device=device)
                    place = (last + torch.arange(labels.shape[1], device=device)).clamp(max=outputs.logits.shape[1] - 1)
                    states = outputs.logits[torch.arange(len(batch), device=device)[:, None], place]  # (B, T, d)
                    # The prompt alone, without the target behind it
                    reading, read = outputs.logits, torch.arange(outputs.logits.shape[1], device=device) <= last
                else:
                    outputs = network(**inputs, decoder_input_ids=network.prepare_decoder_input_ids_from_labels(labels))
                    states = outputs.logits  # (B, T, d): T5's scaling is in it
                    reading, read = outputs.encoder_last_hidden_state, inputs["attention_mask"].bool()
                network.lm_head = head
                hidden, tokens = states[scored], labels[scored]  # (n, d), (n,)
                rows = max(
                    1, 2**24 // head.out_features
                )  # 64 MiB of float32 logits; the scores take a few times as much
                pieces = [
                    position_scores(head(hidden[i : i + rows]), tokens[i : i + rows], energy_temperature)
                    for i in range(0, len(hidden), rows)
                ]
                grids = {}
                for name in pieces[0]:
                    values = torch.cat([piece[name] for piece in pieces])
                    grids[name] = torch.zeros(real.shape, dtype=values.dtype, device=device)
                    grids[name][scored] = values
                hits = grids.pop("hit").tolist()
                columns = reduce_positions(grids.pop("energy"), real)
                if not padded:
                    columns.pop("energy_padded")
                columns |= {name: grid.masked_fill(~real, 0).sum(-1) / real.sum(-1) for name, grid in grids.items()}
                predictions = [""] * len(batch)
                if predict:
                    # What is decoded freely may be longer than the target, by which the batch was made
                    room = max(1, batch_size * EXAMPLE_TOKENS // (len(batch[0]["input_ids"]) + max_new_tokens))
                    known = None if decoder else (outputs.encoder_last_hidden_state, inputs["attention_mask"])
                    predictions = greedy_texts(network, tokenizer, batch, hits, max_new_tokens, room, known)
            if embed:
                means = (reading.float() * read[..., None]).sum(1) / read.sum(1, keepdim=True)  # (B, d)
                points = torch.empty(len(examples), means.shape[1]) if points is None else points
                points[torch.tensor(chosen)] = means.cpu()
            # One copy from the device for a column, not one for each number
            values = {name: column.tolist() for name, column in columns.items()}
            for row, i in enumerate(chosen):
                prediction = predictions[row].strip()  # capitals stay where a metric may count them, as chrF does
                results[i] = {
                    "prediction": prediction.lower() if task.labels else prediction,
                    "correct": predict and is_correct(task, prediction, examples[i]),
                    **{name: float(f"{column[row]:.9g}") for name, column in values.items()},
                    "random": random_score(seed, examples[i]["id"]),
                }
            bar.update(len(chosen))
    bar.close()
    return results, points


# ---------------------------------------------------------------------------------------------------------------------
# Detection: how well the scores tell examples far from the task from those of the input


def score_far(examples: list[dict], task: Task, model: str, **how: Any) -> list[dict]:
    """As score_examples, for examples that may have no label of the task: what needs it is then left out.

    Only an encoder's other scores are free of the label; the energy of a generative student is that of a target.
    """
    label = next(iter(task.labels), None)
    known = [knows_answer(e, task) for e in examples]
    assumed = {} if label is None else {task.answer_field: label, "target": targets_of(task)[0]}
    asked = [e if has else e | assumed for e, has in zip(examples, known, strict=True)]
    scores = score_examples(asked, task, model, **how)
    return [
        s if has else {k: v for k, v in s.items() if k not in ("nll", "correct", "error", "hard_negative")}
        for s, has in zip(scores, known, strict=True)
    ]


def knows_answer(example: dict, task: Task) -> bool:
    """Whether an example has an answer that the task knows: a label of it, or any text of a text2text task."""
    answer = example.get(task.answer_field)
    return isinstance(answer, str) and bool(answer.strip()) and (not task.labels or answer in task.labels)


def detection(near: list[dict], far: list[dict]) -> dict[str, dict[str, float]]:
    """How well each score that all examples have tells OOD (far, the positives) from the input (near): 1, 1 and 0 are best.

    auroc  a far example has the higher score than a near one in this share of all pairs; of ties a half
    aupr   average precision of the far examples; the share of far examples is what chance gives
    fpr95  share of `near` at or above the highest threshold that flags 95 % or more of `far` (FPR@95TPR)
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    truth = [0] * len(near) + [1] * len(far)
    found = {}
    for name in near[0]:
        values = [s.get(name) for s in [*near, *far]]
        if not all(type(value) in (int, float) for value in values):
            continue
        if not all(map(math.isfinite, values)):
            fail(
                f"--ood-file: {name} is not finite for some example; the student is broken: train it with a lower rate"
            )
        fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
        found[name] = {
            "auroc": round(float(roc_auc_score(truth, values)), 4),
            "aupr": round(float(average_precision_score(truth, values)), 4),
            "fpr95": round(float(fpr[tpr >= 0.95].min()), 4),
        }
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def select_feedback(
    records: list[dict], task: Task, score: str, low: float, high: float,
    confirmed: bool = False, max_overlap: float = 1.0, counts: dict | None = None, group_size: int | None = None,
) -> list[dict]:  # fmt: skip
    """The records whose score lies in the quantile band [low, high) of their own label, most OOD first.

    n examples of a label in ascending order (ties by id): those at floor(low n) .. floor(high n) - 1 are kept, each with
    `score` and `rank` (1 = the highest score of its label). Fewer than 10 examples of a label, or a score that is not a
    number, end the stage: ranks of a handful mean nothing. Of error and hard_negative the band is one of the wrong
    examples, of which there may be few or none. confirmed: of those only whose answer the teacher's own agrees with.
    max_overlap: from the most OOD down, an example is left out whose text overlaps more than this (ROUGE-L F1) with a
    selected one's. counts gets what both took: unconfirmed, near_duplicates. group_size: the band is taken within each
    group of so many successive records, whatever their labels, instead of within each label.
    """
    groups: dict[Any, list[dict]] = {label: [] for label in ([] if group_size else task.labels or [None])}
    counts = {} if counts is None else counts
    if confirmed:
        for record in records:
            if not isinstance(record.get("teacher_label"), str):
                fail(
                    f"--confirmed: {record['id']} has no teacher_label; run generate.py label on the file, or sample --verify"
                )
        agreed = [r for r in records if agrees(task, r, r["teacher_label"])]
        counts["unconfirmed"], records = len(records) - len(agreed), agreed
    for place, record in enumerate(records):
        if score not in record:
            fail(f"--score {score}: {record['id']} has none; score it with --model, or choose another")
        if not math.isfinite(record[score]):
            fail(
                f"--score {score}: is {record[score]} for {record['id']}; the student is broken: train it with a lower rate"
            )
        name = place // group_size if group_size else record[task.answer_field] if task.labels else None
        groups.setdefault(name, []).append(record)
    selected = []
    for label, group in groups.items():
        n = len(group)
        if n < 10 and not group_size and score not in ("error", "hard_negative"):
            kind = "confirmed examples" if confirmed else "examples"
            fail(f"--input-file: only {n} {kind} of the label {label!r}, a band needs 10 or more; make more of them")
        if score in ("error", "hard_negative"):
            group = [r for r in group if r[score] > 0]
            n = len(group)
        group.sort(key=lambda r: (r[score], r["id"]))
        if n > 1 and group[0][score] == group[-1][score] and (low, high) != (0, 1) and score != "random":
            say(
                f"--score {score}: is the same for all examples of {label!r}: the band is one of ids; try --low 0 --high 1"
            )
        for place in range(math.floor(low * n + 1e-9), math.floor(high * n + 1e-9)):
            selected.append(group[place] | {"score": group[place][score], "rank": n - place})
    if not selected and score not in ("error", "hard_negative"):
        fail(f"--low {low} --high {high}: holds none of {len(records):,} examples; make the band wider")
    selected.sort(key=lambda r: (r["rank"], r["id"]))
    if max_overlap < 1:
        apart: list[dict] = []
        for record in selected:
            text = text_key(task, record)
            if all(overlap(text, text_key(task, other)) <= max_overlap for other in apart):
                apart.append(record)
        counts["near_duplicates"], selected = len(selected) - len(apart), apart
    return selected


REDUCTIONS = ["energy_sum", "energy_first", "energy_padded"]  # of the energies at several positions, beside the mean
OTHERS = ["nll", "msp", "entropy", "margin", "embedding", "tfidf", "error", "hard_negative", "random"]
Score = StrEnum("Score", ["energy", *REDUCTIONS, "energy_delta", *OTHERS])
SCORED = {*map(str, Score), "prediction", "correct"}  # what this stage adds to a record

# ---------------------------------------------------------------------------------------------------------------------
# Command

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
files = partial(typer.Option, rich_help_panel="Files")
selection = partial(typer.Option, rich_help_panel="Selection")
scoring = partial(typer.Option, rich_help_panel="Scoring")


@app.command()
def main(
    task_file: Annotated[Path, files(help="Task, as prompts/<task>.toml.")],
    input_file: Annotated[list[Path], files(help="Examples to score (validation.jsonl); repeat, or a glob in quotes.")],
    output_file: Annotated[Path, files(help="The same with scores.")],
    model: Annotated[
        str | None,
        files(help="Trained student: a folder or a name on the hub (none = the scores are there, or tfidf, random)."),
    ] = None,
    feedback_file: Annotated[Path | None, files(help="The selected ones, for generate.py (none = score only).")] = None,
    ood_file: Annotated[
        list[Path] | None,
        files(
            help="Examples far from the task: prints how well each score tells them from --input-file (AUROC, AUPR, and "
            "FPR@95TPR = the share of --input-file at or above the threshold that flags 95 % of these) and writes their "
            "scores beside the output, as scored.ood.jsonl. Repeat, or a glob in quotes."
        ),
    ] = None,
    base_model: Annotated[
        str | None, files(help="Untrained student, for energy_delta: what --model was fine-tuned from.")
    ] = None,
    train_file: Annotated[
        list[Path] | None, files(help="What --model was trained on, for embedding, tfidf; repeat, or a glob in quotes.")
    ] = None,
    shard: Annotated[
        str | None, files(metavar="I/N", help="Score every N-th example: scored-0000I-of-0000N.jsonl.")
    ] = None,
    score: Annotated[Score, selection(help="What the selection goes by; higher = more OOD.")] = Score.energy,
    low: Annotated[float, selection(min=0, max=1, help="Lower quantile of the band, within each label.")] = 0.5,
    high: Annotated[float, selection(min=0, max=1, help="Upper quantile (1 = the top is kept).")] = 0.8,
    confirmed: Annotated[
        bool,
        selection(help="Only examples whose teacher_label agrees with their answer (generate.py label, --verify)."),
    ] = False,
    group_size: Annotated[
        int | None, selection(min=2, help="The band within each so many successive examples, not within each label.")
    ] = None,
    max_overlap: Annotated[
        float, selection(min=0, max=1, help="Leave out what overlaps more than this with a selected one (ROUGE-L F1).")
    ] = 1.0,
    energy_temperature: Annotated[
        float, scoring(min=1e-3, help="T of the energy; not the sampling temperature.")
    ] = 1.0,
    per_device_eval_batch_size: Annotated[int, scoring(min=1, help=EXAMPLES_HELP)] = 64,
    max_source_length: Annotated[
        int | None, scoring(min=1, help="Tokens read (none = as the student was trained, 512 of a base).")
    ] = None,
    max_target_length: Annotated[
        int | None,
        scoring(
            min=1, help="Tokens written, and positions of energy_padded (none = as it was trained, 128 of a base)."
        ),
    ] = None,
    seed: Annotated[int, scoring(help="Seed of the random score.")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16"], scoring(help="Of the weights; bfloat16 blurs ranks.")] = "float32",
    limit: Annotated[int | None, typer.Option(min=1, help="Try out: the first so many examples.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be scored and selected; no model.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Score anew what is there already.")] = False,
) -> None:
    """Score --input-file with a student and select feedback."""
    task, part, counts = load_task(task_file), parse_shard(shard), {}
    score = score.value  # the plain text: as a key of a million records the enumeration's is slow and large
    if part and (feedback_file or not model):
        problem = "a band is taken over the whole set: score all shards, then give them as --input-file without --model"
        raise typer.BadParameter(problem, param_hint="--shard")
    needs = {"energy_delta": "--base-model", "embedding": "--train-file", "tfidf": "--train-file"}
    for option, given in (("--base-model", base_model), ("--train-file", train_file)):
        if given and not model and needs.get(score) != option:
            raise typer.BadParameter("is for scoring: give the --model too", param_hint=option)
        if model and needs.get(score) == option and not given:
            raise typer.BadParameter(f"{score} needs {option}", param_hint="--score")
    if ood_file and (part or not model):
        problem = "is scored whole, with the student: give --model and no --shard"
        raise typer.BadParameter(problem, param_hint="--ood-file")
    input_file = expand("--input-file", input_file)
    output_file = shard_path(output_file, part)
    far, far_counts, far_path = [], {}, output_file.with_name(f"{output_file.stem}.ood{output_file.suffix}")
    if ood_file:
        ood_file = expand("--ood-file", ood_file)
        far = read_examples(ood_file, task, answers=False, counts=far_counts, foreign=True, among=input_file)[:limit]
    train_file = expand("--train-file", train_file or [])
    files = [*input_file, *train_file]  # an example has the same id in both
    train_examples = read_examples(train_file, task, among=files) if train_file else None
    made_here = not model and (score == Score.random or (score == Score.tfidf and bool(train_examples)))
    use = {*([] if model or made_here else SCORED), *(["teacher_label"] if confirmed else [])}  # of whatever origin
    # A million whole examples take gigabytes: where their scores are there, each is written as it is read
    streamed = not model and not made_here
    kept = ["id", task.answer_field, score]  # of them, for the selection
    kept += ["teacher_label", "target", f"{task.answer_field}s", *task.fields] if confirmed or max_overlap < 1 else []
    examples: list[dict] = []

    def stored(example: dict) -> dict:
        """The scores that stand in an example."""
        return {name: value for name, value in example.items() if name in SCORED}

    def stream() -> Iterator[tuple[dict, dict]]:
        """(example, its scores) of the input; what the selection needs of it goes into `examples`."""
        for place, e in enumerate(iter_examples(input_file, task, counts=counts, use=use)):
            if type(e.get(score)) not in (int, float):
                cure = "--train-file to compare it with" if score == Score.tfidf else "--model to score it with"
                fail(f"--input-file: {e['id']} has no {score}; give the {cure}")
            if limit is None or place < limit:
                examples.append({k: e[k] for k in kept if k in e})
                yield e, stored(e)

    if low >= high:
        raise typer.BadParameter(f"{low} is not below --high {high}", param_hint="--low")
    if not streamed:
        examples = take_shard(read_examples(input_file, task, counts=counts, use=use, among=files)[:limit], part)
    elif dry_run:
        for _ in stream():
            pass
    if feedback_file and examples:  # too few of a label is an error that needs no model
        selected = select_feedback(
            [e | {score: i + 1.0} for i, e in enumerate(examples)], task, score, low, high, confirmed, group_size=group_size
        )  # fmt: skip
    if dry_run:
        names = ", ".join(map(str, input_file))
        print(
            f"would {'score' if model else 'read'} {len(examples):,} examples of {names}"
            + (f" with {model}" if model else "")
            + (f", and {len(far):,} OOD examples of {', '.join(map(str, ood_file))}" if far else "")
        )
        most = "at most " if max_overlap < 1 or score in ("error", "hard_negative") else ""
        print(
            f"would select {most}{len(selected):,} by {score} in [{low}, {high})"
            if feedback_file
            else "would select none"
        )
        return
    if model and score in REDUCTIONS:
        check_score(score, model, task)
    if base_model:
        family_of(base_model, task)
    if far and not all(knows_answer(e, task) for e in far) and family_of(model, task)[1] != "encoder":
        first = next(e["id"] for e in far if not knows_answer(e, task))
        fail(
            f"--ood-file: {first} has no {task.answer_field!r} that the task knows, and this student's scores are those of a "
            "target; add one to every record, or use an encoder"
        )
    lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length}
    lengths = trained_lengths(model, task, **lengths) if model else lengths
    how = {"energy_temperature": energy_temperature, **lengths, "seed": seed, "dtype": dtype}
    what = {"score": score, "low": low, "high": high, "feedback": bool(feedback_file)} | (
        {"shard": shard} if part else {}
    )
    what |= ({"confirmed": True} if confirmed else {}) | ({"max_overlap": max_overlap} if max_overlap < 1 else {})
    what |= {"group_size": group_size} if group_size else {}
    what |= {"seed": seed} if not model and score == Score.random else {}
    run = start_run(
        "score_ood.py", output_file, (how if model else {}) | what | {"limit": limit},
        {
            "task_file": task_file, "model": model, "input_file": input_file, "ood_file": ood_file or None,
            "base_model": base_model, "train_file": train_file or None,
        },
        also=([feedback_file] if feedback_file else []) + ([far_path] if far else []), overwrite=overwrite,
    )  # fmt: skip
    if run is None:
        return

    began = time.perf_counter()
    how |= {"batch_size": per_device_eval_batch_size, "padded": score == Score.energy_padded}
    how |= {"base_model": base_model, "train_examples": train_examples}
    scores: list[dict] = []
    if model:
        scores = score_examples(examples, task, model, **how)
    elif score == Score.random and made_here:
        scores = [{"random": random_score(seed, e["id"])} | stored(e) for e in examples]
    elif made_here:
        distances = nearest_distances(*tfidf_vectors(examples, train_examples), examples, train_examples)
        scores = [stored(e) | {"tfidf": distance} for e, distance in zip(examples, distances, strict=True)]
    rate = len(examples) / (time.perf_counter() - began)
    pairs = stream() if streamed else zip(examples, scores, strict=True)
    shown = ["id", *task.fields, task.answer_field]
    known, totals = {*shown, *SCORED}, {}

    def with_scores(pairs: Iterable[tuple[dict, dict]], totals: dict | None = None) -> Iterator[dict]:
        """Readable fields first, then scores (none of an earlier student's), then the rest as it was.

        totals gets the sums of the scores that all have as numbers, and of `correct`.
        """
        for place, (e, s) in enumerate(pairs):
            for name in [] if totals is None else list(totals) if place else s:
                value = s.get(name)
                if type(value) in ([bool] if name == "correct" else [int, float]):
                    totals[name] = totals.get(name, 0) + value
                else:
                    totals.pop(name, None)
            yield {k: e[k] for k in shown if k in e} | s | {k: v for k, v in e.items() if k not in known}

    selected = []
    try:
        with run.partial.open("w", encoding="utf-8") as file:
            write_records(file, with_scores(pairs, totals))
        if feedback_file:
            scored = examples if streamed else [e | {score: s[score]} for e, s in zip(examples, scores, strict=True)]
            selected = select_feedback(scored, task, score, low, high, confirmed, max_overlap, counts, group_size)
    except SystemExit:
        if streamed:  # bad input, which is read no sooner than this
            drop_run(run)
        raise
    counts |= {"scored": len(examples)} | ({"correct": totals.pop("correct")} if "correct" in totals else {})
    if feedback_file:
        counts["selected"] = len(selected)
        if not selected:
            say(f"{feedback_file}: no example is wrong: nothing to feed back")
        places = {r["id"]: 0 for r in selected}
        places |= {e["id"]: place for place, e in enumerate(examples) if e["id"] in places}
        rows = records_at(run.partial, (places[r["id"]] for r in selected))
        rows = (row | {"score": r["score"], "rank": r["rank"]} for row, r in zip(rows, selected, strict=True))
        head = [*shown, "score", "rank"]
        with beside(feedback_file, ".partial").open("w", encoding="utf-8") as file:
            write_records(file, ({k: r[k] for k in head} | {k: v for k, v in r.items() if k not in head} for r in rows))
    table = {}
    if far:
        far_scores = score_far(far, task, model, **how)
        table = detection(scores, far_scores)
        with beside(far_path, ".partial").open("w", encoding="utf-8") as file:
            write_records(file, with_scores(zip(far, far_scores, strict=True)))
        counts |= {"ood": len(far)} | {f"ood_{name}": number for name, number in far_counts.items()}
    means = {name: round(total / len(examples), 4) for name, total in totals.items()}
    more = ({"examples_per_second": round(rate, 1)} if model else {}) | ({"ood_detection": table} if far else {})
    finish_run(run, counts, means=means, **more)
    if far:
        print(
            f"{'score':<14} {'AUROC':>7} {'AUPR':>7} {'FPR@95TPR':>10}   {len(far):,} OOD beside {len(examples):,} examples"
        )
        for name, m in table.items():
            print(f"{name:<14} {m['auroc']:>7.3f} {m['aupr']:>7.3f} {m['fpr95']:>10.3f}")
    say(
        f"{output_file}: {len(examples):,} scored, "
        + (f"{counts['correct']:,} predicted right, " if "correct" in counts else "")
        + f"mean {score} {means[score]}"
        + (f"; {counts['selected']:,} selected by {score}" if feedback_file else "")
    )


if __name__ == "__main__":
    run_command(app)
