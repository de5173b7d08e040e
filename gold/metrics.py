"""The numbers that evaluate.py reports, each with its 95 % bootstrap interval over examples. All are shares, 0 to 1.

mean_interval([1.0, 0.0, 1.0], 0, 10_000)           {"value": 0.6667, "low": 0.0, "high": 1.0}
class_intervals(cells, labels, 0, 10_000)           macro-F1, and precision, recall and F1 of each label
measure(task, records, 0, 10_000)                   the numbers of the task's metric
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gold.correctness import golds_of, is_correct, rouge_l, squad_scores
from gold.task import Task
from gold.text import exact_form

WORD_RULES = {  # metric: what metrics.json says of its words
    "rouge_l": "runs of letters, marks and digits of any script, lower-cased; a character where a script has no blanks; "
    "on ASCII text these are the words of Google's rouge-score",
    "squad": "SQuAD v1.1, with the punctuation of all scripts; a character is a word where a script has no blanks; on "
    "ASCII text that is the official script",
}

CHRF_ORDER, CHRF_BETA = 6, 2  # character n-grams up to 6, recall counts twice as much: sacrebleu's chrF2


def chrf_counts(prediction: str, golds: Sequence[str]) -> list[int]:
    """n-grams of the prediction, of a gold, and common to both, for n = 1 .. 6: 18 counts; of the gold that fits best.

    chrF of a corpus is that of the summed counts, so there is no per-example value to average (Popovic 2015). Own code:
    torchmetrics averages F over the orders, sacrebleu precision and recall; the field quotes sacrebleu.
    """

    def ngrams(text: str) -> list[Counter]:
        text = "".join(text.split())
        return [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, CHRF_ORDER + 1)]

    found, best, of_prediction = [], -1.0, ngrams(prediction)
    for gold in golds:
        counts = []
        for ours, theirs in zip(of_prediction, ngrams(gold), strict=True):
            # where the gold is shorter than n, sacrebleu does not count ours either
            counts += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
        score = float(chrf_of(counts))
        if score > best:
            found, best = counts, score
    return found


def chrf_of(counts: Any) -> Any:
    """chrF2 of counts (..., 18) as chrf_counts gives them, summed over examples -> (...,). sacrebleu prints 100 times it."""
    import numpy as np

    ours, theirs, common = np.moveaxis(np.asarray(counts, float).reshape(*np.shape(counts)[:-1], CHRF_ORDER, 3), -1, 0)
    there = (ours > 0) & (theirs > 0)
    orders = np.maximum(there.sum(-1), 1)
    precision = (np.where(there, common, 0) / np.maximum(ours, 1)).sum(-1) / orders
    recall = (np.where(there, common, 0) / np.maximum(theirs, 1)).sum(-1) / orders
    return (1 + CHRF_BETA**2) * precision * recall / np.maximum(CHRF_BETA**2 * precision + recall, 1e-16)


# ---------------------------------------------------------------------------------------------------------------------
# Many examples


def bootstrap(
    counts: Sequence[int], statistic: Callable[[Any], Any], seed: int, resamples: int
) -> list[dict[str, float]]:
    """Value and 95 % percentile interval over examples (Efron 1979) of each number of a statistic.

    Examples with the same outcome are alike, so a resample of n of them is one multinomial draw over the k outcomes.
    counts: examples with each outcome, (k,). statistic: such counts (r, k) -> numbers (r,) or (r, m), row by row.
    """
    import numpy as np

    rng, counts = np.random.default_rng(seed), np.asarray(counts)
    n, rows = counts.sum(), max(1, 2**22 // len(counts))  # 32 MiB of counts at a time
    draws = [
        statistic(rng.multinomial(n, counts / n, min(rows, resamples - begin))) for begin in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975], axis=0)
    numbers = np.stack([statistic(counts[None])[0], low, high], axis=-1).reshape(-1, 3)
    return [dict(zip(("value", "low", "high"), (round(float(x), 4) for x in row), strict=True)) for row in numbers]


def mean_interval(values: Sequence[float], seed: int, resamples: int) -> dict[str, float]:
    """Mean of per-example values with its interval. Of right and wrong (1 and 0) a resample is a binomial draw."""
    import numpy as np

    # The highest first: of right and wrong, multinomial then draws how many are right
    outcomes = Counter(map(float, values))
    levels = sorted(outcomes, reverse=True)
    return bootstrap([outcomes[v] for v in levels], lambda c: c @ np.array(levels) / len(values), seed, resamples)[0]


def class_intervals(
    cells: Counter, labels: Sequence[str], seed: int, resamples: int
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Macro-F1, and for each label precision, recall and F1, from cells {(gold, predicted or None): examples}.

    The mean is over the labels that are a gold or a prediction of the (re)sample, as scikit-learn and torchmetrics have
    it; None, no label, is no class of its own: it lowers the recall of the gold. 0 / 0 is 0. A resample is one of all
    examples, so that the number of a label's examples varies too.
    """
    import numpy as np

    found = list(cells)
    gold = np.array([[pair[0] == name for name in labels] for pair in found], float)  # (k, L)
    predicted = np.array([[pair[1] == name for name in labels] for pair in found], float)
    both = gold * predicted

    def scores(c: Any) -> Any:  # (r, k) -> (r, 1 + 3 L)
        hits, golds, predictions = c @ both, c @ gold, c @ predicted  # (r, L)
        precision, recall = hits / np.maximum(predictions, 1), hits / np.maximum(golds, 1)
        f1 = 2 * hits / np.maximum(golds + predictions, 1)
        macro = f1.sum(-1) / np.maximum((golds + predictions > 0).sum(-1), 1)
        return np.concatenate([macro[:, None], precision, recall, f1], axis=-1)

    macro, *rest = bootstrap([cells[pair] for pair in found], scores, seed, resamples)
    sizes, size = np.array(list(cells.values())) @ gold, len(labels)
    return macro, {
        name: {"n": int(sizes[i]), "precision": rest[i], "recall": rest[size + i], "f1": rest[2 * size + i]}
        for i, name in enumerate(labels)
        if any(name in pair for pair in found)
    }


