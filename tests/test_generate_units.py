"""generate.py without vLLM's engine: which attempts are asked, what each shows, how prompts become token ids.

Then the whole stage with a scripted engine (the text follows from the request's seed), because a real one cannot be made
to give one completion of every kind of fault, or to be killed at every step. test_engine.py has the real one.
"""

import collections
import gc
import itertools
import json
import math
import random
import re
from collections import deque
from types import SimpleNamespace

import pytest
from conftest import FED_PAIRS, PAIRS, PLACES, SUMMER, WINTER, call, pair, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

import generate
from gold import attempts, teacher
from gold.attempts import Plan, Pools, draw_attempt, shares_of
from gold.examples import example_key, read_examples
from gold.metrics import class_intervals, confusion_cells, measure, of_example, report_text
from gold.prompts import Prompt, render_prompt
from gold.split import Split, longest_need
from gold.task import load_task
from gold.teacher import Encoder

# ---------------------------------------------------------------------------------------------------------------------
# Planning


def follow(plan: Plan, accepts, size: int = 512) -> list[int]:
    """All attempts, in the order in which they are settled, when attempt a is accepted if accepts(a)."""
    queue, made = deque(), []
    while due := plan.next_attempts() or queue:
        if due is not queue:
            assert due == sorted(due)
            queue.extend(due)
        for _ in range(min(size, len(queue))):
            made.append(queue.popleft())
            slot = made[-1] % len(plan.shares)
            plan.settle(slot, not plan.is_full(slot) and accepts(made[-1]))
    return made


@settings(deadline=None, max_examples=80)
@given(
    num_examples=st.integers(1, 120),
    percents=st.lists(st.sampled_from([0, 2, 30, 90, 100]), min_size=1, max_size=5),
    limit=st.integers(1, 800),
    size=st.integers(1, 600),
    seed=st.integers(0, 10**6),
)
def test_planning_under_any_yields(num_examples, percents, limit, size, seed):
    """Equal shares, consecutive attempts of each label, the limit kept, and an end in any case."""
    labels = len(percents)
    plan = Plan(shares_of(num_examples, labels), limit)
    made = follow(plan, lambda a: random.Random(f"{seed}/{a}").random() * 100 < percents[a % labels], size)
    assert len(made) == len(set(made)) <= limit
    for label in range(labels):
        mine = sorted(a for a in made if a % labels == label)
        assert mine == list(range(label, labels * len(mine) + label, labels))
    assert plan.accepted == plan.shares or len(made) == limit
    if percents == [100] * labels:
        assert len(made) == min(num_examples, limit)  # none too many


# ---------------------------------------------------------------------------------------------------------------------
# One attempt

HOW = {"seed": 0, "num_fewshot": 3, "feedback_rate": 0.5, "num_feedback_shots": 2, "feedback_label": "any"}


@pytest.fixture(scope="module")
def pools():
    seed, feedback, train = (
        [pair(n) | {"id": f"{letter}{n}"} for n in numbers]
        for letter, numbers in (("s", range(6)), ("f", range(20, 27)), ("t", range(30, 50)))
    )
    return Pools(seed, feedback, train)


@pytest.fixture(scope="module")
def fed_home(home, tmp_path_factory):
    """pairs.toml with a feedback template."""
    folder = tmp_path_factory.mktemp("fed")
    (folder / "pairs.toml").write_text(FED_PAIRS, encoding="utf-8")
    (folder / "seed.jsonl").write_bytes((home / "seed.jsonl").read_bytes())
    return folder


def ids(attempt) -> list[str]:
    return [shot["id"] for shot in attempt.shown]


