"""transformers' Trainer with our losses: the sum over target tokens, divided by their number in the whole step.

T5's and BERT's own losses are plain means of a batch, which gradient accumulation and torchrun then weigh wrongly (seen
with transformers 5.19). This module imports transformers.Trainer; a stage imports it where it trains.
"""

import math
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer, TrainerCallback

from gold.command import fail
from gold.losses import token_losses
from gold.predict import score_examples
from gold.student import Student


class StudentTrainer(Trainer):
    """Trains on features of Student.encode. After every epoch the student is measured as evaluate.py measures it."""

    def __init__(self, student: Student, held_out: list[dict], options: dict, **trainer_arguments: Any):
        self.student, self.held_out, self.options = student, held_out, options
        super().__init__(
            model=student.network, data_collator=collator_of(student), callbacks=[Progress()], **trainer_arguments
        )
        self.model_accepts_loss_kwargs = True  # count the items of a step for every model: compute_loss divides by them

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # the count is not read, and it walks through all parameters at every batch

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, family = inputs["labels"], self.student.family
        how = {} if family == "encoder" else {"use_cache": False}
        if (
            family == "decoder"
        ):  # logits of the last T + 1 positions alone: a block (B, L, V) is most of a small decoder's memory
            how["logits_to_keep"] = labels.shape[1]
        logits = model(**{k: v for k, v in inputs.items() if k not in ("labels", "soft")}, **how).logits
        if family == "decoder":  # the logits at one position are about the next token
            logits, labels = logits[:, :-1], labels[:, 1:]
        weights = {name: self.options[name] for name in ("sce_alpha", "sce_beta")}
        losses = token_losses(logits, labels, self.options["loss"], soft=inputs.get("soft"), **weights)
        # The items are counted over all processes, whose gradients are averaged
        return losses.sum() * self.accelerator.num_processes / num_items_in_batch

    def measure(self) -> dict[str, float]:
        """Held-out accuracy by the task's metric, and mean nll."""
        self.student.network.eval()
        scores, _ = score_examples(self.student, self.held_out, self.args.per_device_eval_batch_size)
        accuracy = sum(s["correct"] for s in scores) / len(scores)
        return {"eval_accuracy": accuracy, "eval_loss": sum(s["nll"] for s in scores) / len(scores)}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """What is measured after an epoch; choice: the accuracy, of equal ones the later epoch is the best."""
        found: list[Any] = [None]
        if self.is_world_process_zero():
            found = [self.measure()]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        metrics = found[0] | {"eval_choice": found[0]["eval_accuracy"] + 1e-6 * self.state.epoch}
        self.log(metrics)
        return metrics


def collator_of(student: Student) -> Any:
    if student.family == "decoder":
        return DecoderCollator(student.tokenizer.pad_token_id)
    if student.family == "encoder":
        return DataCollatorWithPadding(student.tokenizer)
    return DataCollatorForSeq2Seq(student.tokenizer, model=student.network)  # pads labels with -100, shifts them


class DecoderCollator:
    """Prompt and target in one row, padded on the left, so that all targets stand at the end.

    labels (B, T + 1) are the last T + 1 inputs, with -100 where there is no target token: always at their first place,
    which nothing predicts. So Trainer counts right whether or not it leaves the first place out (it does by model).
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, features: list[dict]) -> dict:
        rows = [f["input_ids"] + f["labels"] for f in features]
        width, tail = max(map(len, rows)), max(len(f["labels"]) for f in features) + 1
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {
            "input_ids": torch.tensor([[self.pad_token_id] * (width - len(row)) + row for row in rows]),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "labels": torch.tensor([[-100] * (tail - len(f["labels"])) + f["labels"] for f in features]),
            **{name: torch.tensor([f[name] for f in features]) for name in ("soft",) if name in features[0]},
        }


class Progress(TrainerCallback):
    """One bar on stderr; an end where a loss is no number."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="train", unit="step", disable=not state.is_world_process_zero)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        for name in ("loss", "eval_loss", "train_loss"):  # train_loss: the mean of all steps, at the end
            if not math.isfinite((logs or {}).get(name, 0.0)):
                self.bar.close()
                fail(
                    f"the {name} is {logs[name]} at step {state.global_step}: lower --learning-rate, or --dtype float32"
                )
        shown = {name: f"{logs[name]:.3f}" for name in ("loss", "eval_accuracy") if name in (logs or {})}
        self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
