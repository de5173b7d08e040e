"""generate.py without an engine: which attempts are asked, what each shows, how prompts become token ids.

Then whole splits with a scripted engine (the text follows from the request's seed), because a real one cannot be made
to give one completion of every kind of fault, or to be killed at every step. test_engine.py has the real one.
"""

import collections
import itertools
import json
import math
import random
import re
import string
from collections import deque
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
from conftest import FED_PAIRS, PAIRS, PLACES, SUMMER, WINTER, call, pair, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

import generate
from evaluate import confusion_cells, measure, of_example
from generate import (
    REASONS,
    draw_attempt,
    encode_prompt,
    longest_prompt,
    newest_outcomes,
    plan_again,
    plan_ahead,
    plan_chunk,
    sample_split,
)
from metrics import class_intervals, report_text
from records import read_examples, start_run
from task import load_task, render_prompt, text_key

# ---------------------------------------------------------------------------------------------------------------------
# Planning


def shares_of(num_examples: int, num_labels: int) -> list[int]:
    """Dealt out one at a time, as cards are."""
    return [len(range(i, num_examples, num_labels)) for i in range(num_labels)]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        # nothing done yet: a yield of 1 is hoped for; 5 examples of 2 labels are 3 + 2
        ((5, 99, [0, 0], [0, 0]), [0, 1, 2, 3, 4]),
        # label 1 has its share; of label 0 one is missing, yield (2 + 1) / (5 + 1) = 1/2: two attempts, and two deviations
        # more, 2 sqrt(2 * 0.5 / 0.5) = 2.8: five in all, from its 6th on
        ((5, 99, [5, 2], [2, 2]), [10, 12, 14, 16, 18]),
        # 4 missing at a yield of (0 + 1) / (9 + 1) = 0.1: 40 attempts, of which 3 are left
        ((4, 3, [9], [0]), [9, 10, 11]),
        # the yield is never taken to be below 0.05: 1 / 0.05 = 20, and 2 sqrt(20 * 0.95 / 0.05) = 38.99 more
        ((1, 99, [60], [0]), list(range(60, 119))),
        # a missing 3 take 6 at a yield of (2 + 1) / (5 + 1), and 2 sqrt(6) = 4.9 more; 4 are under way: 7, from its 10th on
        ((5, 99, [5], [2], (0, 1), [4]), list(range(9, 16))),
        ((5, 99, [5], [2], (0, 1), [11]), []),
        # one was added by hand: 3 of 2 attempts, and none are more than the yield of 1 asks for
        ((5, 99, [2], [3]), [2, 3]),
        ((5, 99, [7, 9], [3, 2]), []),
        ((5, 0, [0, 0], [0, 0]), []),
        ((5, -3, [0, 0], [0, 0]), []),
    ],
)
def test_plan_by_hand(arguments, expected):
    assert plan_chunk(*arguments) == expected


def test_a_chunk_is_no_longer_than_chunk():
    assert plan_chunk(10**6, 10**6, [0, 0, 0], [0, 0, 0]) == list(range(510))  # 512 // 3 = 170 of each


@settings(deadline=None, max_examples=80)
@given(
    num_examples=st.integers(1, 120),
    yields=st.lists(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]), min_size=1, max_size=5),
    limit=st.integers(1, 800),
    seed=st.integers(0, 10**6),
)
def test_planning_under_any_yields(num_examples, yields, limit, seed):
    """Chunk after chunk: equal shares, consecutive attempts of each label, the limit kept, and an end in any case."""
    rng, num_labels = random.Random(seed), len(yields)
    shares = shares_of(num_examples, num_labels)
    attempted, accepted, asked = [0] * num_labels, [0] * num_labels, []
    for _ in range(limit + 1):
        chunk = plan_chunk(num_examples, limit - sum(attempted), attempted, accepted)
        assert chunk == plan_chunk(num_examples, limit - sum(attempted), list(attempted), list(accepted))
        if not chunk:
            break
        assert chunk == sorted(set(chunk))
        full = [accepted[i] == shares[i] for i in range(num_labels)]
        for a in chunk:
            label = a % num_labels
            assert not full[label] and a // num_labels == attempted[label]
            attempted[label] += 1
            accepted[label] += accepted[label] < shares[label] and rng.random() < yields[label]
        asked += chunk
    else:
        pytest.fail("no end")
    assert len(asked) == len(set(asked)) == sum(attempted) <= limit
    assert accepted == shares or sum(attempted) == limit


def test_the_newest_attempts_tell_the_yield():
    """2 of 10 examples are missing. By all ten attempts the yield is (8 + 1) / (10 + 1): 2.4 attempts, and 2 sqrt(2.4 * 2 / 9)
    more. By the newest four, one accepted, it is 2 / 5: 5 attempts, and 2 sqrt(5 * 0.6 / 0.4) = 5.5 more."""
    assert len(plan_chunk(10, 99, [10], [8])) == 4
    assert len(plan_chunk(10, 99, [10], [8], newest=[[True, False, False, False]])) == 11


@settings(deadline=None, max_examples=60)
@given(
    num_examples=st.integers(1, 120),
    percents=st.lists(st.sampled_from([2, 30, 90, 100]), min_size=1, max_size=4),
    limit=st.integers(1, 600),
    size=st.integers(1, 30),
    window=st.integers(1, 90),
    newest=st.integers(1, 30),
    seed=st.integers(0, 10**6),
)
def test_what_was_under_way_is_planned_again(num_examples, percents, limit, size, window, newest, seed):
    """Cut off after any chunk, the plan made again from what came of the attempts is the one that was cut off."""
    with mock.patch.object(generate, "NEWEST", newest):
        plan_and_plan_again(num_examples, percents, limit, size, window, seed)


