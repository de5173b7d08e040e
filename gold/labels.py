"""What the teacher itself takes for the answer of a record: label probabilities, or an answer of its own.

    answers = label_records(engine, encoder, task, records, shots)         label.py and generate.py --verify use it

A label's probability is that of its tokens and of the token that ends its line (or, in a chat, the turn), normalised
over the labels. Its tokens are those that it has in the running text: SentencePiece puts a blank before a text, and a
blank or a line end at the end of a prompt may join what follows it. So prompt, label and end are tokenised together.
For a record the labels form a trie of tokens; each node with children is one request: the prompt and the path to the
node, one new token, the log-probabilities of the children alone (`logprob_token_ids`). No prompt_logprobs, which would
switch vLLM's prefix cache off.
"""

import math
import random
import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from gold.command import fail
from gold.equations import evaluate_equation
from gold.parsing import another_begins
from gold.programmes import optimum
from gold.prompts import Prompt, render_label_prompt, split_example
from gold.reasoning import strip_reasoning
from gold.task import Task
from gold.teacher import Encoder, Engine, Request
from gold.text import exact_form, text_key

MAX_CHILDREN = 128  # vLLM's limit on logprob_token_ids
TAIL = 200  # characters of a prompt that are tokenised again with every label, about 50 tokens
OVERLAP = 8  # tokens before a label that must be the same after the whole prompt and after its tail


class Row(NamedTuple):
    """Token ids of a label prompt. rests: of the labels, each with the token that ends it; [] for text2text."""

    root: list[int]
    rests: list[list[int]]

    def length(self, max_tokens: int) -> int:
        """Tokens of prompt and answer."""
        return len(self.root) + max(map(len, self.rests), default=max_tokens)


def draw_label_shots(task: Task, seeds: list[dict], count: int, seed: int) -> list[dict]:
    """The seed examples of a label prompt, the labels in turn: the same for all records, so that they share the
    prefix."""
    rng = random.Random(f"{seed}/label")
    groups = {name: [s for s in seeds if s[task.answer_field] == name] for name in task.labels} or {"": list(seeds)}
    for group in groups.values():
        rng.shuffle(group)
    rows = [[group[i] for group in groups.values() if i < len(group)] for i in range(max(map(len, groups.values())))]
    for row in rows:
        rng.shuffle(row)
    return [shot for row in rows for shot in row][:count]


def label_records(
    engine: Engine, encoder: Encoder, task: Task, records: list[dict], shots: list[dict],
    num_samples: int = 1, temperature: float = 0.7, max_tokens: int = 128, seed: int = 0,
) -> list[dict | None]:  # fmt: skip
    """The teacher's own answer for each record: {"teacher_label": ..., "label_probs": {answer: share}}.

    Classification: label_probs of all labels in the task's order (they sum to 1), teacher_label the likeliest.
    text2text: the greedy answer (no label_probs), or with num_samples > 1 the answer with most votes among the samples
    that are one (the first of them where there is a tie) and the shares of all; "" and {} where none is. None for a
    record whose prompt and answer do not fit the context.
    """
    rows = label_rows(task, encoder, records, shots)
    fits = [row.length(max_tokens) <= engine.max_model_len for row in rows]
    asked = [(record, row) for record, row, fit in zip(records, rows, fits, strict=True) if fit]
    if task.labels:
        results = [label_probs(task, sums) for sums in log_probs(engine, [row for _, row in asked])]
    else:
        stop = None if encoder.form == "chat" else [*dict.fromkeys(["\n\n", *task.parse.stop])]
        how = {
            "n": num_samples,
            "temperature": temperature if num_samples > 1 else 0,
            "max_tokens": max_tokens,
            "stop": stop,
        }
        results = written_answers(engine, task, asked, how, seed)
    answers = iter(results)
    return [next(answers) if fit else None for fit in fits]


def label_probs(task: Task, sums: list[float]) -> dict:
    weights = [math.exp(value - max(sums)) for value in sums]
    probs = {name: float(f"{w / sum(weights):.6g}") for name, w in zip(task.labels, weights, strict=True)}
    return {"teacher_label": max(probs, key=probs.__getitem__), "label_probs": probs}


# ---------------------------------------------------------------------------------------------------------------------
# Labels: their tokens in the running text, and the log-probabilities of these