def test_an_attempt_is_a_function_of_its_arguments(pairs, flip, pools):
    def draw(seed=1, iteration=2, split="train", attempt=3):
        return draw_attempt(pairs, iteration, split, attempt, pools, HOW | {"seed": seed})

    first = draw()
    random.seed(99)
    assert draw() == first
    assert first.id == "pairs-02-train-000003" and first.label == "not warm"
    others = [draw(seed=2), draw(iteration=3), draw(split="validation"), draw(attempt=5)]
    assert len({a.sampling_seed for a in [first, *others]}) == 5
    few = Pools(pools.seed[:2], pools.feedback[:1])
    assert ids(draw_attempt(pairs, 1, "train", 0, few, HOW | {"feedback_rate": 1.0})) == ["s0", "s1", "f20"]
    a = draw(split="validation")
    assert len(set(ids(a))) == 2 and all(i[0] == "t" for i in ids(a)) and a.feedback == []
    assert draw_attempt(flip, 0, "train", 7, Pools(pools.seed), HOW).label is None


def test_sampling_seeds_are_of_31_bits_and_each_attempt_has_its_own(pairs, pools):
    """A CPU's generator takes 32 bits: of 100,000 seeds drawn at random two or three would be given twice."""
    shots = Pools(pools.seed[:1])
    for seed, split in ((0, "train"), (-3, "train")):
        how = HOW | {"seed": seed}
        drawn = [draw_attempt(pairs, 2, split, a, shots, how).sampling_seed for a in range(100_000)]
        assert len(set(drawn)) == 100_000 and min(drawn) >= 0 and max(drawn) < 2**31
    other = {draw_attempt(pairs, 2, split, a, shots, HOW | {"seed": 7}).sampling_seed for a in range(99)}
    assert not set(drawn) & other


@pytest.mark.parametrize("option", ["--temperature", "--validation-temperature"])
@pytest.mark.parametrize("value", ["-0.1", "2.1"])
def test_a_temperature_that_vllm_would_refuse_is_a_bad_option(option, value, command):
    done = command(option, value)
    assert done.returncode == 2 and option in done.stderr


def test_many_attempts(pairs, pools):
    drawn = [draw_attempt(pairs, 1, "train", a, pools, HOW) for a in range(2000)]
    assert [a.label for a in drawn[:4]] == ["Warm", "not warm", "Warm", "not warm"]
    fed = [a for a in drawn if a.feedback]
    assert abs(len(fed) / 2000 - 0.5) < 5 * math.sqrt(0.25 / 2000)  # five standard errors
    for a in drawn:
        seeds, feedback = ids(a)[:3], ids(a)[3:]
        assert seeds == sorted(set(seeds)) and all(i[0] == "s" for i in seeds)
        assert len(set(feedback)) == len(feedback) == (2 if a.feedback else 0)
        assert all(i[0] == "f" for i in feedback)
    shown = collections.Counter(i for a in drawn for i in ids(a))
    assert len(shown) == 6 + 7 and max(shown.values()) < 2 * shown["s0"]  # nobody is left out
    assert len({tuple(ids(a)[3:]) for a in fed}) > 30  # of 7 * 6 = 42 ordered pairs
    for rate, expected in ((0.0, 0), (1.0, 300)):
        how = HOW | {"feedback_rate": rate}
        assert sum(bool(draw_attempt(pairs, 1, "train", a, pools, how).feedback) for a in range(300)) == expected


def test_many_labels_and_few_shots_show_the_label_that_is_asked_for(pairs, pools):
    for number in range(20):
        a = draw_attempt(pairs, 0, "train", number, Pools(pools.seed), HOW | {"num_fewshot": 1})
        assert [shot["label"] for shot in a.shots] == [a.label]


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


def test_report_by_hand(pairs, flip):
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
    metrics = {"task": "flip", "metric": "exact_match", "n": 1200, "overall": {"exact_match": {"value": 0.125}}}
    assert report_text(metrics, flip) == "Results of the small model on 1,200 examples: exact_match 0.12"


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


