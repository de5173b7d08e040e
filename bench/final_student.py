"""What the final student is: cross-entropy or symmetric cross-entropy, three passes or ten, the last step or the best epoch.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.final_student sst2 --seeds 0,1,2      # after bench.real_teacher

Trains MiniLM on the training examples of an arm of bench/real_teacher.py, whose labels are as noisy as a real teacher's, and
measures on the human dev part. The best epoch is chosen on a tenth that is held out, as train_student.py does. A line a
student goes to bench/results/final_student.jsonl; finished ones are skipped.
"""

import itertools
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.human import RATE, accuracy, load_human, measured
from bench.prompts import STUDENT, steps_for
from bench.real_teacher import DEV, ROUNDS, folder_of, round_0
from bench.stages import BATCH, lines_of, note, train
from gold.runs import git_state
from gold.task import load_task

RESULTS = Path("bench/results/final_student.jsonl")
WAYS = {  # loss, passes (None: bench/prompts.py's steps), best epoch
    "ce, 3 passes, last": ("ce", None, False),
    "sce, 3 passes, last": ("sce", None, False),
    "ce, 10 passes, last": ("ce", 10, False),
    "ce, 10 passes, best epoch": ("ce", 10, True),
    "sce, 10 passes, last": ("sce", 10, False),
    "sce, 10 passes, best epoch": ("sce", 10, True),
}


def main(
    task: Annotated[str, typer.Argument(help="A task with runs of bench.real_teacher.")],
    arm: Annotated[str, typer.Option(help="Whose examples.")] = "gold",
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0,1,2",
    size: Annotated[int, typer.Option(help="Of the runs.")] = 600,
    pool: Annotated[int, typer.Option(help="Of the runs.")] = 100,
) -> None:
    """Train what has no line yet, print the means."""
    loaded = load_task(Path(f"prompts/{task}.toml"))
    data, code = load_human(loaded), git_state()
    for seed, (way, (loss, passes, best)) in itertools.product(map(int, seeds.split(",")), WAYS.items()):
        key = {"task": task, "arm": arm, "size": size, "pool": pool, "seed": seed, "way": way}
        if any(all(line.get(k) == v for k, v in key.items()) for line in lines_of(RESULTS)):
            continue
        root = folder_of({"task": task, "size": size, "pool": pool, "seed": seed})
        folders = [round_0(root, arm), *(root / arm / f"iter-{i:02d}" for i in range(1, ROUNDS))]
        began, folder = time.perf_counter(), root / arm / f"final, {way}"
        steps = round(size / BATCH * passes) if passes else steps_for(size)
        files = [f / "train.jsonl" for f in folders]
        train(loaded.path, STUDENT, files, folder, steps, seed, {"loss": loss}, best_epoch=best, learning_rate=RATE)
        found = round(accuracy(measured(loaded, folder), data.dev[:DEV]), 4)
        note(RESULTS, key | {"steps": steps, "dev": found, "seconds": round(time.perf_counter() - began)} | code)
        print(f"{task} {arm} seed {seed} {way}: {found}", flush=True)
    lines = [line for line in lines_of(RESULTS) if all(line[k] == key[k] for k in ("task", "arm", "size", "pool"))]
    for way in WAYS:
        values = [line["dev"] for line in lines if line["way"] == way]
        if values:
            print(f"{way:<28}{statistics.mean(values):.3f}  {values}")


if __name__ == "__main__":
    typer.run(main)
