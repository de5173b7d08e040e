"""Have the teacher answer records of any origin: probabilities of all labels, or for text2text what it writes.

Reads a task file with a label prompt, and records. Writes the same records with teacher_label and label_probs, and
those without a usable answer into *.rejected.jsonl. Uses: the teacher's row beside the student's
(evaluate.py --prediction-field teacher_label), soft labels (train_student.py --loss kl), self-verification
(score_ood.py --confirmed), and labels for texts that have none (--relabel).

    python label.py --task-file prompts/reviews.toml --model Qwen/Qwen2.5-7B-Instruct \
        --input-file data/reviews/test.jsonl --output-file runs/a/teacher/labelled.jsonl
    python label.py ... --num-samples 5                      # text2text: the answer that most of five samples give
    python label.py ... --relabel --min-share 0.6            # its answer in place of the record's, where it is sure enough
    python label.py ... --shard 0/4                          # the first of four processes: labelled-00000-of-00004.jsonl
    python label.py ... --dry-run                            # show the prompts; no engine

Kill it at any time and run the same command again (without --overwrite): it resumes after the last whole chunk.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from gold import teacher
from gold.calibration import calibrates, divided, prior_of_words
from gold.command import DryRun, Limit, Overwrite, TaskFile, fail, files, new_app, run_command, say
from gold.disk import beside
from gold.engine import Engine
from gold.examples import agrees, as_unanswered, read_examples
from gold.jsonl import append_records, cut_torn_line, expand, parse_shard, read_records, shard_path
from gold.labels import draw_label_shots, label_records, label_rows
from gold.prompts import render_label_prompt
from gold.runs import Run, finish_run, save_notes, start_run
from gold.stopping import StopSignals
from gold.task import Task, load_task
from gold.teacher import ENGINE_OPTIONS, Encoder, prompting
from gold.templates import render_known

CHUNK = 512  # records at most that are labelled and saved together

app = new_app()


@app.command()
def main(
    task_file: TaskFile,
    model: Annotated[str, files(help="Teacher: a folder or a name on the hub.")],
    input_file: Annotated[list[Path], files(help="Records; only the task's fields are needed. Repeat, or a glob in quotes.")],
    output_file: Annotated[Path, files(dir_okay=False, help="The same with teacher_label and label_probs.")],
    shard: Annotated[str | None, files(metavar="I/N", help="Only every N-th record: labelled-0000I-of-0000N.jsonl.")] = None,
    num_fewshot: Annotated[int | None, prompting(min=0, help="Seed examples in all prompts (6; none in a list form).")] = None,
    relabel: Annotated[bool, prompting(help="Its answer becomes the record's; that of before stays as earlier_...")] = False,
    min_share: Annotated[float, prompting(min=0, max=1, help="Reject an answer with a lower share of label_probs.")] = 0.0,
    calibrate: teacher.Calibrate = None,
    num_samples: Annotated[int, prompting(min=1, help="text2text: the majority of so many answers (1 = greedy).")] = 1,
    temperature: Annotated[float, prompting(min=0, max=2, help="Sampling temperature of several answers.")] = 0.7,
    max_tokens: Annotated[int, prompting(min=1, help="text2text: longest answer in tokens.")] = 128,
    prompt_form: teacher.PromptForm = "auto",
    chat_template_kwargs: teacher.ChatTemplateKwargs = "{}",
    seed: Annotated[int, prompting(help="Chooses the seed examples, and the samples.")] = 0,
    trust_remote_code: teacher.TrustRemoteCode = False,
    dtype: teacher.EngineDtype = "auto",
    lora: teacher.Lora = None,
    engine_args: teacher.EngineArgs = "{}",
    max_model_len: teacher.MaxModelLen = None,
    gpu_memory_utilization: teacher.GpuMemoryUtilization = 0.9,
    tensor_parallel_size: teacher.TensorParallelSize = 1,
    data_parallel_size: teacher.DataParallelSize = 1,
    server_url: teacher.ServerUrl = None,
    num_concurrent: teacher.NumConcurrent = 64,
    limit: Limit = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Write --input-file with the teacher's answers."""
    options = dict(locals())
    # Load
    task, (index, shards), counts = load_task(task_file), parse_shard(shard), {}
    check_options(task, num_samples, calibrate, min_share)
    teacher.check_teacher(options)
    options |= {"input_file": expand("--input-file", input_file), "seed_examples": task.seed_examples}
    of_all_shards = read_examples(options["input_file"], task, answers=False, counts=counts)[:limit]
    records = of_all_shards[index::shards]
    if not records:
        raise typer.BadParameter("leaves no record for this shard; use fewer", param_hint="--shard")
    seeds = read_examples(task.seed_examples, task)
    render_label_prompt(task, records[0], seeds)  # is there one?
    if not dry_run:
        signals, output = StopSignals(), shard_path(output_file, shard)
        run = start_run(
            "label.py", output, options, ["task_file", "input_file", "seed_examples", *teacher.teacher_files(options)],
            resumable=True, also=[output.with_suffix(".rejected.jsonl")], overwrite=overwrite, not_compared=ENGINE_OPTIONS,
        )  # fmt: skip
        if run is None:
            return
    encoder = teacher.open_encoder(options, task)
    task = task.in_form(encoder.form)
    if not dry_run:
        teacher.keep_form(run, encoder.form)
    shots = draw_label_shots(task, seeds, num_fewshot, seed)
    if dry_run:
        show_label_prompts(task, encoder, records[:2], shots)
        print(f"=== would label {len(records):,} records")
        return

    # Label, chunk by chunk
    need = 0 if server_url else longest_need(output, task, encoder, records, shots, max_tokens, max_model_len)
    engine = teacher.open_engine(options, encoder, need, signals)
    rejected, size = beside(run.also[0], ".partial"), chunk_size(engine)
    done = read_done(run.partial, rejected)
    how = {"num_samples": num_samples, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    if calibrates(task, calibrate) and "prior" not in run.notes:  # kept: a run that goes on has the same
        prior = prior_of_words(engine, encoder, task, of_all_shards, shots, seed)
        run.notes.update({"prior": prior} if prior else {})
        save_notes(run)
    with tqdm(total=len(records), initial=len(done), desc="label", unit="record") as bar:
        for begin in range(0, len(records), size):  # the same chunks after a kill
            signals.stop_if_any()
            chunk = [record for record in records[begin : begin + size] if record["id"] not in done]
            if relabel:
                chunk = [as_unanswered(record, task) for record in chunk]
            answers = label_records(engine, encoder, task, chunk, shots, **how)
            answers = divided(task, answers, run.notes.get("prior"))
            kept, left = settle(chunk, answers, task, options, encoder.no_answer)
            append_records(run.partial, kept)
            append_records(rejected, left)
            for name, count in engine.taken_tokens().items():
                run.notes[name] = run.notes.get(name, 0) + count
            run.notes["not_taken"] = sorted({*run.notes.get("not_taken", []), *engine.not_taken})
            save_notes(run)
            bar.update(len(chunk))
    finish(run, task, records, encoder, counts, rejected, relabel)
    signals.stop_if_any()  # what comes after this stage would not know of it


def check_options(task: Task, num_samples: int, calibrate: bool | None, min_share: float) -> None:
    """Refuse options that are for the other kind of task."""
    if min_share and not task.labels and num_samples == 1:
        raise typer.BadParameter("one answer has no share: give --num-samples 5 or so", param_hint="--min-share")
    if num_samples > 1 and task.labels:
        raise typer.BadParameter("labels have probabilities: leave it out", param_hint="--num-samples")
    if calibrate and not task.labels:
        raise typer.BadParameter("a text2text task has no labels: leave it out", param_hint="--calibrate")


def longest_need(
    output: Path, task: Task, encoder: Encoder, records: list[dict], shots: list[dict], max_tokens: int,
    max_model_len: int | None,
) -> int:  # fmt: skip
    """Tokens of the longest prompt and its answer that fit the context; how many records do not fit is said."""
    room, needs = max_model_len or encoder.context or math.inf, []
    for i in range(0, len(records), CHUNK):
        needs += [row.length(max_tokens) for row in label_rows(task, encoder, records[i : i + CHUNK], shots)]
    fitting, long = [need for need in needs if need <= room], [need for need in needs if need > room]
    if long:
        problem = f"{output}: {len(long):,} of {len(needs):,} records are too long (prompt_too_long): with answers"
        problem += f" {min(long):,} to {max(long):,} tokens, the context holds {room:,}; lower --num-fewshot"
        problem += " or raise --max-model-len, with --overwrite" * bool(max_model_len)
        say(f"warning: {problem}") if fitting else fail(problem)
    return max(fitting) + 1


def chunk_size(engine: Engine) -> int:
    """How many records are labelled at once: their prompts stay in the prefix cache until all nodes are asked for."""
    if math.isinf(engine.max_model_len):  # a server's cache is its own affair
        return CHUNK
    held = engine.held_tokens()
    return max(1, min(CHUNK, held // (2 * engine.max_model_len))) if held else 64


def read_done(*paths: Path) -> set[str]:
    """The ids of the records in the partial files."""
    for path in paths:
        path.touch()
        cut_torn_line(path)
    done = {record["id"] for path in paths for _, record in read_records(path)}
    if done:
        say(f"{paths[0]}: going on after {len(done):,} records")
    return done


def settle(
    chunk: list[dict], answers: list[dict | None], task: Task, options: dict, no_answer: str
) -> tuple[list[dict], list[dict]]:
    """(the labelled records; the rejected ones, each with its reason). no_answer: the reason where there is no answer."""
    kept, rejected = [], []
    for record, answer in zip(chunk, answers, strict=True):
        reason = no_answer
        if answer:
            record, reason = labelled(record, answer, task, options["relabel"]), None
            if options["relabel"] and not answer["teacher_label"]:
                reason = "no_answer"
            elif answer.get("label_probs", {}).get(answer["teacher_label"], 0) < options["min_share"]:
                reason = "unsure"
        if reason:
            rejected.append({"id": "", "reason": ""} | record | {"reason": reason})
        else:
            kept.append(record)
    return kept, rejected


def labelled(record: dict, answer: dict, task: Task, relabel: bool) -> dict:
    """Readable fields first, then the answer, then the rest without the answer of another teacher."""
    whole = record | answer
    if relabel and (text := answer["teacher_label"]):
        whole = record = record | answer | {task.answer_field: text}
        record["target"] = render_known(task.student.target, record)
    first = {k: whole[k] for k in task.shown_fields if k in whole}
    return first | answer | {k: v for k, v in record.items() if k not in {*first, "teacher_label", "label_probs"}}


def finish(
    run: Run, task: Task, records: list[dict], encoder: Encoder, counts: dict, rejected: Path, relabel: bool
) -> None:
    """The run record, and the summary; `agreeing`: of the answers before, where relabel replaced them."""
    done = [record for _, record in read_records(run.partial)]
    given = f"earlier_{task.answer_field}" if relabel else task.answer_field
    answered = [r | {task.answer_field: r[given]} for r in done if r.get(given) is not None]
    agreeing = sum(agrees(task, r, r["teacher_label"]) for r in answered)
    reasons = Counter(record["reason"] for _, record in read_records(rejected))
    counts |= {"records": len(records), "labelled": len(done), "rejected": dict(reasons)}
    counts |= {"with_answer": len(answered), "agreeing": agreeing}
    if reasons and not done:
        told = ", ".join(f"{n:,} {reason}" for reason, n in reasons.items())
        fail(f"{run.output}: all {len(records):,} records are rejected: {told}; read {rejected}, and use --overwrite")
    if task.labels:
        counts["by_teacher_label"] = {name: sum(r["teacher_label"] == name for r in done) for name in task.labels}
    computed, prompts = (run.notes.get(name, 0) for name in ("computed_tokens", "prompt_tokens"))
    more = {"prior": dict(zip(task.labels, run.notes["prior"], strict=True))} if "prior" in run.notes else {}
    finish_run(run, counts | {"prompt_tokens": prompts, "computed_tokens": computed}, prompt_form=encoder.form, **more)
    if 2 * (empty := sum(not r["teacher_label"] for r in done)) > len(done):
        cure = " (a base model: give --prompt-form completion)" * (encoder.form == "chat")
        say(f"warning: {run.output}: {empty:,} of {len(done):,} have no answer that ends; raise --max-tokens{cure}")
    told = ", ".join(f"{n:,} {reason}" for reason, n in reasons.items())
    told = f" + {reasons.total():,} rejected ({told}) = {len(records):,} read" * bool(reasons)
    say(
        f"{run.output}: {len(done):,} labelled{told}, {agreeing:,} of {len(answered):,} as their answer says; "
        f"{computed:,} tokens computed for {prompts:,} of prompts"
    )


def show_label_prompts(task: Task, encoder: Encoder, records: list[dict], shots: list[dict]) -> None:
    """Print label prompts, as the teacher gets them, and the tokens by which the labels are told apart."""
    for record in records:
        prompt = encoder.shown(render_label_prompt(task, record, shots))
        print(f"--- label {record['id']}: shots {', '.join(shot['id'] for shot in shots)}; {prompt}\n")
    if encoder.remote:  # its tokens are not known here
        return
    [row] = label_rows(task, encoder, records[:1], shots)
    for name, rest in zip(task.labels, row.rests, strict=False):
        print(f"--- {name}: {' | '.join(repr(encoder.tokenizer.decode([token])) for token in rest)}")


if __name__ == "__main__":
    run_command(app)
