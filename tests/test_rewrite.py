"""--rewrite (GenCo): a feedback example of the label asked for is rewritten, or its beginning continued; no copy is taken."""

import pytest
from conftest import FLIP, PAIRS, encoder_of, read_lines, refusal, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from gold.attempts import Pools
from gold.examples import read_examples
from gold.feedback import first_half, rewriting, with_rewrite
from gold.split import Split, longest_need, task_in_form
from gold.task import load_task
from gold.text import words

ONE = """
name = "one"
description = "Does it belong to summer?"
kind = "classification"
metric = "accuracy"
fields = ["text"]
answer_field = "label"
seed_examples = "seed.jsonl"
[labels]
Warm = "it belongs to summer"
Cold = "it belongs to winter"
[prompt]
train = "$shots\\n\\nAnother that is $label:\\n\\n$start"
validation = "$shots\\n\\n$start"
rewrite = "$shots\\n\\nTell this anew, so that it is $label ($definition):\\n\\n$feedback\\n\\n$start"
example = "Kind: $label\\nText: $text"
[completion]
train = "$label:\\n\\n$shots\\n$start"
validation = "$label:\\n\\n$shots\\n$start"
example = "- $text"
[student]
source = "text: $text"
target = "$label"
"""
FED = [  # no Cold one
    {"id": "f0", "text": "we swam in the\nlake until the sun went down", "label": "Warm"},
    {"id": "f1", "text": "melons are sold" + " on the beach" * 99, "label": "Warm"},  # 300 words: the longest prompt
]
BEGUN = {"f0": "we swam in the lake", "f1": "melons are sold" + " on the beach" * 49}
OPTIONS = {"rewrite": True, "corpus_file": None, "report_file": None, "feedback_label": "any", "feedback_rate": 0.5}
OPTIONS |= {"num_feedback_shots": 2, "num_fewshot": 2, "num_passages": 2, "attributes": False, "seed": 0}


@pytest.fixture
def one(tmp_path):
    (tmp_path / "one.toml").write_text(ONE, encoding="utf-8")
    lines = [{"id": f"s{n}", "text": f"seed {n}", "label": ("Warm", "Cold")[n % 2]} for n in range(6)]
    write_lines(tmp_path / "seed.jsonl", lines)
    return load_task(tmp_path / "one.toml")


@pytest.mark.parametrize("text, half", [
    ("a b c d e", " a b"), (" a,\n  b!  c d", " a, b!"), ("one", ""), ("", ""), ("日本語の本", " 日本"),
])  # fmt: skip
def test_first_half(text, half):
    assert first_half(text) == half


@given(st.text())
@settings(deadline=None, max_examples=200)
def test_a_half_is_a_beginning_on_one_line(text):
    line, half = " ".join(text.split()), first_half(text).removeprefix(" ")
    assert line.startswith(half) and half == " ".join(half.split()) and (len(half) < len(line) or not line)


def test_what_the_option_stands_for_and_what_it_tells(one, pairs, tmp_path, capsys):
    stands_for = {"feedback_rate": 1.0, "num_feedback_shots": 1, "feedback_label": "same"}
    assert rewriting(one, OPTIONS, FED) == stands_for
    told = "--rewrite: 1 of 2 labels have no feedback (Cold): their prompts, 50% of all, are ordinary ones"
    assert capsys.readouterr().err.strip() == told
    assert rewriting(one, OPTIONS, []) == stands_for and "2 of 2 labels" in capsys.readouterr().err
    both = [*FED, {"id": "f2", "text": "snow", "label": "Cold"}]
    assert rewriting(one, OPTIONS, both) == stands_for and capsys.readouterr().err == ""
    assert rewriting(one, OPTIONS | {"rewrite": False}, []) == {} and capsys.readouterr().err == ""
    for change in ({"report_file": "m.json"}, {"corpus_file": "c.jsonl"}, {"feedback_label": "other"}):
        assert "error: --rewrite: shows one text" in refusal(rewriting, one, OPTIONS | change, FED)
    (tmp_path / "flip.toml").write_text(FLIP)
    assert "error: --rewrite: a text2text task" in refusal(rewriting, load_task(tmp_path / "flip.toml"), OPTIONS, [])
    # Templates
    assert f"error: {pairs.path}: prompt.rewrite: missing" in refusal(with_rewrite, pairs, "chat")
    assert "one text, the task has the fields first, second; give" in refusal(with_rewrite, pairs, "completion")
    path = one.path
    path.write_text(ONE.replace("[completion]", '[completion]\nrewrite = "$shots $feedback $start"'))
    assert f"error: {path}: completion.rewrite: is not read" in refusal(load_task, path)
    path.write_text(PAIRS.replace("[parse]", 'rewrite = "$shots $start"\n[parse]'))
    assert f"error: {path}: prompt.rewrite: the variable $feedback is missing" in refusal(load_task, path)


