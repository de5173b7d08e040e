"""train_student.py with soft labels (--loss kl), adapters (--lora-rank) and trackers (--report-to)."""

import math
import sys

import pytest
from conftest import flipped, one_error, pair, read_lines, record_of, refusal, scores_of, train, write_lines

from gold.examples import read_examples
from gold.fingerprint import fingerprint
from gold.soft_labels import weighted
from gold.trainer import token_losses
from train_student import is_held_out

# ---------------------------------------------------------------------------------------------------------------------
# Soft labels, of a classifier's distribution and of answers that a student writes

KL = ("--loss", "kl", "--num-train-epochs", "25", "--learning-rate", "1e-2", "--per-device-train-batch-size", "20")
SHARES = {"Warm": 0.7, "not warm": 0.3}


def test_what_the_teacher_is_surer_of_counts_more(pairs):
    """Shares .9, .3 and .6 of the answers: weights 1.5, .5, 1, whose mean is 1."""
    rows = [pair(n) | {"id": f"x{n}"} for n in range(3)]
    for r, share in zip(rows, (0.9, 0.3, 0.6), strict=True):
        other = next(name for name in pairs.labels if name != r["label"])
        r["label_probs"] = {other: 1 - share, r["label"]: share}
    assert [e["weight"] for e in weighted(rows, pairs)] == pytest.approx([1.5, 0.5, 1.0])
    # One that no teacher labelled weighs as one that it is sure of: shares .9 and 1
    mixed = weighted([rows[0], pair(5) | {"id": "y"}], pairs)
    assert [e["weight"] for e in mixed] == pytest.approx([0.9 / 0.95, 1 / 0.95])
    assert "no example has label_probs; run label.py" in refusal(weighted, [pair(5) | {"id": "y"}], pairs)
    assert refusal(weighted, [rows[0] | {"label_probs": {}}], pairs).startswith(
        "error: --confidence-weights: x0: label_probs must hold a share of its answer"
    )


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_an_example_of_no_weight_teaches_nothing(name, home, models, pairs, tmp_path):
    """Half of the labels are wrong, and weigh nothing: the student learns the others, and gets the wrong ones right."""
    rows = [pair(n) | {"id": f"x{n}"} for n in range(80)]
    wrong = {"Warm": "not warm", "not warm": "Warm"}
    for n, r in enumerate(rows):
        true = r["label"]
        r["label"] = wrong[true] if n % 4 > 1 and not is_held_out(r["id"]) else true
        r["label_probs"] = {true: 1.0, wrong[true]: 0.0}
    how = ("--confidence-weights", "--num-train-epochs", 25, "--learning-rate", "1e-2")
    done = train(home, models[name], tmp_path / "s", *how, data=write_lines(tmp_path / "rows.jsonl", rows))
    assert done.returncode == 0, done.stderr
    found = scores_of(tmp_path / "s", pairs, read_examples(home / "test.jsonl", pairs))
    assert sum(s["correct"] for s in found) / len(found) > 0.85


def train_soft(home, model, rows, folder, *args, **how):
    return train(home, model, folder / "s", *KL, *args, data=write_lines(folder / "soft.jsonl", rows), **how)


def test_kl_by_hand():
    """p = 1/4, 3/4. Soft labels .5, .5: (ln 4 + ln 4/3) / 2. A row of weight .3, two tokens: .3 ln 4, .3 ln 4/3."""
    import torch

    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    soft = token_losses(logits, torch.tensor([0]), "kl", soft=torch.tensor([[0.5, 0.5]]))
    assert soft.tolist() == pytest.approx([(math.log(4) + math.log(4 / 3)) / 2], abs=1e-6)
    grid, labels = logits.expand(2, 3, 2), torch.tensor([[0, 1, -100], [-100, -100, 1]])
    weighted = token_losses(grid, labels, "kl", soft=torch.tensor([0.3, 1.0]))
    assert weighted.tolist() == pytest.approx([0.3 * math.log(4), 0.3 * math.log(4 / 3), math.log(4 / 3)], abs=1e-6)


@pytest.mark.parametrize(
    "probs", [None, {"Warm": 1.0}, {"Warm": 0.7, "not warm": 0.7}, {"Warm": 1.2, "not warm": -0.2}]
)
def test_what_is_no_distribution_is_refused(probs, models, home, tmp_path):
    rows = [pair(n) | {"id": f"x{n}", "label_probs": SHARES} for n in range(20)]
    assert not is_held_out("x7")
    rows[7] |= {"label_probs": probs}
    done = train_soft(home, models["bert"], rows, tmp_path)
    assert done.returncode == 1 and not (tmp_path / "s").exists()
    one_error(done.stderr, "error: --loss kl: x7: label_probs must hold a share of every label, which sum to 1")


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_a_student_takes_over_the_shares(name, models, home, pairs, tmp_path):
    """Texts that only the teacher has labelled, always .7 to .3: that is what the student comes to think of any text."""
    rows = [{k: v for k, v in pair(n).items() if k != "label"} | {"id": f"own-{n}"} for n in range(40)]
    rows = [r | {"teacher_label": "Warm", "label_probs": SHARES} for r in rows]
    done = train_soft(home, models[name], rows, tmp_path)
    assert done.returncode == 0, done.stderr
    counts = record_of(tmp_path / "s")["counts"]
    assert counts["soft_targets"] == counts["train_examples"] * (1 if name == "bert" else 2)
    log = read_lines(tmp_path / "s" / "training_log.jsonl")
    assert all(math.isfinite(r["eval_loss"]) for r in log if "eval_loss" in r)
    examples = read_examples(tmp_path / "soft.jsonl", pairs, answers=False)
    scores = scores_of(tmp_path / "s", pairs, [e | {"label": "Warm", "target": "Warm"} for e in examples])
    assert {s["prediction"] for s in scores} == {"warm"}
    # "Warm" and the end token of a student that writes: the choice is the first token, the rest is certain
    expected = -math.log(0.7) / (1 if name == "bert" else 2)
    assert sum(s["nll"] for s in scores) / len(scores) == pytest.approx(expected, abs=0.06)


