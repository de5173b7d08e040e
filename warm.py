"""Start stages quickly: one process imports torch, transformers and vLLM, and every stage is a fork of it.

    python warm.py serve /tmp/place/socket &                                    until the process that started it has ended
    python -I warm.py run /tmp/place/socket python generate.py sample ...       as `python generate.py sample ...`

loop.sh does so for the embedded models, whose stages would import for longer than they work. What runs is the same script
with the same arguments, environment, folder and streams; signals and the exit code are passed on. Environment variables
that a library reads while it is imported (OMP_NUM_THREADS) must be those of the server. Only the standard library is
imported at the top: the second command takes 0.03 s.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)


def run(path: str, argv: list[str]) -> int:
    """Have the server at `path` run argv = [python, script or -m module, arguments ...]; returns its exit code."""
    server = socket.socket(socket.AF_UNIX)
    for attempt in range(200):
        try:
            server.connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):  # it has not begun to listen yet
            if attempt == 199:
                sys.exit(f"error: {path}: no server of warm.py listens there; start it, or run the stage without it")
            time.sleep(0.05)
    socket.send_fds(server, [b"\0"], [0, 1, 2])
    server.sendall(json.dumps([argv[1:], str(Path.cwd()), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    told = server.makefile("r")
    pid = int(told.readline() or 0)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the stage has it too
    return int(told.readline() or 1)


def serve(path: str) -> None:
    """Listen at `path` until the parent process is gone; a stage at work then is not waited for."""
    parent, listener = os.getppid(), socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.settimeout(0.3)
    defaults = {number: signal.getsignal(number) for number in (*PASSED_ON, signal.SIGINT, signal.SIGCHLD)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload("torch", "transformers.trainer", "transformers.trainer_seq2seq", "sklearn.feature_extraction.text")
    complete = False
    while os.getppid() == parent:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers below
        try:
            connection = listener.accept()[0]
        except TimeoutError:
            continue
        fds = socket.recv_fds(connection, 1, 3)[1]
        argv, folder, environment = json.load(connection.makefile("r"))
        if os.fork():
            connection.close()
            for fd in fds:
                os.close(fd)
            if not complete:  # while the first stage works
                preload("torchmetrics", "vllm", "vllm.entrypoints.llm", "vllm.v1.engine.llm_engine")
                complete = True
            continue
        # The keeper: starts the stage, waits for it, tells its exit code
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        if pid := os.fork():
            for fd in (0, 1, 2, *fds):
                os.close(fd)
            connection.sendall(f"{pid}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            connection.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
            os._exit(0)
        # The stage
        connection.close()
        for number, handler in defaults.items():
            signal.signal(number, handler)
        leave(stage, argv, folder, environment, fds)
    Path(path).unlink()
    Path(path).parent.rmdir()
    os._exit(0)


def preload(*names: str) -> None:
    """Import modules; what cannot be imported is left to the stage that needs it, which says so."""
    import gc
    import importlib
    import warnings

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # as generate.py
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    gc.disable()  # it would look for garbage among thousands of new modules
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.enable()
    gc.freeze()


def stage(argv: list[str], folder: str, environment: dict[str, str], fds: list[int]) -> None:
    """Be `python ARGV` in that folder, with that environment and these three streams."""
    import gc
    import io
    import runpy

    # vLLM has all that was imported looked through for garbage when it starts and ends, 2 s; Python goes on doing so by itself
    gc.collect = lambda *_, **__: 0
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        buffer = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        by_line = number == 2 or os.isatty(number)
        setattr(sys, name, io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=by_line))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if argv[0] == "-m":
        sys.argv, sys.path[0] = argv[1:], folder
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).absolute().parent)
        runpy.run_path(argv[0], run_name="__main__")


def leave(function: Callable, *args: Any) -> NoReturn:
    """Call a function and end the process as the interpreter does, less taking all modules apart, at which triton complains."""
    import atexit
    import traceback

    code: Any = 0
    try:
        function(*args)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        sys.exit(run(sys.argv[2], sys.argv[3:]))
