"""label.py and --verify: tries, shots and votes by hand, then one real engine against transformers in float32."""

import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import call, flipped, pair, read_lines, write_lines

import generate
import label
from gold.examples import agrees, read_examples
from gold.labels import (
    Row,
    chat_answer,
    draw_label_shots,
    label_records,
    label_rows,
    log_probs,
    running_labels,
    vote_of,
)
from gold.stopping import StopSignals
from gold.task import load_task
from gold.teacher import Encoder, Engine, load_encoder

TASK = load_task(Path("prompts/reviews.toml"))
SUMS = load_task(Path("prompts/word_problems.toml"))
SEEDS = read_examples(TASK.seed_examples, TASK)


def with_labels(labels):
    """The task of the reviews with other labels."""
    return TASK.model_copy(update={"labels": labels})


# ---------------------------------------------------------------------------------------------------------------------
# Without an engine


def test_shots_take_the_labels_in_turn(pairs):
    seeds = [pair(n) | {"id": str(n)} for n in range(9)]  # five Warm, four not
    for seed in range(5):
        shots = draw_label_shots(pairs, seeds, 6, seed)
        assert [Counter(s["label"] for s in shots[i : i + 2]) for i in (0, 2, 4)] == [{"Warm": 1, "not warm": 1}] * 3
    assert len(draw_label_shots(pairs, seeds, 20, 0)) == 9 and draw_label_shots(pairs, seeds, 0, 0) == []
    one, same, other = (draw_label_shots(pairs, seeds, 6, seed) for seed in (1, 1, 2))
    assert one == same != other


def test_votes_are_counted_by_meaning(flip):
    assert vote_of(flip, " The SUN") == vote_of(flip, "the sun") != vote_of(flip, "the -sun")
    assert not vote_of(flip, " ") and vote_of(flip, "caf\u00e9") == vote_of(flip, "cafe\u0301")
    span = flip.model_copy(update={"metric": "squad"})
    assert vote_of(span, "C++.") != vote_of(span, "C#") and vote_of(span, "“Paris”") == vote_of(span, "paris")
    assert vote_of(SUMS, "12 - 5") == vote_of(SUMS, "(3.5 * 2)") and vote_of(SUMS, "many") is None
    programmes = load_task(Path("prompts/nl4opt.toml"))
    a, b = "maximize 3 x - 2 y; x at most 4", "maximize 3 x + 2 y; x + y at most 4"
    assert vote_of(programmes, a) == vote_of(programmes, b) == 12 and vote_of(programmes, "I do not know") is None
    assert vote_of(programmes, b) != vote_of(programmes, "maximize 3 x + 2 y; x + y at most 5")
    assert agrees(SUMS, {"problem": "x", "equation": "7"}, "12 - 5") and not agrees(SUMS, {"equation": "7"}, "many")
    assert agrees(TASK, {"label": "positive"}, "positive") and not agrees(TASK, {"label": "positive"}, "negative")


@pytest.fixture
def tokenizer(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models["qwen2"])


def encoder_of(tokenizer) -> Encoder:
    return Encoder(tokenizer, "chat" if tokenizer.chat_template else "completion", {}, None)


class FakeEngine:
    """Answers label requests and samples without a model: for what happens around them."""

    max_model_len = 10_000

    def __init__(self, texts=(), finish_reason="stop"):
        self.texts, self.finish_reason, self.sent = texts, finish_reason, []

    def complete(self, requests):
        self.sent.append(requests)
        outputs = []
        for request in requests:
            logprobs = [dict.fromkeys(request.params.logprob_token_ids or [], SimpleNamespace(logprob=-1.0))]
            ones = [SimpleNamespace(text=t, finish_reason=self.finish_reason) for t in self.texts]
            outputs.append(SimpleNamespace(outputs=ones or [SimpleNamespace(logprobs=logprobs)]))
        return outputs


def test_more_children_than_vllm_takes_are_asked_in_turn():
    engine = FakeEngine()
    assert log_probs(engine, [Row([1, 2], [[100 + i, 9] for i in range(300)])]) == [[-2.0] * 300]
    assert [len(sent) for sent in engine.sent] == [3, 300]  # 128 + 128 + 44 at the root, first of all


