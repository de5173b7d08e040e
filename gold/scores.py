"""The energy and the other scores. All of them: HIGHER = more out of distribution, or more uncertain.

Energy: E(x) = -T * logsumexp(z / T) of the logits z (Liu et al. 2020, arXiv 2010.03759): the class logits of an encoder;
of a student that writes, the mean over the target's tokens of the energy of the logits over the vocabulary, with the
target teacher-forced (GOLD, arXiv 2403.19754).
"""

import math
import random
from typing import Any

from gold.command import fail

REDUCTIONS = ["energy_sum", "energy_first", "energy_padded"]  # of the energies at several positions, beside their mean
SCORES = [
    "energy", *REDUCTIONS, "energy_delta", "nll", "msp", "entropy", "margin", "embedding", "k_center", "tfidf",
    "error", "hard_negative", "random",
]  # fmt: skip
STORED = ["teacher_nll"]  # written by generate.py; no student computes it


def position_scores(logits: Any, labels: Any, temperature: float) -> dict[str, Any]:
    """Scores at single positions, in float32 whatever the model's dtype: logits (n, K >= 2), labels (n,) -> each (n,).

    energy   -T * logsumexp(z / T)          Liu et al. 2020
    nll      -log p_label, in nats
    msp      1 - max_k p_k                  Hendrycks & Gimpel 2017, as uncertainty
    entropy  -sum_k p_k log p_k, in nats
    margin   1 - (p_1 - p_2), of the two likeliest
    is_top   the label is the likeliest, and no other is as likely (bool)
    T scales the energy alone; the probabilities are those of T = 1.
    """
    import torch

    z = logits.float()
    log_p = z.log_softmax(-1)
    top = log_p.topk(2)
    first, second = top.values.unbind(-1)
    return {
        "energy": -temperature * torch.logsumexp(z / temperature, -1),
        "nll": -log_p.gather(-1, labels[:, None]).squeeze(-1),
        "msp": -torch.expm1(first),  # 1 - p loses all digits where p is near 1
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "margin": second.exp() - torch.expm1(first),
        "is_top": (top.indices[:, 0] == labels) & (first > second),
    }


def sequence_scores(grids: dict[str, Any], real: Any) -> dict[str, Any]:
    """Scores of sequences, each (B,): the means over the target's tokens, and the other reductions of the energy.

    grids: scores at positions, each (B, L). real: which positions are tokens of the target, EOS included, (B, L) bool.
    energy_first does not depend on the target; energy_padded is the mean over all L positions.
    """
    energies, means = grids["energy"], {name: mean_over(grid, real) for name, grid in grids.items()}
    reduced = (energies.masked_fill(~real, 0).sum(-1), energies[:, 0], energies.mean(-1))
    return {"energy": means["energy"], **dict(zip(REDUCTIONS, reduced, strict=True))} | means


def mean_over(values: Any, real: Any) -> Any:
    """Mean over the real positions: values (..., L), real (..., L) bool -> (...)."""
    return values.masked_fill(~real, 0).sum(-1) / real.sum(-1)


def random_score(seed: int, identifier: str) -> float:
    """A number in [0, 1) for an example: the same whatever else is scored beside it."""
    return random.Random(f"{seed}/{identifier}").random()


def detection(inside: list[dict], ood: list[dict]) -> dict[str, dict[str, float]]:
    """How well each score that all examples have tells OOD examples, the positives, from in-distribution ones (inside).

    auroc  an OOD example has the higher score in this share of all pairs; of ties a half
    aupr   average precision of the OOD examples; their share is what chance gives
    fpr95  share of `inside` at or above the highest threshold that flags 95 % or more of `ood` (FPR@95TPR)
    Ends the stage (exit 1) where a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    truth, table = [0] * len(inside) + [1] * len(ood), {}
    for name in SCORES:
        values = [row.get(name) for row in [*inside, *ood]]
        if None in values:
            continue
        if not all(map(math.isfinite, values)):
            fail(f"--ood-file: {name} is not finite for some example; train the student with a lower rate")
        fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
        numbers = roc_auc_score(truth, values), average_precision_score(truth, values), fpr[tpr >= 0.95].min()
        table[name] = {key: round(float(x), 4) for key, x in zip(("auroc", "aupr", "fpr95"), numbers, strict=True)}
    return table
