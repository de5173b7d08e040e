"""Reading records: every broken line is named by file and line. Run records: an output is complete, resumed or refused.

The states that a killed stage leaves behind are made by stopping a small stage before each of its changes to the disk.
"""

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
from conftest import ROOT, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gold.fingerprint
import records
from gold.columns import MADE as MADE_COLUMNS
from gold.columns import asked_for
from gold.labels import as_label
from records import (
    beside,
    fingerprint,
    finish_run,
    read_examples,
    read_records,
    run_command,
    save_progress,
    start_run,
    write_json,
    write_records,
)
from task import RESERVED

GOOD = b'{"first": "the lake", "second": "snow", "label": "not warm"}\n'


def refusal(function, *args, **options) -> str:
    """The message with which a call ends the stage: one line, as `error: ...`."""
    with pytest.raises(SystemExit) as caught:
        function(*args, **options)
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------------------------------
# Records

MADE = GOOD.replace(b"}", b', "sampling_seed": 7}')  # as generate.py writes it
DEEP = b"[" * 100_000 + b"]" * 100_000
BROKEN = {  # name: (third line of a file, what the message tells)
    "broken JSON": (b'{"first": "the lake", "second"\n', "not a JSON object"),
    "not JSON at all": (b"first,second,label\n", "found 'first,second,label"),
    "list": (b'["the lake", "snow"]\n', "not a JSON object"),
    "null": (b"null\n", "not a JSON object"),
    "two objects": (b'{"first": "a"} {"first": "b"}\n', "not a JSON object"),
    "NaN": (GOOD.replace(b"}", b', "energy": NaN}'), "NaN is not a JSON number"),
    "infinity": (GOOD.replace(b"}", b', "energy": -Infinity}'), "-Infinity is not a JSON number"),
    "number too large": (GOOD.replace(b"}", b', "energy": 1e999}'), "mend or delete the line"),
    "lone surrogate": (GOOD.replace(b"the lake", b"the \\ud83d lake"), "surrogates not allowed"),
    "deep nesting": (GOOD.replace(b"}", b', "x": ' + DEEP + b"}"), "nested too deeply"),
    "long number": (GOOD.replace(b"}", b', "x": ' + b"7" * 9000 + b"}"), "4300"),
    "bad UTF-8": (GOOD.replace(b"lake", b"l\xe4ke"), "utf-8"),
    "torn": (GOOD[:30], "torn last line"),
    "no field": (b'{"first": "the lake", "label": "Warm"}\n', "no field 'second'"),
    "no answer": (b'{"first": "the lake", "second": "snow"}\n', "no field 'label'"),
    "empty field": (GOOD.replace(b"snow", b"  "), "'second' must be a text"),
    "field no text": (GOOD.replace(b'"snow"', b"7"), "'second' must be a text"),
    "unknown label": (GOOD.replace(b"not warm", b"hot"), "no such label: 'hot'"),
    "label a number": (GOOD.replace(b'"not warm"', b"1"), "if 0 is Warm, 1 is not warm, as in the task file: "),
    "edited source": (MADE.replace(b"}", b', "source": "pair: the lake with sun"}'), "'source' is not what"),
    "edited target": (MADE.replace(b"}", b', "target": "Warm"}'), "'target' is not what"),
    "id twice": (GOOD.replace(b"}", b', "id": "here"}'), "is already in"),
    "id a list": (GOOD.replace(b"}", b', "id": ["here"]}'), "id"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_line_is_named(name, tmp_path, pairs):
    line, told = BROKEN[name]
    path = tmp_path / "some.jsonl"
    path.write_bytes(GOOD.replace(b"}", b', "id": "here"}') + b"\n" + line)  # a blank line counts, and is skipped
    message = refusal(read_examples, path, pairs)
    assert message.startswith(f"error: {path}:3: ") and told in message, message
    assert len(message) < 800


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_file_without_records(content, tmp_path, pairs):
    path = tmp_path / "none.jsonl"
    path.write_bytes(content)
    assert f"{path}: no records in it" in refusal(read_examples, path, pairs)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_unreadable_file(name, tmp_path, pairs):
    assert f"error: {tmp_path / name}: cannot be read" in refusal(read_examples, tmp_path / name, pairs)


def test_missing_end_of_last_line_is_no_fault(tmp_path, pairs):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + GOOD.rstrip())  # an editor's byte order mark, and no last line end
    assert [number for number, _ in read_records(path)] == [1, 2]
    assert len(read_examples(path, pairs)) == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("inner", ["\u2028", "\u2029", "\u0085", "\ufeff"])
def test_a_record_ends_where_its_line_ends(end, mark, inner, tmp_path, pairs):
    """Raw line separators within a string cut no record; an editor's byte order mark, CR LF and blank lines are no fault."""
    rows = [{"first": f"the{inner}lake", "second": "snow", "label": "Warm"}] * 2
    path = tmp_path / "some.jsonl"
    text = mark + end.join(["", json.dumps(rows[0], ensure_ascii=False), " ", json.dumps(rows[1], ensure_ascii=False)])
    path.write_text(text if not mark else mark + text[1:].lstrip(), encoding="utf-8", newline="")
    assert [e["first"] for e in read_examples(path, pairs)] == [f"the{inner}lake"] * 2


def test_read_examples_renders(tmp_path, pairs):
    rendered = {"source": "pair: the lake with snow", "target": "not warm"}
    fields = json.loads(GOOD)
    rows = [fields, fields | {"id": "own", "group": 3}, fields | rendered | {"id": "again"}]
    found = read_examples(write_lines(tmp_path / "some.jsonl", rows), pairs)
    assert found == [{"id": i, **row, **rendered} for i, row in zip(["some:1", "own", "again"], rows, strict=True)]


def test_ids_are_unique_over_files_and_are_texts(tmp_path, pairs):
    one = write_lines(tmp_path / "one.jsonl", [json.loads(GOOD) | {"id": "x"}])
    two = write_lines(tmp_path / "two.jsonl", [json.loads(GOOD) | {"id": "x"}])
    message = refusal(read_examples, [one, two], pairs)
    assert f"{two}:1: " in message and f"{one}:1" in message


def test_whole_numbers_are_ids_and_null_is_none(tmp_path, pairs):
    rows = [json.loads(GOOD) | {"id": n} for n in [0, 7, 10**20, None]]
    numbered = write_lines(tmp_path / "numbered.jsonl", rows)
    assert [e["id"] for e in read_examples(numbered, pairs)] == ["0", "7", f"{10**20}", "numbered:4"]
    again = write_lines(tmp_path / "again.jsonl", [json.loads(GOOD) | {"id": "7"}])
    assert f"'7' is already in {numbered}:2; " in refusal(read_examples, [numbered, again], pairs)
    for bad in (True, 7.0, ""):
        message = (
            refusal(read_examples, write_lines(again, [json.loads(GOOD) | {"id": bad}]), pairs) if bad != "" else ""
        )
        assert bad == "" or f"{again}:1: the id must be a text or a whole number, found {bad!r}" in message


def test_made_ids_are_unique_by_path(tmp_path, pairs):
    """Two files of one name, a third of another, a fourth that differs in its ending alone: the shortest end that tells."""
    paths = [tmp_path / "x" / "a" / "train.jsonl", tmp_path / "x" / "b" / "train.jsonl", tmp_path / "test.jsonl"]
    paths += [tmp_path / "y" / "a" / "train.jsonl", tmp_path / "test.json"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [json.loads(GOOD)])
    a, b = (f"{tmp_path.name}/x/{n}/train" for n in "ab")
    assert [e["id"] for e in read_examples(paths[:3], pairs)] == ["a/train:1", "b/train:1", "test:1"]
    assert [e["id"] for e in read_examples(paths[2::-1], pairs)] == ["test:1", "b/train:1", "a/train:1"]  # in any order
    assert [e["id"] for e in read_examples(paths[0], pairs)] == ["train:1"]
    assert [e["id"] for e in read_examples(paths[0], pairs, among=paths[:2])] == ["a/train:1"]  # of one command
    found = [e["id"] for e in read_examples(paths, pairs)]
    assert found == ["x/a/train:1", "b/train:1", f"{paths[2]}:1", "y/a/train:1", f"{paths[4]}:1"] and a != b
    assert "already in" in refusal(read_examples, [paths[0], paths[0]], pairs)  # one file twice is a mistake


def test_labels_that_are_certain_are_mapped_and_counted(tmp_path, pairs, flip, capfd):
    fields = {"first": "the lake", "second": "snow"}
    labels = ["Warm", "WARM", " warm\n", "Not Warm", "not warm"]
    rows = [fields | {"label": label, "labels": [label]} for label in labels]
    path = write_lines(tmp_path / "some.jsonl", rows)
    found = read_examples(path, pairs)
    assert [e["label"] for e in found] == [e["target"] for e in found] == ["Warm"] * 3 + ["not warm"] * 2
    assert [e["labels"] for e in found] == [[e["label"]] for e in found]
    said = capfd.readouterr().err
    assert (
        said.startswith(f"{path}: answers read in another form: 'WARM' as 'Warm' (2 times), ") and said.count("\n") == 1
    )
    numbers = write_lines(tmp_path / "numbers.jsonl", [{"text": "3 and 4", "answer": 7, "answers": [7, "seven"]}])
    assert [(e["answer"], e["answers"], e["target"]) for e in read_examples(numbers, flip)] == [
        ("7", ["7", "seven"], "7")
    ]
    assert "7 as '7' (2 times)" in capfd.readouterr().err
    wrong = write_lines(tmp_path / "wrong.jsonl", [{"text": "3 and 4", "answer": 7.5}])
    assert "'answer' must be a text that is not empty, found 7.5; put it in quotes" in refusal(
        read_examples, wrong, flip
    )


@pytest.mark.parametrize("names", [("no", "yes"), ("true", "false"), ("0", "1")])
def test_a_bool_or_a_number_is_a_label_of_that_name_only(names):
    expected = {"true": [True, "TRUE "], "1": [1, "1"]}
    for value in (True, "TRUE ", 1, "1", 2, None, 1.0, [1]):
        of = [name for name, values in expected.items() if any(v is value or v == value == str(v) for v in values)]
        assert as_label(value, names) == (of[0] if of and of[0] in names else None), (value, names)


@pytest.mark.parametrize("values", [(0, 1), (False, True), ("0", " 1"), (0.0, 1.0)])
def test_the_command_that_maps_numbers_to_labels_does(values, tmp_path, home, pairs):
    path = write_lines(tmp_path / "it's mine.jsonl", [json.loads(GOOD) | {"label": value} for value in values])
    command = refusal(read_examples, path, pairs).partition("as in the task file: ")[2]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [e["label"] for e in read_examples(tmp_path / "it's mine.named.jsonl", pairs)] == ["Warm", "not warm"]


def test_labels_that_no_order_explains(tmp_path, pairs):
    path = write_lines(tmp_path / "some.jsonl", [json.loads(GOOD) | {"label": -1}])
    assert "-1 often means that there is none: leave 'label' out" in refusal(read_examples, path, pairs)
    write_lines(path, [json.loads(GOOD) | {"label": 2}])
    assert refusal(read_examples, path, pairs).endswith("has Warm, not warm; correct the line")


def test_columns_of_the_user_stay_under_another_name(tmp_path, pairs, capfd):
    """The user's `correct`, `energy` ... of a file that no stage wrote; an id, a split or a group may be called so."""
    own = {name: f"my {name}" for name in MADE_COLUMNS} | {
        "original_f1": 1,
        "split": "test",
        "energy_kwh": 5,
        "task": "a",
    }
    path = write_lines(tmp_path / "mine.jsonl", [json.loads(GOOD) | own, json.loads(GOOD)])
    first, second = read_examples(path, pairs)
    kept = {"split": "test", "energy_kwh": 5, "task": "a", "original_f1": 1, "original_original_f1": "my f1"}
    kept |= {f"original_{name}": f"my {name}" for name in MADE_COLUMNS if name != "f1"}
    rendered = {"source": "pair: the lake with snow", "target": "not warm"}
    assert first == {"id": "mine:1", **json.loads(GOOD), **rendered, **kept}
    assert second == {"id": "mine:2", **json.loads(GOOD), **rendered}
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "'correct' of 1 records as 'original_correct'" in said
    used = read_examples(path, pairs, use={"energy", "teacher_label"})[0]  # what options ask for
    assert used["energy"] == "my energy" and used["teacher_label"] == "my teacher_label"
    assert used["original_nll"] == "my nll" and "original_energy" not in used
    capfd.readouterr()
    # What is written then is the toolkit's: read again, nothing changes
    assert read_examples(write_lines(tmp_path / "again.jsonl", [first, second]), pairs) == [first, second]
    assert capfd.readouterr().err == ""


def test_a_label_column_called_target_is_no_edit(tmp_path, pairs):
    rows = [json.loads(GOOD) | {"target": t} for t in ("not warm", "0")]
    same, other = read_examples(write_lines(tmp_path / "mine.jsonl", rows), pairs)
    assert "original_target" not in same and other["original_target"] == "0"
    assert same["target"] == other["target"] == "not warm"


def test_records_of_the_toolkit_keep_their_columns_and_are_refused_when_edited(tmp_path, pairs):
    scored = {"source": "pair: the lake with snow", "target": "not warm", "energy": -1.5, "correct": True}
    made = {"sampling_seed": 7, "energy": -1.5}
    rows = [json.loads(GOOD) | scored, json.loads(GOOD) | made]
    for found, row in zip(read_examples(write_lines(tmp_path / "x.jsonl", rows), pairs), rows, strict=True):
        assert found == {"id": found["id"]} | row | {"source": scored["source"], "target": "not warm"}
    edited = json.loads(GOOD) | scored | {"second": "ice"}  # a record that no seed marks, among others that fit
    for lines, line in (([rows[0], edited], 2), ([edited, rows[0]], 1), ([rows[1], edited, rows[0]], 2)):
        path = write_lines(tmp_path / "edited.jsonl", lines)
        assert refusal(read_examples, path, pairs).startswith(f"error: {path}:{line}: 'source' is not what ")
    own = json.loads(GOOD) | {"source": "imdb"}  # beside generated ones: the seeds tell whose it is
    path = write_lines(tmp_path / "mixed.jsonl", [json.loads(GOOD) | made, own])
    assert read_examples(path, pairs)[1]["original_source"] == "imdb"


def test_an_option_names_the_column_wherever_it_is_now():
    assert asked_for("prediction", [{"prediction": "a", "original_prediction": "b"}]) == "prediction"
    assert asked_for("prediction", [{"original_prediction": "b"}]) == "original_prediction"
    assert asked_for("source", [{"source": "x", "original_source": "imdb"}]) == "original_source"
    assert asked_for("source", [{"source": "x"}]) == "source" and asked_for(None, [{}]) is None


def test_the_columns_are_those_that_the_stages_write():
    from evaluate import VALUES
    from score_ood import SCORED

    written = {*SCORED, *(v for values in VALUES.values() for v in values), "score", "rank", "source", "target"}
    assert (
        written | {"teacher_label", "label_probs"}
        == MADE_COLUMNS
        <= RESERVED | {n for n in MADE_COLUMNS if "energy" in n}
    )


def test_read_examples_without_answers(tmp_path, pairs):
    path = write_lines(tmp_path / "some.jsonl", [{"first": "the lake", "second": "snow"}])
    assert read_examples(path, pairs, answers=False) == [
        {"id": "some:1", "first": "the lake", "second": "snow", "source": "pair: the lake with snow"}
    ]


WORDS = st.text(min_size=1, max_size=20).filter(str.strip)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6))
def test_what_is_written_is_read(rows, tmp_path):
    path = tmp_path / "some.jsonl"
    with path.open("w", encoding="utf-8") as file:
        write_records(file, rows)
    assert list(read_records(path)) == list(enumerate(rows, 1))
    assert path.read_bytes().count(b"\n") == len(rows)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), whole=st.booleans())
