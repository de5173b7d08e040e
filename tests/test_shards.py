"""--shard i/n: the shards' attempts partition those of one process; readers want whole sets; signals end a chunk."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, call, pair, read_lines, refusal, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate_units import HOW, Killed, by_seed, command, follow, number_of, scripted  # noqa: F401

from gold.attempts import Plan, Pools, draw_attempt, shares_of
from gold.examples import example_key, read_examples
from gold.jsonl import expand, shard_path
from gold.runs import finish_run, start_run
from gold.stopping import STOPPED

# ---------------------------------------------------------------------------------------------------------------------
# Planning


@settings(deadline=None, max_examples=100)
@given(
    num_examples=st.integers(1, 200),
    num_labels=st.integers(1, 6),
    n=st.integers(1, 9),
    percent=st.sampled_from([0, 20, 80, 100]),
    seed=st.integers(0, 99),
)
def test_shards_are_disjoint_and_leave_no_gap(num_examples, num_labels, n, percent, seed):
    """Each has every n-th attempt at a label; where all is accepted, together they are those of one process."""

    def attempts_of(shard):
        accepts = lambda a: random.Random(f"{seed}/{a}").random() * 100 < percent  # noqa: E731
        return follow(Plan(shares_of(num_examples, num_labels, shard), 2000, shard), accepts)

    seen = []
    for i in range(n):
        mine = attempts_of((i, n))
        seen += mine
        for label in range(num_labels):
            stream = sorted(a // num_labels for a in mine if a % num_labels == label)
            assert stream == [i + n * k for k in range(len(stream))]
    assert len(set(seen)) == len(seen)
    assert percent < 100 or sorted(seen) == sorted(attempts_of((0, 1)))


@given(num_examples=st.integers(0, 500), num_labels=st.integers(1, 9), n=st.integers(1, 20))
def test_shares_add_up(num_examples, num_labels, n):
    shares = [shares_of(num_examples, num_labels, (i, n)) for i in range(n)]
    assert [sum(column) for column in zip(*shares, strict=True)] == shares_of(num_examples, num_labels)
    assert all(max(column) - min(column) <= 1 for column in zip(*shares, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Names and sets


@pytest.mark.parametrize("text", ["", "4", "4/4", "-1/4", "1/0", "a/b", "0/4/2", "0 / 4", "\u0661/\u0664"])
def test_a_bad_shard_is_an_error_of_the_command_line(text, home):
    how = ("--task-file", home / "pairs.toml", "--model", "none", "--output-dir", home)
    done = call("generate.py", *how, "--shard", text)
    assert done.returncode == 2 and "such as 0/4 to 3/4" in " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture
def shards(tmp_path):
    """Three shards of four texts each, generated; 'the beach | sun' is in the first and the last."""
    texts = [(0, 2, 4, 6), (8, 1, 3, 5), (7, 9, 11, 0)]
    for i, numbers in enumerate(texts):
        lines = [{"id": f"pairs-00-train-{i}{k}", **pair(n), "sampling_seed": k} for k, n in enumerate(numbers)]
        write_lines(shard_path(tmp_path / "train.jsonl", f"{i}/3"), lines)
        write_lines(tmp_path / f"train-0000{i}-of-00003.rejected.jsonl", [{"id": "r", "reason": "empty_field"}])
        (tmp_path / f"train-0000{i}-of-00003.jsonl.run.json").write_text("{}")
    return tmp_path


def refused(*paths) -> str:
    return refusal(expand, "--train-file", paths)


def test_a_glob_finds_the_set_without_rejects_and_run_records(shards):
    expected = [shards / f"train-0000{i}-of-00003.jsonl" for i in range(3)]
    assert expand("--train-file", [shards / "train-*"]) == expected
    assert expand("--train-file", [shards / "train-*.jsonl", shards / "own.jsonl"]) == [*expected, shards / "own.jsonl"]


def test_sets_that_are_not_whole_are_refused(shards):
    missing = shards / "train-00001-of-00003.jsonl"
    told = refused(shards / "train-00000-of-00003.jsonl", shards / "train-00002-of-00003.jsonl")
    assert f"{missing}: shard 1 of 3 is not among the files" in told
    missing.unlink()
    assert f"{missing}: shard 1 of 3 is missing; run its stage (again) with --shard 1/3" in refused(shards / "train-*")
    missing.with_name(missing.name + ".partial").touch()
    assert "shard 1 of 3 is not finished" in refused(shards / "train-*")
    write_lines(shards / "train-00000-of-00001.jsonl", [pair(1)])
    assert "holds shards of 1 and of 3; give one set, such as train-*-of-00003.jsonl" in refused(shards / "train-*")
    assert "--train-file" in (told := refused(shards / "valid-*.jsonl")) and "no such files" in told


def test_shards_that_were_not_made_alike_are_refused(tmp_path):
    for i, number in enumerate((10, 10, 20)):
        output = tmp_path / f"train-0000{i}-of-00003.jsonl"
        run = start_run("generate.py", output, {"num_examples": number, "shard": f"{i}/3"}, [])
        write_lines(run.partial, [pair(i)])
        finish_run(run, {})
    told = refused(tmp_path / "train-*")
    assert "train-00002-of-00003.jsonl and" in told and "were not made alike: num-examples differs" in told


def test_what_shards_repeat_is_dropped_and_counted_once(shards, pairs, home, models, tmp_path):
    counts = {}
    examples = read_examples(expand("--train-file", [shards / "train-*"]), pairs, counts=counts)
    assert counts == {"duplicates_between_shards": 1}
    assert len({example_key(pairs, e) for e in examples}) == len(examples) == 11
    how = ("--task-file", home / "pairs.toml", "--model", models["t5"], "--num-train-epochs", "1")
    done = call("train_student.py", *how, "--train-file", shards / "train-*.jsonl", "--output-dir", tmp_path / "s")
    assert done.returncode == 0 and "1 duplicates between shards dropped, 11 examples stay" in done.stderr, done.stderr
    counts = json.loads((tmp_path / "s.run.json").read_text())["counts"]
    assert counts["duplicates_between_shards"] == 1
    assert counts["train_examples"] + counts["held_out_examples"] == 11


def test_records_of_people_are_never_dropped(tmp_path, pairs):
    for i in range(2):  # a test set cut in two may well hold a text twice
        write_lines(tmp_path / f"test-0000{i}-of-00002.jsonl", [pair(0), pair(i + 1)])
    assert len(read_examples(expand("--test-file", [tmp_path / "test-*"]), pairs)) == 4


# ---------------------------------------------------------------------------------------------------------------------
# generate.py, with the scripted engine


@pytest.fixture
def generated(command, tmp_path):  # noqa: F811
    """One shard of 24 training examples: what the command printed."""

    def generated(shard, *args, code=0, **how):
        done = command("--num-examples", 24, "--num-validation", 0, "--shard", shard, *args, **how)
        assert done.returncode == code, done.stderr
        return done.stderr

    return generated


def of_shard(folder, i, n) -> list[list[dict]]:
    return [read_lines(folder / "iter-00" / f"train-{i:05d}-of-{n:05d}{end}.jsonl") for end in ("", ".rejected")]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shards_have_ids_seeds_and_prompts_of_their_own_and_their_share(generated, pairs, home, tmp_path, n):
    pools, records = Pools(read_examples(home / "seed.jsonl", pairs)), []
    for i in range(n):
        generated(f"{i}/{n}")
        accepted, rejected = of_shard(tmp_path, i, n)
        assert len(accepted) == sum(shares_of(24, 2, (i, n)))
        records += accepted + rejected
    assert len({r["id"] for r in records}) == len({r["sampling_seed"] for r in records}) == len(records)
    for r in records:  # what one process would ask at this attempt
        asked = draw_attempt(pairs, 0, "train", number_of(r), pools, HOW)
        assert (r["sampling_seed"], r["shots"]) == (asked.sampling_seed, [s["id"] for s in asked.shots])


def test_a_shard_that_was_cut_off_goes_on_with_its_own_attempts(generated, tmp_path):
    generated("1/2")
    whole, calls = of_shard(tmp_path, 1, 2), []
    for path in (tmp_path / "iter-00").iterdir():
        path.unlink()

    def cut_off(seed):
        calls.append(seed)
        if len(calls) == 14:  # in the second chunk: the first has 12
            raise Killed
        return by_seed(seed)

    with pytest.raises(Killed):
        generated("1/2", answer=cut_off)
    assert "going on after 12 attempts" in generated("1/2")
    assert of_shard(tmp_path, 1, 2) == whole
    assert generated("98/99", code=1).count("98/99: 24 train examples leave it none")


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_chunk_and_the_next_start_goes_on(generated, tmp_path, number):
    generated("0/1")
    whole, asked = of_shard(tmp_path, 0, 1), []
    for path in (tmp_path / "iter-00").iterdir():
        path.unlink()

    def signalled(seed):
        asked.append(seed)
        if len(asked) == 3:
            os.kill(os.getpid(), number)
        return by_seed(seed)

    told = generated("0/1", answer=signalled, code=STOPPED)
    assert STOPPED == 75 and len(asked) == 24  # the whole chunk
    assert f"stopped by {number.name}, what is done is saved; run it again to go on" in told
    assert "going on after 24 attempts" in generated("0/1")
    assert of_shard(tmp_path, 0, 1) == whole


@pytest.mark.parametrize("way", ["add_request", "step", "abort"])
def test_an_engine_that_dies_of_the_same_signal_costs_only_its_chunk(generated, tmp_path, way):
    """It may raise, or, as vLLM 0.32 does at a SIGTERM, give back what it has of each text."""

    def dies(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        if way == "abort":
            return by_seed(*args)[0], "abort"
        raise RuntimeError("EngineDeadError")

    llm = scripted(dies if way == "abort" else by_seed)
    if way != "abort":
        setattr(llm.llm_engine, way, dies)
    generated("0/1", llm=llm, code=STOPPED)
    generated("0/1")
    accepted, rejected = of_shard(tmp_path, 0, 1)
    assert len(accepted) == 24 and {r["finish_reason"] for r in accepted + rejected} == {"stop"}


@pytest.mark.engine
def test_two_real_processes_share_the_work_and_one_is_stopped_in_time(small_teacher, tmp_path):
    """SIGUSR1 at the moment when a state file is there: the process ends with 75, the next one goes on."""

    def stage(i):
        words = ["--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path]
        words += ["--num-examples", 60, "--num-validation", 24, "--shard", f"{i}/2"]
        return [sys.executable, str(ROOT / "generate.py"), *map(str, words)]

    first = subprocess.Popen(stage(0), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    state = tmp_path / "train-00000-of-00002.jsonl.partial.json"

    def stop_when_it_works():
        while first.poll() is None and not state.exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGUSR1)  # while the engine starts: noted, and heeded before the first chunk

    stopper = threading.Thread(target=stop_when_it_works)
    stopper.start()
    said = first.communicate(timeout=300)[1]
    stopper.join()
    assert first.returncode == STOPPED and "run it again to go on" in said, said[-2000:]
    for i in range(2):
        done = subprocess.run(stage(i), capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
    for split, number in (("train", 60), ("validation", 24)):
        parts = [read_lines(tmp_path / f"{split}-0000{i}-of-00002.jsonl") for i in range(2)]
        assert [len(part) for part in parts] == [number // 2] * 2
        assert all(sum(r["label"] == "positive" for r in part) == number // 4 for part in parts)
        assert not {r["sampling_seed"] for r in parts[0]} & {r["sampling_seed"] for r in parts[1]}
    assert not list(tmp_path.glob("*.partial*"))
