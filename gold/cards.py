"""The README.md of a student and of generated data, as the Hugging Face hub and `datasets` read them."""

import os
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gold.disk import beside, read_json, write_text
from gold.encoding import frame_of_source, source_limit
from gold.jsonl import parse_shard, read_records
from gold.metrics import mean_interval
from gold.runs import git_state
from gold.student import Student
from gold.task import Task
from gold.templates import mark_before_answer

PIPELINES = {"encoder": "text-classification", "encoder-decoder": "text2text-generation", "decoder": "text-generation"}
SHOWN = 100  # examples among which the shortest is the one of the code
DETAILS = """loss sce_alpha sce_beta learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps
    processes lr_scheduler_type warmup_ratio weight_decay lora_rank max_source_length max_target_length seed""".split()

CARD = """---
{front}
---

# A student of the task {name}

**Licence: not stated yet.** Put `license: ...` into the lines at the top: what the base model, the teacher and your data allow.

The task: {description}

The base model is {base}. It was fine-tuned by the scripts of GOLD ([arXiv 2403.19754](https://arxiv.org/abs/2403.19754)),
in which a large language model writes training examples. It reads texts of the form "{source}".

{labels}
## Use

```python
{code}
```

`answers` are those of evaluate.py, in its spelling. Two exceptions: of a text of more than {limit:,} tokens this code cuts
the end, evaluate.py that of the longest field; a text that spells out a control token of the model may be read otherwise.

## Training data

{data}

{train:,} examples were trained on; {held_out:,} were held out{chose}.

## Training

{training}

## Results

{results}

On a test set, with 95 % intervals, in metrics.json:

```
{command}
```
"""


DATA_CARD = """---
{front}
---

# Examples of the task {name}, written by a large language model

**Licence: not stated yet.** Put `license: ...` into the lines at the top: what the teacher and the seed examples allow.

The task: {description}

The teacher was {teacher}.

{mark}
"""
MARK = "This file was made by generate.py, which makes it anew when it goes on. Take this line out to keep your edits."


def model_card(student: Student, options: dict, data: str, train: list[dict], held_out: int, counts: dict) -> str:
    """The card. options: of train_student.py; data: see data_table; counts: what fit has counted. Texts are escaped."""
    from huggingface_hub import ModelCardData

    task, folder, base = student.task, str(options["output_dir"]), options["model"]
    of_hub = not Path(base).is_dir()  # the hub takes no path for a base
    front = ModelCardData(
        base_model=base if of_hub else None, library_name="transformers", pipeline_tag=PIPELINES[student.family],
        tags=["gold", "knowledge-distillation", "synthetic-data", task.kind],
    )  # fmt: skip
    definitions = [[name, task.targets[i], text] for i, (name, text) in enumerate(task.labels.items())]
    labels = table(["label", "the student's answer", "definition"], definitions) if definitions else ""
    details = {name: options[name] for name in DETAILS if options[name] is not None and name[:4] != "sce_"}
    if options["loss"] == "sce":
        details |= {"sce_alpha": options["sce_alpha"], "sce_beta": options["sce_beta"]}
    made = {name: counts[name] for name in ("family", "dtype", "parameters", "steps", "best_epoch")}
    code = {"transformers": version("transformers"), "git_commit": git_state()["git_commit"]}
    code |= {"strategy": os.environ["STRATEGY"]} if "STRATEGY" in os.environ else {}  # of loop.sh
    words = ["python", "evaluate.py", "--task-file", str(task.path), "--model", folder, "--test-file", "test.jsonl"]
    return CARD.format(
        front=front.to_yaml().strip(), name=plain(task.name), description=plain(task.description), base=plain(base),
        source=plain(task.student.source), labels=f"{labels}\n" if labels else "", limit=limit_of(student),
        code=code_of(student, folder, train), train=len(train), held_out=held_out, data=data,
        chose=", and chose the best epoch" * bool(held_out),
        training=table(["", ""], [[name, value] for name, value in (made | details | code).items()]),
        results=results_of(counts["held_out_accuracy"], held_out, task.metric),
        command=shlex.join([*words, "--output-dir", f"{folder}.test"]),
    )  # fmt: skip


