"""Other people's programs, as they are: the images where they look for them, their process, the lines they print.

A peer trains again and again and prints a table whose line says `eval` when a network is done, with its accuracy and
its seconds. The process is ended after as many networks as were asked for.
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

from fastcifar.data import Dataset
from fastcifar.timing import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "airbench94": "airbench94_muon.py",
    "airbench96": "airbench96_faster.py",
    "hiverge": "cifar10_speedrun.py",
}
"""Known peers: the script in a checkout of github.com/KellerJordan/cifar10-airbench or hiverge/cifar10-speedrun."""
GRACE_S = 10.0


@dataclass(frozen=True)
class Peer:
    """A name and the script that is run."""

    name: str
    script: Path

    @property
    def digest(self) -> str:
        """SHA-256 of the script: what was measured."""
        return hashlib.sha256(self.script.read_bytes()).hexdigest()


def find_peer(text: str) -> Peer:
    """NAME=PATH -> Peer: the path of a script, or for a known name of its checkout. ValueError when it is not there."""
    name, equals, path = text.partition("=")
    script = Path(path).expanduser()
    if script.is_dir() and name in SCRIPTS:
        script = script / SCRIPTS[name]
    if not equals or not script.is_file():
        raise ValueError(f"--peer {text}: give NAME=SCRIPT.py, or NAME=CHECKOUT for {', '.join(SCRIPTS)}")
    return Peer(name, script.resolve())


def prepare_images(dataset: Dataset, folder: Path) -> Path:
    """Writes the images for both: `images.npz` (returned) for fastcifar, `cifar10/train.pt` and `test.pt` for peers."""
    (folder / "cifar10").mkdir(parents=True, exist_ok=True)
    arrays = {n: getattr(dataset, n) for n in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(folder / "images.npz", **arrays)
    for part in ("train", "test"):
        content = {"images": torch.from_numpy(arrays[f"x_{part}"]), "labels": torch.from_numpy(arrays[f"y_{part}"]),
                   "classes": list(dataset.classes)}  # fmt: skip
        torch.save(content, folder / "cifar10" / f"{part}.pt")
    return folder / "images.npz"


class PeerTable:
    """Reads a peer's lines; `feed` gives a network's accuracy and seconds when its last line comes."""

    def __init__(self) -> None:
        self.columns: list[str] = []
        self.run = ""

    def feed(self, line: str) -> dict[str, Any] | None:
        """None for all other lines, and for a warm-up that trains on made-up labels."""
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "epoch" in cells:
            self.columns = cells
        if len(cells) != len(self.columns) or "epoch" in cells:
            return None
        row = dict(zip(self.columns, cells, strict=True))
        self.run = row.get("run") or self.run  # said once per network
        if row["epoch"] != "eval" or self.run == "warmup":
            return None
        seconds = next(v for k, v in row.items() if k.endswith("time_seconds"))
        return {"accuracy": float(row["tta_val_acc"]), "time_s": float(seconds)}


def peer_command(peer: Peer, python: str = sys.executable) -> list[str]:
    """The script itself where there is a card, else the launcher that stands in for one."""
    return [python, str(peer.script)] if torch.cuda.is_available() else [python, "-m", "bench.launch", str(peer.script)]


def read_ours(line: str) -> dict[str, Any] | None:
    """The last line of train_fast.py."""
    if not line.startswith("{"):
        return None
    summary = json.loads(line)
    took = summary["time_s"]
    return {"accuracy": summary["accuracy"], "time_s": took["train"] + took["swa"] + took["eval_final"],
            "compile_s": took["compile"], "recipe": summary["recipe"], "scale": summary["scale"],
            "precision": summary["precision"], "epochs": summary["epochs"]}  # fmt: skip


def run_until(command: list[str], folder: Path, log: Path, feed: Callable[[str], dict[str, Any] | None], networks: int,
              limit_s: float, env: Mapping[str, str], wait: bool = False) -> dict[str, Any]:  # fmt: skip
    """Runs a process until it has trained `networks`, at most `limit_s`; what it says goes to `log`.

    Gives `runs`, `first_s` (from the command to the first network) and `total_s`; and `error` when there are too few.
    With `wait` a process with all its networks is left to end by itself.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **env}
    runs: list[dict[str, Any]] = []
    row: dict[str, Any] = {"runs": runs, "first_s": None}
    watch, cut = Stopwatch(), threading.Event()
    with watch("process"), log.open("w", buffering=1) as said:
        process = subprocess.Popen(
            command, cwd=folder, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

        def end_late() -> None:
            cut.set()
            end_group(process)

        limit = threading.Timer(limit_s, end_late)
        limit.start()
        try:
            for line in process.stdout or ():
                said.write(line)
                if run := feed(line):
                    runs.append(run)
                    row["first_s"] = row["first_s"] or watch.so_far("process")
                if len(runs) == networks:
                    break
            if wait and len(runs) == networks:
                process.wait()
        finally:
            limit.cancel()
            end_group(process)
    row["total_s"] = watch.time_s["process"]
    if len(runs) < networks:
        last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        why = f"cut after {limit_s:g} s" if cut.is_set() else f"exit code {process.returncode}"
        row["error"] = f"{why} with {len(runs)} of {networks} networks; its last line: {last[:300]}"
    return row


def end_group(process: subprocess.Popen) -> None:
    """Ends a process that was started with a session of its own, and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
