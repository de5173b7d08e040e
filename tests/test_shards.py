"""--shard i/n: the shards' attempts partition those of one process; readers want whole sets; shards add up to the whole."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, call, pair, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate_units import OPTIONS, by_seed, engine

from generate import STOPPED, draw_attempt, note_signals, plan_chunk, sample_split, shares_of
from records import expand, finish_run, parse_shard, read_examples, shard_path, start_run
from task import text_key

# ---------------------------------------------------------------------------------------------------------------------
# Planning


def attempts_of(num_examples: int, num_labels: int, shard: tuple[int, int], accepts) -> list[int]:
    """All attempts of one process when attempt a is accepted if accepts(a), for as long as there is something to do."""
    attempted, accepted, made = [0] * num_labels, [0] * num_labels, []
    while chunk := plan_chunk(num_examples, 2000 - len(made), attempted, accepted, shard):
        shares = shares_of(num_examples, num_labels, shard)
        for a in chunk:
            label = a % num_labels
            attempted[label] += 1
            accepted[label] += accepts(a) and accepted[label] < shares[label]
        made += chunk
    return made


@settings(deadline=None, max_examples=100)
@given(num_examples=st.integers(1, 200), num_labels=st.integers(1, 6), n=st.integers(1, 9))
def test_where_all_is_accepted_the_shards_attempts_are_those_of_one_process(num_examples, num_labels, n):
    one = attempts_of(num_examples, num_labels, (0, 1), lambda a: True)
    shards = [attempts_of(num_examples, num_labels, (i, n), lambda a: True) for i in range(n)]
    together = sorted(a for shard in shards for a in shard)
    assert together == sorted(one)  # each once


@settings(deadline=None, max_examples=100)
@given(
    num_examples=st.integers(1, 200),
    num_labels=st.integers(1, 6),
    n=st.integers(1, 9),
    percent=st.integers(0, 100),
    seed=st.integers(0, 99),
)
def test_under_any_yield_shards_are_disjoint_and_leave_no_gap(num_examples, num_labels, n, percent, seed):
    accepts = lambda a: random.Random(f"{seed}/{a}").random() * 100 < percent  # noqa: E731
    seen = set()
    for i in range(n):
        mine = attempts_of(num_examples, num_labels, (i, n), accepts)
        assert len(set(mine)) == len(mine) and not seen & set(mine)
        seen |= set(mine)
        for label in range(num_labels):
            stream = sorted(a // num_labels for a in mine if a % num_labels == label)
            assert stream == [
                i + n * k for k in range(len(stream))
            ]  # every n-th attempt at this label, from the i-th on


@given(num_examples=st.integers(0, 500), num_labels=st.integers(1, 9), n=st.integers(1, 20))
def test_shares_add_up(num_examples, num_labels, n):
    shares = [shares_of(num_examples, num_labels, (i, n)) for i in range(n)]
    assert [sum(column) for column in zip(*shares, strict=True)] == shares_of(num_examples, num_labels)
    assert all(max(column) - min(column) <= 1 for column in zip(*shares, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Names and sets


def plain(message: str) -> str:
    """An error of the command line without its frame and line breaks."""
    return " ".join(message.replace("│", " ").split())


@pytest.mark.parametrize("text", ["", "4", "4/4", "-1/4", "1/0", "a/b", "0/4/2", "0 / 4", "\u0661/\u0664"])
def test_a_bad_shard_is_an_error_of_the_command_line(text, home):
    done = call("generate.py", "sample", "--task-file", home / "pairs.toml", "--model", "none", "--output-dir", home,
                "--shard", text)  # fmt: skip
    assert done.returncode == 2 and "such as 0/4 to 3/4" in plain(done.stderr)


def test_names(tmp_path):
    assert parse_shard(None) is None and parse_shard("3/4") == (3, 4)
    assert shard_path(tmp_path / "train.jsonl", (3, 4)) == tmp_path / "train-00003-of-00004.jsonl"
    assert shard_path(tmp_path / "train.jsonl", None) == tmp_path / "train.jsonl"


@pytest.fixture
def shards(tmp_path):
    """Three shards of four texts each, generated; 'the beach | sun' is in the first and the last."""
    texts = [(0, 2, 4, 6), (8, 1, 3, 5), (7, 9, 11, 0)]
    for i, numbers in enumerate(texts):
        lines = [
            {"id": f"pairs-00-train-{i}{k}", **pair(n), "sampling_seed": k} for k, n in enumerate(numbers)
        ]  # fmt: skip
        write_lines(shard_path(tmp_path / "train.jsonl", (i, 3)), lines)
        write_lines(tmp_path / f"train-0000{i}-of-00003.rejected.jsonl", [{"id": "r", "reason": "empty_field"}])
        (tmp_path / f"train-0000{i}-of-00003.jsonl.run.json").write_text("{}")
    return tmp_path


def refusal(*paths) -> str:
    with pytest.raises(SystemExit) as end:
        expand("--train-file", paths)
    return str(end.value)


def test_a_glob_finds_the_set_without_rejects_and_run_records(shards):
    expected = [shards / f"train-0000{i}-of-00003.jsonl" for i in range(3)]
    assert expand("--train-file", [shards / "train-*"]) == expected
    assert expand("--train-file", [shards / "train-*.jsonl", shards / "own.jsonl"]) == [*expected, shards / "own.jsonl"]


def test_an_incomplete_set_is_refused_by_the_name_of_what_is_missing(shards):
    missing = shards / "train-00001-of-00003.jsonl"
    said = refusal(shards / "train-00000-of-00003.jsonl", shards / "train-00002-of-00003.jsonl")
    assert f"{missing}: shard 1 of 3 is not among the files" in said
    missing.unlink()
    assert f"{missing}: shard 1 of 3 is missing; run its stage (again) with --shard 1/3" in refusal(shards / "train-*")
    missing.with_name(missing.name + ".partial").touch()
    assert "shard 1 of 3 is not finished" in refusal(shards / "train-*")


def test_two_sets_of_one_file_and_nothing_at_all_are_refused(shards):
    write_lines(shards / "train-00000-of-00001.jsonl", [pair(1)])
    assert "holds shards of 1 and of 3; give one set, such as train-*-of-00003.jsonl" in refusal(shards / "train-*")
    assert "--train-file" in (said := refusal(shards / "valid-*.jsonl")) and "no such files" in said


def test_shards_that_were_not_made_alike_are_refused(tmp_path):
    for i, number in enumerate((10, 10, 20)):
        output = tmp_path / f"train-0000{i}-of-00003.jsonl"
        run = start_run("generate.py sample", output, {"num_examples": number, "shard": f"{i}/3"}, {})
        write_lines(run.partial, [pair(i)])
        finish_run(run, {})
    said = refusal(tmp_path / "train-*")
    assert "train-00002-of-00003.jsonl and" in said and "were not made alike: --num-examples differs" in said


def test_what_shards_repeat_is_dropped_and_counted_once(shards, pairs, capsys):
    counts = {}
    examples = read_examples(expand("--train-file", [shards / "train-*"]), pairs, counts=counts)
    assert counts == {"duplicates_between_shards": 1} and len(examples) == 11
    assert len({text_key(pairs, e) for e in examples}) == 11 and examples[0]["id"] == "pairs-00-train-00"
    assert "1 duplicates between shards dropped, 11 examples stay" in capsys.readouterr().err


def test_records_of_people_are_never_dropped(tmp_path, pairs):
    for i in range(2):  # a test set cut in two may well hold a text twice
        write_lines(tmp_path / f"test-0000{i}-of-00002.jsonl", [pair(0), pair(i + 1)])
    assert len(read_examples(expand("--test-file", [tmp_path / "test-*"]), pairs)) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Stages


def test_shards_of_scores_add_up_to_the_whole(home, trained, tmp_path):
    how = ("--task-file", home / "pairs.toml", "--low", "0.5", "--high", "1")
    given_ = ("--model", trained["t5"], "--input-file", home / "validation.jsonl")
    outputs = ("--output-file", tmp_path / "whole.jsonl", "--feedback-file", tmp_path / "f.jsonl")
    whole = call("score_ood.py", *how, *given_, *outputs)
    assert whole.returncode == 0, whole.stderr
    for i in range(3):
        done = call("score_ood.py", *how, *given_, "--output-file", tmp_path / "scored.jsonl", "--shard", f"{i}/3")
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "scored.jsonl").exists()
    merge = (*how, "--input-file", tmp_path / "scored-*-of-00003.jsonl", "--output-file", tmp_path / "scored.jsonl")
    assert call("score_ood.py", *merge, "--feedback-file", tmp_path / "feedback.jsonl").returncode == 0

    def close(a, b):
        return a.keys() == b.keys() and all(
            b[k] == (pytest.approx(v, abs=1e-4) if isinstance(v, float) else v) for k, v in a.items()
        )

    by_id = {r["id"]: r for r in read_lines(tmp_path / "scored.jsonl")}
    records = read_lines(tmp_path / "whole.jsonl")
    assert len(by_id) == len(records) == 24 and all(close(r, by_id[r["id"]]) for r in records)
    picked, expected = read_lines(tmp_path / "feedback.jsonl"), read_lines(tmp_path / "f.jsonl")
    assert [r["id"] for r in picked] == [r["id"] for r in expected]
    assert json.loads((tmp_path / "scored.jsonl.run.json").read_text())["counts"]["scored"] == 24


def test_a_shard_of_scores_selects_nothing_and_selecting_needs_scores(home, trained, tmp_path):
    how = ("--task-file", home / "pairs.toml", "--input-file", home / "validation.jsonl")
    how += ("--output-file", tmp_path / "s.jsonl")
    done = call("score_ood.py", *how, "--model", trained["t5"], "--shard", "0/2", "--feedback-file", tmp_path / "f")
    assert done.returncode == 2 and "score all shards" in plain(done.stderr)
    done = call("score_ood.py", *how, "--feedback-file", tmp_path / "f.jsonl")
    assert done.returncode == 1 and "no energy" in done.stderr and "give the --model" in done.stderr
    done = call("score_ood.py", *how, "--model", trained["t5"], "--shard", "98/99")
    assert done.returncode == 1 and "none of 24 examples is left" in done.stderr


def test_shards_of_predictions_add_up_to_the_whole(home, trained, tmp_path):
    how = ("--task-file", home / "pairs.toml", "--group-by", "group")
    of_all = ("--model", trained["bert"], "--test-file", home / "test.jsonl")
    assert call("evaluate.py", *how, *of_all, "--output-dir", tmp_path / "whole").returncode == 0
    for i in range(2):
        done = call("evaluate.py", *how, *of_all, "--output-dir", tmp_path / "parts", "--shard", f"{i}/2")
        assert done.returncode == 0 and not done.stdout, done.stderr
    parts = ("--prediction-field", "prediction", "--test-file", tmp_path / "parts/predictions-*-of-00002.jsonl")
    done = call("evaluate.py", *how, *parts, "--output-dir", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    of = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "parts")}
    for metrics in of.values():
        metrics.pop("test_file")
    assert of["whole"] == of["parts"]
    assert call("evaluate.py", *how, *parts, "--output-dir", tmp_path / "x", "--shard", "0/2").returncode == 2


def test_training_reads_a_glob_and_counts_what_it_dropped(shards, home, models, tmp_path):
    how = ("--task-file", home / "pairs.toml", "--model", models["t5"], "--num-train-epochs", "1")
    done = call("train_student.py", *how, "--train-file", shards / "train-*.jsonl", "--output-dir", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "s.run.json").read_text())["counts"]
    assert counts["duplicates_between_shards"] == 1
    assert counts["train_examples"] + counts["held_out_examples"] == 11


@pytest.fixture
def sample_shard(pairs, home, models, tmp_path, monkeypatch):
    """Sample one shard of 24 examples with the scripted engine into its own files."""
    from transformers import AutoTokenizer

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # as start_engine does without a GPU
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    pools = {"seed": read_examples(home / "seed.jsonl", pairs), "feedback": []}

    def sample(shard, answer=by_seed, signals=(), num_examples=24):
        output = shard_path(tmp_path / "train.jsonl", shard)
        options = OPTIONS | {"num_examples": num_examples}
        run = start_run("generate.py sample", output, options, {}, also=[output.with_suffix(".rejected.jsonl")],
                        resumable=True, extends="num_examples")  # fmt: skip
        try:
            return sample_split(run, pairs, "train", 0, options, 500, pools, set(), engine(answer), tokenizer, 2000, {},
                                shard, signals)  # fmt: skip
        except BaseException:
            run.lock.close()
            raise

    return sample


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shards_have_ids_seeds_and_prompts_of_their_own_and_their_share(sample_shard, pairs, home, tmp_path, n):
    pools = {"seed": read_examples(home / "seed.jsonl", pairs), "feedback": []}
    records = []
    for i in range(n):
        sample_shard((i, n))
        mine = read_lines(shard_path(tmp_path / "train.jsonl", (i, n)))
        assert len(mine) == sum(shares_of(24, 2, (i, n)))
        records += mine + read_lines(tmp_path / f"train-{i:05d}-of-{n:05d}.rejected.jsonl")
    assert len({r["id"] for r in records}) == len({r["sampling_seed"] for r in records}) == len(records)
    for r in records:  # what one process would ask at this attempt
        asked = draw_attempt(pairs, OPTIONS["seed"], 0, "train", int(r["id"].rsplit("-", 1)[1]), pools, OPTIONS)
        assert (r["sampling_seed"], r["shots"]) == (asked["sampling_seed"], [s["id"] for s in asked["shots"]])


def test_a_shard_that_was_cut_off_goes_on_with_its_own_attempts(sample_shard, tmp_path):
    class Stop(BaseException):  # an Exception would be the engine's
        pass

    sample_shard((1, 2))
    names = ["train-00001-of-00002.jsonl", "train-00001-of-00002.rejected.jsonl"]
    whole = [(tmp_path / name).read_bytes() for name in names]
    for path in tmp_path.iterdir():
        path.unlink()
    calls = []

    def cut_off(seed):
        calls.append(seed)
        if len(calls) == 14:  # in the second chunk: the first has 12
            raise Stop
        return by_seed(seed)

    with pytest.raises(Stop):
        sample_shard((1, 2), cut_off)
    sample_shard((1, 2))
    assert [(tmp_path / name).read_bytes() for name in names] == whole


def test_extending_a_file_that_an_editor_left_without_a_last_line_end(sample_shard, tmp_path):
    sample_shard((0, 1))
    train = tmp_path / "train-00000-of-00001.jsonl"
    edited = train.read_text().rstrip("\n")
    train.write_text(edited)
    sample_shard((0, 1), num_examples=30)
    assert train.read_text().startswith(edited + "\n") and len(read_lines(train)) == 30


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_chunk_and_the_next_start_goes_on(sample_shard, tmp_path, capsys, number):
    sample_shard((0, 1))
    whole = (tmp_path / "train-00000-of-00001.jsonl").read_bytes()
    for path in tmp_path.iterdir():
        path.unlink()
    asked = []

    def signalled(seed):
        asked.append(seed)
        if len(asked) == 3:
            os.kill(os.getpid(), number)
        return by_seed(seed)

    signals = note_signals()
    with pytest.raises(SystemExit) as end:
        sample_shard((0, 1), signalled, signals)
    assert end.value.code == STOPPED == 75 and len(asked) == 24  # the whole chunk
    assert f"stopped by {number.name}, what is read is saved; run it again to go on" in capsys.readouterr().err
    state = json.loads((tmp_path / "train-00000-of-00001.jsonl.partial.json").read_text())
    assert state["progress"][0] == (tmp_path / "train-00000-of-00001.jsonl.partial").stat().st_size > 0
    sample_shard((0, 1))
    assert (tmp_path / "train-00000-of-00001.jsonl").read_bytes() == whole


@pytest.mark.parametrize("way", ["enqueue", "step", "abort"])
def test_an_engine_that_dies_of_the_same_signal_costs_only_its_chunk(sample_shard, monkeypatch, tmp_path, way):
    """It may raise, or, as vLLM 0.32 does at a SIGTERM, give back what it has of each text."""
    plain = engine

    def dies(*args, **how):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("EngineDeadError")

    def dying(answer):
        if way == "abort":
            return plain(lambda seed: (by_seed(seed)[0], os.kill(os.getpid(), signal.SIGTERM) or "abort"))
        whole = plain(answer)
        setattr(whole if way == "enqueue" else whole.llm_engine, way, dies)
        return whole

    monkeypatch.setattr(sys.modules[__name__], "engine", dying)
    signals = note_signals()
    with pytest.raises(SystemExit) as end:
        sample_shard((0, 1), signals=signals)
    assert end.value.code == STOPPED
    monkeypatch.undo()
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    sample_shard((0, 1))
    train, rejected = (read_lines(tmp_path / f"train-00000-of-00001{rest}.jsonl") for rest in ("", ".rejected"))
    assert len(train) == 24 and {r["finish_reason"] for r in train + rejected} == {"stop"}


@pytest.mark.engine
def test_two_real_processes_share_the_work_and_one_is_stopped_in_time(small_teacher, tmp_path):
    """SIGUSR1 at the moment when a state file is there: the process ends with 75, the next one goes on."""

    def command(i):
        return [sys.executable, str(ROOT / "generate.py"), "sample", "--task-file", str(ROOT / "prompts/reviews.toml"),
                "--model", str(small_teacher), "--output-dir", str(tmp_path), "--num-examples", "60", "--num-validation",
                "24", "--enforce-eager", "--shard", f"{i}/2"]  # fmt: skip

    first = subprocess.Popen(command(0), stderr=subprocess.PIPE, text=True)
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
        done = subprocess.run(command(i), capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    for split, number in (("train", 60), ("validation", 24)):
        parts = [read_lines(tmp_path / f"{split}-0000{i}-of-00002.jsonl") for i in range(2)]
        assert [len(part) for part in parts] == [number // 2] * 2
        assert all(sum(r["label"] == "positive" for r in part) == number // 4 for part in parts)
        assert not {r["sampling_seed"] for r in parts[0]} & {r["sampling_seed"] for r in parts[1]}
    assert not list(tmp_path.glob("*.partial*"))
