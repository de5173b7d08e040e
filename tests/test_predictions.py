"""What a student writes, decoded from its own tokens, and what it was trained with: the same in all three stages."""

import json
import shutil

import pytest
from conftest import TRAINING, call, flipped, loaded, pair, read_lines, scores_of, write_lines

from gold.decoding import greedy_texts, texts_of
from gold.examples import read_examples


def train(task, model, data, output, *args):
    return call(
        "train_student.py", "--task-file", task, "--model", model, "--train-file", data, "--output-dir", output, *args
    )


def evaluate(task, model, data, output, *args):
    """(the process, its metrics)"""
    done = call(
        "evaluate.py", "--task-file", task, "--model", model, "--test-file", data, "--output-dir", output, *args
    )
    assert done.returncode == 0, done.stderr
    return done, json.loads((output / "metrics.json").read_text())


def counts_of(folder):
    return json.loads(folder.with_name(f"{folder.name}.run.json").read_text())["counts"]


# ---------------------------------------------------------------------------------------------------------------------
# Predictions


@pytest.mark.parametrize("name", ["t5", "bos"])
def test_answers_that_the_student_cannot_write_are_wrong(name, home, models, tmp_path):
    """Every target is one unknown token, which the student soon finds the likeliest, and which is no text."""
    rows = [{"id": f"z{n}", "text": flipped(n)["text"], "answer": f"zebra{n}"} for n in range(80)]
    data, forty = write_lines(tmp_path / "train.jsonl", rows), write_lines(tmp_path / "test.jsonl", rows[:40])
    student = tmp_path / "student"
    done = train(home / "flip.toml", models[name], data, student, "--num-train-epochs", 6, "--learning-rate", 1e-2)
    assert done.returncode == 0, done.stderr
    assert counts_of(student)["held_out_accuracy"] == 0
    log = read_lines(student / "training_log.jsonl")
    measured = [r for r in log if "eval_loss" in r]
    assert max(r["eval_accuracy"] for r in measured) == 0 and measured[-1]["eval_loss"] < 0.5
    _, metrics = evaluate(home / "flip.toml", student, forty, tmp_path / "out")
    assert metrics["n"] == 40 and metrics["overall"]["exact_match"]["value"] == 0
    assert {(r["prediction"], r["correct"]) for r in read_lines(tmp_path / "out" / "predictions.jsonl")} == {
        ("", False)
    }
    done = call(
        "score_ood.py", "--task-file", home / "flip.toml", "--model", student, "--input-file", forty, "--output-file",
        tmp_path / "scored.jsonl",
    )  # fmt: skip
    scored = read_lines(tmp_path / "scored.jsonl")
    assert {(r["prediction"], r["correct"], r["error"]) for r in scored} == {("", False, 1.0)}
    assert max(r["nll"] for r in scored) < 0.6  # the student is sure of it


@pytest.mark.parametrize("name", ["flip", "flip_bos", "t5", "qwen2"])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_known_tokens_are_what_is_decoded(name, length, home, trained, pairs, flip):
    """Texts of teacher-forced tokens against those of generate alone, with targets that are cut, and half of them right."""
    task, data = (flip, "flip_train.jsonl") if "flip" in name else (pairs, "train.jsonl")
    examples = read_examples(home / data, task)[:30]
    if not task.labels:
        for e in examples[::2]:
            e["target"] = "tent sun"
    student = loaded(trained[name], task, target=length)
    features = student.encode(examples)
    free = task.model_copy(update={"kind": "text2text", "metric": "exact_match", "labels": {}})
    scores = scores_of(trained[name], free, examples, target=length)
    nothing = [[False] * len(f["labels"]) for f in features]
    texts = greedy_texts(student.network, student.tokenizer, features, nothing, length, 7)
    assert [s["prediction"] for s in scores] == [text.strip() for text in texts]
    right = [text.strip().lower() == e["target"].lower() for text, e in zip(texts, examples, strict=True)]
    assert [s["correct"] for s in scores] == right
    assert length < 8 or (True in right and (task.labels or False in right))


