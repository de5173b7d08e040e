"""Whether a prediction is correct, by the metric of the task, and how much of its words is correct.

    is_correct(task, prediction, record)               any of the record's right answers will do
    squad_scores("the Cat", ["cat", "a dog"])          (True, 1.0): exact match and F1, each the best over the golds
    rouge_l("a b c", ["a c"])                          0.8

Each function takes texts as they were written: what a metric forgives (capitals, punctuation, blanks) is its own affair.
"""

from collections import Counter
from collections.abc import Sequence

from gold.equations import equations_agree
from gold.programmes import optima_agree
from gold.task import Task, render
from gold.text import exact_form, rouge_words, squad_words


def golds_of(task: Task, record: dict) -> list[str]:
    """The targets of a record's right answers: its own, and those of the list `<answer_field>s`, where there is one."""
    others = [{task.answer_field: gold} for gold in record.get(f"{task.answer_field}s", [])]
    return list(dict.fromkeys([record["target"], *(render(task.student.target, other) for other in others)]))


def is_correct(task: Task, prediction: str, record: dict) -> bool:
    """Whether a prediction is one of a record's right answers, as evaluate.py defines it. An empty one never is."""
    golds = golds_of(task, record)
    if task.metric == "squad":
        return squad_scores(prediction, golds)[0]
    if agree := {"optimum": optima_agree, "equation_value": equations_agree}.get(task.metric):
        return any(agree(prediction, gold) for gold in golds)
    return exact_form(prediction) in map(exact_form, golds)


def squad_scores(prediction: str, golds: Sequence[str]) -> tuple[bool, float]:
    """(exact match, F1 over words), each the best over the golds; on ASCII text as SQuAD's official script v1.1 has them.

    Beyond ASCII, punctuation of all scripts is removed, and a character is a word where a script has no blanks, as in
    MLQA (Lewis et al. 2020). A prediction without any text is wrong, whatever the gold.
    """
    if not prediction.strip():
        return False, 0.0
    ours, golds_words = squad_words(prediction), [squad_words(gold) for gold in golds]
    common = [(Counter(ours) & Counter(theirs)).total() for theirs in golds_words]
    f1 = [2 * n / max(len(ours) + len(theirs), 1) for n, theirs in zip(common, golds_words, strict=True)]
    return ours in golds_words, max(f1)


def rouge_l(prediction: str, golds: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, the best over the golds (Lin 2004), without stemming.

    On ASCII text it is that of Google's rouge-score, where a text without a-z and 0-9 scores 0. That scorer ignores
    other scripts; here their words count too.
    """
    from rapidfuzz.distance import Indel

    ours = rouge_words(prediction)
    return max(Indel.normalized_similarity(ours, rouge_words(gold)) for gold in golds) if ours else 0.0
