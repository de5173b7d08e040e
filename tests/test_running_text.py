"""Labels are scored by the tokens that they have in the running text: against transformers, for three kinds of tokenizer."""

import json
import math
import random

import pytest
from conftest import ROOT, call, encoder_of, make_bpe, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

import label as stage
from gold.engine import Engine
from gold.examples import read_examples
from gold.labels import TAIL, Row, label_records, log_probs, running_labels
from gold.prompts import Prompt, render_label_prompt
from gold.stopping import StopSignals
from gold.task import load_task

NAMES = ("positive", "negative", "positive_again", "pos")  # several tokens, and one label begins as another does
TASK = load_task(ROOT / "prompts/reviews.toml").model_copy(update={"labels": dict.fromkeys(NAMES, "one")})
SEEDS = read_examples(TASK.seed_examples, TASK)
TEXTS = [s["review"] for s in SEEDS] + ["positive negative Sentiment: Review: ### Response: [ (positive)[negative]"] * 9
KINDS = ("byte-level", "dummy prefix", "no prefix")
PLACES = {  # template of a shot -> blanks before the label
    "line end": ("### Review:\n$review\n### Response:\n$label", ""), "blank": ("Review: $review\nSentiment: $label", " "),
    "bracket": ("$review [$label", ""), "nothing": ("Review: $review\nSentiment:$label", ""),
}  # fmt: skip
TURN = "{% for m in messages %}<s>{{ m.role + ':BEFORE' + m.content }}</s>{% endfor %}"
TURN += "{% if add_generation_prompt %}<s>{{ 'assistant:ASKED' }}{% endif %}"
CHATS = {  # what a turn has before its text, what the prompt ends with, blanks that are missing there
    "line end": ("\\n", "\\n", ""), "blank": (" ", " ", ""), "nothing": ("", "", ""), "blank in the turn": (" ", "", " "),
}  # fmt: skip


def sentence_piece(dummy_prefix: bool):
    """As Llama 2 has it: a blank is "▁", bytes for what is no piece, a BOS; dummy_prefix: a text begins with a "▁" too."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [mark + word for text in TEXTS for word in text.split() for mark in ("▁", "")]  # no piece of two words
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    learnt.train_from_iterator(words, trainer)
    made = json.loads(learnt.to_str())["model"]
    merges = [tuple(pair) for pair in made["merges"]]
    raw = Tokenizer(models.BPE(made["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.add_special_tokens(special[:3])
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * dummy_prefix + [normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizers():
    """By kind; one model serves them."""
    return dict(zip(KINDS, (make_bpe(), sentence_piece(True), sentence_piece(False)), strict=True))


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


def direct(model, tokenizer, texts, end):
    """Log-probabilities of the texts, which differ in their labels, by transformers: all of each text but what they share."""
    import torch

    special = not tokenizer.chat_template
    ids = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    more = [tokenizer(text + end, add_special_tokens=special)["input_ids"] for text in texts]
    needed = any(a != b and b[: len(a)] == a for a in ids for b in ids)  # the end counts where a label begins another
    ids = [row[: len(one) + needed] for one, row in zip(ids, more, strict=True)]
    begin = next(i for i in range(len(ids[0])) if len({tuple(row[: i + 1]) for row in ids}) > 1)
    sums = []
    for row in ids:
        with torch.inference_mode():
            log_p = model(torch.tensor([row])).logits[0].log_softmax(-1)
        sums.append(sum(log_p[i - 1, row[i]].item() for i in range(begin, len(row))))
    total = sum(math.exp(s - max(sums)) for s in sums)
    return [s - max(sums) - math.log(total) for s in sums]


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.sampled_from("a positive\n [(:#日é"), max_size=60), copies=st.integers(0, 12),
    gap=st.sampled_from(["", " "]), kind=st.sampled_from(KINDS),
)  # fmt: skip
def test_label_tokens_are_those_of_the_whole_text(tokenizers, text, copies, gap, kind):
    """Prompts shorter and longer than the tail that is tokenised again, which may begin within a word."""
    tokenizer, end = tokenizers[kind], "\n\nReview: "
    prompts = ["Review: good, " * copies * 2 + text, "negativepositive" * copies * 3 + text, "日é" * TAIL]
    labels = [gap + label for label in ("positive", "negative", "pos", "日")]
    for prompt, (root, rests) in zip(prompts, running_labels(encoder_of(tokenizer), prompts, labels, end), strict=True):
        alone = [tokenizer(prompt + label)["input_ids"] for label in labels]
        needed = any(a != b and b[: len(a)] == a for a in alone for b in alone)
        for label, ids, rest in zip(labels, alone, rests, strict=True):
            assert root + rest == tokenizer(prompt + label + end)["input_ids"][: len(ids) + needed] and rest
        assert len({rest[0] for rest in rests}) > 1


def test_labels_that_are_the_same_tokens_are_refused(models):
    from transformers import AutoTokenizer

    with pytest.raises(SystemExit, match="cannot tell the labels or their ends apart: sledgehammer, crowbar"):
        encoder = encoder_of(AutoTokenizer.from_pretrained(models["bos"]))
        running_labels(encoder, ["the"], ["sledgehammer", "crowbar"], "\n\n")


def test_a_prompt_does_not_end_with_an_end_token(models):
    """Some tokenizers append EOS to every text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    ends = tokenizer("the beach")["input_ids"]
    assert ends[-1] == tokenizer.eos_token_id and encoder_of(tokenizer).encode([Prompt("", "the beach")]) == [ends[:-1]]


