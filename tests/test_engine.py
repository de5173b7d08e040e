"""generate.py on a real vLLM engine: one small teacher, trained for seconds, and one engine for the whole file."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import call, make_bpe, read_lines, run, write_lines

import generate
from gold import split, teacher
from gold.examples import example_key, read_examples
from gold.parsing import REASONS
from gold.prompts import render_prompt, structured_pattern
from gold.stopping import StopSignals
from gold.task import load_task
from gold.teacher import Engine

pytestmark = pytest.mark.engine
TASK = load_task(Path("prompts/reviews.toml"))


class Stop(BaseException):
    """The end of the process: nothing may catch it."""


@pytest.fixture(scope="module")
def llm(small_teacher):
    return Engine(str(small_teacher), 512, StopSignals()).llm


@pytest.fixture
def sample(llm, small_teacher, tmp_path, monkeypatch):
    """generate.py on the engine that is up: (accepted, rejected, run record), or what it printed with `code`."""

    def sample(*args, name="a", split="train", code=0, engine=llm):
        monkeypatch.setattr(teacher, "start_llm", lambda *of, **how: engine)
        done = call(
            "generate.py", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path / name,
            "--num-examples", 60, "--num-validation", 0, "--max-tokens", 64, *args,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        if code:
            return done.stderr
        path = tmp_path / name / f"{split}.jsonl"
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
    for r in accepted:
        assert re.fullmatch(r"reviews-00-train-\d{6}", r["id"])
        assert r["target"] == r["label"] == list(TASK.labels)[int(r["id"][-6:]) % 2]
        assert r["source"] == f"review: {r['review']}" and r["review"] in r["completion"]
        assert r["finish_reason"] == "stop" and r["feedback"] is False and len(r["shots"]) == 3
    assert record["completion_tokens_per_second"] > 0 and not list((tmp_path / "a").glob("*partial*"))
    keys = keys_of(accepted)
    again, rejected, _ = sample("--exclude-file", tmp_path / "a/train.jsonl", name="b")
    assert len(keys) == 60 and not keys & keys_of(again)
    assert Counter(r["reason"] for r in rejected)["duplicate"] >= 54


def test_a_chunk_that_is_cut_off_is_sent_again_and_gives_the_same_files(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 24)  # several chunks
    whole = sample(name="whole")[:2]
    append, calls = generate.append_records, []

    def cut_off(path, records):
        calls.append(records)
        if len(calls) == 5:  # the accepted records of the third chunk: a torn line, then the end
            append(path, records[:2])
            with path.open("a") as file:
                file.write('{"id": "torn')
            raise Stop
        append(path, records)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(generate, "append_records", cut_off)
        sample(name="cut")
    assert (tmp_path / "cut/train.jsonl.partial").read_text().endswith('"torn')
    assert sample(name="cut")[:2] == whole  # float32, one CPU: the same text too


def test_an_engine_in_a_process_of_its_own(small_teacher, tmp_path):
    """As with a GPU: other chunks are with it while one is read, and what comes out is the same kind of file."""
    command = "import generate; generate.CHUNK = 16; generate.run_command(generate.app)"
    how = ["--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir", tmp_path]
    how += ["--num-examples", 60, "--num-validation", 20, "--max-tokens", 64]
    done = subprocess.run(
        [sys.executable, "-c", command, *map(str, how)], capture_output=True, text=True, check=False,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = set()
    for name, number in (("train", 60), ("validation", 20)):
        accepted, rejected = (read_lines(tmp_path / f"{name}{rest}.jsonl") for rest in ("", ".rejected"))
        assert Counter(r["label"] for r in accepted) == {"positive": number / 2, "negative": number / 2}
        odd = sorted(a for r in accepted + rejected if (a := int(r["id"][-6:])) % 2)
        assert odd == list(range(1, 2 * len(odd), 2))
        assert len(keys_of(accepted)) == number and not seen & keys_of(accepted)
        seen |= keys_of(accepted)


def test_a_prompt_longer_than_the_context_is_an_error_before_anything_is_generated(sample):
    told = sample("--max-model-len", 80, code=1)
    assert re.search(r"the prompt has \d+ tokens and --max-tokens 64 .* the context holds 80", told)


def test_many_seeded_few_shot_requests_at_once_do_not_kill_the_cpu_engine(sample):
    """With vLLM's own settings 1,200 of them died: "CPU Generator does not use offset" (chunked prefill)."""
    assert len(sample("--num-examples", 1200)[0]) == 1200


