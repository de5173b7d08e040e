"""bench/real_data.py: its split, its filters and its table; the trainings themselves are the benchmark."""

import gzip
import json
import random

import pytest

from bench import real_data
from bench.real_data import draw, filter_rows, is_test, key_of, plan, split, tables


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """A folder of sets as --datasets wants it, made up here; the benchmark's own files go to the temporary folder too."""
    monkeypatch.setattr(real_data, "WORK", tmp_path / "work")

    def write(name: str, rows: list[dict]) -> None:
        path = tmp_path / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    return tmp_path, write


def test_rows_of_one_premise_stay_together(datasets):
    folder, write = datasets
    rows = [
        {"premise": f"Lamp {i} is lit.", "hypothesis": f"Sun {i}{j}.", "label": "entailment"}
        for i in range(400)
        for j in range(3)
    ]
    write("lamps/train", rows)
    task = real_data.prepare_task("rte", folder)
    train, test = split(folder, task, "lamps/train", None)
    assert len(train) + len(test) == 1200 and len(test) % 3 == 0 and 200 < len(test) < 400  # 300, 5 standard errors: 78
    assert not {r["premise"] for r in train} & {r["premise"] for r in test}
    shouted = {"premise": "LAMP 7 is lit!"}
    assert is_test(shouted, task) == is_test(rows[21], task)
    shared, others = split(folder, task, "lamps/train", None, {"lamp 3 is lit", "lamp 5 is lit"})
    assert {r["premise"] for r in shared} == {"Lamp 3 is lit.", "Lamp 5 is lit."} and len(others) == 1200 - 6


def test_no_test_text_is_trained_on(datasets):
    folder, write = datasets
    write("a/train", [{"text": "One lamp!", "label": "x"}, {"text": "Two lamps.", "label": "x"}])
    write("a/dev", [{"text": "one lamp", "label": "x"}])
    train, test = split(folder, real_data.prepare_task("sst2", folder), "a/train", "a/dev")
    assert [r["text"] for r in train] == ["Two lamps."] and [r["text"] for r in test] == ["one lamp"]


def test_filters_by_hand(datasets):
    task = real_data.prepare_task("tweet_sentiment", datasets[0])
    rows = [
        {"text": "The lamp is bright tonight.", "label": "positive"},
        {"text": "the lamp is BRIGHT tonight", "label": "positive"},  # again
        {"text": "A dim lamp.", "label": "negative"},  # under two labels: both go
        {"text": "A dim lamp!", "label": "neutral"},
        {"text": "Here are five texts:", "label": "neutral"},
        {"text": "<|eot_id|> A lamp.", "label": "neutral"},
        {"text": " ", "label": "neutral"},
        # 6 of 7 words in common is 12 / 14 = .86
        {"text": "my old lamp hums all night long", "label": "negative", "seed": "my new lamp hums all night long"},
        {"text": "my old lamp hums all night long too", "label": "negative", "seed": "something else is written here"},
        {"text": "a number as seed is a run", "label": "negative", "seed": 2},
    ]
    kept, found = filter_rows(rows, task)
    assert [rows.index(r) for r in kept] == [0, 8, 9]
    assert found == {
        "empty_field": 1, "no_match": 1, "debris": 1, "several_labels": 2, "duplicate": 1, "copied_shot": 1,
    }  # fmt: skip
    assert len(kept) + sum(found.values()) == len(rows)


def test_plan_has_each_run_once_and_first_seeds_first():
    keys = [key_of(run) for run in plan()]
    assert len(set(keys)) == len(keys)
    seeds = [run["seed"] for run in plan()]
    assert seeds == sorted(seeds)
    assert keys.index(("C", "clinc150", "dev_oos + train_oos", 0)) > keys.index(("A", "clinc150", "stages", 0))


def test_draw_is_of_the_seed():
    rows = [{"n": i} for i in range(50)]
    assert draw(rows, 10, 1) == draw(rows, 10, 1) != draw(rows, 10, 2)
    assert len({r["n"] for r in draw(rows, 10, 1)}) == 10 and len(draw(rows, 99, 0)) == 50


def test_plain_code_and_stages_learn_the_same_toy(datasets, models):
    """Words that tell the label: both ways get every example right; the steps are as many."""
    pairs = real_data.prepare_task("sst2", datasets[0])
    dice = random.Random(0)
    words = {"negative": "cold", "positive": "warm"}
    rows = [
        {"text": f"{words[label]} pair {dice.randint(1, 9)}", "label": label}
        for _ in range(40)
        for label in pairs.labels
    ]
    examples = real_data.examples_of(rows, pairs, "toy")
    options = real_data.BASE | {
        "learning_rate": 5e-3,
        "num_train_epochs": 4,
        "seed": 0,
        "per_device_train_batch_size": 8,
    }
    arguments = (pairs, str(models["bert"]), examples, examples, options)
    found = [real_data.by_stages(*arguments, datasets[0] / "student"), real_data.by_plain_code(*arguments)]
    assert [(sum(right), steps) for right, steps in found] == [(80, 40), (80, 40)]


def test_table_by_hand():
    line = {"part": "A", "data": "trec", "rows": 300, "n": 100, "low": 0.7, "high": 0.9}
    text = tables(
        [
            line | {"how": "stages", "seed": 0, "accuracy": 0.8},
            line | {"how": "stages", "seed": 1, "accuracy": 0.9},
            line | {"how": "plain", "seed": 0, "accuracy": 0.7},
        ]
    )
    # The difference is of the seeds that both have
    assert "| trec | 300 | 100 | 2 and 1 | 0.850 (0.800 - 0.900) | 0.700 | +0.100 | 0.100 |" in text
    assert "| sst2 |" not in text
