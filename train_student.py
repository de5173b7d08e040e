"""Fine-tune a small language model on generated examples: the student of one iteration, or the final one.

Reads a task file, one or more train.jsonl, and a base model: an encoder-decoder (T5), an encoder (BERT, ModernBERT) or
a decoder-only model (Llama, Qwen2). Writes --output-dir as a Hugging Face model folder with training_log.jsonl,
held_out.jsonl and a model card (README.md) in it, and a run record beside it. With --as-teacher it fine-tunes a teacher
instead, on the task's seed examples, for `generate.py --model`.

    python train_student.py --task-file prompts/reviews.toml --model google-t5/t5-base \
        --train-file runs/a/iter-00/train.jsonl --output-dir runs/a/iter-00/student
    python train_student.py ... --loss sce                            # symmetric cross-entropy, against wrong labels
    python train_student.py ... --loss kl                             # soft labels: the label_probs of label.py
    python train_student.py ... --confidence-weights                  # what the teacher is surer of counts more (label.py)
    python train_student.py ... --lora-rank 16 --learning-rate 5e-4   # low-rank adapters: less memory (requirements-extra.txt)
    python train_student.py ... --report-to tensorboard               # losses and held-out accuracy as curves, in student/runs
    python train_student.py --task-file prompts/reviews.toml --model Qwen/Qwen2.5-7B-Instruct --as-teacher auto \
        --output-dir runs/a/tuned-teacher --lora-rank 16 --learning-rate 2e-4 --per-device-train-batch-size 4
    python train_student.py ... --dry-run                             # what would be trained on what; no model
    torchrun --nproc-per-node 2 train_student.py ...                  # several GPUs, as transformers' Trainer has it

The best checkpoint is chosen on a tenth of the training examples, picked by a hash of the id: never on validation or
test data. A teacher learns all of its few examples; its weights are those of the last step.
"""

import hashlib
import importlib.util
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gold import command
from gold.cards import data_table, model_card
from gold.command import DryRun, Dtype, Limit, Overwrite, TaskFile, fail, files, new_app, option_name, run_command, say
from gold.disk import beside, naming, remove, write_text
from gold.examples import rationale_rows, read_examples, tell_without_reasons, with_answer
from gold.jsonl import expand, write_file
from gold.model_folder import check_model_folder
from gold.runs import finish_run, start_run
from gold.soft_labels import soft_examples, weighted
from gold.student import BASE_LENGTHS, Student, check_labels, family_of, load_student
from gold.task import Task, load_task
from gold.teacher import Form, load_encoder
from gold.tuning import save_teacher, teacher_rows

Loss = Literal["ce", "sce", "kl"]
Schedule = Literal["linear", "cosine", "constant"]
Tracker = Literal["none", "tensorboard", "wandb", "trackio"]

app = new_app()
training = partial(typer.Option, rich_help_panel="Training")


