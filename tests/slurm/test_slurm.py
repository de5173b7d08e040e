"""slurm/*.sbatch on a Slurm of one node (cluster.py), with the embedded teacher: stopped in the middle, nothing is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import cluster, logs, why_not
from conftest import ROOT, read_lines

WRAPPERS = sorted((ROOT / "slurm").glob("*.sbatch"))
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
needs_slurm = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


class Slurm:
    """The commands of a cluster; jobs write their logs into `folder`."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self.folder = env | {"PYTHON": sys.executable}, folder

    def ask(self, *command: object, **variables: object) -> str:
        env = self.env | {name: str(value) for name, value in variables.items()}
        how = {"capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run([*map(str, command)], env=env, cwd=ROOT, check=False, **how)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, wrapper: str, *arguments: object, options: tuple[str, ...] = (), **variables: object) -> str:
        """The job's number; options are sbatch's, arguments the wrapper's."""
        output = self.folder / ("%x-%A_%a.log" if wrapper == "generate" else "%x-%j.log")
        command = ("sbatch", "--parsable", f"--output={output}", *options, f"slurm/{wrapper}.sbatch", *arguments)
        return self.ask(*command, **variables)

    def show(self, job: str) -> dict[str, str]:
        """What scontrol says of a job or of one task of an array."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", job)))

    def log(self, job: str) -> str:
        return "".join(p.read_text(errors="replace") for p in self.folder.glob(f"*-{job}.log"))

    def wait(self, job: str, met: Callable[[], bool] = lambda: False) -> dict[str, str]:
        """Until the job has ended or a condition is met; most of Slurm's two minutes before a requeued job are skipped.

        Not all of them: at once, on a busy machine, what is left of the first start can end while the second runs, and Slurm
        takes the exit of the one for that of the other.
        """
        deadline, hastened = time.monotonic() + 600, set()
        while not met():
            seen = self.show(job)
            if seen["JobState"] != "PENDING":
                hastened.clear()
            if seen["JobState"] in ENDED:
                break
            if seen["JobState"] == "PENDING" and seen["Reason"] == "BeginTime" and job not in hastened:
                hastened.add(job)  # once a requeue: afterwards it has the same reason for 20 s
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+20")
            assert time.monotonic() < deadline, f"{seen}\n{self.log(job)}\n{logs(Path(self.env['SLURM_CONF']).parent)}"
            time.sleep(0.2)
        return self.show(job)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(reason)
    with cluster(cpus=2) as env:
        folder = tmp_path_factory.mktemp("slurm")
        yield Slurm(env, folder)
        for path in Path(env["SLURM_CONF"]).parent.glob("*.out"):
            shutil.copy(path, folder)  # what the daemons say stays beside what the jobs say


def progress(output: Path) -> bool:
    """Whether the first chunk of an unfinished output is on disk."""
    partial = output.with_name(output.name + ".partial")
    return partial.exists() and partial.stat().st_size > 0


# ---------------------------------------------------------------------------------------------------------------------
# Without Slurm


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda p: p.name)
def test_a_wrapper_is_short_and_says_what_is_missing(wrapper, tmp_path):
    assert len(wrapper.read_text().splitlines()) < 65
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MAX": "5"}
    given = {"MODEL": "m", "TASK_FILE": "prompts/reviews.toml", "OUTPUT_DIR": "o", "NUM_EXAMPLES": "9"}
    needed = {"loop.sbatch": ["prompts/reviews.toml", "runs/x"], "serve_teacher.sbatch": ["m", "runs/x.url"]}
    arguments = needed.get(wrapper.name, [])

    def said(*args: str, cwd: Path = ROOT, **variables: str) -> str:
        command = ["bash", str(wrapper), *args]
        done = subprocess.run(command, env=variables, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and not done.stdout, done.stdout
        return done.stderr

    assert "not in a Slurm" in said(PATH=env["PATH"])
    assert "call sbatch in the toolkit's folder" in said(cwd=tmp_path, **env)
    if arguments:
        assert "usage: sbatch" in said(**env)
    if wrapper.name == "loop.sbatch":
        assert "no prompts/x.toml" in said("prompts/x.toml", "runs/x", **env)
    for name in () if arguments else given:
        assert f"set {name}" in said(**env, **{k: v for k, v in given.items() if k != name})
    if not arguments:
        assert "--array goes to 5, NUM_SHARDS is 4" in said(**env, **given)
    assert "bash setup.sh" in said(*arguments, **env, **given, NUM_SHARDS="6", PYTHON="no/such/python")


# ---------------------------------------------------------------------------------------------------------------------
# generate.sbatch


@needs_slurm
def test_a_job_that_saves_nothing_is_not_queued_again_and_a_failure_neither(slurm, tmp_path):
    """PYTHON is a stand-in that ends as the stage would."""
    stub = tmp_path / "python"
    variables = {"MODEL": "m", "TASK_FILE": "prompts/reviews.toml", "OUTPUT_DIR": tmp_path, "NUM_EXAMPLES": 9}
    for code, said in ((75, "longer --time"), (1, "sbatch --array=1 for this task alone")):
        stub.write_text(f"#!/bin/sh\nexit {code}\n")
        stub.chmod(0o755)
        job = slurm.submit("generate", options=("--array=1",), **variables, PYTHON=stub)
        ended = slurm.wait(f"{job}_1")
        assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "1:0")
        assert said in slurm.log(f"{job}_1")


# The first start saves something, waits for the signal and ends as generate.py does; the second ends well
STUB = """#!/bin/bash
if [[ -n ${SLURM_RESTART_COUNT:-} ]]; then exit; fi
trap 'kill %1; exit 75' USR1
echo new > "$SAVED"; sleep 300 & wait
"""
# Slurm's own, slow to return: the SIGTERM of the requeue always comes before it has
SCONTROL = """#!/bin/bash
%s "$@"; code=$?
if [[ $1 == requeue ]]; then sleep 3; touch "$PLACE/outlived"; fi
exit $code
"""
SLEEP = """#!/bin/bash
if [[ $1 == 60 ]]; then touch "$PLACE/slept"; fi
exec %s "$@"
"""


def stub_job(slurm: Slurm, wrapper: str, place: Path, *options: str) -> str:
    """Submit a wrapper with these in the places of Python, scontrol and sleep; the task's or job's number.

    Less than five minutes are left at once: the signal comes when Slurm next looks at time limits, every half a minute.
    """
    bin = place / "bin"
    bin.mkdir(parents=True)
    real = {name: shutil.which(name, path=slurm.env["PATH"]) for name in ("scontrol", "sleep")}
    for name, text in (("python", STUB), ("scontrol", SCONTROL % real["scontrol"]), ("sleep", SLEEP % real["sleep"])):
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    variables = {"PYTHON": bin / "python", "PLACE": place, "PATH": f"{bin}:{slurm.env['PATH']}"}
    (place / "test.jsonl").write_text("")
    if wrapper == "loop":
        variables |= {"TEACHER": "a", "STUDENT": "b", "TEST_FILE": place / "test.jsonl", "ITERATIONS": 1}
        variables |= {"SAVED": place / "run/train.jsonl.partial"}
        return slurm.submit("loop", "prompts/rte.toml", place / "run", options=("--time=5", *options), **variables)
    variables |= {"MODEL": "m", "TASK_FILE": "prompts/reviews.toml", "OUTPUT_DIR": place, "NUM_EXAMPLES": 9}
    variables |= {"SAVED": place / "train-00001-of-00004.jsonl.partial"}
    return slurm.submit("generate", options=("--array=1", "--time=5", *options), **variables) + "_1"


@needs_slurm
def test_a_job_that_meets_its_time_limit_is_queued_again_and_goes_on(slurm, tmp_path):
    """The SIGTERM of the requeue ends neither scontrol nor the wait for it: else Slurm could take the exit code for the next
    start's. A job that may not be queued again says so and ends."""
    places = {name: tmp_path / name for name in ("generate", "loop", "once")}
    jobs = {name: stub_job(slurm, name, places[name]) for name in ("generate", "loop")}
    jobs["once"] = stub_job(slurm, "loop", places["once"], "--no-requeue")
    with ThreadPoolExecutor() as pool:
        ends = dict(zip(jobs, pool.map(slurm.wait, jobs.values()), strict=True))
    for name in ("generate", "loop"):
        ended, log = ends[name], slurm.log(jobs[name])
        assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("COMPLETED", "1", "0:0"), log
        assert (places[name] / "outlived").exists() and (places[name] / "slept").exists(), log
        # The log is appended to, so that both starts stand in it
        assert (
            log.count("start 1") == log.count("start 2") == log.count("stopped in time") == log.count("finished") == 1
        )
    ended, log = ends["once"], slurm.log(jobs["once"])
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "1:0"), log
    assert "error: not queued again, see above; " in log and not (places["once"] / "slept").exists()


