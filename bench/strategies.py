"""Which feedback helps? Every strategy at equal budget, on the embedded tasks, where the truth of each example is known.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m bench.strategies reviews --student t5 --arms screen --seeds 3
    ... --label-noise 0.25            # a teacher that learnt from documents with wrong answers
    ... --burst 0                     # one that does not follow the topics it is shown
    ... --arms full --size 600        # the arms that are compared in full (FULL), at one of SIZES
    ... --arms no_feedback,energy_top # or some by name
    .venv/bin/python -m bench.strategies_report         # tables and figure from the lines that are there

A run is one arm with one seed: `size` accepted training examples in three iterations, through the stages' own functions, with
one engine for the whole process. After all iterations but the last a student is trained and scores a validation pool, from
which the arm takes its feedback; the pools hold two thirds of `size` together. Arms of a seed that sample alike share
iteration 0, and all arms the seeds of the attempts. The
last student is trained on everything, for the same number of optimiser steps in every arm; all examples are trained on
and the last step is kept, since a choice of the epoch on a tenth that differs from arm to arm would drown the differences.
Budgets: (a) `size` accepted training examples; (b) what the validation pools cost is spent on training examples where no
pool is needed (arms with the suffix _b, and those that train on their pools).

A run is one line of bench/results/strategies.jsonl; finished runs are skipped, so a killed command is simply run again. Files
are kept in runs/strategies. Two processes with one thread each make more of two cores than one process with two threads.
"""

import contextlib
import hashlib
import importlib
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import evaluate
import generate
import label
import score_ood
from bench.stages import BATCH, LEARNING_RATE, alone, keep_engine, lines_of, note, quietly, train
from bench.truth import coverage, followed, noise_of, scores_against_truth, topic_of, true
from gold.command import say
from gold.examples import read_examples
from gold.jsonl import read_records, write_file
from gold.nearest import tfidf_distances
from gold.predict import score_examples
from gold.runs import git_state, versions
from gold.selection import select_feedback
from gold.stopping import STOPPED
from gold.student import lengths_of, load_trained
from gold.task import Task, load_task

WORK, RESULTS = Path("runs/strategies"), Path("bench/results/strategies.jsonl")

# Optimiser steps of the last student, and of those between. A student that writes needs more: with 300 it is these that
# bound a T5 on the word problems, whatever the examples (.32 with 1,200 examples, .31 with 2,000)
STEPS = {"bert": (300, 200), "t5": (900, 400), "llama": (900, 400)}
SIZES = (600, 1200, 2400)


# ---------------------------------------------------------------------------------------------------------------------
# Arms: what each does differently from DEFAULT