def label_rows(task: Task, encoder: Encoder, records: list[dict], shots: list[dict]) -> list[Row]:
    prompts = encoder.frame([render_label_prompt(task, record, shots) for record in records])
    if not task.labels:
        return [Row(ids, []) for ids in encoder.token_ids(prompts)]
    if encoder.form == "chat":
        gap, end = chat_answer(encoder)
    else:  # as a label stands between two shots; the opening of the next one decides whether "\n\n" is one token or two
        example = task.label_template
        *_, previous, answer = string.Template.pattern.finditer(example)
        before = example[previous.end() : answer.start()]
        gap, end = before[len(before.rstrip(" ")) :], "\n\n" + example.split("$", 1)[0]
        prompts = [prompt.rstrip(" ") for prompt in prompts]  # the blank of a "$start " is in the gap
    return running_labels(encoder, prompts, [gap + name for name in task.labels], end)


def chat_answer(encoder: Encoder) -> tuple[str, str]:
    """(what the chat template puts between the prompt and an answer, blanks only; what it ends the answer's turn
    with)."""
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "LABEL"}]
    gap = end = ""
    try:
        whole = encoder.tokenizer.apply_chat_template(turns, tokenize=False, **encoder.chat_template_kwargs)
        before, _, end = whole.rpartition("LABEL")
        prompt = encoder.in_chat(Prompt("", "?"))
        gap = before[len(prompt) :] if before.startswith(prompt) else ""
    except TemplateError:
        pass
    end = end.strip() or encoder.tokenizer.eos_token
    if end is None:
        fail("--model: neither its chat template nor its tokenizer has an end, so no label would end; set eos_token")
    return "" if gap.strip() else gap, end


def running_labels(
    encoder: Encoder, prompts: list[str], labels: Sequence[str], end: str, tail: int = TAIL
) -> list[Row]:
    """For each prompt the row whose root + rests[k] are the tokens of prompt + labels[k] and the first token of `end`.

    The root is the longest prefix of tokens that all labels share; it may be shorter than the tokens of the prompt
    alone. Only the prompt's last `tail` characters are tokenised again with every label: where their tokens are not
    those that the whole prompt has there, all of it is. labels: with the blanks before them.
    """
    size, texts = 2 * len(labels) + 1, []
    for prompt in prompts:
        last = prompt[-tail:]
        texts += [prompt + labels[0], *(last + name for name in labels), *(last + name + end for name in labels)]
    ids, rows = encoder.token_ids(texts), []
    for i, prompt in enumerate(prompts):
        whole, *parts = ids[i * size : (i + 1) * size]
        plain, ended = parts[: len(labels)], parts[len(labels) :]
        same = len(common_prefix([whole[::-1], plain[0][::-1]]))
        skip = len(plain[0]) - same  # tokens at the beginning of the tail that are not those of the whole text
        if len(prompt) > tail and skip + OVERLAP > len(common_prefix(plain)):
            rows += running_labels(encoder, [prompt], labels, end, len(prompt))
            continue
        rests = [[*one[skip:], end_of(one, more, name)] for name, one, more in zip(labels, plain, ended, strict=True)]
        common = common_prefix(rests)
        if common in rests or len(set(map(tuple, rests))) < len(rests):
            fail(
                f"--model: its tokenizer cannot tell the labels apart: {', '.join(labels)}; rename them, or use another"
            )
        rows.append(Row([*whole[: len(whole) - same], *common], [rest[len(common) :] for rest in rests]))
    return rows


def common_prefix(rows: list[list[int]]) -> list[int]:
    """The longest beginning that all rows share."""
    differing = (i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1)
    return rows[0][: next(differing, min(map(len, rows)))]


def end_of(label: list[int], ended: list[int], name: str) -> int:
    """The token that ends a label, from the tokens of a text without and with its end."""
    if ended[: len(label)] != label or len(ended) == len(label):
        fail(
            f"--model: its tokenizer joins the label {name.strip()!r} and the end of its line in one token; use another model"
        )
    return ended[len(label)]


