"""What a reasoning model says to itself: taken off, or a reject; ordinary texts are never touched."""

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from gold.answers import read_answer
from gold.parsing import parse_completion
from gold.reasoning import strip_reasoning
from gold.task import load_task

TASK = load_task(ROOT / "prompts/reviews.toml")
REVIEW = "The kettle was quiet and boiled fast."
HM = "I should write one, perhaps about an <answer> or a final response."
FORMS = {  # how open models write a thought and an answer, their special tokens stripped or never special
    "gpt-oss": "analysisWe need one. {hm}assistantfinal{x}",
    "gpt-oss, two thoughts": "analysisWe need one.assistantcommentaryHm.assistantanalysisSo be it.assistantfinal{x}",
    "gpt-oss, no thought": "final{x}",
    "gpt-oss, tokens kept": "<|channel|>analysis<|message|>We need one.<|end|><|start|>assistant"
    "<|channel|>final<|message|>{x}<|return|>",
    "think": "<think>\n{hm}\n</think>\n\n{x}",
    "think, begun by the prompt": "{hm}\n</think>\n\n{x}",
    "think twice": "<think>one</think>Hm.<think>two</think>{x}",
    "think, answer": "<think>{hm}</think><answer>{x}</answer>",
    "think, response": "<think>{hm}</think>\n<response>\n{x}\n</response>",
    "response": "<response>{x}</response>",
    "answer, cut by a stop string": "<think>{hm}</think><answer>{x}",
    "answer after words": "I think that this is one:\n\n<answer>{x}</answer>",
    "Magistral": "[THINK]{hm}[/THINK]{x}",
    "thought": "<thought>{hm}</thought>{x}",
    "Seed-OSS": "<seed:think>{hm}</seed:think>{x}",
    "reasoning": "<reasoning>{hm}</reasoning>\n<answer>{x}</answer>",
    "capitals": "<Thinking>{hm}</Thinking>{x}",
    "Granite": "Here is my thought process: {hm} Here is my response: {x}",
    "Granite, quantised": "Here's my thought process: {hm}\n\nHere's my response:\n{x}",
}
UNCERTAIN = {
    "think": "<think>{x}", "think again": "<think>one</think>Or rather <think>{x}", "no answer": "<think>{x}</think>",
    "Magistral": "[THINK]{x}", "Seed-OSS": "<seed:think>{x}", "thought": "{x} <thought>Was it good?",
    "gpt-oss": "analysisWe need one. {x}", "gpt-oss, commentary": "commentary<|message|>{x}",
    "Granite": "Here is my thought process: {x}", "answer, begun by nobody": "{x}</answer>",
    "answer, never ended": "This is it: <answer>{x}",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_final_part_is_read(form):
    completion = form.format(hm="Hm, let me see." if "answer" in form else HM, x=REVIEW)
    assert parse_completion(TASK, completion, "positive") == ({"review": REVIEW}, None)
    again = form.format(hm="Hm.", x=f"Sentiment: positive\nReview: {REVIEW}")
    assert parse_completion(TASK, again, "positive") == ({"review": REVIEW}, None)


@pytest.mark.parametrize("form", UNCERTAIN.values(), ids=UNCERTAIN)
def test_where_the_final_part_is_not_certain_it_is_a_reject(form):
    completion = form.format(x=REVIEW)
    assert strip_reasoning(completion) == (completion, "reasoning")
    assert parse_completion(TASK, completion, "positive") == ({}, "reasoning")


WORDS = (
    "analysis", "Analysis:", "final answer", "the final", "Final:", "think", "I think", "thinking", "thought", "response",
    "my response:", "answer", "Answer: 3", "assistant", "assistant final", "reasoning", "[think]", "<br />", "<b>", "a < b",
    "x > y", "<3", "<-", "->", "</b>", "[1]", "**bold**", "here is", "Here is my answer:", "\n", "\n\n", "<i>think</i>",
    "<think about it>", "<thoughtful>", "commentary on", "finally", "analysis of",
)  # fmt: skip
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "[THINK]", "[/THINK]", "assistantfinal")


@settings(deadline=None, max_examples=200)
@given(parts=st.lists(st.sampled_from(WORDS) | st.text("abcABCé日<>[]/|*: \n", max_size=12), max_size=12))
def test_ordinary_texts_are_never_changed_nor_rejected(parts):
    """Whatever the words: without one of the marks, whole, the very text comes back."""
    text = " ".join(parts)
    assert strip_reasoning(text) == (text, None)


@settings(deadline=None, max_examples=200)
@given(parts=st.lists(st.sampled_from([*WORDS, *TAGS, "Here is my thought process:"]), max_size=8))
def test_what_is_left_holds_no_tag(parts):
    final, reason = strip_reasoning("".join(parts))
    assert reason == "reasoning" or not any(tag in final for tag in TAGS)


def test_tags_of_the_task_itself_are_no_reasoning():
    template = "<reasoning>$why</reasoning>\n<answer>$label</answer>"
    text = "<reasoning>It boils.</reasoning>\n<answer>good</answer>"
    assert strip_reasoning(text, template) == (text, None)
    assert strip_reasoning(f"<think>Hm.</think>{text}", template) == (text, None)


@pytest.mark.parametrize("said", [
    "**Review:** {x}", "**Review**: {x}", "**review:** {x}", "**Sentiment:** Positive\n**Review:** {x}",
    "**Sentiment**: **positive**\n\n**Review**: {x}", "**Sentiment: positive**\n**Review:** {x}",
    "Here is one:\n\n**Sentiment:** positive\n\n**Review:** {x}\n\nI hope that this helps!",
])  # fmt: skip
def test_a_mark_in_bold_is_the_fields_mark(said, pairs):
    assert parse_completion(TASK, said.format(x=REVIEW), "positive") == ({"review": REVIEW}, None)
    bold = "a **very** big lake\n**Second:** the **sun**"  # of the text itself
    assert parse_completion(pairs, bold, "Warm")[0] == {"first": "a **very** big lake", "second": "the **sun**"}


def test_an_answer_is_read_the_same_way():
    task = load_task(ROOT / "prompts/word_problems.toml")
    record = {"problem": "There are 3 and 4."}
    assert read_answer(task, record, "<think>3 and 4</think><answer>3 + 4</answer>", "stop") == "3 + 4"
    assert read_answer(task, record, "<think>3 and 4", "stop") == ""
