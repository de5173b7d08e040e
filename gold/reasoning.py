"""What a reasoning model says to itself before it answers: taken off a completion, or a reason to reject it.

    text, reason = strip_reasoning(completion, task.prompt["example"])

The forms are those that open models write when their special tokens are gone or were never special: DeepSeek-R1 and
Qwen3 (<think>), Seed-OSS (<seed:think>), Magistral ([THINK]), Granite (<response>, "Here is my thought process:") and
gpt-oss (its channels' names run into the text: "analysisWe need ...assistantfinalThe answer").
"""

import functools
import re
from typing import Any

from gold.causes import cause_of
from records import fail

THOUGHT = "think|thinking|thought|thoughts|reasoning|seed:think"  # <think>...</think>
FINAL = "answer|response"  # <answer>...</answer>: all that counts
HARMONY = r"(?:<\|start\|>)?assistant(?:<\|channel\|>)?final(?:<\|message\|>)?"
HARMONY_START = r"\s*(?:<\|channel\|>)?(analysis|commentary|final)(?:<\|message\|>|(?=[A-Z]))"
GRANITE_START, GRANITE_FINAL = r"\W*Here(?: is|'s) my thought process:", r"Here(?: is|'s) my response:"


def strip_reasoning(text: str, template: str = "") -> tuple[str, str | None]:
    """(the final part of a completion, None), or (the text, "reasoning") where it is not certain which part that is.

    Text without any of these marks comes back as it is. template: the task's own example; a tag that stands in it is one
    of the task's and is left alone.
    """
    thoughts, answers = tags_but(THOUGHT, template), tags_but(FINAL, template)
    final = text
    if parts := re.split(HARMONY, final)[1:]:
        final = re.split(r"<\|(?:return|end)\|>", parts[-1])[0]
    elif found := re.match(HARMONY_START, final):
        if found[1] != "final":  # a thought that nothing follows
            return text, "reasoning"
        final = final[found.end() :]
    if re.match(GRANITE_START, final):
        parts = re.split(GRANITE_FINAL, final, maxsplit=1)
        final = parts[1] if len(parts) == 2 else ""
    # A prompt may hold the opening tag already, so the last closing one decides
    brackets = "[THINK]" not in template  # in capitals alone: [think] may be a stage direction
    closing = rf"(?i:</(?:{thoughts})>)" + (r"|\[/THINK\]" if brackets else "")
    final = re.split(closing, final)[-1]
    if re.search(rf"(?i:<(?:{thoughts})>)" + (r"|\[THINK\]" if brackets else ""), final):
        return text, "reasoning"
    final = inside(final, answers)
    unchanged = final == text
    return (text, "reasoning") if final is None or not (unchanged or final.strip()) else (final, None)


@functools.cache
def tags_but(names: str, template: str) -> str:
    """The alternatives of a regular expression, without those whose tag stands in the template."""
    left = [name for name in names.split("|") if f"<{name}>" not in template.lower()]
    return "|".join(left) or "(?!)"


def inside(text: str, tags: str) -> str | None:
    """What stands in the last <answer>...</answer>; all of a text without such tags; None: a tag whose partner is missing.

    Where the text begins with the tag, its partner may be missing: a stop string can take it.
    """
    pairs = re.findall(rf"<({tags})>(.*?)</\1>", text, re.IGNORECASE | re.DOTALL)
    if pairs:
        return pairs[-1][-1]
    if not re.search(rf"</?(?:{tags})>", text, re.IGNORECASE):
        return text
    begin = re.match(rf"\s*<(?:{tags})>", text, re.IGNORECASE)
    rest = text[begin.end() :] if begin else ""
    return rest if begin and not re.search(rf"</?(?:{tags})>", rest, re.IGNORECASE) else None


def reasoning_parser(name: str, tokenizer: Any, chat_template_kwargs: dict) -> Any:
    """vLLM's own parser of a model's form, as its server uses it (--reasoning-parser): `.extract_reasoning` of a text in
    which the special tokens are kept. Ends the stage (exit 1) where it is not known or does not fit the tokenizer."""
    from vllm.reasoning import ReasoningParserManager

    if name not in (known := ReasoningParserManager.list_registered()):
        fail(f"--reasoning-parser {name}: vLLM has none of this name; it has {', '.join(known)}")
    try:
        parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer, chat_template_kwargs=chat_template_kwargs)
        _, _ = parser.extract_reasoning("", request=None)
    except Exception as error:  # a missing token, or a form that is read in vLLM's server alone: many kinds
        fail(
            f"--reasoning-parser {name}: does not fit this teacher's tokenizer, or needs vLLM's server: {cause_of(error)}; "
            "choose another, or leave it out: the common forms are read without"
        )
    return parser


def final_of(parser: Any, text: str) -> tuple[str, str | None]:
    """(what follows the thought, None), or (the text, "reasoning") where nothing does; parser: of reasoning_parser."""
    final = parser.extract_reasoning(text, request=None)[1]
    return (final, None) if final and final.strip() else (text, "reasoning")
