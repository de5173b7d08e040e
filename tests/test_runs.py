"""Run records: an output is whole, gone on with, or refused. Fingerprints of inputs.

The states that a killed stage leaves are made by stopping a small stage before each of its changes to the disk.
"""

import contextlib
import errno
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT, refusal

import gold.fingerprint
from gold.disk import beside, write_json
from gold.fingerprint import fingerprint, same_content
from gold.jsonl import append_records, cut_torn_line, read_records
from gold.runs import finish_run, save_notes, start_run

# ---------------------------------------------------------------------------------------------------------------------
# A small stage that appends one record at a time to the one or to the other of its two files


def stage(output: Path, value="a", n=3, overwrite=False, resumable=True, source: Path | None = None, dies=None) -> str:
    """Records 0 to n-1: even ones to the output, odd ones beside it; tells: "made", "went on after k" or "up to date".

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
    assert run.resumed or not done
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
    assert [r["n"] for r in sorted(both, key=lambda r: r["n"])] == list(range(len(both)))
    return [r["value"] for r in sorted(both, key=lambda r: r["n"])]


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


DONE = {"out.txt", "out.also", "out.txt.run.json"}


@pytest.mark.parametrize("resumable", [True, False])
def test_first_run_then_up_to_date(resumable, tmp_path, capsys):
    output = tmp_path / "new" / "folder" / "out.txt"
    assert stage(output, resumable=resumable) == "made"
    assert files_of(output.parent) == DONE and records_of(output) == ["a"] * 3
    output.write_text("edited by hand\n")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.parent.iterdir()}
    assert stage(output, resumable=resumable) == "up to date"
    assert f"up to date: {output}" in capsys.readouterr().err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.parent.iterdir()} == before


def test_run_record(tmp_path, monkeypatch):
    source = tmp_path / "in.txt"
    source.write_bytes(b"abc")
    monkeypatch.setattr(sys, "argv", ["stage.py", "--output-file", "my out.txt"])
    stage(tmp_path / "out.txt", n=2, source=source)
    record = json.loads((tmp_path / "out.txt.run.json").read_text())
    assert record["stage"] == "stage.py" and record["output"] == "out.txt"
    assert record["command"] == "stage.py --output-file 'my out.txt'"
    assert record["options"] == {"value": "a", "n": 2, "source": str(source)} and record["counts"] == {"records": 2}
    assert record["inputs"] == {"source": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert head.stdout.startswith(record["git_commit"]) and isinstance(record["git_dirty"], bool)
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert 0 <= record["seconds"] < 60 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["finished_at"])
    assert record["machine"]["cpus"] == os.cpu_count()


def test_changed_options_and_inputs_are_named_with_the_command(tmp_path, monkeypatch):
    source, output = tmp_path / "in.txt", tmp_path / "out" / "out.txt"
    source.write_text("1")
    stage(output, source=source)
    before = output.stat().st_mtime_ns
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "stage.py", "--value", "b c"])
    message = refusal(stage, output, value="b c", source=source)
    assert f"{output}: was made with --value a, now b c" in message
    words = shlex.split(message.partition("another output, or: ")[2])  # can be pasted
    assert Path(words[0]).resolve() == Path(sys.executable).resolve()
    assert words[1:] == ["stage.py", "--value", "b c", "--overwrite"]
    assert "was made with --n 3, now 2" in refusal(stage, output, n=2, source=source)  # what grows may not shrink
    (tmp_path / "moved.txt").write_text("1")
    assert stage(output, source=tmp_path / "moved.txt") == "up to date"
    source.write_text("2")
    assert f"--source has changed since this was made ({source}); " in refusal(stage, output, source=source)
    assert output.stat().st_mtime_ns == before and files_of(output.parent) == DONE
    assert stage(output, value="b c", overwrite=True) == "made" and records_of(output) == ["b c"] * 3


@pytest.mark.parametrize("name", ["out.txt", "out.also"])
def test_a_file_of_the_user_is_not_touched(name, tmp_path):
    (tmp_path / name).write_text("mine")
    assert "has no run record, so it is yours" in refusal(stage, tmp_path / "out.txt")
    assert (tmp_path / name).read_text() == "mine" and files_of(tmp_path) == {name}
    assert stage(tmp_path / "out.txt", overwrite=True) == "made" and records_of(tmp_path / "out.txt") == ["a"] * 3
    # Nor by what a stage leaves that failed
    assert stage(tmp_path / "b.txt", dies=0) == "killed"
    (tmp_path / "b.txt").write_text("mine")
    assert "is yours" in refusal(stage, tmp_path / "b.txt") and (tmp_path / "b.txt").read_text() == "mine"


@pytest.mark.parametrize("resumable", [True, False])
def test_a_deleted_output_is_made_anew_and_half_of_one_is_refused(resumable, tmp_path):
    output = tmp_path / "out.txt"
    stage(output, resumable=resumable)
    output.unlink()
    assert stage(output, resumable=resumable, value="b", dies=1) == "killed"
    assert stage(output, resumable=resumable, value="b") == ("went on after 1" if resumable else "made")
    assert records_of(output) == ["b"] * 3 and files_of(tmp_path) == DONE
    output.with_suffix(".also").unlink()
    assert "out.also: is gone, " in refusal(stage, output, resumable=resumable, value="b")


@pytest.mark.parametrize("resumable", [True, False])
def test_unfinished_work(resumable, tmp_path, monkeypatch):
    output = tmp_path / "out.txt"
    assert stage(output, dies=2, resumable=resumable) == "killed"
    if resumable:
        assert "was made with --value a, now b" in refusal(stage, output, value="b")
    assert stage(output, resumable=resumable) == ("went on after 2" if resumable else "made")
    assert records_of(output) == ["a"] * 3 and files_of(tmp_path) == DONE
    # A stage that ended before it wrote anything (a wrong --dtype, say) can be run again with the right option
    start_run("stage.py", tmp_path / "b.txt", {"value": "a", "source": None}, ["source"], resumable=True).lock.close()
    assert stage(tmp_path / "b.txt", value="right", resumable=resumable) == "made"


def test_extending_goes_on_with_what_the_user_left(tmp_path):
    output = tmp_path / "out.txt"
    stage(output, n=2)
    assert stage(output, n=4, dies=3) == "killed"
    assert stage(output, n=5) == "went on after 3"  # of the edge of both
    assert records_of(output) == ["a"] * 5 and files_of(tmp_path) == DONE
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["options"]["n"] == 5


def test_what_an_overwrite_began_never_gets_into_the_finished_output(tmp_path, capsys):
    output = tmp_path / "out.txt"
    stage(output)
    assert stage(output, value="b", overwrite=True, dies=2) == "killed"
    assert stage(output) == "up to date" and files_of(tmp_path) == DONE
    assert "was begun anew with --overwrite and not finished; what had been begun is dropped" in capsys.readouterr().err
    assert stage(output, value="b", overwrite=True, dies=2) == "killed"
    assert stage(output, n=4) == "went on after 3" and records_of(output) == ["a"] * 4


@pytest.mark.parametrize("name", ["out.txt.partial.json", "out.txt.run.json"])
def test_what_cannot_be_read_is_never_passed_over(name, tmp_path):
    output = tmp_path / "out.txt"
    stage(output, dies=2 if "partial" in name else None)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if "lock" not in path.name}
    for text in ('{"stage": "sta', "[]", "", '{"options": {}, "inputs": {}, "notes": {}, "seconds": "1"}'):
        before[tmp_path / name] = text.encode()
        (tmp_path / name).write_text(text)
        assert re.search(rf"{name}: cannot be read, .* --overwrite$", refusal(stage, output))
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert stage(output, overwrite=True) == "made" and records_of(output) == ["a"] * 3


def test_seconds_of_all_sessions(tmp_path):
    """A run that was killed and gone on with tells the seconds of both; one that begins anew those of its own."""
    output, record = tmp_path / "out.txt", tmp_path / "out.txt.run.json"
    assert stage(output, dies=1) == "killed"
    state = tmp_path / "out.txt.partial.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"earlier_seconds": 1000.0}))
    assert stage(output) == "went on after 1"
    assert 1000 <= json.loads(record.read_text())["seconds"] < 1060
    stage(output, n=4)
    assert 1000 <= json.loads(record.read_text())["seconds"] < 1060
    stage(output, n=4, overwrite=True)
    assert json.loads(record.read_text())["seconds"] < 60


# ---------------------------------------------------------------------------------------------------------------------
# Kills, full disks, two at once


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test catches it."""


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


