"""How well a real LLM labels what people wrote, with its prior for a label and without it.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python -m bench.calibration sst2 ag_news trec rte

For each task, prompt form and number of shots, on --num-records of the human dev part: accuracy and the smallest share of
a label among the answers, over its share in the data, for
plain        the label with the highest probability
contextual   the probabilities of texts without content divided out (Zhao et al. 2021, arXiv 2102.09690)
words        label.py --calibrate: those of texts of random words of the records (Fei et al. 2023, arXiv 2305.19148)
batch        the mean probabilities of all records divided out (Zhou et al. 2024, arXiv 2309.17249); it takes the labels of
             the file to be balanced
balanced     generate.py --verify: the prior that leaves the labels equally likely, all labels of the records weighing the
             same; it knows the records' own labels, which generate.py does too
threshold    two labels: the best threshold on the log-odds, chosen on these very records: what no calibration can beat
A line a setting goes to bench/results/calibration.jsonl.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from bench.human import load_human
from bench.prompts import TEACHER
from bench.stages import lines_of, note
from gold.calibration import mean_probs, prior_of_batch, prior_of_words
from gold.engine import Engine
from gold.examples import read_examples
from gold.labels import draw_label_shots, label_records
from gold.runs import git_state
from gold.stopping import StopSignals
from gold.task import Task, load_task
from gold.teacher import Encoder, load_encoder

RESULTS = Path("bench/results/calibration.jsonl")


def divided(task: Task, rows: list[list[float]], prior: list[float]) -> list[str]:
    names = list(task.labels)
    return [names[max(range(len(names)), key=lambda k: row[k] / prior[k])] for row in rows]


def balance(task: Task, answers: list[str], golds: list[str]) -> float:
    """The smallest, over the labels, of (answers with it) / (records with it)."""
    given, true = Counter(answers), Counter(golds)
    return min(given[name] / true[name] for name in task.labels if true[name])


def best_threshold(rows: list[list[float]], golds: list[str], labels: list[str]) -> float:
    """Accuracy of the best threshold on log p(second) - log p(first)."""
    order = sorted(
        (math.log(max(q, 1e-9) / max(p, 1e-9)), gold == labels[1]) for (p, q), gold in zip(rows, golds, strict=True)
    )
    right = best = sum(second for _, second in order)  # all above the threshold
    for _, second in order:
        right += -1 if second else 1
        best = max(best, right)
    return best / len(order)


def prior_without_content(engine: Engine, encoder: Encoder, task: Task, shots: list[dict]) -> list[float]:
    records = [{"id": text} | dict.fromkeys(task.fields, text) for text in ("N/A", "", "[MASK]")]
    return mean_probs(task, [a for a in label_records(engine, encoder, task, records, shots) if a])


def main(
    tasks: Annotated[list[str], typer.Argument(help="Tasks with human data in data/TASK.")],
    forms: Annotated[str, typer.Option(help="chat, completion.")] = "completion,chat",
    shots: Annotated[str, typer.Option(help="Numbers of shots.")] = "0,2,4,8",
    num_records: Annotated[int, typer.Option(help="Human records.")] = 300,
    model: Annotated[str, typer.Option(help="Teacher.")] = str(TEACHER),
) -> None:
    """Measure, print, write."""
    engine = Engine(model, 2048, StopSignals())
    code = git_state()  # of the code that is loaded
    done = {(line["task"], line["form"], line["shots"], line["model"], line["n"]) for line in lines_of(RESULTS)}
    for name in tasks:
        loaded = load_task(Path(f"prompts/{name}.toml"))
        records, seeds = load_human(loaded).dev[:num_records], read_examples(loaded.seed_examples, loaded)
        golds = [r[loaded.answer_field] for r in records]
        for form in forms.split(","):
            encoder = load_encoder(model, loaded, form, {}, False)
            task = loaded.in_form(form)
            for count in map(int, shots.split(",")):
                if (name, form, count, model, num_records) in done:
                    continue
                shown = draw_label_shots(task, seeds, count, 0)
                answers = [a for i in range(0, len(records), 100)
                           for a in label_records(engine, encoder, task, records[i : i + 100], shown)]  # fmt: skip
                kept = [(a["label_probs"], gold) for a, gold in zip(answers, golds, strict=True) if a]
                rows, true = [list(p.values()) for p, _ in kept], [gold for _, gold in kept]
                ways = {
                    "plain": [1.0] * len(task.labels),
                    "contextual": prior_without_content(engine, encoder, task, shown),
                    "words": prior_of_words(engine, encoder, task, records, shown, 0),
                    "batch": [max(sum(column) / len(rows), 1e-9) for column in zip(*rows, strict=True)],
                    "balanced": prior_of_batch(task, records, answers),
                }
                line = {"task": name, "form": form, "shots": count, "n": len(rows), "model": model}
                for way, prior in ways.items():
                    given = divided(task, rows, prior)
                    right = sum(a == b for a, b in zip(given, true, strict=True)) / len(true)
                    line[way] = {"accuracy": round(right, 3), "balance": round(balance(task, given, true), 2)}
                if len(task.labels) == 2:
                    line["threshold"] = round(best_threshold(rows, true, list(task.labels)), 3)
                note(RESULTS, line | {"computed_tokens": engine.taken_tokens()["computed_tokens"]} | code)
                print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
