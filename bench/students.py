"""train_student.py and score_ood.py against plain transformers, whole commands and their loops: a real encoder, human news.

    python -m data.real_models; python -m data.prepare ag_news
    python -m bench.students train --num-examples 2000 --repeats 5
    python -m bench.students score --num-texts 100000 --repeats 3      # with a student that `train` has left
    python -m data.prepare sst2; python -m bench.students score --texts sst2 --num-texts 6000
    python -m bench.students train --num-examples 64 --repeats 1 --num-dev 32        # a try
    python -m bench.students score --num-texts 256 --repeats 1                       # a try
    python -m bench.students --table

train   the same examples (other ones in each repeat), batch 32, rate 1.5e-4, warm-up .1, weight decay .01, one epoch:
  ours, ours-bf16     train_student.py; no example is held out, so that it measures nothing in the middle; --dtype bfloat16
  checked             the same with its tenth held out beside as many training examples: an evaluation and a checkpoint more
  rival, rival-bf16   bench/run_glue_like.py, transformers' Trainer as its own example script has it, with its best settings
score   texts of 12 to 20 words, cut out of the news; with --texts sst2 whole phrases of film critics, 1 to 50 words:
  ours                score_ood.py with its defaults
  plain               bench/run_glue_like.py score: batches of 32 in the order of the file; its energies must agree to 1e-4

loop: Trainer's own train_runtime; of scoring the tokens and the passes, without loading, reading and writing. command: from
the start of the process to its end. Ratios above 1: ours is faster. The rival of `train` is the one with the faster
loop. A line a way and repeat in bench/results/students.jsonl.
"""

import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from bench import run_glue_like as rival
from bench.human import BASE, RATE, accuracy, load_human, measured
from bench.stages import lines_of, note, told
from gold.command import fail, say
from gold.examples import read_examples
from gold.jsonl import read_records, write_file
from gold.runs import git_state
from gold.task import load_task
from train_student import is_held_out

