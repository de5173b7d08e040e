"""What the teacher itself takes for the answer of a record: label probabilities, or an answer of its own.

    label_records(llm, tokenizer, task, records, shots)     by an engine that is up; generate.py label and --verify use it

A label's probability is that of its tokens and of the token that ends its line (or, in a chat, the turn), normalised over
the labels. The labels of a task form a trie of tokens; each node with children is one request: the prompt and the path to
the node as token ids, one new token, the log-probabilities of the children alone (`logprob_token_ids`). No prompt_logprobs,
which would switch vLLM's prefix cache off: with it a node costs the tokens of the last, unfilled cache block only.
"""

import math
import random
import string
from collections import Counter
from typing import Any

from equations import evaluate_equation
from formulations import optimum
from gold.text import exact_form, text_key
from records import fail
from task import Task, is_correct, label_template, render_label_prompt, split_example

MOST_CHILDREN = 128  # vLLM's limit on logprob_token_ids


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


def label_tokens(task: Task, tokenizer: Any) -> list[list[int]]:
    """Token ids of every label as the teacher would write it after the prompt, with the token that ends it.

    Plain text: as it stands between two shots, the token of the line's end included. Chat: at the beginning of the turn,
    with the end-of-turn token. Ends the stage (exit 1) where the tokenizer has no such thing.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    if tokenizer.chat_template:
        return [[*ids(name), turn_end(tokenizer)] for name in task.labels]
    example = task.prompt[label_template(task)]
    *_, previous, answer = string.Template.pattern.finditer(example)
    before = example[previous.end() : answer.start()]
    anchor = before.rsplit("\n", 1)[-1].rstrip(" ")
    gap, opening = before[len(before.rstrip(" ")) :], example.split("$", 1)[0]
    sequences = []
    for name in task.labels:
        known, whole = ids(anchor), ids(f"{anchor}{gap}{name}")
        going_on = ids(f"{anchor}{gap}{name}\n\n{opening}")  # "\n\n" is one token or two, by what follows
        if going_on[: len(whole)] != whole or len(going_on) == len(whole):
            fail(
                f"--model: its tokenizer joins the label {name!r} and the end of its line in one token; use another model"
            )
        tokens = whole[len(known) :] if whole[: len(known)] == known else ids(f"{gap}{name}")
        sequences.append([*tokens, going_on[len(whole)]])
    return sequences


def turn_end(tokenizer: Any) -> int:
    """The token with which a chat model ends its turn, as its template writes it (for some it is not the end token)."""
    from jinja2 import TemplateError

    try:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "LABEL"}]
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("LABEL")[2].strip()
    except TemplateError:
        after = ""
    found = tokenizer(after, add_special_tokens=False)["input_ids"][:1] if after else [tokenizer.eos_token_id]
    if found[0] is None:
        fail("--model: neither its chat template nor its tokenizer has an end, so no label would end; set eos_token")
    return found[0]


def token_trie(sequences: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """Nodes with children: path of token ids -> the tokens that may follow. The root is (); parents come first."""
    children: dict[tuple[int, ...], dict[int, None]] = {(): {}}
    for sequence in sequences:
        for depth, token in enumerate(sequence):
            children.setdefault(tuple(sequence[:depth]), {})[token] = None
    return {path: list(tokens) for path, tokens in sorted(children.items(), key=lambda item: len(item[0]))}


def label_log_probs(
    llm: Any, prompts: list[list[int]], sequences: list[list[int]], tokens: Counter
) -> list[list[float]]:
    """Sum of the log-probabilities (nats) of each sequence's tokens after each prompt: (prompts, sequences).

    tokens: "prompt" and "computed" are counted up, what the engine was sent and what the prefix cache did not hold.
    """
    from vllm import SamplingParams

    if not hasattr(SamplingParams, "logprob_token_ids"):
        import vllm

        fail(
            f"vLLM {vllm.__version__} has no logprob_token_ids, by which labels are read; install the one of requirements.txt"
        )
    trie = token_trie(sequences)
    found: list[dict[tuple[int, ...], dict[int, float]]] = [{} for _ in prompts]
    deeper = [path for path in trie if path]
    # The roots first: when the other nodes are asked for, the prompts are in the cache
    for paths in ([()], deeper):
        asked = [
            (i, path, trie[path][k : k + MOST_CHILDREN])
            for i in range(len(prompts)) for path in paths for k in range(0, len(trie[path]), MOST_CHILDREN)
        ]  # fmt: skip
        sent = [{"prompt_token_ids": [*prompts[i], *path]} for i, path, _ in asked]
        one = {"max_tokens": 1, "temperature": 0, "detokenize": False}
        params = [SamplingParams(**one, logprob_token_ids=following) for *_, following in asked]
        outputs = completed(llm.generate(sent, params, use_tqdm=False)) if sent else []
        for (i, path, following), output in zip(asked, outputs, strict=True):
            tokens["prompt"] += len(output.prompt_token_ids)
            tokens["computed"] += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
            given = output.outputs[0].logprobs[0]
            found[i].setdefault(path, {}).update({token: given[token].logprob for token in following})
    return [
        [sum(of[tuple(s[:depth])][token] for depth, token in enumerate(s)) for s in sequences] for of in found
    ]  # fmt: skip


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
    text = text.rsplit("</think>", 1)[-1].strip()
    for said in filter(None, (start, last)):
        if text.lower().startswith(said.lower()):
            text = text[len(said) :].lstrip()
    for stop in ["\n\n", *task.parse.get("stop", []), *([f"\n{opening}"] if opening else [])]:
        text = text.split(stop)[0]
    return text.strip()


def completed(outputs: list[Any]) -> list[Any]:
    """The outputs; RuntimeError where the engine gave a request up, as vLLM's own process does at a SIGTERM: half a text."""
    if any(one.finish_reason in ("abort", "error") for output in outputs for one in output.outputs):
        raise RuntimeError("the engine has given up its requests")
    return outputs


