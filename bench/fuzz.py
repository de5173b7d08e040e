"""Run each command on mutated inputs and count tracebacks: bad data ends a stage with one line, whatever it looks like.

    python -m data.build_models reviews teacher t5 bert llama && python -m data.build_models word_problems t5
    python -m bench.fuzz                                   # 1,000 inputs a command
    python -m bench.fuzz --num-inputs 50 --command evaluate.py --seed 7
    python -m bench.fuzz --only score_ood.py/123           # one of them again, with all it prints

Each input is a small valid set of files of which one is mutated: bytes, JSON values, lines, TOML values, template variables,
shards, run records and states of generate.py's work, a model's config. The commands are the real ones, called in this
process with models that are there already (one vLLM engine serves all of generate.py). What counts as a defect: an
exception other than an exit, exit code 1 without one line that begins with `error:`, or more than --time-limit seconds.
"""

import contextlib
import importlib
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer
from tqdm import tqdm

from data import reviews_grammar, word_problems_grammar
from gold.command import run_command

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "data" / "reviews" / "models"
GRAMMARS = {"reviews": reviews_grammar, "word_problems": word_problems_grammar}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

# ---------------------------------------------------------------------------------------------------------------------
# Mutations: text -> text, by a random generator

ODD = [
    None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", " ", "\n", "$x", "$", "\ud800", "\u0000", "é" * 3,
    "x" * 5000,
    [], {}, [1], {"a": 1}, "positive", "POSITIVE ", "reviews-00-train-000001", "</s>", "<pad>",
]  # fmt: skip


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four cuts, flips, repetitions or insertions anywhere."""
    odd = [b"\n", b"\0", b'"', b"{", b"\xef\xbb\xbf", b"[" * 3000]
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + 200)
        piece = rng.choice([b"", data[a:b] * 2, bytes([rng.randrange(256)]), *odd])
        data = data[:a] + piece + data[b if rng.random() < 0.5 else a :]
    return data


def mutate_value(rng: random.Random, value: Any) -> Any:
    """Another value somewhere in it, a key renamed, or a key gone."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.25:
            return {(k + rng.choice("x $") if k == key else k): v for k, v in value.items()}
        return value | {key: mutate_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], mutate_value(rng, value[place]), *value[place + rng.randint(0, 1) :]]
    return rng.choice(ODD)


def mutate_json(rng: random.Random, text: str) -> str:
    """One JSON document, or one line of JSON Lines: a value changed."""
    lines = text.splitlines()
    try:
        return json.dumps(mutate_value(rng, json.loads(text)))
    except ValueError:
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(mutate_value(rng, json.loads(lines[place])))
        return "\n".join(lines) + "\n"


