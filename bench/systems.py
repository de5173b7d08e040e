"""Strategies beside each other on human texts with a real LLM: at equal accepted examples, and at equal teacher tokens.

    python -m data.real_models; python -m data.prepare ag_news
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.systems ag_news --seeds 0,2
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.systems ag_news --seeds 1 --strategies zerogen,gold
    python -m bench.systems ag_news --table

A run is loop.sh itself with STRATEGY, SmolLM2-135M-Instruct as the teacher and MiniLM as the student: two iterations of --size
examples each, a pool of 100 where the strategy has one. The last student is trained again on all examples, without a
held-out set, for a number of steps that follows from their number, and measured on 1,200 human texts (the dev part).
Human texts that a strategy asks for come from the human part: 2,000 without labels, 150 labelled for s3, 300 labelled for the
critic. Equal tokens: `zerogen` is also run alone with CURVE examples in all; an arm is compared with the value of that curve at
its own number of computed tokens, on a logarithmic scale. `human` is a student of the critic's 300 labelled texts. Not among
them: `rationales` (another kind of task) and `released-code` (its own numbers of examples). `tuned-teacher` alone starts its
engines anew, so its seconds do not compare.

A run is a line of bench/results/systems.jsonl; finished runs are skipped. Files are kept in runs/systems.
"""

import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.human import RATE, Human, accuracy, classifier, load_human, measured
from bench.prompts import MAX_TOKENS, STUDENT, TEACHER, steps_for
from bench.prompts import WORK as CLASSIFIERS
from bench.stages import alone, lines_of, note, train
from bench.strategies_report import interval
from gold.examples import example_key, read_examples, with_answer
from gold.jsonl import write_file
from gold.runs import git_state
from gold.task import Task, load_task
from gold.text import distinct_2

RESULTS, WORK = Path("bench/results/systems.jsonl"), Path("runs/systems")
DEV, POOL, TEXTS = 1200, 100, 2000
CURVE = (100, 200, 400, 800)  # examples of zerogen in one iteration
NEW = "generation-distillation llmaaa critic supergen self-consistency genco retrieval tuned-teacher attrprompt"
STRATEGIES = f"human zerogen gold {NEW} random random-train tfidf uncertain active pgkd s3".split()


def human_files(task: Task, data: Human, root: Path) -> dict[str, str]:
    """The variables of loop.sh that name texts of people, and the files behind them."""
    plain = [{"id": e["id"]} | {name: e[name] for name in task.fields} for e in data.human[:TEXTS]]
    critic = root / "critic"
    files = {
        "TEXTS_FILE": plain,
        "HUMAN_FILE": data.human[-150:],
        "TEST_FILE": data.dev[:100],
        "": data.human[-450:-150],
    }
    with alone(root / "lock"):
        for name, rows in files.items():
            if not (path := root / f"{name or 'critic'}.jsonl").exists():
                write_file(path, rows)
        train(
            task.path, STUDENT, [root / "critic.jsonl"], critic / "student", steps_for(300), 0, {}, learning_rate=RATE
        )
    return {name: str(root / f"{name}.jsonl") for name in files if name} | {"CRITIC": str(critic / "student")}


def variables(strategy: str, given: dict[str, str]) -> dict[str, str]:
    """What a file of strategies/ sets, with these variables of the environment."""
    names = ("POOL", "SCORE_WITH", "ANNOTATE", "TUNE")
    code = f". strategies/{strategy}.sh; " + "; ".join(f'echo "{name} ${{{name}:-}}"' for name in names)
    known = {"PATH": os.environ["PATH"], **given}
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, env=known)
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in done.stdout.splitlines()}


