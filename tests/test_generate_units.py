"""generate.py without vLLM's engine: which attempts are asked, what each shows, how prompts become token ids.

Then the whole stage with a scripted engine (the text follows from the request's seed), because a real one cannot be made
to give one completion of every kind of fault, or to be killed at every step. test_engine.py has the real one.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import pytest
from conftest import (
    FED_PAIRS,
    PAIRS,
    VARIED,
    Killed,
    by_seed,
    encoder_of,
    evaluate,
    metrics_in,
    pair,
    read_lines,
    write_lines,
)

import generate
from gold import attempts, runs, teacher
from gold.answers import mean_nll
from gold.attempts import Pools, draw_attempt, is_fed
from gold.engine import Engine
from gold.examples import example_key, read_examples
from gold.journal import Journal
from gold.metrics import report_text
from gold.prompts import Prompt, render_prompt
from gold.split import longest_need
from gold.task import load_task

# ---------------------------------------------------------------------------------------------------------------------
# One attempt

HOW = {"seed": 0, "num_fewshot": 3, "feedback_rate": 0.5, "num_feedback_shots": 2, "feedback_label": "any"}


@pytest.fixture(scope="module")
def pools():
    ranges = {"s": range(6), "f": range(20, 27), "t": range(30, 50)}
    return Pools(*([pair(n) | {"id": f"{letter}{n}"} for n in numbers] for letter, numbers in ranges.items()))


@pytest.fixture(scope="module")
def fed_home(home, tmp_path_factory):
    """pairs.toml with a feedback template."""
    folder = tmp_path_factory.mktemp("fed")
    (folder / "pairs.toml").write_text(FED_PAIRS, encoding="utf-8")
    (folder / "seed.jsonl").write_bytes((home / "seed.jsonl").read_bytes())
    return folder


def ids(attempt) -> list[str]:
    return [shot["id"] for shot in attempt.shown]


def test_sampling_seeds_are_of_31_bits_and_each_attempt_has_its_own(pairs, pools):
    """A CPU's generator takes 32 bits: of 100,000 seeds drawn at random two or three would be given twice."""
    for seed in (0, -3, 7):
        seeds = {
            a: draw_attempt(pairs, 2, "train", a, pools, HOW | {"seed": seed}).sampling_seed for a in (0, 1, 9, 10**6)
        }
        assert {drawn ^ a for a, drawn in seeds.items()} == {seeds[0]}  # so no two numbers have one seed
        assert all(0 <= drawn < 2**31 for drawn in seeds.values())


@pytest.mark.parametrize("option, value", [("--temperature", "2.1"), ("--validation-temperature", "-0.1")])
def test_a_temperature_that_vllm_would_refuse_is_a_bad_option(option, value, command):
    done = command(option, value)
    assert done.returncode == 2 and option in done.stderr


def test_many_attempts(pairs, pools):
    drawn = [draw_attempt(pairs, 1, "train", a, pools, HOW) for a in range(2000)]
    assert [a.label for a in drawn[:4]] == ["Warm", "not warm", "Warm", "not warm"]
    fed = [a for a in drawn if a.feedback]
    blocks = [len([a for a in fed if a.label == label]) / 4 for label in ("Warm", "not warm")]
    assert all(122 <= count <= 128 for count in blocks)  # half of 250
    for rate in (0.5, 0.3, 1.0, 0.0):  # the same share in every shard, whatever their number
        for shards in (1, 2, 4, 8):
            of_shard = [sum(is_fed(block, rate, "x") for block in range(i, 8000, shards)) for i in range(shards)]
            assert all(abs(count / (8000 / shards) - rate) < 0.06 for count in of_shard)
            assert sum(of_shard) == pytest.approx(8000 * rate, rel=0.01)
    for a in drawn:
        seeds, feedback = ids(a)[:3], ids(a)[3:]
        assert seeds == sorted(set(seeds)) and all(i[0] == "s" for i in seeds)
        assert len(set(feedback)) == len(feedback) == (2 if a.feedback else 0) and all(i[0] == "f" for i in feedback)
    shown = collections.Counter(i for a in drawn for i in ids(a))
    assert len(shown) == 6 + 7 and max(shown.values()) < 2 * shown["s0"]  # nobody is left out
    assert len({tuple(ids(a)[3:]) for a in fed}) > 30  # of 7 * 6 = 42 ordered pairs
    for first in range(0, 2000, 8):  # four attempts in a row at a label show the same
        assert all(len({tuple(ids(a)) for a in drawn[first + slot : first + 8 : 2]}) == 1 for slot in (0, 1))
    assert len({tuple(ids(a)[:3]) for a in drawn}) == 20
    rewritten = [draw_attempt(pairs, 1, "train", a, pools, HOW | {"rewrite": True}) for a in range(0, 80, 2)]
    assert len({tuple(ids(a)) for a in rewritten}) > 20
    few = Pools(pools.seed[:2], pools.feedback[:1])  # fewer than asked for
    assert ids(draw_attempt(pairs, 1, "train", 0, few, HOW | {"feedback_rate": 1.0})) == ["s0", "s1", "f20"]
    for a in range(20):  # more labels than shots
        [shot] = draw_attempt(pairs, 0, "train", a, Pools(pools.seed), HOW | {"num_fewshot": 1}).shots
        assert shot["label"] == drawn[a].label


