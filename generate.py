"""Generate labelled examples of a task with a teacher LLM in vLLM: the training and validation splits of one iteration.

Reads a task file, its seed examples and, from iteration 1 on, feedback examples. Writes into --output-dir: train.jsonl,
validation.jsonl, the rejected completions with their reasons (*.rejected.jsonl), run records, and a data set card.

    python generate.py --task-file prompts/reviews.toml --model Qwen/Qwen2.5-7B-Instruct --output-dir runs/a/iter-00
    python generate.py ... --output-dir runs/a/iter-01 --feedback-file runs/a/iter-00/feedback.jsonl
    python generate.py ... --report-file runs/a/iter-00/report/metrics.json       # beside feedback: the student's results
    python generate.py ... --corpus-file texts.jsonl     # human texts that are near a shot: $passages; --num-passages
    python generate.py ... --rewrite                                  # every prompt has a feedback example rewritten
    python generate.py ... --verify                                   # reject what the teacher itself labels otherwise
    python generate.py ... --unlabelled --num-validation 0            # texts alone; label.py then gives soft labels
    python generate.py ... --server-url http://localhost:8000/v1     # ask `vllm serve`, or any server of OpenAI's API
    python generate.py ... --dry-run                                  # show the prompts; no engine
    python generate.py ... --shard 0/4                                # the first of four processes that share the work
    python generate.py --task-file prompts/reviews.toml --model data/reviews/models/teacher \
        --output-dir runs/b/iter-00 --num-examples 40 --num-validation 20       # the embedded teacher, on a laptop

Killed? Run the same command again (without --overwrite): texts that were finished are not asked for again. SIGUSR1 and
SIGTERM, which batch systems send before a time limit, let it finish its chunk of 512 attempts and end with exit code 75.
"""

import re
from collections import Counter, deque
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gold import teacher
from gold.attempts import SAME_PROMPT, Pools
from gold.calibration import calibrates, divided, prior_of_batch
from gold.cards import write_data_card
from gold.command import DryRun, Limit, Overwrite, TaskFile, fail, files, new_app, run_command, say
from gold.engine import Engine, Request
from gold.examples import agrees, example_key, read_examples
from gold.feedback import read_feedback, read_report, rewriting
from gold.fingerprint import fingerprint
from gold.jsonl import append_records, expand, parse_shard, read_records
from gold.labels import draw_label_shots, label_records
from gold.parsing import REASONS, another_begins, parse_completion
from gold.prompts import known_label
from gold.reasoning import final_of
from gold.retrieval import nearest_texts
from gold.runs import finish_run, save_notes
from gold.split import Split, check_unlabelled, count_values, longest_need, settle, task_in_form
from gold.stopping import StopSignals
from gold.task import Task, load_task
from gold.teacher import Encoder
from gold.templates import render

CHUNK = 512  # attempts that are parsed, filtered and saved together
MIN_VALIDATION, VALIDATION_PER_LABEL = 200, 20  # the OOD pool grows with the labels: a label's band needs 10 examples

app = new_app()
sampling = partial(typer.Option, rich_help_panel="Sampling")
FeedbackLabel = Literal["any", "same", "other"]