def test_greedy_text_is_that_of_transformers(sample, small_teacher):
    """The engine gets the prompt that render_prompt made: token for token what transformers continues alike."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    accepted, rejected, _ = sample("--temperature", 0, "--num-examples", 1, "--num-fewshot", 6)
    tokenizer, model = AutoTokenizer.from_pretrained(small_teacher), AutoModelForCausalLM.from_pretrained(small_teacher)
    shots = read_examples(TASK.seed_examples, TASK)
    for record in accepted + rejected:
        prompt = "\n\n".join(render_prompt(TASK, "train", shots, record["label"]))
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            out = model.generate(ids, do_sample=False, max_new_tokens=64, pad_token_id=0)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == record["completion"]


# From here on engines of other tests end, and with them vLLM's process groups, which the shared engine needs too


def test_why_the_engine_cannot_start_is_told_in_one_line(small_teacher):
    """vLLM: "1 validation error for VllmConfig", and the cause two lines below."""
    with pytest.raises(SystemExit) as caught:
        Engine(str(small_teacher), 512, StopSignals(), tensor_parallel_size=7)
    message = caught.value.code
    assert message.startswith(f"error: --model {small_teacher}: vLLM cannot start: ") and "\n" not in message
    assert "validation error" not in message and "divisible by tensor parallel size" in message


# ---------------------------------------------------------------------------------------------------------------------
# Forced completions


def test_a_forced_completion_matches_its_pattern_whole(sample):
    accepted, rejected, _ = sample("--structured", "--temperature", 1.5)
    for r in accepted + rejected:
        whole = re.fullmatch(structured_pattern(TASK, r["label"]), r["completion"])
        assert whole or r["reason"] in ("truncated", "no_match")
    assert len(accepted) == 60


def test_a_request_that_ends_in_an_error_is_a_reject_and_the_others_go_on(sample, small_teacher, tmp_path, monkeypatch):
    """vLLM with its backend left open: xgrammar is up, then a pattern comes that only another backend reads."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    start = LLM.__init__
    with monkeypatch.context() as patch:
        auto = {"structured_outputs_config": {"backend": "auto"}}
        patch.setattr(LLM, "__init__", lambda self, **how: start(self, **how | auto))
        llm = Engine(str(small_teacher), 512, StopSignals()).llm
    first = SamplingParams(max_tokens=4, structured_outputs=StructuredOutputsParams(regex="(yes|no)"))
    llm.generate(["Is it?"], first, use_tqdm=False)
    odd = {"negative": "(?i) it broke at once", "positive": structured_pattern(TASK, "positive")}
    monkeypatch.setattr(split, "structured_pattern", lambda task, label: odd[label])
    told = sample("--structured", "--num-examples", 8, "--max-attempts", 40, code=1, engine=llm)
    assert re.search(r"gave \d+ of 8; rejected: .*engine_error", told)
    kept, made = (read_lines(tmp_path / f"a/train{rest}.jsonl.partial") for rest in ("", ".rejected"))
    assert {r["label"] for r in kept} == {"positive"} and len(kept) == 4
    failed = [r for r in made if r["reason"] == "engine_error"]
    assert {r["label"] for r in failed} == {"negative"} and {r["finish_reason"] for r in failed} == {"error"}


JUNK = """
name = "junk"
version = 1
description = "Any text."
kind = "classification"
metric = "accuracy"
fields = ["text"]
answer_field = "label"
seed_examples = "seed.jsonl"
labels = {a = "one", b = "two"}
prompt = {train = "$shots $start", validation = "$shots $start", example = "Kind $label Text $text"}
parse = {stop = ["a"]}
student = {source = "$text", target = "$label"}
"""


def test_a_teacher_of_the_shape_of_gpt2_samples(tmp_path):
    """In a process of its own; the weights are drawn by chance."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = make_bpe()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, eos_token="<|endoftext|>")
    # vLLM's attention on a CPU wants heads of 32 or more
    shape = {"n_positions": 512, "n_embd": 64, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **shape)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "junk.toml").write_text(JUNK)
    write_lines(tmp_path / "seed.jsonl", [{"text": "the sun", "label": "a"}, {"text": "the snow", "label": "b"}])
    done = run(
        "generate.py", "--task-file", tmp_path / "junk.toml", "--model", tmp_path / "gpt2", "--output-dir",
        tmp_path / "iter-00", "--num-examples", 10, "--num-validation", 0, "--max-attempts", 2000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_lines(tmp_path / "iter-00" / "train.jsonl")) == 10