def measured(task_file, folder, rows: list[tuple[str, str]]) -> dict:
    """What evaluate.py writes into metrics.json of (label, prediction) pairs."""
    lines = [pair(n) | {"id": f"v{n}", "label": label, "prediction": said} for n, (label, said) in enumerate(rows)]
    how = ("--prediction-field", "prediction", "--num-resamples", 100, "--overwrite")
    done = evaluate(task_file, write_lines(folder / "scored.jsonl", lines), folder / "report", *how)
    assert done.returncode == 0, done.stderr
    return metrics_in(folder / "report")


def test_report_by_hand(home, pairs, flip, tmp_path):
    """Warm: 3 asked for, 2 right, 1 no label. not warm: 5 asked for, 2 right, 3 answered Warm."""
    rows = [("Warm", "warm")] * 2 + [("Warm", "hot")] + [("not warm", "warm")] * 3 + [("not warm", "not warm")] * 2
    assert report_text(measured(home / "pairs.toml", tmp_path, rows), pairs) == (
        "Results of the small model on 8 examples: accuracy 0.50\n"
        "Warm: precision 0.40, recall 0.67, F1 0.50\n"  # 2 of 5, 2 of 3, 4 / (3 + 5)
        "not warm: precision 1.00, recall 0.40, F1 0.57\n"  # 2 of 2, 2 of 5, 4 / (5 + 2)
        "asked for not warm, answered Warm: 3 times\n"
        "asked for Warm, answered no label: 1 time"
    )
    assert report_text(measured(home / "pairs.toml", tmp_path, rows[:2]), pairs).splitlines()[1:] == [
        "Warm: precision 1.00, recall 1.00, F1 1.00"  # the other label does not occur, and nothing was confused
    ]
    metrics = {"task": "flip", "metric": "exact_match", "n": 1200, "overall": {"exact_match": {"value": 0.125}}}
    assert report_text(metrics, flip) == "Results of the small model on 1,200 examples: exact_match 0.12"


def test_report_of_many_labels_shows_the_worst(tmp_path):
    """Of label n, 10 - n are right and n are answered as the next: F1 falls with n, but that of l0 is lower again."""
    labels = "".join(f'l{n} = "the label {n}"\n' for n in range(8))
    (tmp_path / "many.toml").write_text(re.sub(r"Warm = (.*\n)+?(?=\[prompt)", labels, PAIRS))
    rows = [(f"l{n}", f"l{(n + (i < n)) % 8}") for n in range(8) for i in range(10)]
    metrics = measured(tmp_path / "many.toml", tmp_path, rows)
    lines = report_text(metrics, load_task(tmp_path / "many.toml")).splitlines()
    assert lines[0].endswith("80 examples: accuracy 0.65; the 5 labels with the lowest F1:") and len(lines) == 9
    f1 = {n: 2 * (10 - n) / (20 - n + (n - 1) % 8) for n in range(8)}
    worst = sorted(f1, key=f1.get)[:5]
    assert [(line.split(":")[0], line[-4:]) for line in lines[1:6]] == [(f"l{n}", f"{f1[n]:.2f}") for n in worst]
    assert lines[6:] == [f"asked for l{n}, answered l{(n + 1) % 8}: {n} times" for n in (7, 6, 5)]


