#!/usr/bin/env bash
# torchmetrics 1.9.0: the AUROC of energies changes when a constant is added, and with the cut into batches.
#
# One would expect: AUROC depends on the order of the scores only. A constant added to all of them changes nothing,
#   and neither does giving them to update() in parts.
# What happens: where a tensor has a value outside [0, 1] it is taken for logits and goes through a sigmoid first, in
#   its own precision. float32 scores near +20 all become 1.0: AUROC 0.5 for scores whose AUROC is .78 (at +10 it is
#   still right to three digits). And update() decides batch by batch: a batch that happens to lie within [0, 1] stays
#   as it is, the next goes through the sigmoid, and the two scales are ranked together. No warning.
# Why it matters here: energies (negative log-sum-exp) of a student are often 10 to 30 in size, losses lie on both
#   sides of 1. A near-perfect OOD score can be reported as chance.
# In the toolkit: not met. score_ood.py gives all scores at once, in float64, to scikit-learn's roc_auc_score.
# Seen (Linux, a CPU):
#     scores    +0: torchmetrics 0.7806   scikit-learn 0.7806
#     scores   +10: torchmetrics 0.7807   scikit-learn 0.7806
#     scores   +20: torchmetrics 0.5000   scikit-learn 0.7806
#     scores   -20: torchmetrics 0.7806   scikit-learn 0.7806
#     scores  -200: torchmetrics 0.5000   scikit-learn 0.7806
#     the same 1,000 scores at once 0.7806, in batches of 8 0.7150
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -qq --target "$dir" torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.9.1
PYTHONPATH="$dir" python3 - <<'PY'
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.classification import BinaryAUROC
from torchmetrics.functional.classification import binary_auroc

draw = torch.Generator().manual_seed(0)
truth = torch.tensor([0] * 500 + [1] * 500)
base = torch.randn(1000, generator=draw, dtype=torch.float64) + truth

shifted = {}
for constant in (0, 10, 20, -20, -200):
    scores = (base + constant).float()
    shifted[constant] = (float(binary_auroc(scores, truth)), float(roc_auc_score(truth.numpy(), scores.numpy())))
    print(f"scores {constant:+5}: torchmetrics {shifted[constant][0]:.4f}   scikit-learn {shifted[constant][1]:.4f}")

losses, order = (base.exp() / 8).float(), torch.randperm(1000, generator=draw)  # positive, most of them below 1
scores, labels = losses[order], truth[order]
whole, parts = float(binary_auroc(scores, labels)), BinaryAUROC()
for start in range(0, 1000, 8):
    parts.update(scores[start : start + 8], labels[start : start + 8])
batched = float(parts.compute())
print(f"the same 1,000 scores at once {whole:.4f}, in batches of 8 {batched:.4f}")

same = (
    all(abs(right - shifted[0][1]) < 1e-3 for _, right in shifted.values())
    and abs(shifted[0][0] - shifted[0][1]) < 1e-3
    and shifted[20][0] == shifted[-200][0] == 0.5
    and abs(shifted[-20][0] - shifted[-20][1]) < 1e-3
    and abs(whole - shifted[0][1]) < 1e-3
    and whole - batched > 0.05
)
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
