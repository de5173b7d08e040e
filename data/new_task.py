"""A task of your own from twenty labelled rows: prompts/NAME.toml, data/NAME/seed_examples.jsonl and data/NAME/test.jsonl.

    python -m data.new_task mine.csv --answer sentiment              # also .tsv, .jsonl, .json, .parquet
    python -m data.new_task mine.csv --answer class --labels "0=spam,1=ham" --name mail
    python generate.py --task-file prompts/mine.toml --model MODEL --output-dir runs/try/iter-00 --dry-run     # the prompts

Kind, labels, fields and lengths are guessed from the rows, and said; what cannot be guessed is asked for by the name of the
option. The definitions of the labels are left for you: each line with TODO in the task file.
"""

import json
import math
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from data.to_jsonl import records_in
from gold.command import Overwrite, fail, new_app, run_command, say
from gold.jsonl import write_file
from gold.task import load_task
from gold.task_checks import RESERVED
from gold.text import exact_form, text_key, words

ANSWERS = ("label", "answer", "class", "category", "target", "sentiment", "intent", "gold")  # usual names of the column
MOST_LABELS, FEWEST = 100, 8  # labels; rows
SEEDS_A_LABEL, SEEDS = 3, 8  # seed examples: of a label, of a task without labels

app = new_app()


