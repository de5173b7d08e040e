"""What a student writes, decoded from its own tokens, and what it was trained with: the same in all three stages."""

import json
import shutil

import pytest
from conftest import call, evaluate, flipped, metrics_in, pair, read_lines, record_of, scores_of, train, write_lines

from gold.examples import read_examples
from gold.predict import greedy_texts


def trains(*args, **how) -> dict:
    """The counts of a training that has to end well."""
    done = train(*args, **how)
    assert done.returncode == 0, done.stderr
    return record_of(args[2])["counts"]


def measured(task, model, data, output, *args):
    """(the process of evaluate.py, which has to end well, its metrics)"""
    done = evaluate(task, data, output, "--model", model, *args)
    assert done.returncode == 0, done.stderr
    return done, metrics_in(output)


def edited(home, tmp_path, name, old, new):
    """A copy of a task file with another text in it."""
    text = (home / f"{name}.toml").read_text().replace(old, new)
    (tmp_path / "task.toml").write_text(text.replace('seed_examples = "', f'seed_examples = "{home}/'))
    return tmp_path / "task.toml"


# ---------------------------------------------------------------------------------------------------------------------
# Predictions


@pytest.mark.parametrize("name", ["t5", "bos"])
def test_answers_that_the_student_cannot_write_are_wrong(name, home, models, tmp_path):
    """Every target is one unknown token, which the student soon finds the likeliest, and which is no text."""
    rows = [{"id": f"z{n}", "text": flipped(n)["text"], "answer": f"zebra{n}"} for n in range(80)]
    data, some = write_lines(tmp_path / "train.jsonl", rows), write_lines(tmp_path / "test.jsonl", rows[:20])
    task, student = home / "flip.toml", tmp_path / "student"
    how = {"task": task, "data": data}
    counts = trains(home, models[name], student, "--num-train-epochs", 6, "--learning-rate", 1e-2, **how)
    log = [r for r in read_lines(student / "training_log.jsonl") if "eval_loss" in r]
    assert counts["held_out_accuracy"] == max(r["eval_accuracy"] for r in log) == 0
    _, metrics = measured(task, student, some, tmp_path / "out")
    assert metrics["n"] == 20 and metrics["overall"]["exact_match"]["value"] == 0
    files = ("--input-file", some, "--output-file", tmp_path / "scored.jsonl")
    assert call("score_ood.py", "--task-file", task, "--model", student, *files).returncode == 0
    scored = read_lines(tmp_path / "scored.jsonl")
    for records in (read_lines(tmp_path / "out" / "predictions.jsonl"), scored):
        assert {(r["prediction"], r["correct"]) for r in records} == {("", False)}
    assert max(r["nll"] for r in scored) < 0.6  # the student is sure of it


