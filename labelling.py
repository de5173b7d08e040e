"""What the teacher itself takes for the answer of a record: label probabilities, or an answer of its own.

    label_records(llm, tokenizer, task, records, shots)     by an engine that is up; generate.py label and --verify use it

A label's probability is that of its tokens and of the token that ends its line (or, in a chat, the turn), normalised over
the labels. Its tokens are those that it has in the running text of the prompt (gold/prompts.py). For a record the labels
form a trie of tokens; each node with children is one request: the prompt and the path to the node as token ids, one new
token, the log-probabilities of the children alone (`logprob_token_ids`). No prompt_logprobs, which would switch vLLM's
prefix cache off: with it a node costs the tokens of the last, unfilled cache block only.
"""

import math
import random
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from equations import evaluate_equation
from formulations import optimum
from gold.prompts import chat_answer, encode_texts, frame_prompts, running_labels
from gold.reasoning import strip_reasoning
from gold.text import exact_form, text_key
from records import fail
from task import Task, another_begins, is_correct, label_template, render_label_prompt, split_example

MOST_CHILDREN = 128  # vLLM's limit on logprob_token_ids
Row = tuple[list[int], list[list[int]]]  # token ids of a prompt, and of the answers that may follow


def draw_label_shots(task: Task, seeds: list[dict], count: int, seed: int) -> list[dict]:
    """The seed examples of a label prompt, the labels in turn: the same for all records, so that they share the prefix."""
    rng = random.Random(f"{seed}/label")
    groups = {name: [s for s in seeds if s[task.answer_field] == name] for name in task.labels} or {"": list(seeds)}
    for group in groups.values():
        rng.shuffle(group)
    rows = [[group[i] for group in groups.values() if i < len(group)] for i in range(max(map(len, groups.values())))]
    for row in rows:
        rng.shuffle(row)
    return [shot for row in rows for shot in row][:count]


def label_place(task: Task, tokenizer: Any, chat_template_kwargs: dict) -> tuple[str, str]:
    """(blanks between a label prompt and the label, what comes after the label) in the running text.

    Plain text: as a label stands between two shots; chat: as the template writes an answer and the end of its turn.
    """
    if tokenizer.chat_template:
        return chat_answer(tokenizer, chat_template_kwargs)
    example = task.prompt[label_template(task)]
    *_, previous, answer = string.Template.pattern.finditer(example)
    before = example[previous.end() : answer.start()]
    # The opening of the next shot decides whether the "\n\n" before it is one token or two
    return before[len(before.rstrip(" ")) :], "\n\n" + example.split("$", 1)[0]


def label_prompts(
    task: Task, tokenizer: Any, records: list[dict], shots: list[dict], chat_template_kwargs: dict
) -> list[Row]:
    """Token ids of the label prompts: (root, the rests of the labels), for text2text (prompt, [])."""
    texts = [("", render_label_prompt(task, record, shots)) for record in records]
    prompts = frame_prompts(tokenizer, texts, chat_template_kwargs)
    if not task.labels:
        return [(ids, []) for ids in encode_texts(tokenizer, prompts)]
    gap, end = label_place(task, tokenizer, chat_template_kwargs)
    if not tokenizer.chat_template:
        prompts = [prompt.rstrip(" ") for prompt in prompts]  # the blank of a "$start " is in the gap
    return running_labels(tokenizer, prompts, [gap + name for name in task.labels], end)


def tokens_needed(rows: list[Row], max_tokens: int) -> list[int]:
    """How many tokens each prompt and its answer take: of a label as many as it has, else max_tokens."""
    return [len(root) + max(map(len, rests), default=max_tokens) for root, rests in rows]


