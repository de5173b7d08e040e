"""train_student.py --report-to: losses and accuracy go to a tracker; the student stays what it is without."""

import json
import sys

import pytest
from conftest import call, one_error, read_lines

from gold.fingerprint import fingerprint


def train(home, models, output, *args):
    return call(
        "train_student.py", "--task-file", home / "pairs.toml", "--model", models["t5"], "--num-train-epochs", 2,
        "--train-file", home / "train.jsonl", "--output-dir", output, *args,
    )  # fmt: skip


def test_curves_of_tensorboard(home, models, tmp_path):
    """The curves are those of training_log.jsonl. They change neither the student nor its fingerprint."""
    pytest.importorskip("tensorboard", reason="of tests/requirements.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "student"
    assert train(home, models, tmp_path / "plain").returncode == 0
    done = train(home, models, output, "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    [events] = output.glob("runs/*/*tfevents*")
    curves = EventAccumulator(str(events)).Reload()
    for curve, name in (("train/loss", "loss"), ("eval/accuracy", "eval_accuracy")):
        wanted = [(line["step"], line[name]) for line in read_lines(output / "training_log.jsonl") if name in line]
        assert [(e.step, pytest.approx(e.value)) for e in curves.Scalars(curve)] == wanted
    assert json.loads((tmp_path / "student.run.json").read_text())["options"]["report_to"] == "tensorboard"
    assert fingerprint(output, tmp_path) == fingerprint(tmp_path / "plain", tmp_path)
    done = train(home, models, output)
    assert done.returncode == 0 and "up to date" in done.stderr


def test_a_tracker_that_is_not_installed(home, models, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    done = train(home, models, tmp_path / "student", "--report-to", "wandb")
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    one_error(done.stderr, "--report-to wandb", f"{sys.executable} -m pip install wandb")
