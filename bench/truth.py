"""What is true of generated examples of the embedded tasks, as their grammars read them: topic, right answer, noise.

A grammar is the module data/<task>_grammar.py. What it cannot read (None) is counted apart, never as wrong.
"""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

from gold.metrics import is_correct
from gold.scores import SCORES
from gold.task import Task


def topic_of(record: dict, task: Task, grammar: Any) -> str | None:
    return grammar.topic_of(record[task.fields[0]])


def true(record: dict, task: Task, grammar: Any) -> bool | None:
    """Whether the record's answer is right; None where the grammar cannot read the text."""
    if task.labels:
        right = grammar.oracle_label(record["review"])
        return None if right is None else right == record["label"]
    right = grammar.oracle_equation(record["problem"])
    return None if right is None else is_correct(task, record["equation"], record | {"target": right})


def noise_of(records: list[dict], task: Task, grammar: Any) -> dict[str, float]:
    """Shares of wrong answers among those that the grammar can read, and of records that it cannot."""
    found = [true(r, task, grammar) for r in records]
    known = [f for f in found if f is not None]
    return {"wrong": 1 - sum(known) / max(len(known), 1), "unreadable": found.count(None) / max(len(found), 1)}


def coverage(records: list[dict], task: Task, grammar: Any) -> dict[str, float]:
    """Topics in the records: those with 1 % of them or more, the effective number exp(entropy), share of the tail."""
    topics = Counter(topic_of(r, task, grammar) for r in records)
    topics.pop(None, 0)
    total = max(sum(topics.values()), 1)
    shares = [count / total for count in topics.values()]
    return {
        "topics": sum(share >= 0.01 for share in shares),
        "effective_topics": math.exp(-sum(share * math.log(share) for share in shares)),
        "tail_share": sum(n for topic, n in topics.items() if grammar.group_of(topic) == "tail") / total,
    }


def followed(records: list[dict], shown: dict[str, dict], task: Task, grammar: Any) -> dict[str, float | None]:
    """Of examples whose prompt had feedback: how many have the topic of the last shot, and of any shot."""
    fed = [r for r in records if r["feedback"]]
    if not fed:
        return {"follows_last": None, "follows_any": None}
    topics = [[topic_of(shown[i], task, grammar) for i in r["shots"] if i in shown] for r in fed]
    own = [topic_of(r, task, grammar) for r in fed]
    return {
        "follows_last": sum(o == t[-1] for o, t in zip(own, topics, strict=True)) / len(fed),
        "follows_any": sum(o in t for o, t in zip(own, topics, strict=True)) / len(fed),
    }


def scores_against_truth(records: list[dict], task: Task, grammar: Any) -> dict[str, Any]:
    """AUROC of each score for "the student is wrong" (by the truth), "the answer is wrong" and "a topic of the tail"; and
    the share of wrong answers by decile of energy, the lowest first."""
    from sklearn.metrics import roc_auc_score

    known = []
    for r in records:
        right = true(r, task, grammar)
        if right is not None:
            answer = grammar.oracle_label(r["review"]) if task.labels else grammar.oracle_equation(r["problem"])
            known.append((r, right, not is_correct(task, r["prediction"], r | {"target": answer})))
    truths = {
        "wrong_prediction": [wrong for *_, wrong in known],
        "wrong_answer": [not right for _, right, _ in known],
        "tail": [grammar.group_of(topic_of(r, task, grammar) or "") == "tail" for r, *_ in known],
    }
    found: dict[str, Any] = {}
    for name in [s for s in SCORES if s in known[0][0]]:
        values = [r[name] for r, *_ in known]
        found[name] = {
            what: round(float(roc_auc_score(truth, values)), 4) if 0 < sum(truth) < len(truth) else None
            for what, truth in truths.items()
        }
    order = sorted(known, key=lambda k: k[0]["energy"])
    cuts = [round(len(order) * i / 10) for i in range(11)]
    deciles = [[not right for _, right, _ in order[a:b]] for a, b in pairwise(cuts)]
    return {"auroc": found, "wrong_answers_by_energy_decile": [round(sum(d) / max(len(d), 1), 4) for d in deciles]}
