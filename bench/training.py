"""What training a student costs: train_student.py against the authors' way, and where its time goes.

    python -m bench.training                                           # T5-base, random weights; to the accuracy; shares
    python -m bench.training --shape t5-base --shape modernbert-base --shape qwen2.5-0.5b --steps 50     # on a GPU
    python -m bench.training --shape tiny-t5 --num-examples 100 --epochs 1 --repeats 1                   # seconds

The authors' way, re-stated here in plain PyTorch from what their released code does: batches of 8 in random order, every
source padded to 128 and every target to 32 tokens, float32, AdamW. Not theirs: padding has no loss and the learning rate is
that of our way, so that both learn alike. 128 and 32 because those are the lengths of their code for classification; on
longer texts than these reviews (17 tokens in the mean) padding costs less, and the ratio is smaller.

1. Speed: examples/s of both ways on as many examples, --steps steps of ours, at each --shape. The time is that of the loop
   alone: no loading, no tokenising, no saving. On a GPU further the tokens/s (real ones), what share of the card's own
   matmul rate the useful operations make (those of the unpadded examples, forward, times 3), and the peak memory.
2. To the same accuracy: seconds of training until an epoch of the embedded T5 ends with --target-accuracy on the reviews'
   test set; training data by the grammar, other ones in each repeat. Measuring the accuracy is off the clock of both.
3. Shares of the time of load_student and fit, by timers around its parts, at the first --shape.

All ratios are authors' seconds / ours, of one run each, interleaved: median [min, max]. Prints them and writes
bench/results/training.json (--output-file).
"""

import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer

import train_student
from bench.machine import machine
from bench.shapes import SHAPES, TASK_FILE, build, reviews
from bench.stages import TRAIN_OPTIONS
from gold import student as students
from gold.command import fail, say
from gold.examples import read_examples
from gold.runs import git_state, versions
from gold.student import Student
from gold.task import Task, load_task

SOURCE, TARGET, BATCH = 128, 32, 8  # of the authors' code
OPTIONS = TRAIN_OPTIONS | {"learning_rate": 5e-4, "num_train_epochs": 1}  # the rate is for random weights
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------------------------
# The two ways


def authors_way(
    task: Task, model: str, rows: list[dict], epochs: int, seed: int, learning_rate: float, test: list[dict] | None = None
) -> list[tuple[float, float]]:  # fmt: skip
    """Train in plain PyTorch; (seconds of training so far, accuracy on `test`, nan without) after each epoch."""
    import torch

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = students.load_student(model, task, seed)
    network, family = student.network, student.family
    network.to(device).train()
    data = padded(rows, student)
    held = padded(test, student) if test else None
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    steps = epochs * -(-len(rows) // BATCH)
    warm = max(1, int(OPTIONS["warmup_ratio"] * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm))
    )
    found, seconds = [], 0.0
    for _ in range(epochs):
        wait()
        began = time.perf_counter()
        for ids in torch.randperm(len(rows)).split(BATCH):
            batch = {name: values[ids].to(device) for name, values in data.items()}
            loss = network(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        wait()
        seconds += time.perf_counter() - began
        found.append((seconds, accuracy(network, held, family, device) if held else float("nan")))
    return found


def padded(rows: list[dict], student: Student) -> dict[str, Any]:
    """All examples as tensors of one width: sources of 128 tokens, labels of 32 (-100 is padding); a decoder: 160 of both."""
    import torch

    student.lengths = {"max_source_length": SOURCE, "max_target_length": TARGET}
    features, family, pad = student.encode(rows), student.family, student.tokenizer.pad_token_id
    if family == "encoder":
        wide = [(f["input_ids"], [f["labels"]], SOURCE, 1) for f in features]
    elif family == "decoder":
        both = [(f["input_ids"] + f["labels"], [-100] * len(f["input_ids"]) + f["labels"]) for f in features]
        wide = [(inputs, labels, SOURCE + TARGET, SOURCE + TARGET) for inputs, labels in both]
    else:
        wide = [(f["input_ids"], f["labels"], SOURCE, TARGET) for f in features]
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels, _, width in wide])
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _, width, _ in wide]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _, width, _ in wide]),
        "labels": labels[:, 0] if family == "encoder" else labels,
    }


