"""Real data: the stages against plain transformers code, LLM-written training sets with and without filters, OOD detection.

    OMP_NUM_THREADS=2 .venv/bin/python -m bench.real_data --datasets ../shared/datasets --model path/to/minilm
    ... --only C                      # one part (A, B, C, F), or the data whose name holds this
    ... --only table                  # no run: the tables from the lines that are there

Part A: human training data -> human test data, by train_student.py and by twenty lines of plain transformers code on the same
rows with the same settings. Part B: LLM-written training sets -> human test data, equal rows, before and after the filters of
the toolkit; part F, which trains nothing, counts what the filters find in each whole file. Part C: the CLINC150 student of
part A, dev against out-of-scope queries, every score.

The student is the encoder of bench/requirements.txt (BERT architecture, 22 million parameters), so that two cores do for all
of it. A run is one line of bench/results/real_data.jsonl; finished runs are skipped, so a killed command is simply run again.
--datasets holds <set>/<split>.jsonl.gz: one flat object a line, labels as text. Students and task files: runs/real_data.
"""

import gzip
import hashlib
import json
import os
import platform
import random
import re
import shutil
import statistics
import string
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.stages import TRAIN_OPTIONS
from gold.command import fail, say
from gold.examples import example_key
from gold.metrics import mean_interval
from gold.parsing import check_fields, copies_shot
from gold.predict import score_examples
from gold.runs import git_state, versions
from gold.scores import detection
from gold.student import lengths_of, load_student, load_trained
from gold.task import Task, load_task
from score_ood import all_scores, scores_without_answer
from train_student import fit

WORK = Path("runs/real_data")
RESULTS = Path("bench/results/real_data.jsonl")

# ---------------------------------------------------------------------------------------------------------------------
# Data