def test_any_bytes_are_read_or_refused_in_one_line(content, whole, tmp_path, pairs):
    path = tmp_path / "some.jsonl"
    path.write_bytes((GOOD if whole else b"") + content)
    try:
        examples = read_examples(path, pairs)
    except SystemExit as end:
        assert re.match(rf"error: {re.escape(str(path))}(:\d+)?: ", end.code) and "\n" not in end.code
    else:
        assert len(examples) >= 1


def test_writing_refuses_what_is_no_json_number(tmp_path):
    with (tmp_path / "some.jsonl").open("w") as file, pytest.raises(SystemExit, match="error: r7: energy is nan"):
        write_records(file, [{"id": "r7", "energy": float("nan")}])


def test_write_json_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": "ä", "where": Path("x")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä", "where": "x"}
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("inf")})
    assert path.read_bytes() == before
    inode = path.stat().st_ino
    write_json(path, {"a": 2})
    assert path.stat().st_ino != inode  # another file took its place in one step; the old one was never written into


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints of inputs


def test_fingerprint_of_files(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")  # the published test vector of SHA-256 for "abc"
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint("--train-file", path) == fingerprint("--train-file", str(path)) == known
    assert fingerprint("--train-file", [path, path]) == [known, known]
    assert fingerprint("--feedback-file", None) is None


def test_fingerprint_of_a_model_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(300_000))
    seen = [fingerprint("--model", folder)]
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
        assert fingerprint("--model", str(folder)) not in seen
        seen.append(fingerprint("--model", folder))
    assert re.fullmatch(r"sha256:[0-9a-f]{64} of 4 files, 0.3 MB", seen[-1])
    # What no stage computes with, times, and the place
    for name in ("training_log.jsonl", "held_out.jsonl", "README.md", ".gitattributes"):
        (folder / name).write_text("{}")
    beside(folder, ".run.json").write_text('{"finished_at": 1}')
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert fingerprint("--model", folder) == seen[-1]
    folder.rename(tmp_path / "copy")
    assert fingerprint("--model", tmp_path / "copy") == seen[-1]


