"""The figures of a report's page: SVG elements that stand in the page, take its font, and follow its light or dark colours.

Every call with the same numbers gives the same text. matplotlib draws in COLOURS, which the page's style replaces.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

Point = tuple[float, float, float] | None  # value, low, high
INK, MUTED, RULE, BAND = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#0501{n:02x}" for n in range(6)]  # the first is the accent
COLOURS = {INK: "ink", MUTED: "muted", RULE: "rule", BAND: "band"} | {c: f"series-{n}" for n, c in enumerate(SERIES)}
MARKERS, SCALE = "osD^vP", 1.2  # SCALE: pixels a point
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "gold", "font.size": 11, "text.parse_math": False, "axes.unicode_minus": False,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": RULE, "xtick.color": RULE, "ytick.color": RULE,
    "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "grid.color": RULE, "grid.linewidth": 0.6, "axes.grid": True,
    "axes.grid.axis": "y", "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.spines.left": False, "ytick.left": False, "xtick.bottom": False, "axes.linewidth": 0.8, "legend.frameon": False,
}  # fmt: skip


@contextlib.contextmanager
def drawing(width: float, height: float, rows: int = 1) -> Iterator[tuple[Any, list]]:
    """An empty figure of so many points, and its axes, one below the other."""
    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # the page's fonts draw the text
    with matplotlib.rc_context(STYLE), warnings.catch_warnings(action="ignore"):
        figure = Figure((width / 72, height / 72), layout="constrained")
        yield figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def to_svg(figure: Any, name: str) -> str:
    """The <svg> element. name: begins its ids, which several figures in one page would share otherwise."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    svg = re.sub(r"(?s)<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :])
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # At most so wide: the page's style makes it narrower where there is no room. The text alternative stands around it
    size = f'width="{figure.get_figwidth() * 72 * SCALE:.0f}" aria-hidden="true"'
    return re.sub('width="[^"]*" height="[^"]*"', size, svg, count=1)


def with_intervals(
    name: str, ticks: Sequence[str], series: dict[str, list[Point]], title: str, limits: tuple | None = None,
    size: tuple[float, float] = (400, 250), legend: bool = True,
) -> str:  # fmt: skip
    """Points with their intervals at named places; those of the iterations (ticks that are numbers) are joined."""
    with drawing(*size) as (figure, (axes,)):
        for n, (label, points) in enumerate(series.items()):
            offset = (n - (len(series) - 1) / 2) * min(0.16, 0.6 / len(series))
            colour, marker = SERIES[n % len(SERIES)], MARKERS[n // len(SERIES) % len(MARKERS)]
            placed = [
                (x + offset, tick, *point) for x, (tick, point) in enumerate(zip(ticks, points, strict=True)) if point
            ]
            joined = [(x, value) for x, tick, value, *_ in placed if tick.isdecimal()]
            axes.plot(*zip(*joined, strict=True) if joined else ([], []), color=colour, linewidth=1.6)
            for x, tick, value, low, high in placed:
                axes.plot([x, x], [low, high], color=colour, linewidth=1.2, alpha=0.55, solid_capstyle="round")
                axes.plot(
                    x, value, marker, color=colour, markersize=5.5, fillstyle="full" if tick.isdecimal() else "none"
                )
            axes.plot([], [], color=colour, marker=marker, label=label if len(label) <= 40 else f"…{label[-39:]}")
        if legend and len(series) > 1:
            figure.legend(loc="outside upper left", fontsize=10)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        if limits:
            axes.set_ylim(*limits)
        if any(tick.isdecimal() for tick in ticks):
            axes.set_xlabel("iteration", fontsize=10)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.locator_params(axis="y", nbins=5)
        return to_svg(figure, name)


def histogram(name: str, groups: dict[str, list[tuple[float, bool]]], score: str) -> str:
    """Of all scores, by group, one below the other; the range of the selected ones is shaded and their share filled."""
    import numpy as np

    edges = np.histogram_bin_edges([value for values in groups.values() for value, _ in values], bins=30)
    with drawing(330, 45 + 80 * len(groups), len(groups)) as (figure, rows):
        for axes, (label, values) in zip(rows, groups.items(), strict=True):
            selected = [value for value, chosen in values if chosen]
            if selected:
                axes.axvspan(min(selected), max(selected), color=BAND, linewidth=0)
            axes.hist([value for value, _ in values], edges, color=RULE, rwidth=0.9)
            axes.hist(selected, edges, color=SERIES[0], rwidth=0.9)
            axes.set_title(label, loc="left", fontsize=10, color=INK)
            axes.locator_params(axis="y", nbins=3, integer=True)
            axes.locator_params(axis="x", nbins=5)
        rows[-1].set_xlabel(score, fontsize=10)
        return to_svg(figure, name)


def seconds(name: str, rows: dict[str, dict[str, float]]) -> str:
    """Seconds of each stage as a bar of parts, a bar a row."""
    stages = list(dict.fromkeys(stage for row in rows.values() for stage in row))
    with drawing(400, 60 + 24 * len(rows)) as (figure, (axes,)):
        begin = [0.0] * len(rows)
        for stage, alpha in zip(stages, [1, 0.6, 0.35, 0.15], strict=False):
            widths = [row.get(stage, 0) for row in rows.values()]
            axes.barh(range(len(rows)), widths, 0.62, begin, color=SERIES[0], alpha=alpha, label=stage)
            begin = [b + w for b, w in zip(begin, widths, strict=True)]
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds", fontsize=10)
        figure.legend(loc="outside upper left", ncols=len(stages), fontsize=10, handlelength=1, columnspacing=1.2)
        return to_svg(figure, name)
