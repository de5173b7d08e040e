"""warm.py: a stage that is a fork of one process is as `python STAGE` to whoever started it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

STAGE = """
import os, sys, time
print(sys.argv, os.getcwd(), os.environ.get("MARK"), sys.stdin.read(), __name__, "torch" in sys.modules)
print("told", file=sys.stderr)
if sys.argv[1] == "wait":
    open("waits", "w").close()
    time.sleep(60)
sys.exit({"three": 3, "text": "error: a text"}.get(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    (folder / "stage.py").write_text(STAGE)
    place = folder / "place"
    place.mkdir()
    # A shell in between, as loop.sh is: the server ends with it
    code = f'"{sys.executable}" "{ROOT / "warm.py"}" serve "{place / "socket"}" & cat'
    shell = subprocess.Popen(["bash", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    yield (
        folder,
        [sys.executable, "-I", str(ROOT / "warm.py"), "run", str(place / "socket"), sys.executable, "stage.py"],
    )
    shell.stdin.close()
    shell.wait()
    until(lambda: not place.exists())


def until(moment) -> None:
    for _ in range(600):
        if moment():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


def ask(client, *args: str) -> subprocess.CompletedProcess:
    folder, command = client
    env = os.environ | {"MARK": "blue"}
    return subprocess.run(
        [*command, *args], cwd=folder, env=env, input="said", capture_output=True, text=True, check=False
    )


def test_arguments_folder_environment_streams(client):
    done = ask(client, "a b", "ü", "")
    assert done.stdout == f"['stage.py', 'a b', 'ü', ''] {client[0]} blue said __main__ True\n"
    assert (done.stderr, done.returncode) == ("told\n", 0)


@pytest.mark.parametrize("arg, code, told", [("three", 3, ""), ("text", 1, "error: a text\n"), ("four", 0, "")])
def test_exit_codes(client, arg, code, told):
    done = ask(client, arg)
    assert (done.returncode, done.stderr) == (code, f"told\n{told}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_stage(client, number):
    folder, command = client
    process = subprocess.Popen([*command, "wait"], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until((folder / "waits").exists)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number  # as a shell tells it
    (folder / "waits").unlink()


def test_without_a_server(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", str(ROOT / "warm.py"), "run", str(tmp_path / "none"), sys.executable, "stage.py"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'none'}: no server")