def write_data_card(folder: Path, task: Task, options: dict) -> None:
    """README.md beside the splits, with their files and the type of every field: `datasets` would guess from the values.

    options: of generate.py. A file without MARK stays: it is the user's. Of several shards the first one writes it.
    """
    from huggingface_hub import DatasetCardData

    index, count = parse_shard(options["shard"])
    if index:
        return
    path, types = folder / "README.md", {"iteration": "int64", "sampling_seed": "int64", "feedback": "bool"}
    types |= {"teacher_nll": "float64"}
    if path.exists() and MARK[:32] not in path.read_text(encoding="utf-8", errors="replace"):  # of earlier builds too
        return
    names = [*task.shown_fields, "source", "target", "task", "iteration", "split", "feedback"]
    if options["unlabelled"]:
        names = [name for name in names if name not in (task.answer_field, "target")]
    lists = ["shots", "passages"] if options["corpus_file"] else ["shots"]
    names += [*lists, "sampling_seed", "finish_reason", "completion", *["teacher_label"] * options["verify"]]
    names += ["teacher_nll"] * options["teacher_nll"]
    features = [{"name": n} | ({"list": "string"} if n in lists else {"dtype": types.get(n, "string")}) for n in names]
    if options["attributes"]:
        values = [{"name": n, "dtype": "string"} for n in task.prompt.attributes]
        features.append({"name": "attributes", "struct": values})
    if options["verify"] and task.labels:
        features.append({"name": "label_probs", "struct": [{"name": n, "dtype": "float64"} for n in task.labels]})
    shards = f"-*-of-{count:05d}" if options["shard"] else ""
    splits = ["train", "validation"] if options["num_validation"] else ["train"]
    data_files = [{"split": name, "path": f"{name}{shards}.jsonl"} for name in splits]
    front = DatasetCardData(
        tags=["gold", "synthetic-data"], configs=[{"config_name": "default", "data_files": data_files}],
        dataset_info={"features": features},
    )  # fmt: skip
    card = DATA_CARD.format(
        front=front.to_yaml().strip(), name=plain(task.name), description=plain(task.description),
        teacher=plain(options["model"]), mark=MARK,
    )  # fmt: skip
    write_text(path, card)


def plain(text: Any) -> str:
    """One line in which Markdown and HTML find nothing of theirs."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*_\[\]<>#|&~$])", r"\\\1", line)


def table(heads: list[str], rows: list[list]) -> str:
    lines = [heads, ["---"] * len(heads), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def data_table(paths: list[Path]) -> str:
    """Each file, its lines, and from the run records of generate.py and score_ood.py the teacher and what steered it."""
    rows = []
    for path in paths:
        record = read_json(beside(path, ".run.json"))
        if path.name in ("labelled.jsonl", "kept.jsonl"):  # of what was generated
            record = read_json(path.with_name("train.jsonl.run.json")) or record
        made, steered = record.get("options", {}), []
        for feedback in made.get("feedback_file") or [] if record.get("stage") == "generate.py" else []:
            by = read_json(Path(feedback).with_name("scored.jsonl.run.json")).get("options", {})
            steered.append(f"{feedback}, by {by.get('score', 'a score not known')}")
        teacher, number = made.get("model", "not known"), sum(1 for _ in read_records(path))
        rows.append([path, number, teacher, "; ".join(steered) or "none"])
    return table(["file", "records", "teacher", "feedback that its prompts showed"], rows)


def results_of(accuracy: float | None, held_out: int, metric: str) -> str:
    if accuracy is None:
        return "No examples were held out."
    right = round(accuracy * held_out)
    m = mean_interval([1.0] * right + [0.0] * (held_out - right), 0, 10_000)
    found = [["held out of the training files", held_out, f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"]]
    return table(["examples", "n", f"share correct by {plain(metric)} [95 % interval]"], found)


# ---------------------------------------------------------------------------------------------------------------------
# Code that gives evaluate.py's answers


def limit_of(student: Student) -> int:
    """How many tokens of a source the student reads, the tokenizer's frame included."""
    return source_limit(student.tokenizer, student.family, student.lengths, student.positions)[0]


def code_of(student: Student, folder: str, examples: list[dict]) -> str:
    """Lines of Python that answer `sources`, and put evaluate.py's predictions into `answers`."""
    tokenizer, task, family = student.tokenizer, student.task, student.family
    clean = ".strip().lower()" if task.labels else ".strip()"
    source = min((e["source"] for e in examples[:SHOWN]), key=len)
    how: dict[str, Any] = {"truncation": True, "max_length": limit_of(student), "split_special_tokens": True}
    given = f"sources = [{source!r}]"
    if family == "encoder":
        names = {name: text for name, text in zip(task.labels, task.targets, strict=True) if name != text}
        target = f'{names!r}.get(found["label"], found["label"])' if names else 'found["label"]'
        load = ["from transformers import pipeline", "", f'student = pipeline("{PIPELINES[family]}", model={folder!r})']
        run = [f"answers = [{target}{clean} for found in student(sources, **how)]"]
        return "\n".join([*load, given, f"how = {how!r}", *run])
    # The frame as ids, and a decoder's newline tokenised apart, as in training: as one text ".\n" may be one token
    before, after, newline = frame_of_source(tokenizer, family)
    how |= {"max_length": how["max_length"] - len(before) - len(after), "add_special_tokens": False}
    auto = "AutoModelForCausalLM" if family == "decoder" else "AutoModelForSeq2SeqLM"
    new = "[ids.shape[1]:]" if family == "decoder" else ""
    mark, answer, libraries = mark_before_answer(task.student.target, task.rationale_field), "text", "import torch"
    if mark:  # what stands behind the reasons
        answer, libraries = (
            f"(['', *re.split({mark.pattern!r}, text, flags=re.I)[1:]][-1])",
            "import re\n\nimport torch",
        )
    return f"""{libraries}
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
student = {auto}.from_pretrained({folder!r})
{given}
how = {how!r}
inputs = [torch.tensor([{before} + tokenizer(source, **how).input_ids + {after + newline}]) for source in sources]
written = [student.generate(ids, attention_mask=torch.ones_like(ids))[0]{new} for ids in inputs]
texts = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
answers = [{answer}{clean} for text in texts]"""
