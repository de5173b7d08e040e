"""Texts as the student's tokens, in training and in measuring alike.

A decoder-only student reads the source as its tokenizer frames it (a BOS stays, an EOS at the end goes) and a newline,
and writes the target and EOS. The three are tokenised apart, so that training and decoding see the same tokens at the
seams. Control tokens that a text spells out stay text. What the tokenizer cannot read is said: losses and scores do not
show it, for unknown tokens are learnt like any other. A source that is too long loses the end of its longest field, not the
end of the string, where the question may be.
"""

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gold.command import fail, say
from gold.control_tokens import frame_of, plain_ids
from gold.task import Task

MOST_NAMED = 6  # characters in a message
Span = tuple[int, int]  # characters (begin, end)


def encode_targets(texts: list[str], tokenizer: Any, family: str, limit: int | None = None) -> list[list[int]]:
    """The tokens that the student writes for each text, end token included. With a limit longer ones are cut, and said."""
    ids = plain_ids(tokenizer, texts)[0] if limit is None else readable_ids("targets", texts, tokenizer)
    before, after = ([], [tokenizer.eos_token_id]) if family == "decoder" else frame_of(tokenizer)
    ids = [before + row + after for row in ids]
    if limit and (cut := sum(len(row) > limit for row in ids)):
        say(f"{cut:,} of {len(texts):,} targets are longer than --max-target-length {limit}: cut")
    return [row[:limit] for row in ids]


def frame_of_source(tokenizer: Any, family: str) -> tuple[list[int], list[int], list[int]]:
    """The token ids before a source, after it, and those of a decoder's newline, where its tokenizer has one."""
    before, after = frame_of(tokenizer)
    if family != "decoder":
        return before, after, []
    return before, after[:-1] if after[-1:] == [tokenizer.eos_token_id] else after, plain_ids(tokenizer, ["\n"])[0][0]


def source_limit(tokenizer: Any, family: str, lengths: dict[str, int], positions: int | None) -> tuple[int, str]:
    """(how many tokens of a source are read, its frame included; the reason)."""
    limit, target, room = lengths["max_source_length"], lengths["max_target_length"], positions
    if family == "decoder":
        room = positions and positions - len(frame_of_source(tokenizer, family)[2]) - target
    if room is None or room >= limit:
        return limit, f"--max-source-length {limit}"
    if room < 1:
        fail(f"--max-target-length {target}: leaves no room for a source in {positions} positions; lower it")
    return room, f"the {room} tokens that the model's {positions} positions leave them"


def encode_sources(
    examples: list[dict], tokenizer: Any, family: str, task: Task, lengths: dict[str, int], positions: int | None
) -> list[list[int]]:
    """The tokens that the student reads for each example; a source that is too long loses the end of its longest field.

    positions: how many tokens the model holds: the source and, of a decoder, a newline and the longest target.
    """
    before, after, newline = frame_of_source(tokenizer, family)
    limit, reason = source_limit(tokenizer, family, lengths, positions)
    sources = readable_ids("sources", [e["source"] for e in examples], tokenizer)
    sources = cut_sources(sources, examples, tokenizer, task, max(limit - len(before) - len(after), 0), reason)
    # An empty prompt predicts nothing: it begins with EOS
    return [before + ids + after + newline or [tokenizer.eos_token_id] for ids in sources]


