"""The task files of prompts/ and their seed examples: each example passes the checks of its task; prompts in both forms.

No model, and nothing that a teacher wrote: whether the examples are right was judged by reading them.
"""

import collections
import random
import re

import pytest
from conftest import ROOT, call, one_error, read_lines
from typer.testing import CliRunner

from data import build_models
from data import word_problems_grammar as grammar
from gold import teacher
from gold.attempts import Pools, draw_attempt
from gold.examples import read_examples
from gold.parsing import copies_shot, parse_completion
from gold.programmes import optimum
from gold.prompts import known_label, render_label_prompt, render_prompt, split_example, structured_pattern
from gold.task import load_task
from gold.templates import render
from gold.text import text_key

PATHS = sorted((ROOT / "prompts").glob("*.toml"))


def seeds(path):
    task = load_task(path)
    return task, read_examples(task.seed_examples, task)


def start_of(task, label):
    return split_example(task.prompt.example, known_label(task, label)).start


every_task = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


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
        if task.prompt.feedback:
            users += [render_prompt(task, "train", shots, label, feedback, r).user for r in ("", report)]
        for user in users:
            assert user.endswith("\n\n" + start) and "\n\n\n" not in user
            assert (label or "") in user and definition in user
            if task.name == "banking77":
                assert [other for other in task.labels.values() if other in user] == [definition]
        for user in users[2:]:
            places = [user.index(text) for text in rendered]
            assert places == sorted(places)
            assert (label or "") in user[places[-1] : -len(start)] and definition in user[places[-1] :]
        assert [user.count(report) for user in users[2:]] in ([], [0, 1])


@pytest.mark.parametrize("form", ["chat", "completion"])
@pytest.mark.parametrize("path", [p for p in PATHS if load_task(p).prompt.unlabelled], ids=lambda path: path.stem)
def test_prompts_that_ask_for_a_text_without_its_answer(path, form):
    """A list has shots of all labels; nothing tells the label, and what is shown is read back."""
    whole, examples = seeds(path)
    task = whole.without_answers().in_form(form)
    pools = Pools([example | {whole.answer_field: "ANSWER"} for example in examples])
    drawn = [draw_attempt(task, 0, "train", number, pools, OPTIONS) for number in range(80)]
    assert {shot["id"] for a in drawn for shot in a.shots} == {example["id"] for example in examples}
    start = start_of(task, None)
    for a in drawn:
        system, user = render_prompt(task, "train", a.shots, a.label)
        assert a.label is None and "ANSWER" not in user and user.endswith(start)
        assert not any(f"{name}: " in user or name in system for name in whole.labels)
        for shot in a.shots:
            shown = render(task.prompt.example, shot)
            fields = {name: shot[name] for name in task.fields}
            assert shown in user and parse_completion(task, shown.removeprefix(start), None) == (fields, None)
            assert re.fullmatch(structured_pattern(task, None), shown.removeprefix(start))


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


# ---------------------------------------------------------------------------------------------------------------------
# [completion], the list form: a heading that names the label, and under it examples of that label alone

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


@pytest.mark.parametrize("form", ["chat", "completion"])
@pytest.mark.parametrize("name", ["ag_news", "sst2"])
def test_attributes_are_one_more_line_near_the_end(name, form):
    task = task_of(name, form)
    shots = read_examples(task.seed_examples, task)[:3]
    for label in task.names:
        values = {key: some[-1] for key, some in task.prompt.values_for(label).items()}
        for split, feedback in (("train", []), ("train", shots[:1]), ("validation", [])):
            plain = render_prompt(task, split, shots, label, feedback).user.splitlines()
            lines = render_prompt(task, split, shots, label, feedback, attributes=values).user.splitlines()
            [line] = set(lines) - set(plain)
            assert f"about {', '.join(values.values())}" in line and lines.index(line) >= len(lines) - 4
            assert [other for other in lines if other != line] == plain


@every_task
def test_every_task_has_the_form_and_the_chat_form_stays(path):
    task, examples = seeds(path)
    assert task.in_form("chat") is task
    if task.name in (
        "reviews",
        "word_problems",
        "word_problems_reasons",
    ):  # their teachers are trained on [prompt] itself
        assert task.in_form("completion") is task
        return
    listed = task.in_form("completion")
    assert listed.is_list is bool(task.labels) and listed.label_template == task.label_template
    shots = random.Random(0).sample(examples, 3)
    for wanted in task.names:
        for split in ("train", "validation"):
            prompt = render_prompt(listed, split, shots, wanted)
            assert prompt.system == "" and prompt.user.count(listed.prompt.between) >= 3


def test_auto_is_the_list_for_a_small_model(models, monkeypatch, tmp_path):
    from transformers import AutoTokenizer

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


# ---------------------------------------------------------------------------------------------------------------------
# The second embedded task

WORD_PROBLEMS = load_task(ROOT / "prompts/word_problems.toml")


@pytest.mark.parametrize("equation, reason", [
    ("12 - 4", None), ("( 12 - 4 ) * 2", None), ("x = 12 - 4", None), ("1" + " + 1" * 8, "too_long"),
    ("12 minus 4", "check_failed"), ("12 / 0", "check_failed"), ("", "empty_field"),
])  # fmt: skip
def test_an_equation_must_evaluate(equation, reason):
    text = f" There were 12 loaves. 4 were sold. How many are left?\nEquation: {equation}"
    fields, found = parse_completion(WORD_PROBLEMS, text, None)
    assert found == reason and fields["equation"] == equation


def test_no_encoder_for_equations(tmp_path):
    done = CliRunner().invoke(build_models.app, ["word_problems", "bert", "--output-dir", str(tmp_path)])
    assert done.exit_code == 2 and "word_problems has none" in " ".join(done.stderr.replace("│", " ").split())


def test_a_target_without_a_value_is_refused_by_file_and_line(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"problem": "a", "equation": "6 + 3"}\n{"problem": "b", "equation": "48 ÷ 2"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"test.jsonl:2: '48 ÷ 2' has no value, so no prediction could be correct"):
        read_examples(path, WORD_PROBLEMS)


def test_the_data_files_are_those_of_the_grammar(tmp_path):
    grammar.write_data(tmp_path)
    for name in ("seed_examples", "test", "test_zipf"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (ROOT / f"data/word_problems/{name}.jsonl").read_bytes()
    records = [r for path in tmp_path.glob("*.jsonl") for r in read_lines(path)]
    assert all(grammar.oracle_equation(r["problem"]) == r["equation"] for r in records)
    assert len({text_key(r["problem"]) for r in records}) == len(records)
