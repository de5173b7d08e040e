"""Labels are scored by the tokens that they have in the running text: against transformers, for three kinds of tokenizer."""

import json
import math
from pathlib import Path

import pytest
from conftest import ROOT, call, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

import label as stage
from gold.examples import read_examples
from gold.labels import TAIL, draw_label_shots, label_records, running_labels
from gold.prompts import Prompt, render_label_prompt
from gold.stopping import StopSignals
from gold.task import load_task
from gold.teacher import Encoder, Engine

TASK = load_task(Path("prompts/reviews.toml"))
SEEDS = read_examples(TASK.seed_examples, TASK)
TEXTS = [seed["review"] for seed in SEEDS] + [
    "positive negative Sentiment: Review: ### Response: [ (positive)[negative]"
] * 9
VOCABULARY = 600
NEWLINE = "### Review:\n$review\n### Response:\n$label"  # of the issue: 44 of 100 were right
PLACES = {  # template of a shot -> blanks before the label
    "line end": (NEWLINE, ""), "blank": ("Review: $review\nSentiment: $label", " "), "bracket": ("$review [$label", ""),
    "nothing": ("Review: $review\nSentiment:$label", ""),
}  # fmt: skip
TURN = "{% for m in messages %}<s>{{ m.role + ':BEFORE' + m.content }}</s>{% endfor %}"
TURN += "{% if add_generation_prompt %}<s>{{ 'assistant:ASKED' }}{% endif %}"
CHATS = {  # what a turn has before its text, what the prompt ends with, blanks that are missing there
    "line end": ("\\n", "\\n", ""), "blank": (" ", " ", ""), "nothing": ("", "", ""), "blank in the turn": (" ", "", " "),
}  # fmt: skip


def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<unk>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXTS, trainer)
    return raw


def sentence_piece(dummy_prefix: bool):
    """As Llama 2 has it: a blank is "▁", bytes for what is no piece; dummy_prefix: a text begins with a "▁" too."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [mark + word for text in TEXTS for word in text.split() for mark in ("▁", "")]  # no piece of two words
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    made = json.loads(learnt.to_str())["model"]
    merges = [tuple(pair) for pair in made["merges"]]
    raw = Tokenizer(models.BPE(made["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    first = [normalizers.Prepend("▁")] if dummy_prefix else []
    raw.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return raw


@pytest.fixture(scope="module")
def tokenizers():
    """By name; all of one vocabulary size, so that one model serves them."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    made = {"byte-level": byte_level(), "dummy prefix": sentence_piece(True), "no prefix": sentence_piece(False)}
    for raw in made.values():
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return {name: PreTrainedTokenizerFast(tokenizer_object=raw, **marks) for name, raw in made.items()}


