"""bench/: each measurement at its tiniest, in the way of its command, and what its numbers rest on. No time is asserted."""

import contextlib
import gzip
import json
from unittest.mock import Mock

import pytest
from conftest import ROOT, write_lines

from bench import real_data, records, scoring, startup, strategies, strategies_report, training
from bench.shapes import reviews

CONTEXT = Mock(invoked_subcommand=None)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_startup(tmp_path, monkeypatch):
    assert sorted(startup.STAGES) == sorted(path.name for path in ROOT.glob("*.py"))
    monkeypatch.setattr(startup, "STAGES", ("report.py",))
    with contextlib.suppress(SystemExit):  # above the limit; the record is written before
        startup.main(1, tmp_path / "record.json")
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert [row["command"] for row in rows] == ["-c pass", "report.py"]
    assert all(0 < row["seconds"][1] <= row["seconds"][0] <= row["seconds"][2] for row in rows)


def test_records(tmp_path):
    records.main(CONTEXT, [200, 400], 1, tmp_path / "record.json")  # it compares what the ways have read and selected
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    ways = ("select", "resume", "shown")
    assert [(row["way"], row["records"]) for row in rows] == [(way, n) for n in (200, 400) for way in ways]
    assert all(row["peak_mib"][0] > 1 and row["seconds"][0] > 0 for row in rows)


def test_scoring(tmp_path, capsys):
    lines = (ROOT / "data/reviews/test.jsonl").read_text().splitlines()
    short, output = write_lines(tmp_path / "mine.jsonl", [json.loads(line) for line in lines[:9]]), tmp_path / "record"
    how = {"task_file": scoring.TASK_FILE, "input_file": [short], "num_examples": 12, "repeats": 1, "memory_repeats": 0}
    scoring.main(CONTEXT, ["tiny-t5", "tiny-qwen"], embedded=False, **how, shapes_dir=tmp_path, output_file=output)
    rows = json.loads(output.read_text())["speed"]  # it compares the energies of all ways
    assert [(r["model"], r["examples"]) for r in rows] == [(m, n) for m in ("tiny-t5", "tiny-qwen") for n in (12, 9)]
    for row in rows:
        assert {"plain", "score_ood", "energies"} <= set(row["ratios"])
        assert max(row["largest_differences"].values()) <= 1e-4
    scoring.peak(str(tmp_path / "tiny-t5"), "score_ood", "label")
    float(capsys.readouterr().out.splitlines()[-1])  # MiB


def test_training(tmp_path, monkeypatch, capsys):
    """For the thousand reviews of the test set stand twenty."""
    monkeypatch.setattr(training, "read_examples", lambda path, task: reviews(20, seed=2))
    how = {"num_examples": 48, "epochs": 2, "repeats": 1, "target_accuracy": 0}
    training.main(["tiny-t5"], None, **how, folder=tmp_path, output_file=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"machine", "speed", "to_accuracy", "shares", "versions", "git_commit"} <= found.keys()
    (row,) = found["speed"]
    assert row["shape"] == "tiny-t5" and row["examples"] == 16 and len(row["ratio"]) == 3
    # Any first epoch is enough for an accuracy of 0, and the clock of both went on in the second
    assert found["to_accuracy"]["both_reached"] == 1
    for curves in found["to_accuracy"]["curves"].values():
        assert [len(curve) for curve in curves] == [2] and 0 < curves[0][0][0] < curves[0][1][0]
    for shares in found["shares"].values():
        assert sum(shares["shares"].values()) == pytest.approx(1, abs=2e-3)
    assert "to accuracy 0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--shape t6: no such shape; choose from t5-base"):
        training.main(["t6"])


# ---------------------------------------------------------------------------------------------------------------------
# Strategies


def test_paired_differences_by_hand():
    """.1, .2 and .3 above the control: mean .2, deviation .1, t(2) = 4.3027, half-width 4.3027 * .1 / sqrt(3) = .2484."""
    runs = {("a", s): {"tail": 0.5 + d} for s, d in enumerate((0.1, 0.2, 0.3))}
    runs |= {("none", s): {"tail": 0.5} for s in range(4)}  # a seed that the arm has not yet
    found = strategies_report.differences(runs, "a", "none", "tail")
    assert found == pytest.approx([0.1, 0.2, 0.3])
    assert strategies_report.interval(found) == pytest.approx((0.2, 0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)


def test_the_results_that_are_committed_make_the_tables_that_are_committed():
    lines = [json.loads(line) for line in strategies.RESULTS.read_text().splitlines()]
    assert strategies_report.RESULTS.with_suffix(".md").read_text() == strategies_report.report(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Real data


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """(a folder of sets as --datasets wants it, what writes one); the benchmark's own files go to a folder beside."""
    monkeypatch.setattr(real_data, "WORK", tmp_path / "work")

    def write(name: str, rows: list[dict]) -> None:
        path = tmp_path / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

    return tmp_path, write


def test_rows_of_one_premise_stay_together_and_no_test_text_is_trained_on(datasets):
    folder, write = datasets
    row = {"label": "entailment"}
    rows = [row | {"premise": f"Lamp {i} is lit.", "hypothesis": f"Sun {i}{j}."} for i in range(400) for j in range(3)]
    write("lamps/train", rows)
    task = real_data.prepare_task("rte", folder)
    train, test = real_data.split(folder, task, "lamps/train", None)
    assert len(train) + len(test) == 1200 and len(test) % 3 == 0 and 200 < len(test) < 400  # 300, 5 standard errors: 78
    assert not {r["premise"] for r in train} & {r["premise"] for r in test}
    write("a/train", [{"text": "One lamp!", "label": "x"}, {"text": "Two lamps.", "label": "x"}])
    write("a/dev", [{"text": "one lamp", "label": "x"}])
    train, test = real_data.split(folder, real_data.prepare_task("sst2", folder), "a/train", "a/dev")
    assert [r["text"] for r in train] == ["Two lamps."] and [r["text"] for r in test] == ["one lamp"]


def test_plain_code_and_stages_learn_the_same_toy(datasets, models):
    """Words that tell the label: both ways get every example right; the steps are as many."""
    task, words = real_data.prepare_task("sst2", datasets[0]), {"negative": "cold", "positive": "warm"}
    rows = [{"text": f"{words[label]} pair {n % 9 + 1}", "label": label} for n in range(40) for label in task.labels]
    examples = real_data.examples_of(rows, task, "toy")
    options = {"learning_rate": 5e-3, "num_train_epochs": 4, "seed": 0, "per_device_train_batch_size": 8}
    arguments = (task, str(models["bert"]), examples, examples, real_data.BASE | options)
    results = [real_data.by_stages(*arguments, datasets[0] / "student"), real_data.by_plain_code(*arguments)]
    assert [(sum(correct), steps) for correct, steps in results] == [(80, 40), (80, 40)]