# ---------------------------------------------------------------------------------------------------------------------
# Prompts as token ids

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
ONLY_USER = TURNS.replace("in messages", "in messages if m.role == 'user'")
REFUSAL = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
TEMPLATES = {  # name: (template, what becomes of system " Be brief. " and user "Say $ it.")
    "none": (None, "<s> Be brief. \n\nSay $ it."),
    "system role": ("{{ bos_token }}" + TURNS, "<s><system> Be brief. \n<user>Say $ it.\n<assistant>"),
    "refuses system": (REFUSAL + "{{ bos_token }}" + TURNS, "<s><user> Be brief. \n\nSay $ it.\n<assistant>"),
    "drops system": ("{{ bos_token }}" + ONLY_USER, "<s><user> Be brief. \n\nSay $ it.\n<assistant>"),
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
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<s>"])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_as_the_teacher_gets_them(name, tokenizer):
    tokenizer.chat_template, expected = TEMPLATES[name]
    found, without = encoder_of(tokenizer).encode([Prompt(" Be brief. ", "Say $ it."), Prompt("", "Say $ it.")])
    assert tokenizer.decode(found) == expected
    assert found.count(0) == expected.count("<s>")  # one BOS, never two
    assert tokenizer.decode(without) == re.sub(r"<system>.*\n| Be brief\. \n\n", "", expected)


def test_a_template_that_takes_no_turn_is_refused(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(SystemExit, match="error: --model: its chat template takes neither"):
        encoder_of(tokenizer).encode([Prompt("Be brief.", "Go.")])


def test_the_prior_of_verify_is_that_of_the_first_chunk(pairs, monkeypatch):
    """Chunk 1: .9 and .6 for Warm, one text asked for of each label; chunk 2 is divided by the same prior. Where it holds w
    times as much of Warm, the shares 9 / (9 + w) and 3 / (3 + 2 w) are balanced at a sum of 1: w^2 = 13.5."""
    shares, saved = iter([0.9, 0.6, 0.8]), []

    def labelled(engine, encoder, task, records, shots, **how):
        return [{"label_probs": {"Warm": (p := next(shares)), "not warm": 1 - p}} for _ in records]

    monkeypatch.setattr(generate, "label_records", labelled)
    monkeypatch.setattr(generate, "save_notes", lambda run: saved.append(dict(run.notes)))
    options = {"seed": 0, "max_tokens": 9, "verify": True, "calibrate": True}
    run = SimpleNamespace(notes={})
    split = SimpleNamespace(task=pairs, options=options, repeats=lambda key: None, pools=Pools([]), run=run)
    rows = [pair(n) | {"label": name, "reason": None} for n, name in enumerate(["Warm", "not warm", "Warm"])]
    generate.verify(split, rows[:2], None, Engine)
    kept = run.notes["prior"]
    assert kept[0] / kept[1] == pytest.approx(13.5**0.5, rel=1e-5)
    assert saved == [{"prior": kept}] and [r["reason"] for r in rows[:2]] == [None, None]
    generate.verify(split, rows[2:], None, Engine)
    assert run.notes["prior"] == kept and len(saved) == 1
    assert rows[2]["teacher_label"] == "Warm"
    assert rows[2]["label_probs"]["Warm"] == pytest.approx(4 / (4 + 13.5**0.5), abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The stage, with a scripted engine


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
    drawn = [draw_attempt(pairs, 0, "train", a, seeds, HOW) for a in range(10)]
    shot = drawn[2].shots[1]
    texts = [
        (" the sea\nSecond: sun", "stop"),
        (" the sea\nSecond: sun sun sun", "length"),
        (f" {shot['first'].upper()}\nSecond: {shot['second']}!", "stop"),
        (" The  sea\nSecond: SUN", "stop"),  # the label is another, the text is that of attempt 0
        ("Never.", "stop"),
        (" the ice\nSecond: snow", "stop"),
        (" the sea\nSecond:", "stop"),
        (" sea\nSecond: snow", "stop"),
        (" the sea\nSecond: one two three four five six seven", "stop"),
        ("", "error"),
    ]
    script = {a.sampling_seed: text for a, text in zip(drawn, texts, strict=True)}
    counts, accepted, rejected = generated(
        "--num-examples", 8, "--max-attempts", 50,
        answer=lambda seed: script.get(seed, (f" the {seed}\nSecond: frost", "stop")),
    )  # fmt: skip
    reasons = {number_of(r): r["reason"] for r in rejected}
    assert {n: reason for n, reason in reasons.items() if n < 10} == {
        1: "truncated", 2: "copied_shot", 3: "duplicate", 4: "no_match", 6: "empty_field", 7: "too_short", 8: "too_long",
        9: "engine_error",
    }  # fmt: skip
    assert {reason for n, reason in reasons.items() if n >= 10} <= {"surplus"}
    assert counts["rejected"] == collections.Counter(reasons.values())
    assert counts["attempted"] == 8 + len(rejected) and counts["completion_tokens"] == 3 * counts["attempted"]
    assert counts["accepted_by_label"] == {"Warm": 4, "not warm": 4}
    first = accepted[0]
    assert first == {
        "id": "pairs-00-train-000000", "first": "the sea", "second": "sun", "label": "Warm", "target": "Warm",
        "source": "pair: the sea with sun", "task": "pairs", "iteration": 0, "split": "train", "feedback": False,
        "shots": ids(drawn[0]), "sampling_seed": drawn[0].sampling_seed, "finish_reason": "stop", "completion": texts[0][0],
    }  # fmt: skip
    assert len(read_examples(tmp_path / "iter-00" / "train.jsonl", pairs)) == 8  # what was written can be read


def test_near_duplicates_of_accepted_texts_are_rejected(generated, home, tmp_path):
    """With [parse] max_overlap, against all that was excluded or accepted; short texts are not compared."""
    (home / "near.toml").write_text(
        PAIRS.replace("[parse]", "[parse]\nmax_overlap = 0.7").replace("second = 6", "second = 9")
    )
    write_lines(tmp_path / "old.jsonl", [{"first": "the sea", "second": "one two three four five six"}])
    how = ("--task-file", home / "near.toml", "--exclude-file", tmp_path / "old.jsonl", "--max-attempts", 200)
    words = "cloud rain snow wind hail frost".split()

    def answer(seed):  # texts of eight words that differ in one, of two kinds, and short ones
        if kind := {0: "one two three four five", 1: "six seven eight nine ten"}.get(seed % 4):
            return f" the sea\nSecond: {kind} {words[seed % 6]}", "stop"
        return (f" the {words[seed % 6]}\nSecond: {seed}", "stop")

    counts, accepted, rejected = generated(*how, "--num-examples", 30, answer=answer)
    near = [r for r in rejected if r["reason"] == "near_duplicate"]
    assert counts["rejected"]["near_duplicate"] == len(near) > 3 and {r["second"][:3] for r in near} == {"one", "six"}
    assert sorted(r["second"][:3] for r in accepted if not r["second"].isdigit()) == ["six"] and len(accepted) == 30
    generated(*how, "--num-examples", 20, answer=answer, folder="b")
    _, extended, _ = generated(*how, "--num-examples", 30, answer=answer, folder="b")
    assert sorted(r["second"][:3] for r in extended if not r["second"].isdigit()) == ["six"] and len(extended) == 30


def test_a_prompt_that_does_not_fit_is_rejected_and_the_others_go_on(generated, command, tmp_path):
    """Where none of the first ones fits, that is an error before anything is generated."""
    (tmp_path / "pairs.toml").write_text(PAIRS)
    seeds = [*(pair(n) | {"id": f"s{n}"} for n in range(6)), pair(7) | {"id": "long", "second": "sun " * 300}]
    write_lines(tmp_path / "seed.jsonl", seeds)
    how = ("--task-file", tmp_path / "pairs.toml", "--num-examples", 90, "--max-tokens", 32, "--num-fewshot", 2)
    counts, _, rejected = generated(*how, "--max-model-len", 300)
    too_long = [r for r in rejected if r["reason"] == "prompt_too_long"]
    assert counts["rejected"]["prompt_too_long"] == len(too_long) > 0
    assert all("long" in r["shots"] and r["completion"] is None for r in too_long)
    told = command(*how, "--max-model-len", 40, folder="b", answer=None).stderr
    assert re.search(r"error: .*the prompt has \d+ tokens and --max-tokens 32 .* the context holds 40", told)


def test_the_engine_has_several_chunks_while_one_is_read(generated, monkeypatch):
    """Outputs come in any order (here the last first) and are matched by their ids."""
    monkeypatch.setattr(generate, "CHUNK", 8)
    monkeypatch.setattr(attempts, "WINDOW", 20)
    sent, how = [], ("--num-examples", 60, "--max-attempts", 500)
    counts, accepted, rejected = generated(*how, answer=lambda seed: sent.append(seed) or by_seed(seed))
    assert counts["accepted_by_label"] == {"Warm": 30, "not warm": 30}
    assert len({(r["first"].lower(), r["second"].lower()) for r in accepted}) == 60
    for label in (0, 1):  # each attempt once, in turn
        mine = sorted(n for r in accepted + rejected if (n := number_of(r)) % 2 == label)
        assert mine == list(range(label, 2 * len(mine), 2))
    assert len(sent) == counts["attempted"] == len(accepted) + len(rejected)


def test_killed_at_any_write_and_run_again(generated, command, tmp_path, monkeypatch):
    """Within each write, or before that of the state: the files are those of a run that was not killed."""
    monkeypatch.setattr(generate, "CHUNK", 8)
    monkeypatch.setattr(attempts, "WINDOW", 20)
    how = ("--num-validation", 0, "--num-examples", 10, "--max-attempts", 500)
    told, *whole = generated(*how, folder="whole")

    def die(function, left, end):
        def write(*args):
            if next(left):
                return function(*args)
            if len(args) == 2:  # append_records(path, records)
                with args[0].open("a") as file:
                    file.write("".join(json.dumps(r) + "\n" for r in args[1])[:end])
            raise Killed

        return write

    for point in itertools.count():
        left = itertools.count(point, -1)
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for name in ("append_records", "save_notes"):
                patch.setattr(generate, name, die(getattr(generate, name), left, -20 if point % 2 else None))
            for name in ("save", "remove"):
                patch.setattr(Journal, name, die(getattr(Journal, name), left, None))
            if command(*how, folder=f"cut{point}"):
                break
        counts, *found = generated(*how, folder=f"cut{point}")
        assert found == whole, f"killed at write {point}"
        assert [counts[k] for k in ("attempted", "rejected")] == [told[k] for k in ("attempted", "rejected")]
        assert counts["completion_tokens"] <= told["completion_tokens"]
    assert point > 8  # four writes a chunk


def test_what_was_finished_before_a_kill_is_not_asked_for_again(generated, command, tmp_path, monkeypatch):
    """Not even where no chunk was saved. A torn line counts not, nor what was asked for otherwise."""
    monkeypatch.setattr(generate, "CHUNK", 8)
    monkeypatch.setattr(attempts, "WINDOW", 20)
    how = ("--num-validation", 0, "--num-examples", 30, "--max-attempts", 500, "--teacher-nll")
    told, *whole = generated(*how, folder="whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(generate, "settle", lambda *of: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            command(*how, folder="folder")
        command(*how, folder="cut")
    journal = tmp_path / "cut/train.jsonl.journal"
    kept = read_lines(journal)
    names = ["id", "text", "finish_reason", "teacher_nll", "tokens", "seconds", "request"]
    assert len(kept) == 20 and [*kept[0]] == names
    foreign = [{"id": 1}, {"id": "a", "text": None}, {name: kept[1][name] for name in kept[1] if name != "tokens"}]
    write_lines(journal, [kept[0] | {"request": "another"}, *foreign, *kept[2:]])
    with journal.open("a") as file:
        file.write('[]\n{"torn\n\x00\x00\n{"id": "torn')
    sent = []
    counts, *found = generated(*how, folder="cut", answer=lambda seed: sent.append(seed) or by_seed(seed))
    assert found == whole and counts == told
    assert len(sent) == counts["attempted"] - 18
    assert not journal.exists()
    folder = tmp_path / "folder/train.jsonl.journal"
    folder.unlink()
    folder.mkdir()
    assert "train.jsonl.journal: is a folder" in command(*how, folder="folder").stderr


@pytest.mark.parametrize("name", ["train.jsonl.partial", "train.rejected.jsonl.partial"])
def test_attempts_run_out_and_go_on(name, command, generated, tmp_path, monkeypatch):
    """The limit is a clear end and can be raised; what somebody threw away meanwhile is generated anew."""
    done = command("--num-examples", 20, "--num-validation", 0, "--max-attempts", 21)
    found = re.search(r"error: .*train\.jsonl: 21 attempts gave (\d+) of 20; rejected: (.*?)\.", done.stderr)
    assert done.returncode == 1 and int(found[1]) + sum(int(n) for n in re.findall(r"(\d+) [a-z_]+", found[2])) == 21
    (tmp_path / "iter-00" / name).unlink()
    counts, accepted, rejected = generated("--num-examples", 20)
    assert counts["accepted_by_label"] == {"Warm": 10, "not warm": 10}
    assert len(accepted) == 20 and len({r["id"] for r in accepted + rejected}) == counts["attempted"]
    # An extension whose engine does not start can be undone; one that has begun cannot
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patch:
        patch.setattr(teacher, "Engine", lambda *args, **options: 1 / 0)
        command("--num-examples", 30, "--num-validation", 0)
    assert generated("--num-examples", 20) == (counts, accepted, rejected)
    assert command("--num-examples", 30, "--num-validation", 0, "--max-attempts", 1).returncode == 1
    assert "was made with --num-examples 30, now 20" in command("--num-examples", 20, "--num-validation", 0).stderr


def test_extending_a_file_that_was_edited_by_hand(generated, command, pairs, tmp_path, monkeypatch):
    """Hand edits of a finished file are kept; what is added has ids of its own; and a kill in the middle changes nothing."""
    generated("--num-examples", 8, "--max-attempts", 100)
    path = tmp_path / "iter-00" / "train.jsonl"
    rows = read_lines(path)
    gone = {rows.pop(-1)["id"], rows.pop(2)["id"]}
    rows.insert(3, {"first": "my garden", "second": "melon", "label": "Warm"})
    rows.insert(1, {"first": "my lake", "second": "sledge", "label": "not warm", "id": "mine"})
    path.write_text("\n".join(map(json.dumps, rows)))  # as an editor leaves it, without a last line end
    how = ("--num-examples", 60, "--max-attempts", 2000)
    assert (
        "was made with --dtype auto, now float32" in command("--num-validation", 0, *how, "--dtype", "float32").stderr
    )
    saved = iter([None])  # at the second time, after the first chunk, it is killed
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(generate, "save_notes", lambda run: next(saved) or runs.save_notes(run))
        command(*how)
    counts, accepted, rejected = generated(*how)
    assert accepted[: len(rows)] == rows and len(accepted) == 60
    examples = read_examples(path, pairs)
    assert not {e["id"] for e in examples} & {r["id"] for r in rejected}
    assert len({example_key(pairs, e) for e in examples}) == 60
    assert {r["id"] for r in rejected if r["reason"] == "removed"} == gone
    assert counts["attempted"] == 60 + len(rejected)
    # More lines of the user's than are asked for: the counts are the file's
    lines = [{"first": f"my boat {n}", "second": "sledge", "label": "not warm"} for n in range(9)]
    write_lines(path, [*read_lines(path), *lines])
    how = ("--num-examples", 62, "--max-attempts", 2000)
    counts, accepted, rejected = generated(*how)
    by_label = {name: sum(r["label"] == name for r in accepted) for name in pairs.labels}
    assert counts["accepted"] == len(accepted) > 68 and counts["accepted_by_label"] == by_label
    assert counts["attempted"] == len(accepted) + len(rejected)
    assert "up to date" in command("--num-validation", 0, *how).stderr


def test_both_splits_of_an_iteration(command, pairs, tmp_path):
    """Texts of earlier files, and of this train.jsonl, come in neither."""
    assert command("--num-examples", 20).returncode == 0
    how = ("--exclude-file", tmp_path / "iter-00" / "train.jsonl", "--num-examples", 20)
    done = command(*how, folder="iter-03")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "iter-03").iterdir()} - {"README.md"} == {
        f"{split}{end}" for split in ("train", "validation") for end in (".jsonl", ".rejected.jsonl", ".jsonl.run.json")
    }
    names = ("iter-00/train", "iter-03/train", "iter-03/validation")
    first, train, validation = (read_lines(tmp_path / f"{name}.jsonl") for name in names)
    assert [len(train), len(validation)] == [20, 4] and {r["iteration"] for r in train + validation} == {3}
    assert all(re.fullmatch(r"pairs-03-train-0000\d\d", r["id"]) for r in train)
    assert all(set(r["shots"]) <= {t["id"] for t in train} and len(r["shots"]) == 2 for r in validation)
    assert len({example_key(pairs, r) for r in first + train + validation}) == 44
    assert command(*how, folder="iter-03").stderr.count("up to date") == 2
    # More training examples are fine, another validation temperature is not: such a command touches nothing
    before = {p: p.read_bytes() for p in (tmp_path / "iter-03").iterdir()}
    done = command(*how[:2], "--num-examples", 30, "--validation-temperature", 0.5, folder="iter-03")
    assert "validation.jsonl: was made with --validation-temperature 1.2, now 0.5" in done.stderr
    assert done.returncode == 1 and {p: p.read_bytes() for p in (tmp_path / "iter-03").iterdir()} == before


def test_an_unfinished_validation_notices_that_train_was_edited(command, tmp_path):
    """It shows training examples: those it has were generated from others than those that are to come."""
    train = tmp_path / "iter-00" / "train.jsonl"
    for limit in (20, 21):  # train is whole, validation is not
        done = command("--num-validation", 30, "--max-attempts", limit)
        assert done.returncode == 1 and "warning" not in done.stderr
    write_lines(train, read_lines(train)[1:])
    done = command("--num-validation", 30)
    assert done.returncode == 0, done.stderr
    assert f"warning: {train} has changed since {train.with_name('validation.jsonl')} was started" in done.stderr
    assert len(read_lines(train)) == 5 and "warning" not in command("--num-examples", 9, "--num-validation", 33).stderr


def test_a_pool_that_is_asked_for_later_leaves_the_training_examples(command, tmp_path):
    """As loop.sh does where ITERATIONS is raised: the iteration that was the last one had no pool."""
    assert command("--num-examples", 20, "--num-validation", 0).returncode == 0
    before = (tmp_path / "iter-00/train.jsonl").read_bytes()
    done = command("--num-examples", 20, "--num-validation", 10)
    assert done.returncode == 0 and f"up to date: {tmp_path}/iter-00/train.jsonl" in done.stderr, done.stderr
    assert (tmp_path / "iter-00/train.jsonl").read_bytes() == before
    assert len(read_lines(tmp_path / "iter-00/validation.jsonl")) == 10


def test_texts_without_answers(generated, command, home, models, tmp_path):
    """--unlabelled: one share, no answer in prompts and records; what label.py and other runs read of them."""
    form = "unlabelled = '''\n$shots\n\nAnother:\n\n$start'''\n[parse]"
    (tmp_path / "pairs.toml").write_text(PAIRS.replace("[parse]", form))
    (tmp_path / "seed.jsonl").write_bytes((home / "seed.jsonl").read_bytes())
    how = ("--task-file", tmp_path / "pairs.toml", "--unlabelled", "--max-attempts", 200)
    counts, accepted, rejected = generated(*how, "--num-examples", 20, folder="whole")
    assert len(accepted) == counts["accepted"] == 20 and counts["accepted_by_label"] is None
    fields = {"id", "first", "second", "source", "task", "iteration", "split", "feedback", "shots", "sampling_seed",
              "finish_reason", "completion"}  # fmt: skip
    assert all(set(r) == fields for r in accepted) and rejected
    assert not any("label" in r for r in rejected)
    numbers = sorted(map(number_of, accepted + rejected))
    assert numbers == list(range(len(numbers)))  # no label in turn: each number once
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "name: source" in card and "name: target" not in card and "name: label" not in card
    first = generated(*how, "--num-examples", 9)[1]
    extended = generated(*how, "--num-examples", 20)[1]
    assert first == accepted[:9] == extended[:9] and len({number_of(r) for r in extended}) == 20
    # Records without answers are duplicates of a labelled run too
    path = tmp_path / "whole" / "train.jsonl"
    _, labelled, again = generated("--exclude-file", path, "--num-examples", 20, "--max-attempts", 200, folder="other")
    assert all("label" in r for r in labelled) and "duplicate" in {r["reason"] for r in again}
    assert not {(r["first"].lower(), r["second"]) for r in labelled} & {
        (r["first"].lower(), r["second"]) for r in accepted
    }
    dry = command(*how, "--num-validation", 0, "--dry-run", "--structured", "--model", models["qwen2"])
    assert "Another:\n\nFirst:" in dry.stdout and "Kind" not in dry.stdout and "forced into" in dry.stdout, dry.stderr


@pytest.mark.parametrize("args, code, told", [
    ((), 1, "pairs.toml: prompt.unlabelled: missing"),
    (("--num-validation", 4), 2, "give --num-validation 0"),
    (("--verify",), 2, "no answer to compare"),
    (("--feedback-label", "same"), 2, "no label is asked for"),
    (("--report-file", "metrics.json"), 2, "no prompt shows any"),
])  # fmt: skip
def test_what_needs_answers_is_refused_beside_unlabelled(args, code, told, command, tmp_path):
    done = command("--unlabelled", "--num-validation", 0, *args)
    assert done.returncode == code and told in re.sub(r"[^!-~]+", " ", done.stderr), done.stderr
    assert not (tmp_path / "iter-00").exists()


def test_the_teachers_nll_changes_nothing_else(command, tmp_path):
    """The scripted tokens have log-probabilities of -1, -2 and -6: 3 nats a token."""
    for args in ((), ("--teacher-nll",)):
        assert command(*args, folder=f"f{len(args)}").returncode == 0
    for name in ("train", "train.rejected", "validation", "validation.rejected"):
        plain, scored = (read_lines(tmp_path / folder / f"{name}.jsonl") for folder in ("f0", "f1"))
        assert [r | {"teacher_nll": 3.0} for r in plain] == scored
    assert "name: teacher_nll\n    dtype: float64" in (tmp_path / "f1/README.md").read_text()


def test_mean_nll_in_the_forms_of_vllm_and_of_servers():
    tokens = [SimpleNamespace(logprob=-v) for v in (0.5, 1.5, 2.5)]
    forms = [
        [{n: token} for n, token in enumerate(tokens)],
        SimpleNamespace(token_logprobs=[-0.5, -1.5, -2.5]),
        SimpleNamespace(content=tokens),
    ]
    assert [mean_nll(SimpleNamespace(logprobs=form)) for form in forms] == [1.5] * 3
    for form in (None, [], SimpleNamespace(token_logprobs=None), SimpleNamespace(content=None), SimpleNamespace()):
        assert mean_nll(SimpleNamespace(logprobs=form)) is None


# ---------------------------------------------------------------------------------------------------------------------
# Feedback and the report


def test_feedback_is_shown_of_the_labels_asked_for(command, home, tmp_path):
    """Files that are empty, of a student that made no error, are said and are no feedback."""
    (tmp_path / "empty.jsonl").touch()
    write_lines(tmp_path / "warm.jsonl", [pair(n) | {"id": f"f{n}"} for n in (70, 72, 74)])
    empty, warm = (("--feedback-file", tmp_path / f"{name}.jsonl", "--feedback-rate", 1) for name in ("empty", "warm"))
    for which, labels in (("any", {"Warm", "not warm"}), ("same", {"Warm"}), ("other", {"not warm"})):
        done = command(*empty, *warm, "--feedback-label", which, folder=which)
        assert done.returncode == 0 and "empty.jsonl: is empty: no feedback from it" in done.stderr, done.stderr
        for r in itertools.chain(*both(tmp_path / which)):
            assert r["feedback"] == (r["label"] in labels) == all(i[0] == "f" for i in r["shots"][-2:])
            assert r.get("reason") != "prompt_too_long"  # the context that is taken holds any prompt
        assert not any(r["feedback"] for r in read_lines(tmp_path / which / "validation.jsonl"))
    again = command(*empty, *warm, folder="other")
    assert again.returncode == 1 and "--feedback-label other, now any" in again.stderr
    assert command(*empty).returncode == 0 and not any(r["feedback"] for r in both(tmp_path / "iter-00")[0])
    done = command("--task-file", home / "flip.toml", "--feedback-label", "same")
    assert done.returncode == 2 and "--feedback-label" in done.stderr and "text2text" in done.stderr


@pytest.fixture(scope="module")
def metrics(fed_home):
    """Of ten examples, those with an odd number answered as Warm."""
    return measured(fed_home / "pairs.toml", fed_home, [(pair(n)["label"], "warm") for n in range(10)])


@pytest.fixture
def reported(command, fed_home, metrics, tmp_path):
    """generate.py with a report file: what evaluate.py wrote, or the change of it."""

    def reported(*args, change=lambda metrics: metrics):
        (tmp_path / "metrics.json").write_text(json.dumps(change(metrics)))
        return command("--task-file", fed_home / "pairs.toml", "--report-file", tmp_path / "metrics.json", *args)

    return reported


def test_the_report_is_shown_beside_feedback(reported, command, models, fed_home, tmp_path):
    how = (
        "--feedback-file",
        write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in range(70, 75)]),
    )
    dry = (*how, "--dry-run", "--num-validation", 0, "--model", models["qwen2"])  # its tokenizer reads any byte
    report = (
        "\n\nResults of the small model on 10 examples: accuracy 0.50\nWarm: precision 0.50, recall 1.00, F1 0.67\n"
    )
    for shown, done in ((True, reported(*dry)), (False, command("--task-file", fed_home / "pairs.toml", *dry))):
        prompts = done.stdout.split("--- ")[1:]
        assert [", f7" in text.splitlines()[0] for text in prompts] == [False, False, True, True], done.stderr
        assert ["\n\nUnsure of:\n\nKind: " in text for text in prompts] == [False, False, True, True]
        assert [report in text for text in prompts] == [False, False, shown, shown]
        assert "\n\n\n" not in "".join(text.strip() for text in prompts[2:])
    assert reported(*how).returncode == 0 and "up to date" in reported(*how).stderr
    done = reported(*how, change=lambda m: m | {"n": 11})
    assert done.returncode == 1 and "train.jsonl: --report-file has changed" in done.stderr


