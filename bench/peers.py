"""Runs other programs unchanged for `bench.compare`: their images, their processes, and the tables that they print.

A peer trains one network after another and prints a table; a line with `eval` ends a network and has its accuracy and
seconds. The process is ended after the requested number of networks. The module is imported; it has no command.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.data.dataset import Dataset
from fastcifar.training.stopwatch import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "airbench94": "airbench94_muon.py",
    "airbench96": "airbench96_faster.py",
    "hiverge": "cifar10_speedrun.py",
}
"""Known peers: the script in a checkout of github.com/KellerJordan/cifar10-airbench or hiverge/cifar10-speedrun."""
GRACE_S = 10.0
"""Seconds that a process has to end after SIGTERM, before SIGKILL."""


@dataclass(frozen=True)
class Peer:
    """A program to compare with: its name and its script."""

    name: str
    script: Path

    @property
    def digest(self) -> str:
        """SHA-256 of the script."""
        return hashlib.sha256(self.script.read_bytes()).hexdigest()


def find_peer(text: str) -> Peer:
    """The peer of NAME=PATH, the path of a script or of a known peer's checkout. ValueError when there is none."""
    name, equals, path = text.partition("=")
    script = Path(path).expanduser()
    if script.is_dir() and name in SCRIPTS:
        script = script / SCRIPTS[name]
    if not equals or not script.is_file():
        raise ValueError(f"--peer {text}: give NAME=SCRIPT.py, or NAME=CHECKOUT for {', '.join(SCRIPTS)}")
    return Peer(name, script.resolve())


def prepare_images(dataset: Dataset, folder: Path) -> Path:
    """Writes `images.npz` for fastcifar, whose path is returned, and `cifar10/train.pt` and `test.pt` for peers."""
    (folder / "cifar10").mkdir(parents=True, exist_ok=True)
    arrays = {n: getattr(dataset, n) for n in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(folder / "images.npz", **arrays)
    for part in ("train", "test"):
        content = {"images": torch.from_numpy(arrays[f"x_{part}"]), "labels": torch.from_numpy(arrays[f"y_{part}"]),
                   "classes": list(dataset.classes)}  # fmt: skip
        torch.save(content, folder / "cifar10" / f"{part}.pt")
    return folder / "images.npz"


class PeerTable:
    """Reads the lines that a peer prints."""

    def __init__(self) -> None:
        self.columns: list[str] = []
        self.run = ""

    def feed(self, line: str) -> dict[str, Any] | None:
        """Accuracy and seconds of a network from its last line; None for other lines and for a warm-up network."""
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "epoch" in cells:
            self.columns = cells
        if len(cells) != len(self.columns) or "epoch" in cells:
            return None
        row = dict(zip(self.columns, cells, strict=True))
        self.run = row.get("run") or self.run  # only the first line of a network has it
        if row["epoch"] != "eval" or self.run == "warmup":
            return None
        seconds = next(v for k, v in row.items() if k.endswith("time_seconds"))
        return {"accuracy": float(row["tta_val_acc"]), "time_s": float(seconds)}


def peer_command(peer: Peer, python: str = sys.executable) -> list[str]:
    """The command that runs the script: directly on a CUDA card, else through `bench.launch`."""
    return [python, str(peer.script)] if torch.cuda.is_available() else [python, "-m", "bench.launch", str(peer.script)]


def read_summary(line: str) -> dict[str, Any] | None:
    """Accuracy and seconds from the last line of train_fast.py; None for other lines."""
    if not line.startswith("{"):
        return None
    summary = json.loads(line)
    time_s = summary["time_s"]
    return {"accuracy": summary["accuracy"], "time_s": time_s["train"] + time_s["swa"] + time_s["eval_final"],
            "compile_s": time_s["compile"], "recipe": summary["recipe"], "scale": summary["scale"],
            "precision": summary["precision"], "epochs": summary["epochs"]}  # fmt: skip


def run_until(command: list[str], folder: Path, log: Path, read_line: Callable[[str], dict[str, Any] | None],
              networks: int, limit_s: float, env: Mapping[str, str], wait: bool = False) -> dict[str, Any]:  # fmt: skip
    """Runs a process until it has trained `networks`, for at most `limit_s` seconds. Writes its output to `log`.

    Returns `runs`, `first_s` (seconds from the command to the first network) and `total_s`, and an `error` if there are
    too few networks. With `wait` the process ends by itself after its last network.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **env}
    runs: list[dict[str, Any]] = []
    row: dict[str, Any] = {"runs": runs, "first_s": None}
    stopwatch, timed_out = Stopwatch(), threading.Event()
    with stopwatch("process"), log.open("w", buffering=1) as log_file:
        process = subprocess.Popen(
            command, cwd=folder, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

        def end_at_limit() -> None:
            timed_out.set()
            end_group(process)

        limit = threading.Timer(limit_s, end_at_limit)
        limit.start()
        try:
            for line in process.stdout or ():
                log_file.write(line)
                if run := read_line(line):
                    runs.append(run)
                    row["first_s"] = row["first_s"] or stopwatch.seconds("process")
                if len(runs) == networks:
                    break
            if wait and len(runs) == networks:
                process.wait()
        finally:
            limit.cancel()
            end_group(process)
    row["total_s"] = stopwatch.time_s["process"]
    if len(runs) < networks:
        last = (log.read_text().strip().splitlines() or ["it printed nothing"])[-1]
        reason = f"cut after {limit_s:g} s" if timed_out.is_set() else f"exit code {process.returncode}"
        row["error"] = f"{reason} with {len(runs)} of {networks} networks; its last line: {last[:300]}"
    return row


def end_group(process: subprocess.Popen) -> None:
    """Ends a process that leads a session, and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
