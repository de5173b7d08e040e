"""bench/real_data.py: its split, its filters and its table; the trainings themselves are the benchmark."""

import gzip
import json

import pytest

from bench import real_data


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """(a folder of sets as --datasets wants it, what writes one); the benchmark's own files go to a folder beside."""
    monkeypatch.setattr(real_data, "WORK", tmp_path / "work")

    def write(name: str, rows: list[dict]) -> None:
        path = tmp_path / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

    return tmp_path, write


def test_rows_of_one_premise_stay_together_and_no_test_text_is_trained_on(datasets):
    folder, write = datasets
    row = {"label": "entailment"}
    rows = [row | {"premise": f"Lamp {i} is lit.", "hypothesis": f"Sun {i}{j}."} for i in range(400) for j in range(3)]
    write("lamps/train", rows)
    task = real_data.prepare_task("rte", folder)
    train, test = real_data.split(folder, task, "lamps/train", None)
    assert len(train) + len(test) == 1200 and len(test) % 3 == 0 and 200 < len(test) < 400  # 300, 5 standard errors: 78
    assert not {r["premise"] for r in train} & {r["premise"] for r in test}
    assert real_data.is_test({"premise": "LAMP 7 is lit!"}, task) == real_data.is_test(rows[21], task)
    shared, others = real_data.split(folder, task, "lamps/train", None, {"lamp 3 is lit", "lamp 5 is lit"})
    assert {r["premise"] for r in shared} == {"Lamp 3 is lit.", "Lamp 5 is lit."} and len(others) == 1200 - 6
    write("a/train", [{"text": "One lamp!", "label": "x"}, {"text": "Two lamps.", "label": "x"}])
    write("a/dev", [{"text": "one lamp", "label": "x"}])
    train, test = real_data.split(folder, real_data.prepare_task("sst2", folder), "a/train", "a/dev")
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
    kept, rejected = real_data.filter_rows(rows, task)
    reasons = "empty_field no_match debris several_labels several_labels duplicate copied_shot".split()
    assert [rows.index(r) for r in kept] == [0, 8, 9]
    assert rejected == {reason: reasons.count(reason) for reason in reasons}


def test_plain_code_and_stages_learn_the_same_toy(datasets, models):
    """Words that tell the label: both ways get every example right; the steps are as many."""
    task, words = real_data.prepare_task("sst2", datasets[0]), {"negative": "cold", "positive": "warm"}
    rows = [{"text": f"{words[label]} pair {n % 9 + 1}", "label": label} for n in range(40) for label in task.labels]
    examples = real_data.examples_of(rows, task, "toy")
    options = {"learning_rate": 5e-3, "num_train_epochs": 4, "seed": 0, "per_device_train_batch_size": 8}
    arguments = (task, str(models["bert"]), examples, examples, real_data.BASE | options)
    results = [real_data.by_stages(*arguments, datasets[0] / "student"), real_data.by_plain_code(*arguments)]
    assert [(sum(correct), steps) for correct, steps in results] == [(80, 40), (80, 40)]


def test_table_by_hand():
    line = {"part": "A", "data": "trec", "rows": 300, "n": 100, "low": 0.7, "high": 0.9}
    runs = [("stages", 0, 0.8), ("stages", 1, 0.9), ("plain", 0, 0.7)]
    text = real_data.tables([line | {"how": how, "seed": seed, "accuracy": value} for how, seed, value in runs])
    # The difference is of the seeds that both have
    assert "| trec | 300 | 100 | 2 and 1 | 0.850 (0.800 - 0.900) | 0.700 | +0.100 | 0.100 |" in text
    assert "| sst2 |" not in text