@app.command()
def main(
    rows: Annotated[Path, typer.Argument(help="Labelled rows: .csv, .tsv, .jsonl, .json or .parquet, twenty or more.")],
    answer: Annotated[str | None, typer.Option(help="Column that the student must produce (a usual name is found).")] = None,
    fields: Annotated[str | None, typer.Option(help="Columns to write, with commas (all columns of texts).")] = None,
    labels: Annotated[str | None, typer.Option(help='Names for labels that are numbers: "0=spam,1=ham".')] = None,
    name: Annotated[str | None, typer.Option(help="Name of the task (that of the file).")] = None,
    folder: Annotated[Path, typer.Option(help="Where prompts/ and data/ are.")] = Path(),
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Write a task file to be edited, its seed examples and its test set."""
    records = [record for record in records_in(rows) if any(str(v or "").strip() for v in record.values())]
    if not records:
        fail(f"{rows}: no rows in it; give twenty or more, under a line with the names of the columns")
    columns = list(dict.fromkeys(column for record in records for column in record))
    answer = answer or guess_answer(rows, columns)
    chosen = [name.strip() for name in fields.split(",")] if fields else guess_fields(rows, records, columns, answer)
    for option, column in [("answer", answer), *(("fields", field) for field in chosen)]:
        if column not in columns:
            fail(f"--{option} {column}: no such column in {rows}; it has {', '.join(columns)}")
    task = re.sub(r"[^a-z0-9]+", "_", (name or rows.name.split(".")[0]).lower()).strip("_") or "mine"
    task_file, data = folder / "prompts" / f"{task}.toml", folder / "data" / task
    paths = [task_file, data / "seed_examples.jsonl", data / "test.jsonl"]
    for path in paths:
        if path.exists() and not overwrite:
            fail(f"{path}: is there already; give another --name, or replace it with --overwrite")
    named = {column: field_name(column) for column in [*chosen, answer]}
    if len({*named.values(), named[answer] + "s"}) < len(chosen) + 2:
        fail(f"{rows}: the fields {', '.join(chosen)} and the answer {answer} must differ in name; choose others")
    examples = [{new: text_of(r.get(old)) for old, new in named.items()} for r in records]
    whole = [e for e in examples if all(e.values())]
    if len(whole) < len(examples):
        say(f"{rows}: {len(examples) - len(whole):,} of {len(examples):,} rows lack a field or the answer: left out")
    if len(whole) < FEWEST:
        fail(f"{rows}: only {len(whole)} whole rows; give twenty or more")
    known = label_names(rows, whole, named[answer], labels)
    if known:
        whole = [e | {named[answer]: known[exact_form(e[named[answer]])]} for e in whole]
    names = sorted(set(known.values()), key=list(known.values()).index)
    seeds, test = split_rows(whole, named[answer], bool(known))
    if not test:
        fail(f"{rows}: only {len(seeds)} different rows, all of them needed as seed examples; give twenty or more")
    content = task_text(task, [named[c] for c in chosen], named[answer], names, whole)
    task_file.parent.mkdir(parents=True, exist_ok=True)
    draft = task_file.with_suffix(".draft.toml")
    draft.write_text(content, encoding="utf-8")
    try:
        load_task(draft)  # ends here where it is no task, before anything is replaced
    finally:
        draft.unlink()
    data.mkdir(parents=True, exist_ok=True)
    for path, part in zip(paths[1:], (seeds, test), strict=True):
        write_file(path, [{"id": f"{path.stem.split('_')[0]}-{i}"} | e for i, e in enumerate(part, 1)])
    task_file.write_text(content, encoding="utf-8")
    kind = f"classification, labels {', '.join(names)}" if names else "text2text: the answer is a text"
    renamed = ", ".join(f"{old!r} is {new!r}" for old, new in named.items() if old != new)
    say(
        f"{task_file}: {kind}; the teacher writes {', '.join(named[c] for c in chosen)}"
        + f"; {renamed}" * bool(renamed)
    )
    say(f"{paths[1]}: {len(seeds):,} examples that prompts show; {paths[2]}: {len(test):,} to measure on")
    say(f"next: fill in the lines with TODO in {task_file}, then look at the prompts:")
    say(f"  python generate.py --task-file {task_file} --model MODEL --output-dir runs/{task}-try/iter-00 --dry-run")


def guess_answer(path: Path, columns: list[str]) -> str:
    found = [column for column in columns if column.strip().lower() in ANSWERS]
    if len(found) != 1:
        fail(f"{path}: which column must the student produce? give --answer, one of {', '.join(columns)}")
    say(f"{path}: the answer is the column {found[0]!r} (--answer)")
    return found[0]


def guess_fields(path: Path, records: list[dict], columns: list[str], answer: str) -> list[str]:
    """The columns of texts: several words in most of them, and not a few again and again (NLI has each premise three times)."""
    found, left = [], []
    for column in (c for c in columns if c != answer):
        texts = [text_of(r.get(column)) for r in records]
        spoken = sum(bool(re.search(r"[^\W\d_]", t)) and len(words(t)) > 1 for t in texts)
        (found if spoken > len(texts) / 2 and len(set(texts)) > 0.3 * len(texts) else left).append(column)
    if left:
        say(f"{path}: left out, for they hold no texts, or few different ones: {', '.join(left)} (--fields)")
    if not found:
        fail(f"{path}: no column holds texts; which ones does the student read? give --fields, of {', '.join(columns)}")
    return found


def text_of(value: object) -> str:
    """A value as a text in one line; a whole number without the .0 that a table with gaps gives it."""
    return "" if value is None else re.sub(r"^(-?\d+)\.0+$", r"\1", " ".join(str(value).split()))


def field_name(column: str) -> str:
    """A name that templates can use, and no stage does."""
    plain = re.sub(r"\W+", "_", column.strip(), flags=re.ASCII).strip("_").lower() or "text"
    plain = f"field_{plain}" if plain[0].isdigit() else plain
    return f"my_{plain}" if plain in RESERVED or plain.startswith("energy") else plain


def label_names(path: Path, examples: list[dict], answer: str, given: str | None) -> dict[str, str]:
    """{label as it is compared: label as it is written}; {} for text2text, where most answers differ.

    Labels of other capitals are one, written as they mostly are. Numbers need names: the teacher reads them.
    """
    counts = Counter(e[answer] for e in examples)
    known: dict[str, str] = {}
    for label, _ in counts.most_common():
        known.setdefault(exact_form(label), label)
    if len(known) < 2:
        fail(f"{path}: all {len(examples)} rows have the answer {next(iter(known.values()))!r}; check --answer")
    if not given and len(known) > min(MOST_LABELS, len(examples) / 2):
        say(
            f"{path}: {len(known)} different answers in {len(examples)} rows: taken for texts; labels need several rows each"
        )
        return {}
    if given and (bad := next((pair for pair in given.split(",") if "=" not in pair), None)):
        fail(f'--labels: {bad!r} is no pair; give "old=new", with commas between pairs, such as "0=spam,1=ham"')
    names = dict(pair.split("=", 1) for pair in given.split(",")) if given else {}
    names = {exact_form(old): new.strip() for old, new in names.items()}
    if numbers := [label for form, label in known.items() if label.lstrip("-").isdigit() and form not in names]:
        asked = ",".join(f"{label}=..." for label in sorted(numbers))
        fail(
            f'{path}: the labels {", ".join(sorted(numbers))} are numbers, which say nothing: name them: --labels "{asked}"'
        )
    if lost := set(names) - set(known):
        fail(f"--labels: no row has {', '.join(sorted(lost))}; the labels are {', '.join(known.values())}")
    return {form: names.get(form, label) for form, label in known.items()}


def split_rows(examples: list[dict], answer: str, labelled: bool) -> tuple[list[dict], list[dict]]:
    """(seed examples, test set), by a hash of the text: of each label at most half of its rows become seed examples.

    Of rows with one text the first stays.
    """
    different: dict[str, dict] = {}
    for e in examples:
        different.setdefault("\n".join(text_key(text) for name, text in e.items() if name != answer), e)
    order = [different[key] for key in sorted(different, key=lambda key: sha256(key.encode()).digest())]
    rows, taken, seeds = Counter(e[answer] for e in order), Counter(), []
    for e in order:
        group = e[answer] if labelled else None
        most = min(SEEDS_A_LABEL, math.ceil(rows[group] / 2)) if labelled else min(SEEDS, len(order) // 2)
        if taken[group] < most:
            taken[group] += 1
            seeds.append(e)
    seeds.sort(key=lambda e: e[answer])
    return seeds, [e for e in order if e not in seeds]


def mark(field: str) -> str:
    """my_review: "My review: $my_review"."""
    return f"{field.replace('_', ' ').capitalize()}: ${field}"


def task_text(name: str, fields: list[str], answer: str, labels: list[str], examples: list[dict]) -> str:
    """The task file: plain prompts that work, in the form of those in prompts/."""
    lines, last, spoken = "\n".join(map(mark, fields)), mark(answer), answer.replace("_", " ")
    about = f", with the {spoken} $label: $definition" if labels else ""
    shown = "The labels and what they mean:\n\n$labels\n\n$shots" if labels else "$shots"
    listed = "- $" + fields[0] if len(fields) == 1 and labels else lines if labels else f"{lines}\n{last}"
    apart = "\n" if listed.startswith("- ") else "\n\n"
    heading = "TODO, a heading such as Short reviews of hotels" + (", $label:" if labels else ":")
    sizes = {field: [len(words(e[field])) for e in examples] for field in [*fields, *([] if labels else [answer])]}
    at_least = ", ".join(f"{f} = {max(1, min(n) // 2)}" for f, n in sizes.items())
    at_most = ", ".join(f"{f} = {math.ceil(1.5 * max(n)) + 2}" for f, n in sizes.items())
    definitions = "\n".join(f'{json.dumps(x, ensure_ascii=False)} = "TODO: what it means, in a line"' for x in labels)
    definitions = f"\n[labels]\n{definitions}\n" if labels else ""
    read = " ".join(f"{field}: ${field}" for field in fields)
    return f"""# TODO: what the task is. docs/tasks.md explains every key.
name = "{name}"
version = 1
description = "TODO: the question that the student answers"
kind = "{"classification" if labels else "text2text"}"
metric = "{"accuracy" if labels else "exact_match"}"
fields = {json.dumps(fields)}
answer_field = "{answer}"
seed_examples = "../data/{name}/seed_examples.jsonl"
{definitions}
[prompt]
system = "You write examples for a training set. You give nothing but the example, in the form that is shown."
train = '''
{shown}

Write one more{about}.
It is about something else than those above, and no copy of them.

$start'''
validation = '''
{shown}

Write one more{about}.
It is significantly different from those above: another subject, another style, another length.

$start'''
example = '''
{last + chr(10) + lines if labels else lines + chr(10) + last}'''
label = '''
Give the {spoken}, and nothing else.

{shown}

$start'''
label_example = '''
{lines}
{last}'''

[completion]                  # a list of examples, for base models and small ones
example = '''
{listed}'''
train = '''
{heading}

$shots{apart}$start'''
validation = '''
{heading.replace("TODO, a heading such as Short", "TODO, another heading, such as All kinds of")}

$shots{apart}$start'''
label = '''
TODO, a heading such as Reviews of hotels:

$shots

$start'''

[parse]
stop = ["\\n\\n"]               # each field is one paragraph
min_words = {{{at_least}}}
max_words = {{{at_most}}}
max_overlap = 0.7

[student]
source = "{read}"
target = "${answer}"
"""


if __name__ == "__main__":
    run_command(app)
