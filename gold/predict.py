"""One pass of a student over examples: what it predicts, and the scores of gold/scores.py.

For each batch: run_student gives the hidden states at the target's tokens, score_targets the scores there from their
logits, sequence_scores (gold/scores.py) those of whole targets, greedy_texts the predictions.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from gold.metrics import is_correct
from gold.scores import REDUCTIONS, mean_over, position_scores, random_score, sequence_scores
from gold.student import Student

CPU_TOKENS = 1024  # in a batch of an encoder on a CPU: of larger ones what is between two layers leaves its caches
EXAMPLE_TOKENS = 128  # an example of --per-device-eval-batch-size: so many tokens, padding and target included
LOGITS_AT_ONCE = 2**24  # 64 MiB of float32 logits; the scores take a few times as much

OF_BATCH = f"Examples of {EXAMPLE_TOKENS} tokens in a batch (an encoder on a CPU: 8 at most). Out of memory: halve it."
PerDeviceEvalBatchSize = Annotated[int, typer.Option(min=1, help=OF_BATCH)]


def predict(student: Student, examples: list[dict], batch_size: int) -> list[str]:
    """What the student answers to each example, in input order."""
    return [scores["prediction"] for scores in score_examples(student, examples, batch_size)[0]]


def score_examples(
    student: Student, examples: list[dict], batch_size: int, temperature: float = 1.0, padded: bool = False,
    embed: bool = False, decode: bool = True, seed: int = 0,
) -> tuple[list[dict], Any]:  # fmt: skip
    """(a dict of scores by example, in input order; representations (n, d) in float32 where `embed`, else None).

    batch_size: in examples of EXAMPLE_TOKENS tokens. padded: also energy_padded, over max_target_length positions as the
    authors' code does. embed: the mean of the last hidden states over what the student reads (Liu et al. 2024). decode:
    without it there is no prediction, and no `correct`. `prediction`: the label's target, lower-cased, or the greedily
    decoded text, stripped; with reasons in the target the answer behind them.

    error          1 = not correct, else 0 (S3, Wang et al. 2023)
    hard_negative  1 - msp where not correct, else 0: wrong and sure of it (PGKD, arXiv 2411.05045)
    """
    import torch
    from tqdm import tqdm

    features, task, results, points = student.encode(examples), student.task, {}, {}
    absent = REDUCTIONS if student.family == "encoder" else [] if padded else ["energy_padded"]
    with torch.inference_mode(), tqdm(total=len(examples), desc="score", unit="example", delay=0.5) as bar:
        for chosen in batches_of(student, features, batch_size, padded):
            batch = [features[i] for i in chosen]
            labels, real = targets_of(student, batch, padded)
            scored = real | padded
            hidden, states, read = run_student(student, batch, labels, scored)
            grids = score_targets(student, hidden, labels, scored, temperature)
            hits = grids.pop("is_top").tolist()
            columns = {k: column.tolist() for k, column in sequence_scores(grids, real).items() if k not in absent}
            for row, i in enumerate(chosen):
                results[i] = {name: rounded(column[row]) for name, column in columns.items()}
            if embed:
                means = mean_over(states.float().transpose(1, 2), read[:, None])  # (B, d)
                points |= dict(zip(chosen, means.cpu(), strict=True))
            if decode:
                texts = predictions_of(student, batch, hidden, hits, (states, read), batch_size)
                for i, text in zip(chosen, texts, strict=True):
                    text = task.answer_of(text)
                    correct = is_correct(task, text, examples[i])
                    answer = {"prediction": text.lower() if task.labels else text, "correct": correct}
                    hard = 0.0 if correct else rounded(1 - results[i]["msp"])
                    results[i] = answer | results[i] | {"error": float(not correct), "hard_negative": hard}
            bar.update(len(chosen))
    rows = [results[i] | {"random": random_score(seed, e["id"])} for i, e in enumerate(examples)]
    return rows, torch.stack([points[i] for i in range(len(examples))]) if embed else None


def rounded(value: float) -> float:
    """Nine digits tell every float32 from the next."""
    return float(f"{value:.9g}")


def batches_of(student: Student, features: list[dict], batch_size: int, padded: bool) -> Iterator[list[int]]:
    """Places of the examples of each batch, the longest first: little padding, and what needs most memory comes first.

    By tokens, not by examples: short texts fill the device as long ones do, and long ones do not run out of its memory.
    """
    fixed = 0 if student.family == "encoder" else student.lengths["max_target_length"] if padded else None
    sizes = [len(f["input_ids"]) + (len(f["labels"]) if fixed is None else fixed) for f in features]
    order = sorted(range(len(features)), key=lambda i: -sizes[i])
    begin, tokens = 0, batch_size * EXAMPLE_TOKENS
    # Encoders alone: the others also decode in these batches, in fewer steps where they are large
    if student.family == "encoder" and student.network.device.type == "cpu":
        tokens = min(tokens, CPU_TOKENS)
    while begin < len(order):
        count = max(1, tokens // max(1, sizes[order[begin]]))
        yield order[begin : begin + count]
        begin += count


def targets_of(student: Student, batch: list[dict], padded: bool) -> tuple[Any, Any]:
    """(token ids of the targets, of an encoder the class, (B, L); which of them are real, (B, L) bool)."""
    rows = [[f["labels"]] if student.family == "encoder" else f["labels"] for f in batch]
    width = student.lengths["max_target_length"] if padded else None
    columns = pad_batch(student.tokenizer, rows, student.network.device, width=width)
    return columns["input_ids"], columns["attention_mask"].bool()


def run_student(student: Student, batch: list[dict], labels: Any, scored: Any) -> tuple[Any, Any, Any]:
    """One forward pass, the target teacher-forced: (hidden (n, d), states (B, S, d), read (B, S) bool).

    hidden: what goes into the output layer at the n `scored` positions of labels (B, L), row by row; of an encoder the
    logits (B, K). states: the last hidden states. read: which of them are of what the student reads.
    """
    import torch

    network, decoder = student.network, student.family == "decoder"
    rows = [f["input_ids"] + f["labels"] if decoder else f["input_ids"] for f in batch]
    inputs = pad_batch(student.tokenizer, rows, network.device)  # on the right: no real token of a decoder sees it
    mask = inputs["attention_mask"]
    if student.family == "encoder":
        states: list[Any] = []  # of the model below the head, which its own outputs do not have
        hook = network.base_model.register_forward_hook(lambda module, given, output: states.append(output[0]))
        logits = network(**inputs).logits
        hook.remove()
        return logits, states[0], mask.bool()
    forced = {} if decoder else {"decoder_input_ids": network.prepare_decoder_input_ids_from_labels(labels)}
    head, network.lm_head = network.lm_head, torch.nn.Identity()  # no block (B, L, V) is built
    try:
        output = network(**inputs, **forced, use_cache=False)
    finally:
        network.lm_head = head
    hidden = output.logits  # with T5's scaling in it
    if not decoder:
        return hidden[scored], output.encoder_last_hidden_state, mask.bool()
    # A token is predicted at the position before it: the first of the target at the last one of the prompt
    place = torch.arange(hidden.shape[1], device=network.device)
    last = torch.tensor([[len(f["input_ids"]) - 1] for f in batch], device=network.device)
    return hidden[(place >= last) & (place < mask.sum(-1, keepdim=True) - 1)], hidden, place <= last


def score_targets(student: Student, hidden: Any, labels: Any, scored: Any, temperature: float) -> dict[str, Any]:
    """position_scores at the scored positions of labels, each (B, L), 0 elsewhere; hidden (n, d) goes through the output
    layer a part at a time."""
    import torch

    head = torch.nn.Identity() if student.family == "encoder" else student.network.lm_head
    rows = max(1, LOGITS_AT_ONCE // getattr(head, "out_features", 1))
    parts = zip(hidden.split(rows), labels[scored].split(rows), strict=True)
    found = [position_scores(head(states), tokens, temperature) for states, tokens in parts]
    columns = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return {name: column.new_zeros(labels.shape).masked_scatter(scored, column) for name, column in columns.items()}


def predictions_of(
    student: Student, batch: list[dict], hidden: Any, hits: list[list[bool]], encoded: tuple, batch_size: int
) -> list[str]:
    """The likeliest label's target, or what the student writes, stripped; arguments as of run_student and greedy_texts."""
    if student.family == "encoder":
        return [student.task.targets[k].strip() for k in hidden.argmax(-1).tolist()]
    # What is decoded freely may be longer than the target, by which the batch was made
    longest = len(batch[0]["input_ids"]) + student.max_new_tokens
    at_once = max(1, batch_size * EXAMPLE_TOKENS // longest)
    how = (student.max_new_tokens, at_once, encoded)
    return [text.strip() for text in greedy_texts(student.network, student.tokenizer, batch, hits, *how)]


def pad_batch(tokenizer: Any, rows: list[list[int]], device: Any, side: str = "right", width: int | None = None) -> Any:
    """input_ids and attention_mask, each (B, L): L is the longest row's length, or `width`."""
    how = {"padding": "max_length" if width else True, "max_length": width, "padding_side": side}
    return tokenizer.pad({"input_ids": rows}, **how, return_attention_mask=True, return_tensors="pt").to(device)


def greedy_texts(
    network: Any, tokenizer: Any, features: list[dict], hits: list[list[bool]], max_new_tokens: int, at_once: int,
    encoded: tuple[Any, Any],
) -> list[str]:  # fmt: skip
    """The text that the student writes for each example, in the order of features (input_ids, labels).

    hits: whether each token of the labels is the likeliest one, and no other as likely, with those before it given. Where
    all are, up to the first end token, greedy decoding writes these tokens; only the other examples are decoded, at_once
    at a time. encoded: an encoder-decoder's last encoder states (B, S, d) and their mask (B, S).
    """
    from transformers.modeling_outputs import BaseModelOutput

    written: dict[int, list[int]] = {}
    for row, (feature, hit) in enumerate(zip(features, hits, strict=True)):
        ids, end = feature["labels"], tokenizer.eos_token_id
        length = ids.index(end) + 1 if end in ids else 0  # a target that was cut has no end: what follows is not known
        if 0 < length <= max_new_tokens and all(hit[:length]):
            written[row] = ids[:length]
    rest = [row for row in range(len(features)) if row not in written]
    for rows in (rest[i : i + at_once] for i in range(0, len(rest), at_once)):
        if network.config.is_encoder_decoder:
            states, mask = (part[rows] for part in encoded)
            given, read = {"encoder_outputs": BaseModelOutput(states), "attention_mask": mask}, 1  # the start token
        else:  # a decoder goes on where the prompt ends: padding stands before it
            given = pad_batch(tokenizer, [features[row]["input_ids"] for row in rows], network.device, side="left")
            read = given["input_ids"].shape[1]
        output = network.generate(**given, max_new_tokens=max_new_tokens)
        written |= dict(zip(rows, output[:, read:].tolist(), strict=True))
    # A tokenizer may be set to clean up blanks, such as that before a comma: they stay as they were written
    ids = [written[row] for row in range(len(features))]
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