@pytest.mark.parametrize("change, told", [
    (lambda m: m | {"task": "other"}, "it is of the task 'other', not of 'pairs'"),
    (lambda m: m | {"by_label": {"Cold": {}}}, "KeyError"),
    (lambda m: m | {"confusion": m["confusion"] | {"matrix": [[1, 2]]}}, "ValueError"),
    (lambda m: [m], "TypeError"),
])  # fmt: skip
def test_a_report_that_is_none(change, told, reported, tmp_path):
    done = reported(change=change)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: --report-file {tmp_path / 'metrics.json'}: ") and told in done.stderr
    assert not (tmp_path / "iter-00").exists()


def test_a_report_that_no_prompt_would_show(reported, home, tmp_path):
    done = reported("--task-file", home / "pairs.toml")
    assert done.returncode == 1 and f"error: {home / 'pairs.toml'}: prompt.feedback: has no $report" in done.stderr
    done = reported("--report-file", tmp_path / "none.json")
    assert done.returncode == 1 and "none.json: is no metrics.json of this task: FileNotFoundError" in done.stderr
    done = reported()
    assert done.returncode == 0 and "no prompt shows it, for there is no feedback" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# --attributes


@pytest.fixture(scope="module")
def varied_home(home, tmp_path_factory):
    """pairs.toml with attributes, which the train template alone shows."""
    folder = tmp_path_factory.mktemp("varied")
    (folder / "pairs.toml").write_text(VARIED, encoding="utf-8")
    (folder / "seed.jsonl").write_bytes((home / "seed.jsonl").read_bytes())
    return folder