def plan_and_plan_again(num_examples, percents, limit, size, window, seed):
    num_labels = len(percents)
    shares, settled, made = shares_of(num_examples, num_labels), [0] * num_labels, {}
    plan = partial(plan_ahead, num_examples, limit, size=size, window=window)
    attempted, accepted, planned = [0] * num_labels, [0] * num_labels, deque()
    plan(attempted, accepted, newest_outcomes({}, num_labels), planned)
    while planned:
        assert plan_again(made, num_labels, plan) == list(planned)
        assert sum(map(len, planned)) < window + max(size, num_labels)
        for a in planned.popleft():
            label = a % num_labels
            good = random.Random(f"{seed}/{a}").random() * 100 < percents[label] and settled[label] < shares[label]
            settled[label] += good
            attempted[label] += 1
            accepted[label] += good
            made[a] = good
        plan(attempted, accepted, newest_outcomes(made, num_labels), planned)
    assert plan_again(made, num_labels, plan) == []
    assert accepted == shares or len(made) == limit
    if len(made) > 1:  # a line less: not what this plan has made
        del made[max(made)]
        assert plan_again(made, num_labels, plan) != []


# ---------------------------------------------------------------------------------------------------------------------
# One attempt

HOW = {"num_fewshot": 3, "feedback_rate": 0.5, "num_feedback_shots": 2}


@pytest.fixture(scope="module")
def pools():
    made = {"seed": [pair(n) | {"id": f"s{n}"} for n in range(6)]}
    made["feedback"] = [pair(n) | {"id": f"f{n}"} for n in range(20, 27)]
    made["train"] = [pair(n) | {"id": f"t{n}"} for n in range(30, 50)]
    return made


@pytest.fixture(scope="module")
def fed_home(home, tmp_path_factory):
    """pairs.toml with a feedback template."""
    folder = tmp_path_factory.mktemp("fed")
    (folder / "pairs.toml").write_text(FED_PAIRS, encoding="utf-8")
    (folder / "seed.jsonl").write_bytes((home / "seed.jsonl").read_bytes())
    return folder


@pytest.fixture(scope="module")
def fed_task(fed_home):
    return load_task(fed_home / "pairs.toml")


def ids(attempt: dict) -> list[str]:
    return [shot["id"] for shot in attempt["shots"] + attempt["feedback"]]


def test_an_attempt_is_a_function_of_its_arguments(pairs, pools):
    def draw(seed=1, iteration=2, split="train", attempt=3):
        return draw_attempt(pairs, seed, iteration, split, attempt, pools, HOW)

    first = draw()
    random.seed(99)
    assert draw() == first
    assert first["id"] == "pairs-02-train-000003" and first["label"] == "not warm"
    others = [draw(seed=2), draw(iteration=3), draw(split="validation"), draw(attempt=5)]
    assert len({a["sampling_seed"] for a in [first, *others]}) == 5
    assert (
        first["sampling_seed"] == draw_attempt(pairs, 1, 2, "train", 3, pools | {"feedback": []}, HOW)["sampling_seed"]
    )


def test_sampling_seeds_are_of_31_bits_and_each_attempt_has_its_own(pairs, pools):
    """A CPU's generator takes 32 bits: of 100,000 seeds drawn at random two or three would be given twice."""
    shots = pools | {"seed": pools["seed"][:1], "feedback": []}
    for seed, split in ((0, "train"), (-3, "train")):
        drawn = [draw_attempt(pairs, seed, 2, split, a, shots, OPTIONS)["sampling_seed"] for a in range(100_000)]
        assert len(set(drawn)) == 100_000 and min(drawn) >= 0 and max(drawn) < 2**31
    assert not set(drawn) & {draw_attempt(pairs, 7, 2, "train", a, shots, OPTIONS)["sampling_seed"] for a in range(99)}


@pytest.mark.parametrize("option", ["--temperature", "--temperature-end", "--validation-temperature"])
@pytest.mark.parametrize("value", ["-0.1", "2.1"])
def test_a_temperature_that_vllm_would_refuse_is_a_bad_option(option, value, command):
    done = command(option, value)
    assert done.returncode == 2 and option in done.stderr


def test_many_attempts(pairs, pools):
    attempts = [draw_attempt(pairs, 0, 1, "train", a, pools, HOW) for a in range(2000)]
    assert len({a["sampling_seed"] for a in attempts}) == len({a["id"] for a in attempts}) == 2000
    assert all(0 <= a["sampling_seed"] < 2**31 for a in attempts)
    assert [a["label"] for a in attempts[:4]] == ["Warm", "not warm", "Warm", "not warm"]
    fed = [a for a in attempts if a["feedback"]]
    assert abs(len(fed) / 2000 - 0.5) < 5 * math.sqrt(0.25 / 2000)  # five standard errors
    for a in attempts:
        seeds, feedback = ids(a)[:3], ids(a)[3:]
        assert seeds == sorted(set(seeds)) and all(i[0] == "s" for i in seeds)
        assert len(set(feedback)) == len(feedback) == (2 if a["feedback"] else 0)
        assert all(i[0] == "f" for i in feedback)
    shown = collections.Counter(i for a in attempts for i in ids(a))
    assert len(shown) == 6 + 7 and max(shown.values()) < 2 * shown["s0"]  # nobody is left out
    assert len({tuple(ids(a)[3:]) for a in fed}) > 30  # of 7 * 6 = 42 ordered pairs


@pytest.mark.parametrize("rate, expected", [(0.0, 0), (1.0, 300)])
def test_feedback_rate_at_its_ends(rate, expected, pairs, pools):
    attempts = [draw_attempt(pairs, 0, 1, "train", a, pools, HOW | {"feedback_rate": rate}) for a in range(300)]
    assert sum(bool(a["feedback"]) for a in attempts) == expected