NLI = ["entailment", "not_entailment"]
TASKS = {  # name: (fields, labels; None = those of the data, sorted)
    "sst2": (["text"], ["negative", "positive"]),
    "imdb": (["text"], ["negative", "positive"]),
    "ag_news": (["text"], ["World", "Sports", "Business", "Sci/Tech"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "rte": (["premise", "hypothesis"], NLI),
    "banking77": (["text"], None),
    "trec": (["text"], None),
    "clinc150": (["text"], None),
    "tweet_sentiment": (["text"], ["negative", "neutral", "positive"]),
}
BATCH = 64  # examples of 128 tokens in a forward pass
BASE = TRAIN_OPTIONS | {
    "num_train_epochs": 3, "per_device_train_batch_size": 32, "max_source_length": 128, "max_target_length": 8,
    "dtype": "float32",
}  # fmt: skip
# name: (training file, test file or None = a quarter of the training file, training rows, test rows, seeds, settings).
# The sizes are such that two free cores need about an hour for the first seed of everything.
HUMAN = {
    "sst2": ("sst2/train", "sst2/dev", 2000, 871, 3, {"num_train_epochs": 2}),
    "trec": ("trec/train", None, 3000, 1300, 3, {}),
    "ag_news": ("agnews/dev_from_train", None, 1500, 2000, 3, {"num_train_epochs": 2}),
    "mrpc": ("mrpc/train", "mrpc/dev", 2000, 408, 2, {}),
    "banking77": ("banking77/train", None, 4000, 2000, 2, {"num_train_epochs": 4, "learning_rate": 2e-4}),
    "clinc150": (
        "clinc150/train", "clinc150/dev", 15_000, 3000, 1,
        {"num_train_epochs": 4, "learning_rate": 1.5e-4, "per_device_train_batch_size": 64},
    ),
}  # fmt: skip
GENERATORS = ["gpt2-xl", "flan-t5-xl", "llama-2-7b-chat", "vicuna-7b-1.5v", "chatglm3-6b-base", "gpt-4-turbo-preview"]
# task: (human file, its test side or None = a quarter of the human file, test rows, training rows, training sets)
WRITTEN = {
    "ag_news": (
        "agnews/dev_from_train", None, 2000, 1000,
        [f"llm_kinit_agnews/train_{way}" for way in ("mistral_zeroshot", "mistral_fewshot", "llama_zeroshot", "llama_fewshot")],
    ),
    "tweet_sentiment": (
        "llm_parrot_sentiment/human_base", "llm_parrot_sentiment/human_train", 2000, 500,
        ["llm_parrot_sentiment/train_gpt-4", "llm_parrot_sentiment/train_llama-2-70b"],
    ),
    "imdb": (
        "imdb/train", None, 800, 500,
        [*(f"llm_fusegen_imdb/train_{name}" for name in GENERATORS), "llm_s3_imdb/train_round1"],
    ),
    "rte": ("rte/train", None, 1500, 800, ["llm_s3_rte/train_round1"]),
}  # fmt: skip


def read_rows(datasets: Path, name: str) -> list[dict]:
    path = datasets / f"{name}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        fail(f"--datasets: {path} cannot be read: {error}; give the folder that holds <set>/<split>.jsonl.gz")


def prepare_task(name: str, datasets: Path) -> Task:
    """The toolkit's task file where it has one, else one with nothing but fields and labels; kept for all later runs."""
    path = WORK / "prompts" / f"{name}.toml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = Path("prompts") / path.name
        path.write_text(own.read_text() if own.exists() else plain_task(name, datasets))
    return load_task(path)


def plain_task(name: str, datasets: Path) -> str:
    fields, labels = TASKS[name]
    labels = labels or sorted({r["label"] for r in read_rows(datasets, HUMAN[name][0])})
    quoted = json.dumps
    lines = [
        f'name = "{name}"', "version = 1", f'description = "{name}"', 'kind = "classification"', 'metric = "accuracy"',
        f"fields = {quoted(fields)}", 'answer_field = "label"', 'seed_examples = "none.jsonl"', "[labels]",
        *(f"{quoted(label)} = {quoted(f'of the class {label}')}" for label in labels),
        "[prompt]", 'train = "$shots $start"', 'validation = "$shots $start"',
        "example = " + quoted("\n".join(["Label: $label", *(f"{field.capitalize()}: ${field}" for field in fields)])),
        "[parse]", "max_overlap = 0.7",
        "[student]", "source = " + quoted(" ".join(f"{field}: ${field}" for field in fields)), 'target = "$label"',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def examples_of(rows: list[dict], task: Task, name: str) -> list[dict]:
    """Rows as read_examples gives them: with id, source and target."""
    return [
        {"id": f"{name}:{i}"}
        | row
        | {key: string.Template(getattr(task.student, key)).safe_substitute(row) for key in ("source", "target")}
        for i, row in enumerate(rows)
    ]


def draw(rows: list[dict], n: int, seed: int) -> list[dict]:
    return random.Random(seed).sample(rows, min(n, len(rows)))


def text_form(text: str) -> str:
    """Letters and digits alone: the rule by which the sets of the stored results were split, whatever counts as a duplicate."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def is_test(row: dict, task: Task) -> bool:
    """A quarter, by a hash of the first field: rows with the same text, premise or first sentence stay together.

    With a word before it: a file that somebody sampled by the hash of its texts would be no quarter otherwise.
    """
    return hashlib.sha256(f"real_data {text_form(row[task.fields[0]])}".encode()).digest()[0] < 64


def split(
    datasets: Path, task: Task, train: str, test: str | None, without: set[str] = frozenset()
) -> tuple[list, list]:
    """(training rows, test rows) with no text in common; texts of `without` are left out of the test rows."""
    rows = read_rows(datasets, train)
    if without:  # what was written for these first fields is measured on the others
        train_rows = [r for r in rows if text_form(r[task.fields[0]]) in without]
        return train_rows, [r for r in rows if text_form(r[task.fields[0]]) not in without]
    if test is None:
        return [r for r in rows if not is_test(r, task)], [r for r in rows if is_test(r, task)]
    test_rows = read_rows(datasets, test)
    known = {example_key(task, r) for r in test_rows}
    return [r for r in rows if example_key(task, r) not in known], test_rows


# ---------------------------------------------------------------------------------------------------------------------
# Filters: those of generate.py, on files that others made

FORM = ("empty_field", "no_match", "debris")  # length limits belong to a prompt, not to other people's data
FILTERS = (*FORM, "several_labels", "duplicate", "copied_shot")


def filter_rows(rows: list[dict], task: Task) -> tuple[list[dict], dict[str, int]]:
    """(rows that stay, how many each filter took); the filters in this order, each on what the ones before it left.

    empty_field, no_match, debris   what check_fields says: empty; ends with a colon or names a field; debris
    several_labels     the same normalised text stands under two labels or more: none of them stays
    duplicate          the same normalised text again: the first one stays
    copied_shot        it repeats the human text that it was written from (`seed`, where that is a text)
    """
    labels: dict[str, set] = {}
    for row in rows:
        labels.setdefault(example_key(task, row), set()).add(row["label"])
    kept, seen, found = [], set(), Counter()
    for row in rows:
        key, shot = example_key(task, row), {name: row.get("seed") for name in task.fields}
        if (reason := check_fields(task, {name: row[name].strip() for name in task.fields})) in FORM:
            found[reason] += 1
        elif len(labels[key]) > 1:
            found["several_labels"] += 1
        elif key in seen:
            found["duplicate"] += 1
        elif all(isinstance(text, str) for text in shot.values()) and copies_shot(task, row, [shot]):
            found["copied_shot"] += 1
        else:
            kept.append(row)
        seen.add(key)
    return kept, {name: found[name] for name in FILTERS}


# ---------------------------------------------------------------------------------------------------------------------
# Two ways to train, each (for every test example: right?, steps)


def by_stages(
    task: Task, model: str, train: list[dict], test: list[dict], options: dict, folder: Path
) -> tuple[list, int]:
    """train_student.py without a held-out tenth (the last epoch is kept), then what evaluate.py predicts with."""
    shutil.rmtree(folder, ignore_errors=True)
    student = load_student(model, task, options["seed"])
    student.lengths["max_source_length"] = options["max_source_length"]
    counts, _ = fit(student, train, [], folder.with_name(folder.name + ".checkpoints"), options)
    student.save(folder, counts["dtype"])
    scores, _ = score_examples(student, test, BATCH)
    return [s["correct"] for s in scores], counts["steps"]


def by_plain_code(task: Task, model: str, train: list[dict], test: list[dict], options: dict) -> tuple[list, int]:
    """What one would write without the toolkit: a torch loop round AutoModelForSequenceClassification."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    torch.manual_seed(options["seed"])
    tokenizer, names = AutoTokenizer.from_pretrained(model), list(task.labels)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names), dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), options["learning_rate"], weight_decay=options["weight_decay"])

    def forward(rows: list[dict]) -> Any:
        cut = {"truncation": True, "max_length": options["max_source_length"]}
        return network(**tokenizer([r["source"] for r in rows], padding=True, return_tensors="pt", **cut)).logits

    size, epochs = options["per_device_train_batch_size"], options["num_train_epochs"]
    steps = -(-len(train) // size) * epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(steps * options["warmup_ratio"]), steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(train)).tolist()
        for i in range(0, len(order), size):
            rows = [train[k] for k in order[i : i + size]]
            answers = torch.tensor([names.index(r["label"]) for r in rows])
            torch.nn.functional.cross_entropy(forward(rows), answers).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    network.eval()
    with torch.inference_mode():
        found = [k for i in range(0, len(test), 64) for k in forward(test[i : i + 64]).argmax(-1).tolist()]
    return [names[k] == r["label"] for k, r in zip(found, test, strict=True)], steps


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def plan() -> list[dict]:
    """All runs, what tells most first; `part`, `data`, `how` and `seed` are a run's key."""
    runs = [
        {"part": "F", "data": name, "how": one, "seed": 0}
        for name, (human, *_, sets) in WRITTEN.items()
        for one in [human, *sets]
    ]
    for seed in range(3):
        for name, (*_, seeds, _) in HUMAN.items():
            ways = ("stages", "plain") if seed < seeds else ()
            runs += [{"part": "A", "data": name, "how": how, "seed": seed} for how in ways]
        if seed == 0:
            runs.append({"part": "C", "data": "clinc150", "how": "dev_oos + train_oos", "seed": 0})
        for name, (human, *_, sets) in WRITTEN.items() if seed < 2 else ():
            runs.append({"part": "B", "data": name, "how": human, "seed": seed})
            runs += [
                {"part": "B", "data": name, "how": f"{one}{suffix}", "seed": seed}
                for one in sets
                for suffix in ("", " filtered")
            ]
    return runs


def key_of(line: dict) -> tuple:
    return tuple(line[name] for name in ("part", "data", "how", "seed"))


def do(run: dict, datasets: Path, model: str) -> dict:
    """The numbers of one run."""
    task, seed = prepare_task(run["data"], datasets), run["seed"]
    if run["part"] == "F":
        rows = read_rows(datasets, run["how"])
        kept, found = filter_rows(rows, task)
        return {"found": found, "of": len(rows), "kept": len(kept)}
    if run["part"] == "B":
        return do_written(run, task, datasets, model)
    train_file, test_file, rows, test_rows, _, settings = HUMAN[run["data"]]
    options = BASE | settings | {"seed": seed}
    train, test = split(datasets, task, train_file, test_file)
    train = examples_of(draw(train, rows, seed), task, "train")
    test = examples_of(draw(test, test_rows, 0), task, "test")
    folder = WORK / "students" / run["data"]
    if run["part"] == "C":
        if not folder.exists():
            by_stages(task, model, train, test, options, folder)
        far = [r for name in ("dev_oos", "train_oos") for r in read_rows(datasets, f"clinc150/{name}")]
        student, how = (
            load_trained(str(folder), task, lengths_of(str(folder)), "float32"),
            {"batch_size": BATCH, "seed": 0},
        )
        near = all_scores(student, test, train, model, how)
        ood = scores_without_answer(student, examples_of(far, task, "far"), how)
        table = detection(near, ood)
        return {"near": len(near), "far": len(far), "detection": table}
    began = time.perf_counter()
    if run["how"] == "stages":
        right, steps = by_stages(task, model, train, test, options, folder)
    else:
        right, steps = by_plain_code(task, model, train, test, options)
    return {"rows": len(train), "steps": steps, "options": options, **measured(right, began)}


def do_written(run: dict, task: Task, datasets: Path, model: str) -> dict:
    """Train on the rows of one file as they are, or on as many of those that the filters leave."""
    human, test_file, test_rows, n, sets = WRITTEN[run["data"]]
    name, filtered = run["how"].removesuffix(" filtered"), run["how"].endswith(" filtered")
    # S3 wrote its hypotheses for premises of RTE: the human rows of these premises are the ones to compare with
    shared = {text_form(r["premise"]) for r in read_rows(datasets, sets[0])} if run["data"] == "rte" else set()
    train, test = split(datasets, task, human, test_file, shared)
    if name != human:
        train = read_rows(datasets, name)
    kept, found = filter_rows(train, task)
    counts = {"found": found, "of": len(train), "kept": len(kept)}
    if filtered and sum(found.values()) < 0.02 * len(train):
        return counts | {"skipped": "the filters find less than 2 %"}
    rows = draw(kept if filtered else train, n, run["seed"])
    options = BASE | {"seed": run["seed"]}
    began = time.perf_counter()
    right, steps = by_stages(
        task, model, examples_of(rows, task, "train"), examples_of(draw(test, test_rows, 0), task, "test"), options,
        WORK / "students" / "written",
    )  # fmt: skip
    return counts | {"rows": len(rows), "steps": steps, "options": options, **measured(right, began)}


def measured(right: list[bool], began: float) -> dict:
    found = mean_interval(right, 0, 10_000)
    seconds = round(time.perf_counter() - began, 1)
    return {"accuracy": found["value"], "low": found["low"], "high": found["high"], "n": len(right), "seconds": seconds}


def surroundings(model: str) -> dict:
    """What may change a number: model, processor, threads, versions."""
    with Path("/proc/cpuinfo").open() as file:
        found = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    return {
        "model": Path(model).parent.name + "/" + Path(model).name,
        "cpu": found[0] if found else platform.processor(),
        "cpus": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": versions(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(lines: list[dict]) -> str:
    """Markdown from the lines of the runs; a run that is not there yet leaves its cell at -."""
    by = {}
    for line in lines:
        by.setdefault((line["part"], line["data"], line["how"]), []).append(line)

    def accuracies(part: str, data: str, how: str) -> list[float]:
        return [line["accuracy"] for line in by.get((part, data, how), []) if "accuracy" in line]

    def cell(values: list[float]) -> str:
        spread = f" ({min(values):.3f} - {max(values):.3f})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}" if values else "-"

    out = [
        "# Real data",
        "",
        "Made by `python -m bench.real_data` (what each part is stands in that file) from `real_data.jsonl`, which has",
        "hardware and versions of each run. Training rows are drawn with the run's seed, test rows once. A cell is the mean",
        "accuracy over the seeds (lowest - highest where there are several).",
        "",
        "## A. Human training data, by the stages and by plain transformers code",
        "",
        "| data | rows | test rows | seeds | stages | plain | difference | one test set's 95 % half-width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data in HUMAN:
        ours, plain = accuracies("A", data, "stages"), accuracies("A", data, "plain")
        if not ours:
            continue
        first = by["A", data, "stages"][0]
        pairs = min(len(ours), len(plain))
        gap = f"{statistics.mean(ours[:pairs]) - statistics.mean(plain[:pairs]):+.3f}" if pairs else "-"
        out.append(
            f"| {data} | {first['rows']:,} | {first['n']:,} | {len(ours)} and {len(plain)} | {cell(ours)} | {cell(plain)} "
            f"| {gap} | {(first['high'] - first['low']) / 2:.3f} |"
        )
    out += [
        "",
        "## B. LLM-written training data, human test data",
        "",
        "As many rows of each set of a task. `filtered`: as many rows of what the filters leave; - where they find less than",
        "2 %. What they find, in this order: by check_fields what is empty, has no form of an example (`no_match`: ends with",
        "a colon, or names a field) or is debris; texts under several labels (all of them go); repeats; copies of the human",
        "text that a row was written from. In human files all but the repeats are false alarms.",
        "",
        f"| test data | trained on | rows | of | {' | '.join(FILTERS)} | as they are | filtered |",
        "|---" * (6 + len(FILTERS)) + "|",
    ]
    for data, (human, *_, sets) in WRITTEN.items():
        for name in [human, *sets]:
            if not (group := by.get(("F", data, name))):
                continue
            line, size = group[0], by.get(("B", data, name), [{}])[0].get("rows", "-")
            found = " | ".join(f"{line['found'][filter_name]:,}" for filter_name in FILTERS)
            out.append(
                f"| {data} | {name} | {size} | {line['of']:,} | {found} | {cell(accuracies('B', data, name))} "
                f"| {cell(accuracies('B', data, name + ' filtered'))} |"
            )
    gains = [
        statistics.mean(after) - statistics.mean(before)
        for data, (_, *_, sets) in WRITTEN.items()
        for name in sets
        if (after := accuracies("B", data, f"{name} filtered")) and (before := accuracies("B", data, name))
    ]
    if gains:
        spread = f"{statistics.mean(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})"
        out += ["", f"Filtered minus as they are, over the {len(gains)} sets that have both: mean {spread}."]
    out += ["", "## C. Detection of out-of-scope queries (CLINC150)", ""]
    for line in by.get(("C", "clinc150", "dev_oos + train_oos"), []):
        out += [
            f"{line['far']:,} out-of-scope queries, none trained on, beside the {line['near']:,} of dev;",
            "the student of part A, seed 0.",
            "",
            "| score | AUROC | AUPR | FPR@95TPR |",
            "|---|---|---|---|",
            *(
                f"| {name} | {m['auroc']:.3f} | {m['aupr']:.3f} | {m['fpr95']:.3f} |"
                for name, m in line["detection"].items()
            ),
        ]
    return "\n".join(out) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    datasets: Annotated[Path, typer.Option(help="Folder with <set>/<split>.jsonl.gz.")],
    model: Annotated[str, typer.Option(help="Encoder to fine-tune: a folder, or a name on the hub.")],
    only: Annotated[str, typer.Option(help="A part (A, B, C, F), a data set, or table: no run.")] = "",
) -> None:
    """Run what has no line yet, then print the tables."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done, code = {key_of(line) for line in lines}, git_state()  # of the code that is loaded, not of what is there later
    todo = [r for r in plan() if key_of(r) not in done and (only in ("", r["part"], r["data"]) or only in r["how"])]
    for place, run in enumerate(todo if only != "table" else []):
        say(f"{place + 1} of {len(todo)}: {' '.join(map(str, key_of(run)))}")
        line = run | do(run, datasets, model) | surroundings(model) | code
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        lines.append(line)
        RESULTS.with_suffix(".md").write_text(tables(lines), encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(tables(lines), encoding="utf-8")
    print(tables(lines))


if __name__ == "__main__":
    app()
