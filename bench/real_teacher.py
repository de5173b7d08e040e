"""Does feedback help with a real LLM, on text that people wrote? Strategies at equal budget, seed by seed.

    python -m data.real_models; python -m data.prepare ag_news
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.real_teacher ag_news --seeds 0,2,4
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.real_teacher ag_news --seeds 1,3
    python -m bench.real_teacher ag_news --table                 # differences to zerogen, paired by seed; on the dev part
    python -m bench.real_teacher ag_news --table --part report   # once, at the end

Teacher SmolLM2-135M-Instruct, student MiniLM, through the stages' own functions with the settings of strategies/*.sh. A run
is one arm with one seed: --size accepted training examples in three rounds. Round 0 of a seed, its pool and its student
are shared by all arms; the pools of rounds 0 and 1 hold --pool examples each. The last student is trained on everything, for
a number of steps that follows from the number of examples; the last step is kept.

Budgets: (a) equal accepted examples: `zerogen` beside the others; (b) equal teacher tokens, pools counted: `zerogen+` and
`zerogen++`, which make MORE times as many examples.

A run is a line of bench/results/real_teacher.jsonl; finished runs are skipped, so a killed command is run again. Two
processes with one thread each make more of two cores than one with two.
"""

import contextlib
import json
import shlex
import statistics
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import generate
import label
import score_ood
from bench.human import RATE, Human, accuracy, classifier, load_human, measured
from bench.prompts import MAX_TOKENS, STUDENT, TEACHER, steps_for
from bench.prompts import WORK as CLASSIFIERS
from bench.stages import alone, keep_engine, lines_of, note, quietly, train
from bench.strategies_report import interval
from gold.examples import example_key, read_examples
from gold.jsonl import write_file
from gold.runs import git_state
from gold.task import Task, load_task
from gold.text import distinct_2

RESULTS, WORK = Path("bench/results/real_teacher.jsonl"), Path("runs/real_teacher")
REPORT = Path("bench/results/real_teacher_report.jsonl")  # accuracy of the same students on the report part
ROUNDS = 3
SAMPLING = {"min_p": 0.05}  # chosen by bench/prompts.py
DEV = 1200  # examples of the dev part that are measured
# How many times as many examples the controls at equal tokens make (sst2: zerogen with --verify 56,000 tokens, gold with it
# 89,000, gold 43,600)
MORE = {"zerogen+": 2.4, "zerogen++": 3.9}
# arm: (strategy, changes). They are the files of strategies/ unless a change says otherwise
ARMS: dict[str, tuple[str, dict]] = (
    {name: (name, {}) for name in ("zerogen", "random", "gold", "active", "uncertain", "tfidf", "random-train", "s3")}
    | {name: ("zerogen", {"more": times}) for name, times in MORE.items()}
    | {
        "gold, rate 1": ("gold", {"feedback_rate": 1.0}),
        "active, rate 1": ("active", {"feedback_rate": 1.0}),
        "gold, confirmed": ("gold", {"confirmed": True}),
        "active, confirmed": ("active", {"confirmed": True}),
        "gold, pool trained on": ("gold", {"train_on_pool": True}),
    }
    | {f"{name}, verify": (name, {"verify": True}) for name in ("zerogen", "random", "gold", "active", "s3")}
)


# Beside them: a student of people's examples, and the teacher's own labels, without and with calibration
BESIDE: dict[str, bool | None] = {"human": None, "teacher": False, "teacher, calibrated": True}


def options_of(text: str) -> dict[str, Any]:
    """ "--low 0.5 --score nll" as keyword arguments of a stage."""
    words = shlex.split(text)
    pairs = zip(words[::2], words[1::2], strict=True)
    return {k.removeprefix("--").replace("-", "_"): float(v) if v[0].isdigit() else v for k, v in pairs}


