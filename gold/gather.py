"""What the files of a run folder tell, as far as they are there: for report.py and its page."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gold.command import fail
from gold.disk import beside, read_json
from gold.jsonl import read_records

MAX_TEXT = 2_000  # characters of a text that are kept


def shards(folder: Path, name: str) -> list[Path]:
    """The file, or its shards; duplicates between shards count here: they were accepted."""
    first, rest = name.split(".", 1)  # train.rejected.jsonl -> train-00000-of-00004.rejected.jsonl
    return sorted(folder.glob(f"{first}-?????-of-?????.{rest}")) or [folder / name]


def training_files(folder: Path) -> list[Path]:
    """What an iteration added to the training examples: generated, as labelled and filtered last; and labelled texts."""
    names = ("kept.jsonl", "labelled.jsonl", "train.jsonl")
    generated = next((found for name in names if (found := [p for p in shards(folder, name) if p.exists()])), [])
    return generated + [path for path in [folder / "annotated.jsonl"] if path.exists()]


@dataclass
class Gathered:
    """What a run tells. Places are the folders of it: untrained, iter-00, ..., final, teacher."""

    name: str
    rows: list[dict]  # of report.py
    facts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)  # by place: metrics.json
    values: dict[str, dict] = field(default_factory=dict)  # by place: the metric's value of each test example
    counts: dict[str, Counter] = field(default_factory=dict)  # by iteration: attempted, accepted, each reason
    labels: dict[str, Counter] = field(default_factory=dict)  # by iteration: accepted training examples
    values_drawn: dict[str, dict] = field(default_factory=dict)  # by value of an attribute, by iteration
    scores: dict[str, dict] = field(default_factory=dict)  # by iteration: label: (score, whether selected)
    score: str = "score"
    texts: dict[str, list[str]] = field(default_factory=dict)  # by iteration: what the student reads
    speed: dict[str, dict] = field(default_factory=dict)  # by place: the teacher's tokens and seconds
    records: list[dict] = field(default_factory=list)


def each(path: Path, make: Callable[[dict], Any]) -> list:
    """What `make` makes of each record; [] where there is no such file. Another shape ends the stage with file:line."""
    made = []
    for number, record in read_records(path) if path.exists() else ():
        try:
            made.append(make(record))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            problem = f"not what a stage writes: {type(error).__name__}: {error}"
            fail(f"{path}:{number}: {problem}; mend the line, or run that stage again with --overwrite")
    return made


def gather(run: Path, rows: list[dict]) -> Gathered:
    found = Gathered(str(run), rows)
    fed: dict[str, dict] = {}  # id: the last feedback record with it, which later prompts show
    for folder in sorted(run.glob("iter-*")):
        gather_generated(found, folder, fed)
        gather_scored(found, folder, fed)
    for row in rows:
        if (place := row["iteration"]) and "metric" in row:
            found.metrics[place] = read_json(run / place / "metrics.json")
            gather_predictions(found, run / place, place, row["metric"])
        if labelled := read_json(run / place / "labelled.jsonl.run.json"):
            tokens = labelled["counts"].get("computed_tokens", 0)
            found.speed[place] = {"tokens": tokens, "seconds": labelled["seconds"]}
    found.facts = facts_of(run, found)
    return found


def as_row(record: dict, at: str, kind: str, **more: Any) -> dict:
    """A record as the table of the page has it, with no more of its texts than a page can hold."""
    text = record.get("source") or record.get("completion") or ""
    label = record.get("target") or record.get("label") or ""
    other = record.get("prediction") if kind in ("wrong", "feedback") else record.get("teacher_label")
    texts = {name: str(value or "") for name, value in (("text", text), ("label", label), ("other", other))}
    row = {"at": at, "kind": kind, "id": str(record["id"]), "reason": "", "note": "", "fed": [], "written": 0} | more
    return row | {k: t[:MAX_TEXT] for k, t in texts.items()} | {"cut": max(map(len, texts.values()))}


def gather_generated(found: Gathered, folder: Path, fed: dict[str, dict]) -> None:
    """Counts, texts and records of both splits; a text that feedback led to knows it, and is counted there."""
    counts, tokens, seconds = Counter(), 0, 0.0
    found.texts[folder.name], found.labels[folder.name] = [], Counter()

    def accepted(record: dict) -> dict:
        shown = [fed[s] for s in record.get("shots") or () if s in fed] if record.get("feedback") is True else []
        for row in shown:
            row["written"] += 1
        return as_row(record, folder.name, "accepted", fed=shown)

    def rejected(record: dict) -> dict:
        return as_row(record, folder.name, "rejected", reason=str(record["reason"]))

    for path in training_files(folder):
        rows = each(path, accepted)
        found.texts[folder.name] += each(path, lambda r: str(r.get("source", "")))
        found.labels[folder.name] += Counter(row["label"] for row in rows)
        found.records += rows
    for split in ("train", "validation"):
        for path in shards(folder, f"{split}.jsonl"):
            found.records += each(path, accepted) if split == "validation" else []
            record = read_json(beside(path, ".run.json"))
            made = record.get("counts", {})
            counts += Counter({k: made.get(k, 0) for k in ("attempted", "accepted")} | made.get("rejected", {}))
            for name, values in made.get("attributes", {}).items():
                for value, numbers in values.items():
                    by_place = found.values_drawn.setdefault(f"{name}: {value}", {})
                    by_place.setdefault(folder.name, Counter()).update(numbers)
            tokens, seconds = tokens + made.get("completion_tokens", 0), seconds + record.get("generate_seconds", 0)
        for path in shards(folder, f"{split}.rejected.jsonl"):
            found.records += each(path, rejected)
    people = read_json(folder / "annotated.jsonl.run.json").get("counts", {})
    counts.update(attempted=people.get("records", 0), accepted=people.get("records", 0))
    for name in ("labelled.rejected.jsonl", "dropped.jsonl", "annotated.rejected.jsonl"):
        rows = [row for path in shards(folder, name) for row in each(path, rejected)]
        counts.update(row["reason"] for row in rows)
        counts["accepted"] -= len(rows)
        found.records += rows
    found.counts[folder.name] = +counts
    if seconds:
        found.speed[folder.name] = {"tokens": tokens, "seconds": seconds}


def gather_scored(found: Gathered, folder: Path, fed: dict[str, dict]) -> None:
    options = read_json(folder / "scored.jsonl.run.json").get("options", {})
    if not options:
        return
    score = found.score = options["score"]
    selected = each(
        folder / "feedback.jsonl",
        lambda r: as_row(r, folder.name, "feedback", note=f"rank {r['rank']:d}, {score} {r['score']:.3f}"),
    )
    ids = {row["id"] for row in selected}
    groups: dict[str, list] = {}
    for label, value, name in each(folder / "scored.jsonl", lambda r: (r.get("target"), float(r[score]), str(r["id"]))):
        groups.setdefault(str(label), []).append((value, name in ids))
    if len(groups) > 6:  # one panel
        groups = {f"all {len(groups):,} answers": [pair for pairs in groups.values() for pair in pairs]}
    if groups:
        found.scores[folder.name] = groups
    found.records += selected
    fed |= {row["id"]: row for row in selected}


def gather_predictions(found: Gathered, folder: Path, place: str, metric: str) -> None:
    """The value of each test example, and the wrong predictions; the untrained student has hardly any other."""

    def read(record: dict) -> tuple:
        value = float(record[metric] if metric == "rouge_l" else record["correct"])
        wrong = not record["correct"] and place != "untrained"
        key = (str(record["id"]), str(record.get("source")))
        return key, value, as_row(record, place, "wrong") if wrong else None

    read_all = each(folder / "predictions.jsonl", read)
    found.values[place] = {key: value for key, value, _ in read_all}
    found.records += [row for *_, row in read_all if row]


def facts_of(run: Path, found: Gathered) -> dict[str, str]:
    """The lines of the header, from the run records."""
    records = [read_json(path) for path in sorted(run.glob("**/*.run.json"))]
    by_stage = {r.get("stage"): r for r in records}  # the last of each
    made, trained = (by_stage.get(f"{s}.py", {}) for s in ("generate", "train_student"))
    made = made or by_stage.get("label.py", {})
    student = (
        read_json(run / "untrained/predictions.jsonl.run.json")
        or read_json(run / "iter-00/student.run.json")
        or trained
    )
    fed_back = [r for path in sorted(run.glob("iter-*/scored.jsonl.run.json")) if (r := read_json(path))]
    options = fed_back[-1].get("options", {}) if fed_back else {}
    feedback = f"{options['score']}, quantiles {options['low']} to {options['high']}" if options else "none"
    strategies = sorted({s for r in records if (s := r.get("strategy"))})
    commits = sorted({f"{c}{' (changed)' * bool(r.get('git_dirty'))}" for r in records if (c := r.get("git_commit"))})
    tokens = sum(r.get("counts", {}).get("computed_tokens", 0) for r in records)
    names = {m["task"] for m in found.metrics.values() if "task" in m}
    return {
        "task": ", ".join(sorted(names)) or made.get("options", {}).get("task_file", "-"),
        "teacher": made.get("options", {}).get("model", "-"),
        "student": student.get("options", {}).get("model", "-"),
        "strategy": ", ".join(strategies) or "-",
        "feedback": feedback,
        "seed": str(made.get("options", {}).get("seed", "-")),
        "iterations": str(len(found.texts)),
        "training examples": f"{sum(map(len, found.texts.values())):,}",
        "all stages": f"{sum(s for row in found.rows for s in row['seconds'].values()):,.0f} s",
        "tokens computed by the teacher": f"{tokens:,}" if tokens else "-",
        "commit": ", ".join(commits) or "-",
        "finished": max((r.get("finished_at", "") for r in records), default="") or "-",
    }
