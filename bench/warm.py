"""One process for the stages of many loops: imports and the teacher's engine are paid once. bench/warm_python is its client.

It runs each stage's own file, as Python would, with the command line that loop.sh gives. Its standard output and error are
the client's. For measurements alone: a stage that a signal should stop must not be run here.
"""

import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

import gold.engine
from gold.engine import start_llm


def keep_engines(max_model_len: int) -> None:
    """From here on a stage's teacher is started once; only the newest is kept."""
    kept: dict[str, object] = {}

    def start(model: str, *_: object, **how: object) -> object:
        if model not in kept:
            kept.clear()
            kept[model] = start_llm(model, max_model_len, **how)
        return kept[model]

    gold.engine.start_llm = start


def run_stage(argv: list[str]) -> int:
    """Run a stage's file as __main__; its exit code."""
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve(place: Path, max_model_len: int = 1024) -> None:
    """Run what clients ask for, one after the other, until the process is killed."""
    keep_engines(max_model_len)
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place))
        door.listen()
        own = [os.dup(fd) for fd in (1, 2)]
        while True:
            client, _ = door.accept()
            with client:
                message, given, *_ = socket.recv_fds(client, 1 << 20, 2)
                call = json.loads(message)
                os.environ["STRATEGY"] = call["strategy"]
                for fd, standard in zip(given, (1, 2), strict=True):
                    os.dup2(fd, standard)
                    os.close(fd)
                code = run_stage(call["argv"])
                sys.stdout.flush()
                sys.stderr.flush()
                for fd, standard in zip(own, (1, 2), strict=True):
                    os.dup2(fd, standard)
                client.sendall(str(code).encode())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
