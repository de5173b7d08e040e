"""The prior of a teacher's labels, divided out: small models answer with the label that prompt and language make likely.

label.py has the prior from texts of random words (prior_of_words), generate.py --verify from a batch (prior_of_batch).
"""

import math
import random
from collections.abc import Sequence

from gold.answers import label_probs
from gold.command import fail
from gold.engine import Engine
from gold.labels import label_records
from gold.task import Task
from gold.teacher import Encoder

RANDOM_TEXTS = 20


def calibrates(task: Task, calibrate: bool | None) -> bool:
    """Whether a prior is divided out; None: in a list form."""
    return bool(task.labels) and (task.is_list if calibrate is None else calibrate)


def divided(task: Task, answers: list[dict | None], prior: Sequence[float] | None) -> list[dict | None]:
    """The answers of label_records with the labels' probabilities divided by the prior, if there is one."""
    if prior is None:
        return answers
    logs = dict(zip(task.labels, map(math.log, prior), strict=True))
    return [
        label_probs(task, [math.log(max(a["label_probs"][name], 1e-9)) - logs[name] for name in task.labels])
        if a and "label_probs" in a else a  # a server's answer may have none
        for a in answers
    ]  # fmt: skip


def random_texts(task: Task, records: list[dict], seed: int) -> list[dict]:
    """RANDOM_TEXTS records of random words of these, as many in a field as there are in the mean."""
    rng, texts = random.Random(f"{seed}/prior"), [{"id": f"random-{n}"} for n in range(RANDOM_TEXTS)]
    for name in task.fields:
        bag = [word for record in records for word in record[name].split()]
        for text in texts:
            text[name] = " ".join(rng.choices(bag or [""], k=max(1, len(bag) // len(records))))
    return texts


def prior_of_words(
    engine: Engine, encoder: Encoder, task: Task, records: list[dict], shots: list[dict], seed: int
) -> list[float] | None:
    """The mean probabilities of the labels of texts of random words of `records`: what prompt and language alone make
    likely. Dividing by them is domain-context calibration (Fei et al. 2023, arXiv 2305.19148). Ends the stage (exit 1)
    where no prompt with such a text fits the context. None: a server without log-probabilities.
    """
    answers = label_records(engine, encoder, task, random_texts(task, records, seed), shots)
    answers = [a for a in answers if a and "label_probs" in a]
    if not engine.log_probs:
        return None
    if not answers:
        fail("--calibrate: no label prompt with a text of mean length fits the context; show fewer shots")
    return mean_probs(task, answers)


def prior_of_batch(task: Task, records: list[dict], answers: list[dict | None]) -> list[float]:
    """The prior that leaves all labels equally likely over generated records, as they were asked for: batch calibration
    (Zhou et al. 2024, arXiv 2309.17249), whose condition holds as far as the teacher writes what it is asked for.

    Divided by it, the probabilities (n, L) have the same mean for each label, where the records of each label weigh as
    much as those of another (scaling of Sinkhorn and Knopp 1967). Each label has one text more, of which the teacher is
    certain: a label without texts then gets none of the others'. Their plain mean would not do: that one certain text is
    nearly all of it where a label is never likely, and so the label would get no text.
    """
    import numpy as np

    labels, size = list(task.labels), len(task.labels)
    pairs = [(r[task.answer_field], a["label_probs"]) for r, a in zip(records, answers, strict=True)
             if a and "label_probs" in a]  # fmt: skip
    own = np.array([*range(size), *(labels.index(name) for name, _ in pairs)])
    probs = np.array([*np.eye(size), *([p[name] for name in labels] for _, p in pairs)]).clip(1e-9)
    weights = 1 / np.bincount(own)[own]  # of each label 1 in all
    prior = np.full(size, 1 / size)
    for _ in range(100):
        shares = probs / prior
        prior *= weights @ (shares / shares.sum(1, keepdims=True))  # (L,): 1 where they are balanced
    return (prior / prior.sum()).tolist()


def mean_probs(task: Task, answers: list[dict]) -> list[float]:
    return [max(sum(a["label_probs"][name] for a in answers) / len(answers), 1e-6) for name in task.labels]