@pytest.fixture(scope="module")
def varied(varied_home):
    return load_task(varied_home / "pairs.toml")


def test_attributes_are_drawn_beside_all_else(varied, pools):
    def values(seed: int, iteration: int, split: str) -> list[dict]:
        how = HOW | {"seed": seed}
        drawn = [draw_attempt(varied, iteration, split, a, pools, how | {"attributes": True}) for a in range(800)]
        plain = [draw_attempt(varied, iteration, split, a, pools, how) for a in range(800)]
        assert [dataclasses.replace(a, attributes={}) for a in drawn] == plain
        return [a.attributes for a in drawn]

    found = [values(*of) for of in ((0, 0, "train"), (1, 0, "train"), (0, 1, "train"), (0, 0, "validation"))]
    for i, some in enumerate(found):
        for other in found[:i]:  # of 400 attempts at Warm, about a quarter have the same two values by chance
            assert 60 < sum(a == b for a, b in zip(some[::2], other[::2], strict=True)) < 140
        warm = collections.Counter((a["size"], a["where"]) for a in some[::2])
        assert len(warm) == 4 and all(60 < count < 140 for count in warm.values())  # 100 each, sd 8.7
        cold = collections.Counter((a["size"], a["where"]) for a in some[1::2])
        assert set(cold) == {("two words", "on a hill"), ("three words", "on a hill")}
        assert all(160 < count < 240 for count in cold.values())