CASES = {  # what stands there before: what is asked for, with which options, what else is right afterwards
    "new": ({}, {}, None),
    "resume": ({"dies": 2}, {}, None),
    "extend": ({"n": 1}, {}, None),
    "overwrite": ({"value": "old"}, {"overwrite": True}, ["old"] * 3),
    "overwrite of an overwrite": ({"value": "old", "then": {"overwrite": True, "dies": 2}}, {"overwrite": True}, ["old"] * 3),
}  # fmt: skip


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("case", CASES)
@mock.patch("gold.runs.git_state", lambda: {"git_commit": "x"})  # two processes less for each of hundreds of runs
def test_killed_before_any_change_to_the_disk(case, resumable, tmp_path):
    """Run again, even when killed again at the same place, it makes the whole output, of records of one command.

    What an --overwrite would replace stays whole, or is made anew: without the option the stage says which.
    """
    first, options, old = CASES[case]
    if case == "extend" and not resumable:
        pytest.skip("only what is resumed can be extended")
    for step in range(1, 300):
        output = tmp_path / f"{step}" / "out.txt"
        if first:
            stage(output, **{k: v for k, v in first.items() if k != "then"}, resumable=resumable)
        if "then" in first:
            stage(output, **first["then"], resumable=resumable)
        how = {"resumable": resumable}
        if not killed_at(step, lambda: stage(output, **how, **options)):  # noqa: B023
            assert step > 12
            break
        try:
            killed_at(step, lambda: stage(output, **how))  # noqa: B023
            stage(output, **how)
        except SystemExit as end:
            assert old and "was made with --value old, now a" in end.code and records_of(output) == old, f"step {step}"
            stage(output, **how, **options)
        assert records_of(output) == ["a"] * 3, f"step {step}"
        assert {name for name in files_of(output.parent) if ".draft" not in name} == DONE, f"step {step}"
        assert stage(output, **how) == "up to date"


