"""Sample labelled examples of a task from a teacher LLM in vLLM, or have it label records.

sample makes the training and the validation split of an iteration. It reads a task file, its seed examples and, from
iteration 1 on, feedback examples. Writes into --output-dir: train.jsonl, validation.jsonl, what was rejected
(*.rejected.jsonl, each with a reason), and run records. label reads records of any origin and writes them with the
teacher's own answer, teacher_label, and label_probs.

    python generate.py sample --task-file prompts/reviews.toml --model Qwen/Qwen2.5-7B-Instruct --output-dir runs/a/iter-00
    python generate.py sample ... --output-dir runs/a/iter-01 --feedback-file runs/a/iter-00/feedback.jsonl
    python generate.py sample ... --report-file runs/a/iter-00/report/metrics.json    # beside feedback: the student's results
    python generate.py sample ... --dry-run                           # show the prompts, load no model
    python generate.py sample ... --shard 0/4                         # the first of four processes that share the work
    python generate.py sample --task-file prompts/reviews.toml --model data/reviews/models/teacher \
        --output-dir runs/b/iter-00 --num-examples 40 --num-validation 20   # the embedded teacher, on a laptop

    python generate.py sample ... --verify                            # reject what the teacher itself labels otherwise
    python generate.py label --task-file prompts/reviews.toml --model data/reviews/models/teacher \
        --input-file data/reviews/test.jsonl --output-file runs/b/teacher/labelled.jsonl
    python generate.py label ... --num-samples 5                      # text2text: the answer that most of five samples give

Kill it at any time and run the same command again: it goes on after the last whole chunk of 512 attempts. SIGUSR1 or
SIGTERM, as batch systems send before a time limit, let it finish its chunk and end with exit code 75.
"""

import contextlib
import gc
import json
import math
import os
import random
import re
import signal
import string
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from gold.causes import cause_of
from gold.control_tokens import broken_up, told_of_prompts
from gold.model_folder import explain_model_folder, refuse_model
from gold.prompts import PromptForm, encode_prompt, encode_prompts, in_form
from gold.reasoning import final_of, reasoning_parser
from labelling import agrees, completed, draw_label_shots, label_prompts, label_records, tokens_needed
from records import (
    Run,
    beside,
    expand,
    fail,
    fingerprint,
    finish_run,
    parse_shard,
    read_examples,
    read_records,
    run_command,
    save_progress,
    say,
    shard_path,
    start_run,
    take_shard,
    write_records,
)
from task import (
    Task,
    another_begins,
    copies,
    load_task,
    parse_completion,
    render,
    render_label_prompt,
    render_prompt,
    structured_pattern,
    text_key,
)

