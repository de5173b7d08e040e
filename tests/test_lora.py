"""train_student.py --lora-rank: adapters are trained, the folder holds a model like any other."""

import json
import sys

import pytest
from conftest import call, one_error, read_lines, scores_of

from gold.examples import read_examples

pytest.importorskip("peft", reason="of requirements-extra.txt")


def train(home, model, output, *args):
    return call(
        "train_student.py", "--task-file", home / "pairs.toml", "--model", model, "--train-file", home / "train.jsonl",
        "--output-dir", output, *args,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["t5", "t5v11", "bos", "qwen2"])
def test_adapters_are_merged_into_the_model(name, models, home, pairs, tmp_path):
    """The weights change by a matrix of rank 2 in linear layers, and nowhere else. The best epoch's are those that stay."""
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
    counts = json.loads(output.with_name("student.run.json").read_text())["counts"]
    held_out = read_examples(output / "held_out.jsonl", pairs)
    correct = [s["correct"] for s in scores_of(output, pairs, held_out)]
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
