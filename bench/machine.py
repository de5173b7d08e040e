"""The machine that a benchmark ran on, for its record."""

import os
from pathlib import Path


def machine() -> dict[str, str | int]:
    """Name of the CPU, its cores, threads in use, and the GPU if there is one."""
    import torch

    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in about.splitlines() if line.startswith("model name")]
    found: dict[str, str | int] = {"cpu": names[0] if names else os.uname().machine, "cpus": os.cpu_count() or 1}
    found["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
