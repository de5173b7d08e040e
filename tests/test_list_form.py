"""[completion], the list form: a heading that names the label, and under it examples of that label alone."""

import random

import pytest
from conftest import ROOT, call, one_error

from gold.attempts import Pools, draw_attempt
from gold.examples import read_examples
from gold.parsing import parse_completion
from gold.prompts import render_label_prompt, render_prompt
from gold.task import load_task

FILES = sorted(path.stem for path in (ROOT / "prompts").glob("*.toml"))
EMBEDDED = ("reviews", "word_problems")  # their teachers are trained on [prompt] itself
OPTIONS = {"seed": 0, "num_fewshot": 3, "feedback_rate": 0.5, "num_feedback_shots": 2, "feedback_label": "any"}


def task_of(name: str, form: str = "completion"):
    return load_task(ROOT / f"prompts/{name}.toml").in_form(form)


def test_a_list_of_lines():
    task = task_of("sst2")
    shots = [{"text": "dull from end to end", "label": "negative"}, {"text": "a waste of film", "label": "negative"}]
    system, user = render_prompt(task, "train", shots[:1], "negative", feedback=shots[1:])
    assert system == ""
    assert user == "Short negative phrases from film critics:\n\n- dull from end to end\n- a waste of film\n-"
    assert task.parse.stop == ["\n"] and task.is_list
    label = render_label_prompt(task, {"text": "a joy"}, shots[:1]).user
    assert label == "Phrases from film critics:\n\nText: dull from end to end\nLabel: negative\n\nText: a joy\nLabel:"


def test_a_list_of_blocks():
    task = task_of("rte")
    shot = {"premise": "It rained all day.", "hypothesis": "It was wet.", "label": "entailment"}
    user = render_prompt(task, "validation", [shot, shot], "entailment").user
    block = "Premise: It rained all day.\nHypothesis: It was wet."
    assert user.endswith(f".\n\n{block}\n\n{block}\n\nPremise:") and task.parse.stop == ["\n\n"]
    text = " The ship left the port of Brest on Monday.\nHypothesis: A ship left Brest.\n\nPremise: One more"
    found = {"premise": "The ship left the port of Brest on Monday.", "hypothesis": "A ship left Brest."}
    assert parse_completion(task, text, "entailment") == (found, None)


@pytest.mark.parametrize("text", [" a fine film", " a fine film\n- a bad one", "\n- a fine film", "- a fine film"])
def test_one_line_is_read(text):
    assert parse_completion(task_of("sst2"), text, "positive") == ({"text": "a fine film"}, None)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_shot_has_the_label_asked_for(split):
    task = task_of("ag_news")
    seeds = read_examples(task.seed_examples, task)
    pools = Pools(seeds, feedback=seeds, train=seeds)
    for number in range(200):
        attempt = draw_attempt(task, 1, split, number, pools, OPTIONS)
        assert {shot["label"] for shot in attempt.shown} == {attempt.label}
        assert len(attempt.shots) == (3 if split == "train" else 2)
    drawn = [draw_attempt(task, 1, "train", number, pools, OPTIONS) for number in range(200)]
    assert 70 < sum(len(a.feedback) == 2 for a in drawn) < 130


@pytest.mark.parametrize("name", FILES)
def test_every_task_has_the_form_and_the_chat_form_stays(name):
    task = load_task(ROOT / f"prompts/{name}.toml")
    assert task.in_form("chat") is task
    if name in EMBEDDED:
        assert task.in_form("completion") is task
        return
    listed = task.in_form("completion")
    assert listed.is_list is bool(task.labels) and listed.label_template == task.label_template
    shots = random.Random(0).sample(read_examples(task.seed_examples, task), 3)
    for wanted in task.names:
        for split in ("train", "validation"):
            prompt = render_prompt(listed, split, shots, wanted)
            assert prompt.system == "" and prompt.user.count(listed.prompt.between) >= 3


def test_auto_is_the_list_for_a_small_model(models, monkeypatch, tmp_path):
    from transformers import AutoTokenizer

    from gold import teacher

    task, reviews = load_task(ROOT / "prompts/sst2.toml"), load_task(ROOT / "prompts/reviews.toml")
    tokenizer = AutoTokenizer.from_pretrained(models["bos"])

    def form(task) -> str:
        return teacher.load_encoder(str(models["bos"]), task, "auto", {}, False).form

    assert form(task) == form(reviews) == "completion"  # no chat template
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *args, **kwargs: tokenizer)
    assert form(task) == "completion" and form(reviews) == "chat"
    monkeypatch.setattr(teacher, "SMALL", 10)
    assert form(task) == "chat"


def test_what_a_list_cannot_show_is_refused(models, tmp_path):
    done = call(
        "generate.py", "--task-file", ROOT / "prompts/sst2.toml", "--model", models["bos"], "--output-dir", tmp_path,
        "--feedback-label", "other", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 1
    one_error(done.stderr, "--prompt-form completion: a list shows no report and one label; give --prompt-form chat")
