"""Tables and figure from the runs of bench/strategies.py.

    .venv/bin/python -m bench.strategies_report          # bench/results/strategies.md and strategies.png

Differences are paired by seed: the arm minus the control of the same seed, mean and 95 % t-interval over the seeds.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import typer

RESULTS = Path("bench/results/strategies.jsonl")
CHOSEN, FRESH = (
    "chain_tfidf_rate_1",
    10,
)  # the default of loop.sh, chosen on seeds below FRESH; those from it on confirm
SETTING = ("task", "student", "label_noise", "burst", "size")
# Budget (a): `size` accepted training examples, whatever the pools cost. Budget (b): as many generated tokens as the arms with
# pools need, those of the pools included
BUDGETS = {
    "a": ("equal accepted training examples", ("no_feedback", "random", "chain")),
    "b": ("equal generated tokens, to 10 %", ("no_feedback_b", "chain_b", "validation_in_training", "random")),
}
SHOWN = {  # column: (field, what it is)
    "accuracy": ("accuracy", "on the test set with as many examples of every topic"),
    "head": ("head", "of these, the six most frequent topics"),
    "tail": ("tail", "of these, the eighteen (word problems: fourteen) others"),
    "Zipf": ("zipf", "on the test set of natural frequency"),
    "topics": ("effective_topics", "effective number of topics in the training data, exp(entropy)"),
    "tail share": ("tail_share", "of the training data"),
    "follows": ("follows_last", "outputs of the topic of the last feedback example shown"),
    "wrong": ("wrong_in_training", "wrong answers in the training data, of those that the grammar can read"),
    "wrong fed": ("wrong_in_feedback", "wrong answers among the feedback examples"),
    "trained on": ("trained_on", "examples"),
    "tokens": ("completion_tokens", "generated, training and validation, rejected ones too"),
}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval of values of independent seeds; without a width for a single one."""
    from scipy import stats

    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def differences(runs: dict, arm: str, control: str, field: str) -> list[float]:
    """By seed: the arm's value minus the control's, where both are there."""
    seeds = sorted(seed for name, seed in runs if name == arm and (control, seed) in runs)
    return [runs[arm, seed][field] - runs[control, seed][field] for seed in seeds]


def setting_of(line: dict) -> tuple:
    """(task, student, label noise, burst, size, whether the seed is a fresh one)"""
    return (*(line[name] for name in SETTING), line["seed"] >= FRESH)


def settings(lines: list[dict]) -> dict[tuple, dict]:
    """Setting -> {(arm, seed): line}, of the runs that did not fail."""
    found: dict[tuple, dict] = defaultdict(dict)
    for line in lines:
        if "failed" not in line:
            found[setting_of(line)][line["arm"], line["seed"]] = line
    return dict(found)


def title(setting: tuple) -> str:
    task, student, noise, burst, size, fresh = setting
    follows = "" if burst else ", a teacher that does not follow its shots (burst 0)"
    return f"{task}, {student}, {size:,} examples, label noise {noise:g}{follows}{', fresh seeds' if fresh else ''}"


def cell(values: list) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    mean = statistics.mean(known)
    return f"{mean:,.0f}" if mean > 100 else f"{mean:.1f}" if mean > 1.5 else f"{mean:.3f}"