def test_blanks_of_a_text_stay_as_they_are(models):
    """Many tokenizers of the hub are set to take blanks away from before punctuation, and so from right answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["t5"], clean_up_tokenization_spaces=True)
    tokenizer.add_tokens([","])
    ids = tokenizer("sun , melon")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "sun, melon"
    texts = greedy_texts(None, tokenizer, [{"labels": ids}], [[True] * len(ids)], len(ids), 1, ())
    assert texts == ["sun , melon"]


SETTINGS = {
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": [1, 4, 5, 6], "min_new_tokens": 5, "num_beams": 3,
    "no_repeat_ngram_size": 1, "repetition_penalty": 5.0, "length_penalty": 9.0, "forced_bos_token_id": 7,
    "do_sample": True, "temperature": 3.0, "forced_eos_token_id": 1, "suppress_tokens": [8, 9],
}  # fmt: skip


@pytest.mark.parametrize("taught", [True, False])
def test_generation_settings_of_a_base_change_no_prediction(taught, home, models, trained, flip, tmp_path):
    folder = trained["flip"] if taught else models["t5"]
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(SETTINGS))
    examples = [e | {"target": "tent sun"} for e in read_examples(home / "flip_train.jsonl", flip)]  # all are decoded
    found, expected = (scores_of(f, flip, examples, target=6) for f in (tmp_path / "model", folder))
    assert [s["prediction"] for s in found] == [s["prediction"] for s in expected]
    if not taught:
        how = {"task": "flip.toml", "data": "flip_train.jsonl"}
        trains(home, tmp_path / "model", tmp_path / "s", "--limit", 9, **how)
        kept = json.loads((tmp_path / "s" / "generation_config.json").read_text())
        kept.pop("transformers_version")
        plain = {"do_sample": False, "max_new_tokens": 128}
        assert kept == plain | {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


# ---------------------------------------------------------------------------------------------------------------------
# The held-out accuracy of a training


@pytest.mark.parametrize("name, dtype", [("t5", "bfloat16"), ("bert", "float32"), ("bos", "float32")])
def test_held_out_accuracy_is_what_evaluate_prints(name, dtype, home, models, tmp_path):
    """Half taught, with other right answers listed, and with an answer whose capitals the student never sees."""
    rows = [{"id": f"n{n}", **pair(n), "labels": ["Warm", "not warm"][: 1 + n % 3 // 2]} for n in range(240)]
    for row in rows[::5]:
        row["label"] = "Warm"
    task, student = home / "pairs.toml", tmp_path / "student"
    how = ("--num-train-epochs", 2, "--learning-rate", 5e-3, "--dtype", dtype)
    counts = trains(home, models[name], student, *how, data=write_lines(tmp_path / "train.jsonl", rows))
    _, metrics = measured(task, student, student / "held_out.jsonl", tmp_path / "out")
    assert metrics["n"] > 15
    assert metrics["overall"]["accuracy"]["value"] == counts["held_out_accuracy"] > 0


def test_held_out_accuracy_is_that_of_the_metric(home, trained, tmp_path):
    """By SQuAD's rules and by a list of right answers more is right than the very tokens of the target."""
    task, student = edited(home, tmp_path, "flip", "exact_match", "squad"), tmp_path / "student"
    rows = [{"id": f"n{n}", **flipped(n)} for n in range(160)]
    rows = [row | {"answers": [row["answer"], row["answer"].split()[0]]} for row in rows]
    # Cut at one token, the student writes the first word, which is right; no target can be written whole
    how = {"task": task, "data": write_lines(tmp_path / "train.jsonl", rows)}
    done = train(home, trained["flip"], student, "--num-train-epochs", 1, "--max-target-length", 1, **how)
    assert " targets are longer than --max-target-length 1: cut" in done.stderr
    counts = record_of(student)["counts"]
    _, metrics = measured(task, student, student / "held_out.jsonl", tmp_path / "out")
    assert metrics["overall"]["exact_match"]["value"] == counts["held_out_accuracy"] > 0.5
    assert all(" " not in r["prediction"] for r in read_lines(tmp_path / "out" / "predictions.jsonl"))


# ---------------------------------------------------------------------------------------------------------------------
# Labels


@pytest.mark.parametrize("model, old, new, args, told", [
    ("t5", "Warm", "zebra", (), "--model {}: its tokens write '' for 'zebra', the label 'zebra'; rename"),
    ("bos", "Warm", "zebra", (), "--model {}: its tokens write '' for 'zebra', the label 'zebra'; rename"),
    ("t5", "Warm", "not \u00e9 warm", (), "--model {}: its tokens write 'not warm' for 'not \u00e9 warm', the label"),
    ("t5", "Warm", "Warm", ("--max-target-length", 2),
     "--max-target-length 2: the label 'not warm' takes 3 tokens, its end included; give 3"),
    ("bert", "Warm", "zebra", (), ""),  # a class needs no tokens
])  # fmt: skip
def test_labels_that_cannot_be_written(model, old, new, args, told, home, models, tmp_path):
    """They are refused before the training."""
    task = edited(home, tmp_path, "pairs", f"{old} =", f'"{new}" =')
    rows = [pair(n) for n in range(40)]
    data = write_lines(tmp_path / "d.jsonl", [r | {"label": new if r["label"] == old else r["label"]} for r in rows])
    done = train(home, models[model], tmp_path / "s", "--num-train-epochs", 1, *args, task=task, data=data)
    assert (done.returncode == 1) is bool(told) is not (tmp_path / "s").exists()
    assert not told or done.stderr.splitlines()[-1].startswith(f"error: {told.format(models[model])}")


