"""What is finished stays: hand edits, changed options."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, call, command_of, copy_of, loop, one_error, read_lines, write_lines

pytestmark = pytest.mark.engine


def test_a_hand_edit_is_kept_and_the_printed_commands_lead_on(finished, embedded, tmp_path):
    """The loop stops where the edit has a consequence; the very command that is printed is run. Then each later stage so."""
    copy = copy_of(finished, tmp_path)
    train = copy / "iter-00" / "train.jsonl"
    rows = read_lines(train)[1:]
    rows[0] = {k: v for k, v in rows[0].items() if k not in ("source", "target")} | {"review": "I took this one out."}
    write_lines(train, rows)
    edited = train.read_text()

    def refused(said: str, output: str) -> str:
        """The command that is printed for an output."""
        one_error(said, f"error: {copy / output}: --")
        return re.search(r" has changed since this was made \(.*\); to make it anew: (.*)", said)[1]

    stopped = loop(copy, embedded)
    assert stopped.returncode == 1, stopped.stdout[-3000:]
    command = refused(stopped.stdout, "iter-00/student")
    assert command.startswith(f"{os.path.relpath(sys.executable, ROOT)} ")
    once = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert once.returncode == 0, once.stderr
    for output in ("iter-00/predictions.jsonl", "iter-00/scored.jsonl", "iter-01/train.jsonl", "iter-01/student"):
        script, words = command_of(finished, copy, output)
        done = call(script, *words)
        assert done.returncode == 1
        script, *words = shlex.split(refused(done.stderr, output))[1:]
        if script.endswith("generate.py"):  # what it makes anew is tested with it
            continue
        done = call(Path(script).name, *words)
        assert done.returncode == 0, done.stderr
    assert train.read_text() == edited
    counts = json.loads((copy / "iter-01/student.run.json").read_text())["counts"]
    assert counts["train_examples"] + counts["held_out_examples"] == 159


CHANGED = {  # output: {option: another value}
    "iter-01/train.jsonl": {
        "--num-examples": 79, "--num-validation": 59, "--num-fewshot": 2, "--feedback-rate": 0.4, "--num-feedback-shots": 1,
        "--temperature": 0.9, "--validation-temperature": 1.1, "--top-p": 0.9, "--top-k": 5, "--min-p": 0.1, "--max-tokens": 99,
        "--chat-template-kwargs": '{"a": 1}', "--seed": 1, "--feedback-label": "same", "--structured": None,
        "--dtype": "float32",
    },
    "iter-01/student": {
        "--loss": "sce", "--sce-beta": 0.2, "--learning-rate": 1e-3, "--num-train-epochs": 3.0,
        "--per-device-train-batch-size": 8, "--gradient-accumulation-steps": 2, "--lr-scheduler-type": "cosine",
        "--warmup-ratio": 0.2, "--weight-decay": 0.0,
        "--max-source-length": 99, "--max-target-length": 9, "--seed": 1, "--dtype": "float32", "--limit": 99,
    },
    "iter-01/scored.jsonl": {
        "--score": "nll", "--low": 0.4, "--high": 0.9, "--energy-temperature": 2.0, "--max-source-length": 99,
        "--max-target-length": 9, "--seed": 1, "--dtype": "bfloat16", "--limit": 59,
    },
    "iter-01/predictions.jsonl": {
        "--num-resamples": 999, "--max-source-length": 99, "--max-target-length": 9, "--dtype": "bfloat16", "--seed": 1,
        "--limit": 99,
    },
}  # fmt: skip
FREE = {  # options that change no result: never compared
    "iter-01/train.jsonl": ["--max-attempts", 999, "--max-model-len", 400],
    "iter-01/student": [],
    "iter-01/scored.jsonl": ["--per-device-eval-batch-size", 3],
    "iter-01/predictions.jsonl": ["--per-device-eval-batch-size", 3],
}


@pytest.mark.parametrize("output", CHANGED)
def test_any_other_option_is_refused_by_name(output, finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    script, words = command_of(finished, folder, output)
    before = {p: p.read_bytes() for p in (folder / "iter-01").rglob("*") if p.is_file()}
    done = call(script, *words, *FREE[output])
    assert done.returncode == 0 and "up to date" in done.stderr, done.stderr
    for option, value in CHANGED[output].items():
        done = call(script, *words, option, *([] if value is None else [value]))
        assert done.returncode == 1, f"{option} {value}: {done.stderr}"
        one_error(done.stderr, "was made with", option, ", now ")
        assert done.stderr.rstrip().endswith("--overwrite")
    assert {p: p.read_bytes() for p in (folder / "iter-01").rglob("*") if p.is_file()} == before