def signed(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if high > low else f"{mean:+.3f}"


def by_mean(arms: Iterable[str], values: Callable[[str], list[float]]) -> list[str]:
    """The arms in ascending order of the mean of their values, ties by name; those without values first."""
    return sorted(arms, key=lambda arm: (bool(values(arm)), statistics.mean(values(arm) or [0]), arm))


def within(runs: dict, setting: tuple, budget: str) -> set[str]:
    """The arms that keep to a budget, by the means of what they were trained on and what the teacher wrote."""
    size, arms = setting[4], {arm for arm, _ in runs}

    def mean(arm: str, field: str) -> float:
        return statistics.mean(line[field] for (name, _), line in runs.items() if name == arm)

    if budget == "a":
        return {arm for arm in arms if abs(mean(arm, "trained_on") / size - 1) < 0.02}
    if "random" not in arms:
        return set()
    tokens = mean("random", "completion_tokens")
    return {arm for arm in arms if abs(mean(arm, "completion_tokens") / tokens - 1) < 0.1}


def table_of(runs: dict, arms: set[str], controls: tuple[str, ...]) -> list[str]:
    """One row an arm, the best first: means over the seeds, then differences to the controls in accuracy and on the tail."""
    controls = tuple(c for c in controls if any(arm == c for arm, _ in runs))
    columns = [f"{field} - {c}" for c in controls for field in ("accuracy", "tail")]
    out = [f"| arm | seeds | {' | '.join(SHOWN)} | {' | '.join(columns)} |"]
    out.append("|---" * (2 + len(SHOWN) + len(columns)) + "|")
    for arm in by_mean(arms, lambda arm: [r["accuracy"] for (name, _), r in runs.items() if name == arm])[::-1]:
        own = [line for (name, _), line in sorted(runs.items()) if name == arm]
        row = [arm, str(len(own))] + [cell([line.get(field) for line in own]) for field, _ in SHOWN.values()]
        for control in controls:
            for field in ("accuracy", "tail"):
                found = differences(runs, arm, control, field)
                row.append(signed(interval(found)) if found and arm != control else "-")
        out.append(f"| {' | '.join(row)} |")
    return out


def scores_of(runs: dict) -> list[str]:
    """AUROC of each score on the first validation pool, means over the seeds, and wrong answers by decile of the energy."""
    found = [line["scores"] for (arm, _), line in sorted(runs.items()) if arm == "random" and "scores" in line]
    if not found:
        return []
    out = ["", "| score | student wrong | answer wrong | topic of the tail |", "|---|---|---|---|"]
    for name in dict.fromkeys(name for f in found for name in f["auroc"]):
        row = [
            [f["auroc"].get(name, {}).get(what) for f in found] for what in ("wrong_prediction", "wrong_answer", "tail")
        ]
        out.append(f"| {name} | {' | '.join(cell(values) for values in row)} |")
    deciles = [statistics.mean(f["wrong_answers_by_energy_decile"][i] for f in found) for i in range(10)]
    out += ["", f"Wrong answers by decile of the energy, the lowest first: {', '.join(f'{d:.3f}' for d in deciles)}."]
    return out


def chosen_table(lines: list[dict]) -> list[str]:
    """The default against the controls, a row a setting: at equal accepted examples (a) and at equal tokens (b)."""
    pairs = [(CHOSEN, c) for c in BUDGETS["a"][1]]
    pairs += [(f"{CHOSEN}_b", c) for c in ("no_feedback_b", "random", "chain_b", "random_and_pool")]
    budgets = ["(b)" if arm.endswith("_b") else "(a)" for arm, _ in pairs]
    out = [f"| setting | {' | '.join(f'{b} - {c}' for b, (_, c) in zip(budgets, pairs, strict=True))} | tail |"]
    out.append("|---" * (2 + len(pairs)) + "|")
    for setting, runs in sorted(settings(lines).items()):
        found = [differences(runs, *pair, "accuracy") for pair in pairs]
        tail = differences(runs, CHOSEN, "no_feedback", "tail")
        if any(found):
            cells = [f"{signed(interval(f))} ({len(f)})" if f else "-" for f in (*found, tail)]
            out.append(f"| {title(setting)} | {' | '.join(cells)} |")
    return out


def report(lines: list[dict]) -> str:
    out = [
        "# Strategies",
        "",
        "Made by `python -m bench.strategies_report` from `strategies.jsonl`, which has settings, hardware and versions",
        "(what a run and an arm are: `bench/strategies.py`). Cells are means over the seeds; differences are paired by seed,",
        "with 95 % t-intervals over the seeds. Columns:",
        "",
        *(f"- {name}: {what}" for name, (_, what) in SHOWN.items()),
        "",
        f"## The default, `{CHOSEN}`, minus the controls",
        "",
        f"Chosen on seeds below {FRESH}. Accuracy; how many seeds in brackets; tail: minus no feedback, (a).",
        "",
        *chosen_table(lines),
    ]  # fmt: skip
    for setting, runs in sorted(settings(lines).items()):
        out += ["", f"## {title(setting)}"]
        for untrained in {line["accuracy"] for (arm, _), line in runs.items() if arm == "untrained"}:
            out += ["", f"The untrained student: {untrained:.3f}."]
        for budget, (what, controls) in BUDGETS.items():
            if arms := within(runs, setting, budget) - {"untrained"}:
                out += ["", f"Budget ({budget}), {what}:", "", *table_of(runs, arms, controls)]
        other = {arm for arm, _ in runs} - {"untrained"} - within(runs, setting, "a") - within(runs, setting, "b")
        if other:
            out += ["", "In neither budget:", "", *table_of(runs, other, ())]
        if scores := scores_of(runs):
            out += [
                "",
                "AUROC of the scores of the first student on the first validation pool (by the truth):",
                *scores,
            ]
    runs = settings(lines)
    failed = [f for f in lines if "failed" in f and (f["arm"], f["seed"]) not in runs.get(setting_of(f), {})]
    if failed:
        out += ["", "## Runs that failed", "", "| setting | arm | seed | why |", "|---|---|---|---|"]
        out += [
            f"| {title(setting_of(f))} | {f['arm']} | {f['seed']} | {' '.join(f['failed'].split())[-200:]} |"
            for f in failed
        ]
    return "\n".join(out) + "\n"


def figure(lines: list[dict], path: Path) -> None:
    """Paired differences to no feedback: accuracy and tail, one panel a setting with two seeds or more."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    panels = [(s, runs) for s, runs in sorted(settings(lines).items()) if len({seed for _, seed in runs}) > 1]
    if not panels:
        return
    panels.sort(key=lambda panel: -len({arm for arm, _ in panel[1]}))  # rows of panels with about as many arms
    rows = [panels[i : i + 3] for i in range(0, len(panels), 3)]
    heights = [0.21 * max(len({arm for arm, _ in runs}) for _, runs in row) + 1.2 for row in rows]
    drawn, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=(5.2 * len(rows[0]), sum(heights)), squeeze=False, height_ratios=heights
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (setting, runs) in zip(axes.flat, panels, strict=False):
        gains = partial(differences, runs, control="no_feedback", field="accuracy")
        arms = by_mean({arm for arm, _ in runs} - {"no_feedback", "untrained"}, gains)
        for field, colour, shift in (("accuracy", "black", 0.12), ("tail", "tab:orange", -0.12)):
            points = [
                (i, interval(found))
                for i, arm in enumerate(arms)
                if (found := differences(runs, arm, "no_feedback", field))
            ]
            axis.errorbar(
                [m for _, (m, _, _) in points], [i + shift for i, _ in points],
                xerr=[[m - low for _, (m, low, _) in points], [high - m for _, (m, _, high) in points]],
                fmt="o", markersize=3, linewidth=1, color=colour, label=field,
            )  # fmt: skip
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(arms)), arms, fontsize=7)
        axis.set_title(title(setting), fontsize=8)
        axis.set_xlabel("minus no feedback, same seed", fontsize=8)
        axis.legend(fontsize=7, loc="lower right")
    drawn.tight_layout()
    drawn.savefig(path, dpi=110)


def main() -> None:
    """Write both; print the tables."""
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    RESULTS.with_suffix(".md").write_text(report(lines), encoding="utf-8")
    figure(lines, RESULTS.with_suffix(".png"))
    print(report(lines))


if __name__ == "__main__":
    typer.run(main)