def strategy(name: str, human_file: Path) -> dict[str, Any]:
    """What a file of strategies/ sets: pool, SCORE_WITH, options of score_ood.py and of generate.py."""
    code = f'. strategies/{name}.sh; printf \'%s\\n\' "$POOL" "${{SCORE_WITH:-}}" "${{SELECT:-}}" "$FEEDBACK_ARGS"'
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=True, env={"HUMAN_FILE": str(human_file)}
    )
    pool, score_with, select, feedback = done.stdout.split("\n")[:4]
    return {"pool": pool, "score_with": score_with, "select": options_of(select), "feedback": options_of(feedback)}


def generate_round(task: Task, folder: Path, run: dict, n: int, pool: int, how: dict, before: list[Path]) -> None:
    quietly(
        generate.main, task.path, str(TEACHER), folder, num_examples=n, num_validation=pool, seed=run["seed"],
        exclude_file=before, max_attempts=20 * n, max_tokens=MAX_TOKENS, **SAMPLING, **how,
    )  # fmt: skip


def computed_tokens(path: Path) -> int:
    """What the teacher computed for a file of generated or labelled records."""
    return json.loads(path.with_name(path.name + ".run.json").read_text())["counts"]["computed_tokens"]


def round_0(root: Path, arm: str) -> Path:
    """The folder of an arm's first round, which arms without changes to it share."""
    changes = ARMS[arm][1]
    shared = "start, verify" if "verify" in changes else "start"
    return root / (arm if "more" in changes else shared) / "iter-00"


def run_arm(run: dict, task: Task, data: Human, root: Path) -> dict[str, Any]:
    """All rounds of one arm; the numbers of its line."""
    name, changes = ARMS[run["arm"]]
    human_file = root.parent / "human-150.jsonl"
    with alone(root.parent / "human-lock"):
        if not human_file.exists():
            write_file(human_file, data.human[-150:])
    how = strategy(name, human_file)
    n = round(run["size"] / ROUNDS * changes.get("more", 1))
    needs_pool, home = how["pool"] == "validation", root / run["arm"]
    start = round_0(root, run["arm"])
    always = {k: v for k, v in changes.items() if k == "verify"}
    steer = how["feedback"] | {k: v for k, v in changes.items() if k == "feedback_rate"}
    trained_on, feedback, pools, fed = [], [], [], []
    for i in range(ROUNDS):
        folder = start if i == 0 else home / f"iter-{i:02d}"
        with alone(root / "lock") if i == 0 else contextlib.nullcontext():
            pool_size = run["pool"] if i + 1 < ROUNDS and (needs_pool or ("more" not in changes and i == 0)) else 0
            generate_round(
                task, folder, run, n, pool_size, always | ({"feedback_file": feedback} | steer if i else {}),
                trained_on + pools,
            )  # fmt: skip
        trained_on.append(folder / "train.jsonl")
        if i + 1 == ROUNDS or how["pool"] == "none":
            continue
        student = folder / "student"
        if how["score_with"] == "student":
            size = sum(len(read_examples([path], task)) for path in trained_on)
            with alone(root / "lock"):
                train(task.path, STUDENT, trained_on, student, steps_for(size), run["seed"], {}, learning_rate=RATE)
        if needs_pool:
            pools.append(folder / "validation.jsonl")
        file = [pools[-1]] if needs_pool else trained_on if how["pool"] == "train" else [Path(how["pool"])]
        if changes.get("confirmed"):
            at = home / f"labelled-{i}.jsonl"
            quietly(label.main, task.path, str(TEACHER), file, at, seed=run["seed"])
            file = [at]
        feedback = [home / f"feedback-{i}.jsonl"]
        quietly(
            score_ood.main, task.path, file, home / f"scored-{i}.jsonl", feedback[0], seed=run["seed"],
            model=str(student) if how["score_with"] == "student" else None,
            train_file=trained_on if how["select"]["score"] in ("tfidf", "embedding") else None,
            confirmed=changes.get("confirmed", False), **how["select"],
        )  # fmt: skip
        fed += read_examples(feedback, task) if feedback[0].stat().st_size else []
    trained_on += pools if changes.get("train_on_pool") else []
    used = read_examples(trained_on, task)
    train(task.path, STUDENT, trained_on, home / "student", steps_for(len(used)), run["seed"], {}, learning_rate=RATE)
    last = measured(task, home / "student")
    judge = classifier(task, data, CLASSIFIERS / task.name / "classifier")
    keys = {example_key(task, e) for e in [*data.dev, *data.report]}
    return {
        "dev": round(accuracy(last, data.dev[:DEV]), 4),
        "trained_on": len(used), "pool_examples": run["pool"] * len(pools), "fed_back": len(fed),
        "tokens": sum(map(computed_tokens, {*trained_on, *pools, *home.glob("labelled-*.jsonl")})),
        "agreement": round(accuracy(judge, used), 4), "agreement_fed": round(accuracy(judge, fed), 4) if fed else None,
        "distinct_2": round(distinct_2([e["source"] for e in used], 8000), 4),
        "repeats_of_test": sum(example_key(task, e) in keys for e in used),
    }  # fmt: skip


