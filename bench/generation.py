"""What generate.py costs beside vLLM alone, beside one prompt a call, and what the prefix cache gives.

    python -m bench.generation --model data/reviews/models/teacher --num-prompts 10000
    python -m bench.generation --parts sample --model random --num-prompts 1000             # a larger Llama, random weights
    VLLM_ENABLE_V1_MULTIPROCESSING=1 python -m bench.generation --parts sample --model data/reviews/models/teacher
    python -m bench.generation --parts pipeline,prefix --model data/reviews/models/teacher

1. sample: `generate.py` whole (render, generate, parse, check, write) and one bare `LLM.generate` of the very requests that it
   sent, on the same engine; engine start apart. Ratio of wall times, bare / sample (goal: 0.95, with the larger model 0.97),
   the order of the two changing; the same with bare vLLM under the stage's settings of Python's garbage collector, which save
   it time too; and the share of the stage's wall time that is not spent in vLLM. With VLLM_ENABLE_V1_MULTIPROCESSING=1
   vLLM has a process of its own, as with a GPU, and is at other chunks while one is read.
2. pipeline: prompts a second, `generate.py` whole over one prompt a call through a transformers pipeline, as the
   authors do: without stop strings, and with them.
3. prefix: prompts of prompts/rte.toml, some 600 tokens, with the prefix cache and without: hit rate, ratio of wall times.

Prints medians and ranges; writes bench/results/generation-<model>.json. On a GPU the same commands, with a model of any size.
"""

import contextlib
import copy
import gc
import io
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

import generate
from bench.machine import machine
from gold import engine, teacher
from gold.attempts import Pools, draw_attempt
from gold.command import say
from gold.examples import read_examples
from gold.prompts import render_prompt
from gold.runs import git_state, versions
from gold.task import load_task

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PYTHONS_GC = gc.get_threshold()  # as Python begins
SHAPES = {  # of random weights: hidden, intermediate, layers, heads
    "random": (512, 1536, 8, 8),
    "random-1b": (2048, 8192, 16, 32),
    "random-7b": (4096, 11008, 32, 32),
}  # fmt: skip


def spread(values: list[float], digits: int = 3) -> list[float]:
    """[median, lowest, highest]"""
    return [round(f(values), digits) for f in (statistics.median, min, max)]


