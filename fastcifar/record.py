"""What a run leaves behind: the facts of machine and versions, summary.json, metrics.jsonl, the model, statistics."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcifar.config import Config
from fastcifar.files import write_atomically

MODEL_FORMAT = "fastcifar-1"
# Two-sided 95% points of Student's t for 1, 2, ... degrees of freedom; from 31 on Cornish-Fisher is exact to 0.001.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Versions of what computes, None for what is not installed."""

    def of(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
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
    """Commit of this source tree and whether it differs from it; None outside a git checkout."""
    commit = _first_line("git", "rev-parse", "HEAD")
    return {"commit": commit, "dirty": None if commit is None else bool(_first_line("git", "status", "--porcelain"))}


def peak_mem_mib(device: torch.device) -> dict[str, float | None]:
    """Largest memory so far: resident on the host, allocated by torch on the card."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    on_card = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {"host": round(host, 1), "device": on_card and round(on_card, 1)}


def to_json(value: Any) -> str:
    """One line of JSON; a number that is not finite becomes null, so that every reader can parse it."""

    def clean(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, dict):
            return {k: clean(x) for k, x in v.items()}
        return [clean(x) for x in v] if isinstance(v, (list, tuple)) else v

    return json.dumps(clean(value), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """`value` as an indented JSON file, whole or not at all."""
    text = json.dumps(json.loads(to_json(value)), indent=2) + "\n"
    write_atomically(path, lambda f: f.write(text.encode()))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """`rows` as JSON lines, whole or not at all."""
    text = "".join(to_json(row) + "\n" for row in rows)
    write_atomically(path, lambda f: f.write(text.encode()))


def write_config(folder: Path, config: Config) -> None:
    """config.json of a run folder."""
    write_json(folder / "config.json", asdict(config))


def write_model(path: Path, model: nn.Module, facts: dict[str, Any]) -> None:
    """Weights as safetensors with plain keys; `facts` (each value as JSON) go into the metadata."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    metadata = {"format": MODEL_FORMAT, **{k: to_json(v) for k, v in facts.items()}}
    content = save(tensors, metadata)
    write_atomically(path, lambda f: f.write(content))


def interval(values: list[float]) -> dict[str, Any]:
    """n, mean, standard deviation and 95% interval of the mean (Student's t); None where n is too small to tell."""
    n = len(values)
    mean = statistics.fmean(values) if n else None
    if n < 2 or mean is None:
        return {"n": n, "mean": mean, "std": None, "ci95": None}
    std = statistics.stdev(values)
    z = 1.959964
    far = z + (z**3 + z) / (4 * (n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1) ** 2)
    t = T_95[n - 2] if n <= 31 else far
    half = t * std / math.sqrt(n)
    return {"n": n, "mean": mean, "std": std, "ci95": [mean - half, mean + half]}


def summarize_runs(runs: list[dict[str, Any]], target: float | None) -> dict[str, Any]:
    """Statistics over the summaries of runs that differ in their seed only."""
    accuracy = [run["accuracy"] for run in runs]
    time_s = [run["time_s"]["train"] + run["time_s"]["swa"] + run["time_s"]["eval_final"] for run in runs]
    keep = ("dataset", "n_train", "n_test", "recipe", "scale", "epochs", "num_steps", "train_pflop", "device",
            "precision", "compile", "augment", "versions", "commit", "dirty")  # fmt: skip
    summary: dict[str, Any] = {"n": len(runs), **{k: runs[0][k] for k in keep}}
    summary["seeds"] = [run["seed"] for run in runs]
    summary["accuracy"], summary["time_to_accuracy_s"] = interval(accuracy), interval(time_s)
    for kind in ("accuracy_raw", "accuracy_swa", "accuracy_tta"):
        known = [run[kind] for run in runs if run[kind] is not None]
        summary[kind] = interval(known) if known else None
    if target is not None:
        summary["target"] = target
        summary["share_reached"] = sum(a >= target for a in accuracy) / len(accuracy)
    return summary