def test_blanks_of_a_text_stay_as_they_are(models):
    """Many tokenizers of the hub are set to take blanks away from before punctuation, and so from right answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["t5"], clean_up_tokenization_spaces=True)
    tokenizer.add_tokens([","])
    ids = tokenizer("sun , melon")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "sun, melon"
    assert texts_of([ids], tokenizer) == ["sun , melon"]


SETTINGS = {
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": [1, 4, 5, 6], "min_new_tokens": 5, "num_beams": 3,
    "no_repeat_ngram_size": 1, "repetition_penalty": 5.0, "length_penalty": 9.0, "forced_bos_token_id": 7,
    "do_sample": True, "temperature": 3.0, "forced_eos_token_id": 1, "suppress_tokens": [8, 9],
}  # fmt: skip


@pytest.mark.parametrize("taught", [True, False])
def test_generation_settings_of_a_base_change_no_prediction(taught, home, models, trained, pairs, flip, tmp_path):
    folder = (trained if taught else models)["flip" if taught else "t5"]
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(SETTINGS))
    examples = read_examples(home / "flip_train.jsonl", flip)
    for e in examples:  # none of them is written, so that all are decoded
        e["target"] = "tent sun"
    found, expected = (scores_of(f, flip, examples, target=6) for f in (tmp_path / "model", folder))
    assert [s["prediction"] for s in found] == [s["prediction"] for s in expected]
    if not taught:
        done = train(home / "flip.toml", tmp_path / "model", home / "flip_train.jsonl", tmp_path / "s", "--limit", 9)
        assert done.returncode == 0, done.stderr
        kept = json.loads((tmp_path / "s" / "generation_config.json").read_text())
        kept.pop("transformers_version")
        assert kept == {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


# ---------------------------------------------------------------------------------------------------------------------
# The held-out accuracy of a training


@pytest.mark.parametrize("name, dtype", [("t5", "bfloat16"), ("bert", "float32"), ("bos", "float32")])
def test_held_out_accuracy_is_what_evaluate_prints(name, dtype, home, models, tmp_path):
    """Half taught, with other right answers listed, and with an answer whose capitals the student never sees."""
    rows = [{"id": f"n{n}", **pair(n), "labels": ["Warm", "not warm"][: 1 + n % 3 // 2]} for n in range(240)]
    for row in rows[::5]:
        row["label"] = "Warm"
    data, student = write_lines(tmp_path / "train.jsonl", rows), tmp_path / "student"
    how = ("--num-train-epochs", 2, "--learning-rate", 5e-3, "--dtype", dtype)
    done = train(home / "pairs.toml", models[name], data, student, *how)
    assert done.returncode == 0, done.stderr
    _, metrics = evaluate(home / "pairs.toml", student, student / "held_out.jsonl", tmp_path / "out")
    assert metrics["n"] > 15
    assert metrics["overall"]["accuracy"]["value"] == counts_of(student)["held_out_accuracy"] > 0


def test_held_out_accuracy_is_that_of_the_metric(home, models, tmp_path):
    """By SQuAD's rules and by a list of right answers more is right than the very tokens of the target."""
    text = (home / "flip.toml").read_text().replace("exact_match", "squad").replace("flip_seed", f"{home}/flip_seed")
    (tmp_path / "flip.toml").write_text(text)
    rows = [{"id": f"n{n}", **flipped(n)} for n in range(160)]
    rows = [row | {"answers": [row["answer"], row["answer"].split()[0]]} for row in rows]
    data, student = write_lines(tmp_path / "train.jsonl", rows), tmp_path / "student"
    # Cut at one token, the student writes the first word, which is right; no target can be written whole
    how = ("--num-train-epochs", 30, "--learning-rate", 1e-2, "--max-target-length", 1)
    done = train(tmp_path / "flip.toml", models["t5"], data, student, *how)
    assert done.returncode == 0, done.stderr
    done, metrics = evaluate(tmp_path / "flip.toml", student, student / "held_out.jsonl", tmp_path / "out")
    accuracy = counts_of(student)["held_out_accuracy"]
    assert metrics["overall"]["exact_match"]["value"] == accuracy > 0.5
    assert all(" " not in r["prediction"] for r in read_lines(tmp_path / "out" / "predictions.jsonl"))


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def test_labels_that_cannot_be_written_are_refused_before_training(home, models, tmp_path):
    def attempt(old, new, *args, model="t5"):
        task, rows = tmp_path / "task.toml", [pair(n) for n in range(40)]
        text = (home / "pairs.toml").read_text().replace('"seed.jsonl"', f'"{home}/seed.jsonl"')
        task.write_text(text.replace(f'"{old}" =' if " " in old else f"{old} =", f'"{new}" ='))
        data = write_lines(
            tmp_path / "d.jsonl", [r | {"label": new if r["label"] == old else r["label"]} for r in rows]
        )
        done = train(task, models[model], data, tmp_path / "s", "--num-train-epochs", 1, *args)
        assert (done.returncode == 1) is not (tmp_path / "s").exists()
        return done.stderr.splitlines()[-1]

    for model in ("t5", "bos"):
        told = attempt("Warm", "zebra", model=model)
        assert told.startswith(
            f"error: --model {models[model]}: its tokens write '' for 'zebra', the label 'zebra'; rename"
        )
    told = attempt("Warm", "not \u00e9 warm")
    assert "its tokens write 'not warm' for 'not \u00e9 warm', the label 'not \u00e9 warm'; rename" in told
    told = attempt("Warm", "Warm", "--max-target-length", 2)
    assert told.startswith(
        "error: --max-target-length 2: the label 'not warm' takes 3 tokens, its end included; give 3"
    )
    assert "held-out accuracy" in attempt("Warm", "zebra", model="bert")  # a class needs no tokens


