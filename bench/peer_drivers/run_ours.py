"""generate.py with its finished requests counted: `python run_ours.py JOB.json OPTIONS`. For the restart part alone."""

import sys
from typing import Any

from common import count_finished, read_job

job = read_job()
sys.path.insert(0, job["root"])
sys.argv = ["generate.py", *sys.argv[2:]]

import generate  # noqa: E402
from gold import engine  # noqa: E402
from gold.command import run_command  # noqa: E402

start = engine.start_llm


def counted(*args: Any, **kwargs: Any) -> Any:
    llm = start(*args, **kwargs)
    count_finished(job, llm)
    return llm


engine.start_llm = counted
run_command(generate.app)
