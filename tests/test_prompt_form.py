"""The chat and the completion form, where texts end, thoughts, --verify: by a model that follows a table of words."""

import itertools
import json
import shutil

import pytest
from conftest import ROOT, call, encoder_of, read_lines, refusal

import generate
from gold import teacher
from gold.engine import Engine
from gold.labels import label_records
from gold.prompts import Prompt
from gold.reasoning import final_of, reasoning_parser
from gold.stopping import StopSignals
from gold.task import load_task
from gold.teacher import load_encoder, open_engine

TASK = load_task(ROOT / "prompts/reviews.toml")
KINDS = ("base", "rambling", "chat", "blank")
TURNS = "{% for m in messages %}<turn> {{ m.role }} {{ m.content }}{% endfor %}<turn> "
SWITCH = TURNS + "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
TEMPLATES = {kind: TURNS + kind for kind in KINDS} | {"thoughts": TURNS + "<think>", "switch": SWITCH}


def reviews_of(kind):
    """Words that may follow each other, four to a review."""
    return [[f"{kind}{place}{n}" for n in range(6)] for place in "abcd"]


def word_table():
    """Word -> the words that may follow, all alike.

    base never ends, one example after the other; rambling neither, and is no list of examples; chat ends its turn; blank
    begins with blank lines and ends its turn. A thought is "hm". Every text is negative.
    """
    table = {"base": reviews_of("base")[0], "Review:": reviews_of("base")[0], "\n": ["Review:"]}
    table |= {"\n\nSentiment:": ["positive", "negative"], "positive": ["\n"], "negative": ["\n"]}
    table |= {"Sentiment:": ["negative"], "rambling": reviews_of("rambling")[0], "chat": reviews_of("chat")[0]}
    table |= {"blank": ["\n\n\n\n"], "\n\n\n\n": reviews_of("blank")[0]}
    table |= {"<think>": ["hm"], "hm": ["</think>"], "</think>": reviews_of("chat")[0]}
    after = {"base": ["\n\nSentiment:"], "rambling": reviews_of("rambling")[0], "chat": ["</s>"], "blank": ["</s>"]}
    for kind in KINDS:
        places = [*reviews_of(kind), after[kind]]
        table |= {word: following for here, following in itertools.pairwise(places) for word in here}
    return table


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """By kind, folders of one Llama that knows what word may follow a word, untrained: attention and feed-forward are zero."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    table = word_table()
    words = [*dict.fromkeys(["<unk>", "</s>", "<turn>", "user", "system", "\n\n", *table])]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    lines = Regex(r"\n\n\n\n|\n\nSentiment:|\n\n|\n|[^\s]+")
    raw.pre_tokenizer = pre_tokenizers.Split(lines, "removed", invert=True)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, eos_token_id=1, bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model, follows = LlamaForCausalLM(config), torch.full((len(words), len(words)), -30.0)
    for word, after in table.items():
        follows[words.index(word), [words.index(w) for w in after]] = 30.0
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), 128))
        model.lm_head.weight.copy_(torch.nn.functional.pad(follows.T, (0, 128 - len(words))))
    folder = tmp_path_factory.mktemp("chains")
    special = {"unk_token": "<unk>", "eos_token": "</s>", "extra_special_tokens": ["<think>", "</think>"]}
    for kind, template in TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template, **special)
        tokenizer.save_pretrained(folder / kind)
        model.save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def engine(teachers):
    return Engine(str(teachers / "base"), 512, StopSignals())


@pytest.fixture
def sample(engine, teachers, tmp_path, monkeypatch):
    """generate.py with the teacher of this kind: (what it printed, accepted, rejected, its sampling parameters)."""

    def sample(kind, *args, number=4, folder="out"):
        sent, send = [], engine.send
        with monkeypatch.context() as patch:
            patch.setattr(teacher, "Engine", lambda *of, **how: engine)
            patch.setattr(engine, "send", lambda requests: sent.extend(r.params for r in requests) or send(requests))
            done = call(
                "generate.py", "--task-file", ROOT / "prompts/reviews.toml", "--model", teachers / kind, "--output-dir",
                tmp_path / folder, "--num-examples", number, "--num-validation", 0, "--max-tokens", 40, *args,
            )  # fmt: skip
        end = "" if (tmp_path / folder / "train.jsonl").exists() else ".partial"
        files = [tmp_path / folder / f"train{rest}.jsonl{end}" for rest in ("", ".rejected")]
        return done, *(read_lines(path) if path.exists() else [] for path in files), sent

    return sample


def is_review(text):
    """Four words of one kind, in their order."""
    return [word[-2] for word in text.split()] == ["a", "b", "c", "d"]


@pytest.mark.engine
@pytest.mark.parametrize("kind, form, stop, finish_reason", [
    # The stop string is the beginning of the token "\n\nSentiment:", and the text is not made from token ids again
    ("base", "completion", ["\n\n"], "stop"),
    # In the chat form it runs into --max-tokens; where its next example begins the first one is whole
    ("base", "auto", None, "length"),
    ("chat", "chat", None, "stop"),
    ("blank", "auto", None, "stop"),  # blank lines before its example: as a stop string they would leave nothing
])  # fmt: skip
def test_texts_of_base_and_chat_models_in_both_forms(kind, form, stop, finish_reason, sample, tmp_path):
    done, accepted, rejected, sent = sample(kind, "--prompt-form", form)
    assert done.returncode == 0, done.stderr
    assert len(accepted) == 4 and all(is_review(r["review"]) and r["finish_reason"] == finish_reason for r in accepted)
    assert all(p["stop"] == stop for p in sent) and {r["reason"] for r in rejected} <= {"duplicate", "surplus"}
    if form == "completion":
        assert all(is_review(r["completion"]) for r in accepted)
        record = json.loads((tmp_path / "out/train.jsonl.run.json").read_text())
        assert record["options"]["prompt_form"] == "completion" == record["prompt_form"]
        assert "was made with --prompt-form completion, now auto" in sample("base")[0].stderr


@pytest.mark.engine
def test_what_never_ends_is_truncated_and_the_cure_is_named(sample):
    done, accepted, rejected, _ = sample("rambling")
    assert done.returncode == 1 and not accepted and {r["reason"] for r in rejected} == {"truncated"}
    told = done.stderr.splitlines()[-1]
    assert "gave 0 of 4; rejected: 20 truncated" in told
    assert "--prompt-form completion" in told and "--max-tokens" in told


@pytest.mark.engine
def test_vllms_parser_takes_the_thought_off_whose_special_tokens_would_be_gone(sample):
    """vLLM leaves special tokens out of a text, so that thought and answer run into each other."""
    _, accepted, _, _ = sample("thoughts")
    assert len(accepted) == 4 and all(r["review"].startswith("hm chata") for r in accepted)
    _, accepted, _, _ = sample("thoughts", "--reasoning-parser", "deepseek_r1", folder="parsed")
    assert len(accepted) == 4 and all(is_review(r["review"]) for r in accepted)
    assert all(r["completion"].replace(" ", "").startswith("hm</think>chata") for r in accepted)


@pytest.mark.engine
def test_verify_rejects_what_the_teacher_labels_otherwise(sample, monkeypatch):
    """The teacher takes every text for negative; one that ends in 0 is too long to be asked for."""

    def answers(engine, encoder, task, records, *of, **how):
        real = label_records(engine, encoder, task, records, *of, **how)
        return [None if r["review"].endswith("0") else answer for r, answer in zip(records, real, strict=True)]

    monkeypatch.setattr(generate, "label_records", answers)
    done, accepted, rejected, _ = sample("base", "--prompt-form", "completion", "--verify", number=20)
    assert done.returncode == 1 and "label_disagrees" in done.stderr
    denied, too_long = ([r for r in rejected if r["reason"] == name] for name in ("label_disagrees", "prompt_too_long"))
    assert {r["label"] for r in accepted} == {"negative"} and {r["label"] for r in denied} == {"positive"} and too_long
    for r in [*accepted, *denied]:
        assert r["teacher_label"] == "negative" and r["label_probs"]["negative"] == pytest.approx(1, abs=1e-5)
        assert not r["review"].endswith("0")
    assert all(r["review"].endswith("0") and "teacher_label" not in r for r in too_long)


# ---------------------------------------------------------------------------------------------------------------------
# Without an engine


def test_options_of_the_template(teachers, tmp_path):
    how = ("generate.py", "--task-file", ROOT / "prompts/reviews.toml", "--output-dir", tmp_path, "--model")
    how, thinking = (*how, teachers / "switch"), ({"enable_thinking": switch} for switch in (False, True))
    off, on = (call(*how, "--dry-run", "--chat-template-kwargs", json.dumps(kwargs)).stdout for kwargs in thinking)
    assert "</think>" in off and "<turn>" in on and "</think>" not in on
    done = call(*how, "--prompt-form", "completion", "--chat-template-kwargs", '{"enable_thinking": false}')
    assert done.returncode == 2 and "is for the chat form" in done.stderr
    done = call(*how, "--structured", "--reasoning-parser", "qwen3")
    assert done.returncode == 2 and "--reasoning-parser" in done.stderr  # a forced completion has no thought


def test_parsers_of_vllm_by_name(teachers):
    """The tokenizer has <think> and </think>: which parsers take it, and how a text of each kind is read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teachers / "thoughts")
    for name in ("deepseek_r1", "qwen3"):
        parser = reasoning_parser(name, tokenizer, {})
        for text in ("<think>Hm.</think>It is quiet.", "Hm.</think>It is quiet."):
            assert final_of(parser, text) == ("It is quiet.", None)
        assert final_of(parser, "<think>Hm. It is quiet.")[1] == "reasoning"
    switched_off = reasoning_parser("qwen3", tokenizer, {"enable_thinking": False})
    assert final_of(switched_off, "It is quiet.") == ("It is quiet.", None)
    refused = {"mistral": "vLLM cannot use it", "openai_gptoss": "vLLM cannot use it", "mystery": "vLLM cannot use it"}
    for name, told in refused.items():
        with pytest.raises(SystemExit, match=rf"^error: --reasoning-parser {name}: .*{told}"):
            reasoning_parser(name, tokenizer, {})


