"""How every stage behaves on a command line: its options' panels, its messages, the way in which it ends.

Bad data, a full disk and a full GPU end a stage with one line on stderr and exit code 1, a bad option with exit code 2.
A fault of our own shows its traceback. Only typer is imported here, so that `--help` is quick.
"""

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

SAME_ERROR = 20  # seconds
FREE, RIGHTS = "free some space and run again", "choose another folder or change its rights, and run again"
DISK = {  # what is wrong with the disk, or with what we may do on it -> the cure
    errno.ENOSPC: FREE, errno.EDQUOT: FREE, errno.EFBIG: "raise the limit of a file's size (ulimit -f) and run again",
    errno.EROFS: RIGHTS, errno.EACCES: RIGHTS, errno.EPERM: RIGHTS, errno.EIO: "check the disk and run again",
}  # fmt: skip

files = partial(typer.Option, rich_help_panel="Files")
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Limit = Annotated[int | None, typer.Option(min=1, help="Try out: the first so many examples.")]
DryRun = Annotated[bool, typer.Option(help="Say what would be done; load no model.")]
Overwrite = Annotated[bool, typer.Option(help="Make the output anew.")]
TaskFile = Annotated[Path, files(help="Task, as prompts/<task>.toml.")]


def new_app() -> typer.Typer:
    """A Typer app without completion and boxes; `--num_examples` works as `--num-examples` does."""
    dashes = {"token_normalize_func": lambda name: name.replace("_", "-")}
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=dashes)


def option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def is_main_process() -> bool:
    """False in all but the first of torchrun's processes: they neither speak nor write."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """A message for people, on stderr: stdout is for data."""
    if is_main_process():
        print(message, file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """End the stage with one line on stderr and exit code 1: file, line or option; what was found; the cure."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], message.strip())
    raise SystemExit(f"error: {line}")


def interrupted(number: int, frame: Any) -> None:
    """Ctrl-C: one line, and the process dies of the signal, so that a loop of the shell around the stage ends too.

    No KeyboardInterrupt: libraries catch it, or clean up for long.
    """
    started = sys.modules.get("multiprocessing.process")  # no import in here: one may be under way
    for child in getattr(started, "active_children", list)():  # an engine's own processes
        child.kill()
    # Not print, which may be at work; nor 2: torchrun's other processes have a stderr that nobody reads
    os.write(sys.stderr.fileno(), b"\ninterrupted; run it again to go on: what is saved stays\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def run_command(app: Callable[[], Any]) -> None:
    """Run a stage. Full disks, full GPUs and Ctrl-C end it with one line; what nobody foresaw shows its traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the caller has it ignored
        signal.signal(signal.SIGINT, interrupted)
    if not is_main_process():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        app()
    except SystemExit as end:
        if end.code and not is_main_process():  # mostly the error of the first one, which says it and ends all
            time.sleep(SAME_ERROR)
            sys.stderr = sys.__stderr__
        raise
    except Exception as error:
        bars = sys.modules["tqdm"].tqdm._instances if "tqdm" in sys.modules else ()
        for bar in list(bars):  # what an open one has drawn would stand in the same line
            bar.close()
        sys.stderr = sys.stderr if is_main_process() else sys.__stderr__
        if problem := machine_problem(error):
            fail(problem)
        raise


def machine_problem(error: BaseException | None) -> str | None:
    """The line for an error that the disk or the GPU caused, anywhere in the chain of causes; None where none did."""
    name, problem = "a file", None
    while error:
        if type(error).__name__ == "OutOfMemoryError":
            return "out of GPU memory: halve --per-device-train-batch-size or --per-device-eval-batch-size"
        code, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
        if rust := re.search(r"([^:]+) \(os error (\d+)\)", str(error)):  # of safetensors and tokenizers
            code, reason = int(rust[2]), rust[1].strip()
        elif "inline_container" in str(error):  # torch.save keeps the reason to itself
            code, reason = errno.ENOSPC, "torch could not write all of it"
        name = getattr(error, "filename", None) or name
        if code in DISK:
            problem = f"{reason}; {DISK[code]}: what was written stays"
        error = error.__cause__ or error.__context__
    return problem and f"{name}: {problem}"
