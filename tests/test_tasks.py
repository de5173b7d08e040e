"""The task files of prompts/ and their seed examples: each example passes the checks of its task, no text is there twice.

No model, and nothing that a teacher wrote: whether the examples are right was judged by reading them.
"""

import collections
import re
from pathlib import Path

import pytest

from gold.examples import read_examples
from gold.parsing import copies_shot, parse_completion
from gold.programmes import optimum
from gold.prompts import known_label, render_label_prompt, render_prompt, split_example, structured_pattern
from gold.task import load_task, render
from gold.text import text_key

PATHS = sorted((Path(__file__).parent.parent / "prompts").glob("*.toml"))
PAIR = ["premise", "hypothesis"]
TASKS = {  # name: (fields that the teacher writes beside the answer, the answer's, labels in the order of their class ids)
    "rte": (PAIR, "label", ["entailment", "not_entailment"]),
    "qnli": (["question", "sentence"], "label", ["entailment", "not_entailment"]),
    "mnli": (PAIR, "label", ["entailment", "neutral", "contradiction"]),
    "anli": (PAIR, "label", ["entailment", "neutral", "contradiction"]),
    "wnli": (PAIR, "label", ["not_entailment", "entailment"]),
    "mrpc": (["sentence1", "sentence2"], "label", ["not_equivalent", "equivalent"]),
    "squad": (["context", "question"], "answer", []),
    "adversarial_qa": (["context", "question"], "answer", []),
    "svamp": (["body", "question", "answer"], "equation", []),
    "nl4opt": (["problem"], "formulation", []),
    "sst2": (["text"], "label", ["negative", "positive"]),
    "imdb": (["text"], "label", ["negative", "positive"]),
    "ag_news": (["text"], "label", ["World", "Sports", "Business", "Sci/Tech"]),
}
WORDS = {  # task: (field, fewest and most words of a seed example), where the manner of the data set asks for a length
    "anli": ("premise", 40, 80),
    "squad": ("context", 60, 120),
    "adversarial_qa": ("context", 60, 120),
    "imdb": ("text", 60, 150),
}


def seeds(path):
    task = load_task(path)
    return task, read_examples(task.seed_examples, task)


def start_of(task, label):
    return split_example(task.prompt.example, known_label(task, label)).start


every_task = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def test_fields_and_labels():
    tasks = {path.stem: load_task(path) for path in PATHS}
    assert {name: (t.fields, t.answer_field, list(t.labels)) for name, t in tasks.items() if name in TASKS} == TASKS
    assert all(task.name == name for name, task in tasks.items())
    labels = list(tasks["banking77"].labels)
    assert len(labels) == 77 and labels == sorted(labels, key=str.lower)


@every_task
def test_seed_examples_pass_the_checks_of_their_task(path):
    task, examples = seeds(path)
    for example in examples:
        label = example[task.answer_field] if task.labels else None
        shown, start = render(task.prompt.example, example), start_of(task, label)
        assert shown.startswith(start)
        completion = shown.removeprefix(start)
        fields = {name: example[name] for name in task.written_fields}
        assert parse_completion(task, completion, label) == (fields, None), example["id"]
        # A chat model repeats where it was to begin
        assert parse_completion(task, "Here is one:\n" + shown, label) == (fields, None), example["id"]
        assert re.fullmatch(structured_pattern(task, label), completion), example["id"]


@every_task
def test_seed_examples_of_a_task_differ_and_there_are_enough(path):
    task, examples = seeds(path)
    for i, example in enumerate(examples):
        assert not copies_shot(task, example, examples[:i]), example["id"]
    by_label = collections.Counter(example[task.answer_field] for example in examples)
    if task.labels:
        assert set(by_label) == set(task.labels) and min(by_label.values()) >= 3
        assert len(set(by_label.values())) == 1  # none is shown more often than another
    else:
        assert len(examples) >= 8
    if task.name in WORDS:
        field, least, most = WORDS[task.name]
        assert all(least <= len(example[field].split()) <= most for example in examples)


def test_no_text_is_there_twice():
    texts = collections.defaultdict(list)
    for path in PATHS:
        task, examples = seeds(path)
        for example in examples:
            for name in task.fields:
                if len(example[name].split()) > 1:  # numbers may come twice
                    texts[text_key(example[name])].append((task.name, example["id"], name))
    assert {text: places for text, places in texts.items() if len(places) > 1} == {}


def test_formulations_have_the_optimum_that_their_problem_has():
    """Worked out from the texts by hand: where the constraints that bind meet."""
    _, examples = seeds(PATHS[0].parent / "nl4opt.toml")
    optima = [280, 2920, 3800, 4.68, 1160, 15, 2575, 2250]
    assert [optimum(example["formulation"]) for example in examples] == pytest.approx(optima)


@every_task
def test_prompts_that_ask_for_an_example(path):
    """Without and with feedback; the label that is asked stands after all examples."""
    task, examples = seeds(path)
    shots, feedback, report = examples[:3], examples[-2:], "Results of the small model on 9 examples: accuracy 0.50"
    # What a base model continues has the form of the shots: one field a line, `Name: text`
    assert all(re.fullmatch(r"[A-Z][\w ]*: \$\w+", line) for line in task.prompt.example.split("\n"))
    assert task.prompt.system and "$" not in task.prompt.system
    rendered = ["\n\n" + render(task.prompt.example, e) + "\n\n" for e in [*shots, *feedback]]
    for label, definition in task.labels.items() or [(None, "")]:
        start = start_of(task, label)
        users = [render_prompt(task, split, shots, label).user for split in ("train", "validation")]
        assert all(text.strip() in user for text in rendered[:3] for user in users)
        assert "ignificantly different" in users[1]
        if task.prompt.feedback:
            users += [render_prompt(task, "train", shots, label, feedback, r).user for r in ("", report)]
        for user in users:
            assert user.endswith("\n\n" + start) and "\n\n\n" not in user
            assert (label or "") in user and definition in user
            if task.name == "banking77":
                assert [other for other in task.labels.values() if other in user] == [definition]
        for user in users[2:]:
            places = [user.index(text) for text in rendered]
            asked = user.index("Write one more")
            assert places == sorted(places) and places[-1] < asked
            assert "small model" in user[places[2] : places[3]] and "unsure of them" in user[places[2] : places[3]]
            assert (label or "") in user[asked : -len(start)] and definition in user[asked:]
        assert [user.count(report) for user in users[2:]] in ([], [0, 1])


def test_the_prefix_of_prompts_with_feedback_is_the_plain_one_s():
    """So that the prefix cache serves both. Embedded teachers are shown the form that they were trained on alone."""
    for task in map(load_task, PATHS):
        assert (task.prompt.feedback is None) is (task.name in ("reviews", "word_problems"))
        assert (task.prompt.feedback or task.prompt.train).startswith(task.prompt.train.split("$shots")[0] + "$shots")


@every_task
def test_prompt_that_asks_for_the_answer(path):
    task, examples = seeds(path)
    *shots, record = examples
    user = render_label_prompt(task, record, shots).user
    assert all(f"{name}: {definition}" in user for name, definition in task.labels.items())
    asked = user[user.rindex(shots[-1][task.answer_field]) + len(shots[-1][task.answer_field]) :]
    assert all(record[name] in asked for name in task.read_fields) and asked.endswith(":")
    if task.name == "svamp":  # the number would give the equation away
        assert "Answer:" not in user
