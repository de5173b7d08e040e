"""Ctrl-C, SIGTERM and a closed terminal, on a real terminal: loop.sh and each stage end, and leave no process behind."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from bench.kill import is_locked, living

SOON = 1.5  # seconds on an idle machine: one for a stage that does not end by itself
CTRL_C = b"\x03"
SAID = "interrupted; run it again to go on: what is saved stays"


class Terminal:
    """A terminal whose session's leader, a shell, runs one script: `"$@"` in it is the command."""

    def __init__(self, command: list[object], env: dict[str, str], script: str = 'trap : INT; "$@"; echo "status $?"'):
        self.printed = ""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            os.execvpe("bash", ["bash", "-c", script, "bash", *map(str, command)], {**os.environ, **env})
        termios.tcsetwinsize(self.fd, (24, 200))  # tqdm draws nothing on a terminal without rows

    def read(self, seconds: float) -> None:
        """What is printed within so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([self.fd], [], [], left)[0]:
            with contextlib.suppress(OSError):  # nobody writes any more
                self.printed += os.read(self.fd, 65536).decode(errors="replace")
                continue
            time.sleep(left)

    def until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 600
        while not met():
            alive = living(self.pid)
            self.read(0.1)
            assert met() or (time.monotonic() < deadline and alive), self.printed[-3000:]

    def shell(self) -> int:
        """The process of loop.sh: the only child of the session's leader."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())

    def assert_all_gone(self) -> None:
        """Soon no process of the session is left, whatever its process group."""
        deadline = time.monotonic() + SOON * max(2, os.getloadavg()[0] / os.cpu_count())  # another test works too
        while living(self.pid) and time.monotonic() < deadline:
            self.read(0.02)
        left = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in living(self.pid)]
        assert not left, self.printed[-3000:]
        self.read(0.1)

    def end(self) -> None:
        for pid in living(self.pid):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal():
    begun = []

    def begin(*args, **how) -> Terminal:
        begun.append(Terminal(*args, **how))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


# ---------------------------------------------------------------------------------------------------------------------
# loop.sh with stand-ins for the stage

STUBBORN = "#!/bin/bash\ntrap '' HUP INT TERM\necho at work\nfor ((;;)); do sleep 1; done\n"
LAST_WORDS = STUBBORN.replace("''", "'sleep 1; echo last words; exit 75'")


def stand_in(tmp_path: Path, text: str) -> tuple[list[object], dict[str, str]]:
    """loop.sh whose every stage is that script."""
    python = tmp_path / "python"
    python.write_text(text)
    python.chmod(0o755)
    (tmp_path / "test.jsonl").write_text("")
    env = {"PYTHON": str(python), "TEST_FILE": f"{tmp_path}/test.jsonl", "TEACHER": "org/a", "STUDENT": "org/b"}
    return ["bash", "loop.sh", "prompts/rte.toml", tmp_path / "run"], env


@pytest.mark.parametrize("way, status", [("ctrl-c", 130), ("INT", 130), ("HUP", 129), ("closed", None)])
def test_a_stage_that_does_not_listen_is_ended_within_a_second(way, status, terminal, tmp_path):
    """As one deep in a library's own code: no signal but the last one reaches it."""
    loop = terminal(*stand_in(tmp_path, STUBBORN))
    loop.until(lambda: "at work" in loop.printed)
    if way == "ctrl-c":
        os.write(loop.fd, CTRL_C)
    elif way == "closed":  # its window: the other side of the terminal is replaced by something that can still be read
        read, write = os.pipe()
        os.dup2(read, loop.fd)
        os.close(read), os.close(write)
    else:
        os.kill(loop.shell(), getattr(signal, f"SIG{way}"))
    loop.assert_all_gone()
    assert status is None or f"status {status}" in loop.printed, loop.printed


def test_sigterm_waits_for_the_stage_and_says_so_and_ctrl_c_ends_it(terminal, tmp_path):
    loop = terminal(*stand_in(tmp_path, STUBBORN))
    loop.until(lambda: "at work" in loop.printed)
    os.kill(loop.shell(), signal.SIGTERM)
    loop.until(lambda: "SIGTERM: waits for the stage above; Ctrl-C ends it at once" in loop.printed)
    loop.read(2)
    assert len(living(loop.pid)) > 1
    os.write(loop.fd, CTRL_C)
    loop.assert_all_gone()
    assert "status 143" in loop.printed


def test_the_last_words_of_a_stage_are_heard(terminal, tmp_path):
    """tee gets the signal too, and stays; the shell waits for both."""
    loop = terminal(*stand_in(tmp_path, LAST_WORDS))
    loop.until(lambda: "at work" in loop.printed)
    os.kill(loop.shell(), signal.SIGTERM)
    loop.until(lambda: "status 143" in loop.printed)
    assert "last words" in (tmp_path / "run/loop.log").read_text() and "last words" in loop.printed
    loop.assert_all_gone()


def test_a_stage_that_ends_by_its_own_word_ends_the_loop_and_takes_nothing_of_its_input(tmp_path):
    """`while read task; do bash loop.sh $task; done < tasks`: a stage, as srun is, would take the other lines."""
    command, env = stand_in(tmp_path, "#!/bin/sh\ncat\nexit 75\n")
    done = subprocess.run(
        ["bash", "-c", '"$@"; echo "status $?"; cat', "bash", *map(str, command)], env={**os.environ, **env}, cwd=ROOT,
        input="mine\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("status 75\nmine\n") and done.stdout.count("+ ") == 1
    assert "mine" not in (tmp_path / "run/loop.log").read_text()


def test_ctrl_c_ends_a_loop_of_the_shell_around_it_too(terminal, tmp_path):
    """`for seed in ...; do bash loop.sh ...; done`: an exit code of 130 alone would begin the next round."""
    command, env = stand_in(tmp_path, LAST_WORDS)
    loop = terminal(command, env, script='for i in 1 2; do echo "round $i"; "$@"; done')
    loop.until(lambda: "at work" in loop.printed)
    os.write(loop.fd, CTRL_C)
    loop.assert_all_gone()
    assert "round 2" not in loop.printed


# ---------------------------------------------------------------------------------------------------------------------
# One stage by hand


@pytest.fixture
def stage(home, models, request, terminal, tmp_path):
    """A stage that is at work for long, once it has its lock or has drawn its bar."""

    def start(name: str, moment: str) -> Terminal:
        data = ("--task-file", home / "pairs.toml", "--model", models["t5"])
        if name == "generate.py":
            data = ("--task-file", "prompts/reviews.toml", "--model", request.getfixturevalue("embedded") / "teacher")
            how, output = ("--num-examples", 4000, "--output-dir", tmp_path), "train.jsonl"
        else:
            how, output = ("--train-file", home / "train.jsonl", "--num-train-epochs", 900), "student"
            how += ("--output-dir", tmp_path / "student")
        ran = terminal([sys.executable, name, *data, *how], {})
        ran.until(lambda: is_locked(tmp_path / f"{output}.lock") and (moment != "at work" or "%|" in ran.printed))
        return ran

    return start


@pytest.mark.engine
@pytest.mark.parametrize(
    "name, moment",
    [("generate.py", "importing"), *((f"{name}.py", "at work") for name in ("generate", "train_student"))],
)
def test_ctrl_c_ends_a_stage_with_one_line(name, moment, stage):
    ran = stage(name, moment)
    os.write(ran.fd, CTRL_C)
    ran.assert_all_gone()
    assert "status 130" in ran.printed and ran.printed.count(SAID) == 1, ran.printed[-3000:]
    assert "Traceback" not in ran.printed and "Aborted" not in ran.printed
