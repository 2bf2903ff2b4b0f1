"""Facts for a record: versions, commit, device, peak memory, date. Recorded in summary.json of every run and bench."""

import functools
import importlib.metadata
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastcifar import __version__
from fastcifar.data.messages import counted

ROOT = Path(__file__).resolve().parents[2]
"""The folder that the package lies in: our repository, or what an environment has installed."""


def versions() -> dict[str, str | None]:
    """Versions of fastcifar, Python, the libraries and the driver; None for what is not installed."""

    def of(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "fastcifar": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": of("torchvision"),
        "dali": of("nvidia-dali-cuda130") or of("nvidia-dali-cuda120"),
        "cuda": torch.version.cuda,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


@functools.cache  # once a process, not once a run
def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [""])[0] if done.returncode == 0 else None


def source_state() -> dict[str, Any]:
    """Commit of fastcifar's source, and whether it has changes (`dirty`); None outside a clone of its repository.

    An installed package may lie in an environment inside the user's own repository, whose commit says nothing of it.
    """
    top = _first_line("git", "rev-parse", "--show-toplevel")
    ours = top is not None and Path(top).resolve() == ROOT and (ROOT / "train_fast.py").is_file()
    commit = _first_line("git", "rev-parse", "HEAD") if ours else None
    return {"commit": commit, "dirty": None if commit is None else bool(_first_line("git", "status", "--porcelain"))}


def device_name(device: torch.device) -> str:
    """Name of a device as its maker gives it, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else device.type


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


def peak_mem_mib(device: torch.device) -> dict[str, float | None]:
    """Peak memory in MiB: resident on the host, allocated by torch on the card (None without one)."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    on_card = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {"host": round(host, 1), "device": on_card and round(on_card, 1)}


def utc_stamp() -> str:
    """The current time in UTC as 20260131-235959."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())
