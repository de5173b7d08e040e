"""A teacher's labels through a server: no tokenizer is known here, so the server's own tokens and log-probabilities count.

Completion form: each label stands after the prompt, and the server gives the log-probabilities of all tokens (`echo`), as in
lm-evaluation-harness; those from the first token on in which the labels differ are summed. Chat form: the 20 likeliest
first tokens of the answer, each for the label that it begins; where they tell no label apart, there are no shares. Without
log-probabilities the greedy answer alone counts.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from gold.answers import label_probs, read_answer
from gold.command import say
from gold.engine import Request
from gold.prompts import Prompt
from gold.server import Server
from gold.task import Task

TOP = 20  # OpenAI's limit on top_logprobs
ANSWER_TOKENS = 32
LEAST = 0.1  # share of the first tokens that must begin a label


def remote_labels(server: Server, task: Task, records: list[dict], prompts: Sequence[Prompt]) -> list[dict | None]:
    """teacher_label and label_probs of each record; without label_probs where the server has no log-probabilities, and with
    teacher_label "" where the answer is no label. None: the server failed at it.
    """
    if not records:
        return []
    if server.form == "completion" and server.log_probs:
        answers = echoed_labels(server, task, prompts)
        if server.log_probs:
            return answers
    how = {"max_tokens": ANSWER_TOKENS, "temperature": 0}
    if server.form == "completion":
        how["stop"] = ["\n\n", *task.parse.stop]
    elif server.log_probs:
        how |= {"logprobs": True, "top_logprobs": TOP}
    requests = [Request(f"label-{n}", prompt, how) for n, prompt in enumerate(prompts)]
    outputs = [output.outputs[0] for output in server.complete(requests)]
    answered = [one for one in outputs if one.finish_reason != "error"]
    if server.form == "chat" and answered and not any(one.logprobs and one.logprobs.content for one in answered):
        without_log_probs(server)
    return [read_label(task, record, one) for record, one in zip(records, outputs, strict=True)]


def without_log_probs(server: Server) -> None:
    if server.log_probs:
        say(f"warning: {server.url} gives no log-probabilities: the greedy answer counts, without label_probs")
    server.log_probs = False


def echoed_labels(server: Server, task: Task, prompts: Sequence[Prompt]) -> list[dict | None]:
    names = [*task.labels]
    gap = re.search(r"( *)\$[^$]*$", task.label_template)[1]  # as a label stands between two shots
    begins = any(a != b and b.startswith(a) for a in names for b in names)
    end = "\n\n" if begins else ""  # pos, positive: what ends the label counts too
    how = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    requests = [
        Request(f"label-{n}-{k}", Prompt("", prompt.user.rstrip(" ") + gap + name + end), how)
        for n, prompt in enumerate(prompts) for k, name in enumerate(names)
    ]  # fmt: skip
    outputs, answers = [output.outputs[0] for output in server.complete(requests)], []
    for n in range(len(prompts)):
        group = outputs[n * len(names) : (n + 1) * len(names)]
        if any(one.finish_reason == "error" for one in group):
            answers.append(None)
            continue
        if any(not one.logprobs or len(one.logprobs.tokens) < 3 for one in group):  # the new token alone: no echo
            without_log_probs(server)
            return []
        tokens = [one.logprobs.tokens[:-1] for one in group]  # the last one is new
        differing = (i for i, column in enumerate(zip(*tokens, strict=False)) if len(set(column)) > 1)
        same = next(differing, min(map(len, tokens)))
        answers.append(label_probs(task, [sum(one.logprobs.token_logprobs[same:-1]) for one in group]))
    return answers


def read_label(task: Task, record: dict, output: Any) -> dict | None:
    """The label that an answer spells; with the log-probabilities of its first token, the shares of all labels."""
    if output.finish_reason == "error":
        return None
    text = read_answer(task, record, output.text, "stop").lower().lstrip("*_\"'` ")
    spelt = max((name for name in task.labels if text.startswith(name.lower())), key=len, default="")
    if not (output.logprobs and output.logprobs.content):
        return {"teacher_label": spelt}
    shares, unclear = dict.fromkeys(task.labels, 0.0), 0.0
    for token in output.logprobs.content[0].top_logprobs:
        start, p = token.token.strip().lower(), math.exp(token.logprob)
        begun = [name for name in task.labels if start and name.lower().startswith(start)]
        if len(begun) == 1:
            shares[begun[0]] += p
        elif begun:  # labels that begin alike
            unclear += p
    if sum(shares.values()) < max(LEAST, unclear):  # a mark, a thought, or what the next token decides
        return {"teacher_label": spelt}
    return label_probs(task, [math.log(max(share, 1e-9)) for share in shares.values()])
