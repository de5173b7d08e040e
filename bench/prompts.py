"""How to ask a real LLM: forms of the prompt and sampling options, on tasks with human data.

    python -m data.real_models
    python -m data.prepare ag_news --train; python -m data.prepare sst2 --train; python -m data.prepare trec --train
    python -m bench.prompts ag_news sst2 trec                       # yield, label noise, diversity, tokens
    python -m bench.prompts ag_news --settings list --num-examples 1000 --train --seeds 0,1,2     # and a student

For each setting: yield (accepted / attempted), label agreement (the share of accepted examples whose label a classifier
trained on human data confirms), distinct-2 of the first 2,000 words, tokens that the teacher computed for an accepted
example, and the accuracy on human dev data of a student trained on the examples. A line a run goes to
bench/results/prompts.jsonl; files are kept in runs/prompts, so a killed command is run again.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.human import split_human
from gold.jsonl import append_records, read_records
from gold.runs import git_state
from gold.task import load_task
from gold.text import words

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results/prompts.jsonl"
TEACHER, STUDENT = "data/models/smollm2-135m-instruct", "data/models/all-minilm-l6-v2"
LIST = ["--prompt-form", "completion"]
SETTINGS = {
    "chat": ["--prompt-form", "chat"],
    "list": LIST,
    "list-top-p-.95": [*LIST, "--top-p", "0.95"],
    "list-top-p-.9": [*LIST, "--top-p", "0.9"],
    "list-min-p-.05": [*LIST, "--min-p", "0.05"],
    "list-min-p-.1": [*LIST, "--min-p", "0.1"],
    "list-T-.8": [*LIST, "--temperature", "0.8"],
    "list-2-shots": [*LIST, "--min-p", "0.05", "--num-fewshot", "2"],
}
TRAIN = ["--num-train-epochs", "5", "--learning-rate", "1e-4", "--per-device-train-batch-size", "32"]


def stage(script: str, *args: object) -> None:
    done = subprocess.run(
        [sys.executable, script, *map(str, args)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {script}: {done.stderr.strip().splitlines()[-1]}")


def train_and_measure(task: Path, files: list[Path], folder: Path, test: Path, seed: int) -> float:
    """Accuracy on `test` of a student trained on `files`."""
    train = [word for path in files for word in ("--train-file", path)]
    how = ["--task-file", task, "--output-dir"]
    stage("train_student.py", *how, folder / "student", "--model", STUDENT, *train, *TRAIN, "--seed", seed)
    stage("evaluate.py", *how, folder, "--model", folder / "student", "--test-file", test)
    return json.loads((folder / "metrics.json").read_text())["overall"]["accuracy"]["value"]


def distinct_2(texts: list[str], budget: int = 2000) -> float:
    """Share of different pairs of neighbouring words among the first `budget` words."""
    pairs, count = [], 0
    for text in texts:
        found = words(text)[: budget - count]
        count += len(found)
        pairs += itertools.pairwise(found)
    return len(set(pairs)) / max(len(pairs), 1)


def main(
    tasks: Annotated[list[str], typer.Argument(help="Tasks with human data in data/TASK/{train,test}.jsonl.")],
    settings: Annotated[str, typer.Option(help="Names of SETTINGS.")] = ",".join(SETTINGS),
    num_examples: Annotated[int, typer.Option(help="Accepted examples a setting.")] = 200,
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0",
    train: Annotated[bool, typer.Option(help="Also train a student on the examples.")] = False,
) -> None:
    """Try the settings."""
    for name in tasks:
        task_file, work = Path(f"prompts/{name}.toml"), ROOT / "runs/prompts" / name
        task = load_task(ROOT / task_file)
        human = split_human([p for p in sorted((ROOT / f"data/{name}").glob("t*.jsonl"))], task, work / "human")
        truth = train_and_measure(task_file, [human["human"]], work / "classifier", human["dev"], 0)
        print(f"{name}: a student of the human part has accuracy {truth:.3f} on dev", flush=True)
        for setting in settings.split(","):
            for seed in seeds.split(","):
                folder = work / f"{setting}-{num_examples}-{seed}" / "iter-00"
                stage("generate.py", "--task-file", task_file, "--model", TEACHER, "--output-dir", folder, "--num-validation",
                      0, "--num-examples", num_examples, "--seed", seed, "--max-tokens", 96, *SETTINGS[setting])  # fmt: skip
                stage("evaluate.py", "--task-file", task_file, "--model", work / "classifier/student", "--test-file",
                      folder / "train.jsonl", "--output-dir", folder / "agreement")  # fmt: skip
                counts = json.loads((folder / "train.jsonl.run.json").read_text())["counts"]
                texts = [record["source"] for _, record in read_records(folder / "train.jsonl")]
                row = {
                    "task": name, "setting": setting, "seed": int(seed), "accepted": counts["accepted"],
                    "yield": round(counts["accepted"] / counts["attempted"], 3), "rejected": counts["rejected"],
                    "label_agreement": json.loads((folder / "agreement/metrics.json").read_text())["overall"]["accuracy"],
                    "distinct_2": round(distinct_2(texts), 3),
                    "tokens": round(counts["computed_tokens"] / counts["accepted"], 1),
                }  # fmt: skip
                if train:
                    row["accuracy"] = train_and_measure(
                        task_file, [folder / "train.jsonl"], folder, human["dev"], int(seed)
                    )
                append_records(RESULTS, [row | {"commit": git_state()["git_commit"]}])
                print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
