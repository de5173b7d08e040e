#!/usr/bin/env bash
# datasets 5.2.0 with dill 0.4.1 and pyarrow 26.0.1: whether it works hangs on the NAME of its folder.
#
# One would expect: packages that were installed by `pip install --target DIR` and found by PYTHONPATH=DIR work the
#   same whatever DIR is called.
# What happens: in a DIR outside Python's own prefix whose path does not hold "site-packages", the simplest call,
#   Dataset.from_dict({"v": [1]}), raises "PicklingError: Can't pickle <class 'MonthDayNano'>". datasets fingerprints
#   each table with dill; dill tells libraries from the user's own modules by prefix or by that word in the path,
#   takes pyarrow for the user's, and pickles it by value. The very same files, in a folder renamed to site-packages,
#   work.
# Why it matters here: --target to a scratch disk is usual on clusters where one may not write to the shared Python,
#   and in container layers. The message names neither the folder nor datasets, and points at the data.
# In the toolkit: met by data/prepare.py where it reads the hub or .parquet from such an installation. It ends with an
#   error, no wrong data. Cure: a virtual environment (setup.sh makes one), or a folder named site-packages.
# Seen (Linux, a CPU):
#     in .../packages:       PicklingError: Can't pickle <class 'MonthDayNano'>: it's not found as
#       builtins.MonthDayNano
#     in .../site-packages:  row {'v': 1}
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export HF_HOME="$dir/home" HF_HUB_OFFLINE=1
python3 -m pip install -qq --target "$dir/packages" datasets==5.2.0 dill==0.4.1 pyarrow==26.0.1 pandas==3.1.1
look='
import datasets
try:
    print("row", datasets.Dataset.from_dict({"v": [1]})[0])
except Exception as problem:
    print(f"{type(problem).__name__}: {problem}")
'
in_packages=$(PYTHONPATH="$dir/packages" python3 -W ignore -c "$look")
mv "$dir/packages" "$dir/site-packages"
in_site_packages=$(PYTHONPATH="$dir/site-packages" python3 -W ignore -c "$look")
echo "in .../packages:       $in_packages"
echo "in .../site-packages:  $in_site_packages"
if [[ $in_packages != PicklingError:*MonthDayNano* || $in_site_packages != "row {'v': 1}" ]]; then
    echo "CHANGED: not the behaviour that is described at the top of this script" >&2
    exit 1
fi
