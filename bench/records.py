"""A million records: seconds and peak memory of what the stages do with them, each in a process of its own.

    python -m bench.records                                  # 10,000, 100,000 and 1,000,000 records
    python -m bench.records --size 1000 --repeats 1          # a try

Made on the fly: the records of a generated set with all their fields (a review of 10 to 40 words), and of a scored one, about
1.2 kB a line. The ways:

select   `score_ood.py` without --model: reads, checks, selects the band of the energy, writes feedback.jsonl
resume   what `generate.py` reads before it goes on with a train.jsonl of so many lines, duplicates included
shown    what it reads of a finished train.jsonl that validation prompts show, and likewise of --exclude-file: the examples
         and their texts, which count as duplicates

Prints, by size, the median and [min, max] of the seconds and of the peak resident memory, and the microseconds that a record
took beyond the next smaller size: they stay where the time is linear (the smallest size has the start-up in it). Writes
bench/results/records.json. The limits at a million: select 60 s and 1 GiB, resume and shown 2 GiB; exit code 1 where a median
is above.
"""

import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated
from unittest.mock import Mock

import typer

from gold.attempts import Pools
from gold.command import fail, run_command, say
from gold.disk import write_json
from gold.examples import example_key, read_examples
from gold.jsonl import read_records
from gold.runs import git_state, versions
from gold.split import Split
from gold.task import load_task

