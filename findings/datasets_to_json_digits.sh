#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1: to_json() rounds every number to ten decimals; small probabilities become 0.
#
# One would expect: JSON lines written from a float64 column hold the same numbers, as Python's json and this very
#   library's to_csv() do it.
# What happens: to_json() goes through pandas, whose default is ten decimals after the point (not ten digits): 3e-11
#   is written as 0.0, 0.1234567890123 as 0.123456789, and 6e-300 is kept. to_csv() of the same data set keeps all
#   digits. double_precision=15 moves the limit to 15 decimals. NaN becomes null. No warning.
# Why it matters here: label probabilities of a confident teacher are below 1e-10, and their logarithm is then minus
#   infinity in whatever reads the file; scores that differ in the eleventh decimal become ties and change ranks.
# In the toolkit: not met, records go through msgspec, which writes the shortest text that reads back the same. Cure:
#   store log-probabilities, or write the lines with json.
# Seen (Linux, a CPU):
#     values             [3e-11, 0.1234567890123, 6e-300, -4.00000000001, -4.00000000002]
#     to_csv             [3e-11, 0.1234567890123, 6e-300, -4.00000000001, -4.00000000002]
#     to_json            [0.0, 0.123456789, 6e-300, -4.0, -4.0]
#       double_precision=15 [3e-11, 0.1234567890123, 6e-300, -4.00000000001, -4.00000000002]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export HF_HOME="$dir/home" HF_HUB_OFFLINE=1 OUT="$dir/rows"
# A folder of another name breaks datasets: see datasets_target_folder.sh.
python3 -m pip install -qq --target "$dir/site-packages" datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
PYTHONPATH="$dir/site-packages" python3 - <<'PY'
import json
import os

import datasets

datasets.disable_progress_bars()
out = os.environ["OUT"]
values = [3e-11, 0.1234567890123, 6e-300, -4.00000000001, -4.00000000002]
data = datasets.Dataset.from_dict({"p": values})
data.to_csv(out)
with open(out) as lines:
    comma = [float(line) for line in list(lines)[1:]]
read = {}
for decimals in (None, 15):
    data.to_json(out, **({} if decimals is None else {"double_precision": decimals}))
    with open(out) as lines:
        read[decimals] = [json.loads(line)["p"] for line in lines]
print("values            ", values)
print("to_csv            ", comma)
print("to_json           ", read[None])
print("  double_precision=15", read[15])
same = comma == values and read[15] == values and read[None] == [0.0, 0.123456789, 6e-300, -4.0, -4.0]
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
