"""What is finished stays: hand edits, changed options, files that grow or are made anew."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, call, copy_of, loop, one_error, read_lines, run

pytestmark = pytest.mark.engine
TASK = ("--task-file", ROOT / "prompts" / "reviews.toml")
TEST = ROOT / "data" / "reviews" / "test.jsonl"


def test_a_hand_edit_is_kept_and_the_printed_commands_lead_on(finished, embedded, tmp_path):
    """The very command that is printed is run, stage after stage, into the next iteration: each kind of stage once."""
    copy = copy_of(finished, tmp_path)
    train = copy / "iter-00" / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()][1:]
    rows[0] = {k: v for k, v in rows[0].items() if k not in ("source", "target")} | {"review": "I took this one out."}
    edited = "".join(json.dumps(row) + "\n" for row in rows)
    train.write_text(edited)
    stopped = []
    later = ["student", "scored.jsonl", "predictions.jsonl"]
    expected = [*(f"iter-00/{name}" for name in later), "iter-01/train.jsonl", "iter-01/student"]
    while stopped != expected:
        done = loop(copy, embedded)
        found = re.search(
            r"error: (\S+): --([\w-]+) has changed since this was made \(.*\); to make it anew: (.*)", done.stdout
        )
        assert done.returncode == 1 and found and len(stopped) < len(expected), done.stdout[-3000:]
        one_error(done.stdout)
        stopped.append(str(Path(found[1]).relative_to(copy)))
        assert found[3].startswith(f"{os.path.relpath(sys.executable, ROOT)} ")
        once = subprocess.run(found[3], shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
        assert once.returncode == 0, once.stderr
        assert train.read_text() == edited
    assert train.read_text() == edited
    counts = json.loads((copy / "iter-01/student.run.json").read_text())["counts"]
    assert counts["train_examples"] + counts["held_out_examples"] == 159


def commands_of(folder: Path, models: Path) -> dict[str, list]:
    """The commands that loop.sh ran in the second iteration of a tiny run."""
    first, here = folder / "iter-00", folder / "iter-01"
    return {
        "generate.py": ["sample", *TASK, "--model", models / "teacher", "--output-dir", here, "--num-examples", 80,
            "--num-validation", 60, "--feedback-file", first / "feedback.jsonl", "--exclude-file", first / "train.jsonl"],
        "train_student.py": [*TASK, "--model", models / "t5", "--output-dir", here / "student", "--num-train-epochs", 2,
            "--train-file", first / "train.jsonl", "--train-file", here / "train.jsonl"],
        "score_ood.py": [*TASK, "--model", here / "student", "--input-file", here / "validation.jsonl", "--output-file",
            here / "scored.jsonl", "--feedback-file", here / "feedback.jsonl"],
        "evaluate.py": [*TASK, "--model", here / "student", "--test-file", TEST, "--output-dir", here, "--group-by", "group"],
    }  # fmt: skip


CHANGED = {  # option: another value
    "generate.py": {
        "--num-examples": 79, "--num-validation": 59, "--num-fewshot": 2, "--feedback-rate": 0.4, "--num-feedback-shots": 1,
        "--temperature": 0.9, "--validation-temperature": 1.1, "--top-p": 0.9, "--top-k": 5, "--min-p": 0.1, "--max-tokens": 99,
        "--chat-template-kwargs": '{"a": 1}', "--seed": 1, "--feedback-label": "same", "--temperature-end": 0.5,
    },
    "train_student.py": {
        "--loss": "sce", "--learning-rate": 1e-3, "--num-train-epochs": 3.0, "--per-device-train-batch-size": 8,
        "--gradient-accumulation-steps": 2, "--lr-scheduler-type": "cosine", "--warmup-ratio": 0.2, "--weight-decay": 0.0,
        "--max-source-length": 99, "--max-target-length": 9, "--seed": 1, "--dtype": "float32", "--limit": 99,
    },
    "score_ood.py": {
        "--score": "nll", "--low": 0.4, "--high": 0.9, "--energy-temperature": 2.0, "--max-source-length": 99,
        "--max-target-length": 9, "--seed": 1, "--dtype": "bfloat16", "--limit": 59,
    },
    "evaluate.py": {
        "--num-resamples": 999, "--max-source-length": 99, "--max-target-length": 9, "--dtype": "bfloat16", "--seed": 1,
        "--limit": 99,
    },
}  # fmt: skip
FREE = {  # options that change no result: never compared
    "generate.py": ["--max-attempts", 999, "--dtype", "float32", "--max-model-len", 400, "--enforce-eager"],
    "train_student.py": [],
    "score_ood.py": ["--per-device-eval-batch-size", 3],
    "evaluate.py": ["--per-device-eval-batch-size", 3],
}


@pytest.mark.parametrize("script", CHANGED)
def test_any_other_option_is_refused_by_name(script, finished, embedded, tmp_path):
    folder = copy_of(finished, tmp_path)
    words = commands_of(folder, embedded)[script]
    if script == "train_student.py":  # what loop.sh chose for a model that is not one of its own
        words = [*words, "--learning-rate", "1e-4"]
    before = {p: p.read_bytes() for p in (folder / "iter-01").rglob("*") if p.is_file()}
    done = call(script, *words, *FREE[script])
    assert done.returncode == 0 and "up to date" in done.stderr, done.stderr
    for option, value in CHANGED[script].items():
        done = call(script, *words, option, value)
        assert done.returncode == 1, f"{option} {value}: {done.stderr}"
        one_error(
            done.stderr, f"was made with {option} ", f", now {json.loads(value) if '{' in str(value) else value}; give"
        )
        assert done.stderr.rstrip().endswith("--overwrite")
    assert {p: p.read_bytes() for p in (folder / "iter-01").rglob("*") if p.is_file()} == before


def test_raising_num_examples_extends_and_overwrite_begins_anew(finished, embedded, tmp_path):
    copy = copy_of(finished, tmp_path)
    words, train = commands_of(copy, embedded)["generate.py"], copy / "iter-01" / "train.jsonl"
    before, validation = read_lines(train), (copy / "iter-01" / "validation.jsonl").read_bytes()
    record = json.loads((copy / "iter-01" / "train.jsonl.run.json").read_text())
    done = run("generate.py", *words, "--num-examples", 88, "--enforce-eager")
    assert done.returncode == 0 and "up to date" in done.stderr, done.stderr
    assert read_lines(train)[:80] == before and len(read_lines(train)) == 88
    assert (copy / "iter-01" / "validation.jsonl").read_bytes() == validation
    extended = json.loads((copy / "iter-01" / "train.jsonl.run.json").read_text())
    assert extended["counts"]["completion_tokens"] > record["counts"]["completion_tokens"]  # of all the examples in it
    assert extended["seconds"] > record["seconds"]
    done = run("generate.py", *words, "--num-examples", 10, "--num-validation", 10, "--enforce-eager", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(read_lines(train)) == 10 and "up to date" not in done.stderr
