"""generate.py label and --verify: tries and shots by hand, then one real engine against transformers in float32."""

import json
import math
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import call, flipped, pair, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

import generate
from gold.prompts import running_labels
from labelling import (
    agrees,
    answer_key,
    draw_label_shots,
    label_log_probs,
    label_place,
    label_prompts,
    label_records,
    token_trie,
)
from records import read_examples
from task import load_task, render_label_prompt

TASK = load_task(Path("prompts/reviews.toml"))
SEEDS = read_examples(TASK.seed_examples, TASK)

# ---------------------------------------------------------------------------------------------------------------------
# Without an engine


def test_trie_by_hand():
    trie = token_trie([[5, 6, 9], [5, 7, 9], [5, 6, 8, 9], [4, 9]])
    assert trie == {(): [5, 4], (5,): [6, 7], (4,): [9], (5, 6): [9, 8], (5, 7): [9], (5, 6, 8): [9]}
    assert next(iter(trie)) == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=12))
def test_trie_holds_every_step_once(sequences):
    sequences = [[*s, 9] for s in sequences]
    trie = token_trie(sequences)
    assert {(*path, token) for path, tokens in trie.items() for token in tokens} == {
        tuple(s[: i + 1]) for s in sequences for i in range(len(s))
    }
    assert all(len(set(tokens)) == len(tokens) > 0 for tokens in trie.values())


def test_shots_take_the_labels_in_turn(pairs):
    seeds = [pair(n) | {"id": str(n)} for n in range(9)]  # five Warm, four not
    for seed in range(5):
        shots = draw_label_shots(pairs, seeds, 6, seed)
        assert [Counter(s["label"] for s in shots[i : i + 2]) for i in (0, 2, 4)] == [{"Warm": 1, "not warm": 1}] * 3
    assert len(draw_label_shots(pairs, seeds, 20, 0)) == 9 and draw_label_shots(pairs, seeds, 0, 0) == []
    assert (
        draw_label_shots(pairs, seeds, 6, 1)
        == draw_label_shots(pairs, seeds, 6, 1)
        != draw_label_shots(pairs, seeds, 6, 2)
    )


def test_many_labels_and_few_shots_show_the_label_that_is_asked_for(pairs):
    seeds = [pair(n) | {"id": str(n)} for n in range(8)]
    options = {"num_fewshot": 1, "feedback_rate": 0.5, "num_feedback_shots": 2}
    for attempt in range(20):
        a = generate.draw_attempt(pairs, 0, 0, "train", attempt, {"seed": seeds, "feedback": []}, options)
        assert [shot["label"] for shot in a["shots"]] == [a["label"]]


def test_votes_are_counted_by_meaning(flip):
    assert answer_key(flip, " The SUN") == answer_key(flip, "the sun") != answer_key(
        flip, "the -sun"
    ) and not answer_key(flip, " ")
    assert answer_key(flip, "caf\u00e9") == answer_key(flip, "cafe\u0301")
    span = replace(flip, metric="squad")
    assert answer_key(span, "C++.") != answer_key(span, "C#") and answer_key(span, "“Paris”") == answer_key(
        span, "paris"
    )
    sums = load_task(Path("prompts/word_problems.toml"))
    assert answer_key(sums, "12 - 5") == answer_key(sums, "(3.5 * 2)") and answer_key(sums, "many") is None
    assert agrees(sums, {"problem": "x", "equation": "7"}, "12 - 5") and not agrees(sums, {"equation": "7"}, "many")
    assert agrees(TASK, {"label": "positive"}, "positive") and not agrees(TASK, {"label": "positive"}, "negative")


@pytest.fixture
def tokenizer(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models["qwen2"])


class FakeEngine:
    """Answers label requests and samples without a model: for what happens around them."""

    class LogProb:
        logprob = -1.0

    def __init__(self, texts=()):
        self.texts, self.sent = list(texts), []

    def generate(self, sent, params, use_tqdm):
        self.sent.append(sent)
        outputs = []
        for prompt, param in zip(sent, params, strict=True):
            one = type(
                "One",
                (),
                {"logprobs": [{t: self.LogProb for t in param.logprob_token_ids or []}], "finish_reason": "length"},
            )
            ones = [type("One", (), {"text": t, "finish_reason": "stop"}) for t in self.texts] or [one]
            many = {"prompt_token_ids": prompt["prompt_token_ids"], "num_cached_tokens": None, "outputs": ones}
            outputs.append(type("Output", (), many))
        return outputs