def reads(folder: Path, cache: Path) -> tuple[str, list[str]]:
    """A folder's fingerprint and the files that were read for it."""
    read = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return content(path)

    content = gold.fingerprint._sha256
    with mock.patch.object(gold.fingerprint, "_sha256", noted):
        return gold.fingerprint.fingerprint(folder, cache), sorted(read)


def test_a_large_file_is_read_once_a_run(tmp_path):
    """Sparse files of 64 MiB: what is in the cache is not read, what was touched is read and found equal."""
    folder, run = tmp_path / "teacher", tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("1.safetensors", "2.safetensors"):
        with (folder / name).open("wb") as file:
            file.truncate(gold.fingerprint.LARGE)
    whole, read = reads(folder, run)
    assert read == ["1.safetensors", "2.safetensors", "config.json"]
    assert reads(folder, run) == (whole, ["config.json"])
    assert len(json.loads((run / ".hashes.json").read_text())) == 2
    assert reads(folder, tmp_path / "another run")[1] == read
    os.utime(folder / "1.safetensors")
    assert reads(folder, run) == (whole, ["1.safetensors", "config.json"])
    # Another content of the same size, with the old one's time, as `cp -p` leaves it
    before = (folder / "2.safetensors").stat()
    with (folder / "2.safetensors").open("r+b") as file:
        file.write(b"1")
    os.utime(folder / "2.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed, read = reads(folder, run)
    assert changed != whole and read == ["2.safetensors", "config.json"]
    for broken in ("", "[]", '{"a": 1}', "\0\0"):
        (run / ".hashes.json").write_text(broken)
        assert reads(folder, run)[0] == changed
    (tmp_path / "file").write_text("")  # where nothing can be written the stage says so itself
    assert reads(folder, tmp_path / "file")[0] == changed


def test_the_cache_lies_in_the_run_folder(tmp_path):
    teacher = tmp_path / "teacher.gguf"
    with teacher.open("wb") as file:
        file.truncate(gold.fingerprint.LARGE)
    for name in ("iter-00/train.jsonl", "iter-01/train.jsonl", "final/student", "other.jsonl"):
        run = start_run("stage.py", tmp_path / "run" / name, {}, {"model": teacher})
        run.lock.close()
    caches = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob(".hashes.json")]
    assert caches == ["run/.hashes.json"]