DEFAULT = {
    "iterations": 3,
    "pool": "validation",  # what feedback is taken from: validation, train (all of it so far, no student), None
    "score": "energy", "low": 0.8, "high": 1.0, "max_overlap": 1.0, "confirmed": False,
    "pick": None,  # a selection of this file instead (PICKS)
    "rounds": "newest",  # or all: feedback of earlier iterations stays
    "feedback_rate": 0.5, "num_feedback_shots": 2, "feedback_label": "any",
    "temperature": 1.0, "min_p": 0.0, "top_k": 0, "validation_temperature": 1.2,
    "more": 1.0,  # times as many training examples: 5 / 3 is what the two pools cost
    "train_on": "train",  # also the selected ones, or all validation examples
    "prompt": True,  # False: the selected ones are not shown
    "loss": {},
    "best_epoch": False,
}  # fmt: skip
SAMPLING = ("feedback_rate", "num_feedback_shots", "feedback_label", "temperature", "min_p", "top_k")
SAMPLING += ("validation_temperature",)
NONE = {"pool": None}
B = {"more": 5 / 3}
CHAIN = {"pool": "train", "score": "random", "low": 0.0}
TOP = {"score": "msp"}
WITH_POOL = {"train_on": "validation"}
CONTROLS = {
    "untrained": NONE,
    "no_feedback": NONE,
    "no_feedback_b": NONE | B,
    "no_feedback_hot": NONE | {"temperature": 1.2},
    "chain": CHAIN,
    "chain_b": CHAIN | B,
    "random": {"score": "random"},
    "selected_in_training": TOP | {"train_on": "selected", "prompt": False},
    "validation_in_training": NONE | WITH_POOL | {"pool": "validation", "prompt": False},
}
STRATEGIES = {
    "energy_band": {"low": 0.5, "high": 0.8},  # the paper's
    "energy_top": {},
    "energy_first_top": {"score": "energy_first"},
    "energy_sum_top": {"score": "energy_sum"},
    "energy_padded_top": {"score": "energy_padded"},
    "energy_delta_top": {"score": "energy_delta"},
    "nll_top": {"score": "nll"},
    "msp_band": TOP | {"low": 0.5, "high": 0.8},
    "msp_top": TOP,
    "entropy_top": {"score": "entropy"},
    "margin_top": {"score": "margin"},
    "embedding_top": {"score": "embedding"},
    "tfidf_top": {"score": "tfidf"},
    "tfidf_top_rate_1": {"score": "tfidf", "feedback_rate": 1.0},
    "tfidf_top_and_pool": {"score": "tfidf"} | WITH_POOL,
    "tfidf_top_rate_1_and_pool": {"score": "tfidf", "feedback_rate": 1.0} | WITH_POOL,
    # Of the training examples themselves, without pool or student: those far from all others
    "chain_tfidf": {"pool": "train", "score": "tfidf"},
    "chain_tfidf_b": {"pool": "train", "score": "tfidf"} | B,
    "chain_tfidf_rate_1": {"pool": "train", "score": "tfidf", "feedback_rate": 1.0},
    "chain_tfidf_rate_1_b": {"pool": "train", "score": "tfidf", "feedback_rate": 1.0} | B,
    "msp_top_pool_T1": TOP | {"validation_temperature": 1.0},
    "error": {"score": "error", "low": 0.0},
    "hard_negative": {"score": "hard_negative", "low": 0.5},
    "msp_top_confirmed": TOP | {"confirmed": True},
    "msp_top_apart": TOP | {"max_overlap": 0.4},
    "msp_top_diverse": {"pick": "uncertain_diverse"},
    "diverse": {"pick": "diverse"},
    "msp_top_all_rounds": TOP | {"rounds": "all"},
    "msp_top_rate_1": TOP | {"feedback_rate": 1.0},
    "msp_top_shots_1": TOP | {"num_feedback_shots": 1},
    "msp_top_shots_4": TOP | {"num_feedback_shots": 4},
    "msp_top_same_label": TOP | {"feedback_label": "same"},
    "msp_top_other_label": TOP | {"feedback_label": "other"},
    "energy_band_rate_1": {"low": 0.5, "high": 0.8, "feedback_rate": 1.0},
    "energy_top_rate_1": {"feedback_rate": 1.0},
    "embedding_top_rate_1": {"score": "embedding", "feedback_rate": 1.0},
    "msp_top_rate_1_in_6": TOP | {"feedback_rate": 1.0, "iterations": 6},
    "chain_rate_1_in_6": CHAIN | {"feedback_rate": 1.0, "iterations": 6},
    "random_rate_1": {"score": "random", "feedback_rate": 1.0},
    "chain_rate_1": CHAIN | {"feedback_rate": 1.0},
    "chain_rate_1_b": CHAIN | {"feedback_rate": 1.0} | B,
    # What is scored is trained on afterwards, so that the pool costs nothing
    "random_and_pool": {"score": "random"} | WITH_POOL,
    "energy_band_and_pool": {"low": 0.5, "high": 0.8} | WITH_POOL,
    "energy_top_and_pool": WITH_POOL,
    "msp_top_and_pool": TOP | WITH_POOL,
    "msp_top_rate_1_and_pool": TOP | WITH_POOL | {"feedback_rate": 1.0},
    "msp_top_diverse_and_pool": WITH_POOL | {"pick": "uncertain_diverse", "feedback_rate": 1.0},
    "diverse_and_pool": WITH_POOL | {"pick": "diverse", "feedback_rate": 1.0},
    # Sampling and losses, without feedback
    "min_p": NONE | {"min_p": 0.05, "temperature": 1.3},
    "top_k_10": NONE | {"top_k": 10, "temperature": 0.8},
    "sce": NONE | {"loss": {"loss": "sce"}},
    # As train_student.py does: a tenth is held out, and the best epoch on it is kept
    "best_epoch": NONE | {"best_epoch": True},
    "random_best_epoch": {"score": "random", "best_epoch": True},
    # What the truth would choose: topics of the tail with a right answer. No strategy: the most that following can give
    "truth_top": {"pick": "truth"},
    "truth_top_rate_1": {"pick": "truth", "feedback_rate": 1.0},
}  # fmt: skip
ARMS = CONTROLS | STRATEGIES
# Not for every setting: reductions that an encoder has not, and scores that rank as msp does where there are two classes;
# the embedded teacher of the reviews labels at chance; word problems have no labels
REDUCTIONS = ("energy_first_top", "energy_sum_top", "energy_padded_top")
NOT_FOR = {
    "bert": (*REDUCTIONS, "entropy_top", "margin_top"), "llama": ("energy_padded_top",),
    "reviews": ("msp_top_confirmed",), "word_problems": ("msp_top_same_label", "msp_top_other_label"),
}  # fmt: skip
FULL = list(CONTROLS)  # and the best four of the screen

