"""Several engines of vLLM in one stage, each a process with its own GPUs or cores: --data-parallel-size.

engines = Engines(4, model, 1024, StopSignals(), tensor_parallel_size=1)          from here on as gold.engine.Engine
"""

import atexit
import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from gold.command import fail
from gold.engine import Engine, Request
from gold.stopping import StopSignals

UNDER_WAY = 1024  # requests that one engine has at a time; the others wait here for the engine that is free first


class Worker(NamedTuple):
    process: Any
    connection: Connection
    held: set[str]  # ids of the requests that it has


class Engines(Engine):
    """As Engine. A request goes to the engine that has least to do, or always to the same one by its `place`."""

    def __init__(self, count: int, model: str, max_model_len: int, signals: StopSignals, **how: Any):
        self.model, self.signals, self.max_model_len, self.tokens = model, signals, max_model_len, Counter()
        self.sent: set[str] = set()
        self.done: dict[str, Any] = {}
        self.waiting: deque[Request] = deque()
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
        self.held = min(self.receive(worker) for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.connection.close()

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
            place = self.waiting[0].place
            free = min(range(len(self.workers)), key=lambda rank: len(self.workers[rank].held))
            rank = free if place is None else place % len(self.workers)
            if place is None and len(self.workers[rank].held) >= UNDER_WAY:
                break
            given[rank].append(self.waiting.popleft())
            self.workers[rank].held.add(given[rank][-1].id)
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
            self.done |= outputs
            finished += outputs
        self.share_out()
        return finished

    def begin_split(self) -> None:
        for worker in self.workers:
            self.tell(worker, "begin_split")

    def held_tokens(self) -> int:
        return self.held


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
    return [cores[i::count] or [cores[i % len(cores)]] for i in range(count)]


def work(connection: Connection, share: dict | list[int], model: str, max_model_len: int, how: dict) -> None:
    """The process of one engine: requests in, dicts of finished outputs out, until the stage is gone."""
    signals = Deaf()
    if isinstance(share, dict):  # before torch is imported
        os.environ.update(share)
    else:
        os.sched_setaffinity(0, share)
        os.environ["OMP_NUM_THREADS"] = str(len(share))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # this is the engine's own process
    try:
        engine = Engine(model, max_model_len, signals, **how)
        connection.send(("fine", engine.held_tokens()))
        serve(engine, connection)
    except SystemExit as error:
        connection.send(("failed", error.code))
    except (EOFError, OSError):
        pass


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
            connection.send(("fine", {one: engine.take(one) for one in finished}))


def read_all(connection: Connection, inbox: queue.Queue) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        inbox.put(None)