# ---------------------------------------------------------------------------------------------------------------------
# Prompts as token ids

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES = {  # name: (template, what becomes of system " Be brief. " and user "Say $ it.")
    "none": (None, "<s> Be brief. \n\nSay $ it."),
    "system role": ("{{ bos_token }}" + TURNS, "<s><system> Be brief. \n<user>Say $ it.\n<assistant>"),
    "no bos": (TURNS, "<system> Be brief. \n<user>Say $ it.\n<assistant>"),
    "refuses system": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ bos_token }}" + TURNS,
        "<s><user> Be brief. \n\nSay $ it.\n<assistant>",
    ),
    "drops system": (
        "{{ bos_token }}" + TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"),
        "<s><user> Be brief. \n\nSay $ it.\n<assistant>",
    ),
    "trims system": (  # as Llama 3's does
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


def encoder_of(tokenizer, **kwargs) -> Encoder:
    return Encoder(tokenizer, "chat" if tokenizer.chat_template else "completion", kwargs, None)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_as_the_teacher_gets_them(name, tokenizer):
    tokenizer.chat_template, expected = TEMPLATES[name]
    found, without = encoder_of(tokenizer).encode([Prompt(" Be brief. ", "Say $ it."), Prompt("", "Say $ it.")])
    assert tokenizer.decode(found) == expected
    assert found.count(0) == expected.count("<s>")  # one BOS, never two
    assert tokenizer.decode(without) == re.sub(r"<system>.*\n| Be brief\. \n\n", "", expected)


def test_chat_template_kwargs_reach_the_template(tokenizer):
    tokenizer.chat_template = TURNS + "{% if enable_thinking is false %}<think></think>{% endif %}"
    for kwargs, end in (({}, ""), ({"enable_thinking": False}, "<think></think>")):
        [found] = encoder_of(tokenizer, **kwargs).encode([Prompt("", "Go.")])
        assert tokenizer.decode(found) == "<user>Go.\n<assistant>" + end
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(SystemExit, match="error: --model: its chat template takes neither"):
        encoder_of(tokenizer).encode([Prompt("Be brief.", "Go.")])


@pytest.mark.parametrize("template", ["none", "system role", "refuses system"])
@pytest.mark.parametrize("form, report", [("", ""), ("unsure", ""), ("unsure", "accuracy: " + "long " * 40)])
def test_longest_need_is_an_upper_bound(template, form, report, tokenizer, home, fed_home, pools, tmp_path):
    tokenizer.chat_template = TEMPLATES[template][0]
    task, encoder = load_task((fed_home if form else home) / "pairs.toml"), encoder_of(tokenizer)
    options = HOW | {"max_tokens": 60, "verify": False, "output_dir": tmp_path, "shard": None, "structured": False}
    options |= dict.fromkeys(["temperature", "validation_temperature"], 1.0) | {"limit": None, "max_attempts": None}

    def bound(pools):
        return longest_need([Split("train", task, 1, options, 9, (0, 1), pools, set(), report)], encoder)

    lengths = [
        len(encoder.encode([render_prompt(task, split, a.shots, a.label, a.feedback, report)])[0]) + 60
        for split in ("train", "validation")
        for a in (draw_attempt(task, 1, split, n, pools, HOW) for n in range(60))
    ]
    assert max(lengths) <= bound(pools) < 2 * max(lengths)
    assert bound(Pools(pools.seed)) < bound(pools) - (
        len(report) if form else 0
    )  # a report that no prompt shows is free


# ---------------------------------------------------------------------------------------------------------------------
# The stage, with a scripted engine


def scripted(answer):
    """A stand-in for vLLM.LLM: answer(seed) -> (text, finish reason). It ends the requests last in, first out."""
    unfinished = []

    def add_request(identifier, prompt, params):
        text, finish_reason = answer(params.seed)
        completion = SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=[5, 6, 7])
        output = {"prompt_token_ids": prompt["prompt_token_ids"], "num_cached_tokens": 0, "outputs": [completion]}
        unfinished.append(SimpleNamespace(request_id=identifier, **output))

    engine = SimpleNamespace(add_request=add_request, step=lambda: [unfinished.pop()])
    return SimpleNamespace(llm_engine=engine, reset_prefix_cache=lambda: None)


