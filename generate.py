"""Generate labelled examples of a task with a teacher LLM in vLLM: the training and the validation split of one
iteration.

Reads a task file, its seed examples and, from iteration 1 on, feedback examples. Writes into --output-dir: train.jsonl,
validation.jsonl, what was rejected (*.rejected.jsonl, each with a reason), and run records.

    python generate.py --task-file prompts/reviews.toml --model Qwen/Qwen2.5-7B-Instruct --output-dir runs/a/iter-00
    python generate.py ... --output-dir runs/a/iter-01 --feedback-file runs/a/iter-00/feedback.jsonl
    python generate.py ... --report-file runs/a/iter-00/report/metrics.json       # beside feedback: the student's results
    python generate.py ... --verify                                   # reject what the teacher itself labels otherwise
    python generate.py ... --dry-run                                  # show the prompts; no engine
    python generate.py ... --shard 0/4                                # the first of four processes that share the work
    python generate.py --task-file prompts/reviews.toml --model data/reviews/models/teacher \
        --output-dir runs/b/iter-00 --num-examples 40 --num-validation 20       # the embedded teacher, on a laptop

Kill it at any time and run the same command again: it goes on after the last whole chunk of 512 attempts. SIGUSR1 and
SIGTERM, as batch systems send before a time limit, let it finish its chunk and end with exit code 75.
"""

import json
import re
from collections import deque
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gold import teacher
from gold.attempts import Pools
from gold.command import DryRun, Limit, Overwrite, TaskFile, fail, files, new_app, run_command, say
from gold.examples import example_key, read_examples
from gold.fingerprint import fingerprint
from gold.jsonl import append_records, expand, parse_shard
from gold.labels import draw_label_shots, label_records
from gold.parsing import REASONS, another_begins, copies_shot, parse_completion
from gold.prompts import render_prompt, shows_report
from gold.reasoning import final_of
from gold.runs import finish_run, save_notes
from gold.split import LABEL_SHOTS, Candidate, Split, longest_need, settle
from gold.stopping import StopSignals
from gold.task import Task, load_task
from gold.teacher import Encoder, Engine, Request, load_encoder

CHUNK = 512  # attempts that are parsed, checked and saved together
MIN_VALIDATION, VALIDATION_PER_LABEL = 200, 20  # the OOD pool grows with the labels: a label's band needs 10 examples

app = new_app()
sampling = partial(typer.Option, rich_help_panel="Sampling")