def test_a_changed_time_alone_is_no_change_and_other_weights_are(tmp_path):
    """A model that was trained again with the same result, and one whose weights were exchanged behind its run record."""
    model, output = tmp_path / "student", tmp_path / "out"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"1234")
    beside(model, ".run.json").write_text('{"finished_at": "2026-01-01"}')

    def stage():
        run = start_run("stage.py", output, {}, {"model": str(model)})
        if run:
            run.partial.write_text("x")
            finish_run(run, {})
        return run

    assert stage() and not stage()
    beside(model, ".run.json").write_text('{"finished_at": "2027-01-01"}')
    os.utime(model / "model.safetensors")
    assert not stage()
    (model / "model.safetensors").write_bytes(b"1235")
    assert "--model has changed since this was made" in refusal(stage)


HUB = """
import os, sys
from pathlib import Path
from records import finish_run, start_run
folder = Path(os.environ["HF_HUB_CACHE"]) / "models--some--model"
def commit(name):
    (folder / "snapshots" / name).mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / name / "config.json").write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(name)
def stage(load=None):
    run = start_run("stage.py", Path("out"), {}, {"model": "some/model", "base_model": None})
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
        (["sha256:1"], ["sha256:1"], True),
        (None, "hub:a", False),
    ],
)
def test_same_content(old, new, same):
    assert gold.fingerprint.same_content(old, new) == gold.fingerprint.same_content(new, old) == same


@pytest.mark.parametrize("name", ["google-t5/t5-base", "gpt2", "Qwen/Qwen2.5-0.5B"])
def test_fingerprint_of_a_hub_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fingerprint("--model", name) == f"hub:{name}"


@pytest.mark.parametrize("name", ["./model", "/no/such/model", "here/model", "a/b/c", "../model"])
def test_fingerprint_of_a_missing_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert refusal(fingerprint, "--model", name).startswith(f"error: --model {name}: no such file or folder")
    assert "no such file" in refusal(fingerprint, "--train-file", Path("gpt2"))  # a path is never a hub name


# ---------------------------------------------------------------------------------------------------------------------
# Runs: a small stage that appends one line at a time


def stage(output: Path, value="a", n=3, overwrite=False, resumable=True, source: Path | None = None) -> str:
    """Write n lines `value` into two files, line by line; tells what was done: "made", "resumed at k" or "up to date"."""
    also = output.with_suffix(".also")
    run = start_run(
        "stage.py", output, {"value": value, "n": n}, {"source": source}, also=[also],
        resumable=resumable, extends="n" if resumable else None, overwrite=overwrite,
    )  # fmt: skip
    if run is None:
        return "up to date"
    partials = [run.partial, beside(also, ".partial")]
    for path, size in zip(partials, (run.resumed and run.state.get("progress")) or [0, 0], strict=True):
        with path.open("ab") as file:
            file.truncate(size)
    done = len(run.partial.read_text().splitlines())
    for _ in range(done, n):
        for path in partials:
            with path.open("a") as file:
                file.write(f"{value}\n")
        save_progress(run, [path.stat().st_size for path in partials])
    finish_run(run, {"lines": n})
    return f"resumed at {done}" if done else "made"


def begun(output: Path, lines: int, **options) -> None:
    """What a run leaves that was killed after so many lines, in the middle of the next."""
    also = output.with_suffix(".also")
    run = start_run("stage.py", output, {"value": "a", "n": 3} | options, {"source": None}, also=[also], resumable=True)
    for path in (run.partial, beside(also, ".partial")):
        path.write_text("a\n" * lines)
    if lines:
        save_progress(run, [2 * lines, 2 * lines])
        run.partial.write_text("a\n" * lines + "to")
    run.lock.close()  # as the end of the process does


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


DONE = {"out.txt", "out.also", "out.txt.run.json"}


@pytest.mark.parametrize("resumable", [True, False])
def test_first_run_then_up_to_date(resumable, tmp_path, capsys):
    output = tmp_path / "new" / "folder" / "out.txt"
    assert stage(output, resumable=resumable) == "made"
    assert files_of(output.parent) == DONE and output.read_text() == "a\na\na\n"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.parent.iterdir()}
    assert stage(output, resumable=resumable) == "up to date"
    assert f"up to date: {output}" in capsys.readouterr().err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.parent.iterdir()} == before
    output.write_text("edited by hand\n")
    assert stage(output, resumable=resumable) == "up to date"  # the edit stays
    assert output.read_text() == "edited by hand\n"


def test_run_record(tmp_path, monkeypatch):
    source = tmp_path / "in.txt"
    source.write_bytes(b"abc")
    monkeypatch.setattr(sys, "argv", ["stage.py", "--output-file", "my out.txt"])
    stage(tmp_path / "out.txt", n=2, source=source)
    record = json.loads((tmp_path / "out.txt.run.json").read_text())
    assert record["stage"] == "stage.py" and record["output"] == "out.txt"
    assert record["command"] == "stage.py --output-file 'my out.txt'"
    assert record["options"] == {"value": "a", "n": 2} and record["counts"] == {"lines": 2}
    assert record["inputs"] == {"source": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert head.stdout.startswith(record["git_commit"]) and isinstance(record["git_dirty"], bool)
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert 0 <= record["seconds"] < 60 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["finished_at"])
    assert record["machine"]["cpus"] == os.cpu_count()


def test_changed_option_is_named_with_the_command(tmp_path, monkeypatch):
    output = tmp_path / "out.txt"
    stage(output)
    before = output.stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", ["stage.py", "--value", "b c"])
    message = refusal(stage, output, value="b c")
    assert f"{output}: was made with --value a, now b c" in message
    assert shlex.split(message)[-4:] == ["stage.py", "--value", "b c", "--overwrite"]  # can be pasted
    assert "was made with --n 3, now 2" in refusal(stage, output, n=2)  # what grows may not shrink
    assert output.stat().st_mtime_ns == before and files_of(tmp_path) == DONE
    assert stage(output, value="b c", overwrite=True) == "made"
    assert output.read_text() == "b c\n" * 3


def test_changed_input_is_named_with_the_command(tmp_path, monkeypatch):
    source, output = tmp_path / "in.txt", tmp_path / "out" / "out.txt"
    source.write_text("1")
    stage(output, source=source)
    (tmp_path / "moved.txt").write_text("1")
    assert stage(output, source=tmp_path / "moved.txt") == "up to date"
    source.write_text("2")
    monkeypatch.setattr(sys, "argv", ["stage.py", "--overwrite-me-not"])
    message = refusal(stage, output, source=source)
    assert f"--source has changed since this was made ({source})" in message
    assert message.endswith("stage.py --overwrite-me-not --overwrite")
    assert files_of(output.parent) == DONE


def test_output_of_the_user_is_not_touched(tmp_path):
    output = tmp_path / "out.txt"
    output.write_text("mine")
    assert "is there without a run record, so it is yours" in refusal(stage, output)
    assert output.read_text() == "mine" and files_of(tmp_path) == {"out.txt"}
    assert stage(output, overwrite=True) == "made"
    assert output.read_text() == "a\na\na\n"


def test_second_output_of_the_user_is_not_touched(tmp_path):
    also = tmp_path / "out.also"
    also.write_text("mine")
    assert "yours" in refusal(stage, tmp_path / "out.txt")
    assert also.read_text() == "mine"


@pytest.mark.parametrize("name", ["out.txt", "out.also"])
@pytest.mark.parametrize("resumable", [True, False])
def test_not_up_to_date_when_an_output_is_missing(name, resumable, tmp_path):
    stage(tmp_path / "out.txt", resumable=resumable)
    (tmp_path / name).unlink()
    try:  # make it again, or say what is missing
        assert stage(tmp_path / "out.txt", resumable=resumable) == "made"
        assert (tmp_path / name).read_text() == "a\na\na\n"
    except SystemExit as end:
        assert name in end.code.split("it is yours")[0] and "without a run record" not in end.code


def test_extending(tmp_path):
    output = tmp_path / "out.txt"
    stage(output, n=2)
    assert stage(output, n=5) == "resumed at 2"
    assert output.read_text() == "a\n" * 5 and files_of(tmp_path) == DONE
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["options"]["n"] == 5


@pytest.mark.parametrize("resumable", [True, False])
def test_unfinished_work(resumable, tmp_path):
    output = tmp_path / "out.txt"
    begun(output, 1)
    assert stage(output, resumable=resumable) == ("resumed at 1" if resumable else "made")
    assert output.read_text() == "a\na\na\n" and files_of(tmp_path) == DONE


def test_unfinished_work_with_other_options_is_kept(tmp_path):
    output = tmp_path / "out.txt"
    begun(output, 2)
    assert "was made with --value a, now b" in refusal(stage, output, value="b")
    assert stage(output) == "resumed at 2"


@pytest.mark.parametrize("resumable", [True, False])
def test_a_run_that_made_nothing_stands_in_nobodys_way(resumable, tmp_path):
    """A stage that ended before it wrote anything (a wrong --dtype, say) can be run again with the right option."""
    begun(tmp_path / "out.txt", 0, value="wrong")
    assert stage(tmp_path / "out.txt", value="right", resumable=resumable) == "made"


def test_torn_state_is_no_state(tmp_path):
    beside(tmp_path / "out.txt", ".partial.json").write_text('{"stage": "sta')
    assert stage(tmp_path / "out.txt") == "made"


def test_unreadable_state_of_work_that_could_go_on_is_never_passed_over(tmp_path):
    state, work = (beside(tmp_path / "out.txt", suffix) for suffix in (".partial.json", ".partial"))
    state.write_text('{"stage": "sta')
    work.write_text("work")
    with pytest.raises(SystemExit, match=r"partial.json: cannot be read, .* to begin it anew"):
        stage(tmp_path / "out.txt", resumable=True)
    assert work.read_text() == "work" and state.read_text() == '{"stage": "sta'
    assert stage(tmp_path / "out.txt", resumable=True, overwrite=True) == "made"


def test_progress_is_one_document_however_it_shrinks(tmp_path):
    run = start_run("stage.py", tmp_path / "out.txt", {}, {}, resumable=True)
    for progress in ([10**9, 10**9], [1, 2], None):
        save_progress(run, progress)
        assert json.loads(beside(run.output, ".partial.json").read_text())["progress"] == progress


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test catches it."""


