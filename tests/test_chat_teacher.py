"""Chat teachers on a real vLLM engine: a tiny Qwen2 whose tokenizer has a chat template, and fields forced into shape.

The teacher is taught, in seconds and by heart, the answers to the first prompts of the run, each wrapped by its template:
that it then gives them through vLLM shows that the prompt arrives in the very tokens of the template.
"""

import json
import re

import pytest
from conftest import ROOT, call, read_lines

from gold import teacher as teachers
from gold.attempts import Pools, draw_attempt
from gold.examples import read_examples
from gold.prompts import render_prompt, structured_pattern
from gold.reasoning import final_of, reasoning_parser
from gold.stopping import StopSignals
from gold.task import load_task
from gold.teacher import Encoder, Engine

pytestmark = pytest.mark.engine
TASK = load_task(ROOT / "prompts/reviews.toml")
OPTIONS = {"seed": 0, "num_fewshot": 2}
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
    attempts = [draw_attempt(TASK, 0, "train", a, pools, OPTIONS) for a in range(8)]
    prompts = [(a.label, *(s["id"] for s in a.shots)) for a in attempts]
    for number, prompt in enumerate(prompts):
        known.setdefault(prompt, ANSWERS[number // 2][number % 2])
    return [(a, known[prompt]) for a, prompt in zip(attempts, prompts, strict=True)]


@pytest.fixture(scope="module")
def pools():
    return Pools(read_examples(TASK.seed_examples, TASK))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, pools):
    """Folder of the Qwen2, one for each template, and its tokenizers. The plain tokenizer adds <s> by itself."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("chat")
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [*render_prompt(TASK, "train", pools.seed, "positive"), *(a for pair in ANSWERS for a in pair)]
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
            prompt = render_prompt(TASK, "train", drawn.shots, drawn.label)
            [ids] = Encoder(tokenizer, "chat", kwargs, None).encode([prompt])
            text = (THOUGHT if name == "thoughts" else "") + " " + said
            answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
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
    for name in TEMPLATES:
        model.save_pretrained(folder / name)
    return folder, tokenizers


@pytest.fixture(scope="module")
def llm(teacher):
    return Engine(str(teacher[0] / "system"), 512, StopSignals()).llm


@pytest.fixture
def sample(llm, teacher, tmp_path, monkeypatch):
    """generate.py through the template of this name; (accepted, rejected, prompts as vLLM had them)."""

    def sample(template, kwargs, *args, folder="a", code=0):
        prompts, send = [], Engine.send
        with monkeypatch.context() as patch:
            patch.setattr(teachers, "start_llm", lambda *of, **how: llm)
            patch.setattr(
                Engine, "send", lambda self, sent: prompts.extend(r.prompt_ids for r in sent) or send(self, sent)
            )
            done = call(
                "generate.py", "--task-file", ROOT / "prompts/reviews.toml", "--model", teacher[0] / template,
                "--output-dir", tmp_path / folder, "--num-examples", 4, "--num-validation", 0, "--max-attempts", 40,
                "--num-fewshot", 2, "--temperature", 0, "--max-tokens", 40, "--chat-template-kwargs", json.dumps(kwargs), *args,
            )  # fmt: skip
        assert done.returncode == code, done.stderr
        if code:
            return done.stderr
        return *(read_lines(tmp_path / folder / f"train{rest}.jsonl") for rest in ("", ".rejected")), prompts

    return sample


@pytest.mark.parametrize(
    "template, kwargs", [("system", {}), ("no system", {}), ("thinking", {"enable_thinking": False})]
)
def test_a_chat_teacher_reads_its_template_and_one_bos(sample, teacher, pools, template, kwargs):
    accepted, _, prompts = sample(template, kwargs)
    taught = {a.id: said for a, said in lessons_of(pools)}
    assert len(accepted) == 4 and all(r["review"] == taught[r["id"]] for r in accepted)
    tokenizer = teacher[1][template]
    for ids in prompts:
        assert ids.count(1) == 1 and ids[0] == 1, "one <s>, at the beginning"
        text = tokenizer.decode(ids)
        assert TASK.prompt.system in text and text.count("<|user|>") == 1
        assert ("<|system|>" in text) == (template != "no system")
        assert text.endswith("<|assistant|>" + ("<think></think>" if kwargs else ""))


def test_vllms_parser_takes_the_thought_off_whose_special_tokens_would_be_gone(sample, pools):
    """vLLM leaves special tokens out of a text, so that thought and answer run into each other."""
    taught = {a.id: said for a, said in lessons_of(pools)}
    accepted, _, _ = sample("thoughts", {})
    assert len(accepted) == 4 and all(r["review"] == f"One of six. {taught[r['id']]}" for r in accepted)
    accepted, _, _ = sample("thoughts", {}, "--reasoning-parser", "deepseek_r1", folder="parsed")
    assert len(accepted) == 4 and all(r["review"] == taught[r["id"]] for r in accepted)
    assert all(r["completion"] == f"{THOUGHT} {taught[r['id']]}" for r in accepted)


def test_parsers_of_vllm_by_name(teacher):
    """The tokenizer has <think> and </think>: which parsers take it, and how a text of each kind is read."""
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


def test_the_thinking_switch_reaches_the_template_from_the_command_line(teacher, tmp_path):
    how = ("--task-file", ROOT / "prompts/reviews.toml", "--output-dir", tmp_path, "--model", teacher[0] / "thinking")
    off, on = (
        call("generate.py", *how, "--dry-run", "--chat-template-kwargs", json.dumps({"enable_thinking": x})).stdout
        for x in (False, True)
    )
    assert "<|assistant|><think></think>" in off and on.count("<|assistant|>") >= 2 and "<think>" not in on
    done = call("generate.py", *how, "--structured", "--reasoning-parser", "qwen3")
    assert done.returncode == 2 and "--reasoning-parser" in done.stderr  # a forced completion has no thought


def test_a_structured_completion_has_the_form_of_the_task_at_temperature_2(sample, tmp_path):
    """At temperature 2 the teacher babbles; forced into shape, whatever ends is an example of 4 to 60 words on one line."""
    how = ("--temperature", 2, "--max-tokens", 120)
    accepted, rejected, _ = sample("system", {}, "--structured", *how)
    assert len(accepted) == 4
    for record in [*accepted, *(r for r in rejected if r["reason"] != "truncated")]:
        assert re.fullmatch(structured_pattern(TASK, record["label"]), record["completion"])
        assert "\n" not in record["review"]
        assert record.get("reason") in (None, "surplus", "duplicate", "no_match")  # a word may end with a colon
    record = json.loads((tmp_path / "a/train.jsonl.run.json").read_text())
    assert record["options"]["structured"] is True
    assert "was made with --structured True, now False" in sample("system", {}, *how, code=1)
