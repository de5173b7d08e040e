"""Nothing is lost: loop.sh killed and run again, a full disk, a read-only one, two at once; hand edits, other options."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, call, command_of, copy_of, loop, one_error, read_lines, run, write_lines

from bench.kill import differences, is_inside, kill_session, signal_session, wait_for

pytestmark = pytest.mark.engine
TASK = ("--task-file", ROOT / "prompts" / "reviews.toml")
TEST = ROOT / "data" / "reviews" / "test.jsonl"


# ---------------------------------------------------------------------------------------------------------------------
# Killed and run again


def test_killed_and_run_twice_at_once(finished, embedded, tmp_path):
    """A run that has all of this behind it is the same as one that nobody interrupted. bench/kill.py kills everywhere."""
    (whole, _), copy, log = finished, copy_of(finished, tmp_path), tmp_path / "log"
    script, words = command_of(finished, copy, "final/student")
    shutil.rmtree(copy / "final")
    (copy / "metrics.jsonl").unlink()
    # A loop while a stage of another one works, which stands still meanwhile; then that is killed in its training
    with log.open("w") as file:
        first = subprocess.Popen([sys.executable, ROOT / script, *words], cwd=ROOT, stderr=file, start_new_session=True)
    try:
        assert wait_for(first, lambda: is_inside(copy, log, "train", "final")), log.read_text()[-3000:]
        signal_session(first, signal.SIGSTOP)
        second = loop(copy, embedded)
        assert second.returncode == 1
        cure = f"end it: fuser {copy / 'final/student.lock'}"
        one_error(second.stdout, "final/student: another process is writing it", cure)
    finally:
        kill_session(first)
    again = loop(copy, embedded)
    assert again.returncode == 0, again.stdout[-3000:]
    # two splits, student, scores and metrics twice; untrained, the teacher's labels and metrics
    assert again.stdout.count("up to date") == 5 + 3 + 3
    assert differences(copy, whole) == []


# ---------------------------------------------------------------------------------------------------------------------
# A disk that is full, or may not be written


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB; `remount` makes it larger or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", "none", disk], check=True)


def fill(disk: Path, room: int) -> Path:
    """Take all but `room` bytes of a disk."""
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"x" * (free.f_bavail * free.f_bsize - room))
    return filler


def stages(finished, models: Path, out: Path) -> dict[str, tuple]:
    """Every script, once, with the inputs of a finished run and its output in `out`."""
    here = finished[0] / "iter-00"
    return {
        "generate.py": ("generate.py", *TASK, "--model", models / "teacher", "--output-dir", out / "iter-00",
            "--num-examples", 80, "--num-validation", 0, "--min-p", 0),
        "train_student.py": ("train_student.py", *TASK, "--model", models / "t5", "--train-file", here / "train.jsonl",
            "--output-dir", out / "student", "--num-train-epochs", 2),
        "score_ood.py": ("score_ood.py", *TASK, "--model", here / "student", "--input-file", here / "validation.jsonl",
            "--output-file", out / "scored.jsonl", "--feedback-file", out / "feedback.jsonl"),
        "evaluate.py": ("evaluate.py", *TASK, "--model", here / "student", "--test-file", TEST, "--output-dir", out,
            "--num-resamples", 100),
        "evaluate.py --prediction-field": ("evaluate.py", *TASK, "--prediction-field", "topic", "--test-file", TEST,
            "--output-dir", out),
        "report.py": ("report.py", out),
    }  # fmt: skip


ROOM = {  # bytes left, of which a state takes 4,096
    "generate.py": 48 * 1024, "train_student.py": 60 * 1024, "score_ood.py": 16 * 1024, "evaluate.py": 60 * 1024,
    "evaluate.py --prediction-field": 16 * 1024, "report.py": 0,
}  # fmt: skip


@pytest.mark.parametrize("stage", ROOM)
def test_a_full_disk_ends_every_stage_with_one_line_and_the_rerun_completes(stage, finished, embedded, disk):
    if stage == "report.py":  # all that it reads is small
        shutil.copytree(finished[0] / "iter-00", disk / "iter-00", ignore=shutil.ignore_patterns("student", "*jsonl"))
    filler = fill(disk, ROOM[stage])
    command = stages(finished, embedded, disk)[stage]
    start = run if stage == "generate.py" else call  # the engine ends with its process
    done = start(*command)
    assert done.returncode == 1, done.stderr
    cure = ": No space left on device; free some space and run again: what was written stays"
    one_error(done.stderr, f"error: {disk}", cure)
    if stage == "generate.py":  # the first chunk is there
        assert len((disk / "iter-00/train.jsonl.partial").read_bytes().splitlines()) > 40
    filler.unlink()
    remount(disk, "size=64m")
    done = start(*command)
    assert done.returncode == 0, done.stderr
    assert not list(disk.rglob("*.partial*"))
    assert ("going on after" in done.stderr) is (stage == "generate.py")
    for name in ("iter-00/train.jsonl", "scored.jsonl"):  # the same as where there was room from the beginning
        if (disk / name).exists():
            assert (disk / name).read_bytes() == (finished[0] / "iter-00" / Path(name).name).read_bytes()


def test_a_limit_of_the_size_of_files_does_so_too(finished, embedded, tmp_path):
    """`ulimit -f`, which needs no rights: what this tells of a full disk is tested on every machine."""
    command = stages(finished, embedded, tmp_path)["train_student.py"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        done = call(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 1
    one_error(done.stderr, f"error: {tmp_path}", "File too large", "raise the limit", "what was written stays")
    done = call(*command)
    assert done.returncode == 0, done.stderr


def test_a_read_only_folder(finished, embedded, disk):
    """The table of report.py is printed all the same; what cannot be kept is said."""
    remount(disk, "size=1m")
    shutil.copytree(finished[0] / "iter-00", disk / "iter-00", ignore=shutil.ignore_patterns("student", "*jsonl"))
    remount(disk, "ro")
    for stage, command in stages(finished, embedded, disk).items():
        done = call(*command)
        assert done.returncode == 1 and ("iter-00" in done.stdout) is (stage == "report.py"), stage
        one_error(done.stderr, f"error: {disk}", "Read-only file system", "choose another folder or change its rights")
    stopped = loop(disk / "run", embedded)
    assert stopped.returncode == 1 and "Read-only file system" in stopped.stdout
    assert len(stopped.stdout.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# What is finished stays: hand edits, changed options


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
    "iter-00/train.jsonl": {"--num-validation": 59, "--validation-temperature": 1.1},
    "iter-01/train.jsonl": {
        "--num-examples": 79, "--num-fewshot": 2, "--feedback-rate": 0.4, "--num-feedback-shots": 1,
        "--temperature": 0.9, "--top-p": 0.9, "--top-k": 5, "--min-p": 0.1, "--max-tokens": 99,
        "--chat-template-kwargs": '{"a": 1}', "--seed": 1, "--feedback-label": "same", "--structured": None,
        "--dtype": "float32",
    },
    "iter-01/student": {
        "--loss": "sce", "--sce-beta": 0.2, "--learning-rate": 1e-3, "--num-train-epochs": 3.0,
        "--per-device-train-batch-size": 8, "--gradient-accumulation-steps": 2, "--lr-scheduler-type": "cosine",
        "--warmup-ratio": 0.2, "--weight-decay": 0.0,
        "--max-source-length": 99, "--max-target-length": 9, "--seed": 1, "--dtype": "float32", "--limit": 99,
    },
    "iter-00/scored.jsonl": {
        "--score": "nll", "--low": 0.4, "--high": 0.9, "--energy-temperature": 2.0, "--max-source-length": 99,
        "--max-target-length": 9, "--seed": 1, "--dtype": "bfloat16", "--limit": 59,
    },
    "iter-01/predictions.jsonl": {
        "--num-resamples": 999, "--max-source-length": 99, "--max-target-length": 9, "--dtype": "bfloat16", "--seed": 1,
        "--limit": 99,
    },
}  # fmt: skip
FREE = {  # options that change no result: never compared
    "iter-00/train.jsonl": [],
    "iter-01/train.jsonl": ["--max-attempts", 999, "--max-model-len", 400],
    "iter-01/student": [],
    "iter-00/scored.jsonl": ["--per-device-eval-batch-size", 3],
    "iter-01/predictions.jsonl": ["--per-device-eval-batch-size", 3],
}


@pytest.mark.parametrize("output", CHANGED)
def test_any_other_option_is_refused_by_name(output, finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    script, words = command_of(finished, folder, output)
    before = {p: p.read_bytes() for p in folder.glob("iter-*/**/*") if p.is_file()}
    done = call(script, *words, *FREE[output])
    assert done.returncode == 0 and "up to date" in done.stderr, done.stderr
    for option, value in CHANGED[output].items():
        done = call(script, *words, option, *([] if value is None else [value]))
        assert done.returncode == 1, f"{option} {value}: {done.stderr}"
        one_error(done.stderr, "was made with", option, ", now ")
        assert done.stderr.rstrip().endswith("--overwrite")
    assert {p: p.read_bytes() for p in folder.glob("iter-*/**/*") if p.is_file()} == before
