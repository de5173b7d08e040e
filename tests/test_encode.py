"""What students and teachers read of a text: control tokens, unreadable characters, truncation; heads of encoders.

The tokenizers are of the kinds that people use, trained here on a few words: T5 and DeBERTa-v3 from a SentencePiece
Unigram file, Llama from a SentencePiece BPE file with bytes, BERT from a vocab.txt, Qwen2 (byte-level BPE).
"""

import json
import random
import re

import pytest
from conftest import loaded, make_bpe, one_error, pair, train
from hypothesis import given
from hypothesis import strategies as st

from gold.control_tokens import broken_up, control_tokens, frame_of, plain_ids
from gold.encoding import cut_fields, field_spans, told_of_losses
from gold.prompts import Prompt
from gold.student import Student
from gold.teacher import Encoder

WORDS = "pair: with premise the a big beach garden sun snow melon frost stove warm not it is and cat dog".split()
KINDS = ("t5", "llama", "deberta", "bert", "qwen2")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_spm(folder, kind, prefix, **how):
    import sentencepiece

    rng, corpus = random.Random(0), folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(rng.choices(WORDS, k=8)) + rng.choice(".?!") for _ in range(400)))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / prefix), hard_vocab_limit=False, minloglevel=2, **how
    )


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    from transformers import AutoTokenizer

    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS if kind != "qwen2"}
    make_spm(folders["t5"], "t5", "spiece", vocab_size=90, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    own = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    make_spm(folders["deberta"], "deberta-v2", "spm", vocab_size=90, pad_id=0, bos_id=1, eos_id=2, unk_id=3, **own)
    how = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    make_spm(folders["llama"], "llama", "tokenizer", vocab_size=400, **how)
    letters = sorted({*"".join(WORDS), *"<>[]/?!."})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sep", *letters, *(f"##{c}" for c in letters), *WORDS]
    (folders["bert"] / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    (folders["bert"] / "config.json").write_text('{"model_type": "bert"}')
    qwen2 = make_bpe()
    qwen2.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()} | {"qwen2": qwen2}


def encode(rows, tokenizer, family, task, source, target=8):
    lengths = {"max_source_length": source, "max_target_length": target}
    return Student(None, tokenizer, family, task, None, lengths).encode(rows)


def record(first, second, target="Warm"):
    source = f"pair: {first} with {second}"
    return {"first": first, "second": second, "label": "Warm", "target": target, "source": source}


# ---------------------------------------------------------------------------------------------------------------------
# Control tokens


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_text_stay_text(kind, tokenizers):
    """Control tokens in texts: in the middle, at the ends, run together, and in wide letters that NFKC makes plain."""
    tokenizer = tokenizers[kind]
    control = control_tokens(tokenizer)
    assert tokenizer.eos_token_id is None or tokenizer.eos_token_id in control
    texts = []
    for spelling in control.values():
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in spelling)
        texts += [spelling, f"the {spelling} cat", f"a{spelling}{spelling}b", f"{spelling} the", wide]
    assert not all(control.keys().isdisjoint(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    ids, _ = plain_ids(tokenizer, texts)
    assert all(control.keys().isdisjoint(row) for row in ids) and all(ids)
    if kind in ("llama", "qwen2"):
        assert tokenizer.batch_decode(ids) == texts
    if kind == "t5":  # a blank after the first character; "<" is unknown to it
        found = tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, ["the </s> cat"])[0][0])
        assert [token.strip("▁") for token in found if token != "▁"] == ["the", "<unk>", "<unk>", "s", "<unk>", "cat"]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_has_the_tokens_that_the_tokenizer_gives(kind, tokenizers):
    tokenizer = tokenizers[kind]
    texts = ["", "the cat", " pair: a  big\n\nsun?", "1 < 2 [a] {b} é 日本 \u200b", *(str(pair(n)) for n in range(20))]
    before, after = frame_of(tokenizer)
    ids, spans = plain_ids(tokenizer, texts, spans=True)
    assert [before + row + after for row in ids] == tokenizer(texts)["input_ids"]
    assert list(map(len, spans)) == list(map(len, ids))
    frames = {"t5": "</s>", "deberta": "[CLS] [SEP]", "bert": "[CLS] [SEP]"}
    assert tokenizer.convert_ids_to_tokens(before + after) == frames.get(kind, "").split()


