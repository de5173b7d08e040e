"""A process under watch: memory of its whole tree, completions that are finished, and its end after so many of them."""

import contextlib
import math
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil


def memory(pids: list[int]) -> int:
    """Resident bytes of these processes and of all that they have started."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(pid)
            for process in [first, *first.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
    return total


def watch(
    process: subprocess.Popen,
    server: subprocess.Popen | None,
    finished: Callable[[], int],
    kill_at: int | None = None,
    limit: float = math.inf,
) -> tuple[float, int, list[tuple[float, int]]]:
    """Seconds until it ends or is killed (after `limit` at the latest), peak memory, completions counted at each look."""
    began, peak, counts = time.perf_counter(), 0, []
    pids = [process.pid, *([server.pid] if server else [])]
    while process.poll() is None:
        peak = max(peak, memory(pids))
        counts.append((time.perf_counter() - began, finished()))
        if (kill_at is not None and counts[-1][1] >= kill_at) or counts[-1][0] > limit:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    seconds = time.perf_counter() - began
    with contextlib.suppress(ProcessLookupError):  # what it has left behind goes too
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return seconds, peak, counts


def counter(port: int | None, path: Path) -> Callable[[], int]:
    """How many completions have been finished since now: by the count of the server at a port, or the bytes in a file."""

    def by_server() -> int:
        with contextlib.suppress(OSError):
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            found = re.findall(
                r'^vllm:request_success_total\{.*finished_reason="(?:stop|length)".*\} ([\d.e+]+)$', text, re.M
            )
            last[0] = int(sum(map(float, found)))
        return last[0]

    def by_file() -> int:
        return path.stat().st_size if path.exists() else 0

    last, count = [0], by_server if port else by_file
    start = count()
    return lambda: count() - start
