"""strategies/*.sh and README's table of them; bench/strategies.py: arms that can be run, statistics by hand. No engine."""

import importlib
import json
import random
import re
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

import generate
from bench import strategies, strategies_report, truth
from gold.scores import SCORES
from gold.task import load_task

FILES = {path.stem: path.read_text().splitlines() for path in ROOT.glob("strategies/*.sh")}


def test_the_table_in_the_readme_is_made_of_the_first_lines_of_the_files():
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \|$", (ROOT / "README.md").read_text(), re.M)
    table = [row for row in rows if row[0] in FILES]
    assert sorted(table) == sorted((name, lines[0].removeprefix("# ")) for name, lines in FILES.items())


def test_a_strategy_says_what_it_selects_and_what_it_costs():
    for first, second, third, *rest in FILES.values():
        assert first.startswith("# ") and second.startswith("# Selects: ") and third.startswith("# Costs: ")
        assert len(rest) <= 10 and any(line.startswith("export POOL=") or " POOL=" in line for line in rest)


@pytest.mark.parametrize("arm", strategies.ARMS)
def test_an_arm_is_made_of_options_that_exist(arm):
    settings = strategies.ARMS[arm]
    assert settings.keys() <= strategies.DEFAULT.keys()
    full = strategies.DEFAULT | settings
    assert full["score"] in SCORES and 0 <= full["low"] < full["high"] <= 1 and full["iterations"] > 1
    assert full["pick"] in (None, "diverse", "uncertain_diverse", "truth")
    assert full["pool"] in (None, "train", "validation") and full["train_on"] in ("train", "selected", "validation")
    if full["feedback_label"] != "any":  # generate.py refuses it where there are no labels
        assert arm in strategies.NOT_FOR["word_problems"]
    if full["score"] in ("energy_first", "energy_sum", "energy_padded"):
        assert arm in strategies.NOT_FOR["bert"]
    for name in strategies.SAMPLING:
        assert name in generate.main.__annotations__


def test_another_design_is_another_run(monkeypatch):
    run = {
        "task": "reviews",
        "student": "t5",
        "label_noise": 0.0,
        "burst": 0.75,
        "size": 90,
        "seed": 0,
        "arm": "random",
    }
    first = strategies.design_of(run)
    assert first == strategies.design_of(run | {"seed": 3}) != strategies.design_of(run | {"arm": "chain"})
    monkeypatch.setitem(strategies.STEPS, "t5", (7, 7))
    assert strategies.design_of(run) != first


def test_farthest_first_by_hand():
    """Angles 0, 10, 90, 100 and 180 degrees: farthest from the mean (76 degrees) is 180, then 0, then 90."""
    import torch

    angles = torch.tensor([0.0, 10.0, 90.0, 100.0, 180.0]).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], dim=-1)
    records = [{"id": i, "label": "x"} for i in range(5)]
    for share, expected in ((0.2, [4]), (0.4, [4, 0]), (0.6, [4, 0, 2])):
        assert [r["id"] for r in strategies.diverse(records, points, share)] == expected


@pytest.mark.parametrize("name", ["reviews", "word_problems"])
def test_truth_of_clean_and_of_corrupted_examples(name):
    task = load_task(Path(f"prompts/{name}.toml"))
    grammar, rng = importlib.import_module(f"data.{name}_grammar"), random.Random(1)
    topics = rng.choices(list(grammar.WEIGHTS), k=200)
    clean = [grammar.make_example(rng, topic) for topic in topics]
    assert truth.noise_of(clean, task, grammar) == {"wrong": 0.0, "unreadable": 0.0}
    wrong = [grammar.corrupt(r) if i % 4 == 0 else r for i, r in enumerate(clean)]
    assert truth.noise_of(wrong, task, grammar) == {"wrong": 0.25, "unreadable": 0.0}
    even = truth.coverage([grammar.make_example(rng, t) for t in grammar.WEIGHTS], task, grammar)
    assert even["topics"] == len(grammar.WEIGHTS) and even["effective_topics"] == pytest.approx(len(grammar.WEIGHTS))
    assert truth.coverage([], task, grammar)["tail_share"] == 0


@pytest.mark.parametrize("name", ["reviews", "word_problems"])
def test_label_noise_of_a_teacher(name):
    """The share of wrong answers in the examples that its documents are made of; without noise the draws stay as they were."""
    from data import build_models

    task = load_task(Path(f"prompts/{name}.toml"))
    grammar, rng = importlib.import_module(f"data.{name}_grammar"), random.Random(2)
    topics = list(grammar.WEIGHTS)
    made = [build_models.make_noisy(rng, grammar, topics[i % len(topics)], 0.25) for i in range(2000)]
    assert truth.noise_of(made, task, grammar)["wrong"] == pytest.approx(0.25, abs=0.03)  # 3 standard errors
    plain, clean = random.Random(3), random.Random(3)
    for topic in topics:
        assert build_models.make_noisy(plain, grammar, topic, 0.0) == grammar.make_example(clean, topic)


def test_paired_differences_by_hand():
    """.1, .2 and .3 above the control: mean .2, deviation .1, t(2) = 4.3027, half-width 4.3027 * .1 / sqrt(3) = .2484."""
    runs = {("a", s): {"tail": 0.5 + d} for s, d in enumerate((0.1, 0.2, 0.3))}
    runs |= {("none", s): {"tail": 0.5} for s in range(4)}  # a seed that the arm has not yet
    found = strategies_report.differences(runs, "a", "none", "tail")
    assert found == pytest.approx([0.1, 0.2, 0.3])
    assert strategies_report.interval(found) == pytest.approx((0.2, 0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)
    assert strategies_report.interval([0.3]) == (0.3, 0.3, 0.3)


def test_names_are_checked_before_anything_is_built():
    for words, told in (
        (["reviews", "--arms", "nobody"], "no such arm: nobody"),
        (["reviews", "--student", "gpt"], "no student of reviews: gpt"),
        (["word_problems", "--student", "bert"], "no student of word_problems: bert"),
        (["chess"], "no such embedded task: chess"),
    ):
        done = CliRunner().invoke(strategies.app, words)
        assert done.exit_code == 2 and told in " ".join(done.output.replace("│", " ").split())


def test_a_line_of_results_is_reported():
    """The file that is committed makes the tables that are committed."""
    lines = [json.loads(line) for line in strategies.RESULTS.read_text().splitlines()]
    assert strategies_report.RESULTS.with_suffix(".md").read_text() == strategies_report.report(lines)