@app.command()
def main(
    task_file: TaskFile,
    model: Annotated[str, files(help="Teacher: a folder or a name on the hub.")],
    output_dir: Annotated[Path, files(help="Folder of the iteration; iter-NN in its name gives the number (else 0).")],
    feedback_file: Annotated[list[Path] | None, files(help="To steer by, from score_ood.py (none = no feedback).")] = None,
    report_file: Annotated[Path | None, files(help="metrics.json of evaluate.py, for $report in prompt.feedback.")] = None,
    exclude_file: Annotated[list[Path] | None, files(help="Its texts are duplicates; repeat, or a glob in quotes.")] = None,
    shard: Annotated[str | None, files(metavar="I/N", help="Only share I (0 to N-1) of N: train-0000I-of-0000N.jsonl.")] = None,
    num_examples: Annotated[int, sampling(min=1, help="Examples in train.jsonl; raise it later to extend it.")] = 600,
    num_validation: Annotated[int | None, sampling(min=0, help="Of validation.jsonl, the OOD pool (20 a label).")] = None,
    num_fewshot: Annotated[int, sampling(min=1, help="Seed examples in a training prompt.")] = 3,
    feedback_rate: Annotated[float, sampling(min=0, max=1, help="Share of training prompts with feedback.")] = 0.5,
    num_feedback_shots: Annotated[int, sampling(min=1, help="Feedback examples in such a prompt, shown last.")] = 2,
    feedback_label: Annotated[
        Literal["any", "same", "other"], sampling(help="Its labels: any, the one asked for (same), or others.")
    ] = "any",
    temperature: Annotated[float, sampling(min=0, max=2, help="Sampling temperature of the train split (0 = greedy).")] = 1.0,
    validation_temperature: Annotated[float, sampling(min=0, max=2, help="The same of the validation split.")] = 1.2,
    top_p: Annotated[float, sampling(min=0.01, max=1, help="Keep the likeliest tokens of this total probability.")] = 1.0,
    top_k: Annotated[int, sampling(min=0, help="Keep so many likeliest tokens (0 = all).")] = 0,
    min_p: Annotated[float, sampling(min=0, max=1, help="Drop tokens below this share of the top probability.")] = 0.0,
    max_tokens: Annotated[int, sampling(min=1, help="Longest completion in tokens; longer = rejected, truncated.")] = 256,
    max_attempts: Annotated[int | None, sampling(min=1, help="Give up on a split after so many (5 times its size).")] = None,
    structured: Annotated[bool, sampling(help="Force every completion into the form of prompt.example.")] = False,
    verify: Annotated[bool, sampling(help="Reject what the teacher labels otherwise (see label.py).")] = False,
    reasoning_parser: Annotated[str | None, sampling(help="vLLM's parser of thoughts (none: the common forms).")] = None,
    seed: Annotated[int, sampling(help="Seed of the run; every attempt has its own, made from it.")] = 0,
    prompt_form: teacher.PromptForm = "auto",
    chat_template_kwargs: teacher.ChatTemplateKwargs = "{}",
    trust_remote_code: teacher.TrustRemoteCode = False,
    dtype: teacher.EngineDtype = "auto",
    max_model_len: teacher.MaxModelLen = None,
    gpu_memory_utilization: teacher.GpuMemoryUtilization = 0.9,
    tensor_parallel_size: teacher.TensorParallelSize = 1,
    limit: Limit = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Write train.jsonl and validation.jsonl of one iteration; one engine start for both."""
    options = dict(locals())
    # Load
    task, part = load_task(task_file), parse_shard(shard)
    check_options(task, options)
    options |= {"feedback_file": expand("--feedback-file", feedback_file)}
    options |= {"exclude_file": expand("--exclude-file", exclude_file), "seed_examples": task.seed_examples}
    if num_validation is None:
        options["num_validation"] = max(MIN_VALIDATION, VALIDATION_PER_LABEL * len(task.labels))
    pools = Pools(read_examples(task.seed_examples, task), read_feedback(options["feedback_file"], task))
    report = read_report(report_file, task, bool(pools.feedback)) if report_file else ""
    known = {example_key(task, e) for e in read_examples(options["exclude_file"], task, keep=task.fields)}
    template_kwargs = teacher.read_template_kwargs(chat_template_kwargs, prompt_form)
    encoder = load_encoder(model, prompt_form, template_kwargs, trust_remote_code, reasoning_parser)
    iteration = int(match[1]) if (match := re.fullmatch(r"iter-(\d+)", output_dir.resolve().name)) else 0
    splits = [Split("train", task, iteration, options, num_examples, part, pools, known, report)]
    if options["num_validation"]:
        splits.append(Split("validation", task, iteration, options, options["num_validation"], part, pools, known))
    if dry_run:
        for split in splits:
            show_prompts(split, encoder)
        return
    signals = StopSignals()
    for check_only in (True, False):  # nothing is touched before both splits are found to be in order
        for split in splits:
            split.begin(check_only)
    if not any(split.run for split in splits):
        return

    # Generate: one split after the other, with one engine
    teacher.say_control_tokens(encoder, task, [*pools.seed, *pools.feedback])
    length = encoder.fitting(max_model_len, longest_need(splits, encoder))
    engine = Engine(
        model, length, signals, dtype, trust_remote_code=trust_remote_code,
        gpu_memory_utilization=gpu_memory_utilization, tensor_parallel_size=tensor_parallel_size,
    )  # fmt: skip
    for split in splits:
        if split.name == "validation" and split.run:
            show_training_examples(split, splits[0])
        if split.run:
            generate_split(split, encoder, engine, signals)
    signals.stop_if_any()  # one in the last chunk: what comes after this stage would not know of it


# ---------------------------------------------------------------------------------------------------------------------
# Input


def check_options(task: Task, options: dict) -> None:
    """Options that do not go together."""
    if options["feedback_label"] != "any" and not task.labels:
        raise typer.BadParameter("a text2text task has no labels: leave it out", param_hint="--feedback-label")
    if options["structured"] and options["reasoning_parser"]:
        raise typer.BadParameter("a forced completion holds no thought: leave it out", param_hint="--reasoning-parser")
    if options["verify"] and task.prompt.label is None:
        fail(f"{task.path}: prompt.label: missing: --verify asks the teacher with it; add it (docs/tasks.md)")
    if options["verify"] and task.metric in ("rouge_l", "chrf"):
        fail(f"--verify: two right answers seldom have the same text, which {task.metric} is compared by; leave it out")


def read_feedback(paths: list[Path], task: Task) -> list[dict]:
    """Feedback examples; a file that is empty, of a student that made no error, is said."""
    empty = [path for path in paths if path.is_file() and not path.stat().st_size]
    for path in empty:
        say(f"--feedback-file {path}: is empty: no feedback from it")
    return read_examples([path for path in paths if path not in empty], task)


def read_report(path: Path, task: Task, has_feedback: bool) -> str:
    """The student's results as text; ends the stage (exit 1) where there are none, or no prompt would show them."""
    from gold.metrics import report_text

    if not shows_report(task):
        fail(f"{task.path}: prompt.feedback: has no $report to show --report-file in; add it, or leave the option out")
    try:
        report = report_text(json.loads(path.read_text(encoding="utf-8")), task)
    except OSError as error:
        fail(f"--report-file {path}: cannot be read: {error.strerror}; check the path, or run evaluate.py")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"is no metrics.json of this task as evaluate.py writes it ({type(error).__name__}: {error})"
        fail(f"--report-file {path}: {problem}; run evaluate.py with this --task-file, again with --overwrite")
    if not has_feedback:
        say(f"--report-file {path}: no prompt shows it, for there is no feedback")
    return report


def show_training_examples(split: Split, train: Split) -> None:
    """The validation split's prompts show those of train.jsonl, and its texts are new beside them."""
    task, shown = split.task, fingerprint(train.output, train.output.parent)
    if not train.run and split.run.notes.get("train_file", shown) != shown:
        say(f"warning: {train.output} has changed since {split.output} was begun: the rest is made from it as it is")
    split.run.notes["train_file"] = shown
    split.pools.train = read_examples(train.output, task, keep=["id", *task.fields, task.answer_field])
    split.seen |= {example_key(task, example) for example in split.pools.train}


# ---------------------------------------------------------------------------------------------------------------------
# Generate, filter, append


def generate_split(split: Split, encoder: Encoder, engine: Engine, signals: StopSignals) -> None:
    """Generate one split with an engine that is up, from where its files end; ends the stage where attempts run out."""
    from tqdm import tqdm

    run, plan = split.run, split.plan
    split.read_outcomes()
    if split.outcomes:
        say(f"{run.output}: going on after {len(split.outcomes):,} attempts")
    engine.llm.reset_prefix_cache()
    began, earlier = run.seconds, run.notes.get("generate_seconds", 0.0)
    queue: deque[int] = deque()  # attempts in the order in which they are settled; all of them are under way
    with tqdm(desc=f"{run.output.parent.name} {split.name}", unit=" prompts", total=0, delay=0.2) as bar:
        while due := plan.next_attempts() or queue:
            signals.stop_if_any()
            if due is not queue:
                queue.extend(due)
                bar.total += send(split, [n for n in due if n not in split.outcomes], encoder, engine)
            chunk = [queue.popleft() for _ in range(min(CHUNK, len(queue)))]
            # Parse, filter, append
            candidates = [parse(split, n, engine, encoder, bar) for n in chunk if n not in split.outcomes]
            judge(split, candidates, encoder, engine)
            accepted, rejected = settle(split, chunk, {c.attempt.number: c for c in candidates})
            append_records(run.partial, accepted)
            append_records(split.rejected, rejected)
            for name, count in engine.taken_tokens().items():
                run.notes[name] = run.notes.get(name, 0) + count
            run.notes["generate_seconds"] = round(earlier + run.seconds - began, 2)
            save_notes(run)
            rate = run.notes.get("completion_tokens", 0) / max(run.notes["generate_seconds"], 0.01)
            bar.set_postfix_str(f"{sum(plan.accepted):,} of {sum(plan.shares):,} accepted, {rate:,.0f} tokens/s")
    finish(split, encoder)


def send(split: Split, numbers: list[int], encoder: Encoder, engine: Engine) -> int:
    """Render the prompts of these attempts and hand to the engine those that fit; how many these are."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    options, attempts = split.options, [split.draw(n) for n in numbers]
    prompts = [render_prompt(split.task, split.name, a.shots, a.label, a.feedback, split.report) for a in attempts]
    encoded = list(zip(attempts, encoder.encode(prompts), strict=True))
    fitting = [(a, ids) for a, ids in encoded if len(ids) + options["max_tokens"] <= engine.max_model_len]
    if encoded and not fitting and not split.outcomes and not sum(split.plan.settled):  # later on they are rejects
        shortest, room = min(len(ids) for _, ids in encoded), engine.max_model_len
        problem = f"the prompt has {shortest:,} tokens and --max-tokens {options['max_tokens']} come on top"
        cure = "show fewer or shorter examples, or lower --max-tokens"
        fail(f"{split.output}: {problem}, the context holds {room:,}; {cure}")
    # A chat model ends its turn by itself, and may put blank lines between fields: the parser looks for stop strings
    how = {"stop": None if encoder.form == "chat" else split.task.parse.stop or None, "temperature": split.temperature}
    how |= {name: options[name] for name in ("top_p", "top_k", "min_p", "max_tokens")}
    how |= {"output_kind": RequestOutputKind.FINAL_ONLY, "skip_special_tokens": encoder.parser is None}
    if hasattr(SamplingParams, "skip_clone"):  # each request has parameters of its own
        how["skip_clone"] = True
    requests = []
    for a, ids in fitting:
        pattern = split.patterns[a.label]
        forced = StructuredOutputsParams(regex=pattern) if pattern else None
        requests.append(Request(a.id, ids, SamplingParams(**how, seed=a.sampling_seed, structured_outputs=forced)))
    engine.send(requests)
    return len(requests)


def parse(split: Split, number: int, engine: Engine, encoder: Encoder, bar: Any) -> Candidate:
    """Wait for the completion of an attempt and parse it: what speaks against it by itself."""
    attempt, task = split.draw(number), split.task
    if not engine.has(attempt.id):
        return Candidate(attempt)
    output = engine.wait([attempt.id], bar)[0].outputs[0]
    final, reason, fields = output.text, None, {}
    if encoder.parser:
        final, reason = final_of(encoder.parser, output.text)
    if not reason:
        fields, reason = parse_completion(task, final, attempt.label)
    pattern = split.patterns[attempt.label]
    if pattern and not re.fullmatch(pattern, output.text):  # the grammar's dialect is not Python's
        reason = reason or "no_match"
    last = next(reversed(fields.values()), "")
    if output.finish_reason == "error":
        reason = "engine_error"
    elif output.finish_reason == "length" and (
        reason == "no_match" or not another_begins(task.prompt.example, last, output.text)
    ):
        reason = "truncated"
    elif reason is None and copies_shot(task, fields, attempt.shown):
        reason = "copied_shot"
    return Candidate(attempt, fields, reason, output.text, output.finish_reason)


def judge(split: Split, candidates: list[Candidate], encoder: Encoder, engine: Engine) -> None:
    """--verify: the teacher's own answer to what is no reject so far."""
    if not split.options["verify"]:
        return
    asked = [c for c in candidates if c.reason is None and example_key(split.task, c.fields) not in split.seen]
    shots = draw_label_shots(split.task, split.pools.seed, LABEL_SHOTS, split.options["seed"])
    examples = [c.example(split.task) for c in asked]
    answers = label_records(engine, encoder, split.task, examples, shots, max_tokens=split.options["max_tokens"])
    for candidate, answer in zip(asked, answers, strict=True):
        candidate.answer = answer


def finish(split: Split, encoder: Encoder) -> None:
    """The summary; the run record, or the end of the stage (exit 1) where attempts ran out."""
    run, plan, reasons = split.run, split.plan, split.reasons
    accepted, wanted = sum(plan.accepted), sum(plan.shares)
    kinds = ("prompt_tokens", "cached_tokens", "completion_tokens", "computed_tokens")
    tokens = {kind: run.notes.get(kind, 0) for kind in kinds}
    counts = {
        "attempted": accepted + reasons.total(),
        "accepted": accepted,
        "rejected": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
        "accepted_by_label": dict(zip(split.task.labels, plan.accepted, strict=True)) if split.task.labels else None,
        **tokens,
        "computed_tokens_per_accepted": round(tokens["computed_tokens"] / max(accepted, 1), 1),
    }
    summary = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
    say(
        f"{run.output}: {counts['attempted']:,} attempted = {accepted:,} accepted + rejected ({summary}); "
        f"{counts['computed_tokens_per_accepted']} tokens computed an accepted example"
    )
    if accepted < wanted:
        cure = "mend the prompt or [parse], or raise --max-attempts"
        if 2 * reasons["truncated"] > reasons.total():
            cure = "raise --max-tokens, or give [parse] a stop string that ends an example"
            if encoder.form == "chat":  # a base model's tokenizer may have a template too
                cure = "give --prompt-form completion for a base model, which ends no turn, or raise --max-tokens"
        made = f"{plan.max_attempts:,} attempts gave {accepted:,} of {wanted:,}; rejected: {summary}"
        fail(f"{run.output}: {made}. Read {split.rejected}, {cure}; what was made is kept")
    run.notes["settled"] = [
        max(pair) for pair in zip(plan.settled, run.notes.get("settled", plan.settled), strict=True)
    ]
    seconds = max(run.notes.get("generate_seconds", 0.0), 0.01)
    rate = round(tokens["completion_tokens"] / seconds, 1)
    finish_run(run, counts, generate_seconds=seconds, completion_tokens_per_second=rate, prompt_form=encoder.form)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts before there is an engine


def show_prompts(split: Split, encoder: Encoder) -> None:
    """Print the first prompts of each kind, as the teacher gets them."""
    if split.name == "validation":  # train.jsonl is not there yet: seed examples stand in for it
        split.pools.train = split.pools.seed
    attempts = [split.draw(n) for n in split.plan.next_attempts()[:50]]
    for with_feedback in (False, True):
        for a in [a for a in attempts if bool(a.feedback) == with_feedback][:2]:
            ids = encoder.encode([render_prompt(split.task, split.name, a.shots, a.label, a.feedback, split.report)])[0]
            print(f"--- {a.id}: {len(ids)} tokens, shots {', '.join(shot['id'] for shot in a.shown)}")
            print(encoder.tokenizer.decode(ids) + "\n")
    for name, pattern in split.patterns.items():
        if pattern:
            print(f"--- forced into {pattern}   ({name or 'text'})")
    print(f"=== would write {sum(split.plan.shares)} examples of the {split.name} split\n")


if __name__ == "__main__":
    run_command(app)