def token_trie(sequences: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """Nodes with children: path of token ids -> the tokens that may follow. The root is (); parents come first."""
    children: dict[tuple[int, ...], dict[int, None]] = {(): {}}
    for sequence in sequences:
        for depth, token in enumerate(sequence):
            children.setdefault(tuple(sequence[:depth]), {})[token] = None
    return {path: list(tokens) for path, tokens in sorted(children.items(), key=lambda item: len(item[0]))}


def log_probs(engine: Engine, rows: list[Row]) -> list[list[float]]:
    """Sum of the log-probabilities (nats) of the tokens of each rest after the root of its row: (rows, rests)."""
    import vllm

    if not hasattr(vllm.SamplingParams, "logprob_token_ids"):
        fail(
            f"vLLM {vllm.__version__} has no logprob_token_ids, by which labels are read; install the one of requirements.txt"
        )
    tries = [token_trie(row.rests) for row in rows]
    found: list[dict[tuple[int, ...], dict[int, float]]] = [{} for _ in rows]
    # The roots first: when the other nodes are asked for, the prompts are in the cache
    for at_root in (True, False):
        asked = [
            (i, path, children[k : k + MAX_CHILDREN])
            for i, trie in enumerate(tries) for path, children in trie.items() if (not path) == at_root
            for k in range(0, len(children), MAX_CHILDREN)
        ]  # fmt: skip
        one = {"max_tokens": 1, "temperature": 0, "detokenize": False}
        requests = [
            Request(
                f"label-{at_root}-{n}", [*rows[i].root, *path], vllm.SamplingParams(**one, logprob_token_ids=children)
            )
            for n, (i, path, children) in enumerate(asked)
        ]
        for (i, path, children), output in zip(asked, engine.complete(requests), strict=True):
            given = output.outputs[0].logprobs[0]
            found[i].setdefault(path, {}).update({token: given[token].logprob for token in children})
    return [
        [sum(of[tuple(rest[:depth])][token] for depth, token in enumerate(rest)) for rest in row.rests]
        for of, row in zip(found, rows, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# text2text: answers that the teacher writes


def written_answers(engine: Engine, task: Task, asked: list[tuple[dict, Row]], how: dict, seed: int) -> list[dict]:
    """label_records of a text2text task. how: sampling parameters."""
    from vllm import SamplingParams

    requests = [
        Request(
            f"answer-{n}",
            row.root,
            SamplingParams(**how, seed=random.Random(f"{seed}/{record.get('id')}").getrandbits(31)),
        )
        for n, (record, row) in enumerate(asked)
    ]
    results = []
    for (record, _), output in zip(asked, engine.complete(requests), strict=True):
        answers = [read_answer(task, record, one.text, one.finish_reason) for one in output.outputs]
        if how["n"] == 1:
            results.append({"teacher_label": answers[0]})
            continue
        votes: dict[Any, list[str]] = {}
        for answer in answers:
            if (key := vote_of(task, answer)) is not None:
                votes.setdefault(key, []).append(answer)
        best, total = max(votes.values(), key=len, default=[""]), sum(map(len, votes.values()))
        results.append({"teacher_label": best[0], "label_probs": {v[0]: len(v) / total for v in votes.values()}})
    return results


def read_answer(task: Task, record: dict, text: str, finish_reason: str) -> str:
    """The answer in a completion of a label prompt; "" where it is cut off.

    A chat model may repeat where it was to begin and explain afterwards, a base model may begin another example.
    """
    template = task.label_template
    start = split_example(template, {name: record[name] for name in task.fields}).start.strip()
    whole, opening = text, template.split("$", 1)[0].strip()
    text, reason = strip_reasoning(text, template)
    if reason:
        return ""
    text = text.strip()
    for said in filter(None, (start, start.rsplit("\n", 1)[-1])):
        if text.lower().startswith(said.lower()):
            text = text[len(said) :].lstrip()
    stops = ["\n\n", *task.parse.stop, *([f"\n{opening}"] if opening else [])]
    answer = re.split("|".join(map(re.escape, stops)), text)[0].strip()
    ended = finish_reason != "length" or another_begins(template, answer, whole)
    return answer if ended else ""


def vote_of(task: Task, answer: str) -> Any:
    """What makes two answers the same vote; None for an answer that is none."""
    if task.metric in ("equation_value", "optimum"):
        value = (evaluate_equation if task.metric == "equation_value" else optimum)(answer)
        return None if value is None else float(f"{value:.6g}")
    return (text_key(answer) if task.metric == "squad" else exact_form(answer)) or None
