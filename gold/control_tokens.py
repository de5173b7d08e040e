"""Control tokens whose spelling stands in people's text (`</s>`, `<pad>`, `<|im_end|>`, `[SEP]`) stay text.

Only the frame that we write ourselves may hold them: BOS and EOS of a student's input, the chat template of a prompt.
split_special_tokens=True makes ordinary tokens of such a spelling in byte-level BPE, SentencePiece BPE and WordPiece.
A Unigram tokenizer (T5, DeBERTa-v3) has the spelling as a piece and gives the control token all the same; a prompt in
a chat template is one string with its frame. In both the spelling gets a blank after its first character.
"""

import functools
import re
from typing import Any

UNKNOWN_TO_ALL = "\U00013000"  # a hieroglyph: what a tokenizer without bytes makes of it is its unknown token


@functools.lru_cache(maxsize=8)
def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Id -> spelling of the tokens that only a frame may hold: all special ones but the unknown token, where it stands
    for what the tokenizer cannot read (in byte-level BPE it does not)."""
    found = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    if tokenizer.unk_token_id in tokenizer(UNKNOWN_TO_ALL, add_special_tokens=False)["input_ids"]:
        del found[tokenizer.unk_token_id]
    return found


def frame_of(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids that the tokenizer puts before and after a text by itself."""
    inner, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    begin = next(i for i in range(len(whole) + 1) if whole[i : i + len(inner)] == inner)
    return whole[:begin], whole[begin + len(inner) :]


def plain_ids(
    tokenizer: Any, texts: list[str], spans: bool = False
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """(token ids of each text, without frame and control tokens; spans).

    spans: the characters (begin, end) of every token, where they are asked for: a fast tokenizer alone has them.
    """
    if not texts:
        return [], []
    asked = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": spans}
    encoded = tokenizer(texts, **asked)
    ids, offsets, control = encoded["input_ids"], encoded.get("offset_mapping", []), control_tokens(tokenizer).keys()
    for i in (i for i, row in enumerate(ids) if not control.isdisjoint(row)):
        new = [broken_token(tokenizer, token) if token in control else [token] for token in ids[i]]
        ids[i] = [token for tokens in new for token in tokens]
        if spans:
            offsets[i] = [span for tokens, span in zip(new, offsets[i], strict=True) for _ in tokens]
    return ids, offsets


@functools.lru_cache(maxsize=1024)
def broken_token(tokenizer: Any, token: int) -> list[int]:
    """The ordinary tokens that stand for a control token which the text spells out."""
    control = control_tokens(tokenizer)
    text = with_blank(control[token])
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [i for i in ids if i not in control]


def with_blank(spelling: str) -> str:
    return f"{spelling[:1]} {spelling[1:]}"


@functools.lru_cache(maxsize=8)
def spellings(tokenizer: Any) -> re.Pattern:
    """Where a text spells out a control token; the longest of them counts."""
    longest_first = sorted(control_tokens(tokenizer).values(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"\Z.")


def broken_up(tokenizer: Any, text: str) -> str:
    """The text with a blank in every spelling of a control token: for what is tokenised together with its frame."""
    return spellings(tokenizer).sub(lambda match: with_blank(match[0]), text)
