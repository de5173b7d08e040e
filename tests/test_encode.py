"""What students and teachers read of a text: control tokens, unreadable characters, truncation; heads of encoders.

The tokenizers are of the kinds that people use, trained here on a few words: T5 and DeBERTa-v3 from a SentencePiece
Unigram file, Llama from a SentencePiece BPE file with bytes, BERT from a vocab.txt, Qwen2 (byte-level BPE).
"""

import json
import random

import pytest
from conftest import call, loaded, make_bpe, one_error, pair
from hypothesis import given
from hypothesis import strategies as st

from gold.control_tokens import broken_up, control_tokens, frame_of, plain_ids, told_of_prompts
from gold.prompts import Prompt
from gold.student import Student
from gold.teacher import Encoder
from gold.truncation import cut_fields, field_spans
from gold.unreadable import told_of_losses

WORDS = (
    "pair: with premise hypothesis the a big beach garden sun snow melon frost stove warm not it is and cat dog".split()
)
KINDS = ("t5", "llama", "deberta", "bert", "qwen2")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_spm(folder, kind, prefix, **how):
    import sentencepiece

    rng = random.Random(0)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(rng.choices(WORDS, k=8)) + rng.choice(".?!") for _ in range(400)))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / prefix), hard_vocab_limit=False, minloglevel=2, **how
    )


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    from transformers import AutoTokenizer

    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    make_spm(folders["t5"], "t5", "spiece", vocab_size=90, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    own = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    make_spm(folders["deberta"], "deberta-v2", "spm", vocab_size=90, pad_id=0, bos_id=1, eos_id=2, unk_id=3, **own)
    how = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    make_spm(folders["llama"], "llama", "tokenizer", vocab_size=400, **how)
    letters = sorted({*"".join(WORDS), *"<>[]/?!."})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sep", *letters, *(f"##{c}" for c in letters), *WORDS]
    (folders["bert"] / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    (folders["bert"] / "config.json").write_text('{"model_type": "bert"}')
    made = {kind: AutoTokenizer.from_pretrained(folders[kind]) for kind in KINDS if kind != "qwen2"}
    made["qwen2"] = make_bpe()
    made["qwen2"].add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def encode(rows, tokenizer, family, task, source, target):
    lengths = {"max_source_length": source, "max_target_length": target}
    return Student(None, tokenizer, family, task, None, lengths).encode(rows)


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
    ids, broken, _ = plain_ids(tokenizer, texts)
    assert all(control.keys().isdisjoint(row) for row in ids) and all(ids)
    assert bool(broken) is (kind in ("t5", "deberta"))  # Unigram has the spelling in its vocabulary
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
    ids, broken, spans = plain_ids(tokenizer, texts, spans=True)
    assert [before + row + after for row in ids] == tokenizer(texts)["input_ids"] and not broken
    assert list(map(len, spans)) == list(map(len, ids))
    frames = {"t5": ([], ["</s>"]), "deberta": (["[CLS]"], ["[SEP]"]), "bert": (["[CLS]"], ["[SEP]"])}
    expected = frames.get(kind, ([], []))
    assert (tokenizer.convert_ids_to_tokens(before), tokenizer.convert_ids_to_tokens(after)) == expected


def test_features_hold_control_tokens_in_their_frame_alone(models, pairs, tokenizers, capsys):
    """Of a T5 in sources and targets, and of a decoder, which reads its own end token otherwise."""
    record = {"first": "the </s> beach", "second": "<pad> sun <|endoftext|>", "label": "Warm", "target": "Warm</s>"}
    record["source"] = f"pair: {record['first']} with {record['second']}"
    t5 = encode([record], tokenizers["t5"], "encoder-decoder", pairs, 64, 16)[0]
    assert [ids.count(1) for ids in (t5["input_ids"], t5["labels"])] == [1, 1] and 0 not in t5["input_ids"]
    assert t5["input_ids"][-1] == t5["labels"][-1] == 1
    said = capsys.readouterr().err
    assert "1 of 1 sources spell out a control token of this student" in said and "1 of 1 targets spell out" in said
    tokenizer = loaded(models["qwen2"], pairs).tokenizer
    qwen2 = encode([record], tokenizer, "decoder", pairs, 64, 16)[0]
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.eos_token_id not in qwen2["input_ids"]
    assert tokenizer.decode(qwen2["input_ids"]) == record["source"] + "\n"
    assert tokenizer.decode(qwen2["labels"]) == "Warm</s><|endoftext|>"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_prompts_hold_control_tokens_in_their_frame_alone(kind, form, tokenizers, monkeypatch):
    tokenizer = tokenizers[kind]
    template = CHAT if kind == "qwen2" else CHAT.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")
    monkeypatch.setattr(tokenizer, "chat_template", template if form == "chat" else None)
    control = control_tokens(tokenizer)
    plain = [Prompt("Write.", "The cat < dog [MASK]\n\nText:"), Prompt("", "Text: é")]
    hidden = [
        Prompt("Write.</s>", "The <|im_end|>\n<s>cat</s>\n\nText:<|endoftext|>"), Prompt("", "Text: <|im_start|>system</s>"),
    ]  # fmt: skip
    encoder = Encoder(tokenizer, "chat" if form == "chat" else "completion", {}, None)
    ids = encoder.encode(plain)
    for (system, user), row in zip(plain, ids, strict=True):  # the same tokens as without any of this
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": user}]
        joined = "\n\n".join(filter(None, (system, user)))
        given = (
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            if form == "chat"
            else []
        )
        assert row == (given or tokenizer(joined)["input_ids"])
    found = encoder.encode(hidden)
    count = [[sum(token in control for token in row) for row in rows] for rows in (ids, found)]
    assert count[0] == count[1] == ([5, 3] if form == "chat" else [0, 0])
    assert "< /s>" in tokenizer.decode(found[0]) if kind == "llama" else "< |im_end|>" in tokenizer.decode(found[0])
    told = told_of_prompts("records", tokenizer, ["fine", "so <|im_end|> or </s>"])
    shown = ("'<|im_end|>': prompts have '< |im_end|>'", "'</s>': prompts have '< /s>'")[kind == "llama"]
    assert len(told) == 1 and told[0].startswith("1 of 2 records spell out a control token") and shown in told[0]
    assert told_of_prompts("records", tokenizer, ["fine", "[MASK] <"]) == []


@given(st.lists(st.sampled_from(["<", "</s>", "<s>", "/s>", "s", ">", "<unk>", " ", "a"]), max_size=9).map("".join))
def test_no_spelling_is_left_in_a_prompt(tokenizers, text):
    tokenizer = tokenizers["llama"]
    broken = broken_up(tokenizer, text)
    assert not any(spelling in broken for spelling in control_tokens(tokenizer).values())
    assert broken.replace(" ", "") == text.replace(" ", "")
    assert control_tokens(tokenizer).keys().isdisjoint(tokenizer(broken, add_special_tokens=False)["input_ids"])


# ---------------------------------------------------------------------------------------------------------------------
# Text that cannot be read


def lines_of(tokenizer, texts, what="sources"):
    return told_of_losses(what, texts, plain_ids(tokenizer, texts)[0], tokenizer)


def test_reviews_in_another_script_are_told(tokenizers):
    """200 different Chinese texts are one input to a T5 of English; bytes read them all."""
    texts = [f"the {chr(0x4E00 + n)}{chr(0x5E00 + n)}" for n in range(200)]
    (line,) = lines_of(tokenizers["t5"], texts)
    assert line.startswith(
        "200 of 200 sources hold what this student's tokenizer does not know: 40.0% of their characters"
    )
    assert f"such as {texts[0]!r}; 200 different sources become 1" in line  # 2 of 5 characters
    assert lines_of(tokenizers["llama"], texts) == lines_of(tokenizers["qwen2"], texts) == []
    (line,) = lines_of(tokenizers["bert"], texts[:1])
    assert "40.0% of their characters are lost, 66.7% of their tokens unknown, most often '一' '帀'" in line


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("t5", "the < cat { sun", ("1 of 2 targets hold", "18.2% of their characters", "most often '<' '{'")),
        ("t5", "the big\ncat", ("of 2 targets 1 lose their line ends",)),
        ("t5", "the  big\n\ncat", ("of 2 targets 1 lose their line ends, 1 lose their runs of blanks",)),
        ("bert", "the big\ncat", ("of 2 targets 1 lose their line ends",)),
        ("bert", "The Cat\t is <[", ("of 2 targets 1 lose their runs of blanks",)),
        ("t5", "the\u00a0big\u2026 Cat", ("1 of 2 targets hold", "most often 'C'")),  # NFKC: blank and three dots
        ("deberta", "the\u00a0big cat\u2026", ("1 of 2 targets hold", "most often '\\xa0' '…'")),
        ("llama", "the\u00a0  big\u2026\n\n <Cat> {é}\u200b", ()),
        ("qwen2", "the\u00a0  big\u2026\n\n <Cat> {é}\u200b", ()),
    ],
)
def test_what_a_tokenizer_drops_is_told(kind, text, told, tokenizers):
    lines = lines_of(tokenizers[kind], ["the cat", text], "targets")
    assert len(lines) == bool(told)
    assert all(part in lines[0] for part in told)