RESULTS, WORK, TASK = Path("bench/results/students.jsonl"), Path("runs/students"), Path("prompts/ag_news.toml")
BATCH, WORDS, CLOSE = 32, (12, 20), 1e-4
RIVAL = [sys.executable, "bench/run_glue_like.py"]
OPTIONS = {
    "ours": [], "ours-bf16": ["--dtype", "bfloat16"], "checked": [], "rival": [], "rival-bf16": ["--bf16"],
}  # fmt: skip
# score_ood.py, which says how long its pass over the examples took
CLOCKED = """
import json, time
import score_ood
inner = score_ood.score_examples
def clocked(*given, **how):
    began = time.perf_counter()
    found = inner(*given, **how)
    print(json.dumps({"loop_seconds": time.perf_counter() - began}))
    return found
score_ood.score_examples = clocked
score_ood.run_command(score_ood.app)
"""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def timed(command: list[str]) -> tuple[float, dict]:
    """(seconds of the whole command, what its last line on stdout holds)."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    if done.returncode:
        fail(f"{' '.join(command)[-300:]}: ended with {done.returncode}: {done.stderr[-1500:]}; run it by hand")
    lines = done.stdout.strip().splitlines()
    return wall, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def turns(ways: list[str], repeat: int) -> list[str]:
    """Forwards and backwards by turns, and every two repeats another way is first."""
    order, first = ways[:: 1 if repeat % 2 else -1], repeat // 2 % len(ways)
    return order[first:] + order[:first]


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_once(way: str, files: dict[str, Path], epochs: float, seed: int) -> tuple[Path, dict]:
    """(the student's folder, seconds and steps)."""
    folder = WORK / way
    shutil.rmtree(folder, ignore_errors=True)
    same = ["--model", str(BASE), "--learning-rate", str(RATE), "--seed", str(seed), *OPTIONS[way]]
    if way.startswith("rival"):
        command = [*RIVAL, "train", "--train-file", str(files["train"]), "--output-dir", str(folder / "student")]
        wall, found = timed([*command, "--epochs", str(epochs), "--batch-size", str(BATCH), *same])
        return folder / "student", {"wall": wall, **found}
    file = files["checked" if way == "checked" else "train"]
    command = [sys.executable, "train_student.py", "--task-file", str(TASK), "--train-file", str(file)]
    command += ["--num-train-epochs", str(epochs), "--per-device-train-batch-size", str(BATCH)]
    wall, _ = timed([*command, "--output-dir", str(folder / "student"), *same])
    log = lines_of(folder / "student" / "training_log.jsonl")
    last = next(entry for entry in log if "train_runtime" in entry)
    return folder / "student", {"wall": wall, "loop_seconds": last["train_runtime"], "steps": last["step"]}


def sampled(human: list[dict], number: int, seed: int) -> dict[str, Path]:
    """Files of `number` examples that train_student.py does not hold out, and of these with a tenth of all to hold out."""
    draw = random.Random(seed)
    told = {held: [e for e in human if is_held_out(e["id"]) == held] for held in (False, True)}
    if number > len(told[False]):
        fail(f"--num-examples {number}: there are {len(told[False]):,} human examples; give no more")
    rows = draw.sample(told[False], number)
    files = {"train": rows, "checked": rows + draw.sample(told[True], min(len(told[True]), max(1, number // 9)))}
    for name, examples in files.items():
        write_file(WORK / f"{name}.jsonl", examples)
    return {name: WORK / f"{name}.jsonl" for name in files}


@app.command()
def train(
    num_examples: Annotated[int, typer.Option(help="Human ones, for training.")] = 2000,
    epochs: Annotated[float, typer.Option()] = 1,
    num_dev: Annotated[int, typer.Option(help="Human ones, for the accuracy.")] = 1000,
    ways: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(OPTIONS),
    repeats: Annotated[int, typer.Option()] = 5,
) -> None:
    """Train all ways in turn, in each repeat on other examples with another seed."""
    task, run = load_task(TASK), int(time.time())
    data = load_human(task)
    WORK.mkdir(parents=True, exist_ok=True)
    names, dev = ways.split(","), data.dev[:num_dev]
    for repeat in range(-1, repeats):  # -1: files and code come from the disk for the first time
        files = sampled(data.human, num_examples if repeat >= 0 else BATCH, repeat)
        for way in turns(names, repeat):
            folder, found = train_once(way, files, epochs, max(repeat, 0))
            if repeat < 0:
                continue
            if way.startswith("rival"):
                scores = rival.plain_scores(*rival.load(str(folder)), dev)
                found["accuracy"] = sum(s["correct"] for s in scores) / len(scores)
            else:
                found["accuracy"] = accuracy(measured(task, folder), dev)
            about = {"part": "train", "num_examples": num_examples, "epochs": epochs, "num_dev": len(dev), "way": way}
            note(RESULTS, about | {"run": run, "repeat": repeat} | found | git_state())
            say(f"{about} {found}")


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def short_texts(number: int, other: str | None) -> Path:
    """A file of windows of WORDS words out of the news, the same ones every time; or of the whole texts of another task."""
    task, path = load_task(TASK), WORK / f"texts-{other or 'news'}-{number}.jsonl"
    WORK.mkdir(parents=True, exist_ok=True)
    if other:
        field, label = load_task(Path(f"prompts/{other}.toml")).fields[0], next(iter(task.labels))
        texts = [record[field] for _, record in read_records(Path(f"data/{other}/test.jsonl"))][:number]
        if len(texts) < number:
            fail(f"--num-texts {number}: there are {len(texts):,}; give no more")
        write_file(
            path,
            [{"id": f"short-{i:06d}", "text": t, "label": label, "source": f"text: {t}"} for i, t in enumerate(texts)],
        )
        return path
    whole = [(e["text"].split(), e["label"]) for e in read_examples(Path("data/ag_news/test.jsonl"), task)]
    whole = [(words, label) for words, label in whole if len(words) >= WORDS[1]]
    draw, rows = random.Random(0), []
    for i in range(number):
        (words, label), size = whole[i % len(whole)], draw.randint(*WORDS)
        begin = draw.randint(0, len(words) - size)
        text = " ".join(words[begin : begin + size])
        rows.append({"id": f"short-{i:06d}", "text": text, "label": label, "source": f"text: {text}"})
    write_file(path, rows)
    return path


def largest_gaps(ours: Path, plain: Path) -> dict[str, float]:
    """The largest difference of each score, and the share of other predictions."""
    pairs = [(a, b) for (_, a), (_, b) in zip(read_records(ours), read_records(plain), strict=True)]
    assert all(a["id"] == b["id"] for a, b in pairs), "the texts stand in another order"
    gaps = {name: max(abs(a[name] - b[name]) for a, b in pairs) for name in ("energy", "msp", "entropy", "margin")}
    return gaps | {"prediction": sum(a["prediction"] != b["prediction"].lower() for a, b in pairs) / len(pairs)}


@app.command()
def score(
    num_texts: Annotated[int, typer.Option()] = 100_000,
    model: Annotated[Path, typer.Option(help="A student of the task.")] = WORK / "ours/student",
    repeats: Annotated[int, typer.Option()] = 3,
    texts: Annotated[str | None, typer.Option(help="A task whose texts they are; none: windows of the news.")] = None,
) -> None:
    """Score the texts in both ways in turn, with the same weights."""
    if not model.exists():
        fail(f"--model {model}: no such folder; python -m bench.students train leaves one")
    run, whole = int(time.time()), short_texts(num_texts, texts)
    outputs = {way: WORK / f"scored-{way}" / "scored.jsonl" for way in ("ours", "plain")}
    for repeat in range(-1, repeats):
        input_file = whole if repeat >= 0 else short_texts(BATCH, texts)
        found = {}
        for way in turns(list(outputs), repeat):
            shutil.rmtree(outputs[way].parent, ignore_errors=True)
            outputs[way].parent.mkdir()
            command = [*RIVAL, "score"]
            if way == "ours":
                command = [sys.executable, "-c", CLOCKED, "--task-file", str(TASK)]
            files = ["--model", str(model), "--input-file", str(input_file), "--output-file", str(outputs[way])]
            wall, said = timed([*command, *files])
            found[way] = {"wall": wall, **said}
        gaps = largest_gaps(outputs["ours"], outputs["plain"])
        assert gaps["energy"] <= CLOSE, gaps
        for way in found if repeat >= 0 else ():
            about = {
                "part": "score",
                "num_texts": num_texts,
                "texts": texts or "news",
                "way": way,
                "run": run,
                "repeat": repeat,
            }
            note(RESULTS, about | found[way] | {"gaps": gaps} | git_state())
            say(f"{about} {found[way]} {gaps}")


# ---------------------------------------------------------------------------------------------------------------------
# The table


def table_of(lines: list[dict], number: int, reference: str) -> None:
    """A row a way; ratios are those of pairs of one repeat."""
    other = {(line["run"], line["repeat"]): line for line in lines if line["way"] == reference}
    for way in dict.fromkeys(line["way"] for line in lines):
        mine = [line for line in lines if line["way"] == way]
        pairs = [(line, other[key]) for line in mine if (key := (line["run"], line["repeat"])) in other]
        cells = [f"{number:,}", way, str(len(mine)), told([number / line["loop_seconds"] for line in mine], ",.0f")]
        cells += [told([b["loop_seconds"] / a["loop_seconds"] for a, b in pairs]) if pairs else "-"]
        cells += [told([line["wall"] for line in mine], ",.1f")]
        cells += [told([b["wall"] / a["wall"] for a, b in pairs]) if pairs else "-"]
        cells += [told([line["accuracy"] for line in mine], ".3f")] if "accuracy" in mine[0] else []
        print(f"| {' | '.join(cells)} |")


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context, table: Annotated[bool, typer.Option("--table", help="Print what is there.")] = False
) -> None:  # fmt: skip
    if context.invoked_subcommand:
        return
    for part, size in (("train", "num_examples"), ("score", "num_texts")):
        lines = [line for line in lines_of(RESULTS) if line["part"] == part]
        head = [part, "way", "n", "examples/s, loop", "of its rival, loop", "command, s", "of its rival, command"]
        head += ["accuracy"] * (part == "train")
        print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        kinds = [(line[size], line.get("epochs", 1), line.get("texts", "news")) for line in lines]
        for number, epochs, texts in dict.fromkeys(kinds):
            mine = [line for line, kind in zip(lines, kinds, strict=True) if kind == (number, epochs, texts)]
            rivals: dict[str, list[float]] = {}
            for line in mine:
                if line["way"].startswith(("rival", "plain")):
                    rivals.setdefault(line["way"], []).append(line["loop_seconds"])
            fastest = min(rivals, key=lambda way: statistics.median(rivals[way])) if rivals else ""
            table_of(mine, int(number * epochs), fastest)


if __name__ == "__main__":
    app()