def run_beside(run: dict, task: Task, data: Human, root: Path) -> dict[str, Any]:
    """A student of as many human examples; or the accuracy of the teacher's labels, which no seed changes."""
    home, dev = root / run["arm"], data.dev[:DEV]
    home.mkdir(parents=True, exist_ok=True)
    if run["arm"] != "human":
        return {"dev": teacher_accuracy(task, run["arm"], home / "dev.jsonl", dev)}
    begin, file = run["seed"] * run["size"], home / "train.jsonl"
    rows = data.human[begin : begin + run["size"]]
    write_file(file, rows)
    train(task.path, STUDENT, [file], home / "student", steps_for(run["size"]), run["seed"], {}, learning_rate=RATE)
    return {"dev": round(accuracy(measured(task, home / "student"), dev), 4), "trained_on": len(rows)}


def teacher_accuracy(task: Task, arm: str, file: Path, examples: list[dict]) -> float:
    """Share of the examples that label.py labels as people did."""
    labelled = file.with_suffix(".labelled.jsonl")
    write_file(file, examples)
    quietly(label.main, task.path, str(TEACHER), [file], labelled, calibrate=BESIDE[arm])
    right = [e["teacher_label"] == e[task.answer_field] for e in read_examples([labelled], task, use=["teacher_label"])]
    return round(sum(right) / len(right), 4)


def folder_of(run: dict) -> Path:
    """Of all arms of a seed."""
    return WORK / run["task"] / f"size{run['size']}-pool{run['pool']}-seed{run['seed']}"


def measure_report(task: Task, data: Human, runs: list[dict]) -> None:
    """Add `report`, the accuracy on the report part, to runs; what is not known yet is measured."""
    names = ("task", "size", "pool", "seed", "arm")
    known = {tuple(line[k] for k in names): line["report"] for line in lines_of(REPORT)}
    for run in runs:
        key = tuple(run[k] for k in names)
        if key not in known:
            home = folder_of(run) / run["arm"]
            if run["arm"].startswith("teacher"):
                known[key] = teacher_accuracy(task, run["arm"], home / "report.jsonl", data.report)
            else:
                known[key] = round(accuracy(measured(task, home / "student"), data.report), 4)
            note(REPORT, dict(zip(names, key, strict=True)) | {"report": known[key]})
        run["report"] = known[key]


