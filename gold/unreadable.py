"""What a tokenizer cannot read of a text: shown as unknown tokens, it leaves losses and scores as good as ever."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

MOST_NAMED = 6  # characters in a message
PLAIN_BLANKS = " \t\n\r"
RUNS = re.compile(r"[ \t]{2,}")


def fold(text: str) -> str:
    """Without differences of case and form, which tokenizers level out on purpose: an ellipsis is three dots."""
    return unicodedata.normalize("NFKC", text).casefold()


def no_sign(character: str) -> bool:
    """A blank, or a control or format character."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def unknown_blanks(texts: Sequence[str], tokenizer: Any) -> frozenset[str]:
    """The blanks and format characters of the texts that are unknown tokens (a non-breaking blank)."""
    odd = sorted(c for c in set().union(*texts) if no_sign(c) and c not in PLAIN_BLANKS)
    read = tokenizer([f"a{c}a" for c in odd], add_special_tokens=False)["input_ids"] if odd else []
    return frozenset(c for c, ids in zip(odd, read, strict=True) if tokenizer.unk_token_id in ids)


def lost_characters(text: str, back: str, unknown: frozenset[str]) -> Counter:
    """The characters of a text that are missing in what its tokens decode to, whatever the order.

    Blanks and format characters count only where they are among the `unknown`.
    """
    if unknown.isdisjoint(text) and "".join(fold(text).split()) == "".join(fold(back).split()):
        return Counter()
    there, lost = Counter(fold(back)), Counter()
    for character in text:
        if no_sign(character):
            lost[character] += character in unknown
            continue
        parts = Counter(fold(character))
        if parts <= there:
            there -= parts
        else:
            lost[character] += 1
    return +lost


def told_of_losses(what: str, texts: Sequence[str], ids: list[list[int]], tokenizer: Any) -> list[str]:
    """Lines on what the texts lose in the round trip decode(ids); none where all come back. what: sources | targets.

    The shares are those of the texts that lose something. Line ends and runs of blanks, which many tokenizers drop by
    design, stand in a line of their own.
    """
    unknown, odd = tokenizer.unk_token_id, unknown_blanks(texts, tokenizer)
    lost: Counter = Counter()
    losing, characters, tokens, unread = [], 0, 0, 0
    lines = runs = 0
    for text, row, back in zip(texts, ids, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        lines += text.count("\n") > back.count("\n")
        if wide := len(RUNS.findall(text)):  # the unknown tokens shown: the blanks around one are no run
            runs += wide > len(RUNS.findall(tokenizer.decode(row)))
        count = row.count(unknown) if unknown is not None else 0
        missing = lost_characters(text, back, odd)
        if not count and not missing:
            continue
        losing.append(text)
        lost += missing
        characters += sum(not character.isspace() for character in text)
        tokens, unread = tokens + len(row), unread + count
    told = []
    if losing:
        one = f"{len(losing):,} of {len(texts):,} {what} hold what this student's tokenizer does not know"
        share = f"{lost.total() / max(characters, 1):.1%} of their characters are lost"
        share += f", {unread / max(tokens, 1):.1%} of their tokens unknown" if unread else ""
        named = f", most often {' '.join(repr(c) for c, _ in lost.most_common(MOST_NAMED))}" if lost else ""
        told.append(f"{one}: {share}{named}; such as {losing[0][:80]!r}")
        if (inputs := len(set(map(tuple, ids)))) < len(set(texts)):
            told[0] += f"; {len(set(texts)):,} different {what} become {inputs:,}"
    if lines or runs:
        parts = [f"{lines:,} lose their line ends"] * bool(lines) + [f"{runs:,} lose their runs of blanks"] * bool(runs)
        told.append(f"of {len(texts):,} {what} {', '.join(parts)}: this student's tokenizer drops them")
    return told
