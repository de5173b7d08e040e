"""Kill loop.sh again and again, run it again each time, and compare what it made with a run that nobody interrupted.

    python -m bench.kill 100                            # so many kills; --seed draws the moments
    python -m bench.kill 20 --seed 7 --folder /tmp/kill # models, runs and logs in there
    python -m bench.kill 100 --kills-per-run 20         # fewer folders, so less time

Builds tiny models and an uninterrupted run first (about two minutes). Then SIGKILL ends the whole session of loop.sh ten times
on the way of a run folder to its end: once inside every stage, otherwise at random seconds; each time the same command goes on.
A folder that came to its end is compared, and the next one begins. Prints a line a kill, one a folder, and the counts.
Exit code 1 when a file differs or a rerun ends with an error.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
TINY = {  # several chunks a split even so: about one in ten texts is turned down, and what is missing is asked for again
    "ITERATIONS": "2", "NUM_EXAMPLES": "80", "GENERATE_ARGS": "--num-validation 60 --min-p 0",
    "TRAIN_ARGS": "--num-train-epochs 2",
    "LABEL_ARGS": "--limit 40", "EVALUATE_ARGS": "--group-by group --num-resamples 100 --limit 240",
}  # fmt: skip
OUTPUT = {  # stage -> what it writes in its folder
    "generate train": "train.jsonl", "generate validation": "validation.jsonl", "train": "student",
    "score": "scored.jsonl", "evaluate": "predictions.jsonl", "label": "labelled.jsonl",
}  # fmt: skip
PLACES = [  # (stage, folder) in the order of the loop
    ("evaluate", "untrained"), ("label", "teacher"),
    *((stage, "iter-00") for stage in (*list(OUTPUT)[:3], "evaluate", "score")),
    *((stage, "iter-01") for stage in ("generate train", "train", "evaluate")),
    ("train", "final"), ("evaluate", "final"), ("report", ""),
]  # fmt: skip
# At most so many seconds into the stage
LINGER = {"train": 0.3, "score": 0.05, "evaluate": 0.3, "label": 0.05, "report": 0.02}
# Fields that differ between any two runs; after a kill vLLM's prefix cache is empty, so more tokens are computed
PER_RUN = re.compile(r"seconds|runtime|per_second|finished_at|^command$|^git_|^cached_tokens|^computed_tokens|^tokens$")


# ---------------------------------------------------------------------------------------------------------------------
# Start, wait, kill


def environment(models: Path) -> dict[str, str]:
    """What loop.sh needs to make a tiny run with this Python and the models of `data.build_models reviews`."""
    return {**os.environ, "PYTHON": sys.executable, "TEACHER": f"{models}/teacher", "STUDENT": f"{models}/t5", **TINY}


def start_loop(run: Path, models: Path, log: Path) -> subprocess.Popen:
    """loop.sh in a session of its own; what it prints goes to `log`. It ends when this process does, however that ends."""
    with log.open("w") as file:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "HUP", "bash", "loop.sh", "prompts/reviews.toml", str(run)],
            cwd=ROOT, env=environment(models), stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on a file; asked of the kernel, since trying would be in the stage's way."""
    try:
        inode = f":{path.stat().st_ino} "
    except FileNotFoundError:
        return False
    return any(inode in line and "FLOCK" in line and "->" not in line for line in Path("/proc/locks").open())


def is_inside(run: Path, log: Path, stage: str, folder: str) -> bool:
    """Whether the stage is at work: a chunk is written and not the last one (generate), the Trainer has begun (train)."""
    if stage == "report":
        return f"+ report.py {run}" in log.read_text()
    output = run / folder / OUTPUT[stage]
    if not is_locked(Path(f"{output}.lock")):  # what is there was left by a stage that is dead
        return False
    if not Path(f"{output}.partial.json").exists():  # a finished output is only looked at
        return False
    partial = Path(f"{output}.partial")
    if stage == "train":
        return partial.is_dir()
    return not stage.startswith("generate") or (partial.exists() and partial.stat().st_size > 0)


def wait_for(process: subprocess.Popen, moment: Callable[[], bool], seconds: float = float("inf")) -> bool:
    """Wait until the moment has come or so many seconds are over; False: the process ended before."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if moment() or time.monotonic() > end:
            return True
        time.sleep(0.003)
    return False


def living(session: int) -> list[int]:
    """Processes of a session of which any thread still runs: until the last one is gone, files stay open and locked."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[3]) != session:
                continue
            states = [task.read_text().rpartition(")")[2].split()[0] for task in path.parent.glob("task/*/stat")]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if set(states) - {"Z", "X"}:
            found.add(int(path.parent.name))
    return sorted(found)


def signal_session(process: subprocess.Popen, number: int) -> None:
    """To the shell first, which would start the next stage; its stage has a process group of its own."""
    for pid in sorted(living(process.pid), key=process.pid.__ne__):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_session(process: subprocess.Popen) -> None:
    """SIGKILL for all of them, and wait until the last one has let go of its files."""
    while living(process.pid):
        signal_session(process, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()


def unfinished(run: Path) -> list[str]:
    """Outputs that somebody has begun and not finished, as paths under the run folder."""
    states = run.rglob("*.partial.json")
    return sorted(str(path.relative_to(run)).removesuffix(".partial.json") for path in states)


# ---------------------------------------------------------------------------------------------------------------------
# Compare


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not PER_RUN.search(k)}
    return value


