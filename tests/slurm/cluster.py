"""A Slurm of one node for the tests: Debian's slurm-wlm and munge, run from a temporary folder with its own configuration.

Nothing of the machine's own Slurm is read or changed, no service and no container is needed; root is.

    python tests/slurm/cluster.py bash        # a shell in which sbatch, squeue and scontrol talk to it, until it ends
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))  # daemons are not on everybody's path

CONFIGURATION = """
ClusterName=gold
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldDebug=debug
# no cgroups, no MPI, no accounting: what a container offers
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# jobs start and stop at once, and scontrol shows them after their end
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=5
MinJobAge=3600
JobRequeue=1
ReturnToService=2
# the node may claim more cores than there are
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no Slurm can be started here; None: it can."""
    if missing := [name for name in NEEDED if not shutil.which(name, path=PATH)]:
        return f"no Slurm here ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root only"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def sweep(folder: Path) -> None:
    """Kill every process of the cluster in that folder, jobs and their steps included, and remove the folder.

    Told by their environment: Slurm's own helpers and the jobs change parent and session, and some the user as well.
    """
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    found = True
    while found:  # until nobody is left who could start another
        found = False
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if mark in environ.read_bytes().split(b"\0") and int(environ.parent.name) != os.getpid():
                    os.kill(int(environ.parent.name), signal.SIGKILL)
                    found = True
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def cluster(cpus: int) -> Iterator[dict[str, str]]:
    """Yield the environment that makes Slurm's commands talk to the cluster; the daemons end with this process."""
    # Its own folder under /tmp: munge wants every folder above its socket to be nobody else's, and a socket's name short
    folder = Path(tempfile.mkdtemp(prefix="gold-slurm-"))
    folder.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), cpus=cpus, ports=free_ports(2))
    (folder / "slurm.conf").write_text(text)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    for name in [name for name in env if name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name != "SLURM_CONF"]:
        del env[name]  # of a job that we may be running in
    munge = {name: folder / "munge" / name for name in ("socket", "key-file", "pid-file", "seed-file")}
    munge["key-file"].write_bytes(secrets.token_bytes(128))
    munge["key-file"].chmod(0o600)
    daemons = {
        "munged": ["--foreground", "--force", "--num-threads=2", *(f"--{name}={path}" for name, path in munge.items())],
        "slurmctld": ["-D"],
        "slurmd": ["-D", "-N", "node"],
    }
    running: list[subprocess.Popen] = []

    def ask(*command: str) -> str:
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60).stdout.strip()

    def until(met, what: str) -> None:
        deadline = time.monotonic() + 60
        while not met():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in running):
                raise RuntimeError(f"{what}: it did not come to that\n{logs(folder)}")
            time.sleep(0.1)

    try:
        for name, options in daemons.items():
            with (folder / f"{name}.out").open("w") as out:
                command = ["setpriv", "--pdeathsig", "KILL", shutil.which(name, path=PATH), *options]
                running.append(subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True))
            if name == "munged":
                until(munge["socket"].exists, "munged listens")
        until(lambda: ask("sinfo", "--noheader", "--format=%T") == "idle", "the node is idle")
        yield env
    finally:
        sweep(folder)


def logs(folder: Path) -> str:
    """The ends of the daemons' logs."""
    ends = (f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(folder.glob("*.out")))
    return "\n".join(ends)


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"error: {reason}")
    with cluster(cpus=os.cpu_count() or 1) as environment:
        sys.exit(subprocess.run(sys.argv[1:] or ["bash"], env=environment, check=False).returncode)