def test_the_system_text_is_shown_whatever_the_template_has(teachers):
    """A persona, as SmolLM2's template has one, gives way to it. test_generate_units.py has the templates that refuse it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teachers / "chat")
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}<turn> You are Smol. {% endif %}" + TURNS
    [text] = encoder_of(tokenizer).frame([Prompt(TASK.prompt.system, "Go.")])
    assert text.startswith(f"<turn> system {TASK.prompt.system}<turn> user Go.") and "Smol" not in text


def test_a_gpt2_is_a_teacher(pairs, models, tmp_path):
    """Positions by number, called n_positions, no chat template, no form of its own: prompts are plain texts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(models["bos"], tmp_path / "gpt2")  # for its tokenizer
    GPT2LMHeadModel(GPT2Config(n_positions=256, n_embd=8, n_layer=1, n_head=1, vocab_size=40)).save_pretrained(
        tmp_path / "gpt2"
    )
    encoder = load_encoder(str(tmp_path / "gpt2"), pairs, "auto", {}, False)
    assert (encoder.form, encoder.context) == ("completion", 256)
    names = ("server_url", "trust_remote_code", "gpu_memory_utilization", "tensor_parallel_size")
    options = dict.fromkeys(names) | {"engine_args": "{}", "max_model_len": 300}
    told = refusal(open_engine, options, encoder, 900, None)
    assert "--max-model-len 300: the model's context holds 256 tokens" in told