def readable_ids(what: str, texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of the texts without a frame. What the tokenizer cannot read is said. what: sources | targets."""
    ids, _ = plain_ids(tokenizer, texts)
    if line := told_of_losses(what, texts, ids, tokenizer):
        say(line)
    return ids


def told_of_losses(what: str, texts: Sequence[str], ids: list[list[int]], tokenizer: Any) -> str | None:
    """A line on the texts that hold unknown tokens, or of which decode(ids) lacks characters; None where there are none."""
    losing, lost = [], Counter()
    for text, row, back in zip(texts, ids, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        asked, given = folded(text), folded(back)
        missing = Counter() if asked == given else Counter(asked) - Counter(given)
        if missing or tokenizer.unk_token_id in row:
            losing.append(text)
            lost += missing
    if not losing:
        return None
    share = lost.total() / max(sum(len(folded(text)) for text in losing), 1)
    told = f"{len(losing):,} of {len(texts):,} {what} hold what this student's tokenizer does not know: "
    told += f"{share:.1%} of their characters are lost"
    told += f", most often {' '.join(repr(c) for c, _ in lost.most_common(MOST_NAMED))}" if lost else ""
    return f"{told}; such as {losing[0][:80]!r}"


def folded(text: str) -> str:
    """Without what tokenizers level out on purpose: capitals, forms of a character, blanks; the line ends stay."""
    if text.isascii() and text.isprintable():
        return text.lower().replace(" ", "")
    lines = unicodedata.normalize("NFKC", text).casefold().replace(" ", "").split("\n")
    return "\n".join("".join(filter(str.isprintable, line)) for line in lines)


def cut_sources(
    sources: list[list[int]], examples: list[dict], tokenizer: Any, task: Task, room: int, reason: str
) -> list[list[int]]:
    """The sources (without a frame), each at most `room` tokens: its longest fields lose their ends, and it is said.

    The end of the source goes where the fields are unknown (a source that is not made of them, a slow tokenizer).
    """
    long = [i for i, ids in enumerate(sources) if len(ids) > room]
    if not long:
        return sources
    fields: dict[int, list] = {}
    for i in long if tokenizer.is_fast else []:
        text, found = field_spans(task.student.source, {name: str(examples[i].get(name)) for name in task.fields})
        if text == examples[i]["source"]:
            fields[i] = found
    spans = plain_ids(tokenizer, [examples[i]["source"] for i in fields], spans=True)[1]
    spans = dict(zip(fields, spans, strict=True))
    cut, by_field, at_end = list(sources), {}, 0
    for i in long:
        shorter = cut_fields(sources[i], spans[i], fields[i], room) if i in fields else None
        cut[i], lost = shorter or (sources[i][:room], {})
        at_end += not lost
        for name, tokens in lost.items():
            by_field.setdefault(name, []).append(tokens)
    parts = [f"field {f} of {len(n):,}, by {sum(n) / len(n):.0f} tokens in the mean" for f, n in by_field.items()]
    parts += [f"the end of {at_end:,}, whatever stands there"] * bool(at_end)
    say(f"{len(long):,} of {len(sources):,} sources are longer than {reason}: cut {'; '.join(parts)}")
    return cut


def field_spans(template: str, values: dict) -> tuple[str, list[tuple[str, Span]]]:
    """(the rendered template, the fields in it with their characters)."""
    text, end, fields = "", 0, []
    for match in string.Template.pattern.finditer(template):
        text += template[end : match.start()]
        end = match.end()
        if name := match["named"] or match["braced"]:
            fields.append((name, (len(text), len(text) + len(values[name]))))
        text += values[name] if name else "$"
    return text + template[end:], fields


def cut_fields(
    ids: list[int], spans: Sequence[Span], fields: Sequence[tuple[str, Span]], room: int
) -> tuple[list[int], Counter[str]] | None:
    """(at most `room` of the ids, how many tokens each field lost at its end); None where a field would have none left.

    spans: the characters of every token. The longest fields are cut first, down to the length of the others.
    """
    inside = [[i for i, (_, end) in enumerate(spans) if begin < end <= last] for _, (begin, last) in fields]
    free = room - (len(ids) - sum(map(len, inside)))
    if not inside or free < len(inside):
        return None
    gone, lost = set(), Counter()
    order = sorted(range(len(inside)), key=lambda f: len(inside[f]))
    for left, f in zip(range(len(order), 0, -1), order, strict=True):  # shortest first: an equal share of what is free
        cut = inside[f][free // left :]
        free -= len(inside[f]) - len(cut)
        gone.update(cut)
        lost[fields[f][0]] += len(cut)
    return [token for i, token in enumerate(ids) if i not in gone], +lost