TASK_FILE = Path("prompts/reviews.toml")
LIMITS = {"select": (60.0, 1024.0), "resume": (None, 2048.0), "shown": (None, 2048.0)}  # seconds, MiB; at a million
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def write_set(path: Path, size: int, scored: bool, repeated: float = 0.01) -> None:
    """So many records with the fields of the stages, scored or as generated; a share `repeated` has the text of another."""
    rng = random.Random(size)
    task = load_task(TASK_FILE)
    words = sorted({word for _, r in read_records(Path("data/reviews/test.jsonl")) for word in r["review"].split()})
    labels, review = list(task.labels), ""
    with path.open("w", encoding="utf-8") as file:
        for n in range(size):
            if not review or rng.random() >= repeated:
                review = " ".join(rng.choices(words, k=rng.randint(10, 40)))
            label, right, z = labels[n % 2], rng.random() < 0.8, rng.gauss(-11, 2)
            p = rng.random() / 2
            scores = {
                "energy": z, "energy_sum": 3 * z, "energy_first": z + rng.gauss(0, 1), "nll": rng.expovariate(1), "msp": p,
                "entropy": 2 * p, "margin": 1 - p, "random": rng.random(), "error": float(not right),
                "hard_negative": (1 - p) * (not right),
            }  # fmt: skip
            student = {"prediction": label if right else labels[1 - n % 2], "correct": right}
            student |= {name: float(f"{value:.9g}") for name, value in scores.items()}
            record = {
                "id": f"reviews-00-train-{n:06d}", "review": review, "label": label, **(student if scored else {}),
                "source": f"review: {review}", "target": label, "task": "reviews", "iteration": 0, "split": "train",
                "feedback": n % 2 == 0, "shots": [f"seed-{rng.randrange(6)}" for _ in range(3)]
                + [f"reviews-00-validation-{rng.randrange(10**6):06d}" for _ in range(2)],
                "sampling_seed": rng.getrandbits(31), "finish_reason": "stop", "completion": f" {review}\n\n",
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")


def measured(command: list[str]) -> tuple[float, float, float, str]:
    """Seconds, those of the processor, peak resident memory (MiB) and output of a command in a process of its own.

    It must end well. The peak is at least this process's own, some 35 MiB: Linux counts from the fork on.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read().decode()
        if process.returncode:
            fail(f"{shlex.join(command)}: ended with {process.returncode}: {output[-2000:]}; run it by hand")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output


def commands(generated: Path, scored: Path, folder: Path) -> dict[str, list[str]]:
    """The command of each way on its set; what it writes goes into `folder`."""
    select = ["score_ood.py", "--task-file", str(TASK_FILE), "--input-file", str(scored), "--overwrite"]
    select += ["--feedback-file", str(folder / "feedback.jsonl")]
    ways = {"select": select} | {
        way: ["-m", "bench.records", "child", way, str(generated)] for way in ("resume", "shown")
    }
    return {way: [sys.executable, *command] for way, command in ways.items()}


@app.command(hidden=True)
def child(way: str, path: Path) -> None:
    """`resume` or `shown` in this process; prints how many records and how many different texts it found."""
    task = load_task(TASK_FILE)
    if way == "resume":
        options = {"output_dir": path.parent, "temperature": 1.0, "num_examples": 2}
        options |= dict.fromkeys(["shard", "limit", "max_attempts"]) | dict.fromkeys(
            ["structured", "teacher_nll"], False
        )
        split = Split("train", task, options, Pools([]), set())
        split.rejected = path.with_name("none.jsonl")
        split.run = Mock(partial=path, notes={})
        split.read_outcomes()
        print(len(split.outcomes), len(set(split.outcomes.values())))
    else:
        examples = read_examples(path, task, keep=["id", *task.fields, task.answer_field])
        print(len(examples), len({example_key(task, example) for example in examples}))


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    size: Annotated[list[int], typer.Option(min=100, help="Records; repeat for several.")] = (10_000, 100_000, 1_000_000),
    repeats: Annotated[int, typer.Option(min=1, help="Of each, interleaved.")] = 2,
    output_file: Annotated[Path, typer.Option(help="The record.")] = Path("bench/results/records.json"),
) -> None:  # fmt: skip
    """Measure all sizes, print the table and write the record."""
    if context.invoked_subcommand:
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in sorted(size):
            generated, scored = folder / "generated.jsonl", folder / "input.jsonl"
            write_set(generated, n, scored=False)
            write_set(scored, n, scored=True)
            say(
                f"{n:,} records, {generated.stat().st_size / 2**20:,.0f} MiB, scored {scored.stat().st_size / 2**20:,.0f}"
            )
            found: dict[str, list] = {way: [] for way in LIMITS}
            for _ in range(repeats):
                for way, command in commands(generated, scored, folder).items():
                    found[way].append(measured(command))
                    say("{}: {:.1f} s, {:.1f} s of a processor, {:,.0f} MiB".format(way, *found[way][-1][:3]))
            selected = sum(1 for _ in read_records(folder / "feedback.jsonl"))
            counted = [found[way][0][-1].split() for way in ("resume", "shown")]
            if counted[0] != counted[1] or int(counted[0][0]) != n or abs(selected - 0.3 * n) > 2:
                fail(f"{n:,} records: {counted} read and {selected:,} selected; run the ways by hand")
            for way, measurements in found.items():
                row = {"way": way, "records": n, "bytes": (scored if way == "select" else generated).stat().st_size}
                for k, name in enumerate(("seconds", "cpu_seconds", "peak_mib")):
                    values = [m[k] for m in measurements]
                    row[name] = [round(f(values), 2) for f in (statistics.median, min, max)]
                rows.append(row)
    above = []
    print(
        f"{'way':<8} {'records':>10} {'seconds':>24} {'of a processor':>14} {'peak MiB':>28} {'us a further record':>20}"
    )
    for row in sorted(rows, key=lambda row: (list(LIMITS).index(row["way"]), row["records"])):
        fewer = [r for r in rows if r["way"] == row["way"] and r["records"] < row["records"]]
        before = max(fewer, key=lambda r: r["records"], default={"seconds": [0.0], "records": 0})
        further = (row["seconds"][0] - before["seconds"][0]) / (row["records"] - before["records"])
        row["microseconds_a_further_record"] = round(1e6 * further, 2)
        times, sizes = (f"{m:,.2f} [{low:,.2f}, {high:,.2f}]" for m, low, high in (row["seconds"], row["peak_mib"]))
        cpu = row["cpu_seconds"][0]
        print(f"{row['way']:<8} {row['records']:>10,} {times:>24} {cpu:>14.2f} {sizes:>28} {1e6 * further:>20.1f}")
        for value, limit, unit in zip(
            (row["seconds"][0], row["peak_mib"][0]), LIMITS[row["way"]], ("s", "MiB"), strict=True
        ):
            if row["records"] == 1_000_000 and limit and value > limit:
                above.append(f"{row['way']}: {value:,.0f} {unit} of at most {limit:,.0f}")
    machine = {"cpus": os.cpu_count(), "system": os.uname().sysname, "machine": os.uname().machine}
    write_json(
        output_file, {"repeats": repeats, "rows": rows, "machine": machine, **git_state(), "versions": versions()}
    )
    if above:
        fail(f"above the limit: {'; '.join(above)}; was the machine idle?")


if __name__ == "__main__":
    run_command(app)