@pytest.mark.parametrize(
    "texts, answer, probs",
    [
        (["12 - 5", "8 - 1\nProblem: another", "many"], "12 - 5", {"12 - 5": 1.0}),  # what has no value is no vote
        (["6", "7", "(7)"], "7", {"6": 1 / 3, "7": 2 / 3}),
        (["<think>no, 3</think> equation: 4", "5", "6"], "4", {"4": 1 / 3, "5": 1 / 3, "6": 1 / 3}),  # a tie: the first
        (["9 - 2\n\nBecause two were eaten.", "Problem: x\nEquation: 7", "1"], "9 - 2", {"9 - 2": 2 / 3, "1": 1 / 3}),
        (["none", "at all", "!"], "", {}),
    ],
)
@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}\n{% endfor %}"])
def test_majority_of_answers(texts, answer, probs, template, tokenizer):
    tokenizer.chat_template = template
    [found] = label_records(FakeEngine(texts), encoder_of(tokenizer), SUMS, [{"problem": "x"}], [], num_samples=3)
    assert found == {"teacher_label": answer, "label_probs": pytest.approx(probs)}


@pytest.mark.parametrize(
    "text, answer",
    [
        ("12 - 5", ""),
        ("12 - 5\n\nBecause five of them", ""),
        ("12 - 5\n\nProblem: There are 3", "12 - 5"),  # a base model in a chat template: the next example has begun
    ],
)
def test_an_answer_that_is_cut_off_is_none(text, answer, tokenizer):
    found = label_records(FakeEngine([text], "length"), encoder_of(tokenizer), SUMS, [{"problem": "x"}], [])
    assert found == [{"teacher_label": answer}]


