"""How to ask a real LLM: forms of the prompt and sampling options, on tasks with human data.

    python -m data.real_models
    python -m data.prepare ag_news; python -m data.prepare sst2 --train
    python -m data.prepare trec --train --source DIR     # DIR holds the official TREC_10.label and train_5500.label
        # the records' numbers are of other extracts: 9,985 rows of ag_news, 6,909 sentences of sst2's training side
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.prompts ag_news sst2 trec
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.prompts sst2 --settings list --num-examples 1000 --seeds 0,1,2

For each setting: yield (accepted / attempted), agreement (the share of accepted examples whose label a classifier trained
on human data gives too; its own accuracy on dev stands beside it), distinct-2 of the first 2,000 words, tokens that the
teacher computed for an accepted example, seconds, and the accuracy on human dev data of a student trained on the
examples. A line a run goes to bench/results/prompts.jsonl; finished runs are skipped, so a killed command is run again.
"""

import itertools
import json
import time
from pathlib import Path
from typing import Annotated

import typer

import generate
from bench.human import RATE, accuracy, classifier, load_human, measured
from bench.stages import keep_engine, lines_of, note, quietly, train
from gold.examples import read_examples
from gold.runs import git_state
from gold.task import load_task
from gold.text import distinct_2

RESULTS, WORK = Path("bench/results/prompts.jsonl"), Path("runs/prompts")
TEACHER, STUDENT = Path("data/models/smollm2-135m-instruct"), Path("data/models/all-minilm-l6-v2")
SETTINGS = {
    "chat": {"prompt_form": "chat", "max_tokens": 128},
    "list": {},
    "list, top-p .95": {"top_p": 0.95},
    "list, top-p .9": {"top_p": 0.9},
    "list, min-p .05": {"min_p": 0.05},
    "list, min-p .1": {"min_p": 0.1},
    "list, T .8": {"temperature": 0.8},
    "list, T .8, top-p .95": {"temperature": 0.8, "top_p": 0.95},
    "list, min-p .05, 2 shots": {"min_p": 0.05, "num_fewshot": 2},
}
MAX_TOKENS = 96


def steps_for(num_examples: int) -> int:
    """Optimiser steps of 32: six passes over 200 examples, three over 600 and 1,000."""
    return round(max(min(num_examples / 32 * 6, 56), num_examples / 32 * 3))


def main(
    tasks: Annotated[list[str], typer.Argument(help="Tasks with human data in data/TASK.")],
    settings: Annotated[str, typer.Option(help="Names of SETTINGS, with semicolons.")] = ";".join(SETTINGS),
    num_examples: Annotated[int, typer.Option(help="Accepted examples a setting.")] = 200,
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0",
    students: Annotated[bool, typer.Option(help="Train a student on each setting's examples.")] = True,
) -> None:
    """Try the settings."""
    keep_engine(str(TEACHER))
    code = git_state()  # of the code that is loaded
    for name in tasks:
        task = load_task(Path(f"prompts/{name}.toml"))
        data = load_human(task)
        judge = classifier(task, data, WORK / name / "classifier")
        judged = round(accuracy(judge, data.dev[:1000]), 4)
        print(f"{name}: the classifier of human examples has accuracy {judged} on dev", flush=True)
        lines = [line for line in lines_of(RESULTS) if "accuracy" in line or not students]
        done = {(line["task"], line["setting"], line["num_examples"], line["seed"]) for line in lines}
        for seed, setting in itertools.product(map(int, seeds.split(",")), settings.split(";")):
            if (name, setting, num_examples, seed) in done:
                continue
            began, folder = time.perf_counter(), WORK / name / f"{setting}-{num_examples}-{seed}" / "iter-00"
            how = {"prompt_form": "completion", "max_tokens": MAX_TOKENS, "min_p": 0.0} | SETTINGS[setting]
            row = {"task": name, "setting": setting, "num_examples": num_examples, "seed": seed}
            try:
                quietly(
                    generate.main, task.path, str(TEACHER), folder, num_examples=num_examples, num_validation=0,
                    seed=seed, max_attempts=20 * num_examples, **how,
                )  # fmt: skip
            except RuntimeError as error:
                print(f"{row}: {error}", flush=True)
                continue
            record = json.loads((folder / "train.jsonl.run.json").read_text())
            counts, examples = record["counts"], read_examples([folder / "train.jsonl"], task)
            row |= {
                "yield": round(counts["accepted"] / counts["attempted"], 3), "rejected": counts["rejected"],
                "agreement": round(accuracy(judge, examples), 4), "judge": judged,
                "distinct_2": round(distinct_2([e["source"] for e in examples], 2000), 3),
                "tokens": counts["computed_tokens_per_accepted"], "generate_seconds": record["generate_seconds"],
                "seconds": round(time.perf_counter() - began, 1), "commit": code["git_commit"],
            }  # fmt: skip
            if students:
                train(task.path, STUDENT, [folder / "train.jsonl"], folder / "student", steps_for(num_examples), seed, {},
                      learning_rate=RATE)  # fmt: skip
                row["accuracy"] = round(accuracy(measured(task, folder / "student"), data.dev[:1000]), 4)
            note(RESULTS, row)
            print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
