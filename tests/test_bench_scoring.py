"""bench/startup.py, bench/records.py and bench/scoring.py at their tiniest. No time is asserted."""

import contextlib
import json
from unittest.mock import Mock

import pytest
from conftest import ROOT, write_lines

from bench import records, scoring, startup

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
    assert [(row["way"], row["records"]) for row in rows] == [
        (way, n) for n in (200, 400) for way in ("select", "resume", "shown")
    ]
    assert all(row["peak_mib"][0] > 1 and row["seconds"][0] > 0 for row in rows)


def test_scoring(tmp_path, monkeypatch, capsys):
    lines = (ROOT / "data/reviews/test.jsonl").read_text().splitlines()
    short, output = write_lines(tmp_path / "mine.jsonl", [json.loads(line) for line in lines[:9]]), tmp_path / "record"
    how = {"task_file": scoring.TASK_FILE, "input_file": [short], "num_examples": 12, "repeats": 1, "memory_repeats": 0}
    scoring.main(CONTEXT, ["tiny-t5", "tiny-qwen"], embedded=False, **how, shapes_dir=tmp_path, output_file=output)
    rows = json.loads(output.read_text())["speed"]  # it compares the energies of all ways
    assert [(r["model"], r["examples"]) for r in rows] == [(m, n) for m in ("tiny-t5", "tiny-qwen") for n in (12, 9)]
    for row in rows:
        assert {"plain", "score_ood", "energies"} <= set(row["ratios"])
        assert max(row["largest_differences"].values()) <= 1e-4
        assert ("energy_padded" in row["largest_differences"]) == (row["model"] == "tiny-t5")
    for way in ("score_ood", "full"):
        scoring.peak(str(tmp_path / "tiny-t5"), way, "label")
        float(capsys.readouterr().out.splitlines()[-1])  # MiB