@pytest.fixture(scope="module")
def model(tokenizers, tmp_path_factory):
    """A tiny Llama with large random weights: it has a mind about every label."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("running") / "model"
    config = LlamaConfig(
        vocab_size=max(map(len, tokenizers.values())), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=640, initializer_range=0.4, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizers["dummy prefix"].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(model):
    return Engine(str(model), 640, StopSignals())


def encoder_of(tokenizer) -> Encoder:
    return Encoder(tokenizer, "chat" if tokenizer.chat_template else "completion", {}, None)


def direct(model, tokenizer, texts, end):
    """Probabilities of the texts, which differ in their labels, by transformers: all of each text but what they share."""
    import torch

    special = not tokenizer.chat_template
    ids = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    more = [tokenizer(text + end, add_special_tokens=special)["input_ids"] for text in texts]
    ids = [row[: len(one) + 1] for one, row in zip(ids, more, strict=True)]
    begin = next(i for i in range(len(ids[0])) if len({tuple(row[: i + 1]) for row in ids}) > 1)
    sums = []
    for row in ids:
        with torch.inference_mode():
            log_p = model(torch.tensor([row])).logits[0].log_softmax(-1)
        sums.append(sum(log_p[i - 1, row[i]].item() for i in range(begin, len(row))))
    total = sum(math.exp(s - max(sums)) for s in sums)
    return [s - max(sums) - math.log(total) for s in sums]


def of_place(place):
    prompt = TASK.prompt.model_copy(update={"label_example": PLACES[place][0]})
    return TASK.model_copy(update={"prompt": prompt})


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("a positive\n [(:#日é"), max_size=60), copies=st.integers(1, 12),
    gap=st.sampled_from(["", " "]), name=st.sampled_from(["byte-level", "dummy prefix", "no prefix"]),
)  # fmt: skip
def test_label_tokens_are_those_of_the_whole_text(tokenizers, text, copies, gap, name):
    """Prompts shorter and longer than the tail that is tokenised again; "pos" begins as "positive" does."""
    tokenizer, prompt, end = tokenizers[name], f"{'Review: good, ' * copies * 2}{text}", "\n\nReview: "
    labels = [gap + label for label in ("positive", "negative", "pos", "日")]
    [(root, rests)] = running_labels(encoder_of(tokenizer), [prompt], labels, end)
    for label, rest in zip(labels, rests, strict=True):
        alone, whole = (tokenizer(prompt + label + more)["input_ids"] for more in ("", end))
        assert root + rest == whole[: len(alone) + 1] and rest
    assert len({rest[0] for rest in rests}) > 1


def test_what_a_tail_does_not_show_is_tokenised_whole(tokenizers):
    """A text without blanks, longer than the tail: where the tail begins, no word does."""
    for tokenizer in tokenizers.values():
        for prompt in ("negativepositive" * 40, "日é" * TAIL, ""):
            [(root, rests)] = running_labels(encoder_of(tokenizer), [prompt], ["positive", "negative"], "\n\n")
            for label, rest in zip(("positive", "negative"), rests, strict=True):
                alone, whole = (tokenizer(prompt + label + more)["input_ids"] for more in ("", "\n\n"))
                assert root + rest == whole[: len(alone) + 1]


def test_labels_that_are_the_same_tokens_are_refused(models):
    from transformers import AutoTokenizer

    with pytest.raises(SystemExit, match="cannot tell the labels apart: sledgehammer, crowbar"):
        encoder = encoder_of(AutoTokenizer.from_pretrained(models["bos"]))
        running_labels(encoder, ["the"], ["sledgehammer", "crowbar"], "\n\n")


def test_a_prompt_does_not_end_with_an_end_token(models):
    """Some tokenizers append EOS to every text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    ends = tokenizer("the beach")["input_ids"]
    assert ends[-1] == tokenizer.eos_token_id and encoder_of(tokenizer).encode([Prompt("", "the beach")]) == [ends[:-1]]


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities


@pytest.mark.engine
@pytest.mark.parametrize("name", ["byte-level", "dummy prefix", "no prefix"])
@pytest.mark.parametrize("place", [*PLACES, *(f"chat, {end}" for end in CHATS)])
def test_probabilities_are_those_of_transformers_on_running_text(place, name, engine, model, tokenizers):
    from transformers import AutoModelForCausalLM

    tokenizer, task, gap = tokenizers[name], TASK, ""
    chat = place.removeprefix("chat, ") if place.startswith("chat") else None
    tokenizer.chat_template = None
    if chat:
        before, asked, gap = CHATS[chat]
        tokenizer.chat_template = TURN.replace("BEFORE", before).replace("ASKED", asked)
    else:
        task, gap = of_place(place), PLACES[place][1]
    records = read_examples(Path("data/reviews/test.jsonl"), TASK)[::320]
    shots = draw_label_shots(task, SEEDS, 2, 0)
    try:
        got = label_records(engine, encoder_of(tokenizer), task, records, shots)
        reference = AutoModelForCausalLM.from_pretrained(model).eval()
        end = "</s>" if chat else "\n\n" + task.label_template.split("$")[0]
        for record, answer in zip(records, got, strict=True):
            prompt = render_label_prompt(task, record, shots).user
            if chat:
                turn = [{"role": "user", "content": prompt}]
                prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            expected = direct(reference, tokenizer, [prompt + gap + label for label in task.labels], end)
            found = [math.log(p) for p in answer["label_probs"].values()]
            assert found == pytest.approx(expected, abs=1e-3)
            assert answer["teacher_label"] == list(task.labels)[expected.index(max(expected))]
    finally:
        tokenizer.chat_template = None


@pytest.fixture
def label(engine, model, monkeypatch, tmp_path):
    """label.py in this process, on the engine that is up, with a task file of this template."""

    def engine_up(model, max_model_len, *args, **how):
        engine.max_model_len = max_model_len
        return engine

    monkeypatch.setattr(stage, "Engine", engine_up)
    text = (ROOT / "prompts/reviews.toml").read_text().replace("../data", str(ROOT / "data"))
    old = "Review: $review\nSentiment: $label"
    assert old in text
    (tmp_path / "task.toml").write_text(text.replace(old, NEWLINE))

    def label(*args):
        return call("label.py", "--task-file", tmp_path / "task.toml", "--model", model, *args)

    return label


# ---------------------------------------------------------------------------------------------------------------------
# A record that is too long


