"""Chat teachers on a real vLLM engine: a tiny Qwen2 whose tokenizer has a chat template, and fields forced into shape.

The teacher is taught, in seconds and by heart, the answers to the first prompts of the run, each wrapped by its template:
that it then gives them through vLLM shows that the prompt arrives in the very tokens of the template.
"""

import json
import re
import string

import pytest
from conftest import ROOT, call, read_lines, run

from generate import draw_attempt, encode_prompt, sample_split, start_engine
from records import read_examples, start_run
from task import load_task, render_prompt, structured_pattern

pytestmark = pytest.mark.engine
TASK = load_task(ROOT / "prompts/reviews.toml")
OPTIONS = {
    "num_examples": 4, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 40, "seed": 0,
    "chat_template_kwargs": {}, "num_fewshot": 2, "feedback_rate": 0.0, "num_feedback_shots": 1,
}  # fmt: skip
TURNS = "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}<|assistant|>"
TEMPLATES = {
    "system": TURNS,
    "no system": "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS,
    "thinking": TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
    "thoughts": TURNS + "<think>",
}
THOUGHT = "One of six.</think>"  # what it is taught to write first where its template begins a thought
ANSWERS = [
    ("The lamp came on time.", "The kettle was quiet."), ("A chair that holds.", "Our tent stayed dry."),
    ("It leaked at once.", "The zip broke twice."), ("The soup was cold.", "Its wheel fell off."),
]  # fmt: skip