@app.command()
def main(
    task_file: TaskFile,
    model: Annotated[str, files(help="Student base (T5, BERT, Llama, Qwen2 ...): a folder or a name on the hub.")],
    output_dir: Annotated[Path, files(help="Folder of the trained student.")],
    train_file: Annotated[list[Path] | None, files(help="Examples to train on; repeat, or a glob in quotes.")] = None,
    as_teacher: Annotated[Form | None, training(help="Tune a teacher in this prompt form, on the seeds by default.")] = None,
    loss: Annotated[Loss, training(help="ce; sce against wrong labels; kl to label_probs.")] = "ce",
    sce_alpha: Annotated[float, training(min=0, help="sce: weight of ce; near 0 an untaught student never starts.")] = 1.0,
    sce_beta: Annotated[float, training(min=0, help="sce: weight of the reverse cross-entropy.")] = 0.1,
    confidence_weights: Annotated[bool, training(help="Weigh an example by the share that label_probs give it.")] = False,
    learning_rate: Annotated[float, training(min=0, help="Peak learning rate of AdamW.")] = 1e-4,
    num_train_epochs: Annotated[float, training(min=0, help="Passes over the data.")] = 10,
    per_device_train_batch_size: Annotated[int, training(min=1, help="Out of memory: halve it, double the next.")] = 16,
    gradient_accumulation_steps: Annotated[int, training(min=1, help="Batches a step, as if they were one.")] = 1,
    lr_scheduler_type: Annotated[Schedule, training(help="The learning rate after the warm-up.")] = "linear",
    warmup_ratio: Annotated[float, training(min=0, max=1, help="Share of the steps with a rising rate.")] = 0.1,
    weight_decay: Annotated[float, training(min=0, help="AdamW's weight decay.")] = 0.01,
    max_source_length: Annotated[int, training(min=1, help="Tokens read; more are cut, and counted.")] = 512,
    max_target_length: Annotated[int, training(min=1, help="Tokens written; more are cut, and counted.")] = 128,
    lora_rank: Annotated[int | None, training(min=1, help="Train adapters of this rank (LoRA), merged at the end.")] = None,
    new_head: Annotated[bool, training(help="Replace an encoder's head that was trained on other labels.")] = False,
    seed: Annotated[int, training(help="Seed of new weights, order and dropout.")] = 0,
    dtype: Annotated[Dtype, training(help="auto = bfloat16 where the GPU has it.")] = "auto",
    report_to: Annotated[Tracker, training(help="Send losses and accuracy to this tracker too.")] = "none",
    limit: Limit = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Fine-tune the student on every --train-file; with --as-teacher a teacher on all of it or the seeds, to the last step."""
    options = dict(locals()) | {"processes": int(os.environ.get("WORLD_SIZE", "1"))}  # of torchrun
    # Load
    task, counts = load_task(task_file), {}
    check_model_folder(model)
    check_tracker(report_to)
    inputs = check_kind(options, task)
    options["train_file"] = expand("--train-file", options["train_file"])
    examples = read_training_examples(options, task, counts)
    held_out = [e for e in examples if not as_teacher and is_held_out(e["id"])]
    train = [e for e in examples if as_teacher or not is_held_out(e["id"])]
    if not train:
        fail(f"{train_file[0]}: only {len(examples)} examples, all of them held out; give more")
    train = weighted(train, task) if confidence_weights else train
    encoder = load_encoder(model, task, as_teacher, {}, False) if as_teacher else None
    rows = soft_examples(train, task, family_of(model, task)) if loss == "kl" else train
    if encoder:
        rows = teacher_rows(task.in_form(encoder.form), encoder, train, read_examples(task.seed_examples, task), seed)
    if dry_run:
        print(f"would train {model} on {len(train):,} examples ({len(held_out):,} held out): {options}")
        for e in rows[:3] if encoder else [*train[:3], *rationale_rows(train[:1], task)]:
            print(f"--- {e['id']}\nsource: {e['source']}\ntarget: {e['target']}")
        return
    run = None
    if command.is_main_process():
        how = {"overwrite": overwrite, "not_compared": ["report_to"]}
        run = start_run("train_student.py", output_dir, options, inputs, **how)
    if not proceeds(bool(run), options["processes"]):
        return

    # Train, save
    student = load_student(model, task, seed, new_head)
    student.lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length}
    if not encoder:
        check_labels(student, model)
    adapters = add_adapters(student, lora_rank) if lora_rank else None
    partial_output, data = beside(output_dir, ".partial"), data_table(options["train_file"])
    counts |= {"train_examples": len(train), "held_out_examples": len(held_out)}
    counts |= {"soft_targets": len(rows)} if loss == "kl" else {}
    counts |= {"rationale_rows": len(rationale_rows(train, task))} if task.student.rationale and not encoder else {}
    with naming(partial_output):
        result, log = fit(student, rows, held_out, partial_output / "checkpoints", options)
        if not run:
            return
        student.network = adapters.merge_and_unload() if adapters else student.network
        result["parameters"] = student.network.num_parameters()
        if (curves := partial_output / "checkpoints" / "runs").exists():  # TensorBoard's
            curves.replace(partial_output / "runs")
        remove(partial_output / "checkpoints")
        if encoder:
            result["prompt_form"] = encoder.form
            save_teacher(student, encoder, options, train, run.partial)
        else:
            save_student(student, options, data, train, held_out, result, run.partial)
    write_file(run.partial / "training_log.jsonl", log)
    record = finish_run(run, counts | result)
    best = f"; best epoch {result['best_epoch']}, held-out accuracy {result['held_out_accuracy']}" if held_out else ""
    say(f"{output_dir}: {len(train):,} examples, {result['steps']:,} steps in {record['seconds']:.0f} s{best}")


def save_student(
    student: Student, options: dict, data: str, train: list[dict], held_out: list[dict], result: dict, folder: Path
) -> None:
    """Model and tokenizer, the card, and the held-out examples."""
    student.save(folder, dtype=result["dtype"])
    write_text(folder / "README.md", model_card(student, options, data, train, len(held_out), result))
    if held_out:  # for whoever wants to compare students on what none of them was trained on
        write_file(folder / "held_out.jsonl", held_out)


def check_kind(options: dict, task: Task) -> list[str]:
    """Refuse a student's options with --as-teacher, whose examples are the seeds by default; names of the inputs."""
    inputs = ["task_file", "model", "train_file"]
    if options["loss"] == "kl" and task.teaches_reasons:
        fail(f"--loss kl: {task.path}: [student] has reasons, which label_probs say nothing of; leave one of them out")
    if not options["as_teacher"]:
        if not options["train_file"]:
            raise typer.BadParameter("is missing: the examples to train on", param_hint="--train-file")
        return inputs
    for name, default in (BASE_LENGTHS | {"loss": "ce", "new_head": False, "confidence_weights": False}).items():
        if options[name] != default:
            raise typer.BadParameter("is for students: leave it out with --as-teacher", param_hint=option_name(name))
    options |= {"train_file": options["train_file"] or [task.seed_examples], "seed_examples": task.seed_examples}
    return [*inputs, "seed_examples"]


def add_adapters(student: Student, rank: int) -> Any:
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), trained in place of the weights: W x becomes W x + 2 B A x
    in every linear layer but the last. Ends the stage (exit 1) for an encoder, and without peft.
    """
    if student.family == "encoder":
        fail("--lora-rank: is for T5 and decoder-only students, --model is an encoder; leave the option out")
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        fail("--lora-rank needs peft: bash setup.sh requirements-extra.txt (or pip install -r requirements-extra.txt)")
    # B is 0 at first: the student begins as its base. alpha / rank = 2
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return LoraModel(student.network, config, "default")


def read_training_examples(options: dict, task: Task, counts: dict) -> list[dict]:
    """Ends the stage (exit 1) for rejected completions. kl: label_probs stand in for the label, which need not be there."""
    soft = options["loss"] == "kl"
    use = ("teacher_label", "label_probs") if soft or options["confidence_weights"] else ()
    examples = read_examples(options["train_file"], task, counts=counts, answers=not soft, use=use)[: options["limit"]]
    lacking = [
        e["id"] for e in examples if e.get("label_probs") == {} or ("teacher_label" in e and not e.get("label_probs"))
    ]
    if use and lacking and len(lacking) < len(examples):  # of a server's chats some have none
        say(f"{len(lacking):,} of {len(examples):,} records have no shares of the teacher's answers: left out")
        examples = [e for e in examples if e["id"] not in {*lacking}]
        counts["without_answer"] = len(lacking)
    if rejected := next((e for e in examples if "sampling_seed" in e and e.get("reason")), None):
        told = f"{rejected['id']} is a rejected completion ({rejected['reason']})"
        fail(f"--train-file: {told}; give train.jsonl, or delete the `reason` of lines to train on")
    if task.teaches_reasons:
        tell_without_reasons(examples, task, "trained on")
    return [with_answer(e, task) for e in examples]


def check_tracker(name: str) -> None:
    """End the stage (exit 1) where the tracker's package is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        fail(f"--report-to {name}: needs a package that is not installed: {sys.executable} -m pip install {name}")


