"""The thoughts of a reasoning model: taken off a completion, or a reason to reject it.

    text, reason = strip_reasoning(completion, task.prompt.example)

The forms are those that open models write when their special tokens are gone or were never special: DeepSeek-R1 and
Qwen3 (<think>), Seed-OSS (<seed:think>), Magistral ([THINK]), Granite (<response>, "Here is my thought process:") and
gpt-oss (its channels' names run into the text: "analysisWe need ...assistantfinalThe answer").
"""

import functools
import re
from typing import Any

from gold.causes import cause_of
from gold.command import fail

THOUGHT = "think|thinking|thought|thoughts|reasoning|seed:think"  # <think>...</think>
FINAL = "answer|response"  # <answer>...</answer>: all that counts
HARMONY = r"(?:<\|start\|>)?assistant(?:<\|channel\|>)?final(?:<\|message\|>)?"
HARMONY_START = r"\s*(?:<\|channel\|>)?(analysis|commentary|final)(?:<\|message\|>|(?=[A-Z]))"
MARKED = r"[<\[]|assistant|analysis|commentary|final|process"  # a quick test: no text without one has any of the forms
GRANITE_START, GRANITE_FINAL = r"\W*Here(?: is|'s) my thought process:", r"Here(?: is|'s) my response:"


def strip_reasoning(text: str, template: str = "") -> tuple[str, str | None]:
    """(the final part of a completion, None), or (the text, "reasoning") where it is not certain which part that is.

    Text without any of these marks comes back unchanged. template: the task's own example; a tag in it is the task's.
    """
    if not re.search(MARKED, text):
        return text, None
    final = text
    if parts := re.split(HARMONY, text)[1:]:
        final = re.split(r"<\|(?:return|end)\|>", parts[-1])[0]
    elif channel := re.match(HARMONY_START, text):
        if channel[1] != "final":  # a thought that nothing follows
            return text, "reasoning"
        final = text[channel.end() :]
    if re.match(GRANITE_START, final):
        final = "".join(re.split(GRANITE_FINAL, final, maxsplit=1)[1:])
    thoughts, brackets = tags_but(THOUGHT, template), "[THINK]" not in template
    opening, closing = (  # in capitals alone: [think] may be a stage direction
        rf"(?i:<{slash}(?:{thoughts})>)" + rf"|\[{slash}THINK\]" * brackets for slash in ("", "/")
    )
    final = re.split(closing, final)[-1]  # a prompt may hold the opening tag already, so the last closing one decides
    if re.search(opening, final):
        return text, "reasoning"
    final = inside(final, tags_but(FINAL, template))
    return (final, None) if final == text or (final and final.strip()) else (text, "reasoning")


@functools.cache
def tags_but(names: str, template: str) -> str:
    """The alternatives of a regular expression, without those whose tag stands in the template."""
    return "|".join(name for name in names.split("|") if f"<{name}>" not in template.lower()) or "(?!)"


def inside(text: str, tags: str) -> str | None:
    """What stands in the last <answer>...</answer>; all of a text without such tags; None: a tag without its partner.

    Where the text begins with the tag, its partner may be missing: a stop string can take it.
    """
    pairs = re.findall(rf"(?is)<({tags})>(.*?)</\1>", text)
    rest = pairs[-1][-1] if pairs else re.sub(rf"(?i)^\s*<(?:{tags})>", "", text)
    return None if re.search(rf"(?i)</?(?:{tags})>", rest) else rest


def reasoning_parser(name: str, tokenizer: Any, chat_template_kwargs: dict) -> Any:
    """vLLM's own parser of a model's form, as its server has it (--reasoning-parser), for texts with special tokens.

    Ends the stage (exit 1) where vLLM has none of this name, or it does not fit the tokenizer.
    """
    from vllm.reasoning import ReasoningParserManager

    try:
        parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer, chat_template_kwargs=chat_template_kwargs)
        _, _ = parser.extract_reasoning("", request=None)
    except Exception as error:  # a missing token, or a form that is read in vLLM's server alone: many kinds
        cure = "choose another, or leave it out: common forms are read without"
        fail(f"--reasoning-parser {name}: vLLM cannot use it with this teacher: {cause_of(error)}; {cure}")
    return parser


def final_of(parser: Any, text: str) -> tuple[str, str | None]:
    """(what follows the thought, None), or (the text, "reasoning") where nothing does."""
    final = parser.extract_reasoning(text, request=None)[1]
    return (final, None) if final and final.strip() else (text, "reasoning")