def split_of(task, form, tmp_path) -> Split:
    feedback = read_examples(write_lines(tmp_path / "feedback.jsonl", FED), task)
    options = OPTIONS | {"output_dir": tmp_path, "shard": None, "limit": None, "num_examples": 8, "temperature": 1}
    options |= {"max_attempts": None, "structured": False, "max_tokens": 32, "verify": False}
    options |= rewriting(task, options, feedback)
    split = Split("train", task, options, Pools(read_examples(task.seed_examples, task), feedback), set())
    split.take_form(task_in_form(task, form, options, True))
    return split


def test_prompts_of_both_forms(one, tmp_path):
    """Of the label without feedback they are those of `train`; the context holds all."""
    from transformers import ByT5Tokenizer

    for form in ("chat", "completion"):
        split = split_of(one, form, tmp_path)
        for number in range(20):
            a = split.draw(number)
            user = split.prompt(a).user
            assert bool(a.feedback) == (a.label == "Warm") and len(a.shots) == 2
            if a.label == "Cold":
                assert user.endswith("Another that is Cold:\n\nKind: Cold\nText:" if form == "chat" else "\n-")
                assert split.beginning(a) == ""
                continue
            [fed] = a.feedback
            assert a.lineage == {"feedback": True, "shots": [*(s["id"] for s in a.shots), fed["id"]]}
            if form == "chat":
                told = f"Tell this anew, so that it is Warm (it belongs to summer):\n\nKind: Warm\nText: {fed['text']}"
                assert user.endswith(f"{told}\n\nKind: Warm\nText:") and split.beginning(a) == ""
            else:
                begun = BEGUN[fed["id"]]
                assert user == f"Warm:\n\n- {a.shots[0]['text']}\n- {a.shots[1]['text']}\n- {begun}"
                assert split.beginning(a) == f" {begun}"
        encoder = encoder_of(ByT5Tokenizer())
        encoder.form = form
        encoder.in_chat = lambda prompt: prompt.user
        longest = max(map(len, encoder.encode([split.prompt(split.draw(n)) for n in range(20)])))
        assert 600 < longest <= longest_need(split, encoder) - 32


def test_a_continuation_is_an_example_and_a_copy_is_none(command, one, tmp_path):
    """In the list form: the rest of the very text, nothing, and what only ends the beginning are rejected."""
    split = split_of(one, "completion", tmp_path)
    drawn = {a.sampling_seed: a for a in map(split.draw, range(400))}
    copies = {"f0": " until the sun went down.", "f1": " on the beach" * 50}

    def answer(seed: int) -> tuple[str, str]:
        a = drawn[seed]
        if a.feedback and a.number % 16 < 8:
            return (copies[a.feedback[0]["id"]], "", ".", " ")[a.number % 16 // 2], "stop"
        return f" and {seed} more\n- another", ("stop", "length")[a.number // 2 % 2]

    how = ("--task-file", one.path, "--feedback-file", tmp_path / "feedback.jsonl", "--rewrite", "--num-fewshot", 2)
    done = command(*how, "--prompt-form", "completion", "--num-validation", 0, "--num-examples", 24, answer=answer)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--rewrite: 1 of 2 labels have no feedback (Cold)") == 1
    accepted, rejected = (read_lines(tmp_path / "iter-00" / f"train{end}.jsonl") for end in ("", ".rejected"))
    for r in accepted:
        begun = BEGUN[r["shots"][-1]] if r["label"] == "Warm" else ""
        assert r["text"] == f"{begun} and {r['sampling_seed']} more".strip()
        assert r["feedback"] == bool(begun) and r["completion"].startswith(" and ")
        assert all(i[0] == "s" for i in r["shots"][:2]) and len(r["shots"]) == 2 + bool(begun)
    reasons = {int(r["id"][-6:]): r["reason"] for r in rejected if r["reason"] != "surplus"}
    assert set(reasons.values()) == {"copied_shot"} and {n % 16 for n in reasons} == {0, 2, 4, 6}
    assert all(words(r["text"]) for r in accepted)