@needs_slurm
@pytest.mark.engine
def test_a_task_that_is_stopped_is_queued_again_and_loses_nothing(slurm, small_teacher, tmp_path):
    out = tmp_path / "iter-00"
    variables = {
        "MODEL": small_teacher, "TASK_FILE": "prompts/reviews.toml", "NUM_SHARDS": 2, "NUM_EXAMPLES": 1200,
        "NUM_VALIDATION": 400, "GENERATE_ARGS": "--validation-temperature 1", "OUTPUT_DIR": out,
    }  # fmt: skip
    task = slurm.submit("generate", options=("--array=1",), **variables) + "_1"
    train = out / "train-00001-of-00002.jsonl"
    slurm.wait(task, lambda: progress(train) or train.exists())
    slurm.ask("scancel", "--signal=USR1", task)  # in the middle: the first chunk is on disk
    log = slurm.log(task)
    assert slurm.wait(task)["JobState"] == "COMPLETED", log
    log = slurm.log(task)
    assert log.count("stopped in time") == 1 and "start 2" in log, log
    assert "going on after" in log or "up to date" in log, log
    # All of it is there, once
    assert not list(out.glob("*.partial*"))
    for split, number in (("train", 600), ("validation", 200)):
        path = out / f"{split}-00001-of-00002.jsonl"
        accepted, rejected = read_lines(path), read_lines(path.with_suffix(".rejected.jsonl"))
        assert len(accepted) == number
        for field in ("id", "sampling_seed"):
            assert len({r[field] for r in accepted + rejected}) == len(accepted + rejected)


