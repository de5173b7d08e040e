"""--loss kl: soft labels, of a classifier's distribution and of answers that a student writes."""

import json
import math

import pytest
from conftest import call, flipped, one_error, pair, read_lines, scores_of, write_lines

from gold.examples import read_examples
from gold.trainer import token_losses
from train_student import is_held_out, soft_examples

KL = ("--loss", "kl", "--num-train-epochs", "25", "--learning-rate", "1e-2", "--per-device-train-batch-size", "20")
SHARES = {"Warm": 0.7, "not warm": 0.3}


def train(home, model, rows, folder, *args, task="pairs.toml"):
    data = write_lines(folder / "soft.jsonl", rows)
    return call(
        "train_student.py", "--task-file", home / task, "--model", model, "--output-dir", folder / "s", "--train-file", data,
        *KL, *args,
    )  # fmt: skip


def counts_of(folder):
    return json.loads((folder / "s.run.json").read_text())["counts"]


def test_by_hand():
    """p = 1/4, 3/4. Soft labels .5, .5: (ln 4 + ln 4/3) / 2. A row of weight .3, two tokens: .3 ln 4, .3 ln 4/3."""
    import torch

    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    soft = token_losses(logits, torch.tensor([0]), "kl", soft=torch.tensor([[0.5, 0.5]]))
    assert soft.tolist() == pytest.approx([(math.log(4) + math.log(4 / 3)) / 2], abs=1e-6)
    grid, labels = logits.expand(2, 3, 2), torch.tensor([[0, 1, -100], [-100, -100, 1]])
    weighted = token_losses(grid, labels, "kl", soft=torch.tensor([0.3, 1.0]))
    assert weighted.tolist() == pytest.approx([0.3 * math.log(4), 0.3 * math.log(4 / 3), math.log(4 / 3)], abs=1e-6)


def test_copies_by_answer(pairs, flip):
    rows = [pair(0) | {"id": "a", "label_probs": SHARES}]
    assert [e["soft"] for e in soft_examples(rows, pairs, "encoder")] == [[0.7, 0.3]]
    found = [(e["target"], e["soft"]) for e in soft_examples(rows, pairs, "decoder")]
    assert found == [("Warm", 0.7), ("not warm", 0.3)]
    rows = [flipped(0) | {"id": "b", "label_probs": {"sun beach": 0.795, "beach": 0.2, "sun": 0.005}}]
    assert [e["target"] for e in soft_examples(rows, flip, "encoder-decoder")] == ["sun beach", "beach"]


@pytest.mark.parametrize(
    "probs",
    [None, [0.5, 0.5], {"Warm": 1.0}, {"Warm": 0.7, "not warm": 0.7}, {"Warm": 1.2, "not warm": -0.2}, {"Warm": "1"}],
)
def test_what_is_no_distribution_is_refused(probs, models, home, tmp_path):
    rows = [pair(n) | {"id": f"x{n}", "label_probs": SHARES} for n in range(20)]
    assert not is_held_out("x7")
    rows[7] |= {"label_probs": probs}
    done = train(home, models["bert"], rows, tmp_path)
    assert done.returncode == 1 and not (tmp_path / "s").exists()
    one_error(done.stderr, "error: --loss kl: x7: label_probs must hold a share of every label, which sum to 1")


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_a_student_takes_over_the_shares(name, models, home, pairs, tmp_path):
    """Texts that only the teacher has labelled, always .7 to .3: that is what the student comes to think of any text."""
    rows = [{k: v for k, v in pair(n).items() if k != "label"} | {"id": f"own-{n}"} for n in range(40)]
    done = train(home, models[name], [r | {"teacher_label": "Warm", "label_probs": SHARES} for r in rows], tmp_path)
    assert done.returncode == 0, done.stderr
    counts = counts_of(tmp_path)
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
    rows = [flipped(n) | {"id": f"own-{n}", "label_probs": {flipped(n)["answer"]: 1.0}} for n in range(30)]
    rows += [{"text": "sun lake", "id": f"none-{n}", "teacher_label": "", "label_probs": {}} for n in range(5)]
    rows[2] |= {"answer": None, "teacher_label": "sun beach"}
    done = train(home, models["t5"], rows, tmp_path, "--num-train-epochs", 1, task="flip.toml")
    assert done.returncode == 0, done.stderr
    assert "5 of 35 records have no answer of the teacher: left out" in done.stderr
    counts = counts_of(tmp_path)
    assert counts["without_answer"] == 5 and counts["train_examples"] + counts["held_out_examples"] == 30
    nobody = [{k: v for k, v in pair(n).items() if k != "label"} for n in range(20)]
    done = train(home, models["bert"], nobody, tmp_path, "--overwrite")
    assert done.returncode == 1 and "neither 'label' nor a teacher_label" in done.stderr
