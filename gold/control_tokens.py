"""Control tokens whose spelling stands in people's text (`</s>`, `<pad>`, `<|im_end|>`, `[SEP]`) stay text.

Only the frame that we write ourselves may hold them: BOS and EOS of a student's input, the chat template of a prompt.
split_special_tokens=True makes ordinary tokens of such a spelling in byte-level BPE, SentencePiece BPE and WordPiece. A
Unigram tokenizer (T5, DeBERTa-v3) has the spelling as a piece of its vocabulary and gives the control token all the same; a
prompt in a chat template is one string with its frame. In both the spelling gets a blank after its first character.
"""

import functools
import re
from typing import Any

UNKNOWN_TO_ALL = "\U00013000"  # a hieroglyph: what a tokenizer without bytes makes of it is its unknown token


@functools.lru_cache(maxsize=8)
def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Id -> spelling of the tokens that only a frame may hold.

    All special ones but the unknown token, where it stands for what the tokenizer cannot read (in byte-level BPE it does not).
    """
    found = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    for token in set(tokenizer(UNKNOWN_TO_ALL, add_special_tokens=False)["input_ids"]) & {tokenizer.unk_token_id}:
        del found[token]
    return found


def frame_of(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids that the tokenizer puts before and after a text by itself."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begin = next(i for i in range(len(whole) + 1) if whole[i : i + len(inner)] == inner)
    return whole[:begin], whole[begin + len(inner) :]


def plain_ids(
    tokenizer: Any, texts: list[str], spans: bool = False
) -> tuple[list[list[int]], list[int], list[list[tuple[int, int]]]]:
    """(token ids of each text without a frame and without control tokens, places of the texts in which one was broken up,
    spans); spans: the characters (begin, end) of every token, for which a fast tokenizer must be asked."""
    if not texts:
        return [], [], []
    asked = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": spans}
    made = tokenizer(texts, **asked)
    ids, offsets = made["input_ids"], made["offset_mapping"] if spans else []
    control = frozenset(control_tokens(tokenizer))
    left = [i for i, row in enumerate(ids) if not control.isdisjoint(row)]
    for i in left:
        new = [broken_token(tokenizer, token) if token in control else (token,) for token in ids[i]]
        if spans:
            offsets[i] = [at for tokens, at in zip(new, offsets[i], strict=True) for _ in tokens]
        ids[i] = [token for tokens in new for token in tokens]
    return ids, left, offsets


@functools.lru_cache(maxsize=1024)
def broken_token(tokenizer: Any, token: int) -> tuple[int, ...]:
    """The ordinary tokens that stand for a control token which the text spells out."""
    control = control_tokens(tokenizer)
    text = control[token][:1] + " " + control[token][1:]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tuple(i for i in ids if i not in control)


@functools.lru_cache(maxsize=8)
def spelling(tokenizer: Any) -> re.Pattern:
    """Where a text spells out a control token; the longest of them counts."""
    return re.compile(
        "|".join(map(re.escape, sorted(control_tokens(tokenizer).values(), key=len, reverse=True))) or r"\Z."
    )


def broken_up(tokenizer: Any, text: str) -> str:
    """The text with a blank in every spelling of a control token: for what is tokenised together with its frame."""
    return spelling(tokenizer).sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)


def told_of_prompts(what: str, tokenizer: Any, texts: list[str]) -> list[str]:
    """A line on texts that prompts will show and that spell out control tokens; none where no text does. what: records ..."""
    found = [match[0] for match in map(spelling(tokenizer).search, texts) if match]
    if not found:
        return []
    return [
        f"{len(found):,} of {len(texts):,} {what} spell out a control token of the teacher, such as {found[0]!r}: prompts have "
        f"{broken_up(tokenizer, found[0])!r}, so that it stays text"
    ]
