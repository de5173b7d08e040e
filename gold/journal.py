"""Completions that are finished and not yet settled, on the disk too: a stage that is killed asks for none of them again.

journal = Journal(path, teacher_nll=False)
engine.send(journal.missing(requests))                those of which no completion is kept
journal.keep({"a-0": output}, 12.5)                   as they are finished, in any order
found = journal.take("a-0", engine)                   {"text", "finish_reason", "teacher_nll", "tokens", ...}
journal.save()                                        after what was taken is in the stage's own files
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from gold.answers import mean_nll
from gold.command import fail
from gold.disk import naming, write_text
from gold.engine import Engine, Output, Request
from gold.jsonl import dump_line


class Completion(TypedDict):
    id: str
    text: str
    finish_reason: str | None
    teacher_nll: NotRequired[float | None]
    tokens: dict[str, int]
    seconds: float  # of generation, until it was finished
    request: str


class Journal:
    """Completions by the ids of their requests. A kept one counts only for the very prompt and sampling parameters.

    settled: ids that need no completion: of a kill after a chunk was saved and before this file was. A line that is no
    completion is left out: it costs a completion, as an error of a server does, which may be none the next time.
    """

    def __init__(self, path: Path, teacher_nll: bool, settled: Iterable[str] = ()):
        import msgspec

        self.path, self.teacher_nll = path, teacher_nll
        self.asked: dict[str, str] = {}  # id: hash of its request
        self.kept: dict[str, Completion] = {}
        if path.is_dir():
            fail(f"{path}: is a folder, where finished completions are to be noted; move it away")
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                completion = msgspec.json.decode(line, type=Completion)
            except (ValueError, RecursionError):
                continue
            self.kept[completion["id"]] = completion
        self.seconds = max((completion["seconds"] for completion in self.kept.values()), default=0.0)
        for identifier in settled if self.kept else ():
            self.kept.pop(identifier, None)
        self.save()

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Those that an engine has to complete."""
        for request in requests:
            self.asked[request.id] = hashed = hashlib.sha256(repr(request[1:3]).encode()).hexdigest()[:16]
            if request.id in self.kept and self.kept[request.id]["request"] != hashed:
                del self.kept[request.id]
        return [request for request in requests if request.id not in self.kept]

    def keep(self, outputs: Mapping[str, Output], seconds: float) -> int:
        """Note what is finished, after so many seconds of generation; how many of these outputs were asked for here (an engine
        may have other work too)."""
        if not (mine := [identifier for identifier in outputs if identifier in self.asked]):
            return 0
        for identifier in mine:
            [one] = outputs[identifier].outputs
            nll = {"teacher_nll": mean_nll(one)} if self.teacher_nll else {}
            self.kept[identifier] = {
                "id": identifier, "text": one.text, "finish_reason": one.finish_reason, **nll,
                "tokens": dict(outputs[identifier].tokens), "seconds": round(seconds, 2), "request": self.asked[identifier],
            }  # fmt: skip
        # Without fsync, which takes longer than a step of a small teacher: a kill loses nothing, a power cut seconds
        with naming(self.path):
            self.file.writelines(self.lines_of(mine))
            self.file.flush()
        return len(mine)

    def lines_of(self, ids: Iterable[str]) -> Iterable[str]:
        """Of the file; an error has none."""
        return (f"{dump_line(self.kept[i])}\n" for i in ids if self.kept[i]["finish_reason"] != "error")

    def take(self, identifier: str, engine: Engine) -> Completion:
        """Wait for a completion; its tokens count from here on."""
        if identifier in engine.sent:
            engine.wait([identifier])
        else:  # from before a kill
            engine.tokens.update(self.kept[identifier]["tokens"])
        del self.asked[identifier]
        return self.kept.pop(identifier)

    def save(self) -> None:
        """The file holds what nobody has taken yet."""
        write_text(self.path, "".join(self.lines_of(self.kept)))
        self.file = self.path.open("a", encoding="utf-8")

    def remove(self) -> None:
        self.file.close()
        self.path.unlink()
