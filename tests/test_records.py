"""Reading records: every broken line is named by file and line; what is written is read again; ids, labels, columns."""

import errno
import json
import os
import re
import subprocess
from unittest import mock

import pytest
from conftest import refusal, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gold.command import run_command
from gold.examples import MADE, column_of, read_examples
from gold.jsonl import cut_torn_line, read_records, write_file

GOOD = b'{"first": "the lake", "second": "snow", "label": "not warm"}\n'
GENERATED = GOOD.replace(b"}", b', "sampling_seed": 7}')  # as generate.py writes it
FIELDS = json.loads(GOOD)
RENDERED = {"source": "pair: the lake with snow", "target": "not warm"}


def with_field(value: bytes, line: bytes = GOOD) -> bytes:
    return line.replace(b"}", b", " + value + b"}")


BROKEN = {  # name: (third line of a file, what the message tells)
    "broken JSON": (b'{"first": "the lake", "second"\n', "not a JSON object"),
    "not JSON at all": (b"first,second,label\n", "found 'first,second,label"),
    "list": (b'["the lake", "snow"]\n', "not a JSON object"),
    "null": (b"null\n", "not a JSON object"),
    "two objects": (b'{"first": "a"} {"first": "b"}\n', "not a JSON object"),
    "NaN": (with_field(b'"energy": NaN'), "NaN is not a JSON number"),
    "infinity": (with_field(b'"energy": -Infinity'), "-Infinity is not a JSON number"),
    "number too large": (with_field(b'"energy": 1e999'), "mend or delete the line"),
    "lone surrogate": (GOOD.replace(b"the lake", b"the \\ud83d lake"), "surrogates not allowed"),
    "deep nesting": (with_field(b'"x": ' + b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    "long number": (with_field(b'"x": ' + b"7" * 9000), "4300"),
    "bad UTF-8": (GOOD.replace(b"lake", b"l\xe4ke"), "utf-8"),
    "torn": (GOOD[:30], "torn last line"),
    "no field": (b'{"first": "the lake", "label": "Warm"}\n', "no field 'second'"),
    "no answer": (b'{"first": "the lake", "second": "snow"}\n', "no field 'label'"),
    "empty field": (GOOD.replace(b"snow", b"  "), "'second' must be a text"),
    "field no text": (GOOD.replace(b'"snow"', b"7"), "'second' must be a text"),
    "unknown label": (GOOD.replace(b"not warm", b"hot"), "no such label: 'hot'"),
    "label a number": (GOOD.replace(b'"not warm"', b"1"), "if 0 is Warm, 1 is not warm: "),
    "label of no order": (GOOD.replace(b'"not warm"', b"2"), "has Warm, not warm; correct the line"),
    "no label": (GOOD.replace(b'"not warm"', b"-1"), "no such label: -1; "),
    "edited source": (with_field(b'"source": "pair: the lake with sun"', GENERATED), "'source' is not what"),
    "edited target": (with_field(b'"target": "Warm"', GENERATED), "'target' is not what"),
    "id twice": (with_field(b'"id": "here"'), "is already in"),
    "id a list": (with_field(b'"id": ["here"]'), "the id must be a text or a whole number"),
    "id a bool": (with_field(b'"id": true'), "the id must be a text or a whole number, found True"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_line_is_named(name, tmp_path, pairs):
    line, told = BROKEN[name]
    path = tmp_path / "some.jsonl"
    path.write_bytes(with_field(b'"id": "here"') + b"\n" + line)  # a blank line counts, and is skipped
    message = refusal(read_examples, path, pairs)
    assert message.startswith(f"error: {path}:3: ") and told in message, message
    assert len(message) < 800


def test_files_without_records_or_that_cannot_be_read(tmp_path, pairs):
    path = tmp_path / "none.jsonl"
    for content in (b"", b"\n \n"):
        path.write_bytes(content)
        assert f"{path}: no records in it" in refusal(read_examples, path, pairs)
    for path in (tmp_path / "missing.jsonl", tmp_path):
        assert f"error: {path}: cannot be read" in refusal(read_examples, path, pairs)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("inner", ["\u2028", "\u2029", "\u0085", "\ufeff"])
def test_a_record_ends_where_its_line_ends(end, mark, inner, tmp_path, pairs):
    """Raw line separators in a string cut no record; a byte order mark, CR LF, blank lines, no last line end are fine."""
    row = json.dumps({"first": f"the{inner}lake", "second": "snow", "label": "Warm"}, ensure_ascii=False)
    path = tmp_path / "some.jsonl"
    path.write_text(mark + end.join([row, " ", row]), encoding="utf-8", newline="")
    assert [number for number, _ in read_records(path)] == [1, 3]
    assert [e["first"] for e in read_examples(path, pairs)] == [f"the{inner}lake"] * 2


def test_read_examples_renders(tmp_path, pairs):
    rows = [FIELDS, FIELDS | {"id": "own", "group": 3}, FIELDS | RENDERED | {"id": "again"}]
    found = read_examples(write_lines(tmp_path / "some.jsonl", rows), pairs)
    assert found == [{"id": i, **row, **RENDERED} for i, row in zip(["some:1", "own", "again"], rows, strict=True)]
    bare = {k: v for k, v in FIELDS.items() if k != "label"}
    path = write_lines(tmp_path / "bare.jsonl", [bare])
    assert read_examples(path, pairs, answers=False) == [{"id": "bare:1", **bare, "source": RENDERED["source"]}]


def test_ids_are_texts_or_whole_numbers_and_unique_over_files(tmp_path, pairs):
    numbered = write_lines(tmp_path / "numbered.jsonl", [FIELDS | {"id": n} for n in [0, 7, 10**20, None]])
    assert [e["id"] for e in read_examples(numbered, pairs)] == ["0", "7", f"{10**20}", "numbered:4"]
    again = write_lines(tmp_path / "again.jsonl", [FIELDS | {"id": "7"}])
    message = refusal(read_examples, [numbered, again], pairs)
    assert f"{again}:1: " in message and f"'7' is already in {numbered}; " in message


def test_made_ids_are_unique_by_path(tmp_path, pairs):
    """As much of the paths as tells the files of a command from each other."""
    paths = [tmp_path / "x" / "a" / "train.jsonl", tmp_path / "x" / "b" / "train.jsonl", tmp_path / "test.jsonl"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [FIELDS])
    assert [e["id"] for e in read_examples(paths[:2], pairs)] == ["a/train:1", "b/train:1"]
    assert [e["id"] for e in read_examples(paths[1::-1], pairs)] == ["b/train:1", "a/train:1"]  # in any order
    assert [e["id"] for e in read_examples([paths[0], paths[2]], pairs)] == ["train:1", "test:1"]
    assert "already in" in refusal(read_examples, [paths[0], paths[0]], pairs)  # one file twice is a mistake


def test_labels_that_are_certain_are_mapped_and_counted(tmp_path, pairs, flip, capfd):
    labels = ["Warm", "WARM", " warm\n", "Not Warm", "not warm"]
    path = write_lines(tmp_path / "some.jsonl", [FIELDS | {"label": label, "labels": [label]} for label in labels])
    found = read_examples(path, pairs)
    assert [e["label"] for e in found] == [e["target"] for e in found] == ["Warm"] * 3 + ["not warm"] * 2
    assert [e["labels"] for e in found] == [[e["label"]] for e in found]
    assert f"{path}: 'WARM' is read as 'Warm' in " in capfd.readouterr().err
    numbers = write_lines(tmp_path / "numbers.jsonl", [{"text": "3 and 4", "answer": 7, "answers": [7, "seven"]}])
    (e,) = read_examples(numbers, flip)
    assert (e["answer"], e["answers"], e["target"]) == ("7", ["7", "seven"], "7")
    assert "7 is read as '7' in " in capfd.readouterr().err
    write_lines(numbers, [{"text": "3 and 4", "answer": 7.5}])
    assert "must be a text that is not empty, found 7.5; put it in quotes" in refusal(read_examples, numbers, flip)


@pytest.mark.parametrize("values", [(0, 1), ("0", " 1"), (0.0, 1.0)])
def test_the_command_that_maps_numbers_to_labels_does(values, tmp_path, pairs):
    if subprocess.run(["which", "jq"], capture_output=True, check=False).returncode:
        pytest.skip("no jq here")
    path = write_lines(tmp_path / "it's mine.jsonl", [FIELDS | {"label": value} for value in values])
    command = refusal(read_examples, path, pairs).partition("1 is not warm: ")[2]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = tmp_path / "it's mine.named.jsonl"
    assert [e["label"] for e in read_examples(named, pairs)] == ["Warm", "not warm"]


def test_columns_of_the_user_stay_under_another_name(tmp_path, pairs, capfd):
    """The user's `correct`, `energy` ... of a file that no stage wrote; an id, a split or a group may be called so."""
    own = {name: f"my {name}" for name in MADE} | {"split": "test", "energy_kwh": 5, "task": "a"}
    path = write_lines(tmp_path / "mine.jsonl", [FIELDS | own, FIELDS])
    first, second = read_examples(path, pairs)
    kept = {"split": "test", "energy_kwh": 5, "task": "a"} | {f"original_{name}": f"my {name}" for name in MADE}
    assert first == {"id": "mine:1", **FIELDS, **RENDERED, **kept}
    assert second == {"id": "mine:2", **FIELDS, **RENDERED}
    assert "kept as 'original_" in capfd.readouterr().err
    used = read_examples(path, pairs, use={"energy", "teacher_label"})[0]  # what options ask for
    assert used["energy"] == "my energy" and used["teacher_label"] == "my teacher_label"
    assert used["original_nll"] == "my nll" and "original_energy" not in used
    capfd.readouterr()
    # What is written then is the toolkit's: read again, nothing changes
    assert read_examples(write_lines(tmp_path / "again.jsonl", [first, second]), pairs) == [first, second]
    assert capfd.readouterr().err == ""
    # A label column called `target` that says the same is no other column
    rows = [FIELDS | {"target": t} for t in ("not warm", "0")]
    same, other = read_examples(write_lines(path, rows), pairs)
    assert "original_target" not in same and other["original_target"] == "0" and other["target"] == "not warm"


def test_an_option_names_the_column_wherever_it_is_now():
    assert column_of("prediction", [{"prediction": "a", "original_prediction": "b"}]) == "prediction"
    assert column_of("prediction", [{"original_prediction": "b"}]) == "original_prediction"
    assert column_of("source", [{"source": "x", "original_source": "imdb"}]) == "original_source"
    assert column_of("source", [{"source": "x"}]) == "source" and column_of(None, [{}]) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6))
def test_what_is_written_is_read(rows, tmp_path):
    path = tmp_path / "some.jsonl"
    write_file(path, rows)
    whole = path.read_bytes()
    assert list(read_records(path)) == list(enumerate(rows, 1))
    assert whole.count(b"\n") == len(rows)
    path.write_bytes(whole + GOOD[:30])  # the rest of a line whose writer was killed
    cut_torn_line(path)
    assert path.read_bytes() == whole


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
    with pytest.raises(SystemExit, match="error: r7: energy is nan"):
        write_file(tmp_path / "some.jsonl", [{"id": "r7", "energy": float("nan")}])


# ---------------------------------------------------------------------------------------------------------------------
# How a stage ends


@pytest.mark.parametrize(
    "error, told",
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "a: No space left on device; free some"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "a: Disk quota exceeded; free some"),
        (OSError(errno.EIO, "Input/output error"), "a file: Input/output error; check the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; choose another folder"),
        (Exception("I/O error: No space left on device (os error 28)"), "a file: No space left on device; free some"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "a file: torch could not write"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "out of GPU memory: halve "),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, told):
    """Wherever it stands in the chain of causes."""

    def wrapped():
        try:
            raise error
        except Exception as cause:
            raise ValueError("some library's own words") from cause

    for raised in (wrapped, mock.Mock(side_effect=error)):
        message = refusal(run_command, raised)
        assert message.startswith(f"error: {told}")
        assert "GPU" in message or message.endswith("and run again: what was written stays")


def test_what_nobody_foresaw_goes_on_up():
    """Python prints its traceback and ends with exit code 1."""
    for error in (FileNotFoundError(errno.ENOENT, "No such file"), ValueError("no")):
        with pytest.raises(type(error)) as caught:
            run_command(mock.Mock(side_effect=error))
        assert caught.value is error


def test_the_name_of_a_file_is_told_where_the_disk_is_full(tmp_path):
    """Errors of writing to an open file do not tell it themselves."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch.object(os, "fsync", side_effect=full):
        assert f"error: {tmp_path / 'x.jsonl'}: No space" in refusal(
            run_command, lambda: write_file(tmp_path / "x.jsonl", [{"id": "a"}])
        )