def accuracy(network: Any, data: dict[str, Any], family: str, device: str) -> float:
    """Share of the examples whose answer greedy decoding would write: right at every target token, teacher-forced."""
    import torch

    network.eval()
    right = []
    with torch.no_grad():
        for ids in torch.arange(len(data["labels"])).split(64):
            batch = {name: values[ids].to(device) for name, values in data.items()}
            guesses, labels = network(**batch).logits.argmax(-1), batch["labels"]
            if family == "decoder":
                guesses, labels = guesses[:, :-1], labels[:, 1:]
            hit = (guesses == labels) | (labels == -100)
            right += (hit if hit.dim() == 1 else hit.all(-1)).tolist()
    network.train()
    return sum(right) / len(right)


def train_ours(task: Task, model: str, rows: list[dict], test: list[dict], options: dict) -> list[dict]:
    """What train_student.py does between reading and the run record; the log."""
    student = students.load_student(model, task, options["seed"])
    with tempfile.TemporaryDirectory() as folder:
        counts, log = train_student.fit(student, rows, test, Path(folder) / "checkpoints", options)
        student.save(Path(folder) / "student", counts["dtype"])
    return log


def our_way(
    task: Task, model: str, rows: list[dict], epochs: int, seed: int, learning_rate: float, test: list[dict] | None = None
) -> list[tuple[float, float]]:  # fmt: skip
    """As train_student.py trains; (seconds of training so far, accuracy on `test`) after each epoch."""
    from gold.trainer import StudentTrainer

    options = OPTIONS | {"num_train_epochs": epochs, "seed": seed, "learning_rate": learning_rate}
    clock, measured = [], [0.0]  # (time, seconds of measuring so far, record) of the log
    log, measure = StudentTrainer.log, StudentTrainer.measure

    def timed_log(self: Any, logs: dict, *args: Any) -> None:
        clock.append((time.perf_counter(), measured[0], logs))
        log(self, logs, *args)

    def timed_measure(self: Any) -> dict:
        began = time.perf_counter()
        found = measure(self)
        measured[0] += time.perf_counter() - began
        return found

    with mock.patch.multiple(StudentTrainer, log=timed_log, measure=timed_measure):
        train_ours(task, model, rows, test or [], options)
    end, _, last = next(entry for entry in clock if "train_runtime" in entry[2])
    if not test:
        return [(last["train_runtime"], float("nan"))]
    start = end - last["train_runtime"]  # Trainer's clock starts with the loop
    return [(at - start - off, logs["eval_accuracy"]) for at, off, logs in clock if "eval_accuracy" in logs]


WAYS = {"ours": our_way, "authors": authors_way}


def middle(values: list[float]) -> list[float]:
    """[median, min, max], to four digits."""
    return [float(f"{v:.4g}") for v in (statistics.median(values), min(values), max(values))]


def interleaved(repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, way): both ways in each repeat, in changing order; repeat -1 warms up."""
    for repeat in range(-1, repeats):
        for way in list(WAYS)[:: 1 if repeat % 2 else -1]:
            yield repeat, way


# ---------------------------------------------------------------------------------------------------------------------
# 1. Speed


def speed(task: Task, shape: str, model: str, steps: int, repeats: int) -> dict:
    """Examples/s of both ways, and on a GPU tokens/s, share of the matmul rate and peak memory."""
    import torch

    cuda = torch.cuda.is_available()
    number = steps * OPTIONS["per_device_train_batch_size"]
    useful = useful_work(task, model, reviews(min(number, 32), seed=1)) if cuda else None
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks = dict.fromkeys(WAYS, 0)
    for repeat, way in interleaved(repeats):
        rows = reviews(number if repeat >= 0 else OPTIONS["per_device_train_batch_size"], seed=2 + repeat)
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = WAYS[way](task, model, rows, 1, max(repeat, 0), OPTIONS["learning_rate"])[-1][0]
        if repeat >= 0:
            rates[way].append(len(rows) / seconds)
            peaks[way] = max(peaks[way], torch.cuda.max_memory_allocated() if cuda else 0)
            say(f"{shape}, {way}: {rates[way][-1]:.4g} examples/s")
    row: dict[str, Any] = {"shape": shape, "examples": number, "repeats": repeats}
    row["ratio"] = middle([ours / theirs for ours, theirs in zip(rates["ours"], rates["authors"], strict=True)])
    for way in WAYS:
        row[way] = {"examples_per_second": middle(rates[way])}
        if useful:
            row[way] |= {
                "tokens_per_second": middle([r * useful["tokens"] for r in rates[way]]),
                "share_of_matmul_rate": middle([r * useful["flops"] / useful["matmul_rate"] for r in rates[way]]),
                "peak_memory_gib": round(peaks[way] / 2**30, 2),
            }
    return row | ({"useful": useful} if useful else {})


def useful_work(task: Task, model: str, rows: list[dict]) -> dict[str, float]:
    """Of one example in the mean: real tokens read and written, and floating-point operations of a step on it alone
    (forward counted by torch, times 3); and the bfloat16 matmul rate of this card, operations/s."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    student = students.load_student(model, task)
    student.lengths = {"max_source_length": SOURCE, "max_target_length": TARGET}
    network, family, features = student.network.to("cuda"), student.family, student.encode(rows)
    tokens = operations = 0
    for f in features:
        labels = [f["labels"]] if family == "encoder" else f["labels"]
        tokens += len(f["input_ids"]) + (0 if family == "encoder" else len(labels))
        inputs = {"input_ids": f["input_ids"] + (labels if family == "decoder" else [])}
        inputs |= {"decoder_input_ids": labels} if family == "encoder-decoder" else {}
        how = {"logits_to_keep": len(labels) + 1} if family == "decoder" else {}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(**{name: torch.tensor([ids], device="cuda") for name, ids in inputs.items()}, **how)
        operations += 3 * counter.get_total_flops()
    size, times = 8192, []
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(20):
        wait()
        began = time.perf_counter()
        a @ b
        wait()
        times.append(time.perf_counter() - began)
    rate = 2 * size**3 / statistics.median(times[5:])
    return {"tokens": tokens / len(rows), "flops": operations / len(rows), "matmul_rate": rate}


