"""Run records: an output is up to date, resumed or refused. Fingerprints of inputs.

The states that a killed stage leaves are made by stopping a small stage before each of its changes to the disk.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from subprocess import PIPE
from unittest import mock

import pytest
from conftest import ROOT, Killed, refusal

import gold.fingerprint
from gold.disk import beside
from gold.fingerprint import fingerprint
from gold.jsonl import append_records, cut_torn_line, read_records
from gold.runs import finish_run, save_notes, start_run

# ---------------------------------------------------------------------------------------------------------------------
# A small stage that appends one record at a time to the one or to the other of its two files


def stage(output: Path, value="a", n=3, overwrite=False, resumable=True, source: Path | None = None, dies=None) -> str:
    """Records 0 to n-1, the odd ones to a second file. Returns "made", "went on after k", "up to date" or "killed".

    dies: the number of records after which it is killed, in the middle of the next one.
    """
    options = {"value": value, "n": n, "source": source}
    run = start_run(
        "stage.py", output, options, ["source"], also=[output.with_suffix(".also")], resumable=resumable,
        extends="n" if resumable else None, overwrite=overwrite,
    )  # fmt: skip
    if run is None:
        return "up to date"
    files, done = [run.partial, beside(run.also[0], ".partial")], []
    for path in files:
        path.open("a" if resumable else "w").close()
        cut_torn_line(path)
        done += [record["n"] for _, record in read_records(path)]
    save_notes(run)
    for number in range(n):
        if dies == number:
            files[0].open("a").write('{"n": to')
            run.lock.close()  # as the end of the process does
            return "killed"
        if number not in done:
            append_records(files[number % 2], [{"n": number, "value": value}])
            save_notes(run)
    finish_run(run, {"records": n})
    return f"went on after {len(done)}" if done else "made"


def records_of(output: Path) -> list[str]:
    """What both files hold, by number: ["a", "a", "a"]."""
    both = [r for path in (output, output.with_suffix(".also")) for _, r in read_records(path)]
    values = {r["n"]: r["value"] for r in both}
    assert sorted(r["n"] for r in both) == list(range(len(both)))
    return [values[n] for n in range(len(both))]


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.suffix != ".lock"}


DONE = {"out.txt", "out.also", "out.txt.run.json"}
ABC = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # the published value for "abc"


MADE, KILLED, REST = ({}, "made"), ({"dies": 2}, "killed"), {"resumable": False}
OVERWRITE = ({"value": "b", "overwrite": True, "dies": 2}, "killed")
DELETE = ({}, "deleted")
STORIES = {  # what is run one after the other, and what comes of it
    "up to date": [MADE, ({}, "up to date"), ({"n": 2}, "was made with --n 3, now 2")],  # what grows may not shrink
    "up to date, not resumable": [(REST, "made"), (REST, "up to date")],
    "resumed": [KILLED, ({"value": "b"}, "was made with --value a, now b"), ({}, "went on after 2")],
    "started over": [(REST | {"dies": 2}, "killed"), (REST, "made")],
    "extended": [({"n": 2}, "made"), ({"n": 4, "dies": 3}, "killed"), ({"n": 5}, "went on after 3")],
    "overwrite given up": [MADE, OVERWRITE, ({}, "up to date")],
    "overwrite given up, then extended": [MADE, OVERWRITE, ({"n": 4}, "went on after 3")],
    "deleted": [({"value": "b"}, "made"), DELETE, ({"dies": 1}, "killed"), ({}, "went on after 1")],
    "deleted, not resumable": [({"value": "b"}, "made"), DELETE, (REST | {"dies": 1}, "killed"), (REST, "made")],
}


@pytest.mark.parametrize("story", STORIES)
def test_what_a_stage_meets(story, tmp_path, capsys):
    output, number = tmp_path / "new" / "folder" / "out.txt", 0
    for options, told in STORIES[story]:
        if told == "deleted":
            output.unlink()
        elif told.startswith("was made"):
            assert told in refusal(stage, output, **options)
        else:
            assert stage(output, **options) == told
            number = options.get("n", 3)
    assert records_of(output) == ["a"] * number and files_of(output.parent) == DONE
    assert json.loads(beside(output, ".run.json").read_text())["options"]["n"] == number
    said, before = capsys.readouterr().err, contents(output.parent)
    assert ("the output that --overwrite began is not finished and is dropped" in said) is (
        story == "overwrite given up"
    )
    output.write_text("edited by hand\n")
    assert stage(output, n=number) == "up to date" and output.read_text() == "edited by hand\n"
    assert f"up to date: {output}\n" in capsys.readouterr().err
    assert contents(output.parent) | {"out.txt": before["out.txt"]} == before
    output.with_suffix(".also").unlink()
    assert "out.also: is gone, " in refusal(stage, output, n=number)


def test_a_stage_that_failed_before_it_wrote_can_be_run_with_another_option(tmp_path):
    options = {"value": "a", "n": 3, "source": None}
    begin = partial(start_run, "stage.py", tmp_path / "out.txt", resumable=True, extends="n")
    begin(options, ["source"]).lock.close()
    assert stage(tmp_path / "out.txt", value="right") == "made"
    for n in (5, 4):  # an extension, before it has added anything, can be undone
        begin(options | {"value": "right", "n": n}, ["source"]).lock.close()
    assert stage(tmp_path / "out.txt", value="right") == "went on after 3"


def test_run_record(tmp_path, monkeypatch):
    source = tmp_path / "in.txt"
    source.write_bytes(b"abc")
    monkeypatch.setattr(sys, "argv", ["stage.py", "--output-file", "my out.txt"])
    monkeypatch.setenv("STRATEGY", "gold")  # as loop.sh exports it
    stage(tmp_path / "out.txt", n=2, source=source)
    record = json.loads((tmp_path / "out.txt.run.json").read_text())
    known = {
        "stage": "stage.py", "output": "out.txt", "command": "stage.py --output-file 'my out.txt'",
        "options": {"value": "a", "n": 2, "source": str(source)}, "counts": {"records": 2},
        "inputs": {"source": ABC}, "notes": {}, "strategy": "gold",
    }  # fmt: skip
    assert record | known == record
    git = ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert record["git_commit"] == (head or None) and record["git_dirty"] in ((True, False) if head else (None,))
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert 0 <= record["seconds"] < 60 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["finished_at"])
    assert record["machine"]["cpus"] == os.cpu_count()


def test_changed_options_and_inputs_are_named_with_the_command(tmp_path, monkeypatch):
    source, output = tmp_path / "in.txt", tmp_path / "out" / "out.txt"
    source.write_text("1")
    stage(output, source=source)
    before = contents(output.parent)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "stage.py", "--value", "b c"])
    message = refusal(stage, output, value="b c", source=source)
    assert f"{output}: was made with --value a, now b c" in message
    words = shlex.split(message.partition("another output, or: ")[2])  # can be pasted
    assert Path(words[0]).resolve() == Path(sys.executable).resolve()
    assert words[1:] == ["stage.py", "--value", "b c", "--overwrite"]
    (tmp_path / "moved.txt").write_text("1")
    assert stage(output, source=tmp_path / "moved.txt") == "up to date"
    source.write_text("2")
    assert f"--source has changed since this was made ({source}); " in refusal(stage, output, source=source)
    assert contents(output.parent) == before
    assert stage(output, value="b c", overwrite=True) == "made" and records_of(output) == ["b c"] * 3


@pytest.mark.parametrize("name", ["out.txt", "out.also"])
def test_a_file_of_the_user_is_not_touched(name, tmp_path):
    (tmp_path / name).write_text("mine")
    assert "has no run record, so it is yours" in refusal(stage, tmp_path / "out.txt")
    assert (tmp_path / name).read_text() == "mine" and files_of(tmp_path) == {name}
    assert stage(tmp_path / "out.txt", overwrite=True) == "made" and records_of(tmp_path / "out.txt") == ["a"] * 3
    # Nor by a stage that goes on after a kill
    assert stage(tmp_path / "b.txt", dies=0) == "killed"
    (tmp_path / "b.txt").write_text("mine")
    assert "is yours" in refusal(stage, tmp_path / "b.txt") and (tmp_path / "b.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["out.txt.partial.json", "out.txt.run.json"])
def test_a_broken_record_or_state_is_refused(name, tmp_path):
    output = tmp_path / "out.txt"
    stage(output, dies=2 if "partial" in name else None)
    for text in ('{"stage": "sta', "[]", '{"options": {}, "inputs": {}, "notes": {}, "seconds": "1"}', "[" * 10**5):
        (tmp_path / name).write_text(text)
        before = contents(tmp_path)
        assert f"{name}: is not what a stage writes (" in refusal(stage, output) and contents(tmp_path) == before
    assert stage(output, overwrite=True) == "made" and records_of(output) == ["a"] * 3


def test_work_without_its_state_is_not_thrown_away(tmp_path):
    output = tmp_path / "out.txt"
    stage(output, dies=2)
    (tmp_path / "out.txt.partial.json").unlink()
    before = contents(tmp_path)
    assert "out.txt.partial: has no state beside it" in refusal(stage, output) and contents(tmp_path) == before
    assert stage(output, overwrite=True) == "made" and records_of(output) == ["a"] * 3


def test_a_folder_is_replaced_by_the_stage_that_made_it_alone(tmp_path):
    def make(name, **how):
        if run := start_run(name, tmp_path / "student", {"n": how.get("n", 1)}, [], overwrite="n" in how):
            run.partial.mkdir()
            (run.partial / "config.json").write_text(name)
            finish_run(run, {})

    make("train.py")
    make("train.py", n=2)
    told = f"error: {tmp_path / 'student'}: is a folder that label.py has not made; give another name"
    assert refusal(make, "label.py", n=3).startswith(told)
    (tmp_path / "student.run.json").write_text("{")
    make("train.py", n=4)
    (tmp_path / "student.run.json").unlink()
    assert "is a folder that train.py has not made" in refusal(make, "train.py", n=5)
    assert (tmp_path / "student/config.json").read_text() == "train.py"


def test_seconds_of_all_sessions(tmp_path):
    """A resumed run counts the seconds of both processes; one that begins anew its own."""
    output, seconds = tmp_path / "out.txt", []
    assert stage(output, dies=1) == "killed"
    state = tmp_path / "out.txt.partial.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"seconds": 1000.0}))
    for options in ({}, {"n": 4}, {"n": 4, "overwrite": True}):
        stage(output, **options)
        seconds.append(json.loads((tmp_path / "out.txt.run.json").read_text())["seconds"])
    assert 1000 <= seconds[0] <= seconds[1] < 1060 and seconds[2] < 60


# ---------------------------------------------------------------------------------------------------------------------
# Kills, full disks, two at once


def killed_at(step: int, work, error=Killed, names=("unlink", "replace", "open")) -> bool:
    """Run `work` and stop it just before its `step`-th change to the disk; False: it has fewer."""
    left = [step]

    def dying(function):
        def step_or_die(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                raise error()
            return function(*args, **options)

        return step_or_die

    with contextlib.ExitStack() as patches:
        for owner, name in [(os, "fsync"), *((Path, name) for name in names)]:
            patches.enter_context(mock.patch.object(owner, name, dying(getattr(owner, name))))
        try:
            work()
        except (Killed, OSError):
            return True
    return False


CASES = {  # what ran before, by its options; the options of the stage that is killed; what an --overwrite would replace
    "new": ([], {}, None),
    "resume": ([{"dies": 2}], {}, None),
    "extend": ([{"n": 1}], {}, None),
    "overwrite": ([{"value": "old"}], {"overwrite": True}, ["old"] * 3),
    "overwrite of an overwrite": ([{"value": "old"}, {"overwrite": True, "dies": 2}], {"overwrite": True}, ["old"] * 3),
}


@pytest.mark.parametrize("case, resumable", [(c, r) for c in CASES for r in (True, False) if r or c != "extend"])
@mock.patch("gold.runs.git_state", lambda: {"git_commit": "x"})  # a process less for each of hundreds of runs
@mock.patch("os.fsync", lambda number: None)
def test_killed_before_any_change_to_the_disk(case, resumable, tmp_path):
    """Run again, even when killed again at the same place, it makes the whole output, of records of one command.

    What an --overwrite would replace stays whole, or is made anew: without the option the stage says which.
    """
    earlier, options, old = CASES[case]
    for step in range(1, 300):
        output = tmp_path / f"{step}" / "out.txt"
        for one in earlier:
            stage(output, resumable=resumable, **one)
        again = partial(stage, output, resumable=resumable)
        if not killed_at(step, partial(again, **options)):
            assert step > 12
            break
        try:
            killed_at(step, again)
            again()
        except SystemExit as end:
            assert old and "was made with --value old, now a" in end.code and records_of(output) == old, f"step {step}"
            again(**options)
        assert records_of(output) == ["a"] * 3, f"step {step}"
        assert {name for name in files_of(output.parent) if ".draft" not in name} == DONE, f"step {step}"
        assert again() == "up to date"


def test_only_one_process_writes_an_output(tmp_path):
    output, lock = tmp_path / "out.txt", tmp_path / "out.txt.lock"
    holder = subprocess.Popen(["flock", lock, "sh", "-c", "echo held; read end"], stdin=PIPE, stdout=PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        message = refusal(stage, output)
        assert f"{output}: another process is writing it" in message and f"fuser {lock}" in message
        assert files_of(tmp_path) == {lock.name}
    finally:
        holder.communicate(b"\n")
    run = start_run("stage.py", output, {}, [])
    assert "another process is writing it" in refusal(stage, output) and stage(tmp_path / "other.txt") == "made"
    run.lock.close()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(stage, tmp_path / "file" / "out.txt")


def test_two_files_of_one_name_are_refused(tmp_path):
    output = tmp_path / "out.txt"
    output.write_text("1")
    for replaced in (output, tmp_path):  # the second: the output is the folder of the input
        told = refusal(stage, replaced, source=output, overwrite=True)
        assert f"{output}: is the input --source, which the output would replace" in told and output.read_text() == "1"
    assert "out.jsonl.gz: cannot be an output" in refusal(start_run, "stage.py", Path("out.jsonl.gz"), {}, [])
    assert "two outputs have this name" in refusal(start_run, "stage.py", output, {}, [], also=[output])


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints of inputs


def test_fingerprint_of_files_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert fingerprint([path, str(path)], tmp_path) == [ABC, ABC] and fingerprint(None, tmp_path) is None
    (tmp_path / "here").mkdir()
    for name in ("google-t5/t5-base", "gpt2", "Qwen/Qwen2.5-0.5B"):
        assert fingerprint(name, tmp_path) == f"hub:{name}"
    for name in ("./model", "/no/such/model", "here/model", "a/b/c", "../model", Path("gpt2")):  # a path is no name
        message = refusal(start_run, "stage.py", tmp_path / "out", {"model": name}, ["model"])
        assert message.startswith(f"error: --model {name}: no such file or folder")


def test_fingerprint_of_a_model_folder(tmp_path):
    folder, seen = tmp_path / "model", []
    folder.mkdir()
    for name, size in (
        ("model.safetensors", 300_000),
        ("config.json", 1),
        ("config.json", 2),
        ("chat_template.jinja", 0),
    ):
        (folder / name).write_bytes(bytes(size))
        assert fingerprint(str(folder), tmp_path) not in seen
        seen.append(fingerprint(folder, tmp_path))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    renamed = fingerprint(folder, tmp_path)
    assert renamed not in seen and re.fullmatch(r"sha256:[0-9a-f]{64} of 3 files, 0.3 MB", renamed)
    # What no stage computes with, times, and the place
    (folder / ".cache").mkdir()
    for name in ("training_log.jsonl", "held_out.jsonl", "README.md", ".gitattributes", ".cache/config.json"):
        (folder / name).write_text("{}")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    folder.rename(tmp_path / "copy")
    assert fingerprint(tmp_path / "copy", tmp_path) == renamed


def test_a_large_file_is_read_once_a_run(tmp_path, monkeypatch):
    """In a process and its successors: what is in the cache is not read, what was touched is read and found equal."""
    monkeypatch.setattr(gold.fingerprint, "LARGE", 4)
    folder, run, read, digest = tmp_path / "teacher", tmp_path / "run", [], hashlib.file_digest
    folder.mkdir()
    one, two = folder / "1.safetensors", folder / "2.safetensors"
    one.write_text("weights")
    two.write_text("weights")
    monkeypatch.setattr(hashlib, "file_digest", lambda f, how: (read.append(Path(f.name)), digest(f, how))[1])

    def of(cache: Path) -> tuple[str, list[Path]]:
        read.clear()
        return fingerprint(folder, cache), read

    whole = of(run)[0]
    assert of(tmp_path / "another run") == (whole, [one, two]) and of(run) == (whole, [])
    os.utime(one, (1, 1))
    assert of(run) == (whole, [one])
    # Another content of the same size, with the old one's time, as `cp -p` leaves it
    before = two.stat()
    time.sleep(0.05)  # the clock of a file system ticks slowly
    two.write_text("Weights")
    os.utime(two, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = of(run)[0]
    assert changed != whole and read == [two]
    (run / ".hashes.json").write_text('{"a": 1}')  # broken
    assert of(run)[0] == changed
    for name in ("iter-00/train.jsonl", "final/student", "other.jsonl"):
        start_run("stage.py", tmp_path / "loop" / name, {"model": str(folder)}, ["model"]).lock.close()
    assert [str(p.relative_to(tmp_path)) for p in (tmp_path / "loop").rglob(".hashes.json")] == ["loop/.hashes.json"]


def test_a_hub_model_is_the_commit_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def download(commit: str) -> None:
        for name, text in ((f"snapshots/{commit}/config.json", "{}"), ("refs/main", commit)):
            path = tmp_path / "hub/models--some--model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    options = {"model": "some/model", "base_model": None}
    begin = partial(start_run, "stage.py", tmp_path / "out", options, list(options))
    run = begin()
    run.partial.write_text("x")
    download("a" * 40)
    assert finish_run(run, {})["inputs"] == {"model": f"hub:some/model@{'a' * 40}", "base_model": None}
    assert begin() is None
    download("b" * 40)
    told = f"--model has changed since this was made (some/model, now hub:some/model@{'b' * 40})"
    assert told in refusal(begin)