def label_records(
    llm: Any, tokenizer: Any, task: Task, records: list[dict], shots: list[dict], encode: Any,
    num_samples: int = 1, temperature: float = 0.7, max_tokens: int = 128, seed: int = 0, tokens: Counter | None = None,
) -> list[dict]:  # fmt: skip
    """The teacher's own answer for each record: {"teacher_label": ..., "label_probs": {answer: share}}.

    Classification: label_probs of all labels in the task's order (they sum to 1), teacher_label the likeliest. text2text:
    the greedy answer (no label_probs), or with num_samples > 1 the answer with most votes among the samples that are one
    (the first of them where there is a tie) and the shares of all; "" and {} where none is. An answer that is cut off at
    max_tokens is none. encode: text of a prompt -> token ids.
    """
    tokens = Counter() if tokens is None else tokens
    prompts = [encode(render_label_prompt(task, record, shots)) for record in records]
    if task.labels:
        results = []
        for sums in label_log_probs(llm, prompts, label_tokens(task, tokenizer), tokens):
            top = max(sums)
            weights = [math.exp(value - top) for value in sums]
            probs = {n: float(f"{w / sum(weights):.6g}") for n, w in zip(task.labels, weights, strict=True)}
            results.append({"teacher_label": max(probs, key=probs.__getitem__), "label_probs": probs})
        return results

    from vllm import SamplingParams

    params = [
        SamplingParams(
            n=num_samples, temperature=temperature if num_samples > 1 else 0, max_tokens=max_tokens,
            stop=[*dict.fromkeys(["\n\n", *task.parse.get("stop", [])])] if not tokenizer.chat_template else None,
            seed=random.Random(f"{seed}/{record.get('id')}").getrandbits(31),
        )
        for record in records
    ]  # fmt: skip
    results = []
    outputs = completed(llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False))
    for record, output in zip(records, outputs, strict=True):
        tokens["prompt"] += len(output.prompt_token_ids)
        tokens["computed"] += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        answers = [
            read_answer(task, record, one.text) if one.finish_reason != "length" else "" for one in output.outputs
        ]
        if num_samples == 1:
            results.append({"teacher_label": answers[0]})
            continue
        votes: dict[Any, list[str]] = {}
        for answer in answers:
            if (key := answer_key(task, answer)) is not None:
                votes.setdefault(key, []).append(answer)
        best, total = max(votes.values(), key=len, default=[""]), sum(map(len, votes.values()))
        results.append({"teacher_label": best[0], "label_probs": {v[0]: len(v) / total for v in votes.values()}})
    return results