# ---------------------------------------------------------------------------------------------------------------------
# Selections that the toolkit does not have


def diverse(records: list[dict], points: Any, share: float) -> list[dict]:
    """Farthest-first traversal (k-centre, Sener & Savarese 2018): `share` of the records of each label, far apart by cosine."""
    import torch

    points, chosen = torch.nn.functional.normalize(points, dim=-1), []
    for name in sorted({r.get("label", "") for r in records}):
        own = [i for i, r in enumerate(records) if r.get("label", "") == name]
        near = points[own] @ points[own].mean(0)
        picked = [int(near.argmin())]
        closest = points[own] @ points[own[picked[0]]]
        while len(picked) < math.ceil(share * len(own)):
            picked.append(int(closest.argmin()))
            closest = torch.maximum(closest, points[own] @ points[own[picked[-1]]])
        chosen += [records[own[k]] for k in picked]
    return chosen


def pick(way: str, records: list[dict], task: Task, grammar: Any, student: str) -> list[dict]:
    """What a selection of this file takes from scored records: a fifth of the pool, as the top fifth of a score is; truth:
    all examples of the tail with a right answer."""
    if way == "truth":
        return [
            r
            for r in records
            if grammar.group_of(topic_of(r, task, grammar) or "") == "tail" and true(r, task, grammar)
        ]
    if way == "uncertain_diverse":
        records, _ = select_feedback(records, task, "msp", 0.5, 1.0)
    trained = load_trained(student, task, lengths_of(student), "float32")
    _, points = score_examples(trained, records, 64, embed=True, decode=False)
    return diverse(records, points, 0.4 if way == "uncertain_diverse" else 0.2)


# ---------------------------------------------------------------------------------------------------------------------
# Stages


def build(task: str, name: str, noise: float, burst: float) -> Path:
    """The folder of a teacher, or of a student base; built when it is missing."""
    from data import build_models

    folder = WORK / "models" / (f"{task}-noise{noise:g}-burst{burst:g}" if name == "teacher" else task)
    more = {"label_noise": noise, "burst": burst} if name == "teacher" else {}
    quietly(
        build_models.main,
        task, [name], output_dir=folder, steps=None, seed=0, overwrite=False,
        **({"label_noise": 0.0, "burst": 0.75} | more),
    )  # fmt: skip
    return folder / name


def measure(task_file: Path, model: Path, folder: Path) -> dict[str, float]:
    """Accuracy (text2text: the task's metric) on both test sets, and on the head and the tail of the balanced one."""
    right: dict[str, list[bool]] = {}
    for name in ("test", "test_zipf"):
        test = Path("data") / task_file.stem / f"{name}.jsonl"
        quietly(evaluate.main, task_file, [test], folder / name, model=str(model), group_by="group", num_resamples=100)
        for _, r in read_records(folder / name / "predictions.jsonl"):
            for key in ("accuracy", r["group"]) if name == "test" else ("zipf",):
                right.setdefault(key, []).append(r["correct"])
    return {key: sum(v) / len(v) for key, v in right.items()}


# ---------------------------------------------------------------------------------------------------------------------
# One run