def test_a_label_s_name_is_no_prediction_of_a_student(home, models, tmp_path):
    """The target is "it is: Warm". Of a teacher "Warm" stands for it; a student that writes "Warm" is wrong everywhere."""
    text = (home / "pairs.toml").read_text().replace('target = "$label"', 'target = "a $label"')
    (tmp_path / "pairs.toml").write_text(text.replace('"seed.jsonl"', f'"{home}/seed.jsonl"'))
    rows = [pair(n) | {"prediction": pair(n)["label"], "teacher_label": pair(n)["label"]} for n in range(6)]
    data = write_lines(tmp_path / "test.jsonl", rows)
    for field, right in (("teacher_label", 1.0), ("prediction", 0.0)):
        done = call(
            "evaluate.py", "--task-file", tmp_path / "pairs.toml", "--prediction-field", field, "--test-file", data,
            "--output-dir", tmp_path / field,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / field / "metrics.json").read_text())["overall"]["accuracy"]["value"] == right


# ---------------------------------------------------------------------------------------------------------------------
# What the student was trained with


def test_a_student_is_measured_with_the_lengths_of_its_training(home, models, tmp_path):
    student, data, task = tmp_path / "student", home / "flip_train.jsonl", home / "flip.toml"
    lengths = ("--max-source-length", 4, "--max-target-length", 2)
    assert train(task, models["t5"], data, student, *TRAINING, *lengths).returncode == 0
    assert json.loads((student / "gold.json").read_text()) == {
        "max_source_length": 4, "max_target_length": 2, "dtype": "float32", "source": "flip: $text", "target": "$answer",
    }  # fmt: skip

    def options(output):
        return {k: v for k, v in json.loads(output.read_text())["options"].items() if "length" in k}

    done, _ = evaluate(task, student, data, tmp_path / "a")
    assert "was trained with" not in done.stderr
    assert options(tmp_path / "a" / "predictions.jsonl.run.json") == {"max_source_length": 4, "max_target_length": 2}
    done, _ = evaluate(task, student, data, tmp_path / "b", *lengths)  # the same as options: nothing to say
    assert "was trained with" not in done.stderr
    assert read_lines(tmp_path / "a" / "predictions.jsonl") == read_lines(tmp_path / "b" / "predictions.jsonl")
    done, _ = evaluate(task, student, data, tmp_path / "c", "--max-source-length", 512)
    assert done.stderr.splitlines()[0] == f"--max-source-length 512: {student} was trained with 4"
    assert options(tmp_path / "c" / "predictions.jsonl.run.json") == {"max_source_length": 512, "max_target_length": 2}
    done, _ = evaluate(task, models["t5"], data, tmp_path / "d")  # a base model
    assert options(tmp_path / "d" / "predictions.jsonl.run.json") == {
        "max_source_length": 512,
        "max_target_length": 128,
    }
    done = call(
        "score_ood.py", "--task-file", task, "--model", student, "--input-file", data, "--output-file", tmp_path / "s.jsonl",
        "--score", "energy_padded", "--max-target-length", 3,
    )  # fmt: skip
    assert done.stderr.splitlines()[0] == f"--max-target-length 3: {student} was trained with 2"
    assert options(tmp_path / "s.jsonl.run.json") == {"max_source_length": 4, "max_target_length": 3}


def test_another_prompt_than_that_of_the_training_is_said(home, trained, tmp_path):
    text = (
        (home / "flip.toml")
        .read_text()
        .replace("flip: $text", "turn: $text")
        .replace('"flip_seed', f'"{home}/flip_seed')
    )
    (tmp_path / "flip.toml").write_text(text)
    data = write_lines(tmp_path / "test.jsonl", [flipped(n) for n in range(4)])
    done, _ = evaluate(tmp_path / "flip.toml", trained["flip"], data, tmp_path / "out")
    told = f"student.source is 'turn: $text': {trained['flip']} was trained with 'flip: $text'"
    assert done.stderr.splitlines()[0] == f"{tmp_path / 'flip.toml'}: {told}"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"max_source_length": 9}', '{"max_source_length": 9, "max_target_length": "9"}']
)
def test_what_it_was_trained_with_must_be_readable(content, home, trained, tmp_path):
    shutil.copytree(trained["flip"], tmp_path / "student")
    (tmp_path / "student" / "gold.json").write_text(content)
    done = call(
        "evaluate.py", "--task-file", home / "flip.toml", "--model", tmp_path / "student", "--test-file",
        home / "flip_train.jsonl", "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith(
        f"error: {tmp_path / 'student' / 'gold.json'}: must hold the lengths"
    )
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