def by_seed(seed: int) -> tuple[str, str]:
    """A completion by chance: one in four is no example at all, the others come of 2 * 8 * 10."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return "I would rather not.", "stop"
    return f" {rng.choice(['the', 'a'])} {rng.choice(PLACES)}\nSecond: {rng.choice(SUMMER + WINTER)}", "stop"


class Killed(BaseException):
    """The end of the process: nothing may catch it."""


@pytest.fixture
def command(home, models, tmp_path, monkeypatch):
    """generate.py by its command line: 6 examples, 4 for validation."""

    def command(*args, folder="iter-00", answer=by_seed, llm=None):
        monkeypatch.setattr(teacher, "start_llm", lambda *args, **options: llm or scripted(answer))
        gc.collect()  # the lock of a run that was killed
        return call(
            "generate.py", "--task-file", home / "pairs.toml", "--model", models["llama"],
            "--output-dir", tmp_path / folder, "--num-examples", 6, "--num-validation", 4, *args,
        )  # fmt: skip

    return command


@pytest.fixture
def generated(command, tmp_path):
    """Only the training split: (counts of its run record, accepted, rejected)."""

    def generated(*args, folder="iter-00", **how):
        done = command("--num-validation", 0, *args, folder=folder, **how)
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / folder / "train.jsonl.run.json").read_text())
        return record["counts"], *both(tmp_path / folder)

    return generated


def both(folder) -> list[list[dict]]:
    return [read_lines(folder / name) for name in ("train.jsonl", "train.rejected.jsonl")]


def number_of(record: dict) -> int:
    return int(record["id"].rsplit("-", 1)[1])


def test_one_attempt_of_every_kind(generated, pairs, home, tmp_path):
    seeds = Pools(read_examples(home / "seed.jsonl", pairs))
    drawn = [draw_attempt(pairs, 0, "train", a, seeds, HOW) for a in range(9)]
    shot = drawn[2].shots[1]
    script = [
        (" the sea\nSecond: sun", "stop"),
        (" the sea\nSecond: sun sun sun", "length"),
        (f" {shot['first'].upper()}\nSecond: {shot['second']}!", "stop"),
        (" The  sea\nSecond: SUN", "stop"),  # the label is another, the text is that of attempt 0
        ("Never.", "stop"),
        (" the ice\nSecond: snow", "stop"),
        (" the sea\nSecond:", "stop"),
        (" sea\nSecond: snow", "stop"),
        (" the sea\nSecond: one two three four five six seven", "stop"),
    ]
    script = {a.sampling_seed: text for a, text in zip(drawn, script, strict=True)}
    counts, accepted, rejected = generated(
        "--num-examples", 8, "--max-attempts", 50,
        answer=lambda seed: script.get(seed, (f" the {seed}\nSecond: frost", "stop")),
    )  # fmt: skip
    reasons = {number_of(r): r["reason"] for r in rejected}
    assert {n: reason for n, reason in reasons.items() if n < 9} == {
        1: "truncated", 2: "copied_shot", 3: "duplicate", 4: "no_match", 6: "empty_field", 7: "too_short", 8: "too_long",
    }  # fmt: skip
    assert {reason for n, reason in reasons.items() if n >= 9} <= {"surplus"}
    assert counts["rejected"] == collections.Counter(reasons.values())
    assert counts["attempted"] == 8 + len(rejected) and counts["completion_tokens"] == 3 * counts["attempted"]
    assert counts["accepted_by_label"] == {"Warm": 4, "not warm": 4}
    first = accepted[0]
    assert set(first) == {
        "id", "label", "first", "second", "source", "target", "task", "iteration", "split", "feedback", "shots",
        "sampling_seed", "finish_reason", "completion",
    }  # fmt: skip
    assert (first["source"], first["target"]) == ("pair: the sea with sun", "Warm")
    assert first["sampling_seed"] == drawn[0].sampling_seed and first["completion"] == " the sea\nSecond: sun"
    assert len(read_examples(tmp_path / "iter-00" / "train.jsonl", pairs)) == 8  # what was written can be read


def test_a_prompt_that_does_not_fit_is_rejected_and_the_others_go_on(generated, home, tmp_path):
    (tmp_path / "pairs.toml").write_text(PAIRS)
    seeds = [*(pair(n) | {"id": f"s{n}"} for n in range(6)), pair(7) | {"id": "long", "second": "sun " * 300}]
    write_lines(tmp_path / "seed.jsonl", seeds)
    how = ("--task-file", tmp_path / "pairs.toml", "--num-examples", 40, "--max-model-len", 300, "--max-tokens", 32)
    counts, _, rejected = generated(*how, "--num-fewshot", 2)
    too_long = [r for r in rejected if r["reason"] == "prompt_too_long"]
    assert counts["rejected"]["prompt_too_long"] == len(too_long) > 0
    assert all("long" in r["shots"] and r["completion"] is None for r in too_long)


def test_the_engine_has_several_chunks_while_one_is_read(generated, monkeypatch):
    """Outputs come in any order (here the last first) and are matched by their ids."""
    monkeypatch.setattr(generate, "CHUNK", 8)
    monkeypatch.setattr(attempts, "WINDOW", 20)
    parse, sent, ahead = generate.parse_completion, [], []
    monkeypatch.setattr(generate, "parse_completion", lambda *args: ahead.append(len(sent)) or parse(*args))
    how = ("--num-examples", 60, "--max-attempts", 500)
    counts, accepted, rejected = generated(*how, answer=lambda seed: sent.append(seed) or by_seed(seed))
    assert all(n - i >= 12 for i, n in enumerate(ahead[:32])) and ahead[0] == 20
    assert counts["accepted_by_label"] == {"Warm": 30, "not warm": 30}
    assert len({(r["first"].lower(), r["second"].lower()) for r in accepted}) == 60
    for label in (0, 1):  # each attempt once, in turn
        mine = sorted(n for r in accepted + rejected if (n := number_of(r)) % 2 == label)
        assert mine == list(range(label, 2 * len(mine), 2))
    assert len(sent) == counts["attempted"] == len(accepted) + len(rejected)


@pytest.mark.parametrize("size, window", [(512, 8192), (8, 20)])
def test_killed_at_any_write_and_run_again(size, window, generated, command, tmp_path, monkeypatch):
    """Before, within and after each write: the files are those of a run that was not killed."""
    monkeypatch.setattr(generate, "CHUNK", size)
    monkeypatch.setattr(attempts, "WINDOW", window)
    how = ("--num-examples", 30, "--max-attempts", 500)
    told, *whole = generated(*how, folder="whole")
    append, save = generate.append_records, generate.save_notes
    for point in range(1, 99):
        left, folder = [point], f"cut{point}"

        def die(function, half, left=left, end=-20 if point % 2 else -1):
            def call_or_die(*args):
                left[0] -= 1
                if left[0] == 0:
                    if half:
                        path, records = args
                        with path.open("a") as file:
                            file.write("".join(json.dumps(r) + "\n" for r in records)[:end])
                    raise Killed
                return function(*args)

            return call_or_die

        with monkeypatch.context() as patch:
            patch.setattr(generate, "append_records", die(append, half=True))
            patch.setattr(generate, "save_notes", die(save, half=False))
            try:
                command("--num-validation", 0, *how, folder=folder)
                break
            except Killed:
                pass
        counts, *found = generated(*how, folder=folder)
        assert found == whole, f"killed at write {point}"
        assert {k: v for k, v in counts.items() if "tokens" not in k} == {
            k: v for k, v in told.items() if "tokens" not in k
        }
        assert counts["completion_tokens"] <= told["completion_tokens"]
    assert point > 6  # three writes a chunk, two chunks at the least


@pytest.mark.parametrize("name", ["train.jsonl.partial", "train.rejected.jsonl.partial"])
def test_attempts_run_out_and_go_on(name, command, generated, tmp_path):
    """The limit is a clear end and can be raised; what somebody threw away meanwhile is made anew."""
    done = command("--num-examples", 20, "--num-validation", 0, "--max-attempts", 21)
    found = re.search(r"error: .*train\.jsonl: 21 attempts gave (\d+) of 20; rejected: (.*?)\.", done.stderr)
    assert done.returncode == 1 and int(found[1]) + sum(int(n) for n in re.findall(r"(\d+) [a-z_]+", found[2])) == 21
    (tmp_path / "iter-00" / name).unlink()
    counts, accepted, rejected = generated("--num-examples", 20)
    assert counts["accepted_by_label"] == {"Warm": 10, "not warm": 10}
    assert len(accepted) == 20 and len({r["id"] for r in accepted + rejected}) == counts["attempted"]


@pytest.mark.parametrize(
    "edit", ["none", "a line less", "the last line less", "a line of one's own", "an id of one's own"]
)
def test_extending_a_file_that_was_edited_by_hand(edit, generated, command, pairs, tmp_path, monkeypatch):
    """Hand edits of a finished file are kept; what is added has ids of its own; and a kill in the middle changes nothing."""
    generated("--num-examples", 8, "--max-attempts", 100)
    path, own = tmp_path / "iter-00" / "train.jsonl", {"first": "my garden", "second": "melon", "label": "Warm"}
    rows = read_lines(path)
    before = {r["id"] for r in rows}
    if edit.endswith("less"):
        rows.pop(-1 if "last" in edit else 2)
    elif edit != "none":
        rows.insert(3, own | ({"id": "mine"} if "id" in edit else {}))
    path.write_text("\n".join(map(json.dumps, rows)))  # as an editor leaves it, without a last line end
    how = ("--num-examples", 90, "--max-attempts", 2000)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(generate, "save_notes", lambda *args: (_ for _ in ()).throw(Killed()))
        command(*how)
    counts, accepted, rejected = generated(*how)
    assert accepted[: len(rows)] == rows and len(accepted) == 90
    examples = read_examples(path, pairs)
    assert not {e["id"] for e in examples} & {r["id"] for r in rejected}
    assert len({example_key(pairs, e) for e in examples}) == 90
    assert {r["id"] for r in rejected if r["reason"] == "removed"} == before - {r.get("id") for r in rows}
    assert counts["attempted"] == 90 + len(rejected)
    assert "up to date" in command("--num-validation", 0, *how).stderr


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
    told = "validation.jsonl: was made with --validation-temperature 1.2, now 0.5"
    assert done.returncode == 1 and told in done.stderr
    assert {p: p.read_bytes() for p in (tmp_path / "iter-00").iterdir()} == before


def test_earlier_files_and_this_train_file_exclude_texts(command, pairs, tmp_path):
    assert command("--num-examples", 20, folder="iter-00").returncode == 0
    first = {example_key(pairs, r) for r in read_lines(tmp_path / "iter-00" / "train.jsonl")}
    done = command("--num-examples", 20, "--exclude-file", tmp_path / "iter-00" / "train.jsonl", folder="iter-01")
    assert done.returncode == 0, done.stderr
    files = [tmp_path / "iter-01" / name for name in ("train.jsonl", "validation.jsonl")]
    keys = [example_key(pairs, r) for path in files for r in read_lines(path)]
    assert len(keys) == len(set(keys)) == 24 and not first & set(keys)


@pytest.fixture
def feedback(tmp_path):
    return write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in range(70, 75)])


def test_feedback_is_shown(command, feedback, tmp_path):
    """Files that are empty, of a student that made no error, are said and are no feedback."""
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    files = ("--feedback-file", empty, "--feedback-file", feedback, "--feedback-rate", 1)
    done = command(*files, folder="iter-01")
    assert done.returncode == 0 and f"{empty}: is empty: no feedback from it" in done.stderr, done.stderr
    train = read_lines(tmp_path / "iter-01" / "train.jsonl")
    assert all(r["feedback"] and [i[0] for i in r["shots"][-2:]] == ["f", "f"] for r in train)
    assert not any(r["feedback"] for r in read_lines(tmp_path / "iter-01" / "validation.jsonl"))
    assert command(*files[:2], folder="iter-02").returncode == 0
    assert not any(r["feedback"] for r in read_lines(tmp_path / "iter-02" / "train.jsonl"))
    assert "up to date" in command(*files[:2], folder="iter-02").stderr


@pytest.mark.parametrize("which", ["same", "other"])
def test_feedback_of_a_label(which, command, home, tmp_path):
    feedback = write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in (70, 72, 74)])  # Warm, all
    how = ("--feedback-file", feedback, "--feedback-rate", 1)
    done = command(*how, "--feedback-label", which)
    assert done.returncode == 0, done.stderr
    for r in itertools.chain(*both(tmp_path / "iter-00")):
        assert r["feedback"] == ((r["label"] == "Warm") == (which == "same")) == (r["shots"][-1][0] == "f")
    again = command(*how)
    assert again.returncode == 1 and f"--feedback-label {which}, now any" in again.stderr
    done = command("--task-file", home / "flip.toml", "--feedback-label", "same")
    assert done.returncode == 2 and "--feedback-label" in done.stderr and "text2text" in done.stderr


# What evaluate.py writes for the scores of an iteration, and what becomes of it


@pytest.fixture
def metrics_file(fed_home, tmp_path):
    """metrics.json of scored.jsonl: ten examples, those with an odd number answered as Warm."""
    rows = [pair(n) | {"id": f"v{n}", "prediction": "warm", "correct": n % 2 == 0, "energy": -1.0} for n in range(10)]
    write_lines(tmp_path / "scored.jsonl", rows)
    done = call(
        "evaluate.py", "--task-file", fed_home / "pairs.toml", "--test-file", tmp_path / "scored.jsonl",
        "--prediction-field", "prediction", "--output-dir", tmp_path / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "report" / "metrics.json"


def test_the_report_is_shown_beside_feedback(command, fed_home, feedback, metrics_file, monkeypatch):
    sent, frame = [], Encoder.frame
    monkeypatch.setattr(
        Encoder, "frame", lambda self, prompts: sent.extend(p.user for p in prompts) or frame(self, prompts)
    )
    how = ("--task-file", fed_home / "pairs.toml", "--feedback-file", feedback, "--report-file", metrics_file)
    done = command(*how)
    assert done.returncode == 0, done.stderr
    report = "small model on 10 examples: accuracy 0.50\nWarm: precision 0.50, recall 1.00, F1 0.67\n"
    fed = [text for text in sent if "Unsure of" in text and "First: the" in text]
    assert fed and all(report in text and text.endswith("\nFirst:") for text in fed)
    assert not any(report in text for text in sent if "Unsure of" not in text)
    assert "up to date" in command(*how).stderr
    metrics_file.write_text(metrics_file.read_text().replace("0.5", "0.4"))
    for words in (how, how[:4]):
        done = command(*words)
        assert done.returncode == 1 and "train.jsonl: --report-file has changed" in done.stderr


@pytest.mark.parametrize("shown", [False, True])
def test_dry_run_shows_the_feedback_template(shown, command, models, fed_home, feedback, metrics_file):
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
        (lambda m: m | {"overall": {"accuracy": {"value": float("nan")}}}, "nan is no share"),
        (lambda m: m | {"by_label": {"Cold": {}}}, "its labels are not those of"),
        (lambda m: m | {"confusion": m["confusion"] | {"matrix": [[1, 2]]}}, "ValueError"),
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


def test_a_report_that_no_prompt_would_show(command, home, fed_home, metrics_file):
    done = command("--report-file", metrics_file)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {home / 'pairs.toml'}: prompt.feedback: has no $report"), done.stderr
    done = command("--task-file", fed_home / "pairs.toml", "--report-file", metrics_file)
    assert done.returncode == 0 and "no prompt shows it, for there is no feedback" in done.stderr