@pytest.mark.engine
def test_a_record_that_is_too_long_is_left_out_and_counted(label, tokenizers, tmp_path):
    """Of 9 records one takes just the context, one a token more, one has 800 words."""
    import random

    source = [{"id": f"r{n}", "review": s["review"], "label": s["label"]} for n, s in enumerate(SEEDS[:6])]
    task = load_task(tmp_path / "task.toml")
    words = random.Random(0).choices(" ".join(TEXTS).split(), k=800)

    def needed(number):
        """Tokens of the prompt with so many words and of the longest label with its end."""
        prompt = render_label_prompt(task, {"review": " ".join(words[:number])}, []).user
        return max(len(tokenizers["dummy prefix"](prompt + name)["input_ids"]) + 1 for name in task.labels)

    limit = needed(40)
    longer = next(n for n in range(41, 60) if needed(n) > limit)
    for name, number in (("just", 40), ("over", longer), ("long", 800)):
        source.insert(3, {"id": name, "review": " ".join(words[:number]), "label": "positive"})
    write_lines(tmp_path / "in.jsonl", source)
    args = ("--input-file", tmp_path / "in.jsonl", "--num-fewshot", 0, "--max-model-len", limit)
    done = label(*args, "--output-file", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    labelled, rejected = (read_lines(tmp_path / f"out{name}.jsonl") for name in ("", ".rejected"))
    assert [r["id"] for r in labelled] == ["r0", "r1", "r2", "just", "r3", "r4", "r5"]
    assert [(r["id"], r["reason"], r["label"]) for r in rejected] == [
        ("long", "prompt_too_long", "positive"), ("over", "prompt_too_long", "positive"),
    ]  # fmt: skip
    assert "2 of 9 records are left out (prompt_too_long), such as long: " in done.stderr
    assert "lower --num-fewshot or raise --max-model-len" in done.stderr
    assert "7 labelled + 2 rejected (prompt_too_long) = 9 read" in done.stderr
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert record["options"]["prompt_form"] == "auto" and record["prompt_form"] == "completion"
    counts = record["counts"]
    assert (counts["records"], counts["labelled"], counts["rejected"]) == (9, 7, {"prompt_too_long": 2})
    measured = call(
        "evaluate.py", "--task-file", tmp_path / "task.toml", "--prediction-field", "teacher_label", "--test-file",
        tmp_path / "out.jsonl", "--output-dir", tmp_path / "measured",
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    changed = label(*args, "--output-file", tmp_path / "out.jsonl", "--prompt-form", "completion")
    assert changed.returncode == 1 and "was made with --prompt-form auto, now completion" in changed.stderr
    none = label(*args[:-1], 20, "--output-file", tmp_path / "none.jsonl")
    assert none.returncode == 1 and "the shortest prompt and its answer have" in none.stderr


@pytest.mark.engine
def test_labelling_goes_on_after_records_that_were_left_out(label, tmp_path, monkeypatch):
    texts = [s["review"] if n % 3 else "good " * 700 for n, s in enumerate(SEEDS)]
    write_lines(tmp_path / "in.jsonl", [{"review": text} for text in texts])
    args = ("--input-file", tmp_path / "in.jsonl", "--num-fewshot", 0, "--output-file")
    monkeypatch.setattr(stage, "chunk_size", lambda *_: 2)
    assert label(*args, tmp_path / "whole.jsonl").returncode == 0
    real, calls = stage.label_records, []

    def breaks(engine, *of, **how):
        calls.append(1)
        if len(calls) == 3:
            with engine.errors("stopped"):
                raise RuntimeError("the engine is gone")
        return real(engine, *of, **how)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "label_records", breaks)
        assert label(*args, tmp_path / "cut.jsonl").returncode == 1
    done = label(*args, tmp_path / "cut.jsonl")
    assert done.returncode == 0 and "going on after 4 records" in done.stderr, done.stderr
    for name in ("", ".rejected"):
        assert read_lines(tmp_path / f"cut{name}.jsonl") == read_lines(tmp_path / f"whole{name}.jsonl")
    assert len(read_lines(tmp_path / "cut.rejected.jsonl")) == len(SEEDS) / 3


@pytest.mark.engine
def test_a_form_that_the_tokenizer_has_not(label, tmp_path):
    args = ("--input-file", "data/reviews/test.jsonl", "--output-file", tmp_path / "out.jsonl", "--prompt-form", "chat")
    done = label(*args)
    assert done.returncode == 1 and "the tokenizer of --model has no chat template" in done.stderr