def token_trie(sequences: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """Nodes with children: path of token ids -> the tokens that may follow. The root is (); parents come first."""
    children: dict[tuple[int, ...], dict[int, None]] = {(): {}}
    for sequence in sequences:
        for depth, token in enumerate(sequence):
            children.setdefault(tuple(sequence[:depth]), {})[token] = None
    return {path: list(tokens) for path, tokens in sorted(children.items(), key=lambda item: len(item[0]))}


def label_log_probs(llm: Any, rows: list[Row], tokens: Counter) -> list[list[float]]:
    """Sum of the log-probabilities (nats) of the tokens of each rest after the root of its row: (rows, rests).

    tokens: "prompt" and "computed" are counted up, what the engine was sent and what the prefix cache did not hold.
    """
    from vllm import SamplingParams

    if not hasattr(SamplingParams, "logprob_token_ids"):
        import vllm

        fail(
            f"vLLM {vllm.__version__} has no logprob_token_ids, by which labels are read; install the one of requirements.txt"
        )
    tries = [token_trie(rests) for _, rests in rows]
    found: list[dict[tuple[int, ...], dict[int, float]]] = [{} for _ in rows]
    # The roots first: when the other nodes are asked for, the prompts are in the cache
    for at_root in (True, False):
        asked = [
            (i, path, following[k : k + MOST_CHILDREN])
            for i, trie in enumerate(tries) for path, following in trie.items() if (not path) == at_root
            for k in range(0, len(following), MOST_CHILDREN)
        ]  # fmt: skip
        sent = [{"prompt_token_ids": [*rows[i][0], *path]} for i, path, _ in asked]
        one = {"max_tokens": 1, "temperature": 0, "detokenize": False}
        params = [SamplingParams(**one, logprob_token_ids=following) for *_, following in asked]
        outputs = completed(llm.generate(sent, params, use_tqdm=False)) if sent else []
        for (i, path, following), output in zip(asked, outputs, strict=True):
            tokens["prompt"] += len(output.prompt_token_ids)
            tokens["computed"] += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
            given = output.outputs[0].logprobs[0]
            found[i].setdefault(path, {}).update({token: given[token].logprob for token in following})
    return [
        [sum(of[tuple(rest[:depth])][token] for depth, token in enumerate(rest)) for rest in rests]
        for of, (_, rests) in zip(found, rows, strict=True)
    ]


def agrees(task: Task, record: dict, teacher_label: str) -> bool:
    """Whether the teacher's own answer is the record's, by the metric of the task."""
    if task.labels:
        return teacher_label == record[task.answer_field]
    render = string.Template(task.student["target"]).substitute
    return is_correct(task, render({task.answer_field: teacher_label}), {**record, "target": render(record)})


def answer_key(task: Task, answer: str) -> Any:
    """What makes two answers of a text2text task the same vote; None for an answer that is none."""
    if task.metric in ("equation_value", "optimum"):
        value = (evaluate_equation if task.metric == "equation_value" else optimum)(answer)
        return None if value is None else float(f"{value:.6g}")
    return (text_key(answer) if task.metric == "squad" else exact_form(answer)) or None


def read_answer(task: Task, record: dict, text: str) -> str:
    """The answer in a completion of a label prompt: a chat model may repeat where it was to begin and explain afterwards,
    a base model may begin another example."""
    template = label_template(task)
    start = split_example(task, {name: record[name] for name in task.fields}, template)[0].strip()
    last, opening = start.rsplit("\n", 1)[-1], task.prompt[template].split("$", 1)[0].strip()
    text, reason = strip_reasoning(text, task.prompt[template])
    text = "" if reason else text.strip()
    for said in filter(None, (start, last)):
        if text.lower().startswith(said.lower()):
            text = text[len(said) :].lstrip()
    for stop in ["\n\n", *task.parse.get("stop", []), *([f"\n{opening}"] if opening else [])]:
        text = text.split(stop)[0]
    return text.strip()


def completed(outputs: list[Any], given_up: Sequence[str] = ("abort", "error")) -> list[Any]:
    """The outputs; RuntimeError where the engine gave a request up, as vLLM's own process does at a SIGTERM: half a text."""
    if any(one.finish_reason in given_up for output in outputs for one in output.outputs):
        raise RuntimeError("the engine has given up its requests")
    return outputs


def label_records(
    llm: Any, tokenizer: Any, task: Task, records: list[dict], shots: list[dict], chat_template_kwargs: dict,
    num_samples: int = 1, temperature: float = 0.7, max_tokens: int = 128, seed: int = 0, tokens: Counter | None = None,
    room: int | None = None,
) -> list[dict | None]:  # fmt: skip
    """The teacher's own answer for each record: {"teacher_label": ..., "label_probs": {answer: share}}.

    Classification: label_probs of all labels in the task's order (they sum to 1), teacher_label the likeliest. text2text:
    the greedy answer (no label_probs), or with num_samples > 1 the answer with most votes among the samples that are one
    (the first of them where there is a tie) and the shares of all; "" and {} where none is. An answer that is cut off at
    max_tokens is none. None for a record whose prompt and answer take more than `room` tokens, the engine's context.
    """
    tokens = Counter() if tokens is None else tokens
    rows = label_prompts(task, tokenizer, records, shots, chat_template_kwargs)
    fits = [room is None or need <= room for need in tokens_needed(rows, max_tokens)]
    rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
    asked = [record for record, fit in zip(records, fits, strict=True) if fit]
    if task.labels:
        results = []
        for sums in label_log_probs(llm, rows, tokens):
            top = max(sums)
            weights = [math.exp(value - top) for value in sums]
            probs = {n: float(f"{w / sum(weights):.6g}") for n, w in zip(task.labels, weights, strict=True)}
            results.append({"teacher_label": max(probs, key=probs.__getitem__), "label_probs": probs})
    else:
        prompts = [ids for ids, _ in rows]
        stops = None if tokenizer.chat_template else [*dict.fromkeys(["\n\n", *task.parse.get("stop", [])])]
        how = {"n": num_samples, "temperature": temperature if num_samples > 1 else 0, "max_tokens": max_tokens}
        results = answer_records(llm, task, asked, prompts, how | {"stop": stops}, seed, tokens)
    answers = iter(results)
    return [next(answers) if fit else None for fit in fits]


def answer_records(
    llm: Any, task: Task, records: list[dict], prompts: list[list[int]], how: dict, seed: int, tokens: Counter
) -> list[dict]:
    """label_records of a text2text task. how: sampling parameters."""
    from vllm import SamplingParams

    params = [
        SamplingParams(**how, seed=random.Random(f"{seed}/{record.get('id')}").getrandbits(31)) for record in records
    ]
    results, sent = [], [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = completed(llm.generate(sent, params, use_tqdm=False)) if sent else []
    for record, output in zip(records, outputs, strict=True):
        tokens["prompt"] += len(output.prompt_token_ids)
        tokens["computed"] += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        answers = [read_answer(task, record, one.text) for one in output.outputs]
        answers = [
            answer
            if one.finish_reason != "length" or another_begins(task, answer, one.text, label_template(task))
            else ""
            for answer, one in zip(answers, output.outputs, strict=True)
        ]
        if how["n"] == 1:
            results.append({"teacher_label": answers[0]})
            continue
        votes: dict[Any, list[str]] = {}
        for answer in answers:
            if (key := answer_key(task, answer)) is not None:
                votes.setdefault(key, []).append(answer)
        best, total = max(votes.values(), key=len, default=[""]), sum(map(len, votes.values()))
        results.append({"teacher_label": best[0], "label_probs": {v[0]: len(v) / total for v in votes.values()}})
    return results