def test_more_children_than_vllm_takes_are_asked_in_turn():
    engine, tokens = FakeEngine(), Counter()
    sums = label_log_probs(engine, [([1, 2], [[100 + i, 9] for i in range(300)])], tokens)
    assert sums == [[-2.0] * 300]
    assert [len(sent) for sent in engine.sent] == [3, 300]  # 128 + 128 + 44 at the root, first of all
    assert tokens["prompt"] == 3 * 2 + 300 * 3


@pytest.mark.parametrize(
    "texts, label, probs",
    [
        (["12 - 5", "8 - 1\nProblem: another", "many"], "12 - 5", {"12 - 5": 1.0}),  # what has no value is no vote
        (["6", "7", "(7)"], "7", {"6": 1 / 3, "7": 2 / 3}),
        (["<think>no, 3</think> equation: 4", "5", "6"], "4", {"4": 1 / 3, "5": 1 / 3, "6": 1 / 3}),  # a tie: the first
        (["9 - 2\n\nBecause two were eaten.", "Problem: x\nEquation: 7", "1"], "9 - 2", {"9 - 2": 2 / 3, "1": 1 / 3}),
        (["none", "at all", "!"], "", {}),
    ],
)
@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}\n{% endfor %}"])
def test_majority_of_answers(texts, label, probs, template, tokenizer):
    task = load_task(Path("prompts/word_problems.toml"))
    tokenizer.chat_template = template
    [answer] = label_records(FakeEngine(texts), tokenizer, task, [{"problem": "x"}], [], {}, num_samples=3)
    assert answer == {"teacher_label": label, "label_probs": pytest.approx(probs)}


@pytest.mark.parametrize(
    "text, answer",
    [
        ("12 - 5", ""),
        ("12 - 5\n\nBecause five of them", ""),
        ("12 - 5\n\nProblem: There are 3", "12 - 5"),  # a base model in a chat template: the next example has begun
    ],
)
def test_an_answer_that_is_cut_off_is_none(text, answer, tokenizer):
    task, engine = load_task(Path("prompts/word_problems.toml")), FakeEngine([text])
    whole = engine.generate

    def cut(*args, **how):
        outputs = whole(*args, **how)
        outputs[0].outputs[0].finish_reason = "length"
        return outputs

    engine.generate = cut
    assert label_records(engine, tokenizer, task, [{"problem": "x"}], [], {}) == [{"teacher_label": answer}]


def test_programmes_vote_by_their_optimum():
    task = load_task(Path("prompts/nl4opt.toml"))
    a, b = "maximize 3 x - 2 y; x at most 4", "maximize 3 x + 2 y; x + y at most 4"
    assert answer_key(task, a) == answer_key(task, b) == 12 and answer_key(task, "I do not know") is None
    assert answer_key(task, b) != answer_key(task, "maximize 3 x + 2 y; x + y at most 5")


@pytest.mark.parametrize(
    "after, end",
    [("<end_of_turn>\n", "<end_of_turn>"), (" </s>", "</s>"), ("", "</s>"), ("{{ raise_exception('no') }}", "</s>")],
)
def test_a_turn_ends_as_the_template_ends_it(after, end):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, "<end_of_turn>": 2, "red": 3, "green": 4}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", extra_special_tokens=["<end_of_turn>"]
    )
    tokenizer.chat_template = "{% for m in messages %}" + "{{ m['content'] }}" + after + "{% endfor %}"
    gap, written = label_place(TASK, tokenizer, {})
    assert gap == ""
    [(root, rests)] = running_labels(tokenizer, ["green "], ["red", "green"], written)
    assert root == [4]
    assert rests == [[3, tokenizer.convert_tokens_to_ids(end)], [4, tokenizer.convert_tokens_to_ids(end)]]


@pytest.mark.parametrize(
    "template, gap",
    [
        (
            "{{ '[' if m.role == 'user' else ' ' }}{{ m.content }}{{ ']' if m.role == 'user' else '</s>' }}",
            " ",
        ),  # Llama 2
        ("{{ '[' if m.role == 'user' else '' }}{{ m.content }}{{ ']\n' if m.role == 'user' else '</s>' }}", ""),
        ("{{ '[' if m.role == 'user' else '<think></think>' }}{{ m.content }}]", ""),  # what is no blank is left to it
    ],
)
def test_a_chat_template_may_put_blanks_before_an_answer(template, gap, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}" + template + "{% endfor %}"
    assert label_place(TASK, tokenizer, {})[0] == gap


