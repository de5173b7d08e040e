"""What --structured gives and costs: the same prompts and seeds, free and forced into shape, in one process.

    python -m bench.structured --model data/reviews/models/teacher                    # the embedded teacher
    python -m bench.structured --task-file prompts/word_problems.toml --model data/word_problems/models/teacher

Prints, by temperature, the yield (share of the completions that parse) of both ways, why the others were rejected, and the
ratio of wall times of LLM.generate, structured / free: median and range over the repeats, the order of the two changing.
Writes the same to bench/results/structured-<task>.json.
"""

import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from gold.attempts import Pools, draw_attempt
from gold.engine import start_llm
from gold.examples import read_examples
from gold.parsing import parse_completion
from gold.prompts import render_prompt, structured_pattern
from gold.runs import git_state, versions
from gold.task import load_task
from gold.teacher import load_encoder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Teacher.")],
    task_file: Annotated[Path, typer.Option(help="Task.")] = Path("prompts/reviews.toml"),
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts a repeat.")] = 500,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats, each with prompts of its own.")] = 5,
    temperature: Annotated[list[float], typer.Option(help="Repeat for several.")] = (1.0, 1.5),
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 128,
) -> None:
    """Compare free and structured completions."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    task = load_task(task_file)
    pools, how = Pools(read_examples(task.seed_examples, task)), {"seed": 0, "num_fewshot": 3}
    encoder = load_encoder(model, task, "auto", {}, False)
    llm = start_llm(model, min(1024, encoder.context or 1024))
    results = []
    for degree in temperature:
        ratios, yields, reasons = [], {False: [], True: []}, {False: Counter(), True: Counter()}
        for repeat in range(-1, repeats):  # the first one warms up: the form is compiled, the caches fill
            first = max(repeat, 0) * num_prompts
            attempts = [draw_attempt(task, 0, "train", a, pools, how) for a in range(first, first + num_prompts)]
            prompts = encoder.encode([render_prompt(task, "train", a.shots, a.label) for a in attempts])
            seconds = {}
            for structured in (False, True) if repeat % 2 else (True, False):
                params = [
                    SamplingParams(
                        temperature=degree, max_tokens=max_tokens, stop=task.parse.stop, seed=a.sampling_seed,
                        structured_outputs=StructuredOutputsParams(regex=structured_pattern(task, a.label))
                        if structured else None,
                    )
                    for a in attempts
                ]  # fmt: skip
                llm.reset_prefix_cache()
                began = time.perf_counter()
                outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
                seconds[structured] = time.perf_counter() - began
                found = Counter(
                    "truncated"
                    if o.outputs[0].finish_reason == "length"
                    else parse_completion(task, o.outputs[0].text, a.label)[1]
                    for o, a in zip(outputs, attempts, strict=True)
                )
                if repeat >= 0:
                    yields[structured].append(found.pop(None, 0) / num_prompts)
                    reasons[structured] += found
            if repeat >= 0:
                ratios.append(seconds[True] / seconds[False])
        row = {
            "temperature": degree,
            "prompts": num_prompts,
            "repeats": repeats,
            "time_ratio": statistics.median(ratios),
        }
        row |= {"time_ratio_range": [min(ratios), max(ratios)]}
        for name, structured in (("free", False), ("structured", True)):
            row |= {
                f"{name}_yield": statistics.median(yields[structured]),
                f"{name}_yield_range": [min(yields[structured]), max(yields[structured])],
            }
            row |= {f"{name}_rejected": dict(reasons[structured])}
        results.append(row)
        print(
            f"temperature {degree}: yield free {row['free_yield']:.3f}, structured {row['structured_yield']:.3f}; time "
            f"structured / free {row['time_ratio']:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]; rejected free "
            f"{row['free_rejected']}, structured {row['structured_rejected']}"
        )
    record = {"model": model, "task": task.name, "results": results, **git_state(), "versions": versions()}
    path = Path(__file__).parent / "results" / f"structured-{task.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    app()