def mutate_lines(rng: random.Random, text: str) -> str:
    """Lines gone, doubled, moved or cut."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.randint(1, 3)):
        if not lines:
            break
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        how = rng.randrange(4)
        if how == 0:
            lines.pop(a)
        elif how == 1:
            lines.insert(b, lines[a])
        elif how == 2:
            lines[a], lines[b] = lines[b], lines[a]
        else:
            lines[a] = lines[a][: rng.randrange(len(lines[a]) + 1)]
    return "".join(lines)


def mutate_toml(rng: random.Random, text: str) -> str:
    """A value replaced, or a template variable."""
    lines = text.splitlines(keepends=True)
    how = rng.random()
    if how < 0.4:
        values = """3|-1|[]|{}|""|"$x"|'''|true|["a"]|{review = "x"}|1979-05-27|nan|"\\u0000" """.strip().split("|")
        places = [i for i, line in enumerate(lines) if " = " in line]
        place = rng.choice(places)
        lines[place] = lines[place].split(" = ")[0] + " = " + rng.choice(values) + "\n"
    elif how < 0.8:
        variables = ["$review", "$label", "$shots", "$start", "$labels", "$definition"]
        return text.replace(
            rng.choice(variables), rng.choice([*variables, "$", "$$", "${", "$nothing", ""]), rng.choice([1, -1])
        )
    else:
        return mutate_lines(rng, text)
    return "".join(lines)


def mutate(rng: random.Random, path: Path) -> None:
    """Mutate a file in place."""
    data = path.read_bytes()
    lines = [mutate_json, mutate_json, mutate_lines]
    ways = {".toml": [mutate_toml], ".jsonl": lines, ".partial": lines, ".journal": lines, ".json": [mutate_json]}
    way = rng.choice([*ways.get(path.suffix, []), None]) if data.strip() else None
    try:
        mutated = way(rng, data.decode()).encode("utf-8", "surrogatepass") if way else mutate_bytes(rng, data)
    except (ValueError, RecursionError):  # mutated before, and no JSON any more
        mutated = mutate_bytes(rng, data)
    path.write_bytes(mutated)


# ---------------------------------------------------------------------------------------------------------------------
# Cases: files, one of them mutated, and the command


def make_home(home: Path) -> None:
    """The valid files that every case starts from, with a finished and an unfinished run of generate.py and a student."""
    home.mkdir()
    shutil.copytree(ROOT / "prompts", home / "prompts")
    rng = random.Random(0)
    for task, grammar in GRAMMARS.items():
        (home / "data" / task).mkdir(parents=True)
        shutil.copy(ROOT / f"data/{task}/seed_examples.jsonl", home / "data" / task)
        for name, number in (("train", 12), ("validation", 24), ("test", 12), ("scored", 24)):
            rows = []
            for i in range(number):
                row = grammar.make_example(rng, rng.choice(list(grammar.WEIGHTS)))
                answer = list(row)[-1]
                if task == "reviews":  # ten and more of each label
                    row[answer] = ("positive", "negative")[i % 2]
                row = {"id": f"{name}-{i}", **row, "group": "ab"[i % 3 > 0], "prediction": row[answer]}
                scores = {"energy": rng.gauss(0, 1), "correct": True, "teacher_label": row[answer]}
                rows.append(row | (scores if name == "scored" else {}))
            for part in range(2) if name in ("scored", "train") else [None]:  # these two as shards
                suffix = "" if part is None else f"-0000{part}-of-00002"
                lines = "".join(json.dumps(row) + "\n" for row in (rows if part is None else rows[part::2]))
                (home / "data" / task / f"{name}{suffix}.jsonl").write_text(lines)
        for name in ("t5", "bert", "llama"):
            if (ROOT / f"data/{task}/models" / name).exists():
                shutil.copytree(ROOT / f"data/{task}/models" / name, home / "data" / task / name)


def case(script: str, rng: random.Random, home: Path) -> tuple[list[Path], list[str]]:
    """(files of which one is to be mutated, arguments of the command)."""
    name = "reviews"
    if script != "generate.py" and (home / "data/word_problems/t5").exists():
        name = rng.choice(["reviews", "reviews", "word_problems"])
    task, data = home / f"prompts/{name}.toml", home / "data" / name
    common = ["--task-file", str(task)]
    student = rng.choice(sorted(p for p in data.iterdir() if p.is_dir()))
    shards = [data / f"train-0000{part}-of-00002.jsonl" for part in range(2)]
    test, validation = data / "test.jsonl", data / "validation.jsonl"
    if script == "generate.py":
        files = [task, task, *[data / "seed_examples.jsonl"] * 2, validation, *shards]
        out = home / rng.choice(["done", "cut", "iter-01"])
        if out.exists():
            files = [p for p in out.iterdir() if p.is_file()]
        args = [*common, "--model", str(MODELS / "teacher"), "--output-dir", str(out), "--num-examples", "8"]
        args += ["--num-validation", "4", "--max-tokens", "40", "--max-attempts", "24"]
        if out.name == "iter-01":
            args += ["--feedback-file", str(validation), "--exclude-file", str(data / "train-*-of-00002.jsonl")]
            args += ["--structured"] * rng.randint(0, 1) + ["--shard", "0/2"] * rng.randint(0, 1)
            args += rng.choice([[], ["--verify"], ["--feedback-label", "same"]])
        return files, args
    if script == "train_student.py":
        files = [task, *shards, *shards, student / "config.json", student / "tokenizer_config.json"]
        args = ["--model", str(student), "--train-file", str(data / "train-*.jsonl"), "--output-dir", str(home / "out")]
        return files, [*common, *args, "--num-train-epochs", "1", "--loss", rng.choice(["ce", "sce"])]
    if script == "score_ood.py":
        args = ["--feedback-file", str(home / "f.jsonl")]
        if rng.random() < 0.3:  # select by scores that are there
            args += ["--input-file", str(data / "scored-*-of-00002.jsonl")]
            args += rng.choice([[], ["--confirmed"], ["--max-overlap", "0.5"], ["--group-size", "8"]])
            return [task, *data.glob("scored-*")], [*common, *args]
        args += ["--output-file", str(home / "s.jsonl"), "--model", str(student), "--input-file", str(validation)]
        score = rng.choice(["energy", "nll", "msp", "error", "energy_delta", "embedding"])
        needs = {
            "energy_delta": ["--base-model", str(student)],
            "embedding": ["--train-file", str(data / "train-*.jsonl")],
        }
        files = [task, validation, validation, student / "config.json", *(shards if score == "embedding" else [])]
        return files, [*common, *args, "--score", score, *needs.get(score, [])]
    if script == "evaluate.py":
        args = rng.choice([["--model", str(student)], ["--prediction-field", "prediction"]])
        args += ["--test-file", str(test), "--output-dir", str(home / "out"), "--num-resamples", "100"]
        return [task, test, test, student / "config.json"], [*common, *args, "--group-by", "group"]
    run = home / "run"
    return [p for p in run.rglob("*") if p.is_file()], [str(run)]


def execute(script: str, args: list[str], seconds: int) -> tuple[str, str]:
    """(what became of it, what it said): done | refused | bad option | up to date | stopped
    | or a defect in capitals."""
    out, err = io.StringIO(), io.StringIO()

    def too_long(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    became = "done"
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", [str(ROOT / script), *args]),
        ):
            command = importlib.import_module(script.removesuffix(".py")).app
            run_command(lambda: command(args))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=err)
            lines = [line for line in end.code.splitlines() if line.strip()]
            became = "refused" if lines[0].startswith("error: ") and len(lines) == 1 else "MESSAGE"
        elif end.code:
            became = {2: "bad option"}.get(end.code, "EXIT CODE")
        elif "up to date" in err.getvalue():
            became = "up to date"
    except BaseException:  # a traceback, for the user
        traceback.print_exc(file=err)
        became = "TRACEBACK"
    finally:
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return became, out.getvalue() + err.getvalue()


def forget(engine: Any) -> Any:
    """The engine, without the requests of the case before."""
    engine.llm.llm_engine.abort_request(list(engine.sent))
    engine.sent.clear(), engine.done.clear()
    return engine


def prepare(home: Path, scripts: list[str]) -> Any:
    """Files of runs that later cases mutate, made by the commands themselves; a patch that shares one engine."""
    make_home(home)
    patches = contextlib.ExitStack()
    if "generate.py" in scripts:
        import generate
        import gold.teacher

        engine = gold.teacher.Engine(str(MODELS / "teacher"), 1024, generate.StopSignals())
        patches.enter_context(mock.patch.object(gold.teacher, "Engine", lambda *a, **k: forget(engine)))
        _, args = case("generate.py", random.Random(0), home)
        args[args.index("--output-dir") + 1] = str(home / "done")
        base = args[: args.index("--max-attempts") + 2]
        assert execute("generate.py", base, 300)[0] == "done"
        base[base.index("--output-dir") + 1] = str(home / "cut")
        append = generate.append_records

        def cut_off(path: Path, records: list) -> None:  # as a kill in the second chunk leaves it
            if path.stat().st_size:
                raise KeyboardInterrupt
            append(path, records)

        with mock.patch.object(generate, "append_records", cut_off), mock.patch.object(generate, "CHUNK", 4):
            execute("generate.py", base, 300)
    if "report.py" in scripts:
        data = home / "data/reviews"
        how = ["--task-file", str(home / "prompts/reviews.toml"), "--model", str(data / "t5")]
        (home / "run/iter-00").mkdir(parents=True)
        shutil.copy(data / "test.jsonl", home / "run/iter-00/train.jsonl")
        out = home / "run/iter-00"
        test = ["--test-file", str(data / "test.jsonl"), "--output-dir", str(out), "--num-resamples", "100"]
        score = ["--input-file", str(data / "validation.jsonl"), "--output-file", str(out / "scored.jsonl")]
        assert execute("evaluate.py", [*how, *test], 300)[0] == "done"
        assert execute("score_ood.py", [*how, *score], 300)[0] == "done"
        if (home / "done").exists():
            shutil.copy(home / "done/train.jsonl.run.json", home / "run/iter-00")
    return patches


@app.command()
def main(
    num_inputs: Annotated[int, typer.Option(min=1, help="Mutated inputs a command.")] = 1000,
    command: Annotated[list[str] | None, typer.Option(help="Only these scripts; repeat for several.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the mutations.")] = 0,
    only: Annotated[
        str | None, typer.Option(metavar="SCRIPT/NUMBER", help="One case again, with all it prints.")
    ] = None,
    time_limit: Annotated[int, typer.Option(min=1, help="Seconds a case may take.")] = 60,
) -> None:
    """Count what became of mutated inputs; exit code 1 when there was a defect."""
    scripts = command or ["generate.py", "train_student.py", "score_ood.py", "evaluate.py", "report.py"]
    if only:
        scripts = [only.split("/")[0]]
    defects, began = 0, time.time()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "clean"
        with prepare(home, scripts):
            for script in scripts:
                became: Counter[str] = Counter()
                numbers = [int(only.split("/")[1])] if only else range(num_inputs)
                for number in tqdm(numbers, desc=script, unit="input", mininterval=5):
                    rng = random.Random(f"{seed}/{script}/{number}")
                    work = Path(folder) / "case"
                    shutil.copytree(home, work)
                    files, args = case(script, rng, work)
                    target = rng.choice(sorted(files))
                    mutate(rng, target)
                    result, said = execute(script, args, time_limit)
                    became[result] += 1
                    if result.isupper() or only:
                        tqdm.write(
                            f"{result}: {script}/{number}, {target.relative_to(work)}\n{said[-3000:]}", file=sys.stderr
                        )
                    shutil.rmtree(work)
                bad = sum(n for name, n in became.items() if name.isupper())
                defects += bad
                counts = ", ".join(f"{n:,} {name}" for name, n in became.most_common())
                print(f"{script}: {sum(became.values()):,} inputs (seed {seed}): {counts}; defects: {bad}", flush=True)
    print(f"defects in all: {defects}, {time.time() - began:.0f} s")
    raise typer.Exit(1 if defects else 0)


if __name__ == "__main__":
    app()