def test_records_that_the_teacher_could_not_answer_are_left_out(models, home, tmp_path):
    """And of several answers those of next to no share."""
    rows = [
        flipped(n) | {"id": f"own-{n}", "label_probs": {flipped(n)["answer"]: 0.995, "sun": 0.005}} for n in range(30)
    ]
    rows += [{"text": "sun lake", "id": f"none-{n}", "teacher_label": "", "label_probs": {}} for n in range(5)]
    rows[2] |= {"answer": None, "teacher_label": "sun beach"}
    done = train_soft(home, models["t5"], rows, tmp_path, "--num-train-epochs", 1, task="flip.toml")
    assert done.returncode == 0, done.stderr
    assert "5 of 35 records have no shares of the teacher's answers: left out" in done.stderr
    counts = record_of(tmp_path / "s")["counts"]
    assert counts["without_answer"] == 5 and counts["train_examples"] + counts["held_out_examples"] == 30
    assert counts["soft_targets"] == counts["train_examples"]
    nobody = [{k: v for k, v in pair(n).items() if k != "label"} for n in range(20)]
    done = train_soft(home, models["bert"], nobody, tmp_path, "--overwrite")
    assert done.returncode == 1 and "neither 'label' nor a teacher_label" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Adapters are trained, the folder holds a model like any other


@pytest.mark.parametrize("name", ["t5", "qwen2"])
def test_adapters_are_merged_into_the_model(name, models, home, pairs, tmp_path):
    """The weights change by a matrix of rank 2 in linear layers, and nowhere else. The best epoch's are those that stay."""
    pytest.importorskip("peft", reason="of requirements-extra.txt")
    import torch
    from safetensors.torch import load_file

    output = tmp_path / "student"
    done = train(home, models[name], output, "--lora-rank", 2, "--learning-rate", 2e-2, "--num-train-epochs", 6)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (models[name], output))
    assert before.keys() == after.keys() and not list(output.glob("adapter*"))
    changes = {key: after[key] - before[key] for key in before if not torch.equal(after[key], before[key])}
    assert len(changes) > 4 and not [key for key in changes if "embed" in key or "norm" in key or "lm_head" in key]
    assert {int(torch.linalg.matrix_rank(change, rtol=1e-3)) for change in changes.values()} <= {1, 2}
    held_out = read_examples(output / "held_out.jsonl", pairs)
    correct = [s["correct"] for s in scores_of(output, pairs, held_out)]
    counts = record_of(output)["counts"]
    assert sum(correct) / len(correct) == pytest.approx(counts["held_out_accuracy"], abs=1e-4)
    losses = [line["loss"] for line in read_lines(output / "training_log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_where_adapters_cannot_be(models, home, tmp_path, monkeypatch):
    done = train(home, models["bert"], tmp_path / "a", "--lora-rank", 2)
    assert done.returncode == 1
    one_error(done.stderr, "--lora-rank: is for T5 and decoder-only students")
    monkeypatch.setitem(sys.modules, "peft", None)
    done = train(home, models["t5"], tmp_path / "b", "--lora-rank", 2)
    assert done.returncode == 1
    one_error(done.stderr, "--lora-rank needs peft", "requirements-extra.txt")


# ---------------------------------------------------------------------------------------------------------------------
# Losses and accuracy go to a tracker; the student stays what it is without


def test_curves_of_tensorboard(home, models, tmp_path):
    """The curves are those of training_log.jsonl. They change neither the student nor its fingerprint."""
    pytest.importorskip("tensorboard", reason="of tests/requirements.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, two = tmp_path / "student", ("--num-train-epochs", 2)
    assert train(home, models["t5"], tmp_path / "plain", *two).returncode == 0
    done = train(home, models["t5"], output, *two, "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    [events] = output.glob("runs/*/*tfevents*")
    curves = EventAccumulator(str(events)).Reload()
    for curve, name in (("train/loss", "loss"), ("eval/accuracy", "eval_accuracy")):
        wanted = [(line["step"], line[name]) for line in read_lines(output / "training_log.jsonl") if name in line]
        assert [(e.step, pytest.approx(e.value)) for e in curves.Scalars(curve)] == wanted
    assert record_of(output)["options"]["report_to"] == "tensorboard"
    assert fingerprint(output, tmp_path) == fingerprint(tmp_path / "plain", tmp_path)
    done = train(home, models["t5"], output, *two)
    assert done.returncode == 0 and "up to date" in done.stderr


def test_a_tracker_that_is_not_installed(home, models, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    done = train(home, models["t5"], tmp_path / "student", "--report-to", "wandb")
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    one_error(done.stderr, "--report-to wandb", f"{sys.executable} -m pip install wandb")
