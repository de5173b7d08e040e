"""Texts as the student's tokens, in training and in measuring alike.

A decoder-only student reads the source as its tokenizer frames it (a BOS stays, an EOS at the end goes) and a newline,
and writes the target and EOS. The three are tokenised apart, so that training and decoding see the same tokens at the
seams. Control tokens that a text spells out never become real ones, and what the tokenizer cannot read is said.
"""

from typing import Any

from gold.command import fail, say
from gold.control_tokens import frame_of, plain_ids
from gold.task import Task
from gold.truncation import cut_fields, field_spans
from gold.unreadable import told_of_losses


def encode_targets(texts: list[str], tokenizer: Any, family: str, limit: int | None = None) -> list[list[int]]:
    """The tokens that the student writes for each text, the end token included; with a limit, longer ones are cut, and
    said."""
    ids = plain_ids(tokenizer, texts)[0] if limit is None else readable_ids("targets", texts, tokenizer)
    before, after = ([], [tokenizer.eos_token_id]) if family == "decoder" else frame_of(tokenizer)
    ids = [before + row + after for row in ids]
    if limit is None:
        return ids
    if cut := sum(len(row) > limit for row in ids):
        say(f"{cut:,} of {len(texts):,} targets are longer than --max-target-length {limit}: cut")
    return [row[:limit] for row in ids]


def encode_sources(
    examples: list[dict], tokenizer: Any, family: str, task: Task, lengths: dict[str, int], positions: int | None
) -> list[list[int]]:
    """The tokens that the student reads for each example; a source that is too long loses the end of its longest field.

    positions: what the model holds, an upper limit of the source, for a decoder together with a newline and its longest
    target.
    """
    decoder = family == "decoder"
    newline = plain_ids(tokenizer, ["\n"])[0][0] if decoder else []  # none, if whitespace is nothing
    limit = lengths["max_source_length"]
    reason = f"--max-source-length {limit}"
    written = len(newline) + lengths["max_target_length"] if decoder else 0
    if positions and positions - written < limit:
        limit = positions - written
        reason = f"the {limit} tokens that the model's {positions} positions leave them"
        if limit < 1:
            problem = f"leaves no room for a source in {positions} positions"
            fail(f"--max-target-length {lengths['max_target_length']}: {problem}; lower it")
    before, after = frame_of(tokenizer)
    if decoder and after[-1:] == [tokenizer.eos_token_id]:
        after = after[:-1]
    sources = readable_ids("sources", [e["source"] for e in examples], tokenizer)
    sources = cut_sources(sources, examples, tokenizer, task, max(limit - len(before) - len(after), 0), reason)
    sources = [before + ids + after + newline for ids in sources]
    # An empty prompt predicts nothing: it begins with EOS
    return [ids or [tokenizer.eos_token_id] for ids in sources] if decoder else sources


def readable_ids(what: str, texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of the texts without a frame; what the tokenizer cannot read of them is said. what: sources |
    targets."""
    ids, broken, _ = plain_ids(tokenizer, texts)
    if broken:
        problem = "spell out a control token of this student, whose tokenizer would take it for a real one"
        say(
            f"{len(broken):,} of {len(texts):,} {what} {problem}: broken up with a blank; such as {texts[broken[0]][:80]!r}"
        )
    for line in told_of_losses(what, texts, ids, tokenizer):
        say(line)
    return ids


def cut_sources(
    sources: list[list[int]], examples: list[dict], tokenizer: Any, task: Task, room: int, reason: str
) -> list[list[int]]:
    """The sources (without a frame), each at most `room` tokens: its longest fields lose their ends, and it is said how
    much.

    Where that cannot be (a record without the task's fields, a tokenizer that tells no places) the end of the source
    goes.
    """
    long = [i for i, ids in enumerate(sources) if len(ids) > room]
    if not long:
        return sources
    rendered: dict[int, list] = {}
    for i in long if tokenizer.is_fast else []:
        values = {name: str(examples[i].get(name)) for name in task.fields}
        text, fields = field_spans(task.student.source, values)
        if text == examples[i]["source"]:
            rendered[i] = fields
    texts = [examples[i]["source"] for i in rendered]
    spans = dict(zip(rendered, plain_ids(tokenizer, texts, spans=True)[2], strict=True))
    cut, by_field, at_end = list(sources), {}, 0
    for i in long:
        found = cut_fields(sources[i], spans[i], rendered[i], room) if i in rendered else None
        cut[i], lost = found or (sources[i][:room], {})
        at_end += not lost
        for name, tokens in lost.items():
            by_field.setdefault(name, []).append(tokens)
    parts = [
        f"field {name} of {len(tokens):,}, by {sum(tokens) / len(tokens):.0f} tokens in the mean"
        for name, tokens in by_field.items()
    ]
    parts += [f"the end of {at_end:,}, whatever stands there"] * bool(at_end)
    say(f"{len(long):,} of {len(sources):,} sources are longer than {reason}: cut {'; '.join(parts)}")
    return cut