# ---------------------------------------------------------------------------------------------------------------------
# On an engine


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [*PLACES, *(f"chat, {end}" for end in CHATS)])
def test_probabilities_are_those_of_transformers_on_running_text(place, kind, engine, model, tokenizers, monkeypatch):
    from transformers import AutoModelForCausalLM

    tokenizer, task, template = tokenizers[kind], TASK, None
    if chat := place.startswith("chat"):
        before, asked, gap = CHATS[place.removeprefix("chat, ")]
        template = TURN.replace("BEFORE", before).replace("ASKED", asked).replace("</s>", tokenizer.eos_token)
    else:
        example, gap = PLACES[place]
        task = TASK.model_copy(update={"prompt": TASK.prompt.model_copy(update={"label_example": example})})
    monkeypatch.setattr(tokenizer, "chat_template", template)
    records, shots = read_examples(ROOT / "data/reviews/test.jsonl", TASK)[::320], SEEDS[:2]
    got = label_records(engine, encoder_of(tokenizer), task, records, shots)
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    end = tokenizer.eos_token if chat else "\n\n" + task.label_template.split("$")[0]
    for record, answer in zip(records, got, strict=True):
        prompt = render_label_prompt(task, record, shots).user
        if chat:
            turn = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        expected = direct(reference, tokenizer, [prompt + gap + label for label in NAMES], end)
        assert list(answer["label_probs"]) == list(NAMES)
        assert [math.log(p) for p in answer["label_probs"].values()] == pytest.approx(expected, abs=1e-3)
        assert answer["teacher_label"] == NAMES[expected.index(max(expected))]


@pytest.mark.engine
def test_77_labels_and_long_prompts_cost_a_fifth_at_most(engine):
    """Of four tokens each, such as card _lost _abroad and the end, after prompts without a prefix in common."""
    rests = [[100 + a, 110 + b, 120 + c, 9] for a in range(4) for b in range(5) for c in range(4)][:77]
    rows = [Row(random.Random(n).choices(range(130, 500), k=600), rests) for n in range(4)]
    engine.taken_tokens()
    log_probs(engine, rows)
    whole = len(rows) * len(rests) * 603  # one prompt a label
    assert whole / engine.taken_tokens()["computed_tokens"] >= 5


@pytest.mark.engine
def test_a_record_that_is_too_long_is_left_out_and_counted(engine, model, tokenizers, tmp_path, monkeypatch):
    """label.py: of 9 records one takes just the context, one a token more, one has 800 words."""
    task, words = load_task(ROOT / "prompts/reviews.toml"), random.Random(0).choices(" ".join(TEXTS).split(), k=800)

    def needed(number):
        """Tokens of the prompt with so many words and of the longest label."""
        prompt = render_label_prompt(task, {"review": " ".join(words[:number])}, []).user
        return max(len(tokenizers["dummy prefix"](f"{prompt} {name}")["input_ids"]) for name in task.labels)

    def engine_up(model, room, *args, **how):
        engine.max_model_len = room
        return engine

    limit = needed(40)
    longer = next(n for n in range(41, 60) if needed(n) > limit)
    source = [{"id": f"r{n}", "review": s["review"], "label": s["label"]} for n, s in enumerate(SEEDS[:6])]
    for name, number in (("just", 40), ("over", longer), ("long", 800)):
        source.insert(3, {"id": name, "review": " ".join(words[:number]), "label": "positive"})
    write_lines(tmp_path / "in.jsonl", source)
    monkeypatch.setattr(stage, "Engine", engine_up)
    how = ("--task-file", ROOT / "prompts/reviews.toml", "--output-file", tmp_path / "out.jsonl", "--model", model)
    how += ("--input-file", tmp_path / "in.jsonl", "--num-fewshot", 0, "--max-model-len", limit)
    done = call("label.py", *how)
    assert done.returncode == 0, done.stderr
    labelled, rejected = (read_lines(tmp_path / f"out{name}.jsonl") for name in ("", ".rejected"))
    assert [r["id"] for r in labelled] == ["r0", "r1", "r2", "just", "r3", "r4", "r5"]
    assert [(r["id"], r["reason"]) for r in rejected] == [("long", "prompt_too_long"), ("over", "prompt_too_long")]
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert record["options"]["prompt_form"] == "auto" and record["prompt_form"] == "completion"
    counts = record["counts"]
    assert 0 < counts["computed_tokens"] < counts["prompt_tokens"]
    assert f"{counts['computed_tokens']:,} tokens computed for {counts['prompt_tokens']:,}" in done.stderr
    changed = call("label.py", *how, "--prompt-form", "completion")
    assert changed.returncode == 1 and "was made with --prompt-form auto, now completion" in changed.stderr
    none = call("label.py", *how, "--prompt-form", "chat", "--overwrite")
    assert none.returncode == 1 and "the tokenizer of --model has no chat template" in none.stderr
