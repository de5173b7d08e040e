"""Several engines of vLLM in one stage, each a process with its own GPUs or cores: --data-parallel-size.

engines = Engines(4, model, 1024, StopSignals(), tensor_parallel_size=1)          from here on as gold.engine.Engine
"""

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace
from typing import Any, NamedTuple

from gold.command import fail
from gold.engine import Engine, Output, Request, Seen
from gold.stopping import StopSignals

UNDER_WAY = 1024  # requests that one engine has at a time; the others wait here for the engine that is free first
MAX_PLACES = 100_000  # that are remembered


class Worker(NamedTuple):
    process: Any
    connection: Connection
    held: set[str]  # ids of the requests that it has


class Engines(Engine):
    """As Engine. A request goes to the engine that has least to do; what has the `place` of an earlier one, to that one's."""

    def __init__(self, count: int, model: str, max_model_len: int, signals: StopSignals, **how: Any):
        self.model, self.signals, self.max_model_len, self.tokens = model, signals, max_model_len, Counter()
        self.sent: set[str] = set()
        self.done: dict[str, Output] = {}
        self.seen: Seen = None
        self.waiting: deque[Request] = deque()
        self.places: dict[Any, int] = {}  # place: engine
        self.workers: list[Worker] = []
        atexit.register(self.close)  # before multiprocessing waits for its processes
        spawn = multiprocessing.get_context("spawn")
        with signals.blocked():
            for share in shares_of_machine(count, how["tensor_parallel_size"]):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=work, args=(theirs, share, model, max_model_len, how))
                process.start()
                theirs.close()
                self.workers.append(Worker(process, ours, set()))
        self.cache_tokens = min(self.receive(worker) for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.connection.close()
        deadline = time.monotonic() + 5
        for worker in self.workers:
            worker.process.join(max(0, deadline - time.monotonic()))
            worker.process.kill()  # one that is still starting

    def receive(self, worker: Worker) -> Any:
        """Its next message. Ends the stage (exit 1) where there will be none."""
        try:
            kind, message = worker.connection.recv()
        except (EOFError, OSError):
            kind, message = "ended", None
        if kind == "fine":
            return message
        self.signals.stop_if_any()
        if kind == "failed":
            raise SystemExit(message)
        worker.process.join(5)
        rank, found = self.workers.index(worker), f"has ended (exit code {worker.process.exitcode})"
        fail(f"--data-parallel-size: engine {rank} {found}; what is saved stays: run again to resume")

    def send(self, requests: Sequence[Request]) -> None:
        self.sent |= {request.id for request in requests}
        self.waiting += requests
        self.share_out()

    def share_out(self) -> None:
        """Give the engines what waits, until each has UNDER_WAY."""
        given: list[list[Request]] = [[] for _ in self.workers]
        while self.waiting:
            request = self.waiting[0]
            rank = self.places.get(request.place)
            if rank is None:
                rank = min(range(len(self.workers)), key=lambda rank: len(self.workers[rank].held))
                if len(self.workers[rank].held) >= UNDER_WAY:
                    break
            if request.place is not None:
                if len(self.places) >= MAX_PLACES:
                    self.places.clear()
                self.places[request.place] = rank
            self.workers[rank].held.add(request.id)
            given[rank].append(self.waiting.popleft())
        for worker, requests in zip(self.workers, given, strict=True):
            if requests:
                self.tell(worker, requests)

    def tell(self, worker: Worker, message: Any) -> None:
        try:
            worker.connection.send(message)
        except OSError:  # it is gone: says so
            self.receive(worker)

    def step(self) -> list[str]:
        finished = []
        for ready in wait([worker.connection for worker in self.workers]):
            worker = next(one for one in self.workers if one.connection is ready)
            outputs = self.receive(worker)
            worker.held.difference_update(outputs)
            self.finish(outputs)  # at once: another engine may be gone
            finished += outputs
        self.share_out()
        return finished

    def begin_split(self, seen: Seen = None) -> None:
        self.seen = seen
        for worker in self.workers:
            self.tell(worker, "begin_split")

    def held_tokens(self) -> int:
        return self.cache_tokens


class Deaf(StopSignals):
    """The stage heeds the signals; its engines end with it."""

    def __init__(self) -> None:
        self.noted = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def shares_of_machine(count: int, gpus: int) -> list[dict | list[int]]:
    """What each engine gets: environment variables that name its GPUs, or its cores. Ends the stage without enough GPUs."""
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        visible = visible if visible != [""] else [str(n) for n in range(torch.cuda.device_count())]
        if len(visible) < count * gpus:
            fail(f"--data-parallel-size {count}: needs {count * gpus} GPUs, {len(visible)} are there; lower it")
        return [{"CUDA_VISIBLE_DEVICES": ",".join(visible[i * gpus : (i + 1) * gpus])} for i in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    first = [len(cores) * i // count for i in range(count + 1)]  # neighbours share a cache, and a socket
    return [cores[a:b] or [cores[a]] for a, b in pairwise(first)]


def work(connection: Connection, share: dict | list[int], model: str, max_model_len: int, how: dict) -> None:
    """The process of one engine: requests in, dicts of finished outputs out, until the stage is gone."""
    signals = Deaf()
    if isinstance(share, dict):  # before torch is imported
        os.environ.update(share)
    else:
        os.sched_setaffinity(0, share)
        os.environ["OMP_NUM_THREADS"] = str(min(len(share), int(os.environ.get("OMP_NUM_THREADS") or len(share))))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # this is the engine's own process
    try:
        engine = Engine(model, max_model_len, signals, **how)
        connection.send(("fine", engine.held_tokens()))
        serve(engine, connection)
    except OSError:  # the stage is gone
        pass
    except SystemExit as error:
        with contextlib.suppress(OSError):
            connection.send(("failed", error.code))


def serve(engine: Engine, connection: Connection) -> None:
    inbox: queue.Queue = queue.Queue()
    # In a thread: if neither side read while it writes, both would wait for ever once the pipe is full
    threading.Thread(target=read_all, args=(connection, inbox), daemon=True).start()
    while True:
        while not engine.sent or not inbox.empty():
            if (message := inbox.get()) is None:
                return
            if message == "begin_split":
                engine.begin_split()
            else:
                engine.send(message)
        if finished := engine.step():
            connection.send(("fine", {one: plain(engine.take(one)) for one in finished}))


def read_all(connection: Connection, inbox: queue.Queue) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        pass
    finally:
        inbox.put(None)


def plain(output: Output) -> Output:
    """Without vLLM's own classes: the stage, which has no engine, would import vLLM for them."""
    ones = [
        SimpleNamespace(text=one.text, finish_reason=one.finish_reason, logprobs=one.logprobs and [
            {token: SimpleNamespace(logprob=found.logprob) for token, found in position.items()} for position in one.logprobs
        ]) for one in output.outputs
    ]  # fmt: skip
    return Output(ones, output.tokens)
