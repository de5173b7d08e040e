"""bench/startup.py, bench/records.py and bench/scoring.py at their tiniest, and batches by tokens. No time is asserted."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, call, pair, write_lines

import score_ood
from records import iter_examples, read_examples, records_at, write_records
from score_ood import score_examples, select_feedback


def bench(name: str, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"bench.{name}", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)


def test_startup(tmp_path):
    done = bench("startup", "--repeats", 1, "--output-file", tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())  # written before the limit is looked at
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    assert [row["command"] for row in record["rows"]] == [
        "-c pass", "generate.py", "score_ood.py", "train_student.py", "evaluate.py", "report.py",
    ]  # fmt: skip
    assert all(0 < row["seconds"][1] <= row["seconds"][0] <= row["seconds"][2] for row in record["rows"])


def test_records(tmp_path):
    done = bench("records", "--size", 200, "--size", 400, "--repeats", 1, "--output-file", tmp_path / "record.json")
    assert done.returncode == 0, done.stderr  # it compares what the ways have read and selected
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(row["way"], row["records"]) for row in record["rows"]] == [
        (way, n) for n in (200, 400) for way in ("select", "resume", "shown")
    ]
    assert all(row["peak_mib"][0] > 1 and row["seconds"][0] > 0 for row in record["rows"])


def test_scoring_names_what_is_missing(tmp_path):
    for option, value, told in (("--model", tmp_path / "none", "build_models"), ("--shape", "huge", "tiny-t5")):
        done = bench("scoring", option, value, "--no-embedded")
        assert done.returncode == 1 and done.stderr.startswith(f"error: {option} {value}: ") and told in done.stderr


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
    examples = [*examples[:9], long]
    whole = score_examples(examples, pairs, str(models[name]))
    shapes = []
    load = score_ood.load_student

    def loaded(*args):
        network, *rest = load(*args)
        network.register_forward_pre_hook(
            lambda module, given, named: (
                shapes.append(tuple(named["input_ids"].shape)) if "input_ids" in named else None
            ),
            with_kwargs=True,
        )
        return network, *rest

    monkeypatch.setattr(score_ood, "load_student", loaded)
    monkeypatch.setattr(score_ood, "EXAMPLE_TOKENS", 30)
    found = score_examples(examples, pairs, str(models[name]), batch_size=2)
    first = [shape for shape in shapes if shape[1] > 30]
    assert first and first[0][0] == 1 and max(shape[0] for shape in shapes) > 1  # longest first, and alone
    for one, other in zip(found, whole, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_stream_of_examples_is_the_list(tmp_path, pairs):
    path = write_lines(tmp_path / "some.jsonl", [pair(n) | {"group": n} for n in range(30)])
    whole = read_examples(path, pairs)
    assert list(iter_examples(path, pairs)) == whole
    kept = read_examples(path, pairs, keep=["id", "label", "nothing"])
    assert kept == [{"id": e["id"], "label": e["label"]} for e in whole]


def test_records_at_their_lines(tmp_path):
    rows = [{"id": str(n), "text": "\u00e4\u2028" * n} for n in range(12)]
    path = tmp_path / "some.jsonl"
    with path.open("w", encoding="utf-8") as file:
        write_records(file, rows)
    assert list(records_at(path, [7, 0, 11, 7])) == [rows[k] for k in (7, 0, 11, 7)]


def test_a_selection_from_a_stream_is_that_of_the_list(tmp_path, pairs):
    """score_ood.py without a student keeps little of each record; what it writes is whole, and selected as by the function."""
    rows = [
        pair(n) | {"id": f"x{n}", "energy": (n * 7 % 40) / 3, "correct": n % 3 > 0, "group": {"n": n}}
        for n in range(40)
    ]
    path = write_lines(tmp_path / "scored.jsonl", rows)
    done = call(
        "score_ood.py", "--task-file", pairs.path, "--input-file", path, "--output-file", tmp_path / "out.jsonl",
        "--feedback-file", tmp_path / "fb.jsonl", "--limit", 36,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole = read_examples(path, pairs)[:36]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert written == whole and list(written[0])[:6] == ["id", "first", "second", "label", "energy", "correct"]
    chosen = [json.loads(line) for line in (tmp_path / "fb.jsonl").open()]
    assert chosen == select_feedback(whole, pairs, "energy", 0.5, 0.8) and len(chosen) > 8
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert record["counts"] == {"scored": 36, "correct": sum(r["correct"] for r in whole), "selected": len(chosen)}
    assert record["means"] == {"energy": round(sum(r["energy"] for r in whole) / 36, 4)}
