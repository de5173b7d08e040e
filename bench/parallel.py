"""Several teachers side by side on one machine: engines of one stage, shards, a server, against one engine.

    python -m data.build_models --models teacher
    python -m bench.parallel data/reviews/models/teacher --num-examples 10000 --repeats 3
    python -m bench.parallel data/models/smollm2-135m-instruct --task-file prompts/ag_news.toml --num-examples 100 --repeats 2
    python -m bench.parallel data/reviews/models/teacher --ways one,eight --num-examples 10000
    python -m bench.parallel --table

one        generate.py, as many threads as there are cores        two, eight  --data-parallel-size 2, 8
single     generate.py, one thread
shards     two processes, --shard 0/2 and 1/2, each with half of the cores
server     python -m gold.serve --data-parallel-size 2, and --server-url

Each repeat takes all ways in turn. Prompts a second: attempts over the seconds from the engines' start to the end of the
file; of shards those of the slower one. `wall` has the start too, but for that of the server. While several engines of one
stage are at work, writer_share is the processor time of the stage's own process over the seconds, and of that of the
whole job; idle_share is how many of all pairs (engine, two looks) saw an engine do nothing between them. A line a way and
repeat in bench/results/parallel.jsonl.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from bench.stages import lines_of, note, told
from gold.runs import git_state

RESULTS, WORK, PORT = Path("bench/results/parallel.jsonl"), Path("runs/parallel"), 8017
SIDE_BY_SIDE = {"two": 2, "eight": 8}


def measure(way: str, command: list[str], model: str) -> dict[str, Any]:
    shutil.rmtree(WORK, ignore_errors=True)
    cores, began = sorted(os.sched_getaffinity(0)), time.perf_counter()
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"OMP_WAIT_POLICY": "PASSIVE"}
    looks: list = []
    if way == "server":
        with serving(model, env):
            began = time.perf_counter()
            stages = [
                subprocess.Popen([*command, "--server-url", f"http://127.0.0.1:{PORT}/v1", "--num-concurrent", "512"])
            ]
            codes = [stage.wait() for stage in stages]
    else:
        shards, threads = (2, len(cores) // 2) if way == "shards" else (1, 1 if way == "single" else len(cores))
        stages = []
        for i in range(shards):
            more = ["--shard", f"{i}/{shards}"] if way == "shards" else []
            more += ["--data-parallel-size", str(SIDE_BY_SIDE[way])] if way in SIDE_BY_SIDE else []
            bound = ["taskset", "-c", ",".join(map(str, cores[i::shards]))]
            stages.append(
                subprocess.Popen([*bound, *command, *more], env=env | {"OMP_NUM_THREADS": str(max(1, threads))})
            )
        looks = watch(stages[0]) if way in SIDE_BY_SIDE else []
        codes = [stage.wait() for stage in stages]
    wall = time.perf_counter() - began
    assert not any(codes), codes
    records = [json.loads(p.read_text()) for p in sorted(WORK.glob("train*.jsonl.run.json"))]
    prompts, computed = (sum(r["counts"][name] for r in records) for name in ("attempted", "computed_tokens"))
    seconds = max(r["generate_seconds"] for r in records)
    return {"prompts": prompts, "seconds": seconds, "wall": round(wall, 2), "computed_tokens": computed} | shares(looks)


def watch(stage: subprocess.Popen) -> list[tuple[float, dict[int, float]]]:
    """Looks, four a second, from the first completion on: (time, processor seconds of the stage, first, and its engines)."""
    looks, first, at_work = [], psutil.Process(stage.pid), WORK / "train.jsonl.journal"
    while stage.poll() is None:
        with contextlib.suppress(psutil.Error, OSError):
            if looks or at_work.stat().st_size:
                engines = [p for p in first.children() if "spawn_main" in " ".join(p.cmdline())]
                looks.append((time.perf_counter(), {p.pid: sum(p.cpu_times()[:2]) for p in [first, *engines]}))
        time.sleep(0.25)
    return looks


def shares(looks: list[tuple[float, dict[int, float]]]) -> dict[str, Any]:
    whole = [look for look in looks if look[1].keys() == looks[0][1].keys()]  # at the end the engines are gone
    if len(whole) < 2:
        return {}
    (begin, before), (end, after) = whole[0], whole[-1]
    spent = {pid: after[pid] - before[pid] for pid in after}
    writer, *engines = spent
    idle = [b[pid] == a[pid] for (_, a), (_, b) in pairwise(whole) for pid in engines]
    found = {"writer_share": spent[writer] / (end - begin), "writer_of_all": spent[writer] / sum(spent.values())}
    return {name: round(value, 4) for name, value in (found | {"idle_share": sum(idle) / len(idle)}).items()}


@contextlib.contextmanager
def serving(model: str, env: dict) -> Iterator[None]:
    command = [sys.executable, "-m", "gold.serve", model, "--port", str(PORT), "--data-parallel-size", "2"]
    WORK.parent.mkdir(exist_ok=True)
    with (WORK.parent / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                assert server.poll() is None, "the server has ended: read runs/server.log"
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models").close()
                    break
                time.sleep(0.2)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, 9)


def show_table() -> None:
    lines = lines_of(RESULTS)
    print(
        "| teacher | examples | way | prompts/s | over one | wall of one / wall | writer, of the seconds; of all; idle |"
    )
    print("|---|---|---|---|---|---|---|")
    for model, number in dict.fromkeys((line["model"], line["num_examples"]) for line in lines):
        mine = [line for line in lines if (line["model"], line["num_examples"]) == (model, number)]
        one = {(line["run"], line["repeat"]): line for line in mine if line["way"] == "one"}
        for way in dict.fromkeys(line["way"] for line in mine):
            some = [line for line in mine if line["way"] == way]
            first = [one[line["run"], line["repeat"]] for line in some]
            rates = [line["prompts"] / line["seconds"] for line in some]
            gains = [r * f["seconds"] / f["prompts"] for r, f in zip(rates, first, strict=True)]
            walls = [f["wall"] / line["wall"] for line, f in zip(some, first, strict=True)]
            names = [n for n in ("writer_share", "writer_of_all", "idle_share") if n in some[-1]]
            watched = "; ".join(f"{statistics.median(r[n] for r in some if n in r):.3f}" for n in names)
            print(
                f"| {Path(model).name} | {number:,} | {way} | {statistics.median(rates):,.1f} | {told(gains)} | {told(walls)} "
                f"| {watched} |"
            )


def main(
    model: Annotated[str | None, typer.Argument(help="The teacher.")] = None,
    task_file: Annotated[str, typer.Option(help="Its task.")] = "prompts/reviews.toml",
    num_examples: Annotated[int, typer.Option(help="Accepted ones.")] = 10_000,
    ways: Annotated[
        str, typer.Option(help="Which, with commas; one of them is `one`.")
    ] = "one,single,two,shards,server",
    repeats: Annotated[int, typer.Option()] = 3,
    table: Annotated[bool, typer.Option(help="Print what is there.")] = False,
) -> None:
    if table or not model:
        return show_table()
    run = int(time.time())
    for repeat in range(repeats):
        order = ways.split(",")
        for way in order if repeat % 2 else reversed(order):
            command = [
                sys.executable,
                "generate.py",
                "--task-file",
                task_file,
                "--model",
                model,
                "--output-dir",
                str(WORK),
            ]
            command += ["--num-examples", str(num_examples), "--num-validation", "0", "--max-tokens", "64"]
            found = measure(way, [*command, "--max-attempts", str(20 * num_examples)], model)
            about = {"model": model, "num_examples": num_examples, "way": way, "run": run, "repeat": repeat}
            note(RESULTS, about | found | git_state())
            print(about, found, flush=True)


if __name__ == "__main__":
    typer.run(main)
