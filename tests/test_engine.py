"""generate.py on a real vLLM engine: one small teacher, trained for seconds, and one engine for the whole file."""

import json
import os
import re
import string
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_bpe, run, write_lines

import generate
from records import read_examples, read_records, start_run
from task import load_task, structured_pattern, text_key

pytestmark = pytest.mark.engine
TASK = load_task(Path("prompts/reviews.toml"))
OPTIONS = {
    "num_examples": 60, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 64, "seed": 0,
    "chat_template_kwargs": {}, "num_fewshot": 3, "feedback_rate": 0.5, "num_feedback_shots": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(small_teacher):
    return generate.start_engine(str(small_teacher), 512)


@pytest.fixture
def sample(engine, tmp_path):
    """Sample one split into tmp_path / name with the shared engine; returns (accepted, rejected, counts)."""

    def sample(
        name="a", split="train", task=TASK, pools=None, excluded=(), max_attempts=600, context=512, llm=None, **changed
    ):
        options = OPTIONS | changed
        output, rejected = tmp_path / name / f"{split}.jsonl", tmp_path / name / f"{split}.rejected.jsonl"
        run = start_run(
            "generate.py sample", output, options, {}, also=[rejected], resumable=True, extends="num_examples"
        )
        pools = {"seed": read_examples(TASK.seed_examples, TASK), "feedback": []} | (pools or {})
        counts = generate.sample_split(
            run,
            task,
            split,
            3,
            options,
            max_attempts,
            pools,
            set(excluded),
            llm or engine,
            engine.get_tokenizer(),
            context,
            {},
        )
        return *([record for _, record in read_records(path)] for path in (output, rejected)), counts

    return sample


def test_every_attempt_is_one_record_with_its_lineage(sample, tmp_path):
    accepted, rejected, counts = sample()
    assert Counter(r["label"] for r in accepted) == {"positive": 30, "negative": 30}
    assert counts["attempted"] == len(accepted) + len(rejected)
    assert Counter(r["reason"] for r in rejected) == counts["rejected"]
    assert set(counts["rejected"]) <= set(generate.REASONS)
    ids = [r["id"] for r in accepted + rejected]
    assert len(set(ids)) == len(ids) and all(i.startswith("reviews-03-train-") for i in ids)
    for r in accepted:
        assert r["target"] == r["label"] == list(TASK.labels)[int(r["id"].rsplit("-", 1)[1]) % 2]
        assert r["source"] == f"review: {r['review']}" and r["review"] in r["completion"]
        assert r["finish_reason"] == "stop" and r["feedback"] is False and len(r["shots"]) == 3
    record = json.loads((tmp_path / "a/train.jsonl.run.json").read_text())
    assert record["counts"] == counts and record["completion_tokens_per_second"] > 0
    assert not list((tmp_path / "a").glob("*partial*"))


def test_no_duplicates_no_copies_and_earlier_texts_are_excluded(sample):
    accepted, _, _ = sample("first")
    keys = {text_key(TASK, r) for r in accepted}
    assert len(keys) == len(accepted)
    again, rejected, _ = sample("second", excluded=keys)  # same seed, same prompts: the first texts come again
    assert not keys & {text_key(TASK, r) for r in again}
    assert Counter(r["reason"] for r in rejected)["duplicate"] >= len(keys) * 0.9


def test_a_chunk_that_is_cut_off_is_sent_again_and_gives_the_same_files(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 24)  # several chunks
    whole, whole_rejected, _ = sample("whole")
    write = generate.write_records
    calls = []

    def cut_off(file, records):
        calls.append(records)
        if len(calls) == 5:  # the accepted records of the third chunk: a torn line, then the end
            write(file, records[:2])
            file.write('{"id": "torn')
            file.flush()
            raise KeyboardInterrupt
        write(file, records)

    monkeypatch.setattr(generate, "write_records", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sample("cut")
    assert (tmp_path / "cut/train.jsonl.partial").read_text().endswith('"torn')
    monkeypatch.setattr(generate, "write_records", write)
    resumed, resumed_rejected, _ = sample("cut")
    assert resumed == whole and resumed_rejected == whole_rejected  # float32, one CPU: the same text too


def test_an_engine_in_a_process_of_its_own(small_teacher, tmp_path):
    """As with a GPU: other chunks are with it while one is read, and what comes out is the same kind of file."""
    command = "import generate, records; generate.CHUNK = 16; records.run_command(generate.app)"
    how = [
        "--task-file",
        "prompts/reviews.toml",
        "--model",
        small_teacher,
        "--output-dir",
        tmp_path,
        "--num-examples",
        60,
    ]
    how += ["--num-validation", 20, "--max-tokens", 64]
    done = subprocess.run(
        [sys.executable, "-c", command, "sample", *map(str, how)], capture_output=True, text=True, check=False,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = set()
    for split, number in (("train", 60), ("validation", 20)):
        accepted, rejected = (
            [r for _, r in read_records(tmp_path / f"{split}{rest}.jsonl")] for rest in ("", ".rejected")
        )
        assert Counter(r["label"] for r in accepted) == {"positive": number / 2, "negative": number / 2}
        attempts = sorted(int(r["id"].rsplit("-", 1)[1]) for r in accepted + rejected)
        assert [a for a in attempts if a % 2] == list(range(1, 2 * len([a for a in attempts if a % 2]), 2))
        keys = {text_key(TASK, r) for r in accepted}
        assert len(keys) == number and not seen & keys
        seen |= keys


def test_raising_num_examples_extends_a_finished_file(sample):
    first, _, _ = sample(num_examples=20)
    more, _, counts = sample(num_examples=30)
    assert more[:20] == first and len(more) == 30 and counts["accepted_by_label"] == {"positive": 15, "negative": 15}


def test_feedback_goes_into_the_asked_share_of_prompts_and_is_named(sample):
    feedback = [
        {"id": f"f{i}", "review": f"The lid of number {i} would not close.", "label": "negative"} for i in range(9)
    ]
    accepted, rejected, _ = sample(pools={"feedback": feedback}, feedback_rate=0.5)
    fed = [r for r in accepted + rejected if r["feedback"]]
    assert 0.25 < len(fed) / len(accepted + rejected) < 0.75
    assert all([s[0] for s in r["shots"]] == ["s", "s", "s", "f", "f"] for r in fed)


def test_each_request_has_the_temperature_of_its_attempt(sample):
    """A request of the schedule gives the text that it gives where all have its temperature; here with a feedback prompt."""
    template = TASK.prompt["train"].replace("$shots", "$shots\n\n$feedback\n\n$report")
    task = replace(TASK, prompt={**TASK.prompt, "feedback": template})
    feedback = [
        {"id": f"f{i}", "review": f"The lid of number {i} would not close.", "label": "negative"} for i in range(9)
    ]
    how = {"task": task, "pools": {"feedback": feedback}, "feedback_rate": 1.0, "num_examples": 8}
    accepted, rejected, _ = sample("schedule", temperature=0.4, temperature_end=2.0, **how)
    made = {r["id"]: r for r in accepted + rejected}
    assert all(r["feedback"] and r["shots"][-1][0] == "f" for r in made.values())
    texts = {}
    for number, temperature in ((0, 0.4), (3, 1.0), (6, 1.6)):
        one = made[f"reviews-03-train-{number:06d}"]
        accepted, rejected, _ = sample(f"constant {number}", temperature=temperature, **how)
        texts[number] = {r["id"]: r["completion"] for r in accepted + rejected}
        assert one["temperature"] == temperature and one["completion"] == texts[number][one["id"]]
    assert texts[0]["reviews-03-train-000006"] != texts[6]["reviews-03-train-000006"]  # which it makes a difference for


def test_validation_shows_two_training_examples(sample):
    train, _, _ = sample("v")
    validation, _, _ = sample("v", "validation", pools={"train": train}, num_examples=20)
    assert all(len(r["shots"]) == 2 and set(r["shots"]) <= {t["id"] for t in train} for r in validation)


def test_a_teacher_that_never_succeeds_stops_at_the_limit_and_keeps_what_it_made(sample, tmp_path):
    never = TASK.__class__(**{**TASK.__dict__, "parse": {"min_words": {"review": 1000}}})
    with pytest.raises(SystemExit, match=r"80 attempts gave 0 of 60.*too_short"):
        sample(task=never, max_attempts=80)
    kept = (tmp_path / "a/train.rejected.jsonl.partial").read_text().splitlines()
    assert len(kept) == 80 and {json.loads(line)["reason"] for line in kept} <= {"too_short", "truncated", "no_match"}


def test_a_prompt_longer_than_the_context_is_an_error_before_anything_is_generated(sample):
    with pytest.raises(SystemExit, match=r"the prompt has \d+ tokens and --max-tokens 64 .* the context holds 80"):
        sample(context=80)


def test_many_seeded_few_shot_requests_at_once_do_not_kill_the_cpu_engine(sample):
    """With vLLM's own settings 1,200 of them died: "CPU Generator does not use offset" (chunked prefill)."""
    accepted, _, _ = sample("many", num_examples=1200, max_attempts=6000)
    assert len(accepted) == 1200


def test_why_the_engine_cannot_start_is_told_in_one_line(small_teacher):
    """vLLM: "1 validation error for VllmConfig", and the cause two lines below."""
    with pytest.raises(SystemExit) as caught:
        generate.start_engine(str(small_teacher), 512, tensor_parallel_size=7)
    message = caught.value.code
    assert message.startswith(f"error: --model {small_teacher}: vLLM cannot start: ") and "\n" not in message
    assert "validation error" not in message and "divisible by tensor parallel size" in message


# ---------------------------------------------------------------------------------------------------------------------
# Forced completions


def test_the_engine_names_its_backend(engine):
    """Else the first request chooses it, and with it the dialect: another order, as after a resume, another grammar."""
    assert engine.llm_engine.vllm_config.structured_outputs_config.backend == "xgrammar"


def test_a_forced_completion_matches_its_pattern_whole(sample):
    accepted, rejected, _ = sample("forced", structured=True, temperature=1.5)
    for r in accepted + rejected:
        whole = re.fullmatch(structured_pattern(TASK, r["label"]), r["completion"])
        assert whole or r["reason"] in ("truncated", "no_match")
    assert len(accepted) == 60


@pytest.mark.parametrize(
    "completion, reason",
    [(" The kettle was quiet.", None), (" The kettle was quiet.\n", "no_match"), ("", "empty_field")],
)
def test_what_does_not_match_whole_is_a_reject(completion, reason):
    pattern = structured_pattern(TASK, "positive")
    assert generate.read_completion(TASK, completion, "positive", pattern, None)[1] == reason
    assert generate.read_completion(TASK, completion.strip() or "x y z w", "positive", None, None)[1] is None


def test_a_request_that_ends_in_an_error_is_a_reject_and_the_others_go_on(sample, small_teacher, tmp_path, monkeypatch):
    """vLLM with its backend left open: xgrammar is up, then a pattern comes that only another backend reads."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = generate.start_engine(str(small_teacher), 512, structured_outputs_config={"backend": "auto"})
    first = SamplingParams(max_tokens=4, structured_outputs=StructuredOutputsParams(regex="(yes|no)"))
    llm.generate(["Is it?"], first, use_tqdm=False)
    pattern = generate.structured_pattern
    odd = {"negative": "(?i) it broke at once", "positive": pattern(TASK, "positive")}
    monkeypatch.setattr(generate, "structured_pattern", lambda task, label: odd[label])
    with pytest.raises(SystemExit, match=r"gave \d+ of 8; rejected: .*engine_error"):
        sample("errors", structured=True, num_examples=8, max_attempts=40, llm=llm)
    made = [json.loads(line) for line in (tmp_path / "errors/train.rejected.jsonl.partial").read_text().splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "errors/train.jsonl.partial").read_text().splitlines()]
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
    """By the command. It was refused by the name of its class, GPT2LMHeadModel; its weights are drawn by chance."""
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
        "generate.py", "sample", "--task-file", tmp_path / "junk.toml", "--model", tmp_path / "gpt2", "--output-dir",
        tmp_path / "iter-00", "--num-examples", 10, "--num-validation", 0, "--max-attempts", 2000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([r for _, r in read_records(tmp_path / "iter-00" / "train.jsonl")]) == 10


def test_greedy_text_is_that_of_transformers(engine, sample, small_teacher):
    """The engine gets the prompt that render_prompt made: token for token what transformers continues alike."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    accepted, rejected, _ = sample("greedy", temperature=0.0, num_examples=1, num_fewshot=6)
    tokenizer, model = AutoTokenizer.from_pretrained(small_teacher), AutoModelForCausalLM.from_pretrained(small_teacher)
    shots = read_examples(TASK.seed_examples, TASK)
    for record in accepted + rejected:
        prompt = TASK.prompt["system"] + "\n\n" + string.Template(TASK.prompt["train"]).substitute(
            labels="\n".join(f"{k}: {v}" for k, v in TASK.labels.items()),
            shots="\n\n".join(f"Sentiment: {s['label']}\nReview: {s['review']}" for s in shots),
            start=f"Sentiment: {record['label']}\nReview:",
        )  # fmt: skip
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            out = model.generate(ids, do_sample=False, max_new_tokens=64, pad_token_id=0)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == record["completion"]


@pytest.mark.parametrize(
    "completion",
    [
        "Sentiment: Negative\nReview: The kettle was loud.",  # another label than the one that was asked for
        "Sure, here is one more review:",  # what a stop string leaves of a chat model's preface
        "The kettle was loud. Sentiment: negative",
    ],
)
def test_what_is_no_example_or_tells_the_label_is_rejected(completion):
    assert generate.parse_completion(TASK, completion, "positive")[1] == "no_match"


def test_a_repeated_start_is_read_in_any_capitals():
    said = "Sentiment: Positive\nReview: The kettle was quiet."
    assert generate.parse_completion(TASK, said, "positive") == ({"review": "The kettle was quiet."}, None)
