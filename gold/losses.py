"""Losses of single positions, in float32. The trainer divides their sum by the number of target tokens in the step."""

from typing import Any

LOG_ZERO = -9.21  # A = log 1e-4, what the reverse cross-entropy takes for log 0 (Wang et al. 2019; GOLD's code)


def token_losses(
    logits: Any, labels: Any, loss: str, sce_alpha: float = 1.0, sce_beta: float = 0.1, soft: Any = None
) -> Any:
    """Loss of every position that has a label: logits (..., K), labels (...), -100 = none -> (n,).

    ce   -log p_y
    sce  alpha * ce + beta * rce (symmetric cross-entropy, Wang et al. 2019, arXiv 1908.06112). The reverse cross-entropy
         rce = -sum_k p_k log q_k is -A (1 - p_y) for a one-hot q and log 0 := A.
    kl   KL(teacher || student) without the teacher's entropy, a constant (Hinton et al. 2015). Encoder: -sum_k q_k log p_k,
         soft (B, K) = label_probs. Others: one row for each answer, q * ce at every token, soft (B,) = q of that answer.
         Without soft labels (held-out examples) it is ce.
    """
    import torch.nn.functional as F

    if soft is not None and soft.dim() == 2:
        return -(soft.float() * logits.float().log_softmax(-1)).sum(-1)
    keep = labels != -100
    ce = F.cross_entropy(logits[keep].float(), labels[keep], reduction="none")
    if loss == "sce":
        return sce_alpha * ce - sce_beta * LOG_ZERO * (1 - (-ce).exp())
    return ce if soft is None else ce * soft.float()[:, None].expand(labels.shape)[keep]
