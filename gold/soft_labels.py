"""What label_probs, the teacher's shares of the answers, are to a student: soft targets (--loss kl), or weights."""

from gold.command import fail, say
from gold.task import Task
from gold.templates import render

MIN_SHARE = 0.01  # an answer that the teacher gives less than this is not trained on by a student that writes


def weighted(examples: list[dict], task: Task) -> list[dict]:
    """The examples with `weight`, the share that label_probs give the answer, 1 in the mean (after LLMaAA, Zhang et al. 2023,
    arXiv 2310.19596, which learns its weights); that of an example which no teacher labelled counts as 1, and is said. Ends the
    stage (exit 1) where a share is none."""
    shares = []
    if plain := sum("label_probs" not in e for e in examples):
        if plain == len(examples):
            cure = "run label.py on the files" + ("" if task.labels else ", with --num-samples 5 or so")
            fail(f"--confidence-weights: no example has label_probs; {cure}")
        say(
            f"--confidence-weights: {plain:,} of {len(examples):,} examples have no label_probs: their share counts as 1"
        )
    for e in examples:
        probs = e.get("label_probs", {e[task.answer_field]: 1.0})
        share = probs.get(e[task.answer_field]) if isinstance(probs, dict) else None
        if type(share) not in (int, float) or not 0 <= share <= 1:
            found = f"{e['id']}: label_probs must hold a share of its answer {e[task.answer_field]!r}; found {probs!r}"
            fail(f"--confidence-weights: {found}; run label.py on the file")
        shares.append(share)
    if not (mean := sum(shares) / len(shares)):
        fail("--confidence-weights: label_probs give no answer any share; label.py --relabel takes the teacher's")
    return [e | {"weight": share / mean} for e, share in zip(examples, shares, strict=True)]


def soft_examples(examples: list[dict], task: Task, family: str) -> list[dict]:
    """The examples with `soft`: of an encoder label_probs in the labels' order, else one copy by answer with its share.

    Ends the stage (exit 1) where label_probs are missing or are no distribution.
    """
    rows = []
    for e in examples:
        probs = e.get("label_probs")
        sound = isinstance(probs, dict) and all(type(p) in (int, float) and 0 <= p <= 1 for p in probs.values())
        if not sound or abs(sum(probs.values()) - 1) > 0.01 or (task.labels and set(probs) != set(task.labels)):
            need = "a share of every label" if task.labels else "shares of answers"
            cure = "run label.py on the file" + ("" if task.labels else ", with --num-samples 5 or so")
            fail(f"--loss kl: {e['id']}: label_probs must hold {need}, which sum to 1; found {probs!r}; {cure}")
        if family == "encoder":
            rows.append(e | {"soft": [probs[name] for name in task.labels]})
            continue
        for answer, share in probs.items():
            if share >= MIN_SHARE and answer.strip():
                rows.append(e | {"target": render(task.student.target, {task.answer_field: answer}), "soft": share})
    return rows
