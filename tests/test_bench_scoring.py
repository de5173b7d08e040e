"""bench/startup.py, bench/records.py and bench/scoring.py at their tiniest, and batches by tokens. No time is asserted."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, loaded, write_lines

from gold import predict
from gold.examples import read_examples


def bench(name: str, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"bench.{name}", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)


def test_startup(tmp_path):
    done = bench("startup", "--repeats", 1, "--output-file", tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())  # written before the limit is looked at
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    commands = [row["command"] for row in record["rows"]]
    stages = ["generate.py", "label.py", "train_student.py", "score_ood.py", "evaluate.py", "report.py"]
    assert commands[0] == "-c pass" and sorted(commands[1:]) == sorted(stages)
    assert all(0 < row["seconds"][1] <= row["seconds"][0] <= row["seconds"][2] for row in record["rows"])


def test_records(tmp_path):
    done = bench("records", "--size", 200, "--size", 400, "--repeats", 1, "--output-file", tmp_path / "record.json")
    assert done.returncode == 0, done.stderr  # it compares what the ways have read and selected
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(row["way"], row["records"]) for row in record["rows"]] == [
        (way, n) for n in (200, 400) for way in ("select", "resume", "shown")
    ]
    assert all(row["peak_mib"][0] > 1 and row["seconds"][0] > 0 for row in record["rows"])


@pytest.mark.parametrize("shape, peaks", [("tiny-t5", 0), ("tiny-qwen", 1)])
def test_scoring(shape, peaks, tmp_path):
    lines = (ROOT / "data/reviews/test.jsonl").read_text().splitlines()
    short = write_lines(tmp_path / "mine.jsonl", [json.loads(line) for line in lines[:9]])
    done = bench(
        "scoring", "--shape", shape, "--no-embedded", "--input-file", short, "--shapes-dir", tmp_path, "--num-examples", 12,
        "--repeats", 1, "--memory-repeats", peaks, "--output-file", tmp_path / "record.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # the energies of all ways agree
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(row["model"], row["examples"]) for row in record["speed"]] == [(shape, 12), (shape, 9)]
    for row in record["speed"]:
        assert {"plain", "score_ood", "energies"} <= set(row["ratios"])
        assert max(row["largest_differences"].values()) <= 1e-4
        assert ("energy_padded" in row["largest_differences"]) == (shape == "tiny-t5")
    cases = [(shape, case) for case in ("half target", "label")] if peaks else []
    assert [(row["model"], row["case"]) for row in record["memory"]] == cases


@pytest.mark.parametrize("name", ["t5", "qwen2", "bert"])
def test_batches_hold_so_many_tokens(name, models, home, pairs, monkeypatch):
    """Long examples come in small batches, short ones in large ones, and the scores do not depend on it."""
    examples = read_examples(home / "validation.jsonl", pairs)
    long = examples[0] | {"id": "long", "source": " ".join([examples[0]["source"]] * 20)}
    examples, student, shapes = [*examples[:9], long], loaded(models[name], pairs), []
    whole, _ = predict.score_examples(student, examples, 64)
    student.network.register_forward_pre_hook(
        lambda module, given, named: shapes.append(tuple(named["input_ids"].shape)) if "input_ids" in named else None,
        with_kwargs=True,
    )
    monkeypatch.setattr(predict, "EXAMPLE_TOKENS", 30)
    found, _ = predict.score_examples(student, examples, 2)
    first = [shape for shape in shapes if shape[1] > 30]
    assert first and first[0][0] == 1 and max(shape[0] for shape in shapes) > 1  # longest first, and alone
    for one, other in zip(found, whole, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
