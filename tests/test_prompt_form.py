"""Base models whose tokenizer ships a chat template, and where texts end: by a model that follows a table of words."""

import itertools
import json
from pathlib import Path

import pytest
from conftest import ROOT, call, read_lines

import generate
from gold.parsing import another_begins
from gold.prompts import Prompt
from gold.stopping import StopSignals
from gold.task import load_task
from gold.teacher import Encoder, Engine

pytestmark = pytest.mark.engine
TASK = load_task(Path("prompts/reviews.toml"))
SYSTEM = TASK.prompt.system
KINDS = ("base", "rambling", "chat", "blank")
TURNS = "{% for m in messages %}<turn> {{ m.role }} {{ m.content }}{% endfor %}<turn> "  # and the kind: its word begins a chain


def reviews_of(kind):
    """Words that may follow each other, four to a review."""
    return [[f"{kind}{place}{n}" for n in range(6)] for place in "abcd"]


def word_table():
    """Word -> the words that may follow, all alike.

    base never ends, one example after the other; rambling neither, and is no list of examples; chat ends its turn; blank
    begins with blank lines and ends its turn.
    """
    table = {"base": reviews_of("base")[0], "Review:": reviews_of("base")[0], "\n": ["Review:"]}
    table |= {"\n\nSentiment:": ["positive", "negative"], "positive": ["\n"], "negative": ["\n"]}
    table |= {"rambling": reviews_of("rambling")[0], "chat": reviews_of("chat")[0]}
    table |= {"blank": ["\n\n\n\n"], "\n\n\n\n": reviews_of("blank")[0]}
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
    for kind in KINDS:
        template = {"unk_token": "<unk>", "eos_token": "</s>", "chat_template": TURNS + kind}
        PreTrainedTokenizerFast(tokenizer_object=raw, **template).save_pretrained(folder / kind)
        model.save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def engine(teachers):
    return Engine(str(teachers / "base"), 512, StopSignals())


@pytest.fixture
def sample(engine, teachers, tmp_path, monkeypatch):
    """generate.py with the teacher of this kind: (what it printed, accepted, rejected, its sampling parameters)."""

    def sample(kind, *args, number=20):
        sent, send = [], engine.send
        with monkeypatch.context() as patch:
            patch.setattr(generate, "Engine", lambda *of, **how: engine)
            patch.setattr(engine, "send", lambda requests: sent.extend(r.params for r in requests) or send(requests))
            done = call(
                "generate.py", "--task-file", ROOT / "prompts/reviews.toml", "--model", teachers / kind,
                "--output-dir", tmp_path / "out", "--num-examples", number, "--num-validation", 0, "--max-tokens", 40, *args,
            )  # fmt: skip
        end = "" if (tmp_path / "out/train.jsonl").exists() else ".partial"
        files = [tmp_path / f"out/train{rest}.jsonl{end}" for rest in ("", ".rejected")]
        return done, *(read_lines(path) if path.exists() else [] for path in files), sent

    return sample


def is_review(text):
    """Four words of one kind, in their order."""
    return [word[-2] for word in text.split()] == ["a", "b", "c", "d"]


def test_a_base_model_with_a_chat_template_in_the_completion_form(sample, tmp_path):
    done, accepted, rejected, sent = sample("base", "--prompt-form", "completion")
    assert done.returncode == 0, done.stderr
    assert len(accepted) == 20 and all(is_review(r["review"]) for r in accepted)
    assert {r["reason"] for r in rejected} <= {"duplicate", "surplus"}
    assert {r["finish_reason"] for r in accepted} == {"stop"} and all(p.stop == ["\n\n"] for p in sent)
    # The stop string is the beginning of the token "\n\nSentiment:", and the text is not made from token ids again
    assert all(is_review(r["completion"]) for r in accepted)
    record = json.loads((tmp_path / "out/train.jsonl.run.json").read_text())
    assert record["options"]["prompt_form"] == "completion" == record["prompt_form"]
    again = sample("base")[0]
    assert again.returncode == 1 and "was made with --prompt-form completion, now auto" in again.stderr


@pytest.mark.parametrize("form", ["auto", "chat"])
def test_a_base_model_in_the_chat_form_is_read_up_to_its_next_example(sample, form):
    """It runs into --max-tokens; where its next example begins the first one is whole, as a stop string would have left it."""
    done, accepted, rejected, sent = sample("base", "--prompt-form", form)
    assert done.returncode == 0, done.stderr
    assert len(accepted) == 20 and all(is_review(r["review"]) for r in accepted)
    assert {r["finish_reason"] for r in accepted} == {"length"} and not any(p.stop for p in sent)
    assert {r["reason"] for r in rejected} <= {"duplicate", "surplus"}


def test_what_never_ends_is_truncated_and_the_cure_is_named(sample):
    done, accepted, rejected, _ = sample("rambling", number=4)
    assert done.returncode == 1 and not accepted and {r["reason"] for r in rejected} == {"truncated"}
    told = done.stderr.splitlines()[-1]
    assert "gave 0 of 4; rejected: 20 truncated" in told
    assert "--prompt-form completion" in told and "--max-tokens" in told


def test_stop_strings_do_no_harm_in_the_chat_form(sample):
    """This one puts blank lines before its example; as a stop string they would leave nothing."""
    done, accepted, rejected, _ = sample("blank", number=4)
    assert done.returncode == 0, done.stderr
    assert len(accepted) == 4 and all(is_review(r["review"]) and r["finish_reason"] == "stop" for r in accepted)
    assert {r["reason"] for r in rejected} <= {"surplus", "duplicate"}


def test_a_chat_model_ends_its_turn_without_stop_strings(sample):
    done, accepted, _, sent = sample("chat", number=4)
    assert done.returncode == 0 and len(accepted) == 4 and not any(p.stop for p in sent)
    assert {r["finish_reason"] for r in accepted} == {"stop"} and all(is_review(r["review"]) for r in accepted)


def test_the_completion_form_takes_no_options_of_the_template(sample):
    done = sample("base", "--prompt-form", "completion", "--chat-template-kwargs", '{"enable_thinking": false}')[0]
    assert done.returncode == 2 and "is for the chat form" in done.stderr


def test_a_persona_of_the_template_gives_way_to_the_system_text(teachers):
    """SmolLM2's template, for one, writes a system turn of its own where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teachers / "chat")
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}<turn> You are Smol. {% endif %}" + TURNS
    encoder = Encoder(tokenizer, "chat", {}, None)
    without, shown = encoder.frame([Prompt("", "Go."), Prompt(SYSTEM, "Go.")])
    assert "Smol" in without and "Smol" not in shown and shown.startswith(f"<turn> system {SYSTEM}")


@pytest.mark.parametrize(
    "text, whole",
    [
        ("Good.\n\nSentiment: negative\nReview: Bad", True),
        ("Good.\n sentiment: negative", True),
        ("Good.\n\nThe sentiment", False),
        ("Good. Sentiment: negative", False),  # within a line it is no beginning
        ("Good.", False),
    ],
)
def test_where_another_example_begins(text, whole):
    assert another_begins(TASK.prompt.example, "Good.", text) is whole
    assert not another_begins(TASK.prompt.example, "", text)