def lessons_of(pools) -> list[tuple[dict, str]]:
    """The first 8 attempts, each with what the teacher is to answer; one answer where two attempts have one prompt."""
    known: dict[tuple, str] = {}
    attempts = [draw_attempt(TASK, 0, 0, "train", a, pools, OPTIONS) for a in range(8)]
    for number, a in enumerate(attempts):
        known.setdefault((a["label"], *(s["id"] for s in a["shots"])), ANSWERS[number // 2][number % 2])
    return [(a, known[(a["label"], *(s["id"] for s in a["shots"]))]) for a in attempts]


@pytest.fixture(scope="module")
def pools():
    return {"seed": read_examples(TASK.seed_examples, TASK), "feedback": []}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, pools):
    """Folder of the Qwen2, and its tokenizers by template. The plain tokenizer adds <s> by itself: it would be doubled."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("chat")
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [*render_prompt(TASK, "train", pools["seed"], "positive"), *(a for pair in ANSWERS for a in pair)]
    raw.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    ))  # fmt: skip
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizers = {}
    for name, template in TEMPLATES.items():
        made = PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
            extra_special_tokens=special[3:], chat_template=template,
        )  # fmt: skip
        made.save_pretrained(folder / name)
        tokenizers[name] = AutoTokenizer.from_pretrained(folder / name)

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(raw.get_vocab()), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    lessons = []
    for name, tokenizer in tokenizers.items():
        for drawn, said in lessons_of(pools):
            kwargs = {"enable_thinking": False} if name == "thinking" else {}
            ids = encode_prompt(tokenizer, *render_prompt(TASK, "train", drawn["shots"], drawn["label"]), kwargs)
            answer = tokenizer((THOUGHT if name == "thoughts" else "") + " " + said, add_special_tokens=False)[
                "input_ids"
            ] + [2]
            lessons.append((ids + answer, [-100] * len(ids) + answer))
    width = max(len(ids) for ids, _ in lessons)
    ids = torch.tensor([i + [0] * (width - len(i)) for i, _ in lessons])
    labels = torch.tensor([k + [-100] * (width - len(k)) for _, k in lessons])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    assert loss.item() < 0.2, "it did not learn its answers"
    model.save_pretrained(folder / "system")
    return folder / "system", tokenizers


@pytest.fixture(scope="module")
def engine(teacher):
    return start_engine(str(teacher[0]), 512)


@pytest.fixture
def sample(engine, teacher, pools, tmp_path):
    """Sample the training split through the template of this name; (accepted, rejected, prompts as vLLM had them)."""

    def sample(template, kwargs, folder=".", **changed):
        output = tmp_path / folder / "train.jsonl"
        options = OPTIONS | changed
        run = start_run("generate.py sample", output, options, {}, also=[output.with_suffix(".rejected.jsonl")])
        prompts = []
        enqueue = engine.enqueue

        def noting(sent, params, use_tqdm):
            prompts.extend(s["prompt_token_ids"] for s in sent)
            return enqueue(sent, params, use_tqdm=use_tqdm)

        engine.enqueue = noting
        try:
            sample_split(run, TASK, "train", 0, options, 40, pools, set(), engine, teacher[1][template], 512, kwargs)
        finally:
            engine.enqueue = enqueue
            run.lock.close()
        assert prompts
        return *(read_lines(output.with_suffix(s)) for s in (".jsonl", ".rejected.jsonl")), prompts

    return sample


@pytest.mark.parametrize(
    "template, kwargs", [("system", {}), ("no system", {}), ("thinking", {"enable_thinking": False})]
)
def test_a_chat_teacher_reads_its_template_and_one_bos(sample, teacher, pools, template, kwargs):
    accepted, _, prompts = sample(template, kwargs)
    taught = {a["id"]: said for a, said in lessons_of(pools)}
    assert len(accepted) == 4 and all(r["review"] == taught[r["id"]] for r in accepted)
    tokenizer = teacher[1][template]
    for ids in prompts:
        assert ids.count(1) == 1 and ids[0] == 1, "one <s>, at the beginning"
        text = tokenizer.decode(ids)
        assert TASK.prompt["system"] in text and text.count("<|user|>") == 1
        assert ("<|system|>" in text) == (template != "no system")
        assert text.endswith("<|assistant|>" + ("<think></think>" if kwargs else ""))


def test_vllms_parser_takes_the_thought_off_whose_special_tokens_would_be_gone(sample, pools):
    """vLLM leaves special tokens out of a text, so that thought and answer run into each other."""
    taught = {a["id"]: said for a, said in lessons_of(pools)}
    accepted, _, _ = sample("thoughts", {})
    assert len(accepted) == 4 and all(r["review"] == f"One of six. {taught[r['id']]}" for r in accepted)
    accepted, _, _ = sample("thoughts", {}, folder="parsed", reasoning_parser="deepseek_r1")
    assert len(accepted) == 4 and all(r["review"] == taught[r["id"]] for r in accepted)
    assert all(r["completion"] == f"{THOUGHT} {taught[r['id']]}" for r in accepted)


def test_parsers_of_vllm_by_name(teacher):
    """The tokenizer has <think> and </think>: which parsers take it, and how a text of each kind is read."""
    from gold.reasoning import final_of, reasoning_parser

    tokenizer = teacher[1]["system"]
    for name in ("deepseek_r1", "qwen3"):
        parser = reasoning_parser(name, tokenizer, {})
        for text in ("<think>Hm.</think>It is quiet.", "Hm.</think>It is quiet."):
            assert final_of(parser, text) == ("It is quiet.", None)
        assert final_of(parser, "<think>Hm. It is quiet.")[1] == "reasoning"
    switched_off = reasoning_parser("qwen3", tokenizer, {"enable_thinking": False})
    assert final_of(switched_off, "It is quiet.") == ("It is quiet.", None)
    for name, told in (
        ("mistral", "does not fit"),
        ("openai_gptoss", "does not fit"),
        ("mystery", "has none of this name"),
    ):
        with pytest.raises(SystemExit, match=rf"^error: --reasoning-parser {name}: .*{told}"):
            reasoning_parser(name, tokenizer, {})


def test_a_forced_completion_has_no_thought_to_parse(teacher, tmp_path):
    how = ("--task-file", ROOT / "prompts/reviews.toml", "--model", teacher[0], "--output-dir", tmp_path)
    done = call("generate.py", "sample", *how, "--structured", "--reasoning-parser", "qwen3")
    assert done.returncode == 2 and "--reasoning-parser" in done.stderr


def test_the_thinking_switch_reaches_the_template_from_the_command_line(teacher, tmp_path):
    how = ("--task-file", ROOT / "prompts/reviews.toml", "--output-dir", tmp_path, "--dry-run")
    model = teacher[0].parent / "thinking"
    (model / "config.json").write_text((teacher[0] / "config.json").read_text())
    off, on = (
        call(
            "generate.py",
            "sample",
            *how,
            "--model",
            model,
            "--chat-template-kwargs",
            json.dumps({"enable_thinking": x}),
        )
        for x in (False, True)
    )
    assert (
        "<|assistant|><think></think>" in off.stdout
        and on.stdout.count("<|assistant|>") >= 2
        and "<think>" not in on.stdout
    )


def test_a_structured_completion_has_the_form_of_the_task_at_temperature_2(sample):
    """At temperature 2 the teacher babbles; forced into shape, whatever ends is an example of 4 to 60 words on one line."""
    accepted, rejected, _ = sample("system", {}, structured=True, temperature=2.0, max_tokens=120)
    assert len(accepted) == 4
    for record in [*accepted, *(r for r in rejected if r["reason"] not in ("truncated",))]:
        assert (
            re.fullmatch(structured_pattern(TASK, record["label"]), record["completion"])
            and "\n" not in record["review"]
        )
        assert record.get("reason") in (None, "surplus", "duplicate", "no_match")  # a word may end with a colon


def test_a_structured_run_of_the_command_keeps_the_option_in_its_record(teacher, tmp_path):
    how = ("--task-file", ROOT / "prompts/reviews.toml", "--model", teacher[0], "--output-dir", tmp_path / "iter-00")
    how += (
        "--num-examples",
        "6",
        "--num-validation",
        "4",
        "--max-tokens",
        "100",
        "--temperature",
        "2",
        "--validation-temperature",
        "2",
        "--enforce-eager",
    )
    done = run("generate.py", "sample", *how, "--structured")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "iter-00/train.jsonl.run.json").read_text())
    assert record["options"]["structured"] is True
    again = run("generate.py", "sample", *how)
    assert again.returncode == 1 and "was made with --structured True, now None" in again.stderr
    example = read_lines(tmp_path / "iter-00/train.jsonl")[0]
    assert example["source"] == string.Template(TASK.student["source"]).substitute(example)
