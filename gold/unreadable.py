"""What a tokenizer cannot read of a text. Losses and scores do not show it: unknown tokens are learnt like any other."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

MOST_NAMED = 6  # characters in a message
RUNS = re.compile(r"[ \t]{2,}")


def fold(text: str) -> str:
    """Without differences of case and form, which tokenizers level out on purpose: an ellipsis is three dots."""
    return unicodedata.normalize("NFKC", text).casefold()


def is_blank(character: str) -> bool:
    """White space, or a control or format character."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def unknown_blanks(texts: Sequence[str], tokenizer: Any) -> set[str]:
    """The odd blanks of the texts (a non-breaking one) that are unknown tokens."""
    odd = sorted(c for c in set().union(*texts) - set(" \t\n\r") if is_blank(c))
    read = tokenizer([f"a{c}a" for c in odd], add_special_tokens=False)["input_ids"] if odd else []
    return {c for c, ids in zip(odd, read, strict=True) if tokenizer.unk_token_id in ids}


def lost_characters(text: str, back: str, unknown: set[str]) -> Counter[str]:
    """The characters of a text that are missing in what its tokens decode to, in any order; of blanks the `unknown`."""
    lost = Counter()
    if unknown.isdisjoint(text) and "".join(fold(text).split()) == "".join(fold(back).split()):
        return lost
    there = Counter(fold(back))
    for character in text:
        parts = Counter(fold(character))
        if is_blank(character):
            lost[character] += character in unknown
        elif parts <= there:
            there -= parts
        else:
            lost[character] += 1
    return +lost


def unreadable_messages(what: str, texts: Sequence[str], ids: list[list[int]], tokenizer: Any) -> list[str]:
    """Messages about what the texts lose in the round trip decode(ids); none where all come back. what: sources | targets.

    The shares are those of the texts that lose something. Line ends and runs of blanks, which many tokenizers drop by
    design, have a message of their own.
    """
    unknown, odd, number = tokenizer.unk_token_id, unknown_blanks(texts, tokenizer), len(texts)
    losing, lost, lines, runs = [], Counter(), 0, 0
    for text, row, back in zip(texts, ids, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        lines += text.count("\n") > back.count("\n")
        if wide := len(RUNS.findall(text)):  # decoded with unknown tokens: the blanks around one are no run
            runs += wide > len(RUNS.findall(tokenizer.decode(row)))
        missing = lost_characters(text, back, odd)
        if missing or unknown in row:
            losing.append((text, row))
            lost += missing
    messages = []
    if losing:
        characters = sum(not c.isspace() for text, _ in losing for c in text)
        unread, tokens = sum(row.count(unknown) for _, row in losing), sum(len(row) for _, row in losing)
        line = f"{len(losing):,} of {number:,} {what} hold what this student's tokenizer does not know: "
        line += f"{lost.total() / max(characters, 1):.1%} of their characters are lost"
        line += f", {unread / tokens:.1%} of their tokens unknown" if unread else ""
        line += f", most often {' '.join(repr(c) for c, _ in lost.most_common(MOST_NAMED))}" if lost else ""
        line += f"; such as {losing[0][0][:80]!r}"
        different, inputs = len(set(texts)), len(set(map(tuple, ids)))
        messages.append(line + (f"; {different:,} different {what} become {inputs:,}" if inputs < different else ""))
    if lines or runs:
        parts = [f"{lines:,} lose their line ends"] * bool(lines) + [f"{runs:,} lose their runs of blanks"] * bool(runs)
        messages.append(f"of {number:,} {what} {', '.join(parts)}: this student's tokenizer drops them")
    return messages