# ---------------------------------------------------------------------------------------------------------------------
# loop.sbatch


@needs_slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_loop_outside_of_a_job_ends_its_steps(number, slurm, tmp_path):
    """As in salloc. The first SIGINT makes srun report only; a killed srun would leave its step behind."""
    stage = tmp_path / "python"
    stage.write_text(f"#!/bin/bash\necho $$ > {tmp_path}/stage\nexec sleep 300\n")
    stage.chmod(0o755)
    (tmp_path / "test.jsonl").write_text("")
    env = slurm.env | {"PYTHON": str(stage), "LAUNCH": "srun", "TEACHER": "a", "STUDENT": "b"}
    env |= {"TEST_FILE": f"{tmp_path}/test.jsonl"}
    command = ["bash", "loop.sh", "prompts/rte.toml", str(tmp_path / "run")]
    with (tmp_path / "said").open("w") as said:
        loop = subprocess.Popen(command, cwd=ROOT, env=env, stdout=said, stderr=said, start_new_session=True)
    pid, deadline = tmp_path / "stage", time.monotonic() + 60
    while not pid.exists() or not pid.read_text():
        assert loop.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.1)
    loop.send_signal(number)
    assert loop.wait(30) == -number, (tmp_path / "said").read_text()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid.read_text().strip()}").exists():
        assert time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.1)
    assert not slurm.ask("squeue", "--noheader", "--name=python")
