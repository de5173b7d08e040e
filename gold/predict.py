"""One pass of a student over examples: what it predicts, and the scores of gold/scores.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from gold.command import fail
from gold.correctness import is_correct
from gold.decoding import greedy_texts
from gold.scores import REDUCTIONS, mean_over, position_scores, random_score, reduce_energies
from gold.student import Student

EXAMPLE_TOKENS = 128  # an example of --per-device-eval-batch-size: so many tokens, padding and target included
LOGITS_AT_ONCE = 2**24  # 64 MiB of float32 logits; the scores take a few times as much

PerDeviceEvalBatchSize = Annotated[
    int,
    typer.Option(min=1, help=f"Examples of {EXAMPLE_TOKENS} tokens in a batch, more of shorter ones. Out of memory: halve it."),
]  # fmt: skip


@dataclass
class Batch:
    """What one forward pass gives of B examples."""

    columns: dict[str, Any]  # scores, each (B,)
    predictions: list[str]
    states: Any  # last hidden states of what is read (B, S, d)
    read: Any  # which of the S positions are read (B, S), bool


def predict(student: Student, examples: list[dict], batch_size: int) -> list[str]:
    """What the student answers to each example, in input order."""
    return [scores["prediction"] for scores in score_examples(student, examples, batch_size)[0]]


def score_examples(
    student: Student, examples: list[dict], batch_size: int, temperature: float = 1.0, padded: bool = False,
    embed: bool = False, decode: bool = True, seed: int = 0,
) -> tuple[list[dict], Any]:  # fmt: skip
    """(a dict of scores by example, in input order; representations (n, d) in float32 where `embed`, else None).

    batch_size: in examples of EXAMPLE_TOKENS tokens. padded: also energy_padded, over max_target_length positions as
    the authors' code does. embed: the mean of the last hidden states over what the student reads (Liu et al. 2024).
    decode: without it there is no prediction, and no `correct`. `prediction`: the label's target, lower-cased, or the
    greedily decoded text, stripped.

    error          1 = not correct, else 0 (S3, Wang et al. 2023)
    hard_negative  1 - msp where not correct, else 0: wrong and sure of it (PGKD, arXiv 2411.05045)
    """
    import torch
    from tqdm import tqdm

    features, task = student.encode(examples), student.task
    results: list[dict] = [{} for _ in examples]
    points = None
    with torch.inference_mode(), tqdm(total=len(examples), desc="score", unit="example", delay=0.5) as bar:
        for chosen in batches_of(student, features, batch_size, padded):
            forward = encoder_batch if student.family == "encoder" else writer_batch
            batch = forward(student, [features[i] for i in chosen], batch_size, temperature, padded, embed, decode)
            if embed:
                means = mean_over(batch.states.float().transpose(1, 2), batch.read[:, None, :])  # (B, d)
                points = torch.empty(len(examples), means.shape[1]) if points is None else points
                points[torch.tensor(chosen)] = means.cpu()
            # One copy from the device for a column, not one for each number
            values = {name: column.tolist() for name, column in batch.columns.items()}
            for row, i in enumerate(chosen):
                scores = {name: float(f"{column[row]:.9g}") for name, column in values.items()}
                answer = {}
                if decode:
                    prediction = batch.predictions[row].strip()
                    correct = is_correct(task, prediction, examples[i])
                    answer = {"prediction": prediction.lower() if task.labels else prediction, "correct": correct}
                    scores |= {
                        "error": float(not correct),
                        "hard_negative": 0.0 if correct else float(f"{1 - scores['msp']:.9g}"),
                    }
                results[i] = answer | scores | {"random": random_score(seed, examples[i]["id"])}
            bar.update(len(chosen))
    return results, points


def check_score(student_family: str, score: str) -> None:
    """Ends the stage where a student of this family has no such score."""
    if student_family == "encoder" and score in REDUCTIONS:
        fail(f"--score {score}: an encoder student has one position, where every reduction is the same: use energy")
    if student_family == "decoder" and score == "energy_padded":
        fail(
            f"--score {score}: the authors' setting for T5, which pads its targets; a decoder student has none: use energy"
        )


def batches_of(student: Student, features: list[dict], batch_size: int, padded: bool) -> Iterator[list[int]]:
    """Places of the examples of each batch, the longest first: little padding, and what needs most memory comes first.

    By tokens, not by examples: short texts fill the device as long ones do, and long ones do not run out of its memory.
    """
    fixed = 0 if student.family == "encoder" else student.lengths["max_target_length"] if padded else None
    sizes = [len(f["input_ids"]) + (len(f["labels"]) if fixed is None else fixed) for f in features]
    order = sorted(range(len(features)), key=lambda i: -sizes[i])
    begin = 0
    while begin < len(order):
        count = max(1, batch_size * EXAMPLE_TOKENS // max(1, sizes[order[begin]]))
        yield order[begin : begin + count]
        begin += count


def pad_rows(rows: list[list[int]], value: int, device: Any, length: int = 0) -> Any:
    """Rows of different lengths as one tensor (B, L), padded on the right, at least `length` wide."""
    import torch

    length = max(length, *map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], device=device)


def encoder_batch(
    student: Student, features: list[dict], batch_size: int, temperature: float, padded: bool, embed: bool, decode: bool
) -> Batch:
    import torch

    network, device = student.network, student.network.device
    rows = [f["input_ids"] for f in features]
    mask = pad_rows([[1] * len(row) for row in rows], 0, device)
    inputs = {"input_ids": pad_rows(rows, student.tokenizer.pad_token_id, device), "attention_mask": mask}
    states: list[Any] = []  # the outputs of the model below the head, which its own outputs do not have
    hook = network.base_model.register_forward_hook(lambda module, given, out: states.append(out[0])) if embed else None
    logits = network(**inputs).logits
    if hook:
        hook.remove()
    columns = position_scores(logits, torch.tensor([f["labels"] for f in features], device=device), temperature)
    columns.pop("is_top")
    predictions = [student.task.targets[k] for k in logits.argmax(-1).tolist()]
    return Batch(columns, predictions, states[0] if embed else None, mask.bool())


def writer_batch(
    student: Student, features: list[dict], batch_size: int, temperature: float, padded: bool, embed: bool, decode: bool
) -> Batch:
    """The target is teacher-forced. The output layer sees only scored positions, some at a time: no block (B, L, V) is
    built."""
    import torch

    network, tokenizer, device = student.network, student.tokenizer, student.network.device
    labels = pad_rows(
        [f["labels"] for f in features],
        tokenizer.pad_token_id,
        device,
        student.lengths["max_target_length"] if padded else 0,
    )
    real = pad_rows([[1] * len(f["labels"]) for f in features], 0, device, labels.shape[1]).bool()
    scored = torch.ones_like(real) if padded else real
    head, network.lm_head = network.get_output_embeddings(), torch.nn.Identity()
    try:
        states, reading, read = target_states(student, features, labels)  # (B, T, d), (B, S, d), (B, S)
    finally:
        network.lm_head = head
    hidden, tokens = states[scored], labels[scored]  # (n, d), (n,)
    rows = max(1, LOGITS_AT_ONCE // head.out_features)
    pieces = [
        position_scores(head(hidden[i : i + rows]), tokens[i : i + rows], temperature)
        for i in range(0, len(hidden), rows)
    ]
    grids = {}
    for name in pieces[0]:
        values = torch.cat([piece[name] for piece in pieces])
        grids[name] = torch.zeros(real.shape, dtype=values.dtype, device=device)
        grids[name][scored] = values
    is_top = grids.pop("is_top").tolist()
    columns = reduce_energies(grids.pop("energy"), real)
    if not padded:
        columns.pop("energy_padded")
    columns |= {name: mean_over(grid, real) for name, grid in grids.items()}
    predictions = [""] * len(features)
    if decode:
        # What is decoded freely may be longer than the target, by which the batch was made
        longest = len(features[0]["input_ids"]) + student.max_new_tokens
        encoded = None if student.family == "decoder" else (reading, read)
        at_once = max(1, batch_size * EXAMPLE_TOKENS // longest)
        predictions = greedy_texts(network, tokenizer, features, is_top, student.max_new_tokens, at_once, encoded)
    return Batch(columns, predictions, reading, read)


def target_states(student: Student, features: list[dict], labels: Any) -> tuple[Any, Any, Any]:
    """(states that go into the output layer at the target's positions (B, T, d), states of what is read, which of these
    are)."""
    import torch

    network, device, pad = student.network, student.network.device, student.tokenizer.pad_token_id
    rows = [f["input_ids"] for f in features]
    if student.family == "encoder-decoder":
        mask = pad_rows([[1] * len(row) for row in rows], 0, device)
        shifted = network.prepare_decoder_input_ids_from_labels(labels)
        out = network(input_ids=pad_rows(rows, pad, device), attention_mask=mask, decoder_input_ids=shifted)
        return out.logits, out.encoder_last_hidden_state, mask.bool()  # T5's scaling is in the former
    # A decoder reads its target behind the prompt; padding on the right is seen by no real token
    whole = [row + f["labels"] for row, f in zip(rows, features, strict=True)]
    mask = pad_rows([[1] * len(row) for row in whole], 0, device)
    states = network(input_ids=pad_rows(whole, pad, device), attention_mask=mask, use_cache=False).logits
    # (B, 1) + (T,): target token j is predicted at the position before it; clamped where there is none
    last = torch.tensor([[len(row) - 1] for row in rows], device=device)
    place = (last + torch.arange(labels.shape[1], device=device)).clamp(max=states.shape[1] - 1)
    at_target = states[torch.arange(len(rows), device=device)[:, None], place]
    return at_target, states, torch.arange(states.shape[1], device=device) <= last  # the prompt alone is what is read