def test_attributes_stand_in_the_records_and_are_counted(generated, varied_home, varied, home, tmp_path):
    how = ("--task-file", varied_home / "pairs.toml", "--num-examples", 30)
    counts, *with_them = generated(*how, "--attributes")
    plain, *without = generated(*how, folder="plain")
    assert [[{k: v for k, v in r.items() if k != "attributes"} for r in rows] for rows in with_them] == without
    assert not any("attributes" in r for rows in without for r in rows) and "attributes" not in plain
    seeds, expected = Pools(read_examples(home / "seed.jsonl", varied)), {"size": {}, "where": {}}
    for kind, rows in zip(("accepted", "rejected"), with_them, strict=True):
        assert rows
        for r in rows:
            a = draw_attempt(varied, 0, "train", number_of(r), seeds, HOW | {"attributes": True})
            assert r["attributes"] == a.attributes
            for name, value in a.attributes.items():
                n = expected[name].setdefault(value, {"attempted": 0, "accepted": 0})
                n["attempted"] += 1
                n["accepted"] += kind == "accepted"
    assert counts["attributes"] == expected and counts["rejected"] == plain["rejected"]
    assert counts["prompt_tokens"] > plain["prompt_tokens"]
    assert len(expected["size"]) == 2 and len(expected["where"]) == 3
    card = (tmp_path / "iter-00/README.md").read_text()
    assert re.search(r"- name: attributes\n +struct:\n +- name: size\n +dtype: string\n +- name: where\n", card)
    assert "attributes" not in (tmp_path / "plain/README.md").read_text()