def run_arm(run: dict, models: dict[str, Path], root: Path) -> dict[str, Any]:
    """All iterations of one arm; the numbers of its line. Iteration 0 and its student are kept where they are there."""
    arm = DEFAULT | ARMS[run["arm"]]
    task_file = Path("prompts") / f"{run['task']}.toml"
    task, grammar = load_task(task_file), importlib.import_module(f"data.{run['task']}_grammar")
    if run["arm"] == "untrained":
        return {"trained_on": 0, "completion_tokens": 0} | measure(
            task_file, models[run["student"]], root / run["student"] / "untrained"
        )
    n = round(run["size"] / arm["iterations"] * arm["more"])
    pool_size = round(run["size"] * 2 / 3 / (arm["iterations"] - 1)) if arm["pool"] == "validation" else 0
    home = root / run["student"] / run["arm"]
    shared = "-".join(map(str, [run["student"], STEPS[run["student"]][1], BATCH, LEARNING_RATE]))  # the first student
    alike = [f"{name}={arm[name]:g}" for name in ("temperature", "min_p", "top_k") if arm[name] != DEFAULT[name]]
    alike += [f"pool{pool_size}at{arm['validation_temperature']:g}"] * bool(pool_size)
    start = root / "start" / "-".join([str(n), *alike]) / "iter-00"
    shutil.rmtree(home, ignore_errors=True)  # of a run that was cut off, or of another design
    began = time.perf_counter()
    trained_on: list[Path] = []
    feedback: list[Path] = []
    pools: list[Path] = []
    shown = {r["id"]: r for r in read_examples(task.seed_examples, task)}
    made: list[dict] = []
    fed: list[dict] = []
    for i in range(arm["iterations"]):
        folder = start if i == 0 else home / f"iter-{i:02d}"
        last = i == arm["iterations"] - 1
        # Iteration 0 has no feedback, and is shared by arms that differ in it
        how = {name: (DEFAULT if i == 0 and "feedback" in name else arm)[name] for name in SAMPLING}
        with alone(root / "lock") if i == 0 else contextlib.nullcontext():
            quietly(
                generate.main, task_file, str(models["teacher"]), folder, feedback_file=feedback,
                exclude_file=[*(path for path in trained_on if path.name == "train.jsonl"), *pools], num_examples=n,
                num_validation=0 if last else pool_size, max_attempts=40 * n, seed=run["seed"], **how,
            )  # fmt: skip
        examples = read_examples(folder / "train.jsonl", task)
        made += examples
        shown |= {r["id"]: r for r in examples}
        trained_on = [*trained_on, folder / "train.jsonl"]
        if last:
            break
        if arm["pool"] == "train":
            pool = read_examples(trained_on, task)
            file = trained_on
            if arm["score"] == "tfidf":
                distances = tfidf_distances(pool, pool)
                pool = [e | {"tfidf": distance} for e, distance in zip(pool, distances, strict=True)]
                pool, _ = select_feedback(pool, task, "tfidf", arm["low"], arm["high"])
                home.mkdir(parents=True, exist_ok=True)
                file = [home / f"feedback-{i:02d}.jsonl"]
                write_file(file[0], pool)
            feedback = file
            fed += pool
        elif arm["pool"] == "validation":
            pools.append(folder / "validation.jsonl")
            shown |= {r["id"]: r for r in read_examples(pools[-1], task)}
            if not arm["prompt"] and arm["train_on"] == "validation":  # no student chooses
                continue
            at = folder.parent / shared if i == 0 else folder
            more = [*trained_on, *(pools[:-1] if arm["train_on"] == "validation" else [])]
            train(task_file, models[run["student"]], more, at / "student", STEPS[run["student"]][1], run["seed"], {})
            # energy_padded is dear, so only where it is asked for
            pool = pools[-1]
            if arm["confirmed"]:
                pool = at / "labelled.jsonl"
                quietly(label.main, task_file, str(models["teacher"]), [pools[-1]], pool, seed=run["seed"])
            padded = run["student"] != "bert" and arm["score"] == "energy_padded"
            name = "scored" + ("_padded" if padded else "") + ("_labelled" if arm["confirmed"] else "")
            scored = at / f"{name}.jsonl"
            quietly(
                score_ood.main, task_file, [pool], scored, model=str(at / "student"),
                base_model=str(models[run["student"]]), train_file=more, seed=run["seed"],
                score="energy_padded" if padded else "energy", max_target_length=32 if padded else 128,
            )  # fmt: skip
            records = [r for _, r in read_records(scored)]
            if arm["pick"]:
                selected = pick(arm["pick"], records, task, grammar, str(at / "student"))
            else:
                selected, _ = select_feedback(
                    records, task, arm["score"], arm["low"], arm["high"], arm["confirmed"], arm["max_overlap"]
                )
            home.mkdir(parents=True, exist_ok=True)
            file = home / f"feedback-{i:02d}.jsonl"
            write_file(file, selected)
            fed += selected
            if arm["prompt"]:
                feedback = [*(feedback if arm["rounds"] == "all" else []), *([file] if selected else [])]
            if arm["train_on"] == "selected":
                trained_on.append(file)
    if arm["train_on"] == "validation":
        trained_on += pools
    student = home / "student"
    steps, _ = STEPS[run["student"]]
    train(task_file, models[run["student"]], trained_on, student, steps, run["seed"], arm["loss"], arm["best_epoch"])
    used = read_examples(trained_on, task)
    records = [json.loads(p.read_text()) for d in [start, *home.glob("iter-*")] for p in d.glob("*.jsonl.run.json")]
    records = [r for r in records if r["stage"] == "generate.py" and not r["output"].startswith("scored")]
    cost = {key: sum(r["counts"][key] for r in records) for key in ("attempted", "prompt_tokens", "completion_tokens")}
    for path in home.glob("**/labelled.jsonl.run.json") if arm["confirmed"] else []:
        cost["prompt_tokens"] += json.loads(path.read_text())["counts"]["prompt_tokens"]
    line = measure(task_file, student, home) | {
        "trained_on": len(used), "validation": pool_size * (arm["iterations"] - 1), **cost,
        **coverage(used, task, grammar), **{f"{k}_in_training": v for k, v in noise_of(used, task, grammar).items()},
        **{f"{k}_in_feedback": v for k, v in (noise_of(fed, task, grammar) if fed else {}).items()},
        "fed_back": len(fed), **followed(made, shown, task, grammar), "seconds": time.perf_counter() - began,
    }  # fmt: skip
    if (scored := start.parent / shared / "scored.jsonl").exists() and run["arm"] == "random":
        line["scores"] = scores_against_truth([r for _, r in read_records(scored)], task, grammar)
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}


