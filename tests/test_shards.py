"""--shard i/n: shards partition the attempts of one process; readers want whole sets; signals end a chunk."""

import os
import signal

import pytest
from conftest import by_seed, pair, read_lines, record_of, refusal, scripted, train, write_lines
from test_generate_units import HOW, number_of

from gold.attempts import Pools, draw_attempt, shares_of
from gold.examples import example_key, read_examples
from gold.jsonl import expand, shard_path
from gold.runs import finish_run, start_run
from gold.stopping import STOPPED

# ---------------------------------------------------------------------------------------------------------------------
# Names and sets


@pytest.fixture
def shards(tmp_path):
    """Three shards of four texts each, generated; 'the beach | sun' is in the first and the last."""
    for i, numbers in enumerate([(0, 2, 4, 6), (8, 1, 3, 5), (7, 9, 11, 0)]):
        lines = [{"id": f"pairs-00-train-{i}{k}", **pair(n), "sampling_seed": k} for k, n in enumerate(numbers)]
        path = write_lines(shard_path(tmp_path / "train.jsonl", f"{i}/3"), lines)
        write_lines(path.with_suffix(".rejected.jsonl"), [{"id": "r", "reason": "empty_field"}])
        path.with_name(path.name + ".run.json").write_text("{}")
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
    assert "or run its stage with --shard 1/3" in refused(shards / "train-*")
    missing.with_name(missing.name + ".partial").touch()
    assert "shard 1 of 3 is not among the files" in refused(shards / "train-*")
    write_lines(shards / "train-00000-of-00001.jsonl", [pair(1)])
    assert "holds shards of 1 and of 3; give one set, such as train-*-of-00003.jsonl" in refused(shards / "train-*")
    for name in ("valid-*.jsonl", "*d.jsonl"):  # the second: rejects alone
        assert "--train-file" in (told := refused(shards / name)) and "no such files" in told


def test_shards_that_were_not_made_alike_are_refused(tmp_path):
    for i, number in enumerate((10, 20)):
        output = tmp_path / f"train-0000{i}-of-00002.jsonl"
        run = start_run("generate.py", output, {"num_examples": number, "shard": f"{i}/2"}, [])
        write_lines(run.partial, [pair(i)])
        finish_run(run, {})
    told = refused(tmp_path / "train-*")
    assert "train-00001-of-00002.jsonl and" in told and "were not made alike: num-examples differs" in told


def test_what_shards_repeat_is_dropped_and_counted_once(shards, pairs, home, models, tmp_path):
    counts = {}
    examples = read_examples(expand("--train-file", [shards / "train-*"]), pairs, counts=counts)
    assert counts == {"duplicates_between_shards": 1}
    assert len({example_key(pairs, e) for e in examples}) == len(examples) == 11
    done = train(home, models["t5"], tmp_path / "s", "--num-train-epochs", 1, data=shards / "train-*.jsonl")
    assert done.returncode == 0 and "1 duplicates between shards dropped, 11 examples stay" in done.stderr, done.stderr
    counts = record_of(tmp_path / "s")["counts"]
    assert counts["duplicates_between_shards"] == 1
    assert counts["train_examples"] + counts["held_out_examples"] == 11


def test_records_of_people_are_never_dropped(tmp_path, pairs):
    for i in range(2):  # a test set cut in two may well hold a text twice
        write_lines(tmp_path / f"test-0000{i}-of-00002.jsonl", [pair(0), pair(i + 1)])
    assert len(read_examples(expand("--test-file", [tmp_path / "test-*"]), pairs)) == 4


# ---------------------------------------------------------------------------------------------------------------------
# generate.py, with the scripted engine


@pytest.fixture
def generated(command, tmp_path):
    """One shard of 24 training examples: what was printed, accepted and rejected."""

    def generated(shard, code=0, folder="iter-00", **how):
        done = command("--num-examples", 24, "--num-validation", 0, "--shard", shard, folder=folder, **how)
        assert done.returncode == code, done.stderr
        path = shard_path(tmp_path / folder / "train.jsonl", shard)
        return done.stderr, *(read_lines(p) for p in (path, path.with_suffix(".rejected.jsonl")) if not code)

    return generated


@pytest.mark.parametrize("n", [1, 3])
def test_shards_have_ids_seeds_and_prompts_of_their_own_and_their_share(generated, pairs, home, n):
    pools, records = Pools(read_examples(home / "seed.jsonl", pairs)), []
    for i in range(n):
        _, accepted, rejected = generated(f"{i}/{n}")
        assert len(accepted) == sum(shares_of(24, 2, (i, n)))
        records += accepted + rejected
    assert "98/99: 24 train examples leave it none" in generated("98/99", code=1)[0]
    assert len({r["id"] for r in records}) == len({r["sampling_seed"] for r in records}) == len(records)
    for r in records:  # what one process would ask at this attempt
        asked = draw_attempt(pairs, 0, "train", number_of(r), pools, HOW)
        assert (r["sampling_seed"], r["shots"]) == (asked.sampling_seed, [s["id"] for s in asked.shots])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_chunk_and_the_next_start_goes_on(generated, number):
    """A shard, which goes on with its own attempts."""
    asked = []

    def answer(seed):
        asked.append(seed)
        if len(asked) == 3:
            os.kill(os.getpid(), number)
        return by_seed(seed)

    [told] = generated("1/2", answer=answer, code=STOPPED)
    assert STOPPED == 75 and len(asked) == 12  # the whole chunk
    assert f"stopped by {number.name}, what is done is saved; run it again to go on" in told
    told, *records = generated("1/2")
    assert "going on after 12 attempts" in told and records == list(generated("1/2", folder="iter-0")[1:])


@pytest.mark.parametrize("way", ["add_request", "step", "abort"])
def test_an_engine_that_dies_of_the_same_signal_costs_nothing_that_is_saved(generated, way):
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
    _, accepted, rejected = generated("0/1")
    assert len(accepted) == 24 and {r["finish_reason"] for r in accepted + rejected} == {"stop"}


def test_an_error_of_the_engine_is_told_in_one_line(generated):
    def dies():
        raise RuntimeError("no attention kernel for heads of 8")

    llm = scripted(by_seed)
    llm.llm_engine.step = dies
    [told] = generated("0/1", llm=llm, code=1)
    assert "vLLM stopped: no attention kernel for heads of 8; what is saved stays" in told.splitlines()[-1]
