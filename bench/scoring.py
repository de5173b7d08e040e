"""Scoring by score_ood.py against the authors' way and against plain batches of 8: examples a second, and peak memory.

    python -m data.build_models reviews t5
    python -m bench.scoring                                          # T5-base and Qwen2.5-0.5B shapes, the embedded T5
    python -m bench.scoring --model runs/a/iter-00/student --input-file runs/a/iter-00/validation.jsonl    # data of yours too
    python -m bench.scoring --shape tiny-t5 --num-examples 20 --repeats 1    # a try

The ways, on the same examples (the embedded test set, or --input-file) and the same loaded weights:

authors     what the released code of GOLD does, in our words: batches of 8 in the order of the file, sources padded or cut to
            128 tokens and targets to 32, float32 logits of the whole vocabulary at all decoder positions (a decoder-only model,
            which they have none of: at all 160 positions of prompt and target), then -logsumexp of all of them
plain       batches of 8 in the order of the file, padded to their longest, float32 logits at all positions
score_ood   gold.predict.score_examples with the defaults of score_ood.py: every score, predictions too. It decodes what is
            not predicted right, which with random weights is everything, and the other two do not
energies    the same without predictions
bfloat16    as score_ood, bfloat16 weights; on CUDA alone

Prints the ratios of the seconds, authors / way, taken within a repeat: median and [min, max]; the ways change places from
repeat to repeat, and all run once on a few examples before. The energies (mean over real tokens) of all float32 ways, and of
T5 energy_padded of the authors' way and of score_ood, must agree to 1e-4: exit code 1 otherwise, as where bfloat16 ranks the
energies with a Spearman correlation below 0.99.

Then the peak memory above the loaded model of scoring 8 x 256 tokens, half of them target (the hard case) and with a label for
a target: score_ood's way without predictions against float32 logits at all positions and their logsumexp, each in a process of
its own: on a CPU the peak resident memory minus that after loading, on CUDA torch's own count. Writes
bench/results/scoring.json.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.shapes import SHAPES, build
from gold.command import fail, run_command, say
from gold.disk import write_json
from gold.encoding import encode_targets
from gold.examples import read_examples
from gold.predict import score_examples
from gold.runs import git_state, versions
from gold.student import Student, family_of, load_student
from gold.task import Task, load_task

TASK_FILE = Path("prompts/reviews.toml")
BATCH, SOURCE, TARGET = 8, 128, 32  # the authors' batch and lengths, in tokens
MEMORY_CASES = {"half target": (128, 128), "label": (256, 8)}  # most tokens of source and target
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def load(model: str, task: Task, source_length: int, target_length: int, dtype: str = "float32") -> Student:
    import torch

    student = load_student(model, task)
    student.lengths = {"max_source_length": source_length, "max_target_length": target_length}
    student.network.to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype))
    return student


def batch_energies(examples: list[dict], student: Student, fixed: bool) -> list[dict]:
    """Energies of one batch from float32 logits at all positions; fixed: padded to the lengths given, else to the longest."""
    import torch

    network, tokenizer, family = student.network, student.tokenizer, student.family
    source_length, target_length = student.lengths["max_source_length"], student.lengths["max_target_length"]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"] if family == "decoder" else []
    sources = [tokenizer(e["source"], truncation=True, max_length=source_length)["input_ids"] for e in examples]
    targets = [ids[:target_length] for ids in encode_targets([e["target"] for e in examples], tokenizer, family)]
    device, pad = network.device, tokenizer.pad_token_id

    def padded(rows: list[list[int]], length: int) -> Any:
        length = length if fixed else max(map(len, rows))
        return torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=device)

    def mask(rows: list[list[int]], length: int) -> Any:
        length = length if fixed else max(map(len, rows))
        return torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)

    if family == "decoder":
        prompts = [ids + newline for ids in sources]
        rows, most = (
            [p + t for p, t in zip(prompts, targets, strict=True)],
            source_length + len(newline) + target_length,
        )
        logits = network(input_ids=padded(rows, most), attention_mask=mask(rows, most), use_cache=False).logits
        at_positions = -torch.logsumexp(logits.float(), -1)  # (B, S)
        spans = [(len(p) - 1, len(p) - 1 + len(t)) for p, t in zip(prompts, targets, strict=True)]
        return [{"energy": float(row[a:b].mean())} for row, (a, b) in zip(at_positions, spans, strict=True)]
    labels = padded(targets, target_length)
    given = {"input_ids": padded(sources, source_length), "attention_mask": mask(sources, source_length)}
    logits = network(**given, labels=labels).logits
    at_positions = -torch.logsumexp(logits.float(), -1)  # (B, T)
    return [
        {"energy": float(row[: len(target)].mean()), "energy_padded": float(row.mean())}
        for row, target in zip(at_positions, targets, strict=True)
    ]


def in_batches(examples: list[dict], student: Student, fixed: bool) -> list[dict]:
    import torch

    with torch.inference_mode():
        return [
            result
            for begin in range(0, len(examples), BATCH)
            for result in batch_energies(examples[begin : begin + BATCH], student, fixed)
        ]


def measure(examples: list[dict], task: Task, model: str, repeats: int) -> dict:
    """Seconds of every way by repeat, the largest differences of their scores, and the ratios authors / way."""
    import torch

    cuda = torch.cuda.is_available()
    dtypes = ("float32", "bfloat16") if cuda else ("float32",)
    students = {dtype: load(model, task, SOURCE, TARGET, dtype) for dtype in dtypes}
    plain = students["float32"]

    def scored(dtype: str, predict: bool = True, padded: bool = False) -> Callable[[list[dict]], list[dict]]:
        return lambda chosen: score_examples(students[dtype], chosen, 64, padded=padded, decode=predict)[0]

    ways = {
        "authors": lambda chosen: in_batches(chosen, plain, True),
        "plain": lambda chosen: in_batches(chosen, plain, False),
        "score_ood": scored("float32"),
        "energies": scored("float32", predict=False),
    } | ({"bfloat16": scored("bfloat16")} if cuda else {})
    names, seconds, results = list(ways), {name: [] for name in ways}, {}
    for way in ways.values():
        way(examples[:BATCH])
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            results[name] = ways[name](examples)  # floats: whatever a device still had to do is done
            seconds[name].append(time.perf_counter() - began)
    reference = [r["energy"] for r in results["authors"]]
    gaps = {
        f"energy, {name}": max(abs(r["energy"] - e) for r, e in zip(results[name], reference, strict=True))
        for name in ("plain", "score_ood", "energies")
    }
    if plain.family == "encoder-decoder":
        found = scored("float32", predict=False, padded=True)(examples)
        pairs = zip(found, results["authors"], strict=True)
        gaps["energy_padded"] = max(abs(r["energy_padded"] - other["energy_padded"]) for r, other in pairs)
    row = {"model": Path(model).name, "family": plain.family, "examples": len(examples), "seconds": seconds}
    row |= {"largest_differences": gaps, "ratios": {}}
    for name in names[1:]:
        values = [a / b for a, b in zip(seconds["authors"], seconds[name], strict=True)]
        row["ratios"][name] = [round(f(values), 3) for f in (statistics.median, min, max)]
    if cuda:
        from scipy.stats import spearmanr

        row["bfloat16_rank_correlation"] = float(spearmanr(reference, [r["energy"] for r in results["bfloat16"]])[0])
    return row


def resident(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process, in MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:")) / 1024


@app.command(hidden=True)
def peak(model: str, way: str, case: str) -> None:
    """Print the MiB that scoring 8 x 256 tokens takes above the loaded model, in this process."""
    import torch

    task = load_task(TASK_FILE).model_copy(update={"labels": {}, "kind": "text2text", "metric": "exact_match"})
    source_length, target_length = MEMORY_CASES[case]
    long = " ".join(e["review"] for e in read_examples(Path("data/reviews/test.jsonl"), load_task(TASK_FILE))[:60])
    target = "positive" if case == "label" else long
    examples = [{"id": str(i), "label": target, "source": long, "target": target} for i in range(BATCH)]
    cuda = torch.cuda.is_available()
    student = load(model, task, source_length, target_length)

    def score(chosen: list[dict]) -> None:
        if way == "score_ood":
            score_examples(student, chosen, 64, decode=False)
        else:
            with torch.inference_mode():
                batch_energies(chosen, student, True)

    score([e | {"source": "a", "target": "a"} for e in examples[:1]])  # what libraries allocate once is no part of it
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        score(examples)
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading has one of its own
        before = resident("VmRSS")
        score(examples)
        print(resident("VmHWM") - before)


def memory(model: str, repeats: int) -> list[dict]:
    """Peaks of both ways and their ratio, score_ood / full logits, by case."""
    rows = []
    for case in MEMORY_CASES:
        found: dict[str, list[float]] = {"score_ood": [], "full": []}
        for _ in range(repeats):
            for way, values in found.items():
                command = [sys.executable, "-m", "bench.scoring", "peak", model, way, case]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    fail(
                        f"{' '.join(command[1:])}: ended with {done.returncode}: {done.stderr[-1000:]}; run it by hand"
                    )
                values.append(float(done.stdout.split()[-1]))
        ratios = [a / b for a, b in zip(*found.values(), strict=True)]
        row = {"model": Path(model).name, "case": case, "mib": {k: [round(x, 1) for x in v] for k, v in found.items()}}
        rows.append(row | {"ratio": [round(f(ratios), 3) for f in (statistics.median, min, max)]})
    return rows


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    shape: Annotated[list[str] | None, typer.Option(help="Shapes of bench/shapes.py; repeat for several.")] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="Students of the task too, in place of the embedded T5.")
    ] = None,
    embedded: Annotated[bool, typer.Option(help="The embedded T5, where there is no --model.")] = True,
    task_file: Annotated[Path, typer.Option(help="Task of --model and --input-file.")] = TASK_FILE,
    input_file: Annotated[list[Path] | None, typer.Option(help="Data beside the embedded test set.")] = None,
    num_examples: Annotated[int | None, typer.Option(min=1, help="For the shapes (24 on a CPU, 512 on CUDA).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of the timing.")] = 3,
    memory_repeats: Annotated[int, typer.Option(min=0, help="Of the peak memory (0 = leave it out).")] = 1,
    shapes_dir: Annotated[Path, typer.Option(help="Where the shapes are made, once.")] = Path("runs/shapes"),
    output_file: Annotated[Path, typer.Option(help="The record.")] = Path("bench/results/scoring.json"),
) -> None:
    """Measure speed and memory, print the tables and write the record."""
    if context.invoked_subcommand:
        return
    models = [str(path) for path in model or ([Path("data/reviews/models/t5")] if embedded else [])]
    for path in models:
        if not Path(path).exists():
            fail(f"--model {path}: no such folder; python -m data.build_models reviews t5 makes the embedded one")
    for name in shape or ():
        if name not in SHAPES:
            fail(f"--shape {name}: no such shape; these are {', '.join(SHAPES)}")
    import torch

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"on {device}")
    shapes = [str(build(name, shapes_dir)) for name in shape or ["t5-base", "qwen2.5-0.5b"]]
    known, reviews = load_task(task_file), load_task(TASK_FILE)
    sets = {"embedded test set": (reviews, read_examples(Path("data/reviews/test.jsonl"), reviews))}
    sets |= {str(path): (known, read_examples(path, known)) for path in input_file or []}
    rows, wrong = [], []
    print(f"{'model':<16} {'data':<20} {'way':<10} {'examples/s':>11}   authors / way")
    for path in [*shapes, *models]:
        for data, (task, examples) in sets.items():
            if family_of(path, task) == "encoder":
                fail(f"--model {path}: is an encoder, whose logits are few; give a T5 or a decoder")
            if path in shapes:  # spread over the file, whose topics stand together
                number = num_examples or (512 if cuda else 24)
                examples = examples[:: max(1, len(examples) // number)][:number]
            row = measure(examples, task, path, repeats) | {"data": data}
            rows.append(row)
            for way, seconds in row["seconds"].items():
                rate = len(examples) / statistics.median(seconds)
                ratio = "{} [{}, {}]".format(*row["ratios"][way]) if way in row["ratios"] else ""
                print(f"{row['model']:<16} {data[-20:]:<20} {way:<10} {rate:>11.2f}   {ratio}", flush=True)
            say(f"largest differences: {row['largest_differences']}")
            wrong += [
                f"{path}: {name} by {gap:.1e}" for name, gap in row["largest_differences"].items() if not gap <= 1e-4
            ]
            if not row.get("bfloat16_rank_correlation", 1) >= 0.99:
                wrong.append(f"{path}: bfloat16 ranks correlate by {row['bfloat16_rank_correlation']:.4f} alone")
    peaks = [row for path in shapes if memory_repeats for row in memory(path, memory_repeats)]
    for row in peaks:
        ours, full = (statistics.median(values) for values in row["mib"].values())
        print(
            f"{row['model']:<16} peak of 8 x 256 tokens, {row['case']:<11}: {ours:,.0f} MiB above the model, full logits "
            f"{full:,.0f}; ratio {row['ratio'][0]} [{row['ratio'][1]}, {row['ratio'][2]}]"
        )
    machine = {"device": device, "cpus": os.cpu_count(), "system": os.uname().sysname, "machine": os.uname().machine}
    record = {"repeats": repeats, "speed": rows, "memory": peaks, "machine": machine, **git_state()}
    write_json(output_file, json.loads(json.dumps(record | {"versions": versions()})))
    if wrong:
        fail(f"scores differ by more than 1e-4: {'; '.join(wrong)}; the ways are not the same computation")


if __name__ == "__main__":
    run_command(app)
