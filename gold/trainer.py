"""transformers' Trainer with our losses: the sum over target tokens, divided by their number in the whole step.

T5's and BERT's own losses are means of a batch, which gradient accumulation and torchrun then weigh wrongly (transformers
5.19). This module imports transformers.Trainer; a stage imports it where it trains.
"""

import math
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, ProgressCallback, Trainer

from gold.command import fail
from gold.predict import score_examples
from gold.student import Student

LOG_ZERO = -9.21  # A = log 1e-4, what the reverse cross-entropy takes for log 0 (Wang et al. 2019; GOLD's code)


class StudentTrainer(Trainer):
    """Trains on features of Student.encode. After every epoch the student is measured as evaluate.py measures it."""

    def __init__(self, student: Student, held_out: list[dict], options: dict, **arguments: Any):
        self.student, self.held_out, self.options = student, held_out, options
        super().__init__(model=student.network, data_collator=collator_of(student), callbacks=[Progress()], **arguments)
        self.model_accepts_loss_kwargs = True  # count the items of a step for every model: compute_loss divides by them

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # nobody reads the count, which walks through all parameters at every batch

    def compute_loss(self, model: Any, inputs: dict, num_items_in_batch: Any = None, **_: Any) -> Any:
        labels, soft, how = inputs.pop("labels"), inputs.pop("soft", None), {}
        if self.student.family != "encoder":
            how["use_cache"] = False
        if self.student.family == "decoder":
            # Of the last T + 1 positions alone: (B, L, V) is most of a small decoder's memory
            how["logits_to_keep"] = labels.shape[1]
        logits = model(**inputs, **how).logits
        if self.student.family == "decoder":  # the logits of one position predict the next token
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss, alpha, beta = (self.options[name] for name in ("loss", "sce_alpha", "sce_beta"))
        losses = token_losses(logits, labels, loss, alpha, beta, soft)
        # The items are counted over all processes, whose gradients are averaged
        return losses.sum() * self.accelerator.num_processes / num_items_in_batch

    def measure(self) -> dict[str, float]:
        """Held-out accuracy by the task's metric, and mean nll."""
        self.student.network.eval()
        scores, _ = score_examples(self.student, self.held_out, self.args.per_device_eval_batch_size)
        means = {name: sum(s[name] for s in scores) / len(scores) for name in ("correct", "nll")}
        return {"eval_accuracy": means["correct"], "eval_loss": means["nll"]}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The first process measures; `choice` is the accuracy, and of equal ones that of the later epoch is higher."""
        measured = broadcast_object_list([self.measure() if self.is_world_process_zero() else None])[0]
        metrics = measured | {"eval_choice": measured["eval_accuracy"] + 1e-6 * self.state.epoch}
        self.log(metrics)
        return metrics


def token_losses(
    logits: Any, labels: Any, loss: str, sce_alpha: float = 1.0, sce_beta: float = 0.1, soft: Any = None
) -> Any:
    """Loss, in float32, of every position that has a label: logits (..., K), labels (...), -100 = none -> (n,).

    ce   -log p_y
    sce  alpha * ce + beta * rce (symmetric cross-entropy, Wang et al. 2019, arXiv 1908.06112). The reverse cross-entropy
         rce = -sum_k p_k log q_k is -A (1 - p_y) for a one-hot q and log 0 := A.
    kl   KL(teacher || student) without the teacher's entropy, a constant (Hinton et al. 2015). Encoder: -sum_k q_k log p_k,
         soft (B, K) = label_probs. Others: one row for each answer, q * ce at every token, soft (B,) = q of that answer.
         Without soft labels (held-out examples) it is ce.
    """
    if soft is not None and soft.dim() == 2:
        return -(soft.float() * logits.float().log_softmax(-1)).sum(-1)
    keep = labels != -100
    losses = ce = torch.nn.functional.cross_entropy(logits[keep].float(), labels[keep], reduction="none")
    if loss == "sce":
        losses = sce_alpha * ce - sce_beta * LOG_ZERO * (1 - (-ce).exp())
    return losses if soft is None else losses * soft.float()[:, None].expand(labels.shape)[keep]


def collator_of(student: Student) -> Any:
    if student.family == "decoder":
        return partial(collate_decoder, student.tokenizer.pad_token_id)
    if student.family == "encoder":
        return DataCollatorWithPadding(student.tokenizer)
    return DataCollatorForSeq2Seq(student.tokenizer, model=student.network)  # pads labels with -100, shifts them


def collate_decoder(pad_token_id: int, features: list[dict]) -> dict:
    """Prompt and target in one row, padded on the left, so that all targets end at the last position.

    labels (B, T + 1) belong to the last T + 1 inputs, -100 where these are no target. The first is always -100, so that
    Trainer counts the same items whether or not it skips it, as it does for some models.
    """
    rows = [f["input_ids"] + f["labels"] for f in features]
    width, tail = max(map(len, rows)), max(len(f["labels"]) for f in features) + 1
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {
        "input_ids": torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": torch.tensor([[-100] * (tail - len(f["labels"])) + f["labels"] for f in features]),
        **({"soft": torch.tensor([f["soft"] for f in features])} if "soft" in features[0] else {}),
    }


class Progress(ProgressCallback):
    """transformers' bar, with the loss in it. A loss that is not finite ends the stage (exit 1)."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict, **_: Any) -> None:
        bar = self.training_bar  # of the first process
        for name in ("loss", "eval_loss", "train_loss"):  # train_loss: the mean of all steps, at the end
            if not math.isfinite(logs.get(name, 0)):
                if bar:
                    bar.close()
                cure = "lower --learning-rate, or --dtype float32"
                fail(f"the {name} is {logs[name]} at step {state.global_step}: {cure}")
        if bar:
            shown = {name: f"{logs[name]:.3f}" for name in ("loss", "eval_accuracy") if name in logs}
            bar.set_postfix(shown, refresh=False)
