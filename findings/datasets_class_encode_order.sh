#!/usr/bin/env bash
# datasets 5.2.0: class_encode_column() renumbers labels that are numbers already, in the order of their spelling.
#
# One would expect: a column of int labels 0 to 11 stays as it is when it becomes a ClassLabel, class 2 keeps the id
#   2.
# What happens: the numbers are made text and sorted as text. Label 2 gets the id 4 and the name "2", label 10 the id
#   2. Up to ten classes (0 to 9) nothing moves, which is why it goes unseen; -1 moves all others. The cast to a
#   ClassLabel with names is of two minds as well: of names ["1", "0"], the text "1" becomes class 0, and the number 1
#   class 1.
# Why it matters here: train_test_split(stratify_by_column=) asks for a ClassLabel, so people call this first. The
#   names are right, but a label list or a model of before (77 intents, 0 to 76) now reads another class, in silence,
#   and the accuracy of a good student is near chance.
# In the toolkit: not met, labels are text everywhere and the student's own id2label is made from the label list of
#   the task file. Cure: cast_column(name, ClassLabel(num_classes=n)), which keeps ints as they are.
# Seen (Linux, a CPU):
#     labels [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
#        ids [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
#        names ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']
#     labels [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
#        ids [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]
#        names ['0', '1', '10', '11', '2', '3', '4', '5', '6', '7', '8', '9']
#     labels [0, 1, -1]
#        ids [1, 2, 0]
#        names ['-1', '0', '1']
#     cast_column(ClassLabel(num_classes=12)): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
#     names ['1', '0']: the texts '1', '0' become [0, 1] and the numbers 1, 0 [1, 0]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export HF_HOME="$dir/home" HF_HUB_OFFLINE=1
# A folder of another name breaks datasets: see datasets_target_folder.sh.
python3 -m pip install -qq --target "$dir/site-packages" datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
PYTHONPATH="$dir/site-packages" python3 - <<'PY'
import datasets

datasets.disable_progress_bars()


def encoded(values):
    """The ids and the names that class_encode_column makes of these labels."""
    data = datasets.Dataset.from_dict({"label": values}).class_encode_column("label")
    return data["label"][:], data.features["label"].names


same = True
for labels, expected in (
    (list(range(10)), list(range(10))),
    (list(range(12)), [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]),
    ([0, 1, -1], [1, 2, 0]),
):
    ids, names = encoded(labels)
    same &= ids == expected
    print(f"labels {labels}\n   ids {ids}\n   names {names}")
kept = datasets.Dataset.from_dict({"label": list(range(12))}).cast_column("label", datasets.ClassLabel(num_classes=12))
print("cast_column(ClassLabel(num_classes=12)):", kept["label"][:])
named = datasets.ClassLabel(names=["1", "0"])
casts = [datasets.Dataset.from_dict({"label": v}).cast_column("label", named)["label"][:] for v in (["1", "0"], [1, 0])]
print("names ['1', '0']: the texts '1', '0' become", casts[0], "and the numbers 1, 0", casts[1])
same &= kept["label"][:] == list(range(12)) and casts == [[0, 1], [1, 0]]
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