def test_small_pools_and_validation(pairs, flip, pools):
    few = {"seed": pools["seed"][:2], "feedback": pools["feedback"][:1]}
    a = draw_attempt(pairs, 0, 1, "train", 0, few, HOW | {"feedback_rate": 1.0})
    assert ids(a) == ["s0", "s1", "f20"]
    a = draw_attempt(pairs, 0, 1, "validation", 0, pools, {})
    assert len(set(ids(a))) == 2 and all(i[0] == "t" for i in ids(a)) and a["feedback"] == []
    assert draw_attempt(flip, 0, 0, "train", 7, few | {"feedback": []}, HOW)["label"] is None


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.booleans(), max_size=8),
    which=st.sampled_from(["same", "other"]),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    most=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_labels_of_the_feedback(labels, which, rate, most, seed, pairs, pools):
    """Only such feedback as was asked for, as many as there are; all else is as without the option."""
    feedback = [pair(n) | {"id": f"f{n}", "label": "Warm" if warm else "not warm"} for n, warm in enumerate(labels)]
    how, shown = HOW | {"feedback_rate": rate, "num_feedback_shots": most}, pools | {"feedback": feedback}
    for a in range(20):
        free = draw_attempt(pairs, seed, 1, "train", a, shown, how)
        drawn = draw_attempt(pairs, seed, 1, "train", a, shown, how | {"feedback_label": which})
        fitting = [f["id"] for f in feedback if (f["label"] == drawn["label"]) == (which == "same")]
        found = [f["id"] for f in drawn["feedback"]]
        assert len(set(found)) == len(found) == (min(most, len(fitting)) if free["feedback"] else 0)
        assert set(found) <= set(fitting)
        assert drawn | {"feedback": 0} == free | {"feedback": 0}


def test_temperatures_by_hand(pairs, pools):
    how = HOW | {"temperature": 0.5, "temperature_end": 1.7, "num_examples": 8}
    found = [draw_attempt(pairs, 0, 1, "train", a, pools, how)["temperature"] for a in (0, 1, 4, 7, 8, 9, 500)]
    assert found == [0.5, 0.65, 1.1, 1.55, 1.7, 1.7, 1.7]  # 1.2 / 8 = 0.15 an attempt
    down = draw_attempt(pairs, 0, 1, "train", 6, pools, how | {"temperature_end": 0.0})
    assert down["temperature"] == 0.125  # 0.5 * 2 / 8
    plain = draw_attempt(pairs, 0, 1, "train", 6, pools, HOW)
    assert plain == {k: v for k, v in down.items() if k != "temperature"}


# ---------------------------------------------------------------------------------------------------------------------
# The report


def measured(task, rows: list[tuple[str, str]]) -> dict:
    """metrics.json, as evaluate.py makes it, of (label, prediction) pairs."""
    records = [{"label": gold, "target": gold} for gold, _ in rows]
    records = [r | of_example(task, p.lower(), r) for r, (_, p) in zip(records, rows, strict=True)]
    labels, cells = list(task.labels), confusion_cells(task, records)
    columns = [*labels, *([None] if any(p is None for _, p in cells) else [])]
    matrix = [[cells[gold, p] for p in columns] for gold in labels]
    return {
        "task": task.name, "metric": "accuracy", "n": len(rows), "overall": measure(task, records, 0, 100),
        "by_label": class_intervals(cells, labels, 0, 100)[1],
        "confusion": {"labels": labels, "columns": [c or "no label" for c in columns], "matrix": matrix},
    }  # fmt: skip


def test_report_by_hand(pairs):
    """Warm: 3 asked for, 2 right, 1 no label. not warm: 5 asked for, 2 right, 3 answered Warm."""
    rows = [("Warm", "Warm")] * 2 + [("Warm", "hot")] + [("not warm", "Warm")] * 3 + [("not warm", "not warm")] * 2
    assert report_text(measured(pairs, rows), pairs) == (
        "Results of the small model on 8 examples: accuracy 0.50\n"
        "Warm: precision 0.40, recall 0.67, F1 0.50\n"  # 2 of 5, 2 of 3, 4 / (3 + 5)
        "not warm: precision 1.00, recall 0.40, F1 0.57\n"  # 2 of 2, 2 of 5, 4 / (5 + 2)
        "asked for not warm, answered Warm: 3 times\n"
        "asked for Warm, answered no label: 1 time"
    )
    assert report_text(measured(pairs, rows[:2]), pairs).splitlines()[1:] == [
        "Warm: precision 1.00, recall 1.00, F1 1.00"  # the other label does not occur, and nothing was confused
    ]


def test_report_of_many_labels_shows_the_worst(pairs, tmp_path):
    labels = "".join(f'l{n} = "the label {n}"\n' for n in range(8))
    (tmp_path / "many.toml").write_text(re.sub(r"Warm = (.*\n)+?(?=\[prompt)", labels, PAIRS))
    task = load_task(tmp_path / "many.toml")
    # of label n, 10 - n are right and n are answered as the next; so F1 falls with n, but that of l0 is lower again
    rows = [(f"l{n}", f"l{(n + (i < n)) % 8}") for n in range(8) for i in range(10)]
    lines = report_text(measured(task, rows), task).splitlines()
    assert lines[0].endswith("80 examples: accuracy 0.65; the 5 labels with the lowest F1:") and len(lines) == 9
    f1 = {n: 2 * (10 - n) / (20 - n + (n - 1) % 8) for n in range(8)}
    worst = sorted(f1, key=f1.get)[:5]
    assert [line.split(":")[0] for line in lines[1:6]] == [f"l{n}" for n in worst]
    assert [float(line.split("F1 ")[1]) for line in lines[1:6]] == [pytest.approx(f1[n], abs=0.006) for n in worst]
    assert lines[6:] == [f"asked for l{n}, answered l{(n + 1) % 8}: {n} times" for n in (7, 6, 5)]


def test_report_of_a_text2text_task(flip):
    metrics = {"task": "flip", "metric": "exact_match", "n": 1200, "overall": {"exact_match": {"value": 0.125}}}
    assert report_text(metrics, flip) == "Results of the small model on 1,200 examples: exact_match 0.12"


