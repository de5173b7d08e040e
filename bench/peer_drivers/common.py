"""What the drivers of bench/peers.py share: the job, and the marks by which they are watched. Standard library only."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def read_job() -> dict:
    """The JSON file that bench/peers.py wrote for this run: prompts, sampling, paths."""
    return json.loads(Path(sys.argv[1]).read_text())


def mark_up(job: dict) -> None:
    """The engine is up, or the library gets its prompts now: what comes before is start."""
    Path(job["up"]).write_text(str(time.time()))


def write_texts(job: dict, rows: Iterable[tuple[str, str | None]]) -> None:
    """(id, completion) of all prompts, at the end; after it comes what a process does to end."""
    lines = [json.dumps({"id": identifier, "text": text}) + "\n" for identifier, text in rows]
    Path(job["out"]).write_text("".join(lines))
    Path(job["up"]).write_text(f"{Path(job['up']).read_text()} {time.time()}")


def count_finished(job: dict, llm: Any) -> None:
    """A byte in job["finished"] for every request that a vllm.LLM finishes; only where the job asks for it."""
    if not job.get("finished"):
        return
    file = os.open(job["finished"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    step: Callable = llm.llm_engine.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        outputs = step(*args, **kwargs)
        if ended := sum(output.finished for output in outputs):
            os.write(file, b"." * ended)
        return outputs

    llm.llm_engine.step = counted
