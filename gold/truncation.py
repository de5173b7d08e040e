"""A source that is too long loses the end of its longest field, not the end of the string: the question may stand there."""

import string
from collections.abc import Sequence

Span = tuple[int, int]  # characters (begin, end)


def field_spans(template: str, values: dict) -> tuple[str, list[tuple[str, Span]]]:
    """(the rendered template, where its fields stand in it: (field, characters)); KeyError where a field is missing."""
    text, end, found = "", 0, []
    for match in string.Template.pattern.finditer(template):
        text += template[end : match.start()]
        end = match.end()
        name = match["named"] or match["braced"]
        value = values[name] if name else "$"
        if name:
            found.append((name, (len(text), len(text) + len(value))))
        text += value
    return text + template[end:], found


def equal_room(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each length is kept, together at most `room`: the longest are cut first, down to what the others have."""
    kept = list(lengths)
    for rank, i in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        kept[i] = min(lengths[i], room // (len(lengths) - rank))
        room -= kept[i]
    return kept


def cut_fields(
    ids: list[int], spans: Sequence[Span], fields: Sequence[tuple[str, Span]], room: int
) -> tuple[list[int], dict[str, int]] | None:
    """(at most `room` of the ids, tokens that each field lost at its end); None where a field would have none left.

    spans: the characters of every token. fields: the characters of every field, as field_spans gives them.
    """
    inside = [[i for i, (_, end) in enumerate(spans) if begin < end <= last] for _, (begin, last) in fields]
    lengths = list(map(len, inside))
    free = room - (len(ids) - sum(lengths))
    if not lengths or free < len(lengths):
        return None
    gone: set[int] = set()
    lost: dict[str, int] = {}
    for (name, _), places, keep in zip(fields, inside, equal_room(lengths, free), strict=True):
        if len(places) > keep:
            gone.update(places[keep:])
            lost[name] = lost.get(name, 0) + len(places) - keep
    return [token for i, token in enumerate(ids) if i not in gone], lost