# ---------------------------------------------------------------------------------------------------------------------
# Prompts as token ids

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES = {  # name: (template, what becomes of system "Be brief." and user "Say $ it.")
    "none": (None, "<s>Be brief.\n\nSay $ it."),
    "system role": ("{{ bos_token }}" + TURNS, "<s><system>Be brief.\n<user>Say $ it.\n<assistant>"),
    "no bos": (TURNS, "<system>Be brief.\n<user>Say $ it.\n<assistant>"),
    "refuses system": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ bos_token }}" + TURNS,
        "<s><user>Be brief.\n\nSay $ it.\n<assistant>",
    ),
    "drops system": (
        "{{ bos_token }}" + TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"),
        "<s><user>Be brief.\n\nSay $ it.\n<assistant>",
    ),
    "trims system": (
        "{{ bos_token }}" + TURNS.replace("m.content", "m.content | trim"),
        "<s><system>Be brief.\n<user>Say $ it.\n<assistant>",
    ),
}


@pytest.fixture
def tokenizer():
    """A token a byte; begins every text with <s>, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_encode_prompt(name, tokenizer):
    tokenizer.chat_template, expected = TEMPLATES[name]
    found = encode_prompt(tokenizer, "Be brief.", "Say $ it.", {})
    assert tokenizer.decode(found) == expected
    assert found.count(0) == expected.count("<s>")  # one BOS, never two
    without = tokenizer.decode(encode_prompt(tokenizer, "", "Say $ it.", {}))
    assert without == re.sub(r"<system>.*\n|Be brief\.\n\n", "", expected)


def test_system_text_with_blanks_at_its_ends_keeps_its_role(tokenizer):
    """Llama 3's template, for one, trims every text."""
    tokenizer.chat_template, expected = TEMPLATES["trims system"]
    assert tokenizer.decode(encode_prompt(tokenizer, " Be brief. ", "Say $ it.", {})) == expected


def test_chat_template_kwargs_reach_the_template(tokenizer):
    tokenizer.chat_template = TURNS + "{% if enable_thinking is false %}<think></think>{% endif %}"
    assert tokenizer.decode(encode_prompt(tokenizer, "", "Go.", {})) == "<user>Go.\n<assistant>"
    found = tokenizer.decode(encode_prompt(tokenizer, "", "Go.", {"enable_thinking": False}))
    assert found == "<user>Go.\n<assistant><think></think>"


def test_template_that_takes_nothing(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(SystemExit, match="error: --model: its chat template takes neither"):
        encode_prompt(tokenizer, "Be brief.", "Go.", {})


@pytest.mark.parametrize("template", ["none", "system role", "refuses system"])
@pytest.mark.parametrize("form, report", [("", ""), ("unsure", ""), ("unsure", "accuracy: " + "long " * 40)])
def test_longest_prompt_is_an_upper_bound(template, form, report, tokenizer, pairs, pools, fed_task):
    tokenizer.chat_template = TEMPLATES[template][0]
    task, options = fed_task if form else pairs, {"train": HOW | {"max_tokens": 60}}
    bound = longest_prompt(task, tokenizer, pools, options, {}, report)
    lengths = []
    for split in ("train", "validation"):
        for a in (draw_attempt(task, 0, 1, split, n, pools, HOW) for n in range(60)):
            prompt = render_prompt(task, split, a["shots"], a["label"], a["feedback"], report)
            lengths.append(len(encode_prompt(tokenizer, *prompt, {})))
    assert max(lengths) <= bound < 2 * max(lengths)
    without = longest_prompt(task, tokenizer, pools | {"feedback": []}, options, {}, report)
    assert without < bound - (len(report) if form else 0)  # a report that no prompt shows takes no room


# ---------------------------------------------------------------------------------------------------------------------
# Whole splits, with a scripted engine

OPTIONS = HOW | {
    "num_examples": 4, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 32, "seed": 0,
    "chat_template_kwargs": {}, "feedback_rate": 0.0,
}  # fmt: skip


def engine(answer):
    """A stand-in for vLLM's offline engine: answer(seed) -> (text, finish reason). It ends the requests last in, first out."""
    counter, unfinished = itertools.count(), []

    def enqueue(prompts, params, use_tqdm):
        ids = []
        for prompt, param in zip(prompts, params, strict=True):
            text, finish_reason = answer(param.seed)
            completion = SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=[5, 6, 7])
            output = {"prompt_token_ids": prompt["prompt_token_ids"], "outputs": [completion]}
            unfinished.append(SimpleNamespace(request_id=str(next(counter)), **output))
            ids.append(f"{unfinished[-1].request_id}-ab12")
        return ids

    def step():
        return [unfinished.pop()]

    return SimpleNamespace(enqueue=enqueue, llm_engine=SimpleNamespace(step=step), reset_prefix_cache=lambda: None)


