"""The rival of bench/students.py: a classifier in plain transformers, in the way of transformers' own text classification
script, and a plain loop that scores texts with it. Own words; nothing of gold is imported.

    python bench/run_glue_like.py train --model data/models/all-minilm-l6-v2 --train-file train.jsonl --output-dir /tmp/rival
    python bench/run_glue_like.py score --model /tmp/rival --input-file texts.jsonl --output-file /tmp/scores.jsonl

train   Trainer with dynamic padding, batches of like lengths, no evaluation, one save at the end; float32 or --bf16
score   batches in the order of the file, each padded to its longest; the lines are written at the end

Both read `source` and `label` of a JSON Lines file and print one JSON line, with the seconds of the loop alone in it.
"""

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    model: Annotated[str, typer.Option()],
    train_file: Annotated[Path, typer.Option()],
    output_dir: Annotated[Path, typer.Option()],
    epochs: Annotated[float, typer.Option()] = 1,
    batch_size: Annotated[int, typer.Option()] = 32,
    learning_rate: Annotated[float, typer.Option()] = 1.5e-4,
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    warmup_ratio: Annotated[float, typer.Option()] = 0.1,
    max_length: Annotated[int, typer.Option()] = 512,
    bf16: Annotated[bool, typer.Option("--bf16", help="Autocast to bfloat16.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    disable_progress_bars()
    rows = [json.loads(line) for line in train_file.open(encoding="utf-8")]
    labels = sorted({row["label"] for row in rows})
    place = {name: k for k, name in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=place, dtype=torch.float32
    )
    data = Dataset.from_dict({"source": [r["source"] for r in rows], "labels": [place[r["label"]] for r in rows]})
    data = data.map(
        lambda batch: tokenizer(batch["source"], truncation=True, max_length=max_length),
        batched=True, remove_columns=["source"],
    )  # fmt: skip
    steps = math.ceil(math.ceil(len(rows) / batch_size) * epochs)
    arguments = TrainingArguments(
        output_dir=str(output_dir), num_train_epochs=epochs, per_device_train_batch_size=batch_size, seed=seed,
        learning_rate=learning_rate, weight_decay=weight_decay, warmup_steps=int(steps * warmup_ratio), bf16=bf16,
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="group_by_length", eval_strategy="no", save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        network, arguments, DataCollatorWithPadding(tokenizer), train_dataset=data, processing_class=tokenizer
    )
    metrics = trainer.train().metrics
    trainer.save_model()
    print(json.dumps({"loop_seconds": metrics["train_runtime"], "steps": trainer.state.global_step}))


def plain_scores(network: Any, tokenizer: Any, rows: list[dict], batch_size: int = 32) -> list[dict]:
    """The prediction and scores of every text, from the logits of its batch."""
    import torch

    names, found = network.config.id2label, []
    with torch.inference_mode():
        for begin in range(0, len(rows), batch_size):
            batch = rows[begin : begin + batch_size]
            texts = [row["source"] for row in batch]
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
            logits = network(**inputs.to(network.device)).logits
            log_p = logits.log_softmax(-1)
            first, second = log_p.exp().topk(2).values.unbind(-1)
            energy, entropy = -logits.logsumexp(-1), -(log_p.exp() * log_p).sum(-1)
            columns = (logits.argmax(-1), energy, 1 - first, entropy, 1 - (first - second))
            for row, (k, *scores) in zip(batch, zip(*(c.tolist() for c in columns), strict=True), strict=True):
                scores = dict(zip(("energy", "msp", "entropy", "margin"), scores, strict=True))
                found.append({"prediction": names[k], "correct": names[k] == row["label"]} | scores)
    return found


def load(model: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    return network.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(model)


@app.command()
def score(
    model: Annotated[str, typer.Option()],
    input_file: Annotated[Path, typer.Option()],
    output_file: Annotated[Path, typer.Option()],
    batch_size: Annotated[int, typer.Option()] = 32,
) -> None:
    rows = [json.loads(line) for line in input_file.open(encoding="utf-8")]
    network, tokenizer = load(model)
    began = time.perf_counter()
    scores = plain_scores(network, tokenizer, rows, batch_size)
    seconds = time.perf_counter() - began
    with output_file.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row | found) + "\n" for row, found in zip(rows, scores, strict=True))
    print(json.dumps({"loop_seconds": seconds}))


if __name__ == "__main__":
    app()
