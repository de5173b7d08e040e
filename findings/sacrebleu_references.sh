#!/usr/bin/env bash
# sacrebleu 2.6.0: references in the other nesting are no error; the first outputs are scored, the rest ignored.
#
# One would expect: two outputs and references nested per output, [["ref of 1"], ["ref of 2"]], as most other
#   libraries take them, are refused, since sacrebleu wants one list per reference SET, each as long as the outputs.
# What happens: no error. The lists are walked in step and the walk ends with the shortest: the references are read as
#   two sets for ONE output, and BLEU, chrF and TER score that output alone. With a right first and a senseless second
#   output: BLEU 100, chrF 100, TER 0 (nested rightly: 44.7, 45.3, 53.8). A reference file that is too short does the
#   same, one that is too long passes unseen.
# Why it matters here: a perfect or a meaningless score of one example is reported as that of the whole test set.
#   Where each output has exactly one reference, both nestings look alike in the code.
# In the toolkit: not met, metrics.py counts chrF itself and zips strictly. Cure: assert that each reference list is
#   as long as the outputs.
# Seen (Linux, a CPU):
#     one list per set of references   BLEU  44.7   chrF  45.3   TER  53.8
#     one list per output              BLEU 100.0   chrF 100.0   TER   0.0
#     a set that is too short          BLEU 100.0   chrF 100.0   TER   0.0
#     a set that is too long           BLEU  44.7   chrF  45.3   TER  53.8
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -qq --target "$dir" sacrebleu==2.6.0
PYTHONPATH="$dir" python3 - <<'PY'
import sacrebleu

references = ["the cat sat on the mat", "a dog ran far away from here"]
outputs = [references[0], "complete rubbish that matches nothing at all"]
nestings = {
    "one list per set of references": [references],
    "one list per output": [[reference] for reference in references],
    "a set that is too short": [references[:1]],
    "a set that is too long": [[*references, "one more"]],
}
scores = {}
for name, nested in nestings.items():
    scores[name] = [
        round(metric(outputs, nested).score, 1)
        for metric in (sacrebleu.corpus_bleu, sacrebleu.corpus_chrf, sacrebleu.corpus_ter)
    ]
    print(f"{name:32} BLEU {scores[name][0]:5}   chrF {scores[name][1]:5}   TER {scores[name][2]:5}")
right, per_output, short, long = scores.values()
same = right == long == [44.7, 45.3, 53.8] and per_output == short == [100.0, 100.0, 0.0]
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
