#!/usr/bin/env bash
# datasets 5.2.0: a JSONL field that is declared a string loses its text: "2024-01-01" is read as "2024-01-01 00:00:00".
#
# One would expect: the guess of a type is the trouble, and declaring the type ends it: with features=Value("string")
#   (or dataset_info in a dataset card) a JSON string comes back as it stands in the file.
# What happens: Arrow's JSON reader guesses first, and takes a column with nothing but ISO dates for timestamps; the
#   declared type is applied by a cast afterwards, which writes the timestamps out in full. The text is gone, and the
#   column does have the declared type. Whether it happens depends on all other rows: one that is no date, and every
#   row of the column keeps its text. So a split may differ from another, and a sample from the whole.
# Why it matters here: an answer or a field of generated examples may be a date; a student trained on the loaded data
#   learns to write " 00:00:00", and exact match with the original file is 0.
# In the toolkit: our stages read JSONL by jsonlines and msgspec. docs/sharing.md says how to load such a file.
# Seen (Linux):
#     all dates, declared string: ['2024-01-01 00:00:00', '2025-02-03 00:00:00']
#     one word beside them, declared string: ['2024-01-01', 'soon']
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -qq datasets==5.2.0
cd "$dir"
printf '{"answer": "2024-01-01"}\n{"answer": "2025-02-03"}\n' > dates.jsonl
printf '{"answer": "2024-01-01"}\n{"answer": "soon"}\n' > mixed.jsonl
HF_HOME="$dir/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$dir/env/bin/python" - <<'PY'
from datasets import Features, Value, load_dataset


def read(name):
    declared = Features({"answer": Value("string")})
    return load_dataset("json", data_files=name, features=declared, split="train")["answer"][:]


dates, mixed = read("dates.jsonl"), read("mixed.jsonl")
print("all dates, declared string:", dates)
print("one word beside them, declared string:", mixed)
as_told = dates == ["2024-01-01 00:00:00", "2025-02-03 00:00:00"] and mixed == ["2024-01-01", "soon"]
raise SystemExit(None if as_told else "CHANGED: not the behaviour that is described at the top of this script")
PY
