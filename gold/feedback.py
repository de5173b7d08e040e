"""What generate.py shows of the student: feedback examples of score_ood.py, and results of evaluate.py as text.

--rewrite has a feedback example rewritten instead, or its beginning continued (GenCo, Zhang et al. 2023, arXiv 2304.11872).
"""

import json
from pathlib import Path

from gold.command import fail, say
from gold.examples import read_examples
from gold.metrics import report_text
from gold.task import Task
from gold.templates import variables
from gold.text import pattern


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


def rewriting(task: Task, options: dict, feedback: list[dict]) -> dict:
    """The options that --rewrite stands for ({} without it): every prompt takes one feedback example of its own label.

    Ends the stage (exit 1) for other options that do not go with it, and says whose prompts have nothing to rewrite.
    """
    if not options["rewrite"]:
        return {}
    if not task.labels:
        fail("--rewrite: a text2text task has no labels, for which texts could be rewritten; leave it out")
    if options["report_file"] or options["corpus_file"] or options["feedback_label"] == "other":
        fail("--rewrite: shows one text of its label; leave out --report-file, --corpus-file, --feedback-label other")
    if missing := [name for name in task.labels if name not in {example[task.answer_field] for example in feedback}]:
        told = f"{len(missing)} of {len(task.labels)} labels have no feedback ({', '.join(missing[:5])})"
        say(f"--rewrite: {told}: their prompts, {len(missing) / len(task.labels):.0%} of all, are ordinary ones")
    return {"feedback_rate": 1.0, "num_feedback_shots": 1, "feedback_label": "same"}


def with_rewrite(task: Task, form: str) -> Task:
    """The task with [prompt] rewrite in the place of feedback. In the completion form both are None: there the teacher
    continues a text, for small models cannot follow an instruction."""
    if form == "chat" and not task.prompt.rewrite:
        fail(f"{task.path}: prompt.rewrite: missing: --rewrite asks with it; add it (docs/tasks.md)")
    if form == "completion" and len(task.fields) > 1:
        found = f"the task has the fields {', '.join(task.fields)}"
        fail(f"--rewrite: the completion form continues one text, {found}; give --prompt-form chat")
    rewrite = task.prompt.rewrite if form == "chat" else None
    return task.model_copy(update={"prompt": task.prompt.model_copy(update={"feedback": rewrite, "rewrite": rewrite})})


def first_half(text: str) -> str:
    """A blank and the first half of the words of a text, on one line: a line's end may end an example."""
    line = " ".join(text.split())
    ends = [found.end() for found in pattern("words").finditer(line)]
    return f" {line[: ends[len(ends) // 2 - 1]]}" if len(ends) > 1 else ""