@pytest.mark.parametrize("n", [0, 2])
def test_the_disk_is_full_at_any_write(n, tmp_path):
    """What was written stays, and with room again the same command makes the whole."""

    def full():
        return OSError(errno.ENOSPC, "No space left on device")

    for step in range(1, 200):
        output = tmp_path / f"{step}" / "out.txt"
        if n:
            stage(output, n=n)
        if not killed_at(step, lambda: stage(output), full, ()):  # noqa: B023
            assert step > 8
            break
        assert stage(output) in ("made", "up to date", *(f"went on after {k}" for k in range(n, 4)))
        assert records_of(output) == ["a"] * 3 and files_of(output.parent) - {"out.txt.run.json.tmp.draft"} == DONE


def test_everything_is_on_the_disk_before_the_record_tells_of_it(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def noted(number: int) -> None:
        synced.append(Path(f"/proc/self/fd/{number}").readlink().name)
        sync(number)

    monkeypatch.setattr(os, "fsync", noted)
    run = start_run("stage.py", tmp_path / "out.txt", {}, [])
    append_records(run.partial, [{"id": "a"}])
    finish_run(run, {})
    state = "out.txt.partial.json.draft"
    partial = "out.txt.partial"
    assert synced == [state, partial, partial, "out.txt.run.json.tmp.draft", state, tmp_path.name]


def test_only_one_process_writes_an_output(tmp_path):
    output, lock = tmp_path / "out.txt", tmp_path / "out.txt.lock"
    code = (
        f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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


def test_output_that_is_a_folder(tmp_path):
    for value in ("a", "b"):
        run = start_run("train.py", tmp_path / "student", {}, [], overwrite=value == "b")
        run.partial.mkdir()
        (run.partial / value).write_text("")
        finish_run(run, {})
        assert files_of(tmp_path / "student") == {value}
    assert files_of(tmp_path) == {"student", "student.run.json"}


def test_two_files_of_one_name_are_refused(tmp_path):
    output = tmp_path / "out.txt"
    output.write_text("1")
    assert "is the input --source and would be replaced" in refusal(stage, output, source=output)
    assert "two outputs have this name" in refusal(start_run, "stage.py", output, {}, [], also=[output])


def test_write_json_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": "ä", "where": Path("x")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä", "where": "x"}
    before = path.read_bytes(), path.stat().st_ino
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("inf")})
    assert (path.read_bytes(), path.stat().st_ino) == before
    write_json(path, {"a": 2})
    assert path.stat().st_ino != before[1]  # another file took its place in one step


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints of inputs


def test_fingerprint_of_files_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a"
    path.write_bytes(b"abc")  # the published test vector of SHA-256 for "abc"
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(path, tmp_path) == fingerprint(str(path), tmp_path) == known
    assert fingerprint([path, path], tmp_path) == [known, known] and fingerprint(None, tmp_path) is None
    (tmp_path / "here").mkdir()
    for name in ("google-t5/t5-base", "gpt2", "Qwen/Qwen2.5-0.5B"):
        assert fingerprint(name, tmp_path) == f"hub:{name}"
    for name in ("./model", "/no/such/model", "here/model", "a/b/c", "../model", Path("gpt2")):  # a path is no name
        message = refusal(start_run, "stage.py", tmp_path / "out", {"model": name}, ["model"])
        assert message.startswith(f"error: --model {name}: no such file or folder")


