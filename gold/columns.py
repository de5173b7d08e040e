"""Columns of people's own files that have a name which a stage writes or reads: `source`, `correct`, `energy` ...

    columns = Columns(use={"teacher_label"})                  one for each file
    record = columns.keep(record, rendered, line number)      theirs under another name; Edited: a record was edited
    columns.said()                                            "`correct` of 22 records as `original_correct`", or ""
    asked_for("prediction", records)                          the name under which an option's column stands now

Whose column is it? The toolkit's, where the record was generated (it has a `sampling_seed`) or has passed through a stage:
then its `source` is what the task renders. What stands in such a record is taken at its word, and a `source` or `target` that
no longer fits the fields is refused, because the string that is scored would not be the string that was edited. In any other
record the column is the user's: it stays, as `original_<name>`, in all that is written, and no stage takes it for its own.
A file in which the `source` of some records fits and that of others does not was edited: that is refused too.

What an option asks for is used: --score of a file that is scored already, --confirmed, --loss kl, --prediction-field and
--group-by under the own name, and where the stage writes another column of that name under the new one.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

# What score_ood.py, evaluate.py and generate.py label put into a record, or take from it
MADE = frozenset(
    "source target prediction correct f1 rouge_l score rank teacher_label label_probs "
    "energy energy_sum energy_first energy_padded energy_delta nll msp entropy margin embedding tfidf error "
    "hard_negative random".split()
)


class Edited(Exception):
    """A record of the toolkit whose text of `name` is not what the task renders: (line, name, found, expected)."""


@dataclass
class Columns:
    """What the columns of one file are taken for."""

    use: Collection[str] = ()  # names that an option asks for
    fits: bool = False  # the `source` of a record that was not generated is what the task renders
    other: tuple = ()  # the first of those records with another `source`: (line, name, found, expected)
    kept: Counter = field(default_factory=Counter)  # (name, new name): records

    def keep(self, record: dict, rendered: dict[str, str], number: int) -> dict:
        """The record with `source` and `target` as the task renders them, and the user's columns under other names."""
        generated, fits = "sampling_seed" in record, record.get("source") == rendered["source"]
        if "source" in record and not generated:
            self.fits = self.fits or fits
            if not fits and not self.other:
                self.other = (number, "source", record["source"], rendered["source"])
            if self.fits and self.other:
                raise Edited(*self.other)
        if generated or fits:
            for name, text in rendered.items():
                if record.get(name, text) != text:
                    raise Edited(number, name, record[name], text)
            return record | rendered
        found = {}
        for name, value in record.items():
            new = name
            if name in MADE and name not in self.use and value != rendered.get(name):
                new = f"original_{name}"
                while new in record:
                    new = f"original_{new}"
                self.kept[name, new] += 1
            found[new] = value
        return found | rendered

    def said(self) -> str:
        return ", ".join(f"{name!r} of {count:,} records as {new!r}" for (name, new), count in self.kept.items())


def asked_for(name: str | None, records: Sequence[dict[str, Any]]) -> str | None:
    """The column that an option names: where it was the user's own and had to make room, its new name."""
    made = name in ("source", "target") or not any(name in record for record in records)
    return f"original_{name}" if made and any(f"original_{name}" in record for record in records) else name