@app.command()
def main(
    task_file: TaskFile,
    model: Annotated[str, files(help="Teacher: a folder or a name on the hub.")],
    output_dir: Annotated[Path, files(help="Folder of the iteration; iter-NN in its name gives the number (else 0).")],
    feedback_file: Annotated[list[Path] | None, files(help="To steer by, from score_ood.py (none = no feedback).")] = None,
    report_file: Annotated[Path | None, files(help="metrics.json of evaluate.py, for $report in prompt.feedback.")] = None,
    corpus_file: Annotated[Path | None, files(help="Texts of people; those near a shot are $passages.")] = None,
    exclude_file: Annotated[list[Path] | None, files(help="Its texts are duplicates; repeat, or a glob in quotes.")] = None,
    shard: Annotated[str | None, files(metavar="I/N", help="Only share I (0 to N-1) of N: train-0000I-of-0000N.jsonl.")] = None,
    num_examples: Annotated[int, sampling(min=1, help="Examples in train.jsonl; raise it later to extend it.")] = 600,
    num_validation: Annotated[int | None, sampling(min=0, help="Of validation.jsonl, the OOD pool (20 a label).")] = None,
    num_fewshot: Annotated[int, sampling(min=1, help="Seed examples in a training prompt.")] = 3,
    feedback_rate: Annotated[float, sampling(min=0, max=1, help="Share of training prompts with feedback.")] = 0.5,
    num_feedback_shots: Annotated[int, sampling(min=1, help="Feedback examples in such a prompt, shown last.")] = 2,
    feedback_label: Annotated[FeedbackLabel, sampling(help="Its labels: any, the one asked for (same), or others.")] = "any",
    rewrite: Annotated[bool, sampling(help="Every prompt has one feedback example of its label rewritten (GenCo).")] = False,
    num_passages: Annotated[int, sampling(min=1, help="Texts of --corpus-file in a training prompt.")] = 2,
    temperature: Annotated[float, sampling(min=0, max=2, help="Sampling temperature of the train split (0 = greedy).")] = 1.0,
    validation_temperature: Annotated[float, sampling(min=0, max=2, help="The same of the validation split.")] = 1.2,
    top_p: Annotated[float, sampling(min=0.01, max=1, help="Keep the likeliest tokens of this total probability.")] = 1.0,
    top_k: Annotated[int, sampling(min=0, help="Keep so many likeliest tokens (0 = all).")] = 0,
    min_p: Annotated[float, sampling(min=0, max=1, help="Drop tokens below this share of the top probability.")] = 0.05,
    max_tokens: Annotated[int, sampling(min=1, help="Longest completion in tokens; longer = rejected, truncated.")] = 256,
    max_attempts: Annotated[int | None, sampling(min=1, help="Give up on a split after so many (5 times its size).")] = None,
    attributes: Annotated[bool, sampling(help="Draw a value of each of [prompt.attributes] for every prompt.")] = False,
    structured: Annotated[bool, sampling(help="Force every completion into the form of prompt.example.")] = False,
    unlabelled: Annotated[bool, sampling(help="Texts without answers, by prompt.unlabelled: label.py answers.")] = False,
    teacher_nll: Annotated[bool, sampling(help="Give each record its mean negative log-probability a token.")] = False,
    verify: Annotated[bool, sampling(help="Reject what the teacher labels otherwise (see label.py).")] = False,
    calibrate: teacher.Calibrate = None,
    reasoning_parser: Annotated[str | None, sampling(help="vLLM's parser of thoughts (none: the common forms).")] = None,
    seed: Annotated[int, sampling(help="Seed of the run; every attempt has its own, made from it.")] = 0,
    prompt_form: teacher.PromptForm = "auto",
    chat_template_kwargs: teacher.ChatTemplateKwargs = "{}",
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
    """Write train.jsonl and validation.jsonl of one iteration; one engine start for both."""
    options = dict(locals())
    # Load
    task = load_task(task_file)
    check_options(task, options)
    task = task.without_answers() if unlabelled else task
    teacher.check_teacher(options)
    options |= {"feedback_file": expand("--feedback-file", feedback_file), "seed_examples": task.seed_examples}
    options |= {"exclude_file": expand("--exclude-file", exclude_file)}
    if num_validation is None:
        options["num_validation"] = max(MIN_VALIDATION, VALIDATION_PER_LABEL * len(task.labels))
    pools = Pools(read_examples(task.seed_examples, task), read_feedback(options["feedback_file"], task))
    options |= rewriting(task, options, pools.feedback)
    pools.nearest = nearest_texts(corpus_file, task, [*pools.seed, *pools.feedback])
    report = read_report(report_file, task, bool(pools.feedback)) if report_file else ""
    known = {example_key(task, e) for e in read_examples(options["exclude_file"], task, task.fields, answers=False)}
    splits = [Split("train", task, options, pools, known, report)]
    splits += [Split("validation", task, options, pools, known)] if options["num_validation"] else []
    if not dry_run:
        signals = StopSignals()
        for check_only in (True, False):  # nothing is touched unless both splits can start
            for split in splits:
                split.start(check_only)
        if not any(split.run for split in splits):
            return
        write_data_card(output_dir, task, options)
    encoder = teacher.open_encoder(options, task)
    task = task_in_form(task, encoder.form, options, bool(pools.feedback))
    if task.is_list and (report or feedback_label == "other"):
        fail("--prompt-form completion: a list shows no report and one label; give --prompt-form chat")
    for split in splits:
        split.take_form(task)
        if split.run:
            teacher.keep_form(split.run, encoder.form)
    if dry_run:
        for split in splits:
            show_prompts(split, encoder)
        return
    engine = teacher.open_engine(options, encoder, 0 if server_url else longest_need(splits[0], encoder), signals)
    for split in (split for split in splits if split.run):
        if split.name == "validation":
            show_training_examples(split, splits[0])
        generate_split(split, encoder, engine, signals)
    signals.stop_if_any()  # one in the last chunk: the next stage would not know of it


def generate_split(split: Split, encoder: Encoder, engine: Engine, signals: StopSignals) -> None:
    """Generate, filter, append: one split, from where its files end. Ends the stage (exit 1) where attempts run out."""
    from tqdm import tqdm

    run, plan, notes = split.run, split.plan, split.run.notes
    save_notes(run)
    split.read_outcomes()
    if split.outcomes:
        say(f"{run.output}: going on after {len(split.outcomes):,} attempts")
    journal = split.journal
    earlier = max(notes.get("generate_seconds", 0.0), journal.seconds) - run.seconds
    queue: deque[int] = deque()  # attempts in the order in which they are settled; all of them are under way
    with tqdm(desc=f"{run.output.parent.name} {split.name}", unit=" prompts", total=0, delay=0.2) as bar:
        engine.begin_split(lambda outputs: bar.update(journal.keep(outputs, earlier + run.seconds)))
        while (due := plan.next_attempts()) or queue:
            signals.stop_if_any()
            queue += due
            bar.total += send(split, [n for n in due if n not in split.outcomes], encoder, engine)
            chunk = [queue.popleft() for _ in range(min(CHUNK, len(queue)))]
            records = [parse(split, n, encoder, engine) for n in chunk if n not in split.outcomes]
            if split.options["verify"]:
                verify(split, records, encoder, engine)
            accepted, rejected = settle(split, chunk, records)
            append_records(run.partial, accepted)
            append_records(split.rejected, rejected)
            notes |= {name: notes.get(name, 0) + count for name, count in engine.taken_tokens().items()}
            notes["not_taken"] = sorted({*notes.get("not_taken", []), *engine.not_taken})
            notes["generate_seconds"] = round(earlier + run.seconds, 2)
            save_notes(run)
            journal.save()
            rate = notes.get("completion_tokens", 0) / max(notes["generate_seconds"], 0.01)
            bar.set_postfix_str(f"{sum(plan.accepted):,} of {sum(plan.shares):,} accepted, {rate:,.0f} tokens/s")
    journal.remove()
    finish(split, encoder)


def check_options(task: Task, options: dict) -> None:
    """Refuse a bad shard, and options that do not go together."""
    parse_shard(options["shard"])
    if options["unlabelled"]:
        check_unlabelled(options)
    if "TODO" in str([task.labels, task.prompt, task.completion]):
        say(f"warning: {task.path}: lines with TODO are left: the teacher would read them")
    if options["feedback_label"] != "any" and not task.labels:
        raise typer.BadParameter("a text2text task has no labels: leave it out", param_hint="--feedback-label")
    if options["calibrate"] and not (options["verify"] and task.labels):
        raise typer.BadParameter("is for --verify of a task with labels: leave it out", param_hint="--calibrate")
    if options["structured"] and options["reasoning_parser"]:
        raise typer.BadParameter("a forced completion holds no thought: leave it out", param_hint="--reasoning-parser")
    if options["verify"] and task.prompt.label is None:
        fail(f"{task.path}: prompt.label: missing: --verify asks the teacher with it; add it (docs/tasks.md)")
    if options["verify"] and task.metric in ("rouge_l", "chrf"):
        fail(f"--verify: two right answers seldom have the same text, which {task.metric} is compared by; leave it out")


def show_training_examples(split: Split, train: Split) -> None:
    """The validation split's prompts show examples of train.jsonl, and its texts differ from them."""
    task, shown = split.task, fingerprint(train.output, train.output.parent)
    if not train.run and split.run.notes.get("train_file", shown) != shown:
        say(f"warning: {train.output} has changed since {split.output} was started: the rest is made from the new one")
    split.run.notes["train_file"] = shown
    split.pools.train = read_examples(train.output, task, keep=task.shown_fields)
    for example in split.pools.train:
        split.see(example_key(task, example))


def show_prompts(split: Split, encoder: Encoder) -> None:
    """--dry-run: print the first prompts of each kind, as the teacher gets them."""
    split.pools.train = split.pools.seed  # they stand in for train.jsonl, which does not exist yet
    numbers = [
        n
        for slot, share in enumerate(split.plan.shares)
        if share
        for n in split.plan.numbers(slot, range(32 * SAME_PROMPT))
    ]
    drawn = [split.draw(n) for n in sorted(numbers, reverse=True)]
    attempts = {(a.label, *(shot["id"] for shot in a.shown)): a for a in drawn}  # each prompt once
    attempts = sorted(attempts.values(), key=lambda a: a.number)
    with_feedback = [a for a in attempts if a.feedback]
    for a in [a for a in attempts if not a.feedback][:2] + with_feedback[:2]:
        print(f"--- {a.id}: shots {', '.join(shot['id'] for shot in a.shown)}; {encoder.shown(split.prompt(a))}\n")
    for name, pattern in split.patterns.items():
        if pattern:
            print(f"--- forced into {pattern}   ({name or 'text'})")
    instead = "; seed examples stand for shots from train.jsonl" * (split.name == "validation")
    print(f"=== would write {sum(split.plan.shares)} examples of the {split.name} split", end="")
    print(f"; prompt form: {encoder.form}{instead}\n")


def send(split: Split, numbers: list[int], encoder: Encoder, engine: Engine) -> int:
    """Render the prompts of these attempts; send to the engine what fits the context and is not kept; how many these are."""
    options, attempts = split.options, [split.draw(n) for n in numbers]
    split.under_way |= dict(zip(numbers, attempts, strict=True))
    prompts, room = encoder.encode([split.prompt(a) for a in attempts]), engine.max_model_len - options["max_tokens"]
    fitting = [(a, ids) for a, ids in zip(attempts, prompts, strict=True) if len(ids) <= room]
    if prompts and not fitting and not split.outcomes and not sum(split.plan.settled):  # later on they are rejects
        found = f"the prompt has {min(map(len, prompts)):,} tokens and --max-tokens {options['max_tokens']} come on top"
        cure = f"the context holds {engine.max_model_len:,}; show fewer or shorter examples, or lower --max-tokens"
        fail(f"{split.output}: {found}, {cure}")
    # A chat model ends its turn by itself, and may put blank lines between fields: the parser looks for stop strings
    how = {"stop": None if encoder.form == "chat" else split.task.parse.stop or None, "temperature": split.temperature}
    how |= {name: options[name] for name in ("top_p", "top_k", "min_p", "max_tokens")}
    how |= {"logprobs": 0} if options["teacher_nll"] else {}  # of the sampled token alone
    if encoder.parser:
        how["skip_special_tokens"] = False
    requests = [
        Request(a.id, ids, how | {"seed": a.sampling_seed, "regex": split.patterns[a.label]}, a.stream)
        for a, ids in fitting
    ]
    requests = split.journal.missing(requests)
    engine.send(requests)
    return len(requests)


def parse(split: Split, number: int, encoder: Encoder, engine: Engine) -> dict:
    """Wait for the completion of an attempt: its record. reason: why it is rejected by itself, None = it is not."""
    a, task, fields, reason, text, ending = split.under_way.pop(number), split.task, {}, "prompt_too_long", None, None
    nll: dict[str, float | None] = {}
    if a.id in split.journal.asked:
        found, pattern, begun = split.journal.take(a.id, engine), split.patterns[a.label], split.beginning(a)
        text, ending = found["text"], found["finish_reason"]
        nll = {name: found[name] for name in found if name == "teacher_nll"}
        final, reason = final_of(encoder.parser, text) if encoder.parser else (text, None)
        fields, reason = ({}, reason) if reason else parse_completion(task, begun + final, a.label)
        if pattern and not re.fullmatch(pattern, text):  # the grammar's dialect is not Python's
            reason = reason or "no_match"
        last = "" if reason == "no_match" else next(reversed(fields.values()), "")
        if ending == "error":
            reason = "engine_error"
        elif ending == "length" and not another_begins(task.prompt.example, last, begun + text):
            reason = "truncated"
        elif not reason and split.copies(a, fields):
            reason = "copied_shot"
    example = fields | known_label(task, a.label)
    names = ("source",) if split.options["unlabelled"] else ("source", "target")
    rendered = {} if reason else {name: render(getattr(task.student, name), example) for name in names}
    return {
        "id": a.id, "reason": reason, **example, **rendered, "task": task.name, "iteration": split.iteration,
        "split": split.name, **a.lineage, "sampling_seed": a.sampling_seed, "finish_reason": ending, "completion": text,
        **nll,
    }  # fmt: skip


def verify(split: Split, records: list[dict], encoder: Encoder, engine: Engine) -> None:
    """Ask the teacher for its own answer to each record that is not rejected so far."""
    asked = [r for r in records if not r["reason"] and not split.repeats(example_key(split.task, r))]
    options, task = split.options, split.task
    shots = draw_label_shots(task, split.pools.seed, None, options["seed"])
    answers = label_records(engine, encoder, task, asked, shots, max_tokens=options["max_tokens"])
    if calibrates(task, options["calibrate"]) and engine.log_probs and any(answers):
        if "prior" not in (notes := split.run.notes):  # of the first chunk, for all: saved before what it rejects
            notes["prior"] = prior_of_batch(task, asked, answers)
            save_notes(split.run)
        answers = divided(task, answers, notes["prior"])
    for record, answer in zip(asked, answers, strict=True):
        record |= answer or {"reason": encoder.no_answer}
        if answer and not agrees(task, record, answer["teacher_label"]):
            record["reason"] = "label_disagrees"


def finish(split: Split, encoder: Encoder) -> None:
    """Print the summary and write the run record; end the stage (exit 1) where attempts ran out."""
    run, plan, notes = split.run, split.plan, split.run.notes
    labels = Counter(str(r.get(split.task.answer_field)) for _, r in read_records(run.partial))  # the user's lines too
    accepted, reasons = labels.total(), split.reasons
    counts: dict[str, Any] = {"attempted": accepted + reasons.total(), "accepted": accepted}
    counts["rejected"] = {reason: reasons[reason] for reason in REASONS if reasons[reason]}
    counts["accepted_by_label"] = {name: labels[name] for name in split.task.labels} or None
    counts |= {"attributes": count_values(split)} if split.options["attributes"] else {}
    kinds = ("prompt_tokens", "cached_tokens", "completion_tokens", "computed_tokens")
    counts |= {kind: notes.get(kind, 0) for kind in kinds}
    counts["computed_tokens_per_accepted"] = cost = round(counts["computed_tokens"] / max(accepted, 1), 1)
    summary = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
    told = f"{counts['attempted']:,} attempted = {accepted:,} accepted + rejected ({summary})"
    say(f"{run.output}: {told}; {cost} tokens computed an accepted example")
    if (accepted := sum(plan.accepted)) < (wanted := sum(plan.shares)):
        cure = "mend the prompt or [parse], or raise --max-attempts"
        if 2 * reasons["truncated"] > reasons.total():  # a base model's tokenizer may have a chat template too
            base = "--prompt-form completion for a base model, which ends no turn"
            stop = "[parse] a stop string that ends an example"
            cure = f"raise --max-tokens, or give {base if encoder.form == 'chat' else stop}"
        told = f"{plan.max_attempts:,} attempts gave {accepted:,} of {wanted:,}; rejected: {summary}"
        fail(f"{run.output}: {told}. Read {split.rejected}, {cure}; what is saved stays")
    notes["settled"] = [*map(max, plan.settled, notes.get("settled", plan.settled))]
    seconds = max(notes.get("generate_seconds", 0.0), 0.01)
    rate = round(counts["completion_tokens"] / seconds, 1)
    more = {"prior": dict(zip(split.task.labels, notes["prior"], strict=True))} if "prior" in notes else {}
    finish_run(
        run, counts, generate_seconds=seconds, completion_tokens_per_second=rate, prompt_form=encoder.form, **more
    )


if __name__ == "__main__":
    run_command(app)
