"""Whether a prediction is correct, and the numbers that evaluate.py reports. All are shares, 0 to 1.

is_correct(task, prediction, record)                any of the record's right answers will do
measure(task, records, 0, 10_000)                   the numbers of the task's metric, with seed 0 and 10,000 resamples
mean_interval([1.0, 0.0, 1.0], 0, 10_000)           {"value": 0.6667, "low": 0.0, "high": 1.0}
class_intervals(cells, labels, 0, 10_000)           macro-F1, and precision, recall and F1 of each label
report_text(metrics, task)                          the contents of metrics.json, as a prompt shows them to the teacher
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gold.equations import equations_agree
from gold.programmes import optima_agree
from gold.task import Task
from gold.text import exact_form, rouge_words, squad_words

Interval = dict[str, float]  # value, low, high
WORD_RULES = {  # metric: what metrics.json says of its words
    "rouge_l": "runs of letters, marks and digits of any script, lower-cased; a character where a script has no blanks; "
    "on ASCII text these are the words of Google's rouge-score",
    "squad": "SQuAD v1.1, with the punctuation of all scripts; a character is a word where a script has no blanks; on "
    "ASCII text that is the official script",
}
HEADLINE = {"squad": "exact_match"}  # the number that stands for a metric in a table, where its name differs
VALUES = {"squad": "f1", "rouge_l": "rouge_l", "optimum": "rouge_l"}  # the per-example value besides `correct`
CHRF_ORDER, CHRF_BETA = 6, 2  # character n-grams up to 6; recall counts twice as much: sacrebleu's chrF2
REPORT_LABELS, REPORT_CONFUSIONS = 5, 3  # most lines of each in a report, which every prompt with feedback holds


def golds_of(task: Task, record: dict) -> list[str]:
    """A record's right answers as the student writes them: its own, and those of `<answer_field>s`, where there are some."""
    others = record.get(f"{task.answer_field}s", [])
    return list(dict.fromkeys([task.answer_of(record["target"]), *map(task.as_written, others)]))


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


def chrf_counts(prediction: str, golds: Sequence[str]) -> Any:
    """Counts (3, 6) of n-grams, n = 1 .. 6: of the prediction, of the gold that fits best, and common to both.

    chrF of a corpus is that of the summed counts, not a mean over examples (Popovic 2015). Own code: sacrebleu, which
    the field quotes, gives no counts, and torchmetrics computes another number.
    """
    import numpy as np

    def ngrams(text: str) -> list[Counter]:
        text = "".join(text.split())
        return [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, CHRF_ORDER + 1)]

    ours, counts = ngrams(prediction), []
    for theirs in map(ngrams, golds):
        # Where the gold is shorter than n, sacrebleu does not count ours either
        totals = [[p.total() if g else 0, g.total(), (p & g).total()] for p, g in zip(ours, theirs, strict=True)]
        counts.append(np.array(totals, float).T)
    return max(counts, key=chrf_of)


def chrf_of(counts: Any) -> Any:
    """chrF2 (...,) of counts (..., 3, 6) that are summed over examples. sacrebleu prints 100 times it."""
    import numpy as np

    ours, theirs, common = np.moveaxis(counts, -2, 0)
    orders = np.maximum(((ours > 0) & (theirs > 0)).sum(-1), 1)
    precision = (common / np.maximum(ours, 1)).sum(-1) / orders
    recall = (common / np.maximum(theirs, 1)).sum(-1) / orders
    return (1 + CHRF_BETA**2) * precision * recall / np.maximum(CHRF_BETA**2 * precision + recall, 1e-16)