def test_fingerprint_of_a_model_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(300_000))
    seen = [fingerprint(folder, tmp_path)]
    middle = bytes(150_000) + b"1" + bytes(149_999)
    for change in (
        lambda: (folder / "config.json").write_text('{"a": 1}'),
        lambda: (folder / "config.json").write_text('{"a": 2}'),  # the same size
        lambda: (folder / "model.safetensors").write_bytes(middle),  # the same size, and the same at both ends
        lambda: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        lambda: (folder / "sub" / "x").write_bytes(b""),
        lambda: (folder / "chat_template.jinja").write_bytes(b""),
    ):
        change()
        assert fingerprint(str(folder), tmp_path) not in seen
        seen.append(fingerprint(folder, tmp_path))
    assert re.fullmatch(r"sha256:[0-9a-f]{64} of 4 files, 0.3 MB", seen[-1])
    # What no stage computes with, times, and the place
    for name in ("training_log.jsonl", "held_out.jsonl", "README.md", ".gitattributes"):
        (folder / name).write_text("{}")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    folder.rename(tmp_path / "copy")
    assert fingerprint(tmp_path / "copy", tmp_path) == seen[-1]


def test_a_large_file_is_read_once_a_run(tmp_path):
    """Sparse files of 64 MiB: what is in the cache is not read, what was touched is read and found equal."""
    folder, run = tmp_path / "teacher", tmp_path / "run"
    folder.mkdir()
    for name in ("1.safetensors", "2.safetensors"):
        with (folder / name).open("wb") as file:
            file.truncate(gold.fingerprint.LARGE)
    digest = gold.fingerprint.hashlib.file_digest

    def reads(cache: Path) -> tuple[str, list[str]]:
        """The folder's fingerprint and the large files that were read for it."""
        read = []
        with mock.patch("hashlib.file_digest", lambda f, how: (read.append(Path(f.name).name), digest(f, how))[1]):
            return fingerprint(folder, cache), sorted(read)

    whole, read = reads(run)
    assert read == ["1.safetensors", "2.safetensors"] and reads(run) == (whole, [])
    assert reads(tmp_path / "another run")[1] == read
    os.utime(folder / "1.safetensors")
    assert reads(run) == (whole, ["1.safetensors"])
    # Another content of the same size, with the old one's time, as `cp -p` leaves it
    before = (folder / "2.safetensors").stat()
    with (folder / "2.safetensors").open("r+b") as file:
        file.write(b"1")
    os.utime(folder / "2.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed, read = reads(run)
    assert changed != whole and read == ["2.safetensors"]
    for broken in ("", "[]", '{"a": 1}', "\0\0"):
        (run / ".hashes.json").write_text(broken)
        assert reads(run)[0] == changed
    (tmp_path / "file").write_text("")  # where nothing can be written the stage says so itself
    assert reads(tmp_path / "file")[0] == changed
    for name in ("iter-00/train.jsonl", "iter-01/train.jsonl", "final/student", "other.jsonl"):
        start_run("stage.py", tmp_path / "loop" / name, {"model": str(folder)}, ["model"]).lock.close()
    assert [str(p.relative_to(tmp_path)) for p in (tmp_path / "loop").rglob(".hashes.json")] == ["loop/.hashes.json"]


HUB = """
import os, sys
from pathlib import Path
from gold.runs import finish_run, start_run
folder = Path(os.environ["HF_HUB_CACHE"]) / "models--some--model"
def commit(name):
    (folder / "snapshots" / name).mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / name / "config.json").write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(name)
def stage(load=None):
    run = start_run("stage.py", Path("out"), {"model": "some/model", "base_model": None}, ["model", "base_model"])
    if run:
        run.partial.write_text("x")
        load and commit(load)
        return finish_run(run, {})["inputs"]["model"]
print(stage(load="a" * 40))  # the first download is on the way
print(stage())
commit("b" * 40)
print(stage())
"""


def test_a_hub_model_is_the_commit_in_the_cache(tmp_path):
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HUB]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"hub:some/model@{'a' * 40}", "None"], done.stderr
    assert f"--model has changed since this was made (some/model, now hub:some/model@{'b' * 40})" in done.stderr


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("hub:a", "hub:a", True),
        ("hub:a", "hub:a@1", True),  # noted before the first download
        ("hub:a@1", "hub:a@2", False),
        ("hub:a", "hub:b@1", False),
        ("hub:a@1", "sha256:1", False),
        (None, "hub:a", False),
    ],
)
def test_same_content(old, new, same):
    assert same_content(old, new) == same_content(new, old) == same