def by_seed(seed: int) -> tuple[str, str]:
    """A completion by chance: one in four is no example at all, the others come of 8 * 10 * 2."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return "I would rather not.", "stop"
    return f" {rng.choice(['the', 'a'])} {rng.choice(PLACES)}\nSecond: {rng.choice(SUMMER + WINTER)}", "stop"


@pytest.fixture
def split(pairs, pools, models, tmp_path, monkeypatch):
    """Sample a split with a scripted engine; returns the counts."""
    from transformers import AutoTokenizer

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # as start_engine does without a GPU
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])

    def sample(
        folder="a", answer=by_seed, num_examples=4, max_attempts=500, context=2000, shown=pools, judge=None, **changed
    ):
        output, options = tmp_path / folder / "train.jsonl", OPTIONS | {"num_examples": num_examples} | changed
        run = start_run(
            "generate.py sample", output, options, {}, also=[output.with_name("train.rejected.jsonl")],
            resumable=True, extends="num_examples",
        )  # fmt: skip
        shown = {"seed": shown["seed"], "feedback": []}
        try:
            return sample_split(
                run, pairs, "train", 0, options, max_attempts, shown, set(), engine(answer), tokenizer, context, {},
                judge=judge,
            )  # fmt: skip
        except BaseException:
            run.lock.close()  # as the end of the process does
            raise

    return sample


def both(folder) -> list[list[dict]]:
    return [read_lines(folder / name) for name in ("train.jsonl", "train.rejected.jsonl")]


def test_one_attempt_of_every_kind(split, pairs, pools, tmp_path):
    def seed_and_shots(a):
        drawn = draw_attempt(pairs, 0, 0, "train", a, pools | {"feedback": []}, OPTIONS)
        return drawn["sampling_seed"], drawn["shots"]

    shot = seed_and_shots(2)[1][1]
    script = {
        0: (" the sea\nSecond: sun", "stop"),
        1: (" the sea\nSecond: sun sun sun", "length"),
        2: (f" {shot['first'].upper()}\nSecond: {shot['second']}!", "stop"),
        3: (" The  sea\nSecond: SUN", "stop"),  # the label is another, the text is that of attempt 0
        4: ("Never.", "stop"),
        5: (" the ice\nSecond: snow", "stop"),
        6: (" the sea\nSecond:", "stop"),
        7: (" sea\nSecond: snow", "stop"),
        8: (" the bay\nSecond: sun", "stop"),
        9: (" the sea\nSecond: one two three four five six seven", "stop"),
    }
    script = {seed_and_shots(a)[0]: text for a, text in script.items()}
    counts = split(answer=lambda seed: script.get(seed, (f" the {seed}\nSecond: frost", "stop")))
    # By hand. Chunk 1: 2 + 2 missing, a yield of 1 hoped for: attempts 0 to 3; one is accepted, of label 0.
    # Chunk 2: label 0: 1 missing at (1 + 1) / (2 + 1): 1.5 + 2 sqrt(0.75), 4 attempts, 4 to 10, 8 is accepted, 10 is surplus;
    # label 1: 2 at (0 + 1) / (2 + 1): 6 + 2 sqrt(12), 13 attempts, 5 to 29; accepted: 5 and 11, the nine after it are surplus.
    rejected = {
        "truncated": 1, "no_match": 1, "empty_field": 1, "too_short": 1, "too_long": 1, "copied_shot": 1, "duplicate": 1,
        "surplus": 10,
    }  # fmt: skip
    assert counts["attempted"] == 21 and counts["accepted"] == 4 and counts["rejected"] == rejected
    assert counts["accepted_by_label"] == {"Warm": 2, "not warm": 2} and counts["completion_tokens"] == 3 * 21
    accepted, rejects = both(tmp_path / "a")
    assert [r["id"][-2:] for r in accepted] == ["00", "05", "08", "11"]
    assert {r["id"][-2:]: r["reason"] for r in rejects} == {
        "01": "truncated", "02": "copied_shot", "03": "duplicate", "04": "no_match", "06": "empty_field",
        "07": "too_short", "09": "too_long", "10": "surplus",
        **{str(n): "surplus" for n in range(13, 30, 2)},
    }  # fmt: skip
    first = accepted[0]
    assert set(first) == {
        "id", "label", "first", "second", "source", "target", "task", "iteration", "split", "feedback", "shots",
        "sampling_seed", "finish_reason", "completion",
    }  # fmt: skip
    assert (first["source"], first["target"]) == ("pair: the sea with sun", "Warm")
    assert first["sampling_seed"] == seed_and_shots(0)[0] and first["completion"] == " the sea\nSecond: sun"
    assert len(read_examples(tmp_path / "a" / "train.jsonl", pairs)) == 4  # what was written can be read


def test_an_example_whose_label_prompt_does_not_fit_is_rejected_and_the_others_go_on(split, tmp_path):
    """label_records gives None for it; the others are labelled as they were asked for."""

    def judge(examples, tokens):
        return [{"teacher_label": e["label"]} if "sun" not in e["second"] else None for e in examples]

    counts = split(judge=judge, num_examples=10)
    accepted, rejected = both(tmp_path / "a")
    unread = [r for r in rejected if r["reason"] == "prompt_too_long"]
    assert len(accepted) == 10 and counts["rejected"]["prompt_too_long"] == len(unread) > 0
    assert all("sun" in r["second"] for r in unread) and not any("sun" in r["second"] for r in accepted)


def test_a_prompt_that_does_not_fit_is_rejected_and_the_others_go_on(split, pools, tmp_path):
    long = {"seed": [*pools["seed"], pairs_of_words := pair(7) | {"id": "long", "second": "sun " * 300}]}
    counts = split(num_examples=10, context=300, shown=long)
    _, rejects = both(tmp_path / "a")
    too_long = [r for r in rejects if r["reason"] == "prompt_too_long"]
    assert counts["rejected"]["prompt_too_long"] == len(too_long) > 0
    assert all(pairs_of_words["id"] in r["shots"] and r["completion"] is None for r in too_long)


def test_the_engine_has_several_chunks_while_one_is_read(split, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 8)
    monkeypatch.setattr(generate, "WINDOW", 20)
    parse, sent, ahead = generate.parse_completion, [], []

    def parse_and_note(*args):
        ahead.append(len(sent))
        return parse(*args)

    monkeypatch.setattr(generate, "parse_completion", parse_and_note)
    counts = split(num_examples=60, answer=lambda seed: sent.append(seed) or by_seed(seed))
    accepted, rejects = both(tmp_path / "a")
    # Chunks of 8 until there are 20 under way. While one is read the next one is with the engine, which ends the last first
    assert 16 <= ahead[0] <= 24 and all(8 * (i // 8 + 1) <= n <= 8 * (i // 8 + 3) for i, n in enumerate(ahead[:32]))
    assert counts["accepted"] == len(accepted) == 60 and counts["accepted_by_label"] == {"Warm": 30, "not warm": 30}
    assert len({(r["first"].lower(), r["second"].lower()) for r in accepted}) == 60
    for label in (0, 1):  # each attempt once, in turn
        mine = sorted(n for r in accepted + rejects if (n := int(r["id"][-6:])) % 2 == label)
        assert mine == list(range(label, 2 * len(mine), 2))
    assert len(sent) == counts["attempted"] == len(accepted) + len(rejects)


def test_a_second_chunk_that_does_not_fit_is_rejected_where_the_first_one_did(split, pools, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 4)
    long = {"seed": [*pools["seed"], pair(7) | {"id": "long", "second": "sun " * 300}]}
    counts = split(num_examples=40, context=300, shown=long, num_fewshot=1)
    assert counts["accepted"] == 40 and counts["rejected"]["prompt_too_long"] > 0


@pytest.mark.parametrize("size, window", [(512, 8192), (8, 20)])
def test_killed_at_any_write_and_run_again(size, window, split, tmp_path, monkeypatch):
    """Whole chunks are kept, those under way are sent again: the files are those of a run that was not killed."""
    monkeypatch.setattr(generate, "CHUNK", size)
    monkeypatch.setattr(generate, "WINDOW", window)
    told = split("whole", num_examples=30)
    whole = both(tmp_path / "whole")
    write, save = generate.write_records, generate.save_progress
    points = 0
    for point in range(1, 99):
        left, folder = [point], f"cut{point}"

        def dying(function, left=left, half=False):
            def call_or_die(*args):
                left[0] -= 1
                if left[0] == 0:
                    if half:
                        file, records = args
                        file.write("".join(json.dumps(r) + "\n" for r in records)[:-20])
                    raise KeyboardInterrupt
                return function(*args)

            return call_or_die

        with monkeypatch.context() as patch:
            patch.setattr(generate, "write_records", dying(write, half=True))
            patch.setattr(generate, "save_progress", dying(save))
            try:
                split(folder, num_examples=30)
                break
            except KeyboardInterrupt:
                points += 1
        counts = split(folder, num_examples=30)
        assert both(tmp_path / folder) == whole, f"killed at write {point}"
        assert counts == told, "tokens count once, of all sessions"
        assert counts["attempted"] == sum(map(len, whole)) == counts["accepted"] + sum(counts["rejected"].values())
    assert points >= 6  # three writes a chunk, two chunks at the least


@pytest.mark.parametrize("name", ["train.jsonl.partial", "train.rejected.jsonl.partial"])
def test_unfinished_work_that_was_deleted(name, split, tmp_path):
    """Somebody throws the half-made file away to begin anew, but not the state beside it."""
    with pytest.raises(SystemExit):
        split(num_examples=20, max_attempts=21)  # more than one reject, fewer than 20 accepted
    (tmp_path / "a" / name).unlink()
    try:
        split(num_examples=20)
    except SystemExit as end:
        assert name in end.code and "\\x00" not in end.code, end.code
    else:
        accepted, rejects = both(tmp_path / "a")
        assert len(accepted) == 20 and len({r["id"] for r in accepted + rejects}) == len(accepted + rejects)


def test_the_attempt_limit_is_a_clear_end_and_can_be_raised(split, tmp_path):
    with pytest.raises(SystemExit) as caught:
        split(num_examples=10, max_attempts=11)
    found = re.search(r"error: .*train\.jsonl: 11 attempts gave (\d+) of 10; rejected: (.*?)\.", caught.value.code)
    assert int(found[1]) + sum(int(n) for n, _ in re.findall(r"(\d+) ([a-z_]+)", found[2])) == 11
    counts = split(num_examples=10, max_attempts=60)
    assert counts["accepted"] == 10 and counts["accepted_by_label"] == {"Warm": 5, "not warm": 5}


@pytest.mark.parametrize("edit", ["a line less", "a line of one's own", "an id of one's own"])
def test_extending_a_file_that_was_edited_by_hand(edit, split, pairs, tmp_path):
    """Hand edits of a finished file are kept (DESIGN 6); what is added has ids of its own."""
    split(num_examples=8)
    path = tmp_path / "a" / "train.jsonl"
    rows = read_lines(path)
    if edit == "a line less":
        rows = rows[:2] + rows[3:]
    elif edit == "a line of one's own":
        rows.insert(3, {"first": "my garden", "second": "melon", "label": "Warm"})
    else:
        rows.insert(3, {"id": "mine", "first": "my garden", "second": "melon", "label": "Warm"})
    write_lines(path, rows)
    split(num_examples=16)
    accepted, rejects = both(tmp_path / "a")
    assert accepted[: len(rows)] == rows and len(accepted) == 16
    examples = read_examples(path, pairs)
    assert not {e["id"] for e in examples} & {r["id"] for r in rejects}
    assert len({text_key(pairs, e) for e in examples}) == 16


# ---------------------------------------------------------------------------------------------------------------------
# The command, with a scripted engine


@pytest.fixture
def command(home, models, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "start_engine", lambda *args, **options: engine(by_seed))

    def sample(*args, folder="iter-00"):
        return call(
            "generate.py", "sample", "--task-file", home / "pairs.toml", "--model", models["llama"],
            "--output-dir", tmp_path / folder, "--num-examples", 6, "--num-validation", 4, *args,
        )  # fmt: skip

    return sample


def test_both_splits_of_an_iteration(command, tmp_path):
    done = command(folder="iter-03")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "iter-03"
    assert {p.name for p in folder.iterdir()} == {
        f"{split}{end}" for split in ("train", "validation") for end in (".jsonl", ".rejected.jsonl", ".jsonl.run.json")
    }
    train, validation = read_lines(folder / "train.jsonl"), read_lines(folder / "validation.jsonl")
    assert [len(train), len(validation)] == [6, 4]
    assert {r["iteration"] for r in train + validation} == {3}
    assert all(re.fullmatch(r"pairs-03-train-0000\d\d", r["id"]) for r in train)
    assert all(set(r["shots"]) <= {t["id"] for t in train} and len(r["shots"]) == 2 for r in validation)
    again = command(folder="iter-03")
    assert again.returncode == 0 and again.stderr.count("up to date") == 2


def test_an_unfinished_validation_notices_that_train_was_edited(command, tmp_path):
    """It shows training examples: those it has were made from others than those that are to come."""
    train = tmp_path / "iter-00" / "train.jsonl"
    assert command("--num-validation", 30, "--max-attempts", 20).returncode == 1  # train is whole, validation is not
    again = command("--num-validation", 30, "--max-attempts", 21)
    assert again.returncode == 1 and "warning" not in again.stderr
    write_lines(train, read_lines(train)[1:])
    done = command("--num-validation", 30)
    assert done.returncode == 0, done.stderr
    assert f"warning: {train} has changed since {train.with_name('validation.jsonl')} was begun" in done.stderr
    assert len(read_lines(train)) == 5 and "warning" not in command("--num-examples", 9, "--num-validation", 33).stderr


def test_a_refused_split_leaves_the_other_as_it_was(command, tmp_path):
    """More training examples are fine, another validation temperature is not: nothing may be touched by such a command."""
    assert command().returncode == 0
    before = {p: p.read_bytes() for p in (tmp_path / "iter-00").iterdir()}
    done = command("--num-examples", 10, "--validation-temperature", 0.5)
    assert (
        done.returncode == 1 and "validation.jsonl: was made with --validation-temperature 1.2, now 0.5" in done.stderr
    )
    assert {p: p.read_bytes() for p in (tmp_path / "iter-00").iterdir()} == before


def test_earlier_files_and_this_train_file_exclude_texts(command, pairs, tmp_path):
    assert command("--num-examples", 20, folder="iter-00").returncode == 0
    first = {text_key(pairs, r) for r in read_lines(tmp_path / "iter-00" / "train.jsonl")}
    done = command("--num-examples", 20, "--exclude-file", tmp_path / "iter-00" / "train.jsonl", folder="iter-01")
    assert done.returncode == 0, done.stderr
    keys = [
        text_key(pairs, r)
        for name in ("train.jsonl", "validation.jsonl")
        for r in read_lines(tmp_path / "iter-01" / name)
    ]
    assert len(keys) == len(set(keys)) == 24 and not first & set(keys)


def test_feedback_is_shown(command, home, tmp_path):
    feedback = write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in range(70, 75)])
    done = command("--feedback-file", feedback, "--feedback-rate", 1, folder="iter-01")
    assert done.returncode == 0, done.stderr
    train = read_lines(tmp_path / "iter-01" / "train.jsonl")
    assert all(r["feedback"] and [i[0] for i in r["shots"][-2:]] == ["f", "f"] for r in train)
    assert not any(r["feedback"] for r in read_lines(tmp_path / "iter-01" / "validation.jsonl"))
    assert not any("temperature" in r for r in train)


@pytest.mark.parametrize("which", ["same", "other"])
def test_feedback_of_a_label(which, command, tmp_path):
    feedback = write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in (70, 72, 74)])  # Warm, all
    done = command("--feedback-file", feedback, "--feedback-rate", 1, "--feedback-label", which)
    assert done.returncode == 0, done.stderr
    train = read_lines(tmp_path / "iter-00" / "train.jsonl")
    for r in train + read_lines(tmp_path / "iter-00" / "train.rejected.jsonl"):
        assert r["feedback"] == ((r["label"] == "Warm") == (which == "same")) == (r["shots"][-1][0] == "f")
    again = command("--feedback-file", feedback, "--feedback-rate", 1)
    assert again.returncode == 1 and f"--feedback-label {which}, now None" in again.stderr


def test_labels_of_feedback_need_a_task_with_labels(command, home):
    done = command("--task-file", home / "flip.toml", "--feedback-label", "same")
    assert done.returncode == 2 and "--feedback-label" in done.stderr and "text2text" in done.stderr


def test_empty_feedback_files_are_no_feedback(command, tmp_path):
    """A student that made no error leaves none."""
    empty, full = tmp_path / "empty.jsonl", tmp_path / "full.jsonl"
    empty.write_bytes(b"")
    write_lines(full, [pair(n) | {"id": f"f{n}"} for n in range(70, 75)])
    done = command("--feedback-file", empty, "--feedback-rate", 1)
    assert done.returncode == 0 and f"{empty}: is empty: no feedback from it" in done.stderr, done.stderr
    assert not any(r["feedback"] for r in read_lines(tmp_path / "iter-00" / "train.jsonl"))
    assert "up to date" in command("--feedback-file", empty, "--feedback-rate", 1).stderr
    files = ("--feedback-file", empty, "--feedback-file", full, "--feedback-file", empty)
    done = command(*files, "--feedback-rate", 1, folder="iter-01")
    assert done.returncode == 0, done.stderr
    assert all(r["feedback"] for r in read_lines(tmp_path / "iter-01" / "train.jsonl"))


@pytest.mark.parametrize("shards", [1, 2])
def test_the_temperature_follows_the_number_of_the_attempt(shards, command, tmp_path):
    how = ("--num-examples", 12, "--temperature", 1.4, "--temperature-end", 0.2, "--max-attempts", 200)
    rows = []
    for i in range(shards):
        done = command(*how, *(["--shard", f"{i}/2"] if shards > 1 else []))
        assert done.returncode == 0, done.stderr
    for path in (tmp_path / "iter-00").glob("train*.jsonl"):
        rows += read_lines(path)
    assert len(rows) > 12
    for r in rows:  # 1.2 / 12 = 0.1 an attempt
        number = int(r["id"].rsplit("-", 1)[1])
        assert r["temperature"] == pytest.approx(max(1.4 - 0.1 * number, 0.2), abs=1e-4)
    assert len({r["temperature"] for r in rows}) > 6
    assert not any("temperature" in r for r in read_lines(next((tmp_path / "iter-00").glob("validation*.jsonl"))))


def test_a_schedule_ends_with_the_examples_that_were_asked_for(command, tmp_path):
    assert command("--temperature-end", 0.2).returncode == 0
    before = (tmp_path / "iter-00" / "train.jsonl").read_bytes()
    more = command("--temperature-end", 0.2, "--num-examples", 10)
    assert more.returncode == 1 and "was made with --num-examples 6, now 10" in more.stderr
    other = command("--temperature-end", 0.3)
    assert other.returncode == 1 and "was made with --temperature-end 0.2, now 0.3" in other.stderr
    assert (tmp_path / "iter-00" / "train.jsonl").read_bytes() == before
    # That split has no schedule
    done = command("--temperature-end", 0.2, "--num-validation", 9, "--max-attempts", 100)
    assert done.returncode == 0 and len(read_lines(tmp_path / "iter-00" / "validation.jsonl")) == 9


# What evaluate.py writes for the scores of an iteration, and what becomes of it


@pytest.fixture
def metrics_file(fed_home, pairs, tmp_path):
    """metrics.json of scored.jsonl: ten examples, those with an odd number answered as Warm."""
    rows = [pair(n) | {"id": f"v{n}", "prediction": "warm", "correct": n % 2 == 0, "energy": -1.0} for n in range(10)]
    write_lines(tmp_path / "scored.jsonl", rows)
    done = call(
        "evaluate.py", "--task-file", fed_home / "pairs.toml", "--test-file", tmp_path / "scored.jsonl",
        "--prediction-field", "prediction", "--output-dir", tmp_path / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "report" / "metrics.json"


def test_the_report_is_shown_beside_feedback(command, fed_home, metrics_file, tmp_path, monkeypatch):
    sent = []
    encode = generate.encode_prompts
    monkeypatch.setattr(
        generate, "encode_prompts", lambda t, texts, how: sent.extend(u for _, u in texts) or encode(t, texts, how)
    )
    feedback = write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in range(70, 75)])
    how = ("--task-file", fed_home / "pairs.toml", "--feedback-file", feedback, "--report-file", metrics_file)
    done = command(*how)
    assert done.returncode == 0, done.stderr
    report = "small model on 10 examples: accuracy 0.50\nWarm: precision 0.50, recall 1.00, F1 0.67\n"
    fed = [text for text in sent if "Unsure of" in text and "First: the" in text]
    assert fed and all(report in text and text.endswith("\nFirst:") for text in fed)
    assert not any(report in text for text in sent if "Unsure of" not in text)
    assert "up to date" in command(*how).stderr
    metrics_file.write_text(metrics_file.read_text().replace("0.5", "0.4"))
    changed = command(*how)
    assert changed.returncode == 1 and "train.jsonl: --report-file has changed" in changed.stderr
    gone = command(*how[:4])
    assert gone.returncode == 1 and "train.jsonl: --report-file has changed" in gone.stderr


@pytest.mark.parametrize("shown", [False, True])
def test_dry_run_shows_the_feedback_template(shown, command, models, fed_home, metrics_file, tmp_path):
    feedback = write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in range(70, 75)])
    how = ("--task-file", fed_home / "pairs.toml", "--feedback-file", feedback, "--dry-run", "--num-validation", 0)
    how += ("--model", models["qwen2"])  # it has a token for every byte
    done = command(*how, *(["--report-file", metrics_file] if shown else []))
    assert done.returncode == 0, done.stderr
    prompts = done.stdout.split("--- ")[1:]
    assert [", f7" in text.splitlines()[0] for text in prompts] == [False, False, True, True]
    assert ["\n\nUnsure of:\n\nKind: " in text for text in prompts] == [False, False, True, True]
    report = "\n\nResults of the small model on 10 examples: accuracy 0.50\nWarm: "
    assert [report in text for text in prompts] == [False, False, shown, shown]
    assert "\n\n\n" not in "".join(text.strip() for text in prompts[2:])


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda m: m | {"task": "other"}, "it is of the task 'other', not of 'pairs'"),
        (lambda m: {k: v for k, v in m.items() if k != "task"}, "KeyError: 'task'"),
        (lambda m: m | {"n": None}, "TypeError"),
        (lambda m: m | {"overall": {}}, "KeyError: 'accuracy'"),
        (lambda m: m | {"overall": {"accuracy": {"value": float("nan")}}}, "nan is no share"),
        (lambda m: m | {"by_label": ["Warm"]}, "TypeError"),
        (lambda m: m | {"by_label": {"Cold": {}}}, "its labels are not those of"),
        (lambda m: m | {"confusion": m["confusion"] | {"labels": ["Warm"]}}, "its labels are not those of"),
        (lambda m: m | {"confusion": m["confusion"] | {"matrix": [[1, 2]]}}, "ValueError"),
        (lambda m: m | {"confusion": m["confusion"] | {"matrix": [["a", "b"], ["c", "d"]]}}, "TypeError"),
        (lambda m: [m], "TypeError"),
        (lambda m: "{", "JSONDecodeError"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_report_that_is_none(change, told, command, fed_home, metrics_file, tmp_path):
    if change:
        made = change(json.loads(metrics_file.read_text()))
        metrics_file.write_text(made if made == "{" else json.dumps(made))
    else:
        metrics_file.unlink()
    done = command("--task-file", fed_home / "pairs.toml", "--report-file", metrics_file)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: --report-file {metrics_file}: ") and told in done.stderr
    assert not (tmp_path / "iter-00").exists()


def test_a_report_that_no_prompt_would_show(command, home, fed_home, metrics_file, tmp_path):
    done = command("--report-file", metrics_file)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {home / 'pairs.toml'}: prompt.feedback: has no $report"), done.stderr
    done = command("--task-file", fed_home / "pairs.toml", "--report-file", metrics_file)
    assert done.returncode == 0 and "no prompt shows it, for there is no feedback" in done.stderr


def test_reasons_are_documented_in_one_list():
    assert len(set(REASONS)) == len(REASONS) and all(set(r) <= set(string.ascii_lowercase + "_") for r in REASONS)