def chrf_interval(counts: Sequence[Sequence[int]], seed: int, resamples: int) -> dict[str, float]:
    """chrF2 of a corpus, 0 to 1, from chrf_counts of its examples, resampled as examples."""
    import numpy as np

    table = np.array(counts, float)  # (n, 18)
    return bootstrap([1] * len(counts), lambda c: chrf_of(c @ table), seed, resamples)[0]


# ---------------------------------------------------------------------------------------------------------------------
# By task

# The number that stands for a metric in a table, where it has another name: GOLD's for SQuAD
HEADLINE = {"squad": "exact_match"}
# Per-example values besides right and wrong
VALUES = {"squad": ("f1",), "rouge_l": ("rouge_l",), "optimum": ("rouge_l",)}


def of_example(task: Task, prediction: str, record: dict) -> dict[str, Any]:
    """`prediction`, `correct` and the values that the metric has for one example (f1, rouge_l)."""
    golds = golds_of(task, record)
    values = {"f1": lambda: squad_scores(prediction, golds)[1], "rouge_l": lambda: rouge_l(prediction, golds)}
    return {
        "prediction": prediction,
        "correct": is_correct(task, prediction, record),
        **{name: round(values[name](), 6) for name in VALUES.get(task.metric, ())},
    }


def confusion_cells(task: Task, records: list[dict]) -> Counter:
    """{(gold, predicted, or None for no label): examples}. A right prediction is its own gold, should there be several."""
    names = {exact_form(target): name for name, target in zip(task.labels, task.targets, strict=True)}
    predicted = [names.get(exact_form(r["prediction"])) for r in records]
    return Counter((p if r["correct"] else r[task.answer_field], p) for r, p in zip(records, predicted, strict=True))


def measure(task: Task, records: list[dict], seed: int, resamples: int) -> dict[str, dict[str, float]]:
    """The numbers of the task's metric over records with the values of of_example, the headline first."""
    how, headline = (seed, resamples), HEADLINE.get(task.metric, task.metric)
    if task.metric == "chrf":
        return {"chrf": chrf_interval([chrf_counts(r["prediction"], golds_of(task, r)) for r in records], *how)}
    columns = {"accuracy" if task.labels else headline: "correct"} | {
        name: name for name in VALUES.get(task.metric, ())
    }
    found = {name: mean_interval([r[column] for r in records], *how) for name, column in columns.items()}
    if task.labels:
        found["macro_f1"] = class_intervals(confusion_cells(task, records), list(task.labels), *how)[0]
    return {headline: found[headline], **found}


# ---------------------------------------------------------------------------------------------------------------------
# All of it, as a text

REPORT_LABELS, REPORT_CONFUSIONS = 5, 3  # most lines of each in a report: it stands in every prompt with feedback


def report_text(metrics: dict, task: Task) -> str:
    """The student's results as the teacher reads them, at most 9 lines, from what evaluate.py writes (PGKD, arXiv 2411.05045).

    The task's metric over all; precision, recall and F1 of each label (of many, the 5 with the lowest F1); the most frequent
    confusions. text2text: the metric alone. Raises ValueError, LookupError, TypeError or AttributeError where `metrics` is not
    of this task, or not of evaluate.py.
    """

    def share(number: dict) -> str:
        if not 0 <= number["value"] <= 1:
            raise ValueError(f"{number['value']} is no share")
        return f"{number['value']:.2f}"

    if metrics["task"] != task.name:
        raise ValueError(f"it is of the task {metrics['task']!r}, not of {task.name!r}")
    name = metrics["metric"]
    lines = [f"Results of the small model on {metrics['n']:,d} examples: {name} {share(metrics['overall'][name])}"]
    if not task.labels:
        return lines[0]
    by_label, confusion = metrics["by_label"], metrics["confusion"]
    known = set(task.labels)
    if set(confusion["labels"]) != known or not {*by_label, *confusion["columns"]} <= {*known, "no label"}:
        raise ValueError(f"its labels are not those of {task.path}")
    shown = list(by_label)
    if len(shown) > REPORT_LABELS:
        shown = sorted(shown, key=lambda label: by_label[label]["f1"]["value"])[:REPORT_LABELS]
        lines[0] += f"; the {REPORT_LABELS} labels with the lowest F1:"
    for label in shown:
        precision, recall, f1 = (share(by_label[label][key]) for key in ("precision", "recall", "f1"))
        lines.append(f"{label}: precision {precision}, recall {recall}, F1 {f1}")
    cells = [
        (count, asked, answered)
        for i, (asked, row) in enumerate(zip(confusion["labels"], confusion["matrix"], strict=True))
        for j, (answered, count) in enumerate(zip(confusion["columns"], row, strict=True))
        if count and i != j
    ]
    for count, asked, answered in sorted(cells, key=lambda cell: -cell[0])[:REPORT_CONFUSIONS]:
        lines.append(f"asked for {asked}, answered {answered}: {count:d} time{'s' * (count > 1)}")
    return "\n".join(lines)