def test_runs_of_blanks_are_not_made_up_by_unknown_tokens(tokenizers):
    lines = lines_of(tokenizers["t5"], ["the < cat  is { sun"])
    assert len(lines) == 2 and lines[1].startswith("of 1 sources 1 lose their runs of blanks")


# ---------------------------------------------------------------------------------------------------------------------
# Truncation


def test_the_longest_field_loses_its_end():
    """By hand: 9 tokens, 6 of them in two fields; one for each word."""
    text, fields = field_spans("x $a y ${b} z", {"a": "1 2 3 4 5", "b": "6"})
    assert text == "x 1 2 3 4 5 y 6 z" and [(name, text[i:j]) for name, (i, j) in fields] == [
        ("a", "1 2 3 4 5"),
        ("b", "6"),
    ]
    spans = [(i, i + 1) for i in range(0, len(text), 2)]
    ids = list(range(9))
    assert cut_fields(ids, spans, fields, 9) == (ids, {})
    assert cut_fields(ids, spans, fields, 6) == ([0, 1, 2, 6, 7, 8], {"a": 3})
    assert cut_fields(ids, spans, fields, 5) == ([0, 1, 6, 7, 8], {"a": 4})
    assert cut_fields(ids, spans, fields, 4) is None  # a field would be gone
    assert cut_fields(ids, spans, [], 4) is None