def show_table(task: str, part: str, size: int, pool: int) -> None:
    """Mean by arm, and its difference to zerogen and to zerogen+ with a 95 % t-interval over the seeds that both have.

    The comparison that counts is gold minus zerogen (a) and minus the control with as many tokens (b); all others are looks.
    """
    lines = [line for line in lines_of(RESULTS) if (line["task"], line["size"], line["pool"]) == (task, size, pool)]
    runs = {(line["arm"], line["seed"]): line for line in lines}
    loaded = load_task(Path(f"prompts/{task}.toml"))
    data = load_human(loaded)
    if part == "report":
        measure_report(loaded, data, list(runs.values()))
    n = min(DEV, len(data.dev)) if part == "dev" else len(data.report)
    print(f"{task}, {size} examples, pools of {pool}, accuracy on {n} human texts of the {part} part")
    columns = f"{'tokens':>9}{'agreement':>11}{'of fed':>8}{'distinct-2':>12}{'repeats':>9}"
    minus = "".join(f"{'minus ' + control:<28}" for control in ("zerogen", *MORE))
    print(f"{'arm':<22}{'seeds':>6}{'accuracy':>10}  {minus}{columns}")
    for arm in dict.fromkeys(arm for arm, _ in runs):
        own = [line for (name, _), line in runs.items() if name == arm]
        gains = [difference(runs, arm, control, part) for control in ("zerogen", *MORE)]
        average = {
            key: mean_of(own, key)
            for key in (part, "tokens", "agreement", "agreement_fed", "distinct_2", "repeats_of_test")
        }
        print(
            f"{arm:<22}{len(own):>6}{average[part]:>10}  {''.join(f'{gain:<28}' for gain in gains)}{average['tokens']:>9}"
            f"{average['agreement']:>11}{average['agreement_fed']:>8}{average['distinct_2']:>12}{average['repeats_of_test']:>9}"
        )


def mean_of(lines: list[dict], key: str) -> str:
    values = [line[key] for line in lines if line.get(key) is not None]
    return "-" if not values else f"{statistics.mean(values):{',.0f' if key == 'tokens' else '.3f'}}"


def difference(runs: dict, arm: str, control: str, part: str) -> str:
    """Mean and 95 % t-interval, over the seeds that both have; of one seed no interval."""
    gain = [
        line[part] - runs[control, s][part] for (name, s), line in runs.items() if name == arm and (control, s) in runs
    ]
    if not gain or arm == control:
        return "-"
    mean, low, high = interval(gain)
    return f"{mean:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if len(gain) > 1 else " (one seed)")


def main(
    task: Annotated[str, typer.Argument(help="A task with human data in data/TASK.")],
    arms: Annotated[
        str, typer.Option(help="Names of ARMS and BESIDE, with semicolons between.")
    ] = "zerogen;random;gold;active",
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0",
    size: Annotated[int, typer.Option(help="Accepted training examples.")] = 600,
    pool: Annotated[int, typer.Option(help="Examples of a validation pool.")] = 100,
    table: Annotated[bool, typer.Option(help="Only print what is there.")] = False,
    part: Annotated[str, typer.Option(help="Of the table: dev or report.")] = "dev",
) -> None:
    """Run what has no line yet, seed by seed."""
    if table:
        return show_table(task, part, size, pool)
    loaded, names = load_task(Path(f"prompts/{task}.toml")), arms.split(";")
    data = load_human(loaded)
    with alone(WORK / task / "lock"):
        classifier(loaded, data, CLASSIFIERS / task / "classifier")
    keep_engine(str(TEACHER))
    code = git_state()  # of the code that is loaded
    for seed in map(int, seeds.split(",")):
        for arm in names:
            run = {"task": task, "size": size, "pool": pool, "seed": seed, "arm": arm}
            if any(all(line.get(k) == v for k, v in run.items()) for line in lines_of(RESULTS)):
                continue
            began = time.perf_counter()
            try:
                found = (run_beside if arm in BESIDE else run_arm)(run, loaded, data, folder_of(run))
            except RuntimeError as error:  # such as too few confirmed examples of a label
                print(f"{task} seed {seed} {arm}: {error}", flush=True)
                continue
            note(RESULTS, run | found | {"seconds": round(time.perf_counter() - began)} | code)
            print(f"{task} seed {seed} {arm}: dev {found['dev']}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