def random_teacher(name: str, tokenizer_of: str, folder: Path) -> str:
    """A Llama of random weights with the embedded teacher's tokenizer, which ends no text: every completion has max_tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads = SHAPES[name]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = LlamaConfig(
        vocab_size=max(len(tokenizer), 32_000), hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    gc.collect()
    return str(folder)


class Recorder:
    """A vllm.LLM that notes what it is asked for, and how long it is waited for; else the LLM itself."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.sent, self.params, self.seconds = llm, [], [], 0.0
        step = partial(self.timed, llm.llm_engine.step)
        self.llm_engine = SimpleNamespace(add_request=self.add_request, step=step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def add_request(self, identifier: str, prompt: dict, params: Any) -> None:
        self.sent.append(prompt)
        self.params.append(params)
        self.timed(self.llm.llm_engine.add_request, identifier, prompt, params)

    def timed(self, call: Callable, *args: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args)
        finally:
            self.seconds += time.perf_counter() - began


def sample(
    llm: Any, task_file: Path, model: str, num_prompts: int, max_tokens: int, folder: Path, accepts: bool
) -> tuple[float, Recorder]:
    """Wall seconds of the whole stage on an engine that is up, and what it asked the engine for.

    accepts: random weights write nothing that is accepted; the stage then ends when `num_prompts` attempts are made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    recorder, plain = Recorder(llm), engine.start_llm
    engine.start_llm = lambda *args, **kwargs: recorder
    began = time.perf_counter()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            generate.main(
                task_file, model, folder / "iter-00", num_examples=num_prompts, num_validation=0, max_tokens=max_tokens,
                max_attempts=2 * num_prompts if accepts else num_prompts,
                max_model_len=llm.llm_engine.model_config.max_model_len,
            )  # fmt: skip
    except SystemExit as end:
        if accepts or "attempts gave" not in str(end):
            raise
    finally:
        engine.start_llm = plain  # with it the engine would stay, and with the engine its process
    return time.perf_counter() - began, recorder


def part_sample(llm: Any, repeats: int, *how: Any) -> dict:
    """Bare / sample wall time of the same requests; how: what `sample` gets beside the engine.

    generate.py has Python look for garbage less often than it does by itself. Bare vLLM is timed both ways.
    """
    _, recorder = sample(llm, *how)  # warms up, and tells the requests
    params = [copy.deepcopy(p) for p in recorder.params]
    for p in params:
        p.skip_clone = False  # as SamplingParams(...) has it: that vLLM need not copy them is known to the stage only
    requests, ours = recorder.sent, gc.get_threshold()
    assert ours != PYTHONS_GC, "start_llm sets its own"
    del recorder
    ratios, same_gc, shares, rates = [], [], [], []
    for repeat in range(repeats):
        seconds: dict[str, float] = {}
        ways = ["bare", "sample", "bare with our gc"]
        for way in ways if repeat % 2 else reversed(ways):
            gc.collect()
            gc.freeze()  # what was made before is none of this one's garbage
            if way == "sample":
                seconds[way], recorder = sample(llm, *how)
                assert recorder.sent == requests
                in_vllm = recorder.seconds
                del recorder
                continue
            gc.set_threshold(*(PYTHONS_GC if way == "bare" else ours))
            llm.reset_prefix_cache()
            began = time.perf_counter()
            outputs = llm.generate(requests, params, use_tqdm=False)
            seconds[way] = time.perf_counter() - began
            gc.set_threshold(*ours)
            tokens = sum(len(o.outputs[0].token_ids) for o in outputs)
            del outputs
        ratios.append(seconds["bare"] / seconds["sample"])
        same_gc.append(seconds["bare with our gc"] / seconds["sample"])
        shares.append(1 - in_vllm / seconds["sample"])
        rates.append(tokens / seconds["sample"])
        say(", ".join(f"{way} {value:.2f} s" for way, value in seconds.items()) + f", of it in vLLM {in_vllm:.2f} s")
    return {
        "requests": len(requests), "bare_over_sample": spread(ratios), "bare_with_our_gc_over_sample": spread(same_gc),
        "share_outside_vllm": spread(shares), "completion_tokens_per_second": spread(rates, 0),
    }  # fmt: skip


def part_pipeline(llm: Any, model: str, calls: int, repeats: int, *how: Any) -> dict:
    """Prompts a second: the whole stage on an engine that is up, over one a call through a transformers pipeline.

    how: what `sample` gets beside the engine.
    """
    import torch
    from transformers import logging, pipeline

    logging.set_verbosity_error()
    device = 0 if torch.cuda.is_available() else -1
    write = pipeline(
        "text-generation", model=model, device=device, dtype=torch.bfloat16 if device == 0 else torch.float32
    )
    tokenizer, found = write.tokenizer, {}
    ratios: dict[str, list[float]] = {"no_stop_strings": [], "stop_strings": []}
    for repeat in range(repeats):
        seconds, recorder = sample(llm, *how)
        ours = len(recorder.sent) / seconds
        limit, stop = recorder.params[0].max_tokens, recorder.params[0].stop
        asked = itertools.islice(itertools.cycle(recorder.sent), repeat * calls, (repeat + 1) * calls)
        texts = [tokenizer.decode(sent["prompt_token_ids"]) for sent in asked]
        ways = {"no_stop_strings": {}} | (
            {"stop_strings": {"stop_strings": stop, "tokenizer": tokenizer}} if stop else {}
        )
        for way, more in ways.items():
            began = time.perf_counter()
            for text in texts:
                write(text, do_sample=True, temperature=1.0, max_new_tokens=limit, return_full_text=False, **more)
            theirs = calls / (time.perf_counter() - began)
            ratios[way].append(ours / theirs)
            say(f"sample {ours:.1f} prompts/s, one a call {theirs:.2f} prompts/s ({way})")
    for way, values in ratios.items():
        if not values:  # a chat model has no stop strings
            continue
        found[f"sample_over_pipeline_{way}"] = spread(values, 1)
    return found | {"requests": len(recorder.sent), "calls_a_repeat": calls, "max_new_tokens": limit}


def part_prefix(model: str, num_prompts: int, max_tokens: int, repeats: int) -> dict:
    """Hit rate of the prefix cache and wall time without / with it, for the prompts of a real task."""
    from vllm import SamplingParams

    task = load_task(Path("prompts/rte.toml"))
    pools, how = Pools(read_examples(task.seed_examples, task)), {"seed": 0, "num_fewshot": 3}
    encoder = teacher.load_encoder(model, task, "auto", {}, False)
    attempts = [draw_attempt(task, 0, "train", a, pools, how) for a in range(num_prompts)]
    prompts = encoder.encode([render_prompt(task, "train", a.shots, a.label) for a in attempts])
    sent = [{"prompt_token_ids": ids} for ids in prompts]
    params = [SamplingParams(max_tokens=max_tokens, seed=a.sampling_seed) for a in attempts]
    longest = max(len(s["prompt_token_ids"]) for s in sent)

    def seconds_of(llm: Any) -> tuple[list[float], float]:
        llm.generate(sent[:8], params[:8], use_tqdm=False)
        found, hits = [], 0.0
        for _ in range(repeats):
            llm.reset_prefix_cache()
            began = time.perf_counter()
            outputs = llm.generate(sent, params, use_tqdm=False)
            found.append(time.perf_counter() - began)
            hits = sum(o.num_cached_tokens or 0 for o in outputs) / sum(len(o.prompt_token_ids) for o in outputs)
        return found, hits

    llm = engine.start_llm(model, longest + max_tokens)
    with_cache, hits = seconds_of(llm)
    del llm
    gc.collect()
    from vllm import LLM

    plain = LLM.__init__

    def without(self: Any, **options: Any) -> None:
        plain(self, **options | {"enable_prefix_caching": False})

    LLM.__init__ = without
    try:
        llm = engine.start_llm(model, longest + max_tokens)
    finally:
        LLM.__init__ = plain
    no_cache, none = seconds_of(llm)
    assert none == 0
    return {
        "prompts": num_prompts, "prompt_tokens": round(statistics.mean(len(s["prompt_token_ids"]) for s in sent)),
        "completion_tokens": max_tokens, "hit_rate": round(hits, 3),
        "seconds_without_over_with": spread([a / b for a, b in zip(no_cache, with_cache, strict=True)], 2),
    }  # fmt: skip


@app.command()
def main(
    model: Annotated[str, typer.Option(help=f"Teacher, or one of random weights: {', '.join(SHAPES)}.")],
    task_file: Annotated[Path, typer.Option(help="Task of parts 1 and 2.")] = Path("prompts/reviews.toml"),
    tokenizer: Annotated[str, typer.Option(help="Of random weights.")] = "data/reviews/models/teacher",
    num_prompts: Annotated[int, typer.Option(min=1, help="Of parts 1 and 2.")] = 10_000,
    calls: Annotated[int, typer.Option(min=1, help="Of the pipeline in a repeat.")] = 10,
    prefix_prompts: Annotated[int, typer.Option(min=8, help="Of part 3.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Of every part.")] = 3,
    parts: Annotated[str, typer.Option(help="Some of sample, pipeline, prefix.")] = "sample,pipeline,prefix",
) -> None:
    """Measure, print, write."""
    chosen = parts.split(",")
    if unknown := set(chosen) - {"sample", "pipeline", "prefix"}:
        raise typer.BadParameter(f"no such part: {', '.join(sorted(unknown))}", param_hint="--parts")
    found: dict[str, Any] = {"model": model, "task": str(task_file), "max_tokens": max_tokens, "repeats": repeats}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = random_teacher(model, tokenizer, folder / "model") if model in SHAPES else model
        if {"sample", "pipeline"} & set(chosen):
            began = time.perf_counter()
            llm = engine.start_llm(path, 1024)
            found["engine_start_seconds"] = round(time.perf_counter() - began, 1)
            found["kv_cache_tokens"] = (llm.llm_engine.vllm_config.cache_config.num_gpu_blocks or 0) * (
                llm.llm_engine.vllm_config.cache_config.block_size
            )
            how = (task_file, path, num_prompts, max_tokens, folder / "run", model not in SHAPES)
            if "sample" in chosen:
                found["sample"] = part_sample(llm, repeats, *how)
            if "pipeline" in chosen:
                if "sample" not in chosen:  # warm up
                    sample(llm, task_file, path, min(num_prompts, 500), *how[3:])
                found["pipeline"] = part_pipeline(llm, path, calls, repeats, *how)
            del llm
            gc.collect()
        if "prefix" in chosen:
            found["prefix"] = part_prefix(path, prefix_prompts, 32, repeats)
        found["engine_in_own_process"] = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0"
    print(json.dumps(found, indent=1))
    apart = "-own-process" if found["engine_in_own_process"] else ""
    # A record without the first part does not take the place of the one with it
    apart += "" if "sample" in chosen else f"-{'-'.join(chosen)}"
    out = Path(__file__).parent / "results" / f"generation-{model.strip('/').replace('/', '-')}{apart}.json"
    out.write_text(json.dumps(found | git_state() | {"machine": machine(), "versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    app()
