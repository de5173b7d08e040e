"""Low-rank adapters beside full fine-tuning: peak memory and examples/s of train_student.py, taking turns.

    python -m bench.lora                          # Qwen2.5-0.5B's shape, random weights; about 15 minutes on 2 cores
    python -m bench.lora --shape tiny-qwen --num-examples 200        # does it work?

Each training is a process of its own. Memory: the most that the process had (maximum resident set, getrusage). On a CPU
this holds the weights, gradients, Adam's two moments and activations. The texts are those of the embedded reviews, 10 to 30
tokens, so it is memory of weights more than of activations. A line a training goes to bench/results/lora.jsonl.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.machine import machine
from bench.shapes import TASK_FILE, build, reviews
from bench.stages import note
from gold.jsonl import write_file
from gold.runs import git_state

RESULTS = Path("bench/results/lora.jsonl")
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def train(model: Path, train_file: Path, folder: Path, rank: int | None) -> dict:
    """Peak GiB and examples/s of one training."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", PEAK, sys.executable, "train_student.py", "--task-file", str(TASK_FILE), "--model"]
    command += [str(model), "--train-file", str(train_file), "--output-dir", str(folder), "--num-train-epochs", "1"]
    command += ["--per-device-train-batch-size", "4"]
    command += ["--lora-rank", str(rank)] if rank else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    [rate] = [line["train_samples_per_second"] for line in log if "train_samples_per_second" in line]
    return {"peak_gib": round(int(done.stdout.split()[-1]) / 2**20, 2), "examples_per_second": rate}


def main(
    shape: Annotated[str, typer.Option(help="A name of bench/shapes.py.")] = "qwen2.5-0.5b",
    num_examples: Annotated[int, typer.Option(help="Training examples.")] = 32,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 16,
    repeats: Annotated[int, typer.Option(help="Trainings of each kind.")] = 3,
) -> None:
    """Train both ways in turn, and print medians and ratios."""
    model, found = build(shape, Path("runs/shapes")), {"full": [], "lora": []}
    with tempfile.TemporaryDirectory() as home:
        train_file = Path(home) / "train.jsonl"
        write_file(train_file, reviews(num_examples))
        for _ in range(repeats):
            for kind in found:
                line = train(model, train_file, Path(home) / "student", rank if kind == "lora" else None)
                found[kind].append(line)
                about = {"shape": shape, "kind": kind, "rank": rank, "num_examples": num_examples}
                note(RESULTS, about | line | machine() | git_state())
                print(f"{kind}: {line}", flush=True)
    for name in ("peak_gib", "examples_per_second"):
        values = {kind: [line[name] for line in lines] for kind, lines in found.items()}
        ratios = [lora / full for lora, full in zip(values["lora"], values["full"], strict=True)]
        middle = {kind: statistics.median(v) for kind, v in values.items()}
        print(f"{name}: {middle}; lora / full {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    typer.run(main)