def test_a_long_source_keeps_its_last_field(models, pairs, tokenizers, capsys):
    tokenizer, family = loaded(models["bert"], pairs).tokenizer, "encoder"
    fields = [{"first": " ".join(["the beach"] * 20), "second": "a big sun"}, {"first": "the", "second": "snow"}]
    rows = [f | {"label": "Warm", "target": "Warm", "source": f"pair: {f['first']} with {f['second']}"} for f in fields]
    features = encode(rows, tokenizer, family, pairs, 16, 8)
    # [CLS] pair : (8 of 40 words) with a big sun [SEP]
    assert tokenizer.decode(features[0]["input_ids"]) == f"[CLS] pair : {'the beach ' * 4}with a big sun [SEP]"
    said = "1 of 2 sources are longer than --max-source-length 16: cut field first of 1, by 32 tokens in the mean"
    assert capsys.readouterr().err.strip() == said
    # a record whose source is not what its fields make, and a tokenizer that tells no places: the end goes
    other = encode([rows[0] | {"first": "the"}], tokenizer, family, pairs, 16, 8)[0]["input_ids"]
    assert tokenizer.decode(other) == f"[CLS] pair : {'the beach ' * 6}[SEP]" and len(other) == 16
    assert "1 of 1 sources are longer than --max-source-length 16: cut the end of 1" in capsys.readouterr().err
    from transformers import ByT5Tokenizer

    short = encode(rows[:1], ByT5Tokenizer(), "encoder-decoder", pairs, 16, 8)[0]["input_ids"]
    assert ByT5Tokenizer().decode(short) == "pair: the beach</s>"
    assert "cut the end of 1" in capsys.readouterr().err


def test_spelled_control_tokens_do_not_shift_a_cut(tokenizers, pairs):
    """A broken-up spelling is more tokens than the tokenizer gives: the places of the fields still hold."""
    fields = {"first": "the </s> beach <pad>" * 9, "second": "the sun"}
    row = fields | {"target": "Warm", "source": f"pair: {fields['first']} with {fields['second']}"}
    tokenizer = tokenizers["t5"]
    ids = encode([row], tokenizer, "encoder-decoder", pairs, 40, 8)[0]["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) == 40 and text.startswith("pair: the") and text.endswith("with the sun")


# ---------------------------------------------------------------------------------------------------------------------
# Heads


@pytest.mark.parametrize("names", [["bad", "fair", "good"], ["up", "down"]])
def test_a_new_head_for_other_labels(names, tmp_path, home, tokenizers, pairs):
    """A checkpoint of three labels, and one of two, whose head would fit and mean something else; DeBERTa has no sdpa (C13)."""
    import transformers as hf
    from safetensors.torch import load_file

    torch_free = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.DebertaV2Config(
        vocab_size=len(tokenizers["deberta"]), id2label=dict(enumerate(names)), problem_type="multi_label_classification",
        label2id={name: i for i, name in enumerate(names)}, pad_token_id=0, **torch_free,
    )  # fmt: skip
    hf.set_seed(1)
    hf.DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path / "base")
    tokenizers["deberta"].save_pretrained(tmp_path / "base")
    command = [
        "train_student.py", "--task-file", home / "pairs.toml", "--model", tmp_path / "base", "--train-file",
        home / "train.jsonl", "--output-dir", tmp_path / "student", "--num-train-epochs", 1, "--learning-rate", 0,
        "--weight-decay", 0,
    ]  # fmt: skip
    done = call(*command)
    assert done.returncode == 1
    one_error(done.stderr, str(names), "['Warm', 'not warm']", "--new-head")
    done = call(*command, "--new-head")
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "student" / "config.json").read_text())
    assert saved["id2label"] == {"0": "Warm", "1": "not warm"} and saved["label2id"] == {"Warm": 0, "not warm": 1}
    assert saved.get("problem_type") is None
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "student"))
    body = [name for name in old if name.startswith("deberta.")]
    assert body and all((old[name] == new[name]).all() for name in body)
    assert new["classifier.weight"].shape == (2, 16)
    assert len(names) == 3 or not (old["classifier.weight"] == new["classifier.weight"]).all()
    assert loaded(tmp_path / "student", pairs).family == "encoder"  # and is a student like any other


def test_a_new_head_is_an_encoders(home, models, tmp_path):
    done = call(
        "train_student.py", "--task-file", home / "pairs.toml", "--model", models["t5"], "--train-file",
        home / "train.jsonl", "--output-dir", tmp_path / "student", "--new-head",
    )  # fmt: skip
    assert done.returncode == 1
    one_error(done.stderr, "--new-head", "is no encoder")
