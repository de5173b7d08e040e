"""Mutated files, by the mutations of bench/fuzz.py: whatever is in them, one line or a result, never a traceback.

The parser is fuzzed in test_task.py, the equation evaluator in test_metrics.py, selection in test_score.py.
"""

import contextlib
import random
import re
from unittest import mock

import pytest
from conftest import ROOT, pair, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.fuzz import mutate
from gold.disk import beside
from gold.examples import read_examples
from gold.jsonl import read_records, write_file
from gold.parsing import parse_completion
from gold.prompts import render_prompt, structured_pattern
from gold.runs import finish_run, save_notes, start_run
from gold.task import load_task

SEEDS = st.integers(0, 2**32)
QUICK = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(seed=SEEDS, name=st.sampled_from(["reviews", "word_problems"]))
def test_a_mutated_task_file_is_refused_or_can_be_worked_with(seed, name, tmp_path):
    path = tmp_path / "task.toml"
    path.write_bytes((ROOT / f"prompts/{name}.toml").read_bytes())
    mutate(random.Random(seed), path)
    try:
        task = load_task(path)
    except SystemExit as end:
        assert re.fullmatch(rf"error: [^\n]*{re.escape(str(path))}[^\n]*", end.code)
        return
    shot = {name: f"some {name} 1" for name in [*task.fields, task.answer_field]}
    for label in list(task.labels) or [None]:
        known = {task.answer_field: label} if label is not None else {}
        for split in ("train", "validation"):
            for feedback in ([], [shot]):
                texts = render_prompt(task, split, [shot | known], label, feedback, "a $report")
                assert all(isinstance(text, str) for text in texts)
        re.compile(structured_pattern(task, label))
        parse_completion(task, " Anything at all\nAnd more: 3 + 4", label)


@QUICK
@given(seed=SEEDS, times=st.integers(1, 3))
def test_mutated_records_are_read_whole_or_refused_by_file_and_line(seed, times, pairs, tmp_path):
    path = write_lines(tmp_path / "examples.jsonl", [{"id": f"x{n}", **pair(n)} for n in range(5)])
    rng = random.Random(seed)
    for _ in range(times):
        mutate(rng, path)
    try:
        examples = read_examples(path, pairs)
    except SystemExit as end:
        assert re.fullmatch(rf"error: {re.escape(str(path))}(:\d+)?: [^\n]+", end.code)
        return
    assert len({e["id"] for e in examples}) == len(examples) > 0
    for e in examples:
        assert e["label"] in pairs.labels and e["source"] == f"pair: {e['first']} with {e['second']}"


@pytest.mark.parametrize("finished", [True, False])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS)
def test_a_mutated_run_record_or_state_never_costs_the_work(finished, seed, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out.jsonl"

    def start():
        return start_run("stage.py", output, {"number": 3}, [], resumable=True, extends="number")

    with mock.patch("gold.runs.git_state", lambda: {"git_commit": "x"}):
        run = start()
        write_file(run.partial, [{"id": 1}])
        save_notes(run)
        if finished:
            finish_run(run, {"made": 1})
        run.lock.close()
        mutate(random.Random(seed), beside(output, ".run.json" if finished else ".partial.json"))
        with contextlib.suppress(SystemExit):
            if run := start():
                save_notes(run)
                run.lock.close()
    kept = [p for p in (output, beside(output, ".partial")) if p.exists()]
    assert [[record for _, record in read_records(p)] for p in kept] == [[{"id": 1}]]
