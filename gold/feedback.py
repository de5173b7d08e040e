"""What generate.py shows of the student: feedback examples of score_ood.py, and results of evaluate.py as text."""

import json
from pathlib import Path

from gold.command import fail, say
from gold.examples import read_examples
from gold.metrics import report_text
from gold.task import Task, variables


def read_feedback(paths: list[Path], task: Task) -> list[dict]:
    """Feedback examples. A file may be empty: a student that made no error has no feedback."""
    empty = [path for path in paths if path.is_file() and not path.stat().st_size]
    for path in empty:
        say(f"--feedback-file {path}: is empty: no feedback from it")
    return read_examples([path for path in paths if path not in empty], task)


def read_report(path: Path, task: Task, has_feedback: bool) -> str:
    """The student's results as text; ends the stage (exit 1) where there are none, or no prompt would show them."""
    if "report" not in variables(task.prompt.feedback or ""):
        fail(f"{task.path}: prompt.feedback: has no $report to show --report-file in; add it, or leave the option out")
    try:
        report = report_text(json.loads(path.read_text(encoding="utf-8")), task)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        cure = "run evaluate.py with this --task-file, perhaps with --overwrite"
        fail(f"--report-file {path}: is no metrics.json of this task: {type(error).__name__}: {error}; {cure}")
    if not has_feedback:
        say(f"--report-file {path}: no prompt shows it, for there is no feedback")
    return report