def bootstrap(counts: Sequence[int], statistic: Callable, seed: int, resamples: int) -> list[Interval]:
    """Value and 95 % percentile interval over examples (Efron 1979) of each number of a statistic.

    counts: examples with each of k outcomes. Examples of one outcome are alike, so a resample is one multinomial draw.
    statistic: such counts (r, k) -> numbers (r,) or (r, m), row by row.
    """
    import numpy as np

    rng, counts = np.random.default_rng(seed), np.asarray(counts)
    n, rows = counts.sum(), max(1, 2**22 // len(counts))  # 32 MiB of counts at a time
    sizes = [min(rows, resamples - begin) for begin in range(0, resamples, rows)]
    draws = np.concatenate([statistic(rng.multinomial(n, counts / n, size)) for size in sizes])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    numbers = np.column_stack([np.ravel(x) for x in (statistic(counts[None]), low, high)])
    return [dict(zip(("value", "low", "high"), (round(float(x), 4) for x in row), strict=True)) for row in numbers]


def mean_interval(values: Sequence[float], seed: int, resamples: int) -> Interval:
    """Mean of per-example values with its interval."""
    outcomes = Counter(map(float, values))
    levels = sorted(outcomes, reverse=True)  # of correct (1) and wrong (0), a resample is then one binomial draw
    return bootstrap([outcomes[v] for v in levels], lambda c: c @ levels / len(values), seed, resamples)[0]


def chrf_interval(counts: Sequence[Any], seed: int, resamples: int) -> Interval:
    """chrF2 of a corpus with its interval, from chrf_counts of its examples."""
    import numpy as np

    return bootstrap([1] * len(counts), lambda c: chrf_of(np.tensordot(c, counts, 1)), seed, resamples)[0]


def class_intervals(cells: Counter, labels: Sequence[str], seed: int, resamples: int) -> tuple[Interval, dict]:
    """Macro-F1, and for each label that occurs n, precision, recall and F1, from confusion_cells.

    As in scikit-learn, the mean is over the labels that are a gold or a prediction of the (re)sample, and 0 / 0 is 0. No
    label (None) is no class of its own: it lowers the recall of the gold.
    """
    import numpy as np

    gold = np.array([[pair[0] == name for name in labels] for pair in cells], float)  # (k, L)
    predicted = np.array([[pair[1] == name for name in labels] for pair in cells], float)

    def scores(c: Any) -> Any:  # (r, k) -> (r, 1 + 3 L)
        correct, golds, predictions = c @ (gold * predicted), c @ gold, c @ predicted  # (r, L)
        f1 = 2 * correct / np.maximum(golds + predictions, 1)
        macro = f1.sum(-1) / np.maximum((golds + predictions > 0).sum(-1), 1)
        by_label = [correct / np.maximum(predictions, 1), correct / np.maximum(golds, 1), f1]
        return np.column_stack([macro, np.stack(by_label, axis=-1).reshape(len(c), -1)])

    counts = list(cells.values())
    macro, *rest = bootstrap(counts, scores, seed, resamples)
    names, sizes = ("precision", "recall", "f1"), (counts @ gold).astype(int).tolist()
    return macro, {
        label: {"n": sizes[i]} | dict(zip(names, rest[3 * i : 3 * i + 3], strict=True))
        for i, label in enumerate(labels)
        if any(label in pair for pair in cells)
    }


def of_example(task: Task, prediction: str, record: dict) -> dict[str, Any]:
    """`prediction`, `correct` and the value that the metric has for one example (f1, rouge_l)."""
    found = {"prediction": prediction, "correct": is_correct(task, prediction, record)}
    if name := VALUES.get(task.metric):
        golds = golds_of(task, record)
        value = squad_scores(prediction, golds)[1] if name == "f1" else rouge_l(prediction, golds)
        found[name] = round(value, 6)
    return found


def confusion_cells(task: Task, records: list[dict]) -> Counter:
    """{(gold, predicted, or None for no label): examples}. A correct prediction counts as its own gold."""
    names = {exact_form(target): name for name, target in zip(task.labels, task.targets, strict=True)}
    predicted = [names.get(exact_form(r["prediction"])) for r in records]
    return Counter((p if r["correct"] else r[task.answer_field], p) for r, p in zip(records, predicted, strict=True))


def measure(task: Task, records: list[dict], seed: int, resamples: int) -> dict[str, Interval]:
    """The numbers of the task's metric over records with the values of of_example, the headline first."""
    headline = HEADLINE.get(task.metric, task.metric)
    if task.metric == "chrf":
        counts = [chrf_counts(r["prediction"], golds_of(task, r)) for r in records]
        return {"chrf": chrf_interval(counts, seed, resamples)}
    value = VALUES.get(task.metric)
    fields = {"accuracy" if task.labels else headline: "correct"} | ({value: value} if value else {})
    found = {name: mean_interval([r[field] for r in records], seed, resamples) for name, field in fields.items()}
    if task.labels:
        found["macro_f1"] = class_intervals(confusion_cells(task, records), list(task.labels), seed, resamples)[0]
    return {headline: found[headline], **found}


def report_text(metrics: dict, task: Task) -> str:
    """The student's results as the teacher reads them, at most 9 lines, from metrics.json (PGKD, arXiv 2411.05045).

    The task's metric; of labels, the 5 with the lowest F1 and the most frequent confusions. Raises ValueError, LookupError,
    TypeError or AttributeError where `metrics` is not of this task, or not of evaluate.py.
    """
    if metrics["task"] != task.name:
        raise ValueError(f"it is of the task {metrics['task']!r}, not of {task.name!r}")
    name = metrics["metric"]
    lines = [
        f"Results of the small model on {metrics['n']:,d} examples: {name} {metrics['overall'][name]['value']:.2f}"
    ]
    if not task.labels:
        return lines[0]
    by_label, confusion = metrics["by_label"], metrics["confusion"]
    if set(confusion["labels"]) != set(task.labels):
        raise ValueError(f"its labels are not those of {task.path}")
    if len(by_label) > REPORT_LABELS:
        worst = sorted(by_label, key=lambda label: by_label[label]["f1"]["value"])[:REPORT_LABELS]
        by_label = {label: by_label[label] for label in worst}
        lines[0] += f"; the {REPORT_LABELS} labels with the lowest F1:"
    for label, m in by_label.items():
        precision, recall, f1 = (f"{m[name]['value']:.2f}" for name in ("precision", "recall", "f1"))
        lines.append(f"{label}: precision {precision}, recall {recall}, F1 {f1}")
    for count, gold, predicted in confusions(**confusion)[:REPORT_CONFUSIONS]:
        lines.append(f"asked for {gold}, answered {predicted}: {count:d} time{'s' * (count > 1)}")
    return "\n".join(lines)


def confusions(labels: list[str], columns: list[str], matrix: list[list[int]]) -> list[tuple[int, str, str]]:
    """(examples, gold, predicted) of each confusion in the table of metrics.json, the most frequent first."""
    cells = [
        (count, gold, predicted)
        for gold, row in zip(labels, matrix, strict=True)
        for predicted, count in zip(columns, row, strict=True)
        if count and gold != predicted
    ]
    return sorted(cells, key=lambda cell: -cell[0])