def design_of(run: dict) -> str:
    """A hash of all that makes a run what it is, so that one made otherwise is no run of this arm; what is off is left out,
    so that a new setting that is off by default makes no new runs."""
    constants = (BATCH, *STEPS[run["student"]], LEARNING_RATE)
    told = {name: value for name, value in (DEFAULT | ARMS[run["arm"]]).items() if value}
    return hashlib.sha256(json.dumps([told, constants], sort_keys=True).encode()).hexdigest()[:8]


def key_of(line: dict) -> tuple:
    return tuple(line[name] for name in ("task", "student", "label_noise", "burst", "size", "seed", "arm", "design"))


# ---------------------------------------------------------------------------------------------------------------------
# Command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[str, typer.Argument(help="reviews or word_problems.")],
    student: Annotated[str, typer.Option(help="t5, bert or llama.")] = "t5",
    label_noise: Annotated[float, typer.Option(min=0, max=1, help="Of the documents that taught the teacher.")] = 0.0,
    burst: Annotated[float, typer.Option(min=0, max=1, help="How well the teacher follows the shots.")] = 0.75,
    size: Annotated[int, typer.Option(min=90, help="Accepted training examples.")] = 1200,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    arms: Annotated[str, typer.Option(help="screen, full, or names with commas.")] = "screen",
) -> None:
    """Run what has no line yet, seed by seed."""
    if not Path(f"data/{task}_grammar.py").exists():
        raise typer.BadParameter(f"no such embedded task: {task}", param_hint="TASK")
    if student not in ("t5", "bert", "llama") or (student == "bert" and task == "word_problems"):
        raise typer.BadParameter(f"no student of {task}: {student}", param_hint="--student")
    names = {"screen": list(ARMS), "full": FULL}.get(arms) or arms.split(",")
    if unknown := set(names) - set(ARMS):
        raise typer.BadParameter(f"no such arm: {', '.join(sorted(unknown))}", param_hint="--arms")
    names = [a for a in names if a not in (*NOT_FOR.get(student, ()), *NOT_FOR.get(task, ()))]
    setting = {"task": task, "student": student, "label_noise": label_noise, "burst": burst, "size": size}
    todo = [setting | {"seed": first_seed + s, "arm": a} for s in range(seeds) for a in names]
    todo = [run | {"design": design_of(run)} for run in todo]
    done, code = {key_of(line) for line in lines_of(RESULTS) if "failed" not in line}, git_state()
    todo = [run for run in todo if key_of(run) not in done]
    if not todo:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with alone(WORK / "lock"):
        models = {name: build(task, name, label_noise, burst) for name in ("teacher", student)}
    keep_engine(str(models["teacher"]))
    where = {"cpus": os.cpu_count(), "omp_num_threads": os.environ.get("OMP_NUM_THREADS"), "versions": versions()}
    for place, run in enumerate(todo):
        root = WORK / f"{task}-noise{label_noise:g}-burst{burst:g}" / f"size{size}" / f"seed{run['seed']}"
        began = time.perf_counter()
        try:
            found = run_arm(run, models, root)
        except (RuntimeError, SystemExit) as error:  # a result too: say so, go on
            if isinstance(error, SystemExit) and error.code == STOPPED:
                raise
            found = {"failed": str(error)}
        note(RESULTS, run | found | where | code | {"finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        shown = found.get("failed") or f"accuracy {found['accuracy']}, tail {found['tail']}"
        say(
            f"{place + 1} of {len(todo)}: seed {run['seed']}, {run['arm']}: {shown} ({time.perf_counter() - began:.0f} s)"
        )


if __name__ == "__main__":
    app()
