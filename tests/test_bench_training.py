"""bench/training.py at its tiniest, and bench/shapes.py."""

import json

import pytest
from conftest import fitted

from bench import training
from bench.shapes import TASK_FILE, build, reviews
from gold.task import load_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


def test_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        training, "read_examples", lambda path, task: reviews(20, seed=2)
    )  # for the thousand of the test set
    how = {"num_examples": 48, "epochs": 2, "repeats": 1, "target_accuracy": 0}
    training.main(["tiny-t5"], None, **how, folder=folder, output_file=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"machine", "speed", "to_accuracy", "shares", "versions", "git_commit"} <= found.keys()
    (row,) = found["speed"]
    assert row["shape"] == "tiny-t5" and row["examples"] == 16 and len(row["ratio"]) == 3
    way = found["to_accuracy"]
    # Any first epoch is enough for an accuracy of 0, and the clock of both went on in the second
    assert way["both_reached"] == 1 and len(way["ratio"]) == 3
    for curves in way["curves"].values():
        assert [len(curve) for curve in curves] == [2] and 0 < curves[0][0][0] < curves[0][1][0]
    for shares in found["shares"].values():
        assert sum(shares["shares"].values()) == pytest.approx(1, abs=2e-3)
        assert {"forward", "backward", "optimiser", "data", "evaluate", "save", "other"} <= shares["shares"].keys()
    printed = capsys.readouterr().out
    assert printed.count("tiny-t5") == 2 and "to accuracy 0" in printed
    with pytest.raises(SystemExit, match="--shape t6: no such shape; choose from t5-base"):
        training.main(["t6"])


@pytest.mark.parametrize(
    "shape, family", [("tiny-t5", "encoder-decoder"), ("tiny-bert", "encoder"), ("tiny-qwen", "decoder")]
)
def test_both_ways_measure_alike(shape, family, folder, tmp_path):
    """A student of ours has, padded to the fixed length, the accuracy that was measured without padding."""
    task, rows, test = load_task(TASK_FILE), reviews(32, seed=1), reviews(24, seed=2)
    how = {"num_train_epochs": 3, "per_device_train_batch_size": 16}
    student, counts, _ = fitted(build(shape, folder), task, rows, test, tmp_path / "student", **how)
    assert student.family == counts["family"] == family
    data = training.padded(test, student)
    wide = {"tiny-t5": (128, 32), "tiny-qwen": (160, 160)}.get(shape, (128,))
    assert (data["input_ids"].shape[1], *data["labels"].shape[1:]) == wide
    assert training.accuracy(student.network, data, family, "cpu") == pytest.approx(
        counts["held_out_accuracy"], abs=1e-3
    )
    times = training.authors_way(task, str(build(shape, folder)), rows, 2, 0, 1e-2, test)
    assert times[0][0] < times[1][0] and all(0 <= reached <= 1 for _, reached in times)
