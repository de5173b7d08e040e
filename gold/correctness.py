"""Whether a prediction is right, by the metric of the task, and how near it comes word by word.

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
    """Every right answer of a record, as the student is to write it: its target and, where there is the list
    `<answer_field>s`, the targets of those."""
    others = record.get(f"{task.answer_field}s", [])
    targets = [render(task.student.target, {task.answer_field: gold}) for gold in others]
    return list(dict.fromkeys([record["target"], *targets]))


def is_correct(task: Task, prediction: str, record: dict) -> bool:
    """Whether a prediction is one of a record's right answers. An empty one never is.

    equation_value and optimum: equal in value; squad: exact match as SQuAD's official script has it; the others: equal
    when stripped, lower-cased and composed (NFC).
    """
    golds = golds_of(task, record)
    if task.metric == "squad":
        return squad_scores(prediction, golds)[0]
    if task.metric in ("optimum", "equation_value"):
        agree = optima_agree if task.metric == "optimum" else equations_agree
        return any(agree(prediction, gold) for gold in golds)
    return exact_form(prediction) in map(exact_form, golds)


def squad_scores(prediction: str, golds: Sequence[str]) -> tuple[bool, float]:
    """(exact match, F1 over words), each the best over the golds, as SQuAD's official script v1.1 has them.

    Lower-cased, without punctuation and without a, an, the. No text at all is wrong, whatever is left of a gold. On
    ASCII text the numbers are the official script's; beyond it punctuation of all scripts is removed and a character is
    a word where a script has no blanks, as MLQA has it (Lewis et al. 2020).
    """
    if not prediction.strip():
        return False, 0.0
    ours, f1 = squad_words(prediction), []
    for theirs in (all_theirs := [squad_words(gold) for gold in golds]):
        common = (Counter(ours) & Counter(theirs)).total()
        f1.append(2 * common / max(len(ours) + len(theirs), 1))
    return ours in all_theirs, max(f1)


def rouge_l(prediction: str, golds: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, the best over the golds (Lin 2004), without stemming.

    On ASCII text the number is that of Google's rouge-score: words are runs of a-z and 0-9 after lower-casing, and a
    text without any scores 0. Of other scripts that scorer sees nothing; here their words count too.
    """
    from rapidfuzz.distance import Indel

    ours = rouge_words(prediction)
    return max(Indel.normalized_similarity(ours, rouge_words(gold)) for gold in golds) if ours else 0.0