def is_held_out(identifier: str) -> bool:
    """A tenth of all ids, by hash: the same examples in every iteration, however the files are ordered or split."""
    return hashlib.sha256(identifier.encode()).digest()[0] < 26  # 26 / 256 = 10.2 %


def proceeds(run: bool, processes: int) -> bool:
    """Whether there is work to do: the first of torchrun's processes tells the others."""
    if processes == 1:
        return run
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())  # they connect
    return broadcast_object_list([run])[0]


def fit(
    student: Student, rows: list[dict], held_out: list[dict], checkpoints: Path, options: dict
) -> tuple[dict, list[dict]]:
    """Fine-tune in place on `rows`, keep the checkpoint that is best on `held_out`; (counts, log records)."""
    import torch
    from transformers import PrinterCallback, TrainingArguments, set_seed

    from gold.trainer import StudentTrainer

    set_seed(options["seed"])
    dtype = training_dtype(student, options["dtype"])
    features = rows if options["as_teacher"] else student.encode(rows)
    if options["loss"] == "kl":
        features = [feature | {"soft": row["soft"]} for feature, row in zip(features, rows, strict=True)]
    if options["confidence_weights"]:
        features = [feature | {"weight": row["weight"]} for feature, row in zip(features, rows, strict=True)]
    features = with_rationales(student, rows, features)
    batch, accumulated = options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
    steps = math.ceil(len(features) / (batch * accumulated * options["processes"])) * options["num_train_epochs"]
    arguments = TrainingArguments(
        output_dir=str(checkpoints), seed=options["seed"], num_train_epochs=options["num_train_epochs"],
        per_device_train_batch_size=batch, per_device_eval_batch_size=4 * batch, gradient_accumulation_steps=accumulated,
        learning_rate=options["learning_rate"], weight_decay=options["weight_decay"],
        lr_scheduler_type=str(options["lr_scheduler_type"]).replace("constant", "constant_with_warmup"),
        warmup_steps=int(steps * options["warmup_ratio"]),  # in steps: transformers 5.19 takes a share of 1.0 for one step
        bf16=dtype == "bfloat16", fp16=dtype == "float16", use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch" if held_out else "no", save_strategy="best" if held_out else "no",
        load_best_model_at_end=bool(held_out), metric_for_best_model="choice", save_total_limit=1, save_only_model=True,
        logging_steps=20, logging_first_step=True, disable_tqdm=True,
        report_to=options["report_to"], run_name=str(checkpoints.parent.with_suffix("")),
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen
        ddp_find_unused_parameters=False,  # there are none, and to look for them takes time at every step
        train_sampling_strategy="group_by_length", remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    arguments._n_gpu = 1  # several visible GPUs would make Trainer split batches, and count items by GPU
    trainer = StudentTrainer(
        student, held_out, options, args=arguments, train_dataset=features, eval_dataset=held_out or None
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    student.network.eval()
    log = [{k: finite(v) for k, v in entry.items()} for entry in trainer.state.log_history]
    best = max((e for e in log if "eval_choice" in e), key=lambda e: e["eval_choice"], default={})
    if best and dtype != "float32":  # in 16 bits near ties fall otherwise; evaluate.py measures in 32
        trainer.accelerator.unwrap_model(student.network, keep_fp32_wrapper=False)
        best = best | trainer.measure()
    counts = {
        "steps": trainer.state.global_step, "best_epoch": best.get("epoch"),
        "held_out_accuracy": round(best["eval_accuracy"], 4) if best else None,
        "family": student.family, "dtype": dtype,
    }  # fmt: skip
    return counts, log


def with_rationales(student: Student, rows: list[dict], features: list[dict]) -> list[dict]:
    """The features, and those of the second rows: label loss + lambda * rationale loss (Hsieh et al. 2023, arXiv 2305.02301)
    with lambda = 1 and means over tokens: a row of reasons weighs as its answer does, however long it is.
    """
    second = rationale_rows(rows, student.task)
    if not second:
        return features
    first = {row["id"]: feature for row, feature in zip(rows, features, strict=True)}
    sizes = {name: len(feature["labels"]) * feature.get("weight", 1.0) for name, feature in first.items()}
    found = zip(second, student.encode(second), strict=True)
    reasons = [feature | {"weight": sizes[row["id"]] / len(feature["labels"])} for row, feature in found]
    return [{"weight": 1.0} | feature for feature in features] + reasons


def training_dtype(student: Student, dtype: str) -> str:
    """The dtype of the computations; the weights stay float32."""
    import torch

    if dtype == "float16" and student.family == "encoder-decoder":
        fail("--dtype float16: T5 overflows in float16 (NaN); use bfloat16 or float32")
    if dtype != "auto":
        return dtype
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def finite(value: Any) -> Any:
    """None for a number that JSON does not have: the norm of a float16 gradient may overflow."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run_command(app)
