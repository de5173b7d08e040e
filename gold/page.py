"""One page about one or several runs, which opens from the disk: numbers, figures, and the records to search.

Records stand in the page as JSON and are shown as text, never as markup. Of many or long ones a part is in the page.
"""

import json
from pathlib import Path
from typing import Any

from gold import sections
from gold.command import fail
from gold.disk import write_text
from gold.gather import MAX_TEXT, Gathered
from gold.sections import Drawer, visible

KINDS = ("feedback", "wrong", "rejected", "accepted")
MAX_RECORDS, MAX_BYTES = 20_000, 13 * 2**20  # of the records in the page
CUTS = (MAX_TEXT, 1_000, 500, 250, 120, 60)  # characters of a text: the first with which the records fit


def write_page(path: Path, runs: list[Gathered]) -> None:
    """The page as a whole file, or none."""
    import jinja2

    metrics = {row["metric"] for run in runs for row in run.rows if "metric" in row}
    if len(metrics) > 1:
        fail(f"--html: the runs are measured by {' and by '.join(sorted(metrics))}; compare runs of one task")
    templates = jinja2.FileSystemLoader(Path(__file__).parent)
    how = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    shown = {"finalize": lambda value: value if hasattr(value, "__html__") else visible(value)}
    template = jinja2.Environment(loader=templates, **how, **shown).get_template("page.html")
    text = template.render(view_of(runs, metrics.pop() if metrics else None))
    write_text(path, text.encode("utf-8", "backslashreplace").decode())  # a folder's name may be no Unicode


def view_of(runs: list[Gathered], metric: str | None) -> dict[str, Any]:
    """All that the template shows."""
    draw = Drawer()
    places = list(dict.fromkeys(place for run in runs for place in run.metrics if "/" not in place))
    places.sort(key=lambda p: (("untrained", "iter", "final", "teacher").index(p.split("-")[0]), p))
    names = [run.name for run in runs]
    return {
        "title": visible(" · ".join(names)),
        "runs": [sections.view_of_run(run, draw) for run in runs],
        "metric": metric,
        "headlines": sections.headlines(runs, metric),
        "overall": draw.points(metric, places, sections.series_of(runs, places, "overall", None, metric))
        if places
        else None,
        "groups": [sections.panels(draw, runs, places, key, metric) for key in sections.group_keys(runs)],
        "results": sections.side_by_side(runs, metric) if len(runs) > 1 else sections.results(runs[0], metric),
        "differences": sections.differences(runs, metric),
        "facts": [[name, *(visible(run.facts[name]) for run in runs)] for name in runs[0].facts],
        **records_of(runs),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Records


def thinned(records: list[dict]) -> list[dict]:
    """At most MAX_RECORDS, evenly spaced in each kind; small kinds stay whole."""
    kinds = {kind: [r for r in records if r["kind"] == kind] for kind in KINDS}
    room, kept = MAX_RECORDS, []
    for left, rows in zip(range(len(KINDS), 0, -1), sorted(kinds.values(), key=len), strict=True):
        count = min(len(rows), room // left)
        kept += [rows[n * len(rows) // count] for n in range(count)]
        room -= count
    return kept


def records_of(runs: list[Gathered]) -> dict[str, Any]:
    """The records as JSON that may stand in HTML, and what of them is left out or cut."""
    from jinja2.utils import htmlsafe_json_dumps

    everything = [row | {"run": n, "row": row} for n, run in enumerate(runs) for row in run.records]
    kept = sorted(thinned(everything), key=lambda r: KINDS.index(r["kind"]))
    places = {id(r["row"]): n for n, r in enumerate(kept)}

    def as_list(r: dict, cut: int) -> list:  # in the order of FIELDS in page.html
        texts = (visible(r[name][:cut]) for name in ("label", "other", "text"))
        fed = [places[id(row)] for row in r["fed"] if id(row) in places]
        others = (visible(r[name]) for name in ("at", "kind", "reason", "note", "id"))
        return [r["run"], *others, *texts, fed, r["written"], r["cut"] if r["cut"] > cut else 0]

    for cut in CUTS:
        rows = [as_list(r, cut) for r in kept]
        data = htmlsafe_json_dumps(rows, dumps=json.dumps, ensure_ascii=False, separators=(",", ":"))
        if len(data.encode("utf-8", "backslashreplace")) <= MAX_BYTES:
            break
    cuts = sum(bool(row[-1]) for row in rows)
    return {"data": data, "shown": len(rows), "total": len(everything), "cut": cut, "cuts": cuts}
