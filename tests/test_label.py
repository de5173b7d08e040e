"""label.py without vLLM: shots, votes, answers, ends of turns by hand; the stage on an engine of a few lines."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
from conftest import ROOT, call, encoder_of, flipped, pair, read_lines, write_lines

import label
from gold import calibration, teacher
from gold.answers import label_probs, vote_of
from gold.calibration import calibrates, divided, prior_of_batch, prior_of_words
from gold.engine import Engine
from gold.examples import agrees
from gold.labels import Row, chat_answer, draw_label_shots, label_records, log_probs
from gold.stopping import StopSignals
from gold.task import load_task

SUMS = load_task(ROOT / "prompts/word_problems.toml")
TASK = load_task(ROOT / "prompts/reviews.toml")
LABEL_PROMPT = "[prompt]\nlabel = '''\n$shots\n\n$start'''\n"
LABEL_EXAMPLE = {"pairs": "label_example = '''\nFirst: $first\nSecond: $second\nKind: $label'''", "flip": ""}


def test_shots_take_the_labels_in_turn(pairs):
    seeds = [pair(n) | {"id": str(n)} for n in range(9)]  # five Warm, four not
    for seed in range(5):
        shots = draw_label_shots(pairs, seeds, 6, seed)
        assert [Counter(s["label"] for s in shots[i : i + 2]) for i in (0, 2, 4)] == [{"Warm": 1, "not warm": 1}] * 3
    assert len(draw_label_shots(pairs, seeds, 20, 0)) == 9 and draw_label_shots(pairs, seeds, 0, 0) == []
    one, same, other = (draw_label_shots(pairs, seeds, 6, seed) for seed in (1, 1, 2))
    assert one == same != other


def probs(**shares):
    return {"teacher_label": max(shares, key=shares.get), "label_probs": shares}


def test_the_prior_is_divided_out():
    """.6 / .75 = .8 and .4 / .25 = 1.6: one third and two thirds."""
    assert label_probs(TASK, [math.log(0.6), math.log(0.4)])["teacher_label"] == next(iter(TASK.labels))
    (found, none) = divided(TASK, [probs(negative=0.6, positive=0.4), None], [0.25, 0.75])
    expected = {"negative": pytest.approx(1 / 3, abs=1e-5), "positive": pytest.approx(2 / 3, abs=1e-5)}
    assert none is None and found == {"teacher_label": "positive", "label_probs": expected}


def test_a_prior_is_for_labels_in_a_list_form_or_where_asked_for():
    task = load_task(ROOT / "prompts/sst2.toml")
    listed = task.in_form("completion")
    assert [calibrates(listed, how) for how in (None, True, False)] == [True, True, False]
    assert [calibrates(task, how) for how in (None, True, False)] == [False, True, False]
    assert not calibrates(SUMS, True)  # text2text


def test_the_prior_of_random_words(monkeypatch):
    asked, read = [], [{"text": "a b c"}, {"text": "d"}]

    def labelled(engine, encoder, task, records, shots):
        asked.extend(r["text"].split() for r in records)
        return [probs(negative=share, positive=1 - share) for share in (0.9, 0.7)] + [None]

    monkeypatch.setattr(calibration, "label_records", labelled)
    assert prior_of_words(Engine, None, load_task(ROOT / "prompts/sst2.toml"), read, [], 0) == pytest.approx([0.8, 0.2])
    assert len(asked) == 20 and all(len(text) == 2 for text in asked)  # (3 + 1) / 2 words
    assert {word for text in asked for word in text} == {"a", "b", "c", "d"}
    texts = calibration.random_texts(load_task(ROOT / "prompts/sst2.toml"), [{"text": ""}, {"text": " "}], 0)
    assert {t["text"] for t in texts} == {""}  # fields without words


def test_the_prior_of_a_batch_leaves_balanced_labels():
    """Where the prior holds w times as much of negative, the three negative texts have a positive share of w / (9 + w) each,
    the positive one of w / (1 + w). With a certain text of each label, half of all is positive where
    3/4 w / (9 + w) + 1/2 (1 + w / (1 + w)) = 1, which is 3 w^2 + w - 18 = 0."""
    records = [{"label": name} for name in ("negative", "negative", "negative", "positive", "positive")]
    answers = [*[probs(negative=0.9, positive=0.1)] * 3, probs(negative=0.5, positive=0.5), None]
    prior = dict(zip(TASK.labels, prior_of_batch(TASK, records, answers), strict=True))
    assert prior["negative"] / prior["positive"] == pytest.approx((217**0.5 - 1) / 6, rel=1e-4)


def test_a_label_that_is_never_likely_gets_its_texts():
    """SmolLM2 gave Sci/Tech of AG News .0001 at most: the ranking within the label is what counts."""
    own, other = probs(negative=0.9999, positive=1e-4), probs(negative=1 - 1e-6, positive=1e-6)
    records = [{"label": name} for name in ("negative", "positive") for _ in range(50)]
    prior = prior_of_batch(TASK, records, [other] * 50 + [own] * 50)
    assert [a["teacher_label"] for a in divided(TASK, [own, other], prior)] == ["positive", "negative"]


def test_a_label_without_a_text_in_the_batch_gets_none_of_the_others():
    answers = [probs(negative=0.85, positive=0.15)] * 6
    prior = prior_of_batch(TASK, [{"label": "negative"}] * 6, answers)
    assert {a["teacher_label"] for a in divided(TASK, answers, prior)} == {"negative"}


def test_votes_are_counted_by_meaning(flip):
    assert vote_of(flip, " The SUN") == vote_of(flip, "the sun") != vote_of(flip, "the -sun")
    assert not vote_of(flip, " ") and vote_of(flip, "caf\u00e9") == vote_of(flip, "cafe\u0301")
    span = flip.model_copy(update={"metric": "squad"})
    assert vote_of(span, "C++.") != vote_of(span, "C#") and vote_of(span, "“Paris”") == vote_of(span, "paris")
    assert vote_of(SUMS, "12 - 5") == vote_of(SUMS, "(3.5 * 2)") and vote_of(SUMS, "many") is None
    programmes = load_task(ROOT / "prompts/nl4opt.toml")
    a, b = "maximize 3 x - 2 y; x at most 4", "maximize 3 x + 2 y; x + y at most 4"
    assert vote_of(programmes, a) == vote_of(programmes, b) == 12 and vote_of(programmes, "I do not know") is None
    assert vote_of(programmes, b) != vote_of(programmes, "maximize 3 x + 2 y; x + y at most 5")
    assert agrees(SUMS, {"problem": "x", "equation": "7"}, "12 - 5") and not agrees(SUMS, {"equation": "7"}, "many")
    assert agrees(TASK, {"label": "positive"}, "positive") and not agrees(TASK, {"label": "positive"}, "negative")


@pytest.fixture
def tokenizer(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models["qwen2"])


class FakeEngine(Engine):
    """Answers without a model: labels by the numbers of the tokens, else the texts that are given."""

    def __init__(self, texts=(), finish_reason="stop", room=10_000):
        self.texts, self.finish_reason, self.sent = texts, finish_reason, []
        self.model, self.signals, self.max_model_len, self.tokens = "fake", StopSignals(), room, Counter()

    def complete(self, requests):
        self.sent.append(requests)
        outputs = []
        for _, ids, params, *_ in requests:
            self.tokens["prompt_tokens"] += len(ids)
            tokens = params.get("logprob_token_ids", [])
            logprobs = [{t: SimpleNamespace(logprob=-((sum(ids) + t) % 7 + 1)) for t in tokens}]
            ones = [SimpleNamespace(text=t, finish_reason=self.finish_reason) for t in self.texts]
            outputs.append(SimpleNamespace(outputs=ones or [SimpleNamespace(logprobs=logprobs)]))
        return outputs


def test_more_children_than_vllm_takes_are_asked_in_turn():
    engine = FakeEngine()
    first = [-((3 + 7 * i) % 7 + 1) for i in range(300)]
    [sums] = log_probs(engine, [Row([1, 2], [[7 * i, 9] for i in range(300)])])
    assert sums == [a - ((3 + 7 * i + 9) % 7 + 1) for i, a in enumerate(first)]
    assert [len(sent) for sent in engine.sent] == [3, 300]  # 128 + 128 + 44 at the root, first of all


@pytest.mark.parametrize("texts, answer, probs", [
    (["12 - 5", "8 - 1\nProblem: another", "many"], "12 - 5", {"12 - 5": 1.0}),  # what has no value is no vote
    (["6", "7", "(7)"], "7", {"6": 1 / 3, "7": 2 / 3}),
    (["<think>no, 3</think> equation: 4", "5", "6"], "4", {"4": 1 / 3, "5": 1 / 3, "6": 1 / 3}),  # a tie: the first
    (["9 - 2\n\nBecause two were eaten.", "Problem: x\nEquation: 7", "1"], "9 - 2", {"9 - 2": 2 / 3, "1": 1 / 3}),
    (["**Equation:** 4", "It is:\n\nProblem: x\nEquation: 2 * 2", "1"], "4", {"4": 2 / 3, "1": 1 / 3}),
    (["none", "at all", "!"], "", {}),
])  # fmt: skip
@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}\n{% endfor %}"])
def test_majority_of_answers(texts, answer, probs, template, tokenizer):
    tokenizer.chat_template = template
    [found] = label_records(FakeEngine(texts), encoder_of(tokenizer), SUMS, [{"problem": "x"}], [], num_samples=3)
    assert found == {"teacher_label": answer, "label_probs": pytest.approx(probs)}


@pytest.mark.parametrize("text, answer", [
    ("12 - 5", ""),
    ("12 - 5\n\nBecause five of them", ""),
    ("12 - 5\n\nProblem: There are 3", "12 - 5"),  # a base model in a chat template: the next example has begun
])  # fmt: skip
def test_an_answer_that_is_cut_off_is_none(text, answer, tokenizer):
    found = label_records(FakeEngine([text], "length"), encoder_of(tokenizer), SUMS, [{"problem": "x"}], [])
    assert found == [{"teacher_label": answer}]


@pytest.mark.parametrize("user, assistant, gap, end", [
    ("[{{ m.content }}]", " {{ m.content }}</s>", " ", "</s>"),  # Llama 2
    ("[{{ m.content }}]", "<think></think>{{ m.content }} ]", "", "]"),  # the gap is blanks alone
    ("{{ m.content }}", "{{ raise_exception('no') }}", "", "<|endoftext|>"),
])  # fmt: skip
def test_blanks_before_an_answer_and_the_end_of_its_turn_are_the_templates(user, assistant, gap, end, tokenizer):
    turn = f"{{% if m.role == 'user' %}}{user}{{% else %}}{assistant}{{% endif %}}"
    tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    assert chat_answer(encoder_of(tokenizer)) == (gap, end)


# ---------------------------------------------------------------------------------------------------------------------
# The stage


@pytest.fixture
def command(models, home, tmp_path, monkeypatch):
    """label.py in this process for a task of the tests, on a FakeEngine."""

    def command(task, *args, texts=(), name="out", code=0):
        text = (home / f"{task}.toml").read_text().replace("[prompt]", LABEL_PROMPT + LABEL_EXAMPLE[task])
        text = text.replace('seed_examples = "', f'seed_examples = "{home}/')
        (tmp_path / f"{task}.toml").write_text(text)
        monkeypatch.setattr(teacher, "Engine", lambda model, room, *of, **how: FakeEngine(texts, room=room))
        monkeypatch.setattr(label, "chunk_size", lambda engine: 7)
        done = call(
            "label.py", "--task-file", tmp_path / f"{task}.toml", "--model", models["qwen2"], "--output-file",
            tmp_path / f"{name}.jsonl", *args,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stderr if done.returncode else (done, *(tmp_path / f"{name}{r}.jsonl" for r in ("", ".rejected")))

    return command


def test_records_are_labelled_and_a_run_that_was_cut_off_resumes(command, tmp_path, monkeypatch):
    """24 records in chunks of 7; each fifth does not fit; one is labelled by another teacher; one spells a control token."""
    source = [pair(n) | {"id": f"r{n}", "mine": n} for n in range(24)]
    for n in range(0, 24, 5):
        source[n]["first"] = "the lake " * 150
    del source[1]["label"]
    source[2] |= {"teacher_label": "neither", "label_probs": {"neither": 1.0}, "first": "the <|endoftext|>"}
    args = ("--input-file", write_lines(tmp_path / "in.jsonl", source), "--max-model-len", 300)
    done, path, left_out = command("pairs", *args, "--calibrate", name="whole")
    whole, rejected = read_lines(path), read_lines(left_out)
    assert [r["mine"] for r in whole] == [n for n in range(24) if n % 5]
    for r in whole:
        assert list(r)[:3] == ["id", "first", "second"] and list(r["label_probs"]) == ["Warm", "not warm"]
        assert sum(r["label_probs"].values()) == pytest.approx(1, abs=1e-5)
        assert r["teacher_label"] == max(r["label_probs"], key=r["label_probs"].get)
    assert [(r["id"], r["reason"], r["mine"]) for r in rejected] == [
        (f"r{n}", "prompt_too_long", n) for n in range(0, 24, 5)
    ]
    record = json.loads((tmp_path / "whole.jsonl.run.json").read_text())
    counts, prior = record["counts"], record["prior"]
    assert list(prior) == ["Warm", "not warm"] and sum(prior.values()) == pytest.approx(1, abs=1e-5)
    plain = read_lines(command("pairs", *args, name="plain")[1])
    for r, p in zip(whole, plain, strict=True):  # by the ratio of the two
        odds, by_hand = ((x["label_probs"]["Warm"] / x["label_probs"]["not warm"]) for x in (r, p))
        assert odds == pytest.approx(by_hand * prior["not warm"] / prior["Warm"], rel=1e-3)
    assert (counts["records"], counts["labelled"], counts["rejected"]) == (24, 19, {"prompt_too_long": 5})
    assert (
        counts["agreeing"] == sum(r["teacher_label"] == r.get("label") for r in whole) and counts["with_answer"] == 18
    )
    assert "5 of 24 records are too long (prompt_too_long)" in done.stderr
    assert "; lower --num-fewshot or raise --max-model-len, with --overwrite" in done.stderr
    assert "19 labelled + 5 rejected (5 prompt_too_long) = 24 read" in done.stderr

    real, calls = label.label_records, []

    def breaks(engine, *of, **how):
        calls.append(of)
        with engine.errors("stopped"):
            if len(calls) == 3:
                raise RuntimeError("the engine is gone\nand more")
        return real(engine, *of, **how)

    with monkeypatch.context() as patch:
        patch.setattr(label, "label_records", breaks)
        told = command("pairs", *args, "--calibrate", name="cut", code=1)
    assert "vLLM stopped: the engine is gone; what is saved stays" in told
    with (tmp_path / "cut.jsonl.partial").open("a") as file:
        file.write('{"id": "torn')
    with monkeypatch.context() as patch:
        patch.setattr(label, "prior_of_words", None)  # it is kept: nothing asks for it again
        done, *files = command("pairs", *args, "--calibrate", name="cut")
    assert "going on after 14 records" in done.stderr
    assert [path.read_text() for path in files] == [path.read_text() for path in (tmp_path / "whole.jsonl", left_out)]
    assert "up to date" in command("pairs", *args, "--calibrate", name="cut")[0].stderr
    assert "was made without --num-fewshot, now 2" in command(
        "pairs", *args, "--calibrate", "--num-fewshot", 2, name="cut", code=1
    )
    told = command("pairs", *args[:-1], 20, name="none", code=1)
    assert "24 of 24 records are too long" in told and "the context holds 20; lower --num-fewshot" in told


def test_the_teachers_answer_in_place_of_the_records(command, tmp_path):
    """--relabel takes it, --min-share rejects where it is too little of one opinion; what stood before stays."""
    source = [pair(n) | {"id": f"r{n}", "target": "kept"} for n in range(8)]
    for r in source[4:]:
        del r["label"], r["target"]
    args = ("--input-file", write_lines(tmp_path / "in.jsonl", source))
    plain = read_lines(command("pairs", *args, name="plain")[1])
    shares = sorted(max(r["label_probs"].values()) for r in plain)
    done, path, rejected = command("pairs", *args, "--relabel", "--min-share", shares[3], name="new")
    kept, left = read_lines(path), read_lines(rejected)
    assert [r["id"] for r in kept] == [r["id"] for r in plain if max(r["label_probs"].values()) >= shares[3]]
    assert len(left) == sum(share < shares[3] for share in shares) > 0
    assert all(list(r)[:2] == ["id", "reason"] and r["reason"] == "unsure" for r in left)
    for r in kept + left:
        assert r["label"] == r["teacher_label"] == r["target"]
        assert r.get("earlier_label") == source[int(r["id"][1:])].get("label")
    counts = json.loads((tmp_path / "new.jsonl.run.json").read_text())["counts"]
    assert (counts["labelled"], counts["rejected"]) == (8 - len(left), {"unsure": len(left)})
    assert counts["with_answer"] == sum("earlier_label" in r for r in kept)
    assert counts["agreeing"] == sum(r.get("earlier_label") == r["label"] for r in kept)
    assert f"{len(left)} rejected ({len(left)} unsure) = 8 read" in done.stderr
    texts = write_lines(tmp_path / "texts.jsonl", [flipped(n) for n in range(2)])
    how = ("--input-file", texts, "--num-samples", 3, "--relabel", "--min-share", 0.6)
    done, path, rejected = command("flip", *how, texts=["sun beach", "sun beach", "lake"], name="most")
    assert {(r["answer"], r["earlier_answer"]) for r in read_lines(path)} == {
        ("sun beach", flipped(n)["answer"]) for n in range(2)
    }
    told = command("flip", *how, texts=["", "", ""], name="none", code=1)
    assert "all 2 records are rejected: 2 no_answer; read " in told
    partial = read_lines(tmp_path / "none.rejected.jsonl.partial")
    assert [(r["reason"], r["earlier_answer"]) for r in partial] == [
        ("no_answer", flipped(n)["answer"]) for n in range(2)
    ]
    assert "one answer has no share" in " ".join(command("flip", *how[:2], "--min-share", 0.5, code=2).split())


def test_shards_are_the_whole(command, home, tmp_path):
    args = ("pairs", "--input-file", home / "test.jsonl", "--limit", 10)
    whole = read_lines(command(*args)[1])
    for i in (0, 1):
        command(*args, "--shard", f"{i}/2")
    parts = [read_lines(tmp_path / f"out-{i:05d}-of-00002.jsonl") for i in (0, 1)]
    assert [record for two in zip(*parts, strict=True) for record in two] == whole
    assert "no record for this shard" in " ".join(command(*args, "--limit", 1, "--shard", "1/2", code=2).split())


@pytest.mark.parametrize("samples", [1, 3])
def test_a_text2text_task_is_answered(samples, command, tmp_path):
    source = write_lines(
        tmp_path / "in.jsonl", [{k: v for k, v in flipped(n).items() if k == "text"} for n in range(3)]
    )
    how, texts = ("--input-file", source, "--num-samples", samples), ["sun beach", "Sun beach\n\nText: a", ""][:samples]
    expected = {"teacher_label": "sun beach"} | ({"label_probs": {"sun beach": 1.0}} if samples > 1 else {})
    for record in read_lines(command("flip", *how, texts=texts)[1]):
        assert {k: v for k, v in record.items() if k in ("teacher_label", "label_probs")} == expected
    done, *_ = command("flip", *how, texts=["", "", ""][:samples], name="none")
    assert "warning: " in done.stderr and "3 of 3 have no answer that ends; raise --max-tokens" in done.stderr


def test_dry_run_shows_prompts_and_tokens(command, home):
    done, path, _ = command("pairs", "--input-file", home / "test.jsonl", "--dry-run")
    assert not path.exists() and "=== would label 22 records" in done.stdout
    assert f"First: {read_lines(home / 'test.jsonl')[0]['first']}\nSecond: " in done.stdout
    assert "--- Warm: ' Warm'\n--- not warm: ' not' | ' warm'\n" in done.stdout


@pytest.mark.parametrize("script, args", [("label.py", ["--input-file", "test.jsonl"]), ("generate.py", ["--verify"])])
def test_a_task_without_a_label_prompt_is_refused(script, args, home, tmp_path):
    args = [home / a if a.endswith("jsonl") else a for a in args]
    output = ("--output-file", tmp_path / "a.jsonl") if script == "label.py" else ("--output-dir", tmp_path / "a")
    done = call(script, "--task-file", home / "pairs.toml", "--model", "no/model", *output, *args)
    assert done.returncode == 1 and "pairs.toml: prompt.label: missing" in done.stderr and not list(tmp_path.iterdir())
