"""A source that is too long loses the end of its longest field, not the end of the string, where the question may be."""

import string
from collections import Counter
from collections.abc import Sequence

Span = tuple[int, int]  # characters (begin, end)


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