def test_a_label_s_name_is_no_prediction_of_a_student(home, tmp_path):
    """The target is "a Warm". Of a teacher "Warm" stands for it; a student that writes "Warm" is wrong everywhere. So texts."""
    task = edited(home, tmp_path, "pairs", 'target = "$label"', 'target = "a $label"')
    rows = [pair(n) | {"prediction": pair(n)["label"], "teacher_label": pair(n)["label"]} for n in range(6)]
    data = write_lines(tmp_path / "test.jsonl", rows)
    for field, right in (("teacher_label", 1.0), ("prediction", 0.0)):
        done = evaluate(task, data, tmp_path / field, "--prediction-field", field)
        assert done.returncode == 0, done.stderr
        assert metrics_in(tmp_path / field)["overall"]["accuracy"]["value"] == right
    task = edited(home, tmp_path, "flip", 'target = "$answer"', 'target = "it is: $answer"')
    rows = [flipped(n) | {"teacher_label": flipped(n)["answer"] if n else ""} for n in range(4)]
    done = evaluate(task, write_lines(data, rows), tmp_path / "texts", "--prediction-field", "teacher_label")
    assert done.returncode == 0, done.stderr
    assert [r["correct"] for r in read_lines(tmp_path / "texts/predictions.jsonl")] == [False, True, True, True]


# ---------------------------------------------------------------------------------------------------------------------
# What the student was trained with


def test_a_student_is_measured_with_the_lengths_of_its_training(home, models, tmp_path):
    """And with the prompt of its training, or it is said."""
    student, data, task = tmp_path / "student", home / "flip_train.jsonl", home / "flip.toml"
    lengths = {"max_source_length": 4, "max_target_length": 2}
    options = ("--max-source-length", 4, "--max-target-length", 2)
    trains(home, models["t5"], student, "--num-train-epochs", 1, *options, task=task, data=data)
    told = {**lengths, "dtype": "float32", "source": "flip: $text", "target": "$answer"}
    assert json.loads((student / "gold.json").read_text()) == told
    for name, model, given, expected, said in (
        ("a", student, (), lengths, ""),
        ("b", student, options, lengths, ""),  # the same as options: nothing to say
        ("c", student, ("--max-source-length", 512), lengths | {"max_source_length": 512},
         f"--max-source-length 512: {student} was trained with 4"),
        ("d", models["t5"], (), {"max_source_length": 512, "max_target_length": 128}, ""),  # a base model
    ):  # fmt: skip
        done, _ = measured(task, model, data, tmp_path / name, *given)
        assert done.stderr.startswith(said) and bool(said) is ("was trained with" in done.stderr)
        kept = json.loads((tmp_path / name / "predictions.jsonl.run.json").read_text())["options"]
        assert expected.items() <= kept.items()
    assert read_lines(tmp_path / "a" / "predictions.jsonl") == read_lines(tmp_path / "b" / "predictions.jsonl")
    other = edited(home, tmp_path, "flip", "flip: $text", "turn: $text")
    done, _ = measured(other, student, data, tmp_path / "e")
    said = f"student.source is 'turn: $text': {student} was trained with 'flip: $text'"
    assert done.stderr.splitlines()[0] == f"{other}: {said}"
    files = ("--input-file", data, "--output-file", tmp_path / "s.jsonl", "--max-target-length", 3)
    done = call("score_ood.py", "--task-file", task, "--model", student, *files)
    assert done.stderr.splitlines()[0] == f"--max-target-length 3: {student} was trained with 2"


@pytest.mark.parametrize(
    "content", ["[]", '{"max_source_length": 9}', '{"max_source_length": 9, "max_target_length": "9"}']
)
def test_what_it_was_trained_with_must_be_readable(content, home, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/config.json").write_text("{}")
    (tmp_path / "student/gold.json").write_text(content)
    done = evaluate(home / "flip.toml", home / "flip_train.jsonl", tmp_path / "out", "--model", tmp_path / "student")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path}/student/gold.json: ")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
