#!/usr/bin/env bash
# datasets 5.2.0: map() that overwrites a column casts the new values back to the column's OLD type, where it can.
#
# One would expect: the type of a mapped column follows from the values that the function returns.
# What happens: it is tried first with the type that the column had. Numbers made into "0007" come back as 7, booleans
#   made into scores 0.9 and 0.2 come back as True and True, floats made into a boolean as 1.0, timestamps made into
#   text as timestamps. Values that cannot be cast get their own type: 0 and 1 made into "no" and "yes" are text, made
#   into "1" and "0" they are numbers. So the type hangs on the values of the first batch; if a later batch of 1,000
#   does not fit, map() fails. remove_columns of that column does not help. No warning.
# Why it matters here: the usual step that turns labels and ids into text for a prompt. Ids no longer join with the
#   file they came from, and a column of soft scores is all True.
# In the toolkit: not met, records are read and written line by line. Cure in a script of one's own: write to a NEW
#   column, or give features=.
# Seen (Linux, a CPU):
#     int -> '0007'              returned ['0007', '0008']           in the column [7, 8]
#     the same, remove_columns   returned ['0007', '0008']           in the column [7, 8]
#     the same, features         returned ['0007', '0008']           in the column ['0007', '0008']
#     int -> 'no', 'yes'         returned ['no', 'yes']              in the column ['no', 'yes']
#     int -> '1', '0'            returned ['1', '0']                 in the column [1, 0]
#     bool -> 0.9, 0.2           returned [0.9, 0.2]                 in the column [True, True]
#     float -> v > .2            returned [True, False]              in the column [1.0, 0.0]
#     timestamp -> isoformat()   returned ['2026-11-28T00:00:00']    in the column [datetime.datetime(2026, 11, 28,
#       0, 0)]
#     'eight' in row 1,001: ArrowInvalid: Failed to parse string: 'eight' as a scalar of type int64
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export HF_HOME="$dir/home" HF_HUB_OFFLINE=1
# A folder of another name breaks datasets: see datasets_target_folder.sh.
python3 -m pip install -qq --target "$dir/site-packages" datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
PYTHONPATH="$dir/site-packages" python3 - <<'PY'
import datetime

import datasets

datasets.disable_progress_bars()


def mapped(values, change, **options):
    """The column after map(): the function returns what `change` makes of each value, under the same name."""
    return datasets.Dataset.from_dict({"v": values}).map(lambda row: {"v": change(row["v"])}, **options)["v"][:]


day = datetime.datetime(2026, 11, 28)
text = datasets.Features({"v": datasets.Value("string")})
cases = [  # what, values, the function, options, what comes back
    ("int -> '0007'", [7, 8], lambda v: f"{v:04d}", {}, [7, 8]),
    ("the same, remove_columns", [7, 8], lambda v: f"{v:04d}", {"remove_columns": ["v"]}, [7, 8]),
    ("the same, features", [7, 8], lambda v: f"{v:04d}", {"features": text}, ["0007", "0008"]),
    ("int -> 'no', 'yes'", [0, 1], lambda v: ["no", "yes"][v], {}, ["no", "yes"]),
    ("int -> '1', '0'", [0, 1], lambda v: ["1", "0"][v], {}, [1, 0]),
    ("bool -> 0.9, 0.2", [True, False], lambda v: 0.9 if v else 0.2, {}, [True, True]),
    ("float -> v > .2", [0.25, 0.1], lambda v: v > 0.2, {}, [1.0, 0.0]),
    ("timestamp -> isoformat()", [day], lambda v: v.isoformat(), {}, [day]),
]
same = True
for what, values, change, options, expected in cases:
    seen = mapped(values, change, **options)
    same &= seen == expected and [type(v) for v in seen] == [type(v) for v in expected]
    print(f"{what:26} returned {[change(v) for v in values]!s:26} in the column {seen}")
try:
    mapped([7] * 1000 + [8], lambda v: "0007" if v == 7 else "eight")
    same = False
except Exception as problem:  # ArrowInvalid
    print(f"'eight' in row 1,001: {type(problem).__name__}: {problem}")
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