# Read when torch is imported: vLLM's NUMA binding warns at every start
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
FeedbackLabel = Literal["any", "same", "other"]
CHUNK = 512  # attempts that are read, checked and saved together
WINDOW = 8192  # attempts under way: so that the engine is not short of work while a chunk waits for its longest text
NEWEST = 1024  # attempts at a label that tell its yield, which falls as the texts repeat themselves
VALIDATION_OPTION = {"num_examples": "num_validation", "temperature": "validation_temperature"}  # as the user gave it
LABEL_SHOTS = 6  # seed examples in a label prompt: they are in the prefix that all prompts share, so they cost little
STOPPED = 75  # exit code after a signal, EX_TEMPFAIL of sysexits.h: run again to go on
VALIDATION_SHOTS = 2  # GOLD shows two of the new training examples and asks for something different (algorithms.md 2.3)
REASONS = (  # why an attempt was rejected: a closed list, in the order of the checks
    "prompt_too_long", "truncated", "engine_error", "reasoning", "no_match", "empty_field", "debris", "too_short",
    "too_long", "check_failed", "copied_shot", "duplicate", "label_disagrees", "surplus",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def say_control_tokens(tokenizer: Any, task: Task, records: Sequence[dict]) -> None:
    """Say once what encode_prompts breaks up in the task file's prompts and in the records that prompts will show."""
    texts = ["\n".join(str(record.get(name, "")) for name in [*task.fields, task.answer_field]) for record in records]
    for what, shown in (("prompts of the task file", list(task.prompt.values())), ("records", texts)):
        for line in told_of_prompts(what, tokenizer, shown):
            say(line)


def read_report(path: Path, task: Task) -> str:
    """report_text of --report-file; ends the stage (exit 1) where there is none, or no prompt would show it."""
    if "report" not in string.Template(task.prompt.get("feedback", "")).get_identifiers():
        fail(f"{task.path}: prompt.feedback: has no $report to show --report-file in; add it, or leave the option out")
    from metrics import report_text

    try:
        return report_text(json.loads(path.read_text(encoding="utf-8")), task)
    except OSError as error:
        fail(f"--report-file {path}: cannot be read: {error.strerror}; check the path, or run evaluate.py")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fail(
            f"--report-file {path}: is no metrics.json of this task as evaluate.py writes it now "
            f"({type(error).__name__}: {error}); run evaluate.py with this --task-file, again with --overwrite"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Attempts: what is asked, in which order


def equal_shares(num_examples: int, num_labels: int) -> list[int]:
    """How many examples each label gets; what does not divide goes to the first labels, one each."""
    return [num_examples // num_labels + (i < num_examples % num_labels) for i in range(num_labels)]


def shares_of(num_examples: int, num_labels: int, shard: tuple[int, int] = (0, 1)) -> list[int]:
    """How many examples of each label shard i of n has to bring: its equal share of the label's equal share."""
    i, n = shard
    return [equal_shares(share, n)[i] for share in equal_shares(num_examples, num_labels)]


def plan_chunk(
    num_examples: int, limit: int, attempted: list[int], accepted: list[int], shard: tuple[int, int] = (0, 1),
    under_way: Sequence[int] | None = None, size: int | None = None, newest: Sequence[Sequence[bool]] = (),
) -> list[int]:  # fmt: skip
    """The next attempts, ascending. Attempt a asks for label a mod L; a label that has its share is asked no more.

    Of the attempts at one label, 0, 1, 2, ..., shard i of n owns every n-th from the i-th on, so that each shard asks for
    all labels (a mod n would leave shards with one label only where n and L have a common factor).
    attempted, accepted: counts by label of what is settled, and under_way of what was planned after it. newest: by label,
    which of the NEWEST settled attempts were accepted (none: of all). How many are asked follows from their yield: two
    standard deviations more than are expected to be needed, since a round of a handful at the end takes as long as one of
    hundreds. limit: how many attempts are left; size: of a chunk (CHUNK).
    """
    num_labels, (index, shards) = len(attempted), shard
    chunk = []
    for i, share in enumerate(shares_of(num_examples, num_labels, shard)):
        ahead = under_way[i] if under_way else 0
        good, all_made = (sum(newest[i]), len(newest[i])) if newest else (accepted[i], attempted[i])
        expected_yield = min(max((good + 1) / (all_made + 1), 0.05), 1)
        missing = max(share - accepted[i], 0) / expected_yield
        missing += 2 * math.sqrt(missing * (1 - expected_yield) / expected_yield) - ahead
        count = min(math.ceil(missing), max(1, (size or CHUNK) // num_labels))
        chunk += [i + num_labels * (index + shards * (attempted[i] + ahead + k)) for k in range(count)]
    return sorted(chunk)[: max(limit, 0)]


def plan_ahead(
    num_examples: int, limit: int, attempted: list[int], accepted: list[int], newest: list[deque[bool]],
    planned: deque[list[int]], shard: tuple[int, int] = (0, 1), size: int | None = None, window: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """Append chunks to `planned`, those under way, until it holds `window` attempts (WINDOW); returns the new ones.

    To be called at the beginning and after each chunk that is settled: the plan then depends on what came of the
    attempts, never on how quickly. limit: how many attempts may be made in all.
    """
    new = []
    while sum(map(len, planned)) < (window or WINDOW):
        under_way = Counter(a % len(attempted) for chunk in planned for a in chunk)
        ahead, left = [under_way[i] for i in range(len(attempted))], limit - sum(attempted) - under_way.total()
        chunk = plan_chunk(num_examples, left, attempted, accepted, shard, ahead, size, newest)
        if not chunk:
            break
        planned.append(chunk)
        new.append(chunk)
    return new


def newest_outcomes(made: dict[int, bool], num_labels: int) -> list[deque[bool]]:
    """By label, which of the newest of the attempts `made` (number: accepted?) were accepted."""
    newest: list[deque[bool]] = [deque(maxlen=NEWEST) for _ in range(num_labels)]
    for a in sorted(made):
        newest[a % num_labels].append(made[a])
    return newest


def plan_again(made: dict[int, bool], num_labels: int, plan: Callable[..., list[list[int]]]) -> list[list[int]] | None:
    """The chunks that were under way when a split was cut off, whose attempts `made` (number: accepted?) are settled.

    plan: plan_ahead of (attempted, accepted, newest, planned). None: these attempts did not come about by this plan, because
    the file was edited or extended, or the limit of attempts raised.
    """
    attempted, accepted, planned, settled = [0] * num_labels, [0] * num_labels, deque(), 0
    newest = newest_outcomes({}, num_labels)
    plan(attempted, accepted, newest, planned)
    while planned and all(a in made for a in planned[0]):
        for a in planned.popleft():
            slot = a % num_labels
            attempted[slot] += 1
            accepted[slot] += made[a]
            newest[slot].append(made[a])
            settled += 1
        plan(attempted, accepted, newest, planned)
    return list(planned) if settled == len(made) else None


def draw_attempt(task: Task, seed: int, iteration: int, split: str, attempt: int, pools: dict, options: dict) -> dict:
    """Label, shots, feedback and sampling seed of one attempt: a function of (seed, iteration, split, attempt) and the pools.

    With options["temperature_end"] its temperature too: linear in the attempt's number up to num_examples (prompt2model).
    """
    rng = random.Random(f"{seed}/{iteration}/{split}/{attempt}")
    # Never the engine's one seed: that makes every shard alike (vLLM issue 11953). 31 bits, all that a CPU's generator
    # tells apart, and another for each attempt: drawn at random, two of 77,000 would more likely than not be equal
    sampling_seed = random.Random(f"{seed}/{iteration}/{split}").getrandbits(31) ^ attempt
    names, feedback = list(task.labels) or [None], []
    wanted = names[attempt % len(names)]
    if split == "train":
        count = min(options["num_fewshot"], len(pools["seed"]))
        order = sorted(rng.sample(range(len(pools["seed"])), count))
        own = [i for i, seed_example in enumerate(pools["seed"]) if seed_example.get(task.answer_field) == wanted]
        if len(names) > count and own:  # many labels, few shots: the last one is of the label that is asked for
            last = rng.choice(own)
            order = [*[i for i in order if i != last][: count - 1], last]
        shots = [pools["seed"][i] for i in order]
        if pools["feedback"] and rng.random() < options["feedback_rate"]:
            feedback, which = pools["feedback"], options.get("feedback_label", "any")
            if which != "any":
                feedback = [f for f in feedback if (f[task.answer_field] == wanted) == (which == "same")]
            feedback = rng.sample(feedback, min(options["num_feedback_shots"], len(feedback)))
    else:
        shots = rng.sample(pools["train"], min(VALIDATION_SHOTS, len(pools["train"])))
    drawn = {
        "id": f"{task.name}-{iteration:02d}-{split}-{attempt:06d}",
        "label": wanted,
        "shots": shots,
        "feedback": feedback,
        "sampling_seed": sampling_seed,
    }
    if "temperature_end" in options:
        begin, end, share = options["temperature"], options["temperature_end"], attempt / options["num_examples"]
        drawn["temperature"] = round(begin + (end - begin) * min(share, 1), 4)
    return drawn


# ---------------------------------------------------------------------------------------------------------------------
# Engine


def start_engine(
    model: str, max_model_len: int, dtype: str = "auto", enforce_eager: bool | None = None, **engine_options: Any
) -> Any:
    """vLLM's offline engine. Settings that only the CPU build needs are chosen here, and never over the user's own."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM logs to stdout
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    import torch

    if enforce_eager is None:  # on a CPU torch.compile takes 15 to 35 s at every start, and gains a tenth of the rest
        enforce_eager = not torch.cuda.is_available()
    if enforce_eager and not torch.cuda.is_available():
        import torch._dynamo

        torch._dynamo.config.disable = (
            True  # vLLM compiles the ranks of log-probabilities, in 10 s, for a label stage of 1 s
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # start in 2.5 s instead of 15 to 20 s
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if dtype == "auto":
            dtype = "float32"  # vLLM's own choice is bfloat16, where the text depends on the batch
        engine_options |= {
            "block_size": 32,  # the default of 128 tokens keeps shorter prompts out of the prefix cache
            "enable_chunked_prefill": False,  # a seeded request whose prompt is split over two steps kills the engine
            "max_num_batched_tokens": max(4096, max_model_len),
            "max_num_seqs": 1024,  # with the default of 256 a tiny model writes the same text at 0.6 of the speed
        }
    # "auto" lets the first request choose, and the dialect of regular expressions with it; the second kind then ends in errors
    engine_options = {"structured_outputs_config": {"backend": "xgrammar"}} | engine_options
    from vllm import LLM

    try:  # runner: a model that writes no text is refused
        llm = LLM(
            model=model, runner="generate", max_model_len=max_model_len, dtype=dtype, enable_prefix_caching=True, seed=0,
            enforce_eager=enforce_eager, **engine_options,
        )  # fmt: skip
    except Exception as error:  # too little memory, a shape that no kernel knows, ...: many kinds
        fail(f"--model {model}: vLLM cannot start: {cause_of(error)} (VLLM_LOGGING_LEVEL=INFO tells more)")
    gc.collect()
    gc.freeze()  # what all the modules hold is not looked through again; vLLM does so in a process of its own
    gc.set_threshold(
        20_000, 10, 10
    )  # thousands of requests under way, looked through time and again: a tenth of all time
    return llm


def enqueue(llm: Any, prompts: list[dict], params: list[Any]) -> list[int]:
    """Hand requests to the engine, which goes on with those it has; their numbers, under which wait_for finds the outputs."""
    ids = llm.enqueue(prompts, params, use_tqdm=False) if prompts else []
    return list(map(number_of, ids))


def number_of(request_id: str) -> int:
    """vLLM's ids are numbers; what it gives back when a request is made ends in random letters."""
    return int(request_id.partition("-")[0])


def wait_for(llm: Any, numbers: list[int], done: dict[int, Any], bar: Any) -> list[Any]:
    """The outputs of these requests, taken out of `done`, where those of others stay that are finished sooner."""
    missing = set(numbers) - done.keys()
    while missing:
        for output in completed(llm.llm_engine.step(), given_up=("abort",)):  # an error of one is a reject
            done[number_of(output.request_id)] = output
            missing.discard(number_of(output.request_id))
            bar.update()
    return [done.pop(number) for number in numbers]


def note_signals() -> list[int]:
    """From now on SIGUSR1 and SIGTERM are put into this list instead of ending the process."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        os.write(2, f"\n{signal.Signals(number).name}: ends after this chunk\n".encode())  # print is not safe in here

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, note)
    return noted


def stop(signals: Sequence[int], output: Path) -> NoReturn:
    """End the stage after a signal: one line, exit code 75."""
    say(f"{output}: stopped by {signal.Signals(signals[0]).name}, what is read is saved; run it again to go on")
    raise SystemExit(STOPPED)


@contextlib.contextmanager
def engine_errors(output: Path, signals: Sequence[int]) -> Iterator[None]:
    """What vLLM raises ends the stage: in one line, or as a stop where a signal to all processes has ended the engine's own."""
    try:
        yield
    except Exception as error:
        if signals:
            stop(signals, output)
        fail(f"{output}: vLLM stopped: {cause_of(error)}; what was made is kept: run again to go on")


# ---------------------------------------------------------------------------------------------------------------------
# One split


def cut_off(path: Path, size: int) -> None:
    """Cut what an unfinished chunk left behind `size` bytes; ends the stage where they are no longer there."""
    with path.open("ab") as file:
        if file.tell() < size:
            fail(f"{path}: has lost what was written to it ({file.tell():,} of {size:,} bytes); begin with --overwrite")
        file.truncate(size)
    with path.open("rb+") as file:
        if size and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n":  # an editor saved it so
            file.write(b"\n")


def read_progress(
    accepted_path: Path, rejected_path: Path, task: Task, stream: str, shards: int
) -> tuple[list[int], list[int], Counter, set[str], dict[int, bool]]:
    """What a split has so far: attempts and accepted examples by label, rejects by reason, keys of the accepted texts, and
    of every attempt's number whether it was accepted.

    stream: how the ids of this split begin; a hand edit may have taken lines away or added some.
    """
    names = list(task.labels) or [None]
    slots = {name: slot for slot, name in enumerate(names)}
    attempted, accepted, reasons, seen, made = [0] * len(names), [0] * len(names), Counter(), set(), {}
    own = re.compile(rf"{stream}-(\d+)")
    for path in (accepted_path, rejected_path):
        for number, record in read_records(path):
            if match := own.fullmatch(str(record.get("id"))):
                turn, slot = divmod(int(match[1]), len(names))
                attempted[slot] = max(attempted[slot], turn // shards + 1)
                made[int(match[1])] = path == accepted_path
            if path == rejected_path:
                reasons[record.get("reason")] += 1
                continue
            if any(not isinstance(record.get(name), str) for name in task.fields):
                fail(f"{path}:{number}: lacks {' or '.join(task.fields)}; mend or delete the line")
            label = record.get(task.answer_field) if task.labels else None
            if label in names:
                accepted[slots[label]] += 1
            seen.add(text_key(task, record))
    return attempted, accepted, reasons, seen, made


def read_texts(paths: Path | list[Path], task: Task) -> tuple[list[dict], set[str]]:
    """(what a prompt shows of each example, the keys of their texts) of files that may hold a million."""
    examples = read_examples(paths, task, keep=["id", *task.fields, task.answer_field])
    return examples, {text_key(task, example) for example in examples}


def read_completion(
    task: Task, completion: str, label: str | None, pattern: str | None, parser: Any
) -> tuple[dict[str, str], str | None]:
    """parse_completion, of what follows the thought where a parser of vLLM's is given; a forced one must match its pattern
    whole: the grammar's dialect of regular expressions is not Python's, and a request may go wrong in silence."""
    final, reason = final_of(parser, completion) if parser else (completion, None)
    if reason:
        return {}, reason
    fields, reason = parse_completion(task, final, label)
    if pattern and not re.fullmatch(pattern, completion):
        reason = reason or "no_match"
    return fields, reason


def sample_split(
    run: Run, task: Task, split: str, iteration: int, options: dict, max_attempts: int,
    pools: dict, excluded: set[str], llm: Any, tokenizer: Any, max_model_len: int, chat_template_kwargs: dict,
    shard: tuple[int, int] = (0, 1), signals: Sequence[int] = (),
    judge: Callable[[list[dict], Counter], list[dict | None]] | None = None, report: str = "",
) -> dict:  # fmt: skip
    """Generate one split with an engine that is up, from where `run` left off; returns the counts for the run record.

    pools: the records that prompts may show: seed and feedback (train) or train (validation). excluded: keys of
    texts that count as duplicates. signals: what note_signals gives; with one in it the stage ends (exit 75) after the
    chunk. judge: label_records of the same engine; what it labels otherwise is rejected. report: shown beside feedback. Ends
    the stage (exit 1) when `max_attempts` are made and examples are missing.
    """
    from tqdm import tqdm
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    accepted_path, rejected_path = run.partial, beside(run.also[0], ".partial")
    for path, size in zip((accepted_path, rejected_path), run.state.get("progress") or [0, 0], strict=True):
        cut_off(path, size)
    names = list(task.labels) or [None]
    shares = shares_of(options["num_examples"], len(names), shard)
    tokens = Counter({kind: run.notes.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion", "verify")})
    # A chat model ends its turn by itself, and may put blank lines before an example and between its fields: there the
    # parser looks for stop strings, in the last field alone
    stops = None if tokenizer.chat_template else task.parse.get("stop")
    patterns = {name: structured_pattern(task, name) if options.get("structured") else None for name in names}
    forms = {name: pattern and StructuredOutputsParams(regex=pattern) for name, pattern in patterns.items()}
    parser = options.get("reasoning_parser") and reasoning_parser(
        options["reasoning_parser"], tokenizer, chat_template_kwargs
    )
    attempted, accepted, reasons, seen, made = read_progress(
        accepted_path, rejected_path, task, f"{task.name}-{iteration:02d}-{split}", shard[1]
    )
    seen |= excluded
    # Each request has parameters of its own, which vLLM need not copy
    own = {"skip_clone": True} if hasattr(SamplingParams, "skip_clone") else {}
    # judge needs the engine to itself: then one large chunk is all that is under way
    size, window = (WINDOW // 2, 1) if judge else (CHUNK, WINDOW)
    plan = partial(plan_ahead, options["num_examples"], max_attempts, shard=shard, size=size, window=window)
    planned: deque[list[int]] = deque()  # the attempts of the chunks under way
    if any(attempted):
        say(f"{run.output}: going on after {sum(attempted):,} attempts")
        planned.extend(plan_again(made, len(names), plan) or [])
    newest = newest_outcomes(made, len(names))
    del made

    encoded: dict[tuple[str, str], list[int]] = {}  # prompts that were shown already: without feedback they come again

    def send(chunk: list[int]) -> tuple[list[dict], list[int | None]]:
        """Render the prompts of these attempts and hand them to the engine: (attempts, numbers of their requests)."""
        attempts = [draw_attempt(task, options["seed"], iteration, split, a, pools, options) for a in chunk]
        texts = [render_prompt(task, split, a["shots"], a["label"], a["feedback"], report) for a in attempts]
        if len(encoded) > WINDOW:
            encoded.clear()
        if unseen := [text for text in dict.fromkeys(texts) if text not in encoded]:
            encoded.update(zip(unseen, encode_prompts(tokenizer, unseen, chat_template_kwargs), strict=True))
        prompts = [encoded[text] for text in texts]
        fits = [len(p) + options["max_tokens"] <= max_model_len for p in prompts]
        if not any(fits) and not sum(attempted) and not sent:  # later on, those that do not fit are rejects
            fail(
                f"{run.output}: the prompt has {min(map(len, prompts)):,} tokens and --max-tokens {options['max_tokens']} come "
                f"on top, the context holds {max_model_len:,}; show fewer or shorter examples, or lower --max-tokens"
            )
        params = [
            SamplingParams(
                temperature=a.get("temperature", options["temperature"]), top_p=options["top_p"], top_k=options["top_k"],
                min_p=options["min_p"], max_tokens=options["max_tokens"], stop=stops, seed=a["sampling_seed"],
                structured_outputs=forms[a["label"]], output_kind=RequestOutputKind.FINAL_ONLY,
                skip_special_tokens=not parser, **own,
            )
            for a, fit in zip(attempts, fits, strict=True) if fit
        ]  # fmt: skip
        with engine_errors(run.output, signals):
            numbers = iter(
                enqueue(llm, [{"prompt_token_ids": p} for p, fit in zip(prompts, fits, strict=True) if fit], params)
            )
        return attempts, [next(numbers) if fit else None for fit in fits]

    def read(a: dict, output: Any, spent: Counter) -> tuple[dict, dict, str | None, dict]:
        """(attempt, example, why it is rejected by itself or None, lineage) of an output, None where the prompt did not fit."""
        fields, reason, completion, finish_reason = {}, "prompt_too_long", None, None
        shown = [*a["shots"], *a["feedback"]]
        if output is not None:
            completion, finish_reason = output.outputs[0].text, output.outputs[0].finish_reason
            spent["prompt"] += len(output.prompt_token_ids)
            spent["completion"] += len(output.outputs[0].token_ids)
            fields, reason = read_completion(task, completion, a["label"], patterns[a["label"]], parser)
            last = next(reversed(fields.values()), "")
            if finish_reason == "error":
                reason = "engine_error"
            elif finish_reason == "length" and (reason == "no_match" or not another_begins(task, last, completion)):
                reason = "truncated"
            elif reason is None and copies(task, fields, shown):
                reason = "copied_shot"
        example = fields | ({task.answer_field: a["label"]} if a["label"] is not None else {})
        lineage = {
            "task": task.name, "iteration": iteration, "split": split, "feedback": bool(a["feedback"]),
            "shots": [shot["id"] for shot in shown], "sampling_seed": a["sampling_seed"],
            **({"temperature": a["temperature"]} if "temperature" in a else {}),
            "finish_reason": finish_reason, "completion": completion,
        }  # fmt: skip
        return a, example, reason, lineage

    def settle(rows: list[tuple[dict, dict, str | None, dict]], spent: Counter) -> tuple[list[dict], list[dict]]:
        """Accept or reject what `read` made of a chunk, in the order of the attempts: the records of both."""
        asked = [r for r in rows if judge and r[2] is None and text_key(task, r[1]) not in seen]
        judging: Counter = Counter()
        with engine_errors(run.output, signals):
            answers = judge([example for _, example, *_ in asked], judging) if asked else []
        tokens.update(spent + Counter(verify=judging["computed"]))
        judged = {a["id"]: answer for (a, *_), answer in zip(asked, answers, strict=True)}
        kept, rejects = [], []
        for a, example, reason, lineage in rows:
            slot, answer = names.index(a["label"]), judged.get(a["id"], {})
            attempted[slot] += 1
            if reason is None and (key := text_key(task, example)) in seen:
                reason = "duplicate"
            elif answer is None:  # the teacher cannot be asked for its label
                reason, answer = "prompt_too_long", {}
            elif reason is None and answer and not agrees(task, example, answer["teacher_label"]):
                reason = "label_disagrees"
            elif reason is None and accepted[slot] >= shares[slot]:
                reason = "surplus"
            newest[slot].append(reason is None)
            if reason is None:
                seen.add(key)
                accepted[slot] += 1
                rendered = {k: render(task.student[k], example) for k in ("source", "target")}
                kept.append({"id": a["id"], **example, **rendered, **answer, **lineage})
            else:
                reasons[reason] += 1
                rejects.append({"id": a["id"], "reason": reason, **example, **answer, **lineage})
        return kept, rejects

    sent: deque[tuple[list[dict], list[int | None]]] = deque()  # of `planned`, with the numbers of their requests
    done: dict[int, Any] = {}
    earlier, began = run.notes.get("generate_seconds", 0.0), time.perf_counter()
    llm.reset_prefix_cache()
    plan(attempted, accepted, newest, planned)
    new = list(planned)
    with tqdm(desc=f"{run.output.parent.name} {split}", unit=" prompts", total=0, delay=0.2) as bar:
        while planned:
            if signals:
                bar.close()
                stop(signals, run.output)
            for chunk in new:
                sent.append(send(chunk))
                bar.total += len(chunk)
            # Read and check the oldest chunk, in the order of the attempts, while the engine has the others
            attempts, numbers = sent.popleft()
            with engine_errors(run.output, signals):
                outputs = iter(wait_for(llm, [n for n in numbers if n is not None], done, bar))
            spent: Counter = Counter()
            rows = [
                read(a, None if n is None else next(outputs), spent) for a, n in zip(attempts, numbers, strict=True)
            ]
            kept, rejects = settle(rows, spent)
            # Append it, then note that it is there
            for path, records in ((accepted_path, kept), (rejected_path, rejects)):
                with path.open("a", encoding="utf-8") as file:
                    write_records(file, records)
            seconds = earlier + time.perf_counter() - began
            rate = tokens["completion"] / seconds
            bar.set_postfix_str(f"{sum(accepted):,} of {sum(shares):,} accepted, {rate:,.0f} tokens/s")
            run.notes.update({f"{kind}_tokens": n for kind, n in tokens.items()}, generate_seconds=round(seconds, 2))
            save_progress(run, [accepted_path.stat().st_size, rejected_path.stat().st_size])
            planned.popleft()
            new = plan(attempted, accepted, newest, planned)

    counts = {
        "attempted": sum(accepted) + sum(reasons.values()),
        "accepted": sum(accepted),
        "rejected": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
        "accepted_by_label": dict(zip(map(str, names), accepted, strict=True)) if task.labels else None,
    }
    summary = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
    say(f"{run.output}: {counts['attempted']:,} attempted = {counts['accepted']:,} accepted + rejected ({summary})")
    if sum(accepted) < sum(shares):
        cure = "mend the prompt or [parse], or raise --max-attempts"
        if 2 * reasons["truncated"] > reasons.total():
            cure = "raise --max-tokens, or give [parse] a stop string that ends an example"
            if tokenizer.chat_template:  # a base model's tokenizer may have one too
                cure = "take --prompt-form completion for a base model, which ends no turn, or raise --max-tokens"
        fail(
            f"{run.output}: {max_attempts:,} attempts gave {sum(accepted):,} of {sum(shares):,}; rejected: "
            f"{summary}. Read {rejected_path}, {cure}; what was made is kept"
        )
    seconds = max(run.notes.get("generate_seconds", 0.0), 0.01)
    counts |= {"prompt_tokens": tokens["prompt"], "completion_tokens": tokens["completion"]}
    counts |= {"verify_tokens": tokens["verify"]} if judge else {}  # computed ones: the prompts share most of theirs
    finish_run(
        run, counts, generate_seconds=seconds, completion_tokens_per_second=round(tokens["completion"] / seconds, 1),
        prompt_form="chat" if tokenizer.chat_template else "completion",
    )  # fmt: skip
    return counts


# ---------------------------------------------------------------------------------------------------------------------
# Commands

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # --num_examples works too
    help="Sample labelled examples of a task from a teacher LLM in vLLM.",
)
files = partial(typer.Option, rich_help_panel="Files")
sampling = partial(typer.Option, rich_help_panel="Sampling")
engine = partial(typer.Option, rich_help_panel="Engine (changes no example: not compared when a run is gone on with)")

PromptFormOption = Annotated[
    PromptForm,
    sampling(help="chat = the chat template; completion = plain text, for base models; auto = chat if it has one."),
]
ChatTemplateKwargs = Annotated[str, sampling(help="""JSON, such as '{"enable_thinking": false}'.""")]
TrustRemoteCode = Annotated[bool, files(help="Run Python code that comes with the teacher: read it first.")]
EngineDtype = Annotated[Dtype, engine(help="auto = float32 on a CPU, else the model's own.")]
MaxModelLen = Annotated[int | None, engine(min=1, help="Context in tokens (longest prompt + --max-tokens).")]
GpuMemoryUtilization = Annotated[float, engine(min=0.05, max=1, help="Share of the GPU's memory to take.")]
TensorParallelSize = Annotated[int, engine(min=1, help="GPUs that hold one model together.")]
EnforceEager = Annotated[
    bool | None, engine(help="No torch.compile or CUDA graphs: starts sooner, runs slower (left out: only on a CPU).")
]


@app.callback()
def main() -> None:
    pass


@app.command()
def sample(
    task_file: Annotated[Path, files(help="Task, as prompts/<task>.toml.")],
    model: Annotated[str, files(help="Teacher: a folder or a name on the hub.")],
    output_dir: Annotated[Path, files(help="Folder of the iteration; iter-NN in its name gives the number (else 0).")],
    feedback_file: Annotated[list[Path] | None, files(help="To steer by, from score_ood.py (none = no feedback).")] = None,
    report_file: Annotated[Path | None, files(help="metrics.json of evaluate.py, for $report in [prompt] feedback.")] = None,
    exclude_file: Annotated[list[Path] | None, files(help="Its texts are duplicates; repeat, or a glob in quotes.")] = None,
    shard: Annotated[str | None, files(metavar="I/N", help="Only share I (0 to N-1) of N: train-0000I-of-0000N.jsonl.")] = None,
    num_examples: Annotated[int, sampling(min=1, help="Examples in train.jsonl; raise it later to extend it.")] = 600,
    num_validation: Annotated[int, sampling(min=0, help="Examples in validation.jsonl, the feedback pool (0 = none).")] = 200,
    num_fewshot: Annotated[int, sampling(min=1, help="Seed examples in a training prompt.")] = 3,
    feedback_rate: Annotated[float, sampling(min=0, max=1, help="Share of training prompts with feedback.")] = 0.5,
    num_feedback_shots: Annotated[int, sampling(min=1, help="Feedback examples in such a prompt, shown last.")] = 2,
    feedback_label: Annotated[FeedbackLabel, sampling(help="Its labels: any, the one asked for (same), or others.")] = "any",
    temperature: Annotated[float, sampling(min=0, max=2, help="Sampling temperature of the train split (0 = greedy).")] = 1.0,
    temperature_end: Annotated[float | None, sampling(min=0, max=2, help="Go there, linearly, until attempt number "
        "--num-examples; that cannot be raised later then (none = constant).")] = None,
    validation_temperature: Annotated[float, sampling(min=0, max=2, help="The same of the validation split.")] = 1.2,
    top_p: Annotated[float, sampling(min=0.01, max=1, help="Keep the likeliest tokens of this total probability.")] = 1.0,
    top_k: Annotated[int, sampling(min=0, help="Keep so many likeliest tokens (0 = all).")] = 0,
    min_p: Annotated[float, sampling(min=0, max=1, help="Drop tokens below this share of the top probability.")] = 0.0,
    max_tokens: Annotated[int, sampling(min=1, help="Longest completion in tokens; longer = rejected, truncated.")] = 256,
    max_attempts: Annotated[int | None, sampling(min=1, help="Give up on a split after so many (5 times its size).")] = None,
    structured: Annotated[bool, sampling(help="Force every completion into the form of [prompt] example.")] = False,
    verify: Annotated[bool, sampling(help="Reject what the teacher labels otherwise (see: generate.py label).")] = False,
    prompt_form: PromptFormOption = "auto",
    reasoning_parser_name: Annotated[str | None, sampling("--reasoning-parser", help="vLLM's parser of the teacher's thoughts, "
        "by name, such as mistral (none: the common forms are read).")] = None,
    chat_template_kwargs: ChatTemplateKwargs = "{}",
    seed: Annotated[int, sampling(help="Seed of the run; every attempt has its own, made from it.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    dtype: EngineDtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemoryUtilization = 0.9,
    tensor_parallel_size: TensorParallelSize = 1,
    enforce_eager: EnforceEager = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Try out: at most so many examples a split.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the first prompts of each kind; no engine.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Make anew what is there already.")] = False,
) -> None:  # fmt: skip
    """Sample train.jsonl and validation.jsonl of one iteration; one engine start for both."""
    # Check what is cheap to check
    task = load_task(task_file)
    template_kwargs = read_template_kwargs(chat_template_kwargs, prompt_form)
    part = parse_shard(shard)
    if structured and reasoning_parser_name:
        raise typer.BadParameter("a forced completion holds no thought: leave it out", param_hint="--reasoning-parser")
    if feedback_label != "any" and not task.labels:
        raise typer.BadParameter("a text2text task has no labels: leave it out", param_hint="--feedback-label")
    feedback_file = expand("--feedback-file", feedback_file or [])
    empty = [path for path in feedback_file if path.is_file() and not path.stat().st_size]
    for path in empty:  # of a student that made no error
        say(f"--feedback-file {path}: is empty: no feedback from it")
    exclude_file = expand("--exclude-file", exclude_file or [])
    pools = {"seed": read_examples(task.seed_examples, task), "feedback": []}
    pools["feedback"] = read_examples([path for path in feedback_file if path not in empty], task)
    report = read_report(report_file, task) if report_file else ""
    if report and not pools["feedback"]:
        say(f"--report-file {report_file}: no prompt shows it, for there is no feedback")
    _, excluded = read_texts(exclude_file, task)
    match = re.fullmatch(r"iter-(\d+)", output_dir.resolve().name)
    iteration = int(match[1]) if match else 0
    wanted = {"train": num_examples, "validation": num_validation}
    if limit:
        wanted = {split: min(limit, number) for split, number in wanted.items()}
    common = {"top_p": top_p, "top_k": top_k, "min_p": min_p, "max_tokens": max_tokens, "seed": seed}
    common |= {"prompt_form": prompt_form, "chat_template_kwargs": template_kwargs}
    common |= {"shard": shard} if part else {}
    common |= ({"structured": True} if structured else {}) | ({"verify": True} if verify else {})
    common |= {"reasoning_parser": reasoning_parser_name} if reasoning_parser_name else {}
    common |= {"trust_remote_code": True} if trust_remote_code else {}
    label_shots = draw_label_shots(task, pools["seed"], LABEL_SHOTS, seed) if verify else []
    if verify:
        render_label_prompt(task, pools["seed"][0], label_shots)  # is there one?
        if task.metric in ("rouge_l", "chrf"):
            fail(
                f"--verify: two right answers seldom have the same text, which {task.metric} is compared by; leave it out"
            )
    for split, number in wanted.items():
        if number and not sum(shares_of(number, max(len(task.labels), 1), part or (0, 1))):
            fail(f"--shard {shard}: {number} {split} examples leave it none; use fewer shards or more examples")
    options = {
        "train": {
            "num_examples": wanted["train"], "temperature": temperature, **common, "num_fewshot": num_fewshot,
            "feedback_rate": feedback_rate, "num_feedback_shots": num_feedback_shots,
            **({"feedback_label": feedback_label} if feedback_label != "any" else {}),
            **({"temperature_end": temperature_end} if temperature_end is not None else {}),
        },
        "validation": {"num_examples": wanted["validation"], "temperature": validation_temperature, **common},
    }  # fmt: skip

    if dry_run:
        tokenizer = in_form(load_tokenizer(model, trust_remote_code)[0], prompt_form)
        show_prompts(task, tokenizer, iteration, options, pools, template_kwargs, part or (0, 1), report)
        if verify:
            show_label_prompts(task, tokenizer, pools["seed"][:1], label_shots, template_kwargs)
        return

    # What is to be done? The validation split is made from this very train.jsonl, so that file is no input of it.
    inputs = {"task_file": task_file, "model": model, "the seed_examples of the task": task.seed_examples}
    inputs |= {"exclude_file": exclude_file}
    signals = note_signals()
    outputs = {split: shard_path(output_dir / f"{split}.jsonl", part) for split in wanted}
    runs: dict[str, Run | None] = {}
    for check_only in (True, False):  # nothing is touched before both splits are found to be in order
        for split in (split for split, number in wanted.items() if number):
            names = VALIDATION_OPTION if split == "validation" else {}
            runs[split] = start_run(
                "generate.py sample",
                outputs[split],
                {names.get(name, name): value for name, value in options[split].items()},
                inputs | ({"feedback_file": feedback_file, "report_file": report_file} if split == "train" else {}),
                also=[outputs[split].with_suffix(".rejected.jsonl")],
                resumable=True,
                # the temperatures follow from the number of examples
                extends=None if "temperature_end" in options[split] else names.get("num_examples", "num_examples"),
                overwrite=overwrite,
                check_only=check_only,
            )
    if not any(runs.values()):
        return

    # Engine, with a context no longer than needed
    tokenizer, context = load_tokenizer(model, trust_remote_code)
    in_form(tokenizer, prompt_form)
    if reasoning_parser_name:  # is there one, and does it fit?
        reasoning_parser(reasoning_parser_name, tokenizer, template_kwargs)
    say_control_tokens(tokenizer, task, [*pools["seed"], *pools["feedback"]])
    how = {"trust_remote_code": trust_remote_code, "dtype": dtype, "gpu_memory_utilization": gpu_memory_utilization}
    how |= {"tensor_parallel_size": tensor_parallel_size, "enforce_eager": enforce_eager}
    need = longest_prompt(task, tokenizer, pools, options, template_kwargs, report) + max_tokens
    if verify:  # a generated example of max_tokens, and the answer
        shown = encode_prompt(tokenizer, "", render_label_prompt(task, pools["seed"][0], label_shots), template_kwargs)
        asks = len(shown) + 2 * max_tokens + 16
        if (room := max_model_len or context) and asks > room:
            fail(f"--verify: its prompts may have {asks:,} tokens, the context holds {room:,}; lower --max-tokens")
        need = max(need, asks)
    llm, length = engine_for(model, max_model_len or need, context, bool(max_model_len), signals, output_dir, **how)

    def judge(records: list[dict], tokens: Counter) -> list[dict | None]:
        how = {"max_tokens": max_tokens, "tokens": tokens, "room": length}
        return label_records(llm, tokenizer, task, records, label_shots, template_kwargs, **how)

    for split, run in runs.items():
        if run is None:
            continue
        if split == "validation":
            shown = fingerprint("train_file", outputs["train"])
            if not runs.get("train") and run.notes.get("train_file", shown) != shown:
                say(
                    f"warning: {outputs['train']} has changed since {run.output} was begun: the rest is made from it as it is"
                )
            run.notes["train_file"] = shown
            pools["train"], keys = read_texts(outputs["train"], task)
            excluded |= keys
        sample_split(
            run, task, split, iteration, options[split],
            max_attempts or 5 * sum(shares_of(wanted[split], max(len(task.labels), 1), part or (0, 1))),
            pools, excluded, llm, tokenizer, length, template_kwargs, part or (0, 1), signals,
            judge if verify else None, report,
        )  # fmt: skip
    if signals:  # in the last chunk: what comes after this stage would not know of it
        stop(signals, output_dir)


@app.command()
def label(
    task_file: Annotated[Path, files(help="Task, as prompts/<task>.toml, with a label prompt.")],
    model: Annotated[str, files(help="Teacher: a folder or a name on the hub.")],
    input_file: Annotated[
        list[Path], files(help="Records to label; only the task's fields are needed. Repeat, or a glob in quotes.")
    ],
    output_file: Annotated[Path, files(help="The same with teacher_label and label_probs.")],
    shard: Annotated[str | None, files(metavar="I/N", help="Only every N-th record: labelled-0000I-of-0000N.jsonl.")] = None,
    num_fewshot: Annotated[int, sampling(min=0, help="Seed examples in a prompt, the same in all.")] = LABEL_SHOTS,
    num_samples: Annotated[int, sampling(min=1, help="text2text: the majority of so many answers (1 = greedy).")] = 1,
    temperature: Annotated[float, sampling(min=0, max=2, help="Sampling temperature of several answers.")] = 0.7,
    max_tokens: Annotated[int, sampling(min=1, help="text2text: longest answer in tokens.")] = 128,
    prompt_form: PromptFormOption = "auto",
    chat_template_kwargs: ChatTemplateKwargs = "{}",
    seed: Annotated[int, sampling(help="Chooses the seed examples, and the samples.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    dtype: EngineDtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemoryUtilization = 0.9,
    tensor_parallel_size: TensorParallelSize = 1,
    enforce_eager: EnforceEager = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Try out: the first so many records.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the first prompts; no engine.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Label anew.")] = False,
) -> None:  # fmt: skip
    """Write --input-file with the teacher's own answers: probabilities of all labels, or for text2text what it answers."""
    # Check what is cheap to check
    task, part, shard_counts = load_task(task_file), parse_shard(shard), {}
    template_kwargs = read_template_kwargs(chat_template_kwargs, prompt_form)
    if num_samples > 1 and task.labels:
        raise typer.BadParameter("labels have probabilities: leave it out", param_hint="--num-samples")
    input_file = expand("--input-file", input_file)
    records = read_examples(input_file, task, answers=False, counts=shard_counts)[:limit]
    records, output_file = take_shard(records, part), shard_path(output_file, part)
    shots = draw_label_shots(task, read_examples(task.seed_examples, task), num_fewshot, seed)
    render_label_prompt(task, records[0], shots)  # is there one?
    if dry_run:
        tokenizer = in_form(load_tokenizer(model, trust_remote_code)[0], prompt_form)
        show_label_prompts(task, tokenizer, records[:2], shots, template_kwargs)
        print(f"=== would label {len(records):,} records")
        return
    options = {"num_fewshot": num_fewshot, "chat_template_kwargs": template_kwargs, "seed": seed, "limit": limit}
    options |= {"prompt_form": prompt_form}
    options |= {} if task.labels else {"num_samples": num_samples, "max_tokens": max_tokens}
    options |= {"temperature": temperature} if num_samples > 1 else {}
    options |= {"trust_remote_code": True} if trust_remote_code else {}
    inputs = {"task_file": task_file, "model": model, "input_file": input_file}
    inputs |= {"the seed_examples of the task": task.seed_examples}
    signals = note_signals()
    rejected_file = output_file.with_suffix(".rejected.jsonl")
    run = start_run(
        "generate.py label", output_file, options | ({"shard": shard} if part else {}), inputs, also=[rejected_file],
        resumable=True, overwrite=overwrite,
    )  # fmt: skip
    if run is None:
        return

    # Engine
    tokenizer, context = load_tokenizer(model, trust_remote_code)
    in_form(tokenizer, prompt_form)
    say_control_tokens(tokenizer, task, [*shots, *records])
    needs: list[int] = []
    for begin in range(0, len(records), CHUNK):
        rows = label_prompts(task, tokenizer, records[begin : begin + CHUNK], shots, template_kwargs)
        needs += tokens_needed(rows, max_tokens)
    room = max_model_len or context or max(needs)
    need = max((n for n in needs if n <= room), default=0)
    if not need:
        fail(
            f"{output_file}: the shortest prompt and its answer have {min(needs):,} tokens, the context holds {room:,}; lower "
            "--num-fewshot"
        )
    if max(needs) > room:
        (most, longest), number = (
            max((n, r["id"]) for n, r in zip(needs, records, strict=True)),
            sum(n > room for n in needs),
        )
        say(
            f"{output_file}: {number:,} of {len(records):,} records are left out (prompt_too_long), such as {longest}: prompt "
            f"and answer have {most:,} tokens, the context holds {room:,}; they go to {rejected_file}. To label them, lower "
            f"--num-fewshot{' or raise --max-model-len' * bool(max_model_len)}, or shorten them"
        )
    how = {"trust_remote_code": trust_remote_code, "dtype": dtype, "gpu_memory_utilization": gpu_memory_utilization}
    how |= {"tensor_parallel_size": tensor_parallel_size, "enforce_eager": enforce_eager}
    wanted = max_model_len or need + 1
    llm, length = engine_for(model, wanted, context, bool(max_model_len), signals, output_file, **how)

    # Label, chunk by chunk; what an unfinished one left behind is cut
    from tqdm import tqdm

    partials = [run.partial, beside(rejected_file, ".partial")]
    for path, size in zip(partials, run.state.get("progress") or [0, 0], strict=True):
        cut_off(path, size)
    done, left_out = ([record for _, record in read_records(path)] for path in partials)
    out = {r.get("id") for r in left_out}
    gone = [r["id"] for r in records[: len(done) + len(left_out)] if r["id"] not in out]
    if [r.get("id") for r in done] != gone:
        fail(f"{run.partial}: is not what this stage has written; begin with --overwrite")
    tokens = Counter({kind: run.notes.get(f"{kind}_tokens", 0) for kind in ("prompt", "computed")})
    shown = ["id", *task.fields, task.answer_field, "teacher_label", "label_probs"]
    size, begun = chunk_size(llm, need), len(done) + len(left_out)
    if begun:
        say(f"{output_file}: going on after {begun:,} records")
    with tqdm(total=len(records), initial=begun, desc="label", unit="record") as bar:
        for begin in range(begun, len(records), size):
            if signals:
                stop(signals, output_file)
            chunk = records[begin : begin + size]
            llm.reset_prefix_cache()
            try:
                answers = label_records(
                    llm, tokenizer, task, chunk, shots, template_kwargs, num_samples, temperature, max_tokens, seed, tokens,
                    length,
                )  # fmt: skip
            except Exception as error:
                if signals:
                    stop(signals, output_file)
                fail(f"{output_file}: vLLM stopped: {cause_of(error)}; what was made is kept: run again to go on")
            own = ("teacher_label", "label_probs")  # another teacher's stay nowhere
            chunk = [{k: v for k, v in record.items() if k not in own} for record in chunk]
            made = [r | answer for r, answer in zip(chunk, answers, strict=True) if answer is not None]
            made = [{k: r[k] for k in shown if k in r} | {k: v for k, v in r.items() if k not in shown} for r in made]
            unread = [r for r, answer in zip(chunk, answers, strict=True) if answer is None]
            rejects = [{"id": r["id"], "reason": None, **r} | {"reason": "prompt_too_long"} for r in unread]
            for path, new in zip(partials, (made, rejects), strict=True):
                with path.open("a", encoding="utf-8") as file:
                    write_records(file, new)
            done += made
            left_out += rejects
            run.notes.update({f"{kind}_tokens": number for kind, number in tokens.items()})
            save_progress(run, [path.stat().st_size for path in partials])
            bar.update(len(chunk))
    answered = [r for r in done if r.get(task.answer_field) is not None]
    agreeing = sum(agrees(task, r, r["teacher_label"]) for r in answered)
    rejected = {"prompt_too_long": len(left_out)} if left_out else {}
    counts = {"records": len(records), "labelled": len(done), "rejected": rejected}
    counts |= {"with_answer": len(answered), "agreeing": agreeing} | shard_counts
    if task.labels:
        counts["by_teacher_label"] = {name: sum(r["teacher_label"] == name for r in done) for name in task.labels}
    counts |= {"prompt_tokens": tokens["prompt"], "computed_tokens": tokens["computed"]}
    finish_run(run, counts, prompt_form="chat" if tokenizer.chat_template else "completion")
    empty = sum(not r["teacher_label"] for r in done)
    if 2 * empty > len(done):
        cure = " (a base model: take --prompt-form completion)" * bool(tokenizer.chat_template)
        say(f"warning: {output_file}: {empty:,} of {len(done):,} have no answer that ends; raise --max-tokens{cure}")
    left = f" + {len(left_out):,} rejected (prompt_too_long) = {len(records):,} read" * bool(left_out)
    say(
        f"{output_file}: {len(done):,} labelled{left}, {agreeing:,} of {len(answered):,} as their answer says; "
        f"{tokens['computed']:,} of {tokens['prompt']:,} prompt tokens computed, the rest came from the prefix cache"
    )
    if signals:  # what comes after this stage would not know of it
        stop(signals, output_file)


def chunk_size(llm: Any, longest: int) -> int:
    """How many records are labelled at once: their prompts must stay in the prefix cache until all nodes are asked for."""
    cache = llm.llm_engine.vllm_config.cache_config
    held = (getattr(cache, "num_gpu_blocks", None) or 0) * (getattr(cache, "block_size", None) or 0)
    return max(1, min(512, held // (2 * longest))) if held else 64


def read_template_kwargs(text: str, prompt_form: PromptForm) -> dict:
    """The value of --chat-template-kwargs; a bad one is an error of the command line (exit code 2)."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--chat-template-kwargs") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("must be a JSON object", param_hint="--chat-template-kwargs")
    if value and prompt_form == "completion":
        raise typer.BadParameter("is for the chat form; leave it out", param_hint="--chat-template-kwargs")
    return value


def engine_for(
    model: str, need: int, context: int | None, asked: bool, signals: Sequence[int], where: Path, **how: Any
) -> tuple[Any, int]:
    """(engine, its context in tokens), no longer than needed; asked: `need` is the user's own --max-model-len."""
    if context and need > context:
        if asked:
            fail(f"--max-model-len {need:,}: the model's context holds {context:,} tokens; lower it")
        need = context
    began = time.perf_counter()
    # The engine's own processes inherit this mask: a signal to the whole job step must not end them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        llm = start_engine(model, need, **how)
    except SystemExit:
        if signals:  # sent to all processes, it ended the engine's own
            stop(signals, where)
        raise
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    say(f"engine up in {time.perf_counter() - began:.1f} s, context {need:,} tokens")
    return llm, need


def load_tokenizer(model: str, trust_remote_code: bool = False) -> tuple[Any, int | None]:
    """The teacher's tokenizer and the length of its context in tokens (None: not told by its config).

    Refuses what writes no text by itself; which of the others run, vLLM tells when it starts.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto import modeling_auto as auto

    if problem := explain_model_folder(model):
        fail(f"--model {model}: {problem}")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # broken files make transformers raise many kinds
        refuse_model(model, "no model there", error, "read that code, and allow it by --trust-remote-code")
    names = config.architectures or []
    silent = {
        *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values(),
    }
    if config.is_encoder_decoder or (names and silent.issuperset(names)):
        fail(f"--model {model}: is a {config.model_type} ({', '.join(names)}); a teacher is a causal language model")
    return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None)


def longest_prompt(
    task: Task, tokenizer: Any, pools: dict, options: dict, template_kwargs: dict, report: str = ""
) -> int:
    """An upper bound, in tokens, on what the prompts of both splits can have."""

    def tokens(split: str, feedback: Sequence[dict] = ()) -> int:
        prompts = [render_prompt(task, split, [], label, feedback, report) for label in list(task.labels) or [None]]
        return max(len(encode_prompt(tokenizer, *prompt, template_kwargs)) for prompt in prompts)

    def example(record: dict) -> int:
        text = "\n\n" + string.Template(task.prompt["example"]).substitute(record)
        return len(tokenizer(broken_up(tokenizer, text))["input_ids"])

    train, generated = (
        options["train"],
        options["train"]["max_tokens"] + 16,
    )  # 16: the template's own words, label, ends
    lengths = sorted(map(example, pools["seed"]), reverse=True)[: train["num_fewshot"]]
    lengths += sorted(map(example, pools["feedback"]), reverse=True)[: train["num_feedback_shots"]]
    # An example without text has the prompt rendered as those with feedback are
    empty = dict.fromkeys([*task.fields, task.answer_field], "")
    base = max(tokens("train"), tokens("train", [empty]) if pools["feedback"] else 0)
    return max(base + sum(lengths), tokens("validation") + VALIDATION_SHOTS * generated) + 8


def show_prompts(
    task: Task, tokenizer: Any, iteration: int, options: dict, pools: dict, template_kwargs: dict, shard: tuple[int, int],
    report: str,
) -> None:  # fmt: skip
    """Print the first prompts of each kind, as the teacher gets them."""
    pools = pools | {"train": pools["seed"]}  # train.jsonl is not there yet: seed examples stand in for it
    for split in ("train", "validation"):
        if not options[split]["num_examples"]:
            continue
        num_labels = max(len(task.labels), 1)
        first = plan_chunk(50, 50, [0] * num_labels, [0] * num_labels, shard)
        attempts = [
            draw_attempt(task, options[split]["seed"], iteration, split, a, pools, options[split]) for a in first
        ]
        for kind in (False, True):
            for a in [a for a in attempts if bool(a["feedback"]) == kind][:2]:
                prompt = render_prompt(task, split, a["shots"], a["label"], a["feedback"], report)
                ids, shown = encode_prompt(tokenizer, *prompt, template_kwargs), [*a["shots"], *a["feedback"]]
                print(f"--- {a['id']}: {len(ids)} tokens, shots {', '.join(shot['id'] for shot in shown)}")
                print(tokenizer.decode(ids) + "\n")
        if options[split].get("structured"):
            for name in list(task.labels) or [None]:
                print(f"--- forced into {structured_pattern(task, name)}" + (f"   ({name})" if name else ""))
        number = sum(shares_of(options[split]["num_examples"], num_labels, shard))
        print(f"=== would write {number} examples of the {split} split\n")


def show_label_prompts(
    task: Task, tokenizer: Any, records: list[dict], shots: list[dict], template_kwargs: dict
) -> None:
    """Print label prompts, as the teacher gets them, and the tokens by which the labels are told apart."""
    rows = label_prompts(task, tokenizer, records, shots, template_kwargs)
    for record, (root, _) in zip(records, rows, strict=True):
        print(f"--- label {record['id']}: {len(root)} tokens, shots {', '.join(shot['id'] for shot in shots)}")
        print(tokenizer.decode(root) + "\n")
    for name, rest in zip(task.labels, rows[0][1], strict=True):
        print(f"--- {name}: {' | '.join(repr(tokenizer.decode([token])) for token in rest)}")


if __name__ == "__main__":
    run_command(app)