def environment(strategy: str, run: dict, task: Task, files: dict[str, str], warm: Path) -> dict[str, str]:
    """The variables of one loop. CRITIC only where it is asked for: it would filter what any other strategy makes."""
    asked = {k: v for k, v in files.items() if k != "CRITIC" or strategy == "critic"} | {"TASK_FILE": str(task.path)}
    found = variables(strategy, asked)
    pool = f" --num-validation {POOL}" if found["POOL"] == "validation" else ""
    python = (
        ".venv/bin/python" if found["TUNE"] else "bench/warm_python"
    )  # a tuned teacher is another than the kept one
    epochs = (
        4 if found["SCORE_WITH"] == "student" or found["ANNOTATE"] == "1" else 0.1
    )  # else nothing asks these students
    return {
        **{k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}, **asked, "STRATEGY": strategy,
        "SEED": str(run["seed"]), "ITERATIONS": "2", "NUM_EXAMPLES": str(run["size"] // 2), "PYTHON": python,
        "WARM_SOCKET": str(warm), "TEACHER": str(TEACHER), "STUDENT": str(STUDENT), "LABEL_ARGS": "--limit 4",
        "GENERATE_ARGS": f"--max-tokens {MAX_TOKENS} --max-attempts {20 * run['size']}{pool}",
        "TRAIN_ARGS": f"--learning-rate {RATE} --num-train-epochs {epochs:g}", "FINAL_TRAIN_ARGS": "--num-train-epochs 0.1",
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def last_training(log: str) -> tuple[list[Path], dict[str, Any]]:
    """The files and the loss of the last train_student.py of a loop."""
    [*_, line] = re.findall(r"^\+ train_student\.py (.*)$", log, re.M)
    words = shlex.split(line)
    files = [Path(words[i + 1]) for i, word in enumerate(words) if word == "--train-file"]
    loss = {"loss": words[words.index("--loss") + 1]} if "--loss" in words else {}
    return files, loss | ({"confidence_weights": True} if "--confidence-weights" in words else {})


def records_of(folder: Path) -> list[dict]:
    """The run records of what a loop makes its data with: all stages but the measuring ones and the final student."""
    paths = [p for p in folder.rglob("*.run.json") if not {"teacher", "untrained", "final"} & set(p.parts[-3:])]
    return [r for p in paths if (r := json.loads(p.read_text()))["stage"] != "evaluate.py"]


def run_strategy(run: dict, task: Task, data: Human, root: Path, warm: Path) -> dict[str, Any]:
    """The loop of one strategy; the numbers of its line."""
    folder, files = root / f"seed{run['seed']}-{run['size']}" / run["strategy"], human_files(task, data, root)
    env = environment(run["strategy"], run, task, files, warm)
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        done = subprocess.run(
            ["bash", "loop.sh", str(task.path), str(folder)], check=False, env=env, stdout=out, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {log.read_text()[-400:]}")
    trained_on, loss = last_training(log.read_text())
    records = records_of(folder)
    tokens = sum(r["counts"].get("computed_tokens", 0) for r in records)
    seconds = {r["stage"]: 0.0 for r in records}
    for r in records:
        seconds[r["stage"]] += r["seconds"]
    return result_of(run, task, data, root, trained_on, loss) | {
        "tokens": tokens, "teacher_seconds": round(sum(seconds.get(s, 0) for s in ("generate.py", "label.py")), 1),
        "student_seconds": round(sum(seconds.get(s, 0) for s in ("train_student.py", "score_ood.py")), 1),
    }  # fmt: skip


def result_of(
    run: dict, task: Task, data: Human, root: Path, files: list[Path], loss: dict, first: int | None = None
) -> dict:
    """Train the student that is measured, on the first examples of the files or on all; accuracy, label noise, diversity."""
    used = [with_answer(e, task) for e in read_examples(files, task, use=("teacher_label", "label_probs"))][:first]
    home = root / "students" / f"seed{run['seed']}-{run['size']}-{run['strategy']}-{len(used)}"
    home.mkdir(parents=True, exist_ok=True)
    write_file(home / "train.jsonl", used)
    train(task.path, STUDENT, [home / "train.jsonl"], home / "student", steps_for(len(used)), run["seed"], loss,
          learning_rate=RATE)  # fmt: skip
    with alone(root / "lock"):
        judge = classifier(task, data, CLASSIFIERS / task.name / "classifier")
    keys = {example_key(task, e) for e in [*data.dev, *data.report]}
    return {
        "dev": round(accuracy(measured(task, home / "student"), data.dev[:DEV]), 4), "trained_on": len(used),
        "noise": round(1 - accuracy(judge, used), 4), "distinct_2": round(distinct_2([e["source"] for e in used], 8000), 4),
        "repeats_of_test": sum(example_key(task, e) in keys for e in used),
    }  # fmt: skip


def run_human(run: dict, task: Task, data: Human, root: Path) -> dict[str, Any]:
    """The row beside `critic`: a student of the 300 labelled human texts that its critic is trained on."""
    human_files(task, data, root)
    nothing = dict.fromkeys(("tokens", "teacher_seconds", "student_seconds"), 0)
    return result_of(run, task, data, root, [root / "critic.jsonl"], {}) | nothing


def run_curve(run: dict, task: Task, data: Human, root: Path, warm: Path) -> list[dict[str, Any]]:
    """zerogen in one iteration: a line for each number of examples of CURVE."""
    folder = root / f"seed{run['seed']}" / "curve" / "iter-00"
    command = ["bench/warm_python", "generate.py", "--task-file", str(task.path), "--model", str(TEACHER), "--output-dir",
               str(folder), "--num-examples", str(max(CURVE)), "--num-validation", "0", "--max-tokens", str(MAX_TOKENS),
               "--seed", str(run["seed"])]  # fmt: skip
    subprocess.run(command, env={**os.environ, "WARM_SOCKET": str(warm)}, check=True)
    cost = json.loads((folder / "train.jsonl.run.json").read_text())["counts"]["computed_tokens_per_accepted"]
    lines = []
    for n in CURVE:
        found = result_of(run | {"size": n}, task, data, root, [folder / "train.jsonl"], {}, n)
        lines.append(found | {"size": n, "tokens": round(cost * n)})
    return lines


def on_curve(lines: list[dict], tokens: float) -> float | None:
    """Accuracy of zerogen at this number of tokens, beyond the measured ones that of the last; None below, or unmeasured."""
    points = sorted((math.log(line["tokens"]), line["dev"]) for line in lines)
    x = min(math.log(max(tokens, 1)), points[-1][0]) if points else 0
    for (a, low), (b, high) in pairwise(points):
        if a <= x <= b:
            return low + (high - low) * (x - a) / (b - a)
    return None


def show_table(task: str, size: int, results: Path) -> None:
    lines = [line for line in lines_of(results) if line["task"] == task]
    curves: dict[int, list[dict]] = {}
    for line in lines:
        if line["strategy"] == "curve":
            curves.setdefault(line["seed"], []).append(line)
    runs = {
        (line["strategy"], line["seed"]): line for line in lines if line["size"] == size and line["strategy"] != "curve"
    }
    print(f"{task}, {size} examples in two iterations, accuracy on {DEV} human texts\n")
    print("| strategy | seeds | accuracy | minus zerogen | minus zerogen at equal tokens | label noise | distinct-2 "
          "| teacher tokens | teacher s | student s |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in dict.fromkeys(name for name, _ in runs):
        own = {seed: line for (other, seed), line in runs.items() if other == name}
        same = [line["dev"] - runs["zerogen", s]["dev"] for s, line in own.items() if ("zerogen", s) in runs]
        at = {s: on_curve(curves.get(s, []), line["tokens"]) for s, line in own.items()}
        equal = [line["dev"] - at[s] for s, line in own.items() if at[s] is not None]
        mean = {k: statistics.mean(math.nan if line[k] is None else line[k] for line in own.values()) for k in (
            "dev", "noise", "distinct_2", "tokens", "teacher_seconds", "student_seconds")}  # fmt: skip
        print(
            f"| {name} | {len(own)} | {mean['dev']:.3f} | {'' if name == 'zerogen' else shown(same)} | {shown(equal)} "
            f"| {mean['noise']:.2f} | {mean['distinct_2']:.3f} | {mean['tokens']:,.0f} | {mean['teacher_seconds']:.0f} "
            f"| {mean['student_seconds']:.0f} |"
        )
    for seed, points in sorted(curves.items()):
        told = ", ".join(f"{p['size']:,}: {p['dev']:.3f} ({p['tokens']:,} tokens)" for p in points)
        print(f"\nzerogen alone, seed {seed}: {told}")


def shown(gains: list[float]) -> str:
    if not gains:
        return "-"
    mean, low, high = interval(gains)
    return f"{mean:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if len(gains) > 1 else " (one seed)")


def main(
    task: Annotated[str, typer.Argument(help="A task with human data in data/TASK.")],
    strategies: Annotated[str, typer.Option(help="Of strategies/, or curve; with commas.")] = ",".join(
        ["curve", *STRATEGIES]
    ),
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0,1,2",
    size: Annotated[int, typer.Option(help="Accepted training examples of both iterations.")] = 200,
    results: Annotated[Path, typer.Option(help="File of the lines.")] = RESULTS,
    table: Annotated[bool, typer.Option(help="Only print what is there.")] = False,
) -> None:
    """Run what has no line yet."""
    if table:
        return show_table(task, size, results)
    loaded, root = load_task(Path(f"prompts/{task}.toml")), WORK / task
    data, code, warm = load_human(loaded), git_state(), Path(f"/tmp/gold-warm-{os.getpid()}")
    root.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen([sys.executable, "-m", "bench.warm", str(warm)])
    try:
        while not warm.exists():
            time.sleep(0.2)
        for seed in map(int, seeds.split(",")):
            for name in strategies.split(","):
                run = {"task": task, "strategy": name, "seed": seed, "size": max(CURVE) if name == "curve" else size}
                if any(all(line.get(k) == v for k, v in run.items()) for line in lines_of(results)):
                    continue
                began = time.perf_counter()
                try:
                    if name == "curve":
                        found = run_curve(run, loaded, data, root, warm)
                    elif name == "human":
                        found = [run_human(run, loaded, data, root)]
                    else:
                        found = [run_strategy(run, loaded, data, root, warm)]
                except RuntimeError as error:
                    print(f"{task} seed {seed} {name}: {error}", flush=True)
                    continue
                for line in found:
                    note(results, run | line | code)
                print(f"{task} seed {seed} {name}: {found[-1]['dev']}, {time.perf_counter() - began:.0f} s", flush=True)
    finally:
        server.kill()


if __name__ == "__main__":
    typer.run(main)
