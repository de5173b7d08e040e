"""What labelling by the teacher costs, and what --verify is worth, on the embedded teacher of the word problems.

    python -m data.build_models word_problems teacher
    python -m bench.labelling --model data/word_problems/models/teacher

1. 77 labels of several tokens after prompts of 600 tokens: tokens that the engine computes, and wall time, by the trie of
   labels and by one whole prompt a label with prompt_logprobs, for which vLLM does not read its prefix cache. The largest
   difference of the sums of log-probabilities that both give is printed.
2. 400 examples of each seed, with and without `generate.py --verify`: how many are right by the grammar's own reader.

Prints both and writes bench/results/labelling.json.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from data.word_problems_grammar import oracle_equation
from gold.command import say
from gold.engine import Engine
from gold.equations import equations_agree
from gold.jsonl import read_records
from gold.labels import Row, log_probs
from gold.runs import git_state, versions
from gold.stopping import StopSignals
from gold.task import load_task

TASK_FILE = Path("prompts/word_problems.toml")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def intents(number: int) -> list[str]:
    """Names such as card_lost_abroad, many of which share their first words, as the intents of BANKING77 do."""
    things, faults = ("card", "cash", "transfer", "refund"), ("lost", "late", "wrong", "fee", "pending")
    return [f"{a}_{b}{c}" for a in things for b in faults for c in ("", "_abroad", "_again", "_today")][:number]


def cost(model: str, num_labels: int, num_prompts: int, length: int, repeats: int) -> dict:
    """Computed tokens and seconds of both ways on the same prompts; ratio = whole prompts / trie."""
    from vllm import SamplingParams

    engine = Engine(model, length + 64, StopSignals())
    llm, rng = engine.llm, random.Random(0)
    tokenizer = llm.get_tokenizer()
    sequences = [tokenizer(f" {name}\n", add_special_tokens=False)["input_ids"] for name in intents(num_labels)]
    words = load_task(TASK_FILE).seed_examples.read_text().split()
    rows = []
    for repeat in range(-1, repeats):  # the first one warms up: a kernel is compiled
        prompts = [
            tokenizer(" ".join(rng.choices(words, k=2 * length)))["input_ids"][:length] for _ in range(num_prompts)
        ]
        row = {}
        for way in ("trie", "whole") if repeat % 2 else ("whole", "trie"):
            computed, began, sums = 0, time.perf_counter(), [[] for _ in prompts]
            llm.reset_prefix_cache()
            if way == "trie":
                sums = log_probs(engine, [Row(prompt, sequences) for prompt in prompts])
                computed = engine.taken_tokens()["computed_tokens"]
            else:  # the usual way: prompt_logprobs, which switches the prefix cache off
                sent = [{"prompt_token_ids": [*p, *s]} for p in prompts for s in sequences]
                outputs = llm.generate(sent, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
                for i, output in enumerate(outputs):
                    ids, given = output.prompt_token_ids, output.prompt_logprobs
                    sums[i // num_labels].append(sum(given[k][ids[k]].logprob for k in range(length, len(ids))))
                    computed += len(ids) - (output.num_cached_tokens or 0)
            row[way] = {"computed": computed, "seconds": time.perf_counter() - began, "sums": sums}
        if repeat >= 0:
            rows.append(row)
    gap = max(
        abs(a - b)
        for row in rows
        for one, other in zip(row["trie"]["sums"], row["whole"]["sums"], strict=True)
        for a, b in zip(one, other, strict=True)
    )
    ratios = {key: [row["whole"][key] / row["trie"][key] for row in rows] for key in ("computed", "seconds")}
    return {
        "labels": num_labels, "prompts": num_prompts, "prompt_tokens": length, "label_tokens": sum(map(len, sequences)),
        "largest_difference_of_log_probabilities": gap,
        **{f"{key}_ratio": [round(statistics.median(v), 2), round(min(v), 2), round(max(v), 2)] for key, v in ratios.items()},
    }  # fmt: skip


def verified(model: str, seed: int, folder: Path) -> dict:
    """Right by the oracle, attempts, and seconds of generating, without and with --verify."""
    row = {"seed": seed}
    for name, more in (("plain", []), ("verify", ["--verify"])):
        output = folder / f"{name}-{seed}" / "iter-00"
        command = [
            sys.executable,
            "generate.py",
            "--task-file",
            str(TASK_FILE),
            "--model",
            model,
            "--output-dir",
            str(output),
        ]
        command += ["--num-validation", "0", "--num-examples", "400", "--seed", str(seed), *more]
        subprocess.run(command, check=True, capture_output=True)
        records = [r for _, r in read_records(output / "train.jsonl")]
        run = json.loads((output / "train.jsonl.run.json").read_text())
        right = sum(equations_agree(r["equation"], oracle_equation(r["problem"]) or "") for r in records)
        row[name] = {
            "right": right / len(records),
            "attempted": run["counts"]["attempted"],
            "seconds": run["generate_seconds"],
        }
    return row


@app.command()
def main(
    model: Annotated[str, typer.Option(help="The embedded teacher of the word problems.")],
    seeds: Annotated[int, typer.Option(min=1, help="Of the second part.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Of the first part, each with prompts of its own.")] = 3,
) -> None:
    """Measure and print both parts."""
    found = {"cost": cost(model, 77, 2, 600, repeats)}
    for key in ("computed_ratio", "seconds_ratio"):
        middle, low, high = found["cost"][key]
        print(f"77 labels, prompts of 600 tokens, {key}, whole prompts / trie: {middle} [{low}, {high}]")
    print(f"largest difference of a log-probability: {found['cost']['largest_difference_of_log_probabilities']:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        found["verify"] = []
        for seed in range(seeds):
            found["verify"].append(verified(model, seed, Path(folder)))
            say(f"{found['verify'][-1]}")
    for name in ("plain", "verify"):
        for key in ("right", "attempted", "seconds"):
            values = [row[name][key] for row in found["verify"]]
            print(f"{name} {key}: median {statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]")
    result = found | git_state() | {"versions": versions()}
    path = Path("bench/results/labelling.json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app()
