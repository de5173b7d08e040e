"""Completions that are finished and not yet settled, on the disk too: a stage that is killed asks for none of them again.

journal = Journal(path, teacher_nll=False)
engine.send(journal.missing(requests))                those of which no completion is kept
journal.keep({"a-0": output})                         as they are finished, in any order
found = journal.take("a-0", engine)                   {"text", "finish_reason", "teacher_nll", "tokens", ...}
journal.save()                                        after what was taken is in the stage's own files
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gold.answers import mean_nll
from gold.disk import naming, write_text
from gold.engine import Engine, Output, Request
from gold.jsonl import cut_torn_line, dump_line, read_records


class Journal:
    """Completions by the ids of their requests. A kept one counts only for the very prompt and sampling parameters.

    settled: ids that need no completion: of a kill after a chunk was saved and before this file was.
    """

    def __init__(self, path: Path, teacher_nll: bool, settled: Iterable[str] = ()):
        self.path, self.teacher_nll = path, teacher_nll
        self.asked: dict[str, str] = {}  # id: hash of its request
        path.touch()
        cut_torn_line(path)
        records = (record for _, record in read_records(path))
        self.kept = {record["id"]: record for record in records if record["finish_reason"] != "error"}  # of a server
        for identifier in settled if self.kept else ():
            self.kept.pop(identifier, None)

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Those that an engine has to complete."""
        for request in requests:
            self.asked[request.id] = hashed = hashlib.sha256(repr(request[1:3]).encode()).hexdigest()[:16]
            if self.kept.get(request.id, {}).get("request") != hashed:
                self.kept.pop(request.id, None)
        return [request for request in requests if request.id not in self.kept]

    def keep(self, outputs: Mapping[str, Output]) -> int:
        """Note what is finished; how many of these outputs were asked for here (an engine may have other work too)."""
        mine = {identifier: output for identifier, output in outputs.items() if identifier in self.asked}
        for identifier, output in mine.items():
            [one] = output.outputs
            nll = {"teacher_nll": mean_nll(one)} if self.teacher_nll else {}
            self.kept[identifier] = {
                "id": identifier, "text": one.text, "finish_reason": one.finish_reason, **nll,
                "tokens": dict(output.tokens), "request": self.asked[identifier],
            }  # fmt: skip
        # Without fsync, which takes longer than a step of a small teacher: a kill loses nothing, a power cut seconds
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{dump_line(self.kept[identifier])}\n" for identifier in mine)
        return len(mine)

    def take(self, identifier: str, engine: Engine) -> dict:
        """Wait for a completion; its tokens count from here on."""
        if identifier in engine.sent:
            engine.wait([identifier])
        else:  # from before a kill
            engine.tokens.update(self.kept[identifier]["tokens"])
        del self.asked[identifier]
        return self.kept.pop(identifier)

    def save(self) -> None:
        """The file holds what nobody has taken yet."""
        write_text(self.path, "".join(f"{dump_line(record)}\n" for record in self.kept.values()))
