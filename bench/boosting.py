"""Is boosting worth its keep? Students trained one after the other on the same generated examples, each on weights that rise
where the ensemble so far is wrong, beside as many students that differ in their seed alone.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m bench.boosting ag_news --seeds 0,1,2   # after bench.systems: its curve
    python -m bench.boosting ag_news --table

SAMME (Zhu et al. 2009), multi-class AdaBoost, as in "Language models are weak learners" (Manikandan et al. 2023, arXiv
2306.14101): err = the weight of wrong examples, alpha = log((1 - err) / err) + log(K - 1), the weight of a wrong example times
e^alpha; the ensemble takes the label with the largest sum of alphas. MiniLM, accuracy on human texts (the dev part).
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from bench.human import RATE, load_human
from bench.prompts import STUDENT, steps_for
from bench.stages import lines_of, note, train
from bench.strategies_report import interval
from bench.systems import DEV, WORK
from gold.examples import read_examples
from gold.jsonl import write_file
from gold.predict import predict
from gold.runs import git_state
from gold.student import lengths_of, load_trained
from gold.task import Task, load_task

RESULTS, ROUNDS = Path("bench/results/boosting.jsonl"), 3


def answers_of(task: Task, folder: Path, examples: list[dict]) -> list[str]:
    return predict(load_trained(str(folder), task, lengths_of(str(folder)), "float32"), examples, 64)


def is_right(task: Task, answers: list[str], examples: list[dict]) -> list[bool]:
    return [answer == e["target"].strip().lower() for answer, e in zip(answers, examples, strict=True)]


def run(task: Task, seed: int, size: int, dev: list[dict]) -> dict[str, float]:
    """Accuracy of the first student, of the boosted ensemble, and of students of other seeds that vote alike."""
    root = WORK / task.name / f"seed{seed}"
    examples = read_examples(root / "curve/iter-00/train.jsonl", task)[:size]
    weights, votes, plain = [1.0] * size, [defaultdict(float) for _ in dev], [defaultdict(float) for _ in dev]
    found: dict[str, float] = {}
    for n in range(ROUNDS):
        for kind, seeds, w in (("boosted", seed, weights), ("plain", 100 * seed + n, [1.0] * size)):
            folder = root / "boosting" / f"{kind}-{n}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            rows = [e | {"label_probs": {e["label"]: x / max(w)}} for e, x in zip(examples, w, strict=True)]
            write_file(folder.with_suffix(".jsonl"), rows)
            train(task.path, STUDENT, [folder.with_suffix(".jsonl")], folder, steps_for(size), seeds,
                  {"confidence_weights": True}, learning_rate=RATE)  # fmt: skip
            answers = answers_of(task, folder, dev)
            alpha = 1.0
            if kind == "boosted":
                right = is_right(task, answers_of(task, folder, examples), examples)
                err = max(sum(x for x, r in zip(w, right, strict=True) if not r) / sum(w), 1e-3)
                alpha = math.log((1 - err) / err) + math.log(len(task.labels) - 1)
                weights = [x if r else x * math.exp(alpha) for x, r in zip(w, right, strict=True)]
                found[f"err_{n}"] = round(err, 4)
            for vote, answer in zip(votes if kind == "boosted" else plain, answers, strict=True):
                vote[answer] += alpha
            if n == 0 and kind == "plain":
                found["one"] = round(sum(is_right(task, answers, dev)) / len(dev), 4)
    for name, ensemble in (("boosted", votes), ("plain", plain)):
        answers = [max(vote, key=vote.__getitem__) for vote in ensemble]
        found[name] = round(sum(is_right(task, answers, dev)) / len(dev), 4)
    return found


def main(
    task: Annotated[str, typer.Argument(help="A task that bench.systems has a curve of.")],
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0,1,2",
    size: Annotated[int, typer.Option(help="Training examples.")] = 200,
    table: Annotated[bool, typer.Option(help="Only print what is there.")] = False,
) -> None:
    """Run what has no line yet."""
    loaded = load_task(Path(f"prompts/{task}.toml"))
    dev, code = load_human(loaded).dev[:DEV], git_state()
    for seed in map(int, seeds.split(",")) if not table else ():
        key = {"task": task, "seed": seed, "size": size}
        if not any(all(line.get(k) == v for k, v in key.items()) for line in lines_of(RESULTS)):
            note(RESULTS, key | run(loaded, seed, size, dev) | code)
    lines = [line for line in lines_of(RESULTS) if line["task"] == task and line["size"] == size]
    for name in ("one", "plain", "boosted"):
        values = [line[name] for line in lines]
        print(f"{name:<8} {sum(values) / len(values):.3f}   by seed: {values}")
    if len(lines) > 1:
        mean, low, high = interval([line["boosted"] - line["plain"] for line in lines])
        print(f"boosted minus {ROUNDS} plain students: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    typer.run(main)