def test_the_context_that_is_taken_holds_the_longest_values(varied, pools, tokenizer):
    words = " ".join(["very"] * 60)
    given = {"size": ["two", f"{words} long"], "where": {"Warm": ["here"], "not warm": ["there", f"{words} far"]}}
    task = varied.model_copy(update={"prompt": varied.prompt.model_copy(update={"attributes": given})})
    how = HOW | {"max_tokens": 9, "verify": False, "max_model_len": None, "attributes": True, "num_passages": 2}
    drawn = [draw_attempt(task, 0, "train", a, pools, how) for a in range(400)]
    encoder = encoder_of(tokenizer)
    prompts = [
        render_prompt(task, "train", a.shots, a.label, feedback=a.feedback, attributes=a.attributes) for a in drawn
    ]
    longest = max(map(len, encoder.encode(prompts))) + 9
    needs = {on: longest_need(SimpleNamespace(task=task, options=how | {"attributes": on}, pools=pools, report=""), encoder)
             for on in (True, False)}  # fmt: skip
    assert needs[False] < longest <= needs[True] < longest + 200  # a token a byte; a value has 300


def test_attributes_are_shown_or_refused(command, varied_home, fed_home, models, tmp_path):
    task = varied_home / "pairs.toml"
    how = ("--task-file", task, "--model", models["qwen2"], "--attributes", "--dry-run")
    shown = command(*how, "--num-validation", 0)
    assert len(re.findall(r"\nIt has (?:two|three) words, (?:at sea|in a park|on a hill)\.\n\n", shown.stdout)) == 2
    feedback = write_lines(tmp_path / "feedback.jsonl", [pair(n) | {"id": f"f{n}"} for n in range(70, 75)])
    form = "[completion]" + PAIRS.split("[prompt]")[1].split("[parse]")[0].replace(
        'system = "You write pairs of things."', ""
    )
    others = {
        "fed.toml": VARIED.replace("[prompt.attributes]", "feedback = '$shots $feedback $start'\n[prompt.attributes]"),
        "list.toml": VARIED.replace("[parse]", f"{form}[parse]"),
    }
    for name, text in others.items():
        (varied_home / name).write_text(text)
    for path, args, told in (
        (fed_home / "pairs.toml", (), "prompt.attributes: missing: --attributes draws from it"),
        (task, (), "prompt.validation: has no $attributes to show --attributes in"),
        (
            varied_home / "fed.toml",
            ("--num-validation", 0, "--feedback-file", feedback),
            "prompt.feedback: has no $attri",
        ),
        (
            varied_home / "list.toml",
            ("--num-validation", 0, "--prompt-form", "completion"),
            "completion.train: has no $at",
        ),
    ):
        done = command(*how, "--task-file", path, *args)
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"error: {path}: {told}"), done.stderr
    assert command(*how, "--task-file", varied_home / "fed.toml", "--num-validation", 0).returncode == 0
