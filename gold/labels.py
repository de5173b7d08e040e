"""The teacher's answers: probabilities of all labels, or for text2text what it writes.

A label's probability is that of its tokens, normalised over the labels. Where one label begins with all tokens of another
(pos, positive), the token that ends its line (or, in a chat, the turn) counts too. Prompt, label and end are tokenised
together: SentencePiece puts a blank before a text, and a blank or a line end at the end of a prompt may join what follows
it. The labels of a record form a trie of tokens; each node with children is one request for one new token and the
log-probabilities of the children (`logprob_token_ids`): its prompt is in vLLM's prefix cache, which prompt_logprobs would
switch off.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import NamedTuple

from gold.answers import label_probs, written_answers
from gold.command import fail
from gold.engine import Engine, Request
from gold.prompts import Prompt, render_label_prompt
from gold.remote_labels import remote_labels
from gold.server import Server
from gold.task import Task
from gold.teacher import Encoder

MAX_CHILDREN = 128  # vLLM's limit on logprob_token_ids
TAIL = 200  # characters of a prompt that are tokenised again with every label, about 50 tokens
OVERLAP = 8  # tokens before a label that must be the same after the whole prompt and after its tail
LABEL_SHOTS = 6  # seed examples in a label prompt


class Row(NamedTuple):
    """Token ids of a label prompt. rests: of the labels, perhaps each with the token that ends it; [] for text2text.

    root: for a server the Prompt itself.
    """

    root: list[int]
    rests: list[list[int]]

    def length(self, max_tokens: int) -> int:
        """Tokens of prompt and answer."""
        return len(self.root) + max(map(len, self.rests), default=max_tokens)


def draw_label_shots(task: Task, seeds: list[dict], count: int | None, seed: int) -> list[dict]:
    """Seed examples, the labels in turn: the same for all records, whose prompts so share a prefix.

    count None: LABEL_SHOTS, but none in a list form: SmolLM2 labels the worse the more it is shown (docs/tasks.md).
    """
    count = (0 if task.is_list else LABEL_SHOTS) if count is None else count
    rng = random.Random(f"{seed}/label")
    groups = [[s for s in seeds if s[task.answer_field] == name] for name in task.labels] or [list(seeds)]
    for group in groups:
        rng.shuffle(group)
    rounds = [[shot for shot in row if shot] for row in zip_longest(*groups)]
    for row in rounds:
        rng.shuffle(row)
    return [shot for row in rounds for shot in row][:count]


def label_records(
    engine: Engine | Server, encoder: Encoder, task: Task, records: list[dict], shots: list[dict],
    num_samples: int = 1, temperature: float = 0.7, max_tokens: int = 128, seed: int = 0,
) -> list[dict | None]:  # fmt: skip
    """The teacher's answer to each record: {"teacher_label": ..., "label_probs": {answer: share}}.

    Classification: label_probs of all labels in the task's order (they sum to 1), teacher_label the likeliest.
    text2text: the greedy answer without label_probs, or with num_samples > 1 the answer with most votes (the first of
    them where there is a tie) and the shares of all; "" and {} where no sample is an answer. None for a record whose
    prompt and answer do not fit the context.
    """
    if encoder.remote and task.labels:
        prompts = encoder.encode([render_label_prompt(task, record, shots) for record in records])
        return remote_labels(engine, task, records, prompts)
    rows = label_rows(task, encoder, records, shots)
    fits = [row.length(max_tokens) <= engine.max_model_len for row in rows]
    asked = [(record, row) for record, row, fit in zip(records, rows, fits, strict=True) if fit]
    if task.labels:
        results = [label_probs(task, sums) for sums in log_probs(engine, [row for _, row in asked])]
    else:
        how = {"n": num_samples, "temperature": temperature if num_samples > 1 else 0, "max_tokens": max_tokens}
        how["stop"] = None if encoder.form == "chat" else ["\n\n", *task.parse.stop]
        results = written_answers(engine, task, [(record, row.root) for record, row in asked], how, seed)
    answers = iter(results)
    return [next(answers) if fit else None for fit in fits]


# ---------------------------------------------------------------------------------------------------------------------
# Labels: their tokens in the running text, and the log-probabilities of these


def label_rows(task: Task, encoder: Encoder, records: list[dict], shots: list[dict]) -> list[Row]:
    rendered = [render_label_prompt(task, record, shots) for record in records]
    if not task.labels:
        return [Row(prompt, []) for prompt in encoder.encode(rendered)]
    prompts = encoder.frame(rendered)
    if encoder.form == "chat":
        gap, end = chat_answer(encoder)
    else:  # as a label stands between two shots; the opening of the next one decides whether "\n\n" is one token or two
        example = task.label_template
        gap, end = re.search(r"( *)\$[^$]*$", example)[1], "\n\n" + example.split("$", 1)[0]
        prompts = [prompt.rstrip(" ") for prompt in prompts]  # the blank of a "$start " is in the gap
    return running_labels(encoder, prompts, [gap + name for name in task.labels], end)


def chat_answer(encoder: Encoder) -> tuple[str, str]:
    """(the blanks that the chat template puts between prompt and answer; what it ends the answer's turn with)."""
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "LABEL"}]
    try:
        whole = encoder.tokenizer.apply_chat_template(turns, tokenize=False, **encoder.chat_template_kwargs)
        before, _, end = whole.rpartition("LABEL")
        gap = before.removeprefix(encoder.in_chat(Prompt("", "?")))
    except TemplateError:  # it takes no such turn
        gap = end = ""
    end = end.strip() or encoder.tokenizer.eos_token
    if end is None:
        fail("--model: neither its chat template nor its tokenizer has an end, so no label would end; set eos_token")
    return "" if gap.strip() else gap, end


