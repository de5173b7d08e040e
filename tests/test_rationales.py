"""rationale_field: the teacher's reasons in prompts, records and targets; the answer alone is read back and measured.

Two ways to learn them: in the target before the answer (JOINT), or as a second row of each example (SECOND).
"""

import random
import re
from types import SimpleNamespace

import pytest
from conftest import (
    FED_PAIRS,
    FLIP,
    ROOT,
    call,
    evaluate,
    flipped,
    loaded,
    metrics_in,
    one_error,
    pair,
    read_lines,
    record_of,
    refusal,
    train,
    write_lines,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_cards import answers_of

from data import word_problems_grammar as grammar
from gold import split
from gold.answers import read_written, written_answers
from gold.equations import equations_agree
from gold.examples import agrees, as_unanswered, rationale_rows, read_examples
from gold.metrics import golds_of, is_correct
from gold.parsing import parse_completion
from gold.prompts import Prompt, render_label_prompt, render_prompt
from gold.task import load_task

WHY = FLIP.replace("answer_field", 'rationale_field = "why"\nanswer_field').replace(
    "Answer: $answer'''", "Why: $why\nAnswer: $answer'''\nlabel = \"$shots\\n\\n$start\""
)
JOINT = WHY.replace(
    'target = "$answer"', 'target = "$why flip: $answer"'
)  # the mark is of words that its tokenizer knows
SECOND = WHY + '[student.rationale]\nsource = "pair: $text"\ntarget = "$why"\n'
LABELLED = FED_PAIRS.replace("answer_field", 'rationale_field = "why"\nanswer_field').replace(
    "Second: $second'''",
    "Second: $second\nWhy: $why'''\nlabel = '$labels $shots $start'\nlabel_example = '$first $second $label'",
)


def reasoned(number: int) -> dict:
    first, second = flipped(number)["text"].split()
    return {"text": f"{first} {second}", "why": f"{second} with {first}", "answer": f"{second} {first}"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """By name: (path, task), with seed examples beside the files."""
    folder = tmp_path_factory.mktemp("reasons")
    write_lines(folder / "flip_seed.jsonl", [reasoned(n) for n in range(3)])
    write_lines(folder / "seed.jsonl", [pair(n) | {"why": f"of the {pair(n)['second']}"} for n in range(4)])
    found = {}
    for name, text in {"why": WHY, "joint": JOINT, "second": SECOND, "labelled": LABELLED}.items():
        path = folder / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        found[name] = path, load_task(path)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The task file

MARKLESS = "student.target: needs $why, a mark such as 'So:', and $answer, which is read behind it"


@pytest.mark.parametrize("text, old, new, told", [
    (WHY, 'rationale_field = "why"', 'rationale_field = "text"', "fields: ['text', 'text'] and 'answer' must differ"),
    (WHY, 'rationale_field = "why"', 'rationale_field = "answers"', "fields: ['text', 'answers'] and 'answer' must diff"),
    (WHY, 'rationale_field = "why"', 'rationale_field = "reason"', "fields: the name 'reason' is one that the stages"),
    (WHY, "Why: $why\n", "", "prompt.example: the variable $why is missing"),
    (WHY, 'rationale_field = "why"\n', "", "prompt.example: unknown variable $why"),
    (SECOND, 'rationale_field = "why"\n', "", "rationale_field: missing; add it: it names the reasons"),
    (SECOND, 'target = "$why"', 'target = "$answer"', "student.rationale.target: unknown variable $answer; known here: why"),
    (SECOND, 'source = "pair: $text"', 'source = "$why"', "student.rationale.source: unknown variable $why"),
    (WHY, 'source = "flip: $text"', 'source = "$text $why"', "student.source: unknown variable $why; known here: text"),
    (JOINT, "$why flip: $answer", "$why $answer", MARKLESS),
    (JOINT, "$why flip: $answer", "$answer for $why", MARKLESS),
    (WHY, "[student]", "label_example = 'Why: $why\\nText: $text\\nAnswer: $answer'\n[student]",
     "prompt.label_example: $why must stand behind all fields"),
    (LABELLED, "label_example = '$first $second $label'", "label_example = '$first $second $why $label'",
     "prompt.label_example: must not show $why: the probability of a label is read where the prompt ends"),
])  # fmt: skip
def test_a_task_file_with_wrong_reasons_is_refused(text, old, new, told, tmp_path):
    assert text.count(old) == 1
    (tmp_path / "t.toml").write_text(text.replace(old, new), encoding="utf-8")
    message = refusal(load_task, tmp_path / "t.toml")
    assert message.startswith(f"error: {tmp_path / 't.toml'}: "), message
    assert told in message


def test_seed_examples_must_have_reasons(tasks, tmp_path):
    (tmp_path / "t.toml").write_text(WHY, encoding="utf-8")
    write_lines(tmp_path / "flip_seed.jsonl", [reasoned(0), flipped(1)])
    task = load_task(tmp_path / "t.toml")
    assert "flip_seed.jsonl:2: no field 'why'; found text, answer; add the field" in refusal(
        read_examples, task.seed_examples, task
    )


# ---------------------------------------------------------------------------------------------------------------------
# Prompts, completions, the teacher as labeller


def test_prompts_show_reasons_where_there_are_some(tasks):
    task = tasks["why"][1]
    shots = [reasoned(0), flipped(9)]  # a person's example has none: no empty line is left
    shown = (
        "Text: beach sun\nWhy: sun with beach\nAnswer: sun beach\n\nText: garden melon\nAnswer: melon garden\n\nText:"
    )
    assert render_prompt(task, "train", shots, None).user == shown
    assert render_label_prompt(task, {"text": "lake sun"}, shots).user == shown + " lake sun\nWhy:"
    # What a record has already is not given away
    assert render_label_prompt(task, reasoned(2), shots).user == shown + " lake sun\nWhy:"
    labelled = tasks["labelled"][1]
    fed = render_prompt(labelled, "train", [pair(0) | {"why": "of sun"}], "Warm", [pair(1)]).user
    assert "Second: sun\nWhy: of sun\n\nUnsure of:\n\nKind: not warm\nFirst: the beach\nSecond: a big snow\n\n" in fed


WORD = st.text("abcdefghijklmnop ,.", min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(deadline=None, max_examples=50)
@given(text=WORD, why=WORD, answer=WORD)
def test_a_completion_is_read_back(text, why, answer, tasks):
    completion = f" {text}\nWhy: {why}\nAnswer: {answer}"
    assert parse_completion(tasks["why"][1], completion, None) == ({"text": text, "why": why, "answer": answer}, None)
    found = read_written(tasks["why"][1], {"text": text}, f" {why}\nAnswer: {answer}", "stop")
    assert found == (why, answer)


@pytest.mark.parametrize("completion, found", [
    (" sun first\nAnswer: sun lake\n\nText: the roof\nWhy: x\nAnswer: y", ("sun first", "sun lake")),  # one too many
    ("Text: lake sun\nWhy: sun first\n\nAnswer: sun lake", ("sun first", "sun lake")),  # a chat repeats the start
    (" sun first\n**Answer:** sun lake", ("sun first", "sun lake")),
    ("Answer: sun lake", ("", "sun lake")),
    (" sun first, and then the lake", ("sun first, and then the lake", "")),  # it never answered
    (" it is long\n\nText: the roof\nWhy: x\nAnswer: y", ("it is long", "")),  # the answer of another text
])  # fmt: skip
def test_the_answer_stands_behind_the_reasons(completion, found, tasks):
    assert read_written(tasks["why"][1], {"text": "lake sun"}, completion, "stop") == found


def test_the_reasons_of_the_best_answer_are_kept_where_there_was_no_answer(tasks):
    """Several samples with reasons, and the majority of the answers: self-consistency (Wang et al. 2022)."""
    texts = ["a\nAnswer: x", "b\nAnswer: sun lake", "c\nAnswer: Sun lake"]
    output = SimpleNamespace(outputs=[SimpleNamespace(text=t, finish_reason="stop") for t in texts])
    engine = SimpleNamespace(complete=lambda requests: [output] * len(requests))
    records = [{"text": "lake sun"}, {"text": "lake sun", "answer": "sun lake"}]
    bare, answered = written_answers(engine, tasks["why"][1], [(r, []) for r in records], {"n": 3}, 0)
    assert answered == {"teacher_label": "sun lake", "label_probs": {"x": 1 / 3, "sun lake": 2 / 3}}
    assert bare == answered | {"why": "b"}


def test_generated_records_have_the_reasons_behind_the_text(command, tasks, tmp_path, monkeypatch):
    shown = []

    def render(*args, **how) -> Prompt:
        shown.append(render_prompt(*args, **how).user)
        return Prompt("", shown[-1])

    def answer(seed: int) -> tuple[str, str]:
        return f" the {['lake', 'roof', 'tent'][seed % 3]}\nSecond: sun {seed}\nWhy: of {seed}", "stop"

    monkeypatch.setattr(split, "render_prompt", render)
    path, _ = tasks["labelled"]
    done = command("--task-file", path, answer=answer)
    assert done.returncode == 0, done.stderr
    for name in ("train", "validation"):
        for record in read_lines(tmp_path / f"iter-00/{name}.jsonl"):
            assert list(record)[:7] == ["id", "first", "second", "why", "label", "source", "target"]
            assert record["target"] == record["label"] and record["why"] not in record["source"]
    # Every example that a prompt shows has its reasons, the new ones in those of the validation split too
    assert len(shown) > 10 and all(user.count("Why: of") == user.count("First:") - 1 for user in shown)


def test_reasons_of_another_answer_do_not_stay(tasks):
    """An answer is replaced with the reasons for it: what stood there is told, and taught to nobody."""
    task = tasks["joint"][1]
    bare = as_unanswered(reasoned(0) | {"id": "a", "target": "x", "correct": True, "nll": 0.1}, task)
    assert set(bare) == {"id", "text", "earlier_answer", "earlier_why"}


# ---------------------------------------------------------------------------------------------------------------------
# What the student learns and writes


def test_targets_with_and_without_reasons(tasks, tmp_path):
    task = tasks["joint"][1]
    path = write_lines(tmp_path / "x.jsonl", [reasoned(0), flipped(1), flipped(2) | {"why": None}])
    assert [e["target"] for e in read_examples(path, task)] == [
        "sun with beach flip: sun beach", "flip: sun garden", "flip: sun lake",
    ]  # fmt: skip
    write_lines(path, [reasoned(0) | {"why": ["a", "list"]}])
    assert "x.jsonl:1: 'why' must be a text (in quotes)" in refusal(read_examples, path, task)


@settings(deadline=None, max_examples=100)
@given(why=st.text("so: wx'\n", max_size=30), answer=WORD, told=st.sampled_from(["So:", "so :", "SO  :\n"]))
def test_the_answer_is_read_back(why, answer, told, tasks):
    """Whatever the reasons hold, and however a tokenizer spaces the mark."""
    student = tasks["joint"][1].student.model_copy(update={"target": "$why So: $answer"})
    task = tasks["joint"][1].model_copy(update={"student": student})
    assume(not re.search(r"(?i)\bso *:", answer))
    assert task.answer_of(f"{why} {told} {answer}") == answer == task.as_written(answer)
    assert task.answer_of(answer) == ""  # no mark, no answer
    assert task.answer_of(f"he also: {answer}") == ""  # nor is a word's end the mark


def test_what_is_correct_is_judged_by_the_answer_alone(tasks):
    task = tasks["joint"][1]
    record = {"target": "sun with beach flip: sun beach", "answer": "sun beach", "answers": ["sun beach", "the sun"]}
    assert golds_of(task, record) == ["sun beach", "the sun"]
    assert is_correct(task, "Sun beach", record) and not is_correct(task, record["target"], record)
    assert agrees(task, reasoned(0), "SUN beach") and not agrees(task, reasoned(0), "beach sun")


def test_the_second_row_weighs_as_much_as_the_answer(tasks, models):
    """sun beach </s>: 3 tokens; sun with beach </s>: 4, so each of these counts 3/4; and one without reasons has no row."""
    from train_student import with_rationales

    task = tasks["second"][1]
    examples = [e | {"id": str(n), "source": "flip: beach sun", "target": "sun beach"} for n, e in
                enumerate([reasoned(0), flipped(0)])]  # fmt: skip
    [row] = rationale_rows(examples, task)
    assert (row["source"], row["target"]) == ("pair: beach sun", "sun with beach")
    assert rationale_rows(examples, tasks["joint"][1]) == []
    student = loaded(models["t5"], task)
    features = with_rationales(student, examples, student.encode(examples))
    assert [(len(f["labels"]), f["weight"]) for f in features] == [(3, 1.0), (3, 1.0), (4, 0.75)]


@pytest.mark.parametrize("name, model", [("joint", "t5"), ("joint", "bos"), ("second", "llama")])
def test_a_student_that_learns_reasons_is_measured_by_its_answers(name, model, tasks, models, tmp_path):
    path, _ = tasks[name]
    data = write_lines(tmp_path / "train.jsonl", [reasoned(n) for n in range(40)])
    test = write_lines(tmp_path / "test.jsonl", [flipped(n) for n in range(40)])  # people's records have no reasons
    how = ("--num-train-epochs", 15, "--learning-rate", "1e-2", "--per-device-train-batch-size", 5)
    done = train(tmp_path, models[model], tmp_path / "s", *how, task=path, data=data)
    assert done.returncode == 0, done.stderr
    counts = record_of(tmp_path / "s")["counts"]
    assert counts.get("rationale_rows") == (counts["train_examples"] if name == "second" else None)
    assert evaluate(path, test, tmp_path / "m", "--model", tmp_path / "s").returncode == 0
    rows = read_lines(tmp_path / "m/predictions.jsonl")
    assert metrics_in(tmp_path / "m")["overall"]["exact_match"]["value"] > 0.5
    assert all(r["prediction"] == r["answer"] for r in rows if r["correct"])
    assert answers_of(tmp_path / "s", [r["source"] for r in rows]) == [r["prediction"] for r in rows]  # the card's code
    # Scores are of the target that it was trained on, and say where it cannot be
    files = ("score_ood.py", "--task-file", path, "--model", tmp_path / "s", "--output-file", tmp_path / "scored.jsonl")
    done = call(*files, "--input-file", data)
    assert list(read_lines(tmp_path / "scored.jsonl")[0])[:5] == ["id", "text", "why", "answer", "prediction"]
    assert done.returncode == 0 and "warning" not in done.stderr
    done = call(*files, "--input-file", test, "--overwrite")
    assert ("40 of 40 examples have no 'why': scored by the answer" in done.stderr) is (name == "joint")


def test_what_reasons_do_not_go_with_is_refused(tasks, models, tmp_path):
    data = write_lines(tmp_path / "train.jsonl", [reasoned(n) for n in range(40)])
    for name in ("joint", "second"):
        done = train(tmp_path, models["t5"], tmp_path / "s", "--loss", "kl", task=tasks[name][0], data=data)
        assert done.returncode == 1
        one_error(done.stderr, f"--loss kl: {tasks[name][0]}: [student] has reasons")
    text = LABELLED.replace('target = "$label"', 'target = "$why So: $label"')
    (tmp_path / "t.toml").write_text(text, encoding="utf-8")
    data = write_lines(tmp_path / "pairs.jsonl", [pair(n) | {"why": "a"} for n in range(40)])
    done = train(tmp_path, models["bert"], tmp_path / "s", task=tmp_path / "t.toml", data=data)
    assert done.returncode == 1
    one_error(done.stderr, "an encoder (bert) writes no reasons", "use a T5 or a decoder, or leave $why and [student")
    # Where the student is not asked for them, the encoder may learn the labels beside which they stand
    (tmp_path / "t.toml").write_text(LABELLED, encoding="utf-8")
    done = train(tmp_path, models["bert"], tmp_path / "s", "--dry-run", task=tmp_path / "t.toml", data=data)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_shows_both_rows_and_what_has_no_reasons_is_said(tasks, models, tmp_path):
    data = write_lines(tmp_path / "train.jsonl", [reasoned(n) for n in range(20)] + [flipped(n) for n in range(20, 30)])
    done = train(tmp_path, models["t5"], tmp_path / "s", "--dry-run", task=tasks["second"][0], data=data)
    assert "10 of 30 examples have no 'why': trained on the answer" in done.stderr
    assert "source: flip: beach sun\ntarget: sun beach" in done.stdout
    assert "source: pair: beach sun\ntarget: sun with beach" in done.stdout


def test_labels_with_reasons_are_decoded_whole(tasks, models, tmp_path):
    """A student that writes labels alone stops after the longest one; reasons are as long as they are."""
    (tmp_path / "t.toml").write_text(LABELLED.replace('target = "$label"', 'target = "$why So: $label"'))
    task = load_task(tmp_path / "t.toml")
    assert task.targets == ["Warm", "not warm"]
    assert loaded(models["t5"], task).max_new_tokens == 128
    assert loaded(models["t5"], tasks["labelled"][1]).max_new_tokens == 3  # not warm </s>


# ---------------------------------------------------------------------------------------------------------------------
# The two tasks of this project


def test_the_reasons_of_word_problems_give_their_equation():
    rng, signs = random.Random(0), {word: sign for sign, word in grammar.WORDS.items()}
    seeds = read_lines(ROOT / "data/word_problems_reasons/seed_examples.jsonl")
    assert [(s["problem"], s["equation"]) for s in seeds] == grammar.SEED_EXAMPLES
    made = [grammar.make_example(rng, setting) for setting in grammar.SETTINGS for _ in range(20)]
    for example in [*seeds, *made, *map(grammar.corrupt, made)]:
        first = re.match(r"At first (\d+)\.", example["reasons"])[1]
        steps = re.findall(r"(.*?), ([a-z ]+) (\d+)\.(?: |$)", example["reasons"][len(f"At first {first}. ") :])
        equation = grammar.equation_of([first, *(n for *_, n in steps)], [signs[word] for _, word, _ in steps])
        assert equation == example["equation"]
        assert all(clause.lower() in example["problem"].lower() for clause, *_ in steps)


def test_svamp_with_reasons_has_the_problems_of_svamp():
    plain, with_reasons = (read_lines(ROOT / f"data/{n}/seed_examples.jsonl") for n in ("svamp", "svamp_reasons"))
    assert [{k: v for k, v in e.items() if k != "reasons"} for e in with_reasons] == plain
    task = load_task(ROOT / "prompts/svamp_reasons.toml")
    for example in read_examples(task.seed_examples, task):
        assert example["target"] == f"{example['reasons']} So: {example['equation']}"
        assert equations_agree(task.answer_of(example["target"]), example["equation"])
        assert "reasons" not in example["source"] and example["reasons"] not in example["source"]
