"""A teacher that is fine-tuned on a task's few examples before it writes more of them (Kaddour & Liu 2023, arXiv 2310.01119).

It reads the very tokens that generate.py sends, and learns to write what is missing of an example, and its end.
"""

import contextlib
import shlex
from pathlib import Path

from gold.attempts import Pools, draw_attempt
from gold.cards import data_table, plain, table
from gold.command import fail
from gold.disk import write_text
from gold.examples import example_key
from gold.jsonl import write_file
from gold.labels import chat_answer
from gold.prompts import known_label, render_prompt, split_example
from gold.student import Student
from gold.task import Task
from gold.teacher import Encoder
from gold.templates import render

NUM_FEWSHOT = 3  # shots in a prompt: generate.py's default
DETAILS = (
    "lora_rank learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps seed".split()
)

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gold, synthetic-data]
---

# A teacher of the task {name}

**Licence: not stated yet.** Put `license: ...` into the lines at the top: what the base model and your data allow.

The base model is {base}. The scripts of GOLD fine-tuned it to write examples of the task, as in
[arXiv 2310.01119](https://arxiv.org/abs/2310.01119), in the prompts of generate.py. It is no student: it answers nothing.

    {command}

{data}

{training}
"""


def teacher_rows(task: Task, encoder: Encoder, examples: list[dict], seeds: list[dict], seed: int) -> list[dict]:
    """Of each example the token ids of a training prompt that asks for it (input_ids) and of its completion (labels), with
    both as texts (source, target). Ends the stage (exit 1) where no shot is left, or the context is too short.

    task: in the encoder's form. For example i, of label l of L, the prompt is that of attempt i * L + l of generate.py, with
    all seed examples but this one. The completion ends as generate.py ends it: by the turn, the stop string or EOS.
    """
    gap, end = "", (task.parse.stop or [encoder.tokenizer.eos_token or ""])[0]  # without any load_student refuses it
    if chat := encoder.form == "chat":
        gap, end = chat_answer(encoder)
    keys, prompts, targets = [example_key(task, shot) for shot in seeds], [], []
    for i, example in enumerate(examples):
        if task.rationale_field and not example.get(task.rationale_field):
            fail(
                f"{example['id']}: no field {task.rationale_field!r}, which the teacher is to write; add it to the line"
            )
        label, own = example[task.answer_field] if task.labels else None, example_key(task, example)
        others = Pools([shot for shot, key in zip(seeds, keys, strict=True) if key != own])
        number, how = i * len(task.names) + task.names.index(label), {"seed": seed, "num_fewshot": NUM_FEWSHOT}
        if not (shots := draw_attempt(task, 0, "train", number, others, how).shots):
            of = f" of the label {label!r}" if task.is_list else ""
            fail(f"{example['id']}: {task.seed_examples} has no other example{of} to show before it; add one")
        prompts.append(render_prompt(task, "train", shots, label))
        start = split_example(task.prompt.example, known_label(task, label)).start
        text = encoder.plain(render(task.prompt.example, example).removeprefix(start))
        targets.append(gap + (text.strip() if chat else text) + end)
    sources, rows = encoder.frame(prompts), []
    wholes = encoder.token_ids([source + target for source, target in zip(sources, targets, strict=True)])
    for e, source, target, ids, whole in zip(examples, sources, targets, encoder.encode(prompts), wholes, strict=True):
        if len(whole) > (encoder.context or len(whole)):
            told = f"its prompt and its text have {len(whole):,} tokens, the context of --model {encoder.context:,}"
            fail(f"{e['id']}: {told}; leave it out")
        labels = whole[len(ids) :]
        if whole[: len(ids)] != ids:  # one token holds the ends of both; else together: SentencePiece has a blank first
            labels = encoder.tokenizer(target, add_special_tokens=False)["input_ids"]
        rows.append({"id": e["id"], "source": source, "target": target, "input_ids": ids, "labels": labels})
    return rows


def save_teacher(student: Student, encoder: Encoder, options: dict, examples: list[dict], folder: Path) -> None:
    """A model folder like the base's, with its tokenizer, chat template and generation settings (they may name more ends of
    a turn); the weights are float32. tuned_on.jsonl is for `generate.py --exclude-file`: a teacher may know its examples by
    heart. options: of train_student.py.
    """
    from transformers import GenerationConfig

    task, base, names = student.task, options["model"], [*student.task.fields, student.task.answer_field]
    student.network.config.use_cache = True  # Trainer turns it off, and saves that
    student.network.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    with contextlib.suppress(OSError):  # it has none
        GenerationConfig.from_pretrained(base).to_json_file(folder / "generation_config.json")
    write_file(folder / "tuned_on.jsonl", ({name: e[name] for name in names} for e in examples))
    words = ["python", "generate.py", "--task-file", str(task.path), "--model", str(options["output_dir"])]
    words += ["--prompt-form", encoder.form, "--output-dir", "runs/mine/iter-00"]
    card = CARD.format(
        name=plain(task.name), base=plain(base), command=shlex.join(words), data=data_table(options["train_file"]),
        training=table(["", ""], [[name, options[name]] for name in DETAILS]),
    )  # fmt: skip
    write_text(folder / "README.md", card)
