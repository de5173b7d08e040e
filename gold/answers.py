"""The answers that the teacher gives to label prompts: read, and of several samples the one with most votes."""

import math
import random
from collections import defaultdict
from typing import Any

from gold.engine import Request
from gold.equations import evaluate_equation
from gold.parsing import another_begins, first_example, plain_marks, without_opening
from gold.programmes import optimum
from gold.prompts import split_example
from gold.reasoning import strip_reasoning
from gold.task import Task
from gold.text import exact_form, text_key


def label_probs(task: Task, sums: list[float]) -> dict:
    """teacher_label and label_probs from unnormalised log-probabilities, in the order of the task's labels."""
    weights = [math.exp(value - max(sums)) for value in sums]
    probs = {name: float(f"{w / sum(weights):.6g}") for name, w in zip(task.labels, weights, strict=True)}
    return {"teacher_label": max(probs, key=probs.__getitem__), "label_probs": probs}


def mean_nll(output: Any) -> float | None:
    """Mean negative log-probability of a completion's tokens, its end among them, in nats: SuperGen keeps the texts where it
    is low (Meng et al. 2022, arXiv 2202.04538). None: a server that gives none. output: vLLM's or a server's.

    vLLM's are those of the model itself, before temperature, top-p and the like (its raw_logprobs).
    """
    given = output.logprobs
    if isinstance(given, list):  # vLLM's: at each position {token: ...} of the sampled one
        values = [one.logprob for position in given for one in position.values()]
    elif hasattr(given, "token_logprobs"):  # of /v1/completions
        values = given.token_logprobs
    else:  # of /v1/chat/completions
        values = [one.logprob for one in getattr(given, "content", None) or ()]
    return round(-sum(values) / len(values), 6) if values else None


def written_answers(engine: Any, task: Task, asked: list[tuple[dict, Any]], how: dict, seed: int) -> list[dict]:
    """label_records of a text2text task. asked: records with their prompts; how: sampling parameters."""
    requests = []
    for n, (record, prompt) in enumerate(asked):
        sampling_seed = random.Random(f"{seed}/{record.get('id')}").getrandbits(31)
        requests.append(Request(f"answer-{n}", prompt, how | {"seed": sampling_seed}))
    results = []
    for (record, _), output in zip(asked, engine.complete(requests), strict=True):
        pairs = [read_written(task, record, one.text, one.finish_reason) for one in output.outputs]
        result = {"teacher_label": pairs[0][1]}
        if how["n"] > 1:
            votes: dict[Any, list[str]] = defaultdict(list)
            for _, answer in pairs:
                votes[vote_of(task, answer)].append(answer)
            votes.pop(None, None)
            best, total = max(votes.values(), key=len, default=[""]), sum(map(len, votes.values()))
            result = {"teacher_label": best[0], "label_probs": {v[0]: len(v) / total for v in votes.values()}}
        reasons = next((r for r, answer in pairs if r and answer == result["teacher_label"]), "")
        if reasons and record.get(task.answer_field) is None:  # beside an answer they may be those of another
            result[task.rationale_field] = reasons
        results.append(result)
    return results


def read_answer(task: Task, record: dict, text: str, finish_reason: str) -> str:
    return read_written(task, record, text, finish_reason)[1]


def read_written(task: Task, record: dict, text: str, finish_reason: str) -> tuple[str, str]:
    """(the reasons, where the template has some; the answer) in a completion of a label prompt; "" where it is cut off.

    A chat model may repeat where it was to begin and explain afterwards, a base model may begin another example.
    """
    template = task.label_template
    start, parts = split_example(template, {name: record[name] for name in task.fields})
    final, reason = strip_reasoning(text, template)
    if reason:
        return "", ""
    reasons, final = "", without_opening(plain_marks(final, template, None), start).strip()
    if len(parts) > 1:
        reasons, _, final = first_example(final, template, []).partition(parts[0][1].strip() or "\n")
    answer = first_example(final, template, ["\n\n", *task.parse.stop]).strip()
    whole = finish_reason != "length" or another_begins(template, answer, text)
    return (reasons.strip(), answer) if whole else ("", "")


def vote_of(task: Task, answer: str) -> Any:
    """What makes two answers the same vote; None for an answer that is none."""
    if task.metric in ("equation_value", "optimum"):
        value = (evaluate_equation if task.metric == "equation_value" else optimum)(answer)
        return None if value is None else float(f"{value:.6g}")
    return (text_key(answer) if task.metric == "squad" else exact_form(answer)) or None
