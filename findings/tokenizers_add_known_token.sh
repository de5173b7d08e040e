#!/usr/bin/env bash
# tokenizers 0.23.3: adding a token that the vocabulary has already is not a no-op, it breaks other words.
#
# One would expect: add_tokens(["no"]) does nothing, and returns 0, when "no" is in the vocabulary with an id.
# What happens: the id and the size of the vocabulary stay, but it returns 1, and from then on "no" is cut out of the
#   text BEFORE the merges: "nothing" is no + thing, "known" is k + no + w + n, " no" loses its own token with the
#   blank. Words that do not hold "no" stay as they were. The change is saved with the tokenizer.
# Why it matters here: making every label one token ("yes", "no", "neutral") before training is a common recipe. A
#   model that was pretrained with the old cuts then reads other tokens for ordinary words, and old + returned count
#   is not the new size for resize_token_embeddings.
# In the toolkit: not met, no stage adds tokens. A base model whose folder was changed like this brings it along.
#   Cure: add only what token_to_id() does not know. AddedToken(word, single_word=True) spares "nothing", but not "
#   no".
# Seen (Linux, a CPU):
#     'no' had id 256; add_tokens returned 1; vocabulary 294 -> 294
#     before       ['nothing', 'Ġknown', 'Ġ', 'in', 'Ġthe', 'Ġsnow', ',', 'Ġno', 'Ġone']
#     after        ['no', 'thing', 'Ġ', 'k', 'no', 'w', 'n', 'Ġ', 'in', 'Ġthe', 'Ġ', 's', 'no', 'w', ',', 'Ġ', 'no',
#       'Ġone']
#     single_word  ['nothing', 'Ġknown', 'Ġ', 'in', 'Ġthe', 'Ġsnow', ',', 'Ġ', 'no', 'Ġone']
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -qq --target "$dir" tokenizers==0.23.3
PYTHONPATH="$dir" python3 - <<'PY'
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

lines = ["nothing is known about the northern snow", "no one knows the north", "it is not nothing", "snow and noise"]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator(
    lines * 30,
    trainers.BpeTrainer(vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
)
text = "nothing known in the snow, no one"
size, known, before = tokenizer.get_vocab_size(), tokenizer.token_to_id("no"), tokenizer.encode(text).tokens
single = Tokenizer.from_str(tokenizer.to_str())

returned = tokenizer.add_tokens(["no"])
after = tokenizer.encode(text).tokens
single.add_tokens([AddedToken("no", single_word=True)])
print(f"'no' had id {known}; add_tokens returned {returned}; vocabulary {size} -> {tokenizer.get_vocab_size()}")
print("before      ", before)
print("after       ", after)
print("single_word ", single.encode(text).tokens)

same = (
    known is not None
    and returned == 1
    and tokenizer.get_vocab_size() == size
    and tokenizer.token_to_id("no") == known
    and before[:2] == ["nothing", "Ġknown"]
    and after[:2] == ["no", "thing"]
    and "Ġknown" not in after
    and "Ġno" in before
    and "Ġno" not in after
    and single.encode(text).tokens[:2] == before[:2]
    and Tokenizer.from_str(tokenizer.to_str()).encode(text).tokens == after
)
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