def running_labels(
    encoder: Encoder, prompts: list[str], labels: Sequence[str], end: str, tail: int = TAIL
) -> list[Row]:
    """For each prompt the row whose root + rests[k] are the tokens of prompt + labels[k]; where one label begins with all
    tokens of another, each also has the first token of `end`.

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
        rests = [more[skip : len(one) + 1] for one, more in zip(plain, ended, strict=True)]
        joined = any(rest[:-1] != one[skip:] for one, rest in zip(plain, rests, strict=True))  # label and end
        common = common_prefix(rests)
        if joined or common in rests or len(set(map(tuple, rests))) < len(rests):
            names = ", ".join(name.strip() for name in labels)
            fail(f"--model: its tokenizer cannot tell the labels or their ends apart: {names}; rename the labels")
        rests = [rest[len(common) :] for rest in rests]
        bare = sorted(rest[:-1] for rest in rests)  # a prefix stands before what it begins
        if not any(longer[: len(short)] == short for short, longer in pairwise(bare)):
            # The end would cost a request a label, and changes calibrated answers little
            rests = [rest[:-1] for rest in rests]
        rows.append(Row([*whole[: len(whole) - same], *common], rests))
    return rows


def common_prefix(rows: list[list[int]]) -> list[int]:
    """The longest beginning that all rows share."""
    differing = (i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1)
    return rows[0][: next(differing, min(map(len, rows)))]


def log_probs(engine: Engine, rows: list[Row]) -> list[list[float]]:
    """Sum of the log-probabilities (nats) of the tokens of each rest after the root of its row: (rows, rests)."""
    nodes: dict[tuple, dict[int, None]] = defaultdict(dict)  # (row, path of tokens after its root) -> its children
    for i, row in enumerate(rows):
        for rest in row.rests:
            for depth, token in enumerate(rest):
                nodes[i, *rest[:depth]][token] = None
    log_p: dict[tuple, float] = {}  # of the last token of a path
    for at_root in (True, False):  # the roots first: then the prompts are in the cache for the other nodes
        asked = [
            (node, [*children][k : k + MAX_CHILDREN])
            for node, children in nodes.items() if (len(node) == 1) == at_root
            for k in range(0, len(children), MAX_CHILDREN)
        ]  # fmt: skip
        one = {"max_tokens": 1, "temperature": 0, "detokenize": False}
        requests = [
            Request(f"label-{n}", [*rows[i].root, *path], one | {"logprob_token_ids": children}, i)
            for n, ((i, *path), children) in enumerate(asked)
        ]
        for (node, children), output in zip(asked, engine.complete(requests), strict=True):
            given = output.outputs[0].logprobs[0]
            log_p |= {(*node, token): given[token].logprob for token in children}
    return [
        [sum(log_p[i, *rest[:depth]] for depth in range(1, len(rest) + 1)) for rest in row.rests]
        for i, row in enumerate(rows)
    ]
