"""Reading records: every broken line is named by file and line; what is written is read again; ids, labels, columns."""

import errno
import json
from unittest import mock

import pytest
from conftest import refusal, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gold.command import run_command
from gold.examples import read_examples
from gold.jsonl import cut_torn_line, read_records, write_file

GOOD = b'{"first": "the lake", "second": "snow", "label": "not warm"}\n'
GENERATED = GOOD.replace(b"}", b', "sampling_seed": 7}')  # as generate.py writes it
FIELDS = json.loads(GOOD)


def with_field(value: bytes, line: bytes = GOOD) -> bytes:
    return line.replace(b"}", b", " + value + b"}")


BROKEN = {  # name: (third line of a file, what stands in the message)
    "broken JSON": (b'{"first": "the lake", "second"\n', "not a JSON object"),
    "NaN": (with_field(b'"energy": NaN'), "mend or delete the line"),
    "number too large": (with_field(b'"energy": 1e999'), "mend or delete the line"),
    "lone surrogate": (GOOD.replace(b"the lake", b"the \\ud83d lake"), "surrogate"),
    "deep nesting": (with_field(b'"x": ' + b"[" * 100_000 + b"]" * 100_000), "recursion"),
    "bad UTF-8": (GOOD.replace(b"lake", b"l\xe4ke"), "utf-8"),
    "torn": (GOOD[:30], "torn last line"),
    "no field": (b'{"first": "the lake", "label": "Warm"}\n', "no field 'second'"),
    "no answer": (b'{"first": "the lake", "second": "snow"}\n', "no field 'label'"),
    "empty field": (GOOD.replace(b"snow", b"  "), "'second' must be a text"),
    "unknown label": (GOOD.replace(b"not warm", b"hot"), "no such label: 'hot'"),
    "label a number": (GOOD.replace(b'"not warm"', b"1"), "no such label: 1; "),
    "edited source": (with_field(b'"source": "pair: the lake with sun"', GENERATED), "'source' is not what"),
    "id twice": (with_field(b'"id": "here"'), "is already in"),
    "id a bool": (with_field(b'"id": true'), "the id must be a text or a whole number, found True"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_line_is_named(name, tmp_path, pairs):
    line, words = BROKEN[name]
    path = tmp_path / "some.jsonl"
    path.write_bytes(with_field(b'"id": "here"') + b"\n" + line)  # a blank line counts, and is skipped
    message = refusal(read_examples, path, pairs)
    assert message.startswith(f"error: {path}:3: ") and words in message, message
    assert len(message) < 800


def test_files_without_records_or_that_cannot_be_read(tmp_path, pairs):
    path = tmp_path / "none.jsonl"
    path.write_bytes(b"\n \n")
    assert f"{path}: no records in it" in refusal(read_examples, path, pairs)
    for path in (tmp_path / "missing.jsonl", tmp_path):
        assert f"error: {path}: cannot be read" in refusal(read_examples, path, pairs)


@pytest.mark.parametrize("end, mark", [("\n", ""), ("\r\n", "\ufeff")])
def test_a_record_ends_where_its_line_ends(end, mark, tmp_path):
    """Raw line separators in a string cut no record; a byte order mark, CR LF, blank lines, no last line end are fine."""
    row = {"first": "the\u2028old\u2029grey\u0085lake\ufeff"}
    path, line = tmp_path / "some.jsonl", json.dumps(row, ensure_ascii=False)
    path.write_text(mark + end.join([line, " ", mark + line]), encoding="utf-8", newline="")
    assert list(read_records(path)) == [(1, row), (3, row)]


def test_a_label_column_called_target_is_kept_where_it_says_something_else(tmp_path, pairs):
    rows = [FIELDS | {"target": target} for target in ("not warm", "0")]
    same, other = read_examples(write_lines(tmp_path / "mine.jsonl", rows), pairs)
    assert "original_target" not in same and other["original_target"] == "0" and other["target"] == "not warm"


def test_ids_are_texts_or_whole_numbers_and_unique_over_files(tmp_path, pairs):
    numbered = write_lines(tmp_path / "numbered.jsonl", [FIELDS | {"id": n} for n in [0, 7, 10**20, None]])
    assert [e["id"] for e in read_examples(numbered, pairs)] == ["0", "7", f"{10**20}", "numbered:4"]
    again = write_lines(tmp_path / "again.jsonl", [FIELDS | {"id": "7"}])
    message = refusal(read_examples, [numbered, again], pairs)
    assert f"{again}:1: " in message and f"'7' is already in {numbered}; " in message
    # Those that are made have as much of the paths as tells the files of a command from each other
    paths = [tmp_path / "x" / "a" / "train.jsonl", tmp_path / "x" / "b" / "train.jsonl", tmp_path / "test.jsonl"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [FIELDS])
    a, b, test = paths
    assert [e["id"] for e in read_examples([b, a], pairs)] == ["b/train:1", "a/train:1"]
    assert [e["id"] for e in read_examples([a, test], pairs)] == ["train:1", "test:1"]
    assert [e["id"] for e in read_examples(a, pairs, among=[b])] == ["a/train:1"]
    assert "already in" in refusal(read_examples, [a, a], pairs)  # one file twice is a mistake


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
    assert "must be a text (in quotes) that is not empty, found 7.5; " in refusal(read_examples, numbers, flip)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6))
def test_what_is_written_is_read(rows, tmp_path):
    path = tmp_path / "some.jsonl"
    write_file(path, rows)
    whole = path.read_bytes()
    assert list(read_records(path)) == list(enumerate(rows, 1)) and whole.count(b"\n") == len(rows)
    path.write_bytes(whole + GOOD[:30])  # the rest of a line whose writer was killed
    cut_torn_line(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), {"warm": float("nan")}, [[1.0, float("inf")]]])
def test_writing_refuses_what_is_no_json_number(value, tmp_path):
    write_file(tmp_path / "some.jsonl", [{"id": "r6", "x": [None, {"null": "null"}]}])
    message = refusal(write_file, tmp_path / "some.jsonl", [{"id": "r7", "x": value}])
    assert message.startswith(f"error: r7: x is {value}: not finite")


# ---------------------------------------------------------------------------------------------------------------------
# How a stage ends


FULL = "No space left on device; free some"


@pytest.mark.parametrize("error, words", [
    (OSError(errno.ENOSPC, "No space left on device", "a"), f"a: {FULL}"),
    (Exception("I/O error: No space left on device (os error 28)"), f"a file: {FULL}"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "a file: torch could not write"),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "out of GPU memory: halve "),
])  # fmt: skip
def test_what_the_machine_refuses_is_one_line(error, words):
    """Wherever it stands in the chain of causes."""

    def wrapped():
        try:
            raise error
        except Exception as cause:
            raise ValueError("some library's own words") from cause

    for raised in (wrapped, mock.Mock(side_effect=error)):
        message = refusal(run_command, raised)
        assert message.startswith(f"error: {words}")
        assert "GPU" in message or message.endswith("and run again: what was written stays")