CHANGES = [
    *((os, name) for name in ("pwrite", "ftruncate", "posix_fallocate", "fsync")),
    *((Path, name) for name in ("unlink", "replace", "open")),
]


def killed_at(step: int, monkeypatch, work, error=Killed, changes=CHANGES) -> bool:
    """Run `work` and stop it just before its `step`-th change to the disk; False: it has fewer."""
    left = [step]

    def dying(function):
        def step_or_die(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                raise error()
            return function(*args, **options)

        return step_or_die

    with monkeypatch.context() as patch:
        for owner, name in changes:
            patch.setattr(owner, name, dying(getattr(owner, name)))
        try:
            work()
        except (Killed, OSError):
            return True
    return False


@pytest.mark.parametrize("case", ["new", "extend", "overwrite", "not resumable"])
def test_killed_before_any_change_to_the_disk(case, tmp_path, monkeypatch):
    """The same command, run again, makes the whole output; without --overwrite what it would replace stays, or is made."""
    for step in range(1, 200):
        output = tmp_path / f"{step}" / "out.txt"
        options = {"resumable": case != "not resumable"}
        if case == "extend":
            stage(output, n=1)
        elif case == "overwrite":
            stage(output, value="old")
            options["overwrite"] = True
        if not killed_at(step, monkeypatch, lambda output=output, options=options: stage(output, **options)):
            assert step > 8
            break
        try:
            stage(output, **options | {"overwrite": False})
        except SystemExit:
            assert case == "overwrite" and output.read_text() == "old\n" * 3, f"step {step}"
            stage(output, **options)
        assert output.read_text() == "a\n" * 3, f"step {step}"
        assert output.with_suffix(".also").read_text() == "a\n" * 3, f"step {step}"
        assert files_of(output.parent) - {"out.txt.run.json.tmp"} == DONE, f"step {step}"
        assert stage(output, **options | {"overwrite": False}) == "up to date"


@pytest.mark.parametrize("case", ["new", "extend"])
def test_the_disk_is_full_at_any_write(case, tmp_path, monkeypatch):
    """Nothing that was noted as done is lost, and with room again the same command makes the whole."""
    writes = [(os, "pwrite"), (os, "posix_fallocate"), (os, "fsync")]

    def full():
        return OSError(errno.ENOSPC, "No space left on device")

    for step in range(1, 200):
        output = tmp_path / f"{step}" / "out.txt"
        if case == "extend":
            stage(output, n=2)
        if not killed_at(step, monkeypatch, lambda output=output: stage(output), full, writes):
            assert step > 8
            break
        state, partial = beside(output, ".partial.json"), beside(output, ".partial")
        record = beside(output, ".run.json")
        if state.exists() and state.stat().st_size and not record.exists() and partial.exists():
            held = (json.loads(state.read_text())["progress"] or [0])[0]
            assert partial.read_text()[:held] == "a\n" * (held // 2) and (case == "new" or held >= 4), f"step {step}"
        assert stage(output) in ("made", "up to date", *(f"resumed at {k}" for k in range(4)))
        assert output.read_text() == output.with_suffix(".also").read_text() == "a\n" * 3, f"step {step}"
        assert files_of(output.parent) == DONE, f"step {step}"


def test_the_state_has_its_full_length_from_the_beginning(tmp_path):
    """What is written over never grows, so no full disk can cut it; what changes lies in one page, so no kill can either."""
    options = {f"option {n}": "x" * 60 for n in range(90)}
    run = start_run("stage.py", tmp_path / "out.txt", options, {}, resumable=True)
    state = beside(run.output, ".partial.json")
    before = state.read_bytes()
    assert len(before) % 4096 == 0 and len(before) > 4096
    run.notes.update(prompt_tokens=10**12, completion_tokens=10**12, generate_seconds=10**8 + 0.25, train_file="s" * 71)
    run.state["moving"] = True
    save_progress(run, [10**15, 10**15])
    after = state.read_bytes()
    assert len(after) == len(before) and after[1024:] == before[1024:]
    assert json.loads(after)["options"] == options and json.loads(after)["progress"] == [10**15, 10**15]
    run.lock.close()


def test_records_are_on_the_disk_before_the_state_tells_of_them(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (synced.append(Path(f"/proc/self/fd/{number}").readlink().name), sync(number))
    )
    run = start_run("stage.py", tmp_path / "out.txt", {}, {}, resumable=True)
    with run.partial.open("a") as file:
        write_records(file, [{"id": "a"}])
    save_progress(run, [12])
    finish_run(run, {})
    state = "out.txt.partial.json"
    assert synced == [
        state, "out.txt.partial", state, "out.txt.partial", "out.txt.run.json.tmp", state, tmp_path.name
    ]  # fmt: skip


def test_seconds_of_all_sessions(tmp_path, monkeypatch):
    """A run that was killed and gone on with tells the seconds of both; one that begins anew those of its own."""
    output = tmp_path / "out.txt"
    run = start_run("stage.py", output, {"value": "a", "n": 3}, {"source": None}, also=[output.with_suffix(".also")])
    for path in (run.partial, beside(output.with_suffix(".also"), ".partial")):
        path.write_text("a\n")
    run.started -= 1000
    save_progress(run, [2, 2])
    run.lock.close()
    assert stage(output) == "resumed at 1"
    record = beside(output, ".run.json")
    assert 1000 <= json.loads(record.read_text())["seconds"] < 1060
    stage(output, n=4)
    assert 1000 <= json.loads(record.read_text())["seconds"] < 1060
    stage(output, n=4, overwrite=True)
    assert json.loads(record.read_text())["seconds"] < 60


@pytest.mark.parametrize(
    "error, told",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.jsonl"),
            "error: a.jsonl: No space left on device; free some",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.jsonl"), "error: a.jsonl: Disk quota exceeded; free some"),
        (OSError(errno.EIO, "Input/output error"), "error: out.txt: Input/output error; check the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "error: a: Permission denied; choose another folder"),
        (
            Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
            "error: out.txt: No space left on device; free some",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            "error: out.txt: torch could not write all of it; free some",
        ),
    ],
)
def test_what_the_disk_refuses_is_one_line(error, told, monkeypatch):
    monkeypatch.setattr(records, "at_work", [Path("out.txt")])

    def app():
        try:
            raise error
        except Exception:
            raise RuntimeError("some library's own words") from error

    for raised in (app, mock.Mock(side_effect=error)):
        message = refusal(run_command, raised)
        assert message.startswith(told) and message.endswith("and run again: what was written stays")


def test_other_errors_are_not_taken_for_the_disks():
    """What nobody foresaw goes on up: Python prints its traceback and ends with exit code 1."""
    for error in (FileNotFoundError(errno.ENOENT, "No such file"), ValueError("no")):
        with pytest.raises(type(error)) as caught:
            run_command(mock.Mock(side_effect=error))
        assert caught.value is error


def test_a_full_gpu_is_one_line_wherever_it_stands_in_the_chain():
    class OutOfMemoryError(RuntimeError):
        pass

    def wrapped():
        try:
            raise OutOfMemoryError("CUDA out of memory")
        except RuntimeError as error:
            raise ValueError("some library's own words") from error

    for raised in (mock.Mock(side_effect=OutOfMemoryError("CUDA out of memory")), wrapped):
        assert refusal(run_command, raised).startswith("error: out of GPU memory: halve the batch size")


def test_lock_held_by_another_process(tmp_path):
    output, state = tmp_path / "out.txt", tmp_path / "out.txt.partial.json"
    code = f"import fcntl; f = open({str(state)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        message = refusal(stage, output)
        assert f"{output}: another process is writing it" in message and f"fuser {state}" in message
        assert files_of(tmp_path) == {state.name}
    finally:
        holder.communicate(b"\n")
    assert stage(output) == "made"


def test_two_runs_of_one_process_exclude_each_other(tmp_path):
    run = start_run("stage.py", tmp_path / "out.txt", {}, {})
    assert "another process is writing it" in refusal(stage, tmp_path / "out.txt")
    assert stage(tmp_path / "other.txt") == "made"
    run.lock.close()


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(stage, tmp_path / "file" / "out.txt")


def test_output_that_is_a_folder(tmp_path):
    for value in ("a", "b"):
        run = start_run("train.py", tmp_path / "student", {}, {}, overwrite=value == "b")
        run.partial.mkdir()
        (run.partial / value).write_text("")
        finish_run(run, {})
        assert files_of(tmp_path / "student") == {value}
    assert files_of(tmp_path) == {"student", "student.run.json"}


def test_a_failed_run_does_not_make_the_users_file_ours(tmp_path):
    """What a stage leaves when it fails, its state, must not open the way to a file that the user puts there."""
    output = tmp_path / "student"
    start_run("stage", output, {}, {}).lock.close()  # as if the process had ended here
    output.write_text("mine")
    with pytest.raises(SystemExit, match="is yours"):
        start_run("stage", output, {}, {})
    assert output.read_text() == "mine"


def test_a_broken_run_record_is_refused_not_replaced(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("work of hours")
    (tmp_path / "out.jsonl.run.json").write_text("")
    with pytest.raises(SystemExit, match=r"run\.json: cannot be read"):
        start_run("stage", output, {}, {})
    assert output.read_text() == "work of hours"


# ---------------------------------------------------------------------------------------------------------------------
# Work that was given up, and deaths one after the other


def begin(folder, **options):
    return start_run(
        "stage.py", folder / "out.txt", {"number": 3, "seed": 0} | options.pop("changed", {}), {},
        also=[folder / "also.txt"], resumable=True, extends="number", **options,
    )  # fmt: skip


def made(folder):
    run = begin(folder)
    run.partial.write_text("finished\n")
    beside(run.also[0], ".partial").write_text("too\n")
    finish_run(run, {})
    return run


@pytest.mark.parametrize("look_at_it_first", [False, True])
def test_an_overwrite_that_was_given_up_never_gets_into_an_extension(tmp_path, look_at_it_first, capsys):
    made(tmp_path)
    run = begin(tmp_path, overwrite=True, changed={"seed": 1})
    run.partial.write_text("of another seed, and longer\n")
    beside(run.also[0], ".partial").write_text("x\n")
    save_progress(run, [28, 2])
    run.lock.close()  # killed
    if look_at_it_first:
        assert begin(tmp_path) is None
        assert "begun anew with --overwrite and not finished" in capsys.readouterr().err
    run = begin(tmp_path, changed={"number": 4})
    assert run.resumed and run.partial.read_text() == "finished\n" and run.state["progress"] == [9, 4]
    assert beside(run.also[0], ".partial").read_text() == "too\n"
    run.lock.close()


def test_a_stage_killed_while_it_names_its_files_and_again_while_it_starts_over_goes_on(tmp_path):
    for death in range(3):
        run = start_run("stage.py", tmp_path / "out.txt", {}, {}, also=[tmp_path / "also.txt"])
        run.partial.write_text(f"{death}")
        beside(run.also[0], ".partial").write_text(f"{death}")
        if death == 0:
            run.state["moving"] = True
            save_progress(run, None)
            beside(run.also[0], ".partial").replace(run.also[0])  # as finish_run had begun to
        if death < 2:
            run.lock.close()
    finish_run(run, {})
    assert (tmp_path / "out.txt").read_text() == (tmp_path / "also.txt").read_text() == "2"


def test_a_start_without_progress_leaves_the_state_as_it_was(tmp_path):
    """slurm/ compares the states: a job that gets nowhere must not look as if it did."""
    begin(tmp_path).lock.close()
    before = beside(tmp_path / "out.txt", ".partial.json").read_bytes()
    begin(tmp_path).lock.close()
    assert beside(tmp_path / "out.txt", ".partial.json").read_bytes() == before