@pytest.mark.parametrize(
    "args, told",
    [
        (("--task-file", "{home}/pairs.toml", "--input-file", "{home}/test.jsonl"), "prompt.label: missing"),
        (("--task-file", "prompts/reviews.toml", "--input-file", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("--task-file", "prompts/reviews.toml", "--input-file", "{home}/test.jsonl"), "no field 'review'"),
        (
            ("--task-file", "prompts/reviews.toml", "--input-file", "data/reviews/test.jsonl", "--num-samples", 3),
            "leave it out",
        ),
        (("--task-file", "prompts/reviews.toml", "--input-file", "data/reviews/test.jsonl"), "no model there"),
    ],
)
def test_bad_input_is_one_line_before_any_model(args, told, home, tmp_path):
    args = [str(a).format(home=home) for a in args]
    done = call("generate.py", "label", *args, "--model", "no/model", "--output-file", tmp_path / "out.jsonl")
    assert done.returncode in (1, 2) and told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_verify_needs_a_label_prompt(home, tmp_path):
    done = call(
        "generate.py",
        "sample",
        "--task-file",
        home / "pairs.toml",
        "--model",
        "no/model",
        "--output-dir",
        tmp_path,
        "--verify",
    )
    assert done.returncode == 1 and "prompt.label: missing" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# With one


@pytest.fixture(scope="module")
def engine(small_teacher):
    return generate.start_engine(str(small_teacher), 1024)


@pytest.fixture
def command(engine, small_teacher, monkeypatch):
    """generate.py label in this process, on the engine that is up."""
    monkeypatch.setattr(generate, "start_engine", lambda *args, **how: engine)

    def command(*args):
        files = ("--task-file", "prompts/reviews.toml", "--model", small_teacher)
        return call("generate.py", "label", *files, *args)

    return command


def direct_log_probs(folder, rows):
    """The same sums by transformers in float32, one whole pass for each prompt and label."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums = []
    with torch.inference_mode():
        for prompt, sequences in rows:
            row = []
            for sequence in sequences:
                log_p = model(torch.tensor([[*prompt, *sequence]])).logits[0].log_softmax(-1)
                row.append(sum(log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(sequence)))
            sums.append(row)
    return sums


def names_of_intents(number: int) -> dict[str, str]:
    """Names such as card_lost_again, many of which share their first words."""
    words = (
        ("card", "cash", "transfer", "refund"),
        ("lost", "late", "wrong", "fee", "pending"),
        ("", "_abroad", "_again", "_today"),
    )
    names = [f"{a}_{b}{c}" for a in words[0] for b in words[1] for c in words[2]]
    return {name: f"the customer asks about {name.replace('_', ' ')}" for name in names[:number]}


@pytest.mark.engine
@pytest.mark.parametrize("labels", [TASK.labels, names_of_intents(12)], ids=["two", "twelve"])
def test_probabilities_are_those_of_transformers(labels, engine, small_teacher):
    """Labels of one token and of several that share prefixes; 1e-3, as issue 4 asks, and much less is found."""
    task = replace(TASK, labels=labels)
    tokenizer = engine.get_tokenizer()
    records = read_examples(Path("data/reviews/test.jsonl"), TASK)[::160]
    shots = draw_label_shots(TASK, SEEDS, 4, 0)
    got = label_records(engine, tokenizer, task, records, shots, {})
    rows = label_prompts(task, tokenizer, records, shots, {})
    assert len({len(rest) for _, rests in rows for rest in rests}) > 1 or len(labels) == 2
    direct = direct_log_probs(small_teacher, rows)
    for answer, sums in zip(got, direct, strict=True):
        total = sum(math.exp(s) for s in sums)
        expected = [math.exp(s) / total for s in sums]
        assert list(answer["label_probs"]) == list(labels)
        assert list(answer["label_probs"].values()) == pytest.approx(expected, abs=1e-4)
        assert answer["teacher_label"] == list(labels)[expected.index(max(expected))]
    for row, sums in zip(label_log_probs(engine, rows, Counter()), direct, strict=True):
        assert row == pytest.approx(sums, abs=1e-3)


@pytest.mark.engine
def test_a_label_is_what_stands_in_the_prompt_with_the_end_of_its_line(engine):
    tokenizer = engine.get_tokenizer()
    [(_, rests)] = label_prompts(TASK, tokenizer, SEEDS[:1], [], {})
    for name, sequence in zip(TASK.labels, rests, strict=True):
        shot = next(s for s in SEEDS if s["label"] == name)
        ids = tokenizer(render_label_prompt(TASK, SEEDS[0], [shot]))["input_ids"]
        places = [i for i in range(len(ids)) if ids[i : i + len(sequence)] == sequence]
        assert len(places) == 1 and tokenizer.decode(sequence) == f" {name}\n"


@pytest.mark.engine
def test_77_labels_and_long_prompts_cost_a_fifth_at_most(engine, small_teacher):
    task = replace(TASK, labels=names_of_intents(77))
    tokenizer, rng, tokens = engine.get_tokenizer(), random.Random(0), Counter()
    words = " ".join(s["review"] for s in SEEDS).split()
    texts = [" ".join(rng.choices(words, k=700)) for _ in range(4)]  # nothing in common: no help from each other
    prompts = [tokenizer(text)["input_ids"][:600] for text in texts]
    [(_, sequences)] = label_prompts(task, tokenizer, SEEDS[:1], [], {})
    assert len(sequences) == 77 and {len(p) for p in prompts} == {600}
    engine.reset_prefix_cache()
    label_log_probs(engine, [(prompt, sequences) for prompt in prompts], tokens)
    whole = sum(len(p) + len(s) - 1 for p in prompts for s in sequences)  # one prompt a label
    assert whole / tokens["computed"] >= 5, (whole, tokens)


@pytest.mark.engine
def test_command_labels_and_goes_on(command, tmp_path, monkeypatch):
    source = [{k: v for k, v in r.items() if k != "label"} for r in read_lines(Path("data/reviews/test.jsonl"))[::40]]
    source[3]["label"], source[4]["label"] = "positive", None
    source[5] |= {"teacher_label": "neither", "label_probs": {"neither": 1.0}}  # of another teacher
    write_lines(tmp_path / "in.jsonl", source)
    args = ("--input-file", tmp_path / "in.jsonl", "--output-file")
    monkeypatch.setattr(generate, "chunk_size", lambda *_: 7)
    done = command(*args, tmp_path / "whole.jsonl")
    assert done.returncode == 0, done.stderr
    whole = read_lines(tmp_path / "whole.jsonl")
    assert [r["review"] for r in whole] == [r["review"] for r in source] and len(whole) == 24
    for r in whole:
        assert list(r)[:2] == ["id", "review"] and sum(r["label_probs"].values()) == pytest.approx(1, abs=1e-5)
        assert r["teacher_label"] == max(r["label_probs"], key=r["label_probs"].get)
    record = json.loads((tmp_path / "whole.jsonl.run.json").read_text())
    assert record["counts"]["labelled"] == 24 and record["counts"]["with_answer"] == 1
    assert 0 < record["counts"]["computed_tokens"] < record["counts"]["prompt_tokens"]
    assert f"{record['counts']['computed_tokens']:,} of {record['counts']['prompt_tokens']:,}" in done.stderr

    real, calls = generate.label_records, []

    def breaks(*of, **how):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the engine is gone\nand more")
        return real(*of, **how)

    monkeypatch.setattr(generate, "label_records", breaks)
    done = command(*args, tmp_path / "cut.jsonl")
    assert done.returncode == 1 and "vLLM stopped: the engine is gone; what was made is kept" in done.stderr
    with (tmp_path / "cut.jsonl.partial").open("a") as file:
        file.write('{"id": "torn')
    partial = (tmp_path / "cut.jsonl.partial").read_bytes()
    (tmp_path / "cut.jsonl.partial").write_bytes(partial[:200])
    done = command(*args, tmp_path / "cut.jsonl")
    assert done.returncode == 1 and "has lost what was written to it (200 of" in done.stderr
    (tmp_path / "cut.jsonl.partial").write_bytes(partial)
    done = command(*args, tmp_path / "cut.jsonl")
    assert done.returncode == 0 and "going on after 14 records" in done.stderr
    assert read_lines(tmp_path / "cut.jsonl") == whole
    assert "up to date" in command(*args, tmp_path / "cut.jsonl").stderr
    done = command(*args, tmp_path / "cut.jsonl", "--num-fewshot", 2)
    assert done.returncode == 1 and "was made with --num-fewshot 6, now 2" in done.stderr
    # The teacher's row: its own labels, measured as a student's
    shutil.copy(tmp_path / "whole.jsonl", tmp_path / "teacher.jsonl")
    answered = [r | {"label": "positive", "target": "positive"} for r in whole]
    write_lines(tmp_path / "teacher.jsonl", answered)
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
    for whole, part in zip(
        read_lines(tmp_path / "a.jsonl"), [r for two in zip(*parts, strict=True) for r in two], strict=True
    ):
        probs = part.pop("label_probs"), whole.pop("label_probs")
        assert part == whole and probs[0] == pytest.approx(probs[1], abs=1e-5)


@pytest.mark.engine
def test_dry_run_shows_prompts_and_tokens(small_teacher, tmp_path):
    done = call(
        "generate.py", "label", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--input-file",
        "data/reviews/test.jsonl", "--output-file", tmp_path / "a.jsonl", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    assert "--- label test-0001: " in done.stdout and "Review: The loaf toasted evenly" in done.stdout
    assert r"--- positive: ' positive' | '\n'" in done.stdout and "=== would label 960 records" in done.stdout


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["real", "fake"])
def test_verify_rejects_what_the_teacher_labels_otherwise(kind, engine, small_teacher, tmp_path, monkeypatch):
    """real: the small teacher, which gives most texts one label. fake: one that agrees where a text's length is even."""
    monkeypatch.setattr(generate, "start_engine", lambda *args, **how: engine)

    def fake(llm, tokenizer, task, records, *of, **how):
        other = {"positive": "negative", "negative": "positive"}
        labels = [r["label"] if len(r["review"]) % 2 == 0 else other[r["label"]] for r in records]
        return [{"teacher_label": name, "label_probs": {name: 1.0}} for name in labels]

    if kind == "fake":
        monkeypatch.setattr(generate, "label_records", fake)
    done = call(
        "generate.py", "sample", "--task-file", "prompts/reviews.toml", "--model", small_teacher, "--output-dir",
        tmp_path / "iter-00", "--num-examples", 8, "--num-validation", 0, "--max-tokens", 64, "--verify", "--max-attempts", 80,
    )  # fmt: skip
    end = "" if done.returncode == 0 else ".partial"
    accepted, rejected = (read_lines(tmp_path / "iter-00" / f"train{name}.jsonl{end}") for name in ("", ".rejected"))
    denied = [r for r in rejected if r["reason"] == "label_disagrees"]
    assert accepted and denied and "label_disagrees" in done.stderr
    assert all(r["teacher_label"] == r["label"] and r["label_probs"] for r in accepted)
    assert all(r["teacher_label"] != r["label"] and r["label_probs"] for r in denied)
    assert all("teacher_label" not in r for r in rejected if r["reason"] in ("no_match", "too_short", "truncated"))
    if kind == "real" and end:
        notes = json.loads((tmp_path / "iter-00" / "train.jsonl.partial.json").read_text().strip("\0 \n"))["notes"]
        assert 0 < notes["verify_tokens"] < notes["prompt_tokens"]
    if kind == "fake":
        assert done.returncode == 0 and len(accepted) == 8 and not any(len(r["review"]) % 2 for r in accepted)
        record = json.loads((tmp_path / "iter-00" / "train.jsonl.run.json").read_text())
        assert record["options"]["verify"] is True
        assert record["counts"]["attempted"] == 8 + sum(record["counts"]["rejected"].values())


@pytest.mark.engine
def test_a_text2text_task_is_answered(engine, small_teacher, home, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "start_engine", lambda *args, **how: engine)
    text = (home / "flip.toml").read_text().replace("[prompt]", "[prompt]\nlabel = '''\n$shots\n\n$start'''")
    (tmp_path / "flip.toml").write_text(text.replace("flip_seed", str(home / "flip_seed")))
    write_lines(tmp_path / "in.jsonl", [{k: v for k, v in flipped(n).items() if k == "text"} for n in range(6)])
    args = (
        "--model",
        small_teacher,
        "--input-file",
        tmp_path / "in.jsonl",
        "--max-tokens",
        12,
        "--task-file",
        tmp_path / "flip.toml",
    )
    assert call("generate.py", "label", *args, "--output-file", tmp_path / "greedy.jsonl").returncode == 0
    greedy = read_lines(tmp_path / "greedy.jsonl")
    assert all(isinstance(r["teacher_label"], str) and "label_probs" not in r for r in greedy)
    several = (*args, "--num-samples", 4, "--temperature", 1.0)
    assert call("generate.py", "label", *several, "--output-file", tmp_path / "votes.jsonl").returncode == 0
    votes = read_lines(tmp_path / "votes.jsonl")
    assert all(sum(r["label_probs"].values()) <= 1 + 1e-9 for r in votes)
    assert all(
        r["label_probs"][r["teacher_label"]] == max(r["label_probs"].values()) for r in votes if r["label_probs"]
    )
