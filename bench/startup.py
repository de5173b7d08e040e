"""How long `python X.py --help` of every stage takes, and `python -c pass` beside it.

    python -m bench.startup                  # ten repeats, the commands interleaved
    python -m bench.startup --repeats 2      # a try

Prints the median and [min, max] of the seconds and of the ratio, stage / `python -c pass`, taken within a repeat; writes
bench/results/startup.json. The limit is 0.5 s: exit code 1 where a median is above. The first run of each, which reads the disk
and, where the environment lets Python write it, leaves compiled files (the record tells), is not counted.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from gold.command import fail, run_command
from gold.disk import write_json
from gold.runs import git_state, versions

STAGES = ("generate.py", "label.py", "score_ood.py", "train_student.py", "evaluate.py", "report.py")
LIMIT = 0.5  # seconds
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1, help="Of every command.")] = 10,
    output_file: Annotated[Path, typer.Option(help="The record.")] = Path("bench/results/startup.json"),
) -> None:
    """Measure, print the table and write the record."""
    commands = {"-c pass": ["-c", "pass"]} | {stage: [stage, "--help"] for stage in STAGES}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(-1, repeats):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    rows = []
    print(f"{'python':<18} {'seconds':>20}   / python -c pass")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["-c pass"], strict=True)]
        row = {"command": name} | {
            key: [round(f(found), 3) for f in (statistics.median, min, max)]
            for key, found in (("seconds", values), ("ratio", ratios))
        }
        rows.append(row)
        print("{:<18} {:>6} [{}, {}]   {} [{}, {}]".format(name, *row["seconds"], *row["ratio"]))
    machine = {"cpus": os.cpu_count(), "system": os.uname().sysname, "machine": os.uname().machine}
    compiled = {"compiled_files_written": not sys.dont_write_bytecode}
    write_json(
        output_file,
        {"repeats": repeats, "rows": rows, **compiled, "machine": machine, **git_state(), "versions": versions()},
    )
    if slow := [row["command"] for row in rows if row["seconds"][0] > LIMIT]:
        fail(f"--help takes more than {LIMIT} s: {', '.join(slow)}; was the machine idle?")


if __name__ == "__main__":
    run_command(app)