@pytest.mark.parametrize(
    "after, end",
    [("<end_of_turn>\n", "<end_of_turn>"), (" </s>", "</s>"), ("", "</s>"), ("{{ raise_exception('no') }}", "</s>")],
)
def test_a_turn_ends_as_the_template_ends_it(after, end):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, "<end_of_turn>": 2, "red": 3, "green": 4}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "</s>", "extra_special_tokens": ["<end_of_turn>"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.chat_template = "{% for m in messages %}" + "{{ m['content'] }}" + after + "{% endfor %}"
    encoder = encoder_of(tokenizer)
    gap, written = chat_answer(encoder)
    [row] = running_labels(encoder, ["green "], ["red", "green"], written)
    assert gap == "" and row == Row([4], [[3, vocabulary[end]], [4, vocabulary[end]]])


@pytest.mark.parametrize(
    "user, assistant, end, gap",
    [
        ("]", " ", "</s>", " "),  # Llama 2
        ("]\n", "", "</s>", ""),
        ("]", "<think></think>", "]", ""),  # what is no blank is left to it
    ],
)
def test_a_chat_template_may_put_blanks_before_an_answer(user, assistant, end, gap, tokenizer):
    turn = f"{{{{ '[' + m.content + '{user}' if m.role == 'user' else '{assistant}' + m.content + '{end}' }}}}"
    tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    assert chat_answer(encoder_of(tokenizer))[0] == gap


REVIEWS = ("--task-file", "prompts/reviews.toml", "--input-file")


@pytest.mark.parametrize(
    "args, told",
    [
        (("--task-file", "{home}/pairs.toml", "--input-file", "{home}/test.jsonl"), "prompt.label: missing"),
        ((*REVIEWS, "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        ((*REVIEWS, "{home}/test.jsonl"), "no field 'review'"),
        ((*REVIEWS, "data/reviews/test.jsonl", "--num-samples", 3), "leave it out"),
        ((*REVIEWS, "data/reviews/test.jsonl"), "no model there"),
        ((*REVIEWS, "data/reviews/test.jsonl", "--limit", 1, "--shard", "1/2"), "no record for this shard"),
    ],
)
def test_bad_input_is_one_line_before_any_model(args, told, home, tmp_path):
    args = [str(a).format(home=home) for a in args]
    done = call("label.py", *args, "--model", "no/model", "--output-file", tmp_path / "out.jsonl")
    assert done.returncode in (1, 2) and told in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_verify_needs_a_label_prompt(home, tmp_path):
    how = ("--task-file", home / "pairs.toml", "--model", "no/model", "--output-dir", tmp_path, "--verify")
    done = call("generate.py", *how)
    assert done.returncode == 1 and "prompt.label: missing" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# With one


@pytest.fixture(scope="module")
def engine(small_teacher):
    return Engine(str(small_teacher), 1024, StopSignals())


@pytest.fixture(scope="module")
def encoder(small_teacher):
    return load_encoder(str(small_teacher), "auto", {}, False)


@pytest.fixture
def command(engine, small_teacher, monkeypatch):
    """label.py in this process, on the engine that is up."""
    monkeypatch.setattr(label, "Engine", lambda *args, **how: engine)

    def command(*args):
        return call("label.py", "--task-file", "prompts/reviews.toml", "--model", small_teacher, *args)

    return command


def direct_log_probs(folder, rows):
    """The same sums by transformers in float32, one whole pass for each prompt and label."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums = []
    with torch.inference_mode():
        for root, rests in rows:
            row = []
            for rest in rests:
                log_p = model(torch.tensor([[*root, *rest]])).logits[0].log_softmax(-1)
                row.append(sum(log_p[len(root) - 1 + i, token].item() for i, token in enumerate(rest)))
            sums.append(row)
    return sums


def names_of_intents(number: int) -> dict[str, str]:
    """Names such as card_lost_again, many of which share their first words."""
    things, faults = ("card", "cash", "transfer", "refund"), ("lost", "late", "wrong", "fee", "pending")
    names = [f"{a}_{b}{c}" for a in things for b in faults for c in ("", "_abroad", "_again", "_today")]
    return {name: f"the customer asks about {name.replace('_', ' ')}" for name in names[:number]}


@pytest.mark.engine
@pytest.mark.parametrize("labels", [TASK.labels, names_of_intents(12)], ids=["two", "twelve"])
def test_probabilities_are_those_of_transformers(labels, engine, encoder, small_teacher):
    """Labels of one token and of several that share prefixes."""
    task = with_labels(labels)
    records = read_examples(Path("data/reviews/test.jsonl"), TASK)[::160]
    shots = draw_label_shots(TASK, SEEDS, 4, 0)
    got = label_records(engine, encoder, task, records, shots)
    rows = label_rows(task, encoder, records, shots)
    assert len({len(rest) for row in rows for rest in row.rests}) > 1 or len(labels) == 2
    direct = direct_log_probs(small_teacher, rows)
    for answer, sums in zip(got, direct, strict=True):
        total = sum(math.exp(s) for s in sums)
        expected = [math.exp(s) / total for s in sums]
        assert list(answer["label_probs"]) == list(labels)
        assert list(answer["label_probs"].values()) == pytest.approx(expected, abs=1e-4)
        assert answer["teacher_label"] == list(labels)[expected.index(max(expected))]
    for row, sums in zip(log_probs(engine, rows), direct, strict=True):
        assert row == pytest.approx(sums, abs=1e-3)


@pytest.mark.engine
def test_77_labels_and_long_prompts_cost_a_fifth_at_most(engine, encoder):
    rng, words = random.Random(0), " ".join(s["review"] for s in SEEDS).split()
    texts = [" ".join(rng.choices(words, k=700)) for _ in range(4)]  # nothing in common: no help from each other
    [row] = label_rows(with_labels(names_of_intents(77)), encoder, SEEDS[:1], [])
    rows = [Row(encoder.tokenizer(text)["input_ids"][:600], row.rests) for text in texts]
    assert len(row.rests) == 77
    engine.llm.reset_prefix_cache()
    engine.taken_tokens()
    log_probs(engine, rows)
    whole = sum(600 + len(rest) - 1 for row in rows for rest in row.rests)  # one prompt a label
    assert whole / engine.taken_tokens()["computed_tokens"] >= 5


@pytest.mark.engine
def test_command_labels_and_goes_on(command, tmp_path, monkeypatch):
    source = [{k: v for k, v in r.items() if k != "label"} for r in read_lines(Path("data/reviews/test.jsonl"))[::40]]
    source[3]["label"], source[4]["label"] = "positive", None
    source[5] |= {"teacher_label": "neither", "label_probs": {"neither": 1.0}}  # of another teacher
    write_lines(tmp_path / "in.jsonl", source)
    args = ("--input-file", tmp_path / "in.jsonl", "--output-file")
    monkeypatch.setattr(label, "chunk_size", lambda *_: 7)
    done = command(*args, tmp_path / "whole.jsonl")
    assert done.returncode == 0, done.stderr
    whole = read_lines(tmp_path / "whole.jsonl")
    assert [r["review"] for r in whole] == [r["review"] for r in source] and len(whole) == 24
    for r in whole:
        assert list(r)[:2] == ["id", "review"] and sum(r["label_probs"].values()) == pytest.approx(1, abs=1e-5)
        assert r["teacher_label"] == max(r["label_probs"], key=r["label_probs"].get)
    counts = json.loads((tmp_path / "whole.jsonl.run.json").read_text())["counts"]
    assert counts["labelled"] == 24 and counts["with_answer"] == 1
    assert 0 < counts["computed_tokens"] < counts["prompt_tokens"]
    assert f"{counts['computed_tokens']:,} tokens computed for {counts['prompt_tokens']:,}" in done.stderr

    real, calls = label.label_records, []

    def breaks(engine, *of, **how):
        calls.append(1)
        if len(calls) == 3:
            with engine.errors("stopped"):
                raise RuntimeError("the engine is gone\nand more")
        return real(engine, *of, **how)

    with monkeypatch.context() as patch:
        patch.setattr(label, "label_records", breaks)
        done = command(*args, tmp_path / "cut.jsonl")
    assert done.returncode == 1 and "vLLM stopped: the engine is gone; what was made is kept" in done.stderr
    with (tmp_path / "cut.jsonl.partial").open("a") as file:
        file.write('{"id": "torn')
    done = command(*args, tmp_path / "cut.jsonl")
    assert done.returncode == 0 and "going on after 14 records" in done.stderr
    assert read_lines(tmp_path / "cut.jsonl") == whole
    assert "up to date" in command(*args, tmp_path / "cut.jsonl").stderr
    done = command(*args, tmp_path / "cut.jsonl", "--num-fewshot", 2)
    assert done.returncode == 1 and "was made with --num-fewshot 6, now 2" in done.stderr
    # The teacher's row: its own labels, measured as a student's
    shutil.copy(tmp_path / "whole.jsonl", tmp_path / "teacher.jsonl")
    write_lines(tmp_path / "teacher.jsonl", [r | {"label": "positive", "target": "positive"} for r in whole])
    done = call(
        "evaluate.py", "--task-file", "prompts/reviews.toml", "--prediction-field", "teacher_label", "--test-file",
        tmp_path / "teacher.jsonl", "--output-dir", tmp_path / "measured",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hits = [r["correct"] for r in read_lines(tmp_path / "measured" / "predictions.jsonl")]
    assert hits == [r["teacher_label"] == "positive" for r in whole]


@pytest.mark.engine
def test_shards_are_the_whole(command, tmp_path):
    args = ("--input-file", "data/reviews/test.jsonl", "--limit", 10, "--output-file", tmp_path / "a.jsonl")
    assert command(*args).returncode == 0
    for i in (0, 1):
        assert command(*args, "--shard", f"{i}/2").returncode == 0
    parts = [read_lines(tmp_path / f"a-{i:05d}-of-00002.jsonl") for i in (0, 1)]
    together = [record for two in zip(*parts, strict=True) for record in two]
    for whole, part in zip(read_lines(tmp_path / "a.jsonl"), together, strict=True):
        probs = part.pop("label_probs"), whole.pop("label_probs")
        assert part == whole and probs[0] == pytest.approx(probs[1], abs=1e-5)


@pytest.mark.engine
def test_dry_run_shows_prompts_and_tokens(small_teacher, tmp_path):
    how = (*REVIEWS, "data/reviews/test.jsonl", "--model", small_teacher, "--output-file", tmp_path / "a.jsonl")
    done = call("label.py", *how, "--dry-run")
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    assert "--- label test-0001: " in done.stdout and "Review: The loaf toasted evenly" in done.stdout
    assert r"--- positive: ' positive' | '\n'" in done.stdout and "=== would label 960 records" in done.stdout


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["real", "fake"])
def test_verify_rejects_what_the_teacher_labels_otherwise(kind, engine, small_teacher, tmp_path, monkeypatch):
    """real: the small teacher, which gives most texts one label. fake: one that agrees where a text's length is even, and
    for which a text with a "z" is too long."""
    monkeypatch.setattr(generate, "Engine", lambda *args, **how: engine)

    def fake(llm, encoder, task, records, *of, **how):
        other = {"positive": "negative", "negative": "positive"}
        labels = [r["label"] if len(r["review"]) % 2 == 0 else other[r["label"]] for r in records]
        answers = [{"teacher_label": name, "label_probs": {name: 1.0}} for name in labels]
        return [None if "z" in r["review"] else a for r, a in zip(records, answers, strict=True)]

    if kind == "fake":
        monkeypatch.setattr(generate, "label_records", fake)
    done = call(
        "generate.py", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir",
        tmp_path / "iter-00", "--num-examples", 8, "--num-validation", 0, "--max-tokens", 64, "--verify", "--max-attempts", 80,
    )  # fmt: skip
    end = "" if done.returncode == 0 else ".partial"
    accepted, rejected = (read_lines(tmp_path / "iter-00" / f"train{name}.jsonl{end}") for name in ("", ".rejected"))
    denied = [r for r in rejected if r["reason"] == "label_disagrees"]
    assert accepted and denied and "label_disagrees" in done.stderr
    assert all(r["teacher_label"] == r["label"] and r["label_probs"] for r in accepted)
    assert all(r["teacher_label"] != r["label"] and r["label_probs"] for r in denied)
    assert all("teacher_label" not in r for r in rejected if r["reason"] in ("no_match", "too_short", "truncated"))
    if kind == "fake":
        assert done.returncode == 0 and len(accepted) == 8 and not any(len(r["review"]) % 2 for r in accepted)
        unread = {"z" in r["review"] for r in rejected if r["reason"] == "prompt_too_long"}
        assert unread <= {True} and not any("z" in r["review"] for r in accepted)
        record = json.loads((tmp_path / "iter-00" / "train.jsonl.run.json").read_text())
        assert record["options"]["verify"] is True
        assert record["counts"]["attempted"] == 8 + sum(record["counts"]["rejected"].values())


@pytest.mark.engine
def test_a_text2text_task_is_answered(command, home, tmp_path):
    text = (home / "flip.toml").read_text().replace("[prompt]", "[prompt]\nlabel = '''\n$shots\n\n$start'''")
    (tmp_path / "flip.toml").write_text(text.replace("flip_seed", str(home / "flip_seed")))
    write_lines(tmp_path / "in.jsonl", [{k: v for k, v in flipped(n).items() if k == "text"} for n in range(6)])
    args = ("--task-file", tmp_path / "flip.toml", "--input-file", tmp_path / "in.jsonl", "--max-tokens", 12)
    assert command(*args, "--output-file", tmp_path / "greedy.jsonl").returncode == 0
    greedy = read_lines(tmp_path / "greedy.jsonl")
    assert all(isinstance(r["teacher_label"], str) and "label_probs" not in r for r in greedy)
    several = (*args, "--num-samples", 4, "--temperature", 1.0)
    assert command(*several, "--output-file", tmp_path / "votes.jsonl").returncode == 0
    votes = read_lines(tmp_path / "votes.jsonl")
    assert all(sum(r["label_probs"].values()) <= 1 + 1e-9 for r in votes)
    best = [(r["label_probs"][r["teacher_label"]], max(r["label_probs"].values())) for r in votes if r["label_probs"]]
    assert all(one == most for one, most in best)