# ---------------------------------------------------------------------------------------------------------------------
# 2. To the same accuracy


def to_accuracy(
    task: Task, model: str, test: list[dict], number: int, epochs: int, target: float, repeats: int
) -> dict:
    """Seconds of training of both ways until an epoch ends with the target accuracy on `test`; None: never did."""
    seconds: dict[str, list[float | None]] = {way: [] for way in WAYS}
    curves: dict[str, list] = {way: [] for way in WAYS}
    for repeat, way in interleaved(repeats):
        if repeat < 0:
            WAYS[way](task, model, reviews(32, seed=1), 1, 0, OPTIONS["learning_rate"], test[:16])
            continue
        rows = reviews(number, seed=100 + repeat)
        found = WAYS[way](task, model, rows, epochs, repeat, OPTIONS["learning_rate"], test)
        seconds[way].append(next((s for s, reached in found if reached >= target), None))
        curves[way].append([[round(s, 3), round(reached, 4)] for s, reached in found])
        say(f"to {target} in repeat {repeat}, {way}: {seconds[way][-1]} s; accuracy at the end {found[-1][1]:.3f}")
    pairs = [
        (o, a) for o, a in zip(seconds["ours"], seconds["authors"], strict=True) if o is not None and a is not None
    ]
    return {
        "examples": number, "epochs": epochs, "target_accuracy": target, "test_examples": len(test), "repeats": repeats,
        "both_reached": len(pairs), "ratio": middle([theirs / ours for ours, theirs in pairs]) if pairs else None,
        "seconds": seconds, "curves": curves,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# 3. Where the time goes


@contextlib.contextmanager
def timers(spent: Counter) -> Iterator[None]:
    """Add the seconds of the parts of train_ours to `spent`, those of an inner part to it alone; a GPU is waited for."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedModel, Trainer

    from gold.trainer import StudentTrainer

    parts = [
        ("load the model", students, "load_student"), ("tokenise", Student, "encode"),
        ("data", Trainer, "get_batch_samples"), ("forward", Trainer, "training_step"),
        ("backward", Accelerator, "backward"), ("clip gradients", Trainer, "_clip_grad_norm"),
        ("optimiser", AcceleratedOptimizer, "step"), ("evaluate", StudentTrainer, "measure"),
        ("save", PreTrainedModel, "save_pretrained"),
    ]  # fmt: skip
    inner = [0.0]  # by depth: the seconds of what was called from there

    def timed(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            wait()
            began = time.perf_counter()
            inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                wait()
                took = time.perf_counter() - began
                spent[name] += took - inner.pop()
                inner[-1] += took

        return call

    with contextlib.ExitStack() as stack:
        for name, owner, attribute in parts:
            stack.enter_context(mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield


def shares(task: Task, model: str, number: int, epochs: int) -> dict:
    """Share of each part of train_ours in its seconds; `other` is Python between the parts, and Trainer's own beginning."""
    spent: Counter = Counter()
    rows, held_out = reviews(number, seed=5), reviews(max(1, number // 9), seed=6)
    options = OPTIONS | {"num_train_epochs": epochs}
    with timers(spent):
        began = time.perf_counter()
        train_ours(task, model, rows, held_out, options)
        total = time.perf_counter() - began
    spent["other"] = total - sum(spent.values())
    return {
        "examples": number, "epochs": epochs, "seconds": round(total, 3),
        "shares": {name: round(seconds / total, 4) for name, seconds in spent.most_common()},
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Command


@app.command()
def main(
    shape: Annotated[list[str], typer.Option(help=f"Of 1 and 3, repeat for several: {', '.join(SHAPES)}.")] = ("t5-base",),
    steps: Annotated[int | None, typer.Option(min=1, help="1: our steps of 16 examples (CPU 1, GPU 50).")] = None,
    num_examples: Annotated[int, typer.Option(min=16, help="2: training examples.")] = 1500,
    epochs: Annotated[int, typer.Option(min=1, help="2: passes at most.")] = 8,
    target_accuracy: Annotated[float, typer.Option(min=0, max=1, help="2: on the reviews' test set.")] = 0.6,
    repeats: Annotated[int, typer.Option(min=1, help="Of 1 and 2.")] = 3,
    folder: Annotated[Path, typer.Option(help="Where the models are built, once.")] = Path("runs/shapes"),
    output_file: Annotated[Path, typer.Option(help="The record.")] = Path("bench/results/training.json"),
) -> None:  # fmt: skip
    """Measure and print all three parts."""
    import torch

    from data import reviews_grammar
    from data.build_models import build_student

    for name in shape:
        if name not in SHAPES:
            fail(f"--shape {name}: no such shape; choose from {', '.join(SHAPES)}")
    task = load_task(TASK_FILE)
    test = read_examples(TASK_FILE.parent.parent / "data" / "reviews" / "test.jsonl", task)
    steps = steps or (50 if torch.cuda.is_available() else 1)
    here = machine()
    print(f"{here.get('gpu') or here['cpu']}, {here['threads']} threads; authors' seconds / ours, median [min, max]")
    models = {name: str(build(name, folder)) for name in shape}
    found: dict[str, Any] = {"machine": here, "speed": []}
    for name in shape:
        row = speed(task, name, models[name], steps, repeats)
        found["speed"].append(row)
        rates = {way: row[way]["examples_per_second"][0] for way in WAYS}
        print(f"{name:16} speed {told(row['ratio'])}: {rates['ours']:.4g} against {rates['authors']:.4g} examples/s")
        for way in WAYS if row.get("useful") else ():
            print(
                f"{'':16} {way}: {row[way]['tokens_per_second'][0]:,.0f} tokens/s, "
                f"{row[way]['share_of_matmul_rate'][0]:.2%} of the matmul rate, {row[way]['peak_memory_gib']} GiB"
            )
    student = folder / "reviews-t5"
    build_student(student, "t5", task, reviews_grammar, 0)
    found["to_accuracy"] = row = to_accuracy(task, str(student), test, num_examples, epochs, target_accuracy, repeats)
    reached = f"in {row['both_reached']} of {repeats} repeats both reached it"
    print(f"{'reviews, T5':16} to accuracy {target_accuracy} {told(row['ratio'])}; {reached}")
    number = steps * OPTIONS["per_device_train_batch_size"]
    cases = itertools.chain([(shape[0], models[shape[0]], number, 1)], [("reviews, T5", str(student), num_examples, 2)])
    found["shares"] = {name: shares(task, model, size, passes) for name, model, size, passes in cases}
    for name, row in found["shares"].items():
        parts = ", ".join(f"{part} {share:.1%}" for part, share in row["shares"].items())
        print(f"{name:16} {row['examples']} examples x {row['epochs']} in {row['seconds']} s: {parts}")
    output_file.parent.mkdir(parents=True, exist_ok=True)
    output_file.write_text(json.dumps(found | git_state() | {"versions": versions()}, indent=1) + "\n")


def told(ratio: list[float] | None) -> str:
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "-"


if __name__ == "__main__":
    app()
