"""Prompts as a teacher gets them: the chat form, by its template, or the completion form, plain text.

    tokenizer = in_form(tokenizer, "auto")                    auto | chat | completion
    ids = encode_prompts(tokenizer, [(system, user)], {})     token ids, all prompts in one call
    rows = running_labels(tokenizer, prompts, labels, end)    tokens of the labels where they stand

A label has other tokens alone than in the running text: SentencePiece puts a blank before a text, and a blank or a line end
at the end of a prompt may join what follows it. So prompt, label and end are tokenised together.
"""

from collections.abc import Sequence
from typing import Any, Literal

from gold.control_tokens import broken_up
from records import fail

PromptForm = Literal["auto", "chat", "completion"]
TAIL = 200  # characters of a prompt that are tokenised again with every label, about 50 tokens
OVERLAP = 8  # tokens before a label that must be the same after the whole prompt and after its tail


def in_form(tokenizer: Any, prompt_form: PromptForm) -> Any:
    """The tokenizer for prompts of this form: in the completion form it has no chat template any more.

    auto: the chat form where the tokenizer has a template.
    """
    if prompt_form == "chat" and not tokenizer.chat_template:
        fail("--prompt-form chat: the tokenizer of --model has no chat template; use --prompt-form completion")
    if prompt_form == "completion":
        tokenizer.chat_template = None
    return tokenizer


def encode_prompt(tokenizer: Any, system: str, user: str, chat_template_kwargs: dict) -> list[int]:
    """encode_prompts of a single one."""
    return encode_prompts(tokenizer, [(system, user)], chat_template_kwargs)[0]


def encode_prompts(tokenizer: Any, texts: list[tuple[str, str]], chat_template_kwargs: dict) -> list[list[int]]:
    """Token ids of prompts, each (system, user), all in one call: one by one it is most of our own time."""
    return encode_texts(tokenizer, frame_prompts(tokenizer, texts, chat_template_kwargs))


def frame_prompts(tokenizer: Any, texts: list[tuple[str, str]], chat_template_kwargs: dict) -> list[str]:
    """The text of prompts, each (system, user): by the chat template, else `system`, blank line, `user`.

    Control tokens that the texts spell out are broken up: only the template's own, and a BOS, are real ones.
    """
    texts = [(broken_up(tokenizer, system), broken_up(tokenizer, user)) for system, user in texts]
    if tokenizer.chat_template:
        return [in_chat(tokenizer, *text, chat_template_kwargs) for text in texts]
    return ["\n\n".join(filter(None, text)) for text in texts]


def encode_texts(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of framed texts. A chat template writes its own BOS; a plain text gets the tokenizer's.

    An EOS that some tokenizers append is taken off: a prompt must not end with the end.
    """
    ids = tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    if tokenizer.chat_template or tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        return ids
    return [row[:-1] for row in ids]


def in_chat(tokenizer: Any, system: str, user: str, chat_template_kwargs: dict) -> str:
    """The prompt in the chat template; one without a system role gets the system text at the top of the user turn."""
    from jinja2 import TemplateError

    plain = f"{system}\n\n{user}" if system else user
    both = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    for messages in ([both] if system else []) + [[{"role": "user", "content": plain}]]:
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **chat_template_kwargs
            )
        except TemplateError:
            continue
        if system.strip() in text:  # some templates drop a system turn without a word
            return text
    fail(
        "--model: its chat template takes neither a system turn nor a user turn alone; use --prompt-form completion or "
        "another model"
    )


def chat_answer(tokenizer: Any, chat_template_kwargs: dict) -> tuple[str, str]:
    """(what the chat template puts between the prompt and an answer, blanks only; what it ends the answer's turn with)."""
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "LABEL"}]
    gap = end = ""
    try:
        before, _, end = tokenizer.apply_chat_template(turns, tokenize=False, **chat_template_kwargs).rpartition(
            "LABEL"
        )
        prompt = in_chat(tokenizer, "", "?", chat_template_kwargs)
        gap = before[len(prompt) :] if before.startswith(prompt) else ""
    except TemplateError:
        pass
    end = end.strip() or tokenizer.eos_token
    if end is None:
        fail("--model: neither its chat template nor its tokenizer has an end, so no label would end; set eos_token")
    return "" if gap.strip() else gap, end


def running_labels(
    tokenizer: Any, prompts: list[str], labels: Sequence[str], end: str, tail: int = TAIL
) -> list[tuple[list[int], list[list[int]]]]:
    """For each prompt (root, rests): root + rests[k] are the tokens of prompt + labels[k] and the first token of `end`.

    root is the longest prefix of tokens that all labels share; it may be shorter than the tokens of the prompt alone. Only
    the prompt's last `tail` characters are tokenised again with every label: where their tokens are not those that the
    whole prompt has there, all of it is. labels: with the blanks before them.
    """
    size = 2 * len(labels) + 1
    texts = []
    for prompt in prompts:
        last = prompt[-tail:]
        texts += [prompt + labels[0], *(last + name for name in labels), *(last + name + end for name in labels)]
    ids = encode_texts(tokenizer, texts) if texts else []
    rows = []
    for i, prompt in enumerate(prompts):
        whole, *parts = ids[i * size : (i + 1) * size]
        plain, ended = parts[: len(labels)], parts[len(labels) :]
        shared = len(common_prefix(plain))
        same = len(common_prefix([whole[::-1], plain[0][::-1]]))
        skip = len(plain[0]) - same  # tokens at the beginning of the tail that are not those of the whole text
        if len(prompt) > tail and skip + OVERLAP > shared:
            rows += running_labels(tokenizer, [prompt], labels, end, len(prompt))
            continue
        rests = [[*one[skip:], _end_of(one, more, name)] for name, one, more in zip(labels, plain, ended, strict=True)]
        common = common_prefix(rests)
        if common in rests or len(set(map(tuple, rests))) < len(rests):
            fail(
                f"--model: its tokenizer cannot tell the labels apart: {', '.join(labels)}; rename them, or use another"
            )
        rows.append(([*whole[: len(whole) - same], *common], [rest[len(common) :] for rest in rests]))
    return rows


def common_prefix(rows: list[list[int]]) -> list[int]:
    """The longest beginning that all rows share."""
    differing = (i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1)
    return rows[0][: next(differing, min(map(len, rows)))]


def _end_of(label: list[int], ended: list[int], name: str) -> int:
    """The token that ends a label, from the tokens of a text without and with its end."""
    if ended[: len(label)] != label or len(ended) == len(label):
        fail(
            f"--model: its tokenizer joins the label {name.strip()!r} and the end of its line in one token; use another "
            "model"
        )
    return ended[len(label)]
