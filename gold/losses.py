"""Losses at single positions, in float32; train_student.py divides their sum by the number of target tokens in the
step."""

from typing import Any

LOG_ZERO = -9.21  # A = log 1e-4, what the reverse cross-entropy takes for log 0 (Wang et al. 2019; GOLD's code)


def token_losses(
    logits: Any, labels: Any, loss: str, sce_alpha: float = 1.0, sce_beta: float = 0.1, soft: Any = None
) -> Any:
    """Loss at every position that has a label: logits (..., K), labels (...), -100 = none -> (n,).

    ce   -log p_y
    sce  alpha * ce + beta * rce, with the reverse cross-entropy -sum_k p_k log q_k. For a one-hot q and log 0 := A it is
         -A (1 - p_y): no one-hot matrix is built. Symmetric cross-entropy: Wang et al. 2019, arXiv 1908.06112.
    kl   KL(teacher || student) up to the teacher's entropy, a constant (Hinton et al. 2015). Of an encoder -sum_k q_k log p_k,
         soft (B, K) = label_probs. A student that writes has each record once for each answer: q * ce at every token,
         soft (B,) = q of the row's answer. Without soft labels (the held-out tenth) it is ce.
    """
    import torch.nn.functional as F

    if loss == "kl" and soft is not None and soft.dim() == 2:
        return -(soft.float() * logits.float().log_softmax(-1)).sum(-1)
    keep = labels != -100
    ce = F.cross_entropy(logits[keep].float(), labels[keep], reduction="none")
    if loss == "sce":
        return sce_alpha * ce - sce_beta * LOG_ZERO * (1 - (-ce).exp())
    return ce if loss == "ce" or soft is None else ce * soft.float()[:, None].expand(labels.shape)[keep]
