"""What a tokenizer cannot read of a text: told, because a student that is shown unknown tokens trains and scores
well."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

MAX_NAMED = 6  # characters in a message


def plain(text: str) -> str:
    """Without differences that tokenizers level out on purpose: case, Unicode compatibility forms, blanks, control
    characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf"))


def told_of_losses(what: str, texts: Sequence[str], ids: list[list[int]], tokenizer: Any) -> list[str]:
    """Lines on what the round trip decode(ids) of the texts has lost; none where all came back. what: sources |
    targets.

    Shares are those of the texts that lose something. Line ends and runs of blanks, which many tokenizers drop by
    design, stand in a line of their own.
    """
    lost: Counter[str] = Counter()
    losing, characters, tokens, unknown = [], 0, 0, 0
    lines = runs = 0
    for text, row, back in zip(texts, ids, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        lines += text.count("\n") > back.count("\n")
        runs += len(re.findall(r"[ \t]{2,}", text)) > len(re.findall(r"[ \t]{2,}", back))
        missing = Counter(plain(text)) - Counter(plain(back))
        count = row.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
        if missing or count:
            losing.append(text)
            lost += missing
            characters, tokens, unknown = characters + len(plain(text)), tokens + len(row), unknown + count
    told = []
    if losing:
        share = f"{lost.total() / max(characters, 1):.1%} of their characters are lost"
        share += f", {unknown / max(tokens, 1):.1%} of their tokens unknown" if unknown else ""
        named = f", most often {' '.join(repr(c) for c, _ in lost.most_common(MAX_NAMED))}" if lost else ""
        one = f"{len(losing):,} of {len(texts):,} {what} hold what this student's tokenizer does not know"
        told.append(f"{one}: {share}{named}; such as {losing[0][:80]!r}")
        if (inputs := len(set(map(tuple, ids)))) < len(set(texts)):
            told[0] += f"; {len(set(texts)):,} different {what} become {inputs:,}"
    if lines or runs:
        parts = [f"{lines:,} lose their line ends"] * bool(lines) + [f"{runs:,} their runs of blanks"] * bool(runs)
        told.append(f"of {len(texts):,} {what} {' and '.join(parts)}: this student's tokenizer drops them")
    return told