def test_features_hold_control_tokens_in_their_frame_alone(models, pairs, tokenizers, capsys):
    """Of a T5 in sources and targets, and of a decoder, which reads its own end token otherwise."""
    row = record("the </s> beach", "<pad> sun <|endoftext|>", "Warm</s>")
    t5 = encode([row], tokenizers["t5"], "encoder-decoder", pairs, 64, 16)[0]
    assert [ids.count(1) for ids in (t5["input_ids"], t5["labels"])] == [1, 1] and 0 not in t5["input_ids"]
    assert t5["input_ids"][-1] == t5["labels"][-1] == 1
    capsys.readouterr()
    tokenizer = loaded(models["qwen2"], pairs).tokenizer
    qwen2 = encode([row], tokenizer, "decoder", pairs, 64, 16)[0]
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.eos_token_id not in qwen2["input_ids"]
    assert tokenizer.decode(qwen2["input_ids"]) == row["source"] + "\n"
    assert tokenizer.decode(qwen2["labels"]) == "Warm</s><|endoftext|>"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["chat", "completion"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_prompts_hold_control_tokens_in_their_frame_alone(kind, form, tokenizers, monkeypatch):
    tokenizer = tokenizers[kind]
    template = CHAT if kind == "qwen2" else CHAT.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")
    monkeypatch.setattr(tokenizer, "chat_template", template if form == "chat" else None)
    control, encoder = control_tokens(tokenizer), Encoder(tokenizer, form, {}, None)
    plain = [Prompt("Write.", "The cat < dog [MASK]\n\nText:"), Prompt("", "Text: é")]
    hidden = [
        Prompt("Write.</s>", "The <|im_end|>\n<s>cat</s>\n\nText:<|endoftext|>"), Prompt("", "Text: <|im_start|>system</s>"),
    ]  # fmt: skip
    ids, found = encoder.encode(plain), encoder.encode(hidden)
    for (system, user), row in zip(plain, ids, strict=True):  # the same tokens as without any of this
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": user}]
        text = "\n\n".join(filter(None, (system, user)))
        how = {"add_generation_prompt": True, "return_dict": False}
        assert row == (tokenizer.apply_chat_template(turns, **how) if form == "chat" else tokenizer(text)["input_ids"])
    count = [[sum(token in control for token in row) for row in rows] for rows in (ids, found)]
    assert count[0] == count[1] == ([5, 3] if form == "chat" else [0, 0])
    assert ("< /s>" if kind == "llama" else "< |im_end|>") in tokenizer.decode(found[0])


@given(st.lists(st.sampled_from(["<", "</s>", "<s>", "/s>", "s", ">", "<unk>", " ", "a"]), max_size=9).map("".join))
def test_no_spelling_is_left_in_a_prompt(tokenizers, text):
    tokenizer = tokenizers["llama"]
    broken = broken_up(tokenizer, text)
    assert not any(spelling in broken for spelling in control_tokens(tokenizer).values())
    assert broken.replace(" ", "") == text.replace(" ", "")
    assert control_tokens(tokenizer).keys().isdisjoint(tokenizer(broken, add_special_tokens=False)["input_ids"])


# ---------------------------------------------------------------------------------------------------------------------
# Text that cannot be read


def told_of(tokenizer, texts):
    return told_of_losses("sources", texts, plain_ids(tokenizer, texts)[0], tokenizer)


def test_reviews_in_another_script_are_told(tokenizers):
    """200 different Chinese texts are one input to a T5 of English; bytes read them all."""
    texts = [f"the {chr(0x4E00 + n)}{chr(0x5E00 + n)}" for n in range(200)]
    told = "200 of 200 sources hold what this student's tokenizer does not know: 40.0% of their characters"
    assert told_of(tokenizers["t5"], texts).startswith(told)  # 2 of 5 characters
    assert told_of(tokenizers["llama"], texts) is told_of(tokenizers["qwen2"], texts) is None
    line = told_of(tokenizers["bert"], texts[:1])
    assert f"40.0% of their characters are lost, most often '一' '帀'; such as {texts[0]!r}" in line


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("t5", "the < cat { sun", "1 of 2 sources hold .*: 18.2% of their characters are .*, most often '<' '{';"),
        ("t5", "the  big\n\ncat", r"most often '\\n';"),  # runs of blanks are nothing that a text says
        ("t5", "the\u00a0big\u2026 Cat", "most often 'c';"),  # NFKC: blank and three dots
        ("bert", "The Cat\t is <[", None),
        ("deberta", "the\u00a0big cat\u2026", "hold what this student's tokenizer does not know"),
        ("llama", "the\u00a0  big\u2026\n\n <Cat> {é}\u200b", None),
        ("qwen2", "the\u00a0  big\u2026\n\n <Cat> {é}\u200b", None),
    ],
)
def test_what_a_tokenizer_drops_is_told(kind, text, told, tokenizers):
    line = told_of(tokenizers[kind], ["the cat", text])
    assert line is None if told is None else re.search(told, line), line


# ---------------------------------------------------------------------------------------------------------------------
# Truncation