def content(path: Path, folders: list[Path]) -> Any:
    """What must be the same in two runs: the bytes; records and logs without times, commands, code version, run folders."""
    data = path.read_bytes()
    if not path.name.endswith((".run.json", "metrics.json", "training_log.jsonl", "metrics.jsonl", ".md")):
        return data
    data = data.replace(b"\\_", b"_")  # of a card
    for folder in folders:  # either one's, since a copied run names the folder that it was made in
        data = data.replace(bytes(folder), b"RUN")
    if path.suffix == ".md":
        return [line for line in data.splitlines() if b"git_commit" not in line]
    lines = data.splitlines() if path.suffix == ".jsonl" else [data]
    return [without_times(json.loads(line)) for line in lines]


def differences(run: Path, whole: Path) -> list[str]:
    """Files of two run folders that are in one of them only or do not hold the same. loop.log and the page tell seconds."""
    told = {Path("loop.log"), Path("report.html")}
    ours, others = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} - told for f in (run, whole))
    folders = sorted([run, whole], key=lambda folder: -len(bytes(folder)))  # one may begin as the other
    different = {n for n in ours & others if content(run / n, folders) != content(whole / n, folders)}
    return sorted(map(str, (ours ^ others) | different))


# ---------------------------------------------------------------------------------------------------------------------
# One run folder


def kill_on_the_way(
    run: Path, models: Path, log: Path, places: list, rng: random.Random, at_random: int = 0, seconds: float = 0
) -> Counter:
    """Kill the loop inside every place, (stage, folder) in the loop's order, and `at_random` times besides.

    A random moment is drawn from a quarter of `seconds`, the time of an uninterrupted run. When the next place comes first, it
    is the place's kill. Returns the counts of the kills by stage. AssertionError when a rerun ends with an error.
    """
    hits, places = Counter(), list(places)
    while places:
        stage, folder = places[0]
        drawn = float("inf")
        if at_random and (len(places) == 1 or rng.random() < at_random / (at_random + len(places))):
            drawn = rng.uniform(0, seconds / 4)
        began = time.monotonic()
        process = start_loop(run, models, log)
        there = wait_for(process, lambda stage=stage, folder=folder: is_inside(run, log, stage, folder), drawn)
        at_place = there and is_inside(run, log, stage, folder)
        there = there and (not at_place or wait_for(process, lambda: False, rng.uniform(0, LINGER.get(stage, 0))))
        assert there, f"{run}: ended with {process.returncode} before it came into {stage} {folder}:\n{tail(log)}"
        kill_session(process)
        inside = unfinished(run) or (["report"] if at_place and stage == "report" else [])
        if at_place:
            hits[stage if inside else "missed"] += 1
            places.pop(0)
        else:
            hits["at random"] += 1
            at_random -= 1
        what = f"in {stage} {folder}".strip() if at_place else "at random"
        took, left = f"{time.monotonic() - began:.1f} s", ", ".join(inside) or "nothing"
        print(f"kill {hits.total()}: {what}, {took}; unfinished: {left}", flush=True)
    return hits


def tail(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-15:])


def main(
    kills: Annotated[int, typer.Argument(min=1, help="How many in all.")],
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    kills_per_run: Annotated[int, typer.Option(min=6, help="How many on the way of one run folder to its end.")] = 10,
    folder: Annotated[Path | None, typer.Option(help="Models, runs and logs (none = a new one in /tmp).")] = None,
) -> None:
    """Kill loop.sh so many times, and compare."""
    folder = folder or Path(tempfile.mkdtemp(prefix="kill-"))
    models, whole = folder / "models", folder / "whole"
    folder.mkdir(parents=True, exist_ok=True)
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    print(f"{kills} kills, seed {seed}, code {commit}, in {folder}", flush=True)
    build = [sys.executable, "-m", "data.build_models", "reviews", "teacher", "t5", "--steps", "150"]
    subprocess.run([*build, "--output-dir", str(models)], cwd=ROOT, check=True, capture_output=True)
    shutil.rmtree(whole, ignore_errors=True)
    began = time.monotonic()
    process = start_loop(whole, models, folder / "whole.log")
    if process.wait():
        raise SystemExit(f"error: the uninterrupted run failed:\n{tail(folder / 'whole.log')}")
    seconds = time.monotonic() - began
    print(f"uninterrupted: {seconds:.0f} s", flush=True)

    rng, hits, failed, folders = random.Random(seed), Counter(), 0, 0
    while hits.total() < kills and not failed:
        run, folders = folder / f"run-{folders:03d}", folders + 1
        log = run.with_name(f"{run.name}.log")
        shutil.rmtree(run, ignore_errors=True)
        try:
            chosen = {rng.choice([p for p in PLACES if p[0] == stage]) for stage in [*OUTPUT, "report"]}
            number = min(kills_per_run, kills - hits.total())
            places = [place for place in PLACES if place in chosen][-number:]
            hits += kill_on_the_way(run, models, log, places, rng, number - len(places), seconds)
            code = start_loop(run, models, log).wait()
            assert code == 0, f"{run}: the last rerun ended with {code}:\n{tail(log)}"
            different = differences(run, whole)
        except AssertionError as error:
            different = [str(error)]
        failed += bool(different)
        print(f"{run}: {'DIFFERS: ' + ', '.join(different) if different else 'the same files'}", flush=True)
        if not different:
            shutil.rmtree(run)
    by_stage = ", ".join(f"{number} {name}" for name, number in hits.items())
    print(f"{hits.total()} kills ({by_stage}) of {folders} runs, each run again; folders that differ: {failed}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
