"""The parts of a report's page: figures with their numbers in a sentence, and tables; gold/page.html lays them out."""

import importlib.util
import itertools
import re
from collections import Counter
from typing import Any
from urllib.parse import urlencode

from gold import figures
from gold.command import say
from gold.gather import Gathered
from gold.metrics import mean_interval
from gold.nearest import tfidf_distances
from gold.parsing import REASONS
from gold.text import words

MAX_PANELS, MAX_ROWS, MAX_VALUES = 12, 12, 60  # of groups, labels and values of attributes
MAX_COMPARED = 1_000  # texts of an iteration whose similarity is measured
RESAMPLES = 10_000  # as evaluate.py's
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def short(name: str) -> str:
    """As long as a panel is wide."""
    return name if len(name) <= 32 else f"{name[:16]}…{name[-15:]}"


def visible(text: Any) -> str:
    """A text in which nothing is hidden: control characters, marks of direction and lone surrogates as escapes."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


# ---------------------------------------------------------------------------------------------------------------------
# Figures, each with its numbers in a sentence


class Drawer:
    """Draws figures; each has a number of its own, with which its ids begin. Without matplotlib their numbers stand as text."""

    def __init__(self) -> None:
        self.numbers, self.draws = itertools.count(1), importlib.util.find_spec("matplotlib") is not None
        if not self.draws:
            cure = "bash setup.sh requirements-extra.txt, or pip install matplotlib"
            say(f"warning: --html: figures need matplotlib; their numbers stand as text: {cure}")

    def draw(self, make: Any, alternative: str, *args: Any, **how: Any) -> dict:
        from markupsafe import Markup

        told = visible(alternative)
        svg = Markup(make(f"f{next(self.numbers)}", *args, **how)) if self.draws else told
        return {"svg": svg, "alternative": told}

    def points(self, title: str, places: list[str], series: dict[str, list], how: str = ".3f", **more: Any) -> dict:
        told = []
        for name, points in series.items():
            numbers = (f"{p} {shown(x, how)}" for p, x in zip(places, points, strict=True) if x)
            told.append(f"{name}: {', '.join(numbers) or 'not measured'}")
        ticks = [visible(int(p[5:]) if re.fullmatch(r"iter-\d+", p) else p) for p in places]
        drawn = {visible(name): points for name, points in series.items()}
        sentence = f"{title} by iteration. {'; '.join(told)}."
        return self.draw(figures.with_intervals, sentence, ticks, drawn, visible(title), **more)


def shown(point: figures.Point, how: str = ".3f") -> str:
    """A number, with its interval where it has one."""
    if not point:
        return "-"
    value, low, high = (format(x, how) for x in point)
    return value if low == high == value else f"{value} [{low}, {high}]"


def point_of(m: dict | None) -> figures.Point:
    return (m["value"], m["low"], m["high"]) if m else None


def series_of(runs: list[Gathered], places: list[str], key: str, name: str | None, metric: str) -> dict[str, list]:
    """By run the points of a metric: of the whole, or of the group `name` of the key by_..."""

    def found(run: Gathered, place: str) -> figures.Point:
        m = run.metrics.get(place, {}).get(key, {})
        return point_of((m.get(name, {}) if name is not None else m).get(metric))

    return {run.name: [found(run, place) for place in places] for run in runs}


def group_keys(runs: list[Gathered]) -> list[str]:
    """by_label last."""
    keys = dict.fromkeys(k for run in runs for m in run.metrics.values() for k in m if k.startswith("by_"))
    return sorted(keys, key=lambda key: key == "by_label")


def panels(draw: Drawer, runs: list[Gathered], places: list[str], key: str, metric: str) -> dict[str, Any]:
    """A small figure for each group (the largest), or each label (those with the lowest F1 of the last student)."""
    metric = "f1" if key == "by_label" else metric
    found: dict[str, dict] = {}  # name: its last numbers, those of the final student if there is one
    sizes: dict[str, set] = {}
    for run in runs:
        for place in sorted(places, key=lambda place: place not in ("untrained", "teacher")):
            found |= (numbers := run.metrics.get(place, {}).get(key, {}))
            for name, m in numbers.items():
                sizes.setdefault(name, set()).add(m["n"])
    titles = {name: f"{short(name)} (n = {' or '.join(f'{n:,}' for n in sorted(sizes[name]))})" for name in found}
    order = (lambda n: found[n][metric]["value"]) if key == "by_label" else (lambda n: -found[n]["n"])
    names = sorted(found, key=order)[:MAX_PANELS] if len(found) > MAX_PANELS else list(found)
    series = {name: series_of(runs, places, key, name, metric) for name in names}
    ends = [x for s in series.values() for points in s.values() for point in points if point for x in point]
    low, high = min(ends, default=0), max(ends, default=1)
    margin = 0.05 * (high - low or 1)
    how = {"limits": (low - margin, high + margin), "size": (330, 200), "legend": False}
    which = "those with the lowest F1" if key == "by_label" else "the largest"
    return {
        "title": f"{'F1' if metric == 'f1' else metric} by {key.removeprefix('by_')}",
        "figures": [draw.points(titles[name], places, s, **how) for name, s in series.items()],
        "note": f"{len(names)} of {len(found):,} are shown: {which}." if len(names) < len(found) else "",
    }


# ---------------------------------------------------------------------------------------------------------------------
# What each run has


def view_of_run(run: Gathered, draw: Drawer) -> dict[str, Any]:
    return {
        "name": visible(run.name),
        "funnel": funnel(run),
        "attributes": attribute_yield(run),
        "score": run.score,
        "histograms": [histogram(draw, place, run) for place in run.scores],
        "diversity": diversity(draw, list(run.texts), run),
        "labels": label_balance(run),
        "seconds": draw.draw(figures.seconds, times(run), {r["iteration"]: r["seconds"] for r in run.rows}),
        "times": time_table(run),
    }


def headlines(runs: list[Gathered], metric: str | None) -> list[dict[str, str]]:
    """The final student of each run; of one run also what it began with."""
    found = []
    for run in runs:
        for place in ("final", "untrained", "teacher")[: 1 if len(runs) > 1 else 3]:
            if m := run.metrics.get(place):
                value, low, high = (f"{x:.3f}" for x in point_of(m["overall"][metric]))
                what = {"final": f"{metric} of the final student", "untrained": "untrained student"}.get(place, place)
                what += f", {visible(run.name)}" if len(runs) > 1 else ""
                found.append({"number": value, "what": what, "interval": f"{low} to {high}, n = {m['n']:,}"})
    return found


def side_by_side(runs: list[Gathered], metric: str | None) -> dict[str, Any]:
    places = list(dict.fromkeys(place for run in runs for place in run.metrics))
    found = ([run.metrics.get(place, {}).get("overall", {}).get(metric) for run in runs] for place in places)
    rows = [[place, *(shown(point_of(m)) for m in line)] for place, line in zip(places, found, strict=True)]
    return {"head": ["", *(visible(run.name) for run in runs)], "rows": rows}


def results(run: Gathered, metric: str | None) -> dict[str, Any]:
    keys = [key for key in group_keys([run]) if key != "by_label"]
    columns = list(dict.fromkeys((key, name) for key in keys for m in run.metrics.values() for name in m.get(key, {})))
    if len(columns) > MAX_ROWS:
        columns = []
    lines = []
    for place, m in run.metrics.items():
        groups = [m.get(key, {}).get(name, {}).get(metric) for key, name in columns]
        values = (f"{g['value']:.3f}" if g else "-" for g in groups)
        lines.append([place, shown(point_of(m["overall"][metric])), *values, f"{m['n']:,}"])
    return {"head": ["", f"{metric} [95 %]", *(name for _, name in columns), "n"], "rows": lines}


def funnel(run: Gathered) -> dict[str, Any]:
    """Attempted, each reason in the order of the checks, accepted; with the share, and a link to the records."""
    found = {reason for counts in run.counts.values() for reason in counts if counts[reason]}
    order = [*REASONS, *sorted(found - {*REASONS, "attempted", "accepted"})]
    lines = []
    for name in ["attempted", *(reason for reason in order if reason in found), "accepted"]:
        line: list[Any] = [visible(name)]
        for place, counts in run.counts.items():
            what = {"kind": "accepted"} if name == "accepted" else {"kind": "rejected", "reason": visible(name)}
            link = "" if name == "attempted" else urlencode(what | {"run": visible(run.name), "at": place})
            share = counts[name] / counts["attempted"] if counts["attempted"] else 0
            line.append({"text": f"{counts[name]:,}", "share": share, "link": link})
        lines.append(line)
    return {"head": ["", *run.counts], "rows": lines}


def attribute_yield(run: Gathered) -> dict[str, Any]:
    """--attributes: of the attempts that had a value, how many were accepted."""
    lines, hidden = [], len(run.values_drawn) - MAX_VALUES
    for value, by_place in list(run.values_drawn.items())[:MAX_VALUES]:
        numbers = [by_place.get(place, Counter()) for place in run.counts]
        cells = ((f"{n['accepted']:,} of {n['attempted']:,}", n["accepted"] / max(n["attempted"], 1)) for n in numbers)
        lines.append([visible(value), *({"text": text, "share": share, "link": ""} for text, share in cells)])
    note = f"{hidden:,} more values are not shown." if hidden > 0 else ""
    return {"head": ["", *run.counts], "rows": lines, "note": note}


def label_balance(run: Gathered) -> dict[str, Any]:
    total: Counter[str] = sum(run.labels.values(), Counter())
    lines = []
    many = 2 * len(total) > total.total()  # they are no classes
    for label, _ in total.most_common(0 if many else MAX_ROWS):
        cells = ((c[label], c[label] / c.total() if c else 0) for c in run.labels.values())
        lines.append([visible(label), *({"text": f"{n:,}", "share": share, "link": ""} for n, share in cells)])
    hidden = len(total) - len(lines)
    return {
        "head": ["", *run.labels],
        "rows": lines,
        "note": f"{hidden:,} {'different' if many else 'more'} answers are not shown." if hidden else "",
    }


def histogram(draw: Drawer, place: str, run: Gathered) -> dict[str, Any]:
    told = []
    for label, pairs in run.scores[place].items():
        inside = [value for value, selected in pairs if selected]
        band = f"{len(inside):,} selected" + (f" from {min(inside):.3f} to {max(inside):.3f}" if inside else "")
        values = [value for value, _ in pairs]
        told.append(f"{label}: {len(pairs):,} scored from {min(values):.3f} to {max(values):.3f}, {band}")
    groups = {visible(short(label)): pairs for label, pairs in run.scores[place].items()}
    sentence = f"{run.score} over the pool of {place}. {'; '.join(told)}."
    return {"place": place} | draw.draw(figures.histogram, sentence, groups, run.score)


def diversity(draw: Drawer, places: list[str], run: Gathered) -> list[dict]:
    """Different pairs of words, similarity to the nearest other text, and length, of the training texts."""
    import numpy as np

    rows = {row["iteration"]: row for row in run.rows}
    most = min([MAX_COMPARED, *map(len, filter(None, run.texts.values()))])
    points: dict[str, list] = {"distinct-2": [], "self-similarity": [], "words per text, with the middle 80 %": []}
    for place in places:
        texts, distinct, similar, length = run.texts[place], None, None, None
        if texts:
            distinct = rows[place]["distinct_2"]
            low, median, high = np.quantile([len(words(text)) for text in texts], [0.1, 0.5, 0.9]).tolist()
            length = median, low, high
        if most > 1 and texts:
            some = [{"id": n, "source": texts[n * len(texts) // most]} for n in range(most)]
            similar = 1 - sum(tfidf_distances(some, some)) / most
        for name, x in zip(points, (distinct, similar, length), strict=True):
            points[name].append((x, x, x) if isinstance(x, float) else x)
    size = {"size": (330, 190)}
    return [draw.points(name, places, {run.name: p}, **size) for name, p in points.items()]


def times(run: Gathered) -> str:
    parts = (f"{row['iteration']} {sum(row['seconds'].values()):,.0f}" for row in run.rows)
    return f"Seconds of the stages by folder: {', '.join(parts)}."


def time_table(run: Gathered) -> dict[str, Any]:
    lines = []
    for row in run.rows:
        speed = run.speed.get(row["iteration"])
        rate = f"{speed['tokens'] / speed['seconds']:,.0f}" if speed and speed["seconds"] else "-"
        lines.append([row["iteration"], *(f"{s:,.1f}" if s else "-" for s in row["seconds"].values()), rate])
    return {"head": ["seconds", *run.rows[0]["seconds"], "tokens/s"], "rows": lines}


def differences(runs: list[Gathered], metric: str | None) -> dict[str, Any] | None:
    """Each further run minus the first, by place: the mean difference over the same test examples, with its interval."""
    if len(runs) < 2:
        return None
    first, lines = runs[0], []
    for place in (p for p in first.values if p not in ("untrained", "teacher")):
        line = [place]
        for run in runs[1:]:
            mine, theirs = first.values[place], run.values.get(place)
            if not theirs or mine.keys() != theirs.keys():
                line.append("other test examples" if theirs else "-")
                continue
            m = mean_interval([theirs[key] - mine[key] for key in mine], 0, RESAMPLES)
            line.append(f"{m['value']:+.3f} [{m['low']:+.3f}, {m['high']:+.3f}]")
        lines.append(line)
    name = metric if metric not in ("macro_f1", "chrf") else "share of correct predictions"
    return {
        "head": ["", *(visible(run.name) for run in runs[1:])],
        "rows": lines,
        "name": name,
        "first": visible(first.name),
    }