def test_the_longest_field_loses_its_end():
    """By hand: 9 tokens, 6 of them in two fields; one for each word."""
    text, fields = field_spans("x $a y ${b} z", {"a": "1 2 3 4 5", "b": "6"})
    assert text == "x 1 2 3 4 5 y 6 z"
    assert [(name, text[i:j]) for name, (i, j) in fields] == [("a", "1 2 3 4 5"), ("b", "6")]
    ids, spans = list(range(9)), [(i, i + 1) for i in range(0, len(text), 2)]
    assert cut_fields(ids, spans, fields, 9) == (ids, {})
    assert cut_fields(ids, spans, fields, 6) == ([0, 1, 2, 6, 7, 8], {"a": 3})
    assert cut_fields(ids, spans, fields, 5) == ([0, 1, 6, 7, 8], {"a": 4})
    assert cut_fields(ids, spans, fields, 4) is None  # a field would be gone
    assert cut_fields(ids, spans, [], 4) is None
    text, fields = field_spans("$a|$b|$c", {"a": "1 2 3 4", "b": "5", "c": "6 7 8"})  # 10 tokens with the bars
    spans = [(i, i + 1) for i, c in enumerate(text) if c != " "]
    assert cut_fields(list(range(10)), spans, fields, 7) == ([0, 1, 4, 5, 6, 7, 8], {"a": 2, "c": 1})


def test_a_long_source_keeps_its_last_field(models, pairs, capsys):
    from transformers import ByT5Tokenizer

    tokenizer = loaded(models["bert"], pairs).tokenizer
    long = record(" ".join(["the beach"] * 20), "a big sun")
    features = encode([long, record("the", "snow")], tokenizer, "encoder", pairs, 16)
    # [CLS] pair : (8 of 40 words) with a big sun [SEP]
    assert tokenizer.decode(features[0]["input_ids"]) == f"[CLS] pair : {'the beach ' * 4}with a big sun [SEP]"
    said = "1 of 2 sources are longer than --max-source-length 16: cut field first of 1, by 32 tokens in the mean"
    assert capsys.readouterr().err.strip() == said
    # a record whose source is not what its fields make, and a tokenizer that tells no places: the end goes
    other = encode([long | {"first": "the"}], tokenizer, "encoder", pairs, 16)[0]["input_ids"]
    assert tokenizer.decode(other) == f"[CLS] pair : {'the beach ' * 6}[SEP]" and len(other) == 16
    assert "1 of 1 sources are longer than --max-source-length 16: cut the end of 1" in capsys.readouterr().err
    short = encode([long], ByT5Tokenizer(), "encoder-decoder", pairs, 16)[0]["input_ids"]
    assert ByT5Tokenizer().decode(short) == "pair: the beach</s>"
    assert "cut the end of 1" in capsys.readouterr().err


def test_spelled_control_tokens_do_not_shift_a_cut(tokenizers, pairs):
    """A broken-up spelling is more tokens than the tokenizer gives: the places of the fields still hold."""
    tokenizer = tokenizers["t5"]
    rows = [record("the </s> beach <pad>" * 9, "the sun")]
    ids = encode(rows, tokenizer, "encoder-decoder", pairs, 40)[0]["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) == 40 and text.startswith("pair: the") and text.endswith("with the sun")


# ---------------------------------------------------------------------------------------------------------------------
# Heads


@pytest.mark.parametrize("names", [["bad", "fair", "good"], ["up", "down"]])
def test_a_new_head_for_other_labels(names, tmp_path, home, tokenizers, pairs):
    """A checkpoint of three labels, and one of two, whose head would fit and mean something else; DeBERTa has no sdpa."""
    import transformers as hf
    from safetensors.torch import load_file

    base, student = tmp_path / "base", tmp_path / "student"
    config = hf.DebertaV2Config(
        vocab_size=len(tokenizers["deberta"]), id2label=dict(enumerate(names)), problem_type="multi_label_classification",
        label2id={name: i for i, name in enumerate(names)}, pad_token_id=0,
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    hf.set_seed(1)
    hf.DebertaV2ForSequenceClassification(config).save_pretrained(base)
    tokenizers["deberta"].save_pretrained(base)
    still = ("--num-train-epochs", 1, "--learning-rate", 0, "--weight-decay", 0)
    one_error(train(home, base, student, *still).stderr, str(names), "['Warm', 'not warm']", "--new-head")
    done = train(home, base, student, *still, "--new-head")
    assert done.returncode == 0, done.stderr
    saved = json.loads((student / "config.json").read_text())
    assert saved["id2label"] == {"0": "Warm", "1": "not warm"} and saved["label2id"] == {"Warm": 0, "not warm": 1}
    assert saved.get("problem_type") is None
    old, new = (load_file(folder / "model.safetensors") for folder in (base, student))
    body = [name for name in old if name.startswith("deberta.")]
    assert body and all((old[name] == new[name]).all() for name in body)
    head = new["classifier.weight"]
    assert head.shape == (2, 16) and (len(names) == 3 or not (old["classifier.weight"] == head).all())
    assert loaded(student, pairs).family == "encoder"  # and is a student like any other
