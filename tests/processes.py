"""Starts training runs in processes of their own.

Warm processes are forked from a server that has imported torch already; real ones start from the command line.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from fastcifar.cli import train as command
from fastcifar.cli.main import train
from fastcifar.config.shapes import SHAPES, Shape
from fastcifar.files import write_atomically
from fastcifar.runs import plots

ROOT = Path(__file__).parent.parent
TINY = Shape.of({"stem": 24, "stages": [{"width": 8}, {"width": 8}, {"width": 8, "then": (3, 3), "residual": True}]})
"""Channels of the network of a warm run, so that the run ends in a second or two."""
FLAGS = [
    "--device", "cpu", "--precision", "fp32", "--scale", "small", "--compile", "off", "--augment", "torch",
    "--deterministic", "--batch-size", "20", "--checkpoint-every", "1",
]  # fmt: skip
"""Flags of a small reproducible run on the CPU that writes a checkpoint after each epoch."""


def no_curves(path: Path, *_: object) -> None:
    """Takes the place of `plots.draw_curves`, which needs more than a second of the CPU: longer than a run."""
    write_atomically(path, lambda file: file.write(b"no picture"))


def write_images(path: Path, n_train: int = 160, n_test: int = 40) -> Path:
    """Writes an .npz of random images around one colour per class, and returns its path.

    No area of an image is flat: among equal pixels, rounding would decide which is the largest, and change the run.
    """
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (10, 3))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 10
        pixels = random.integers(0, 256, (n, 32, 32, 3))
        return ((pixels + colours[labels][:, None, None]) // 2).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = draw(n_train), draw(n_test)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def forkserver() -> ForkServerContext:
    """The server that warm processes are forked from. It begins in the repository's root, where it finds fastcifar."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastcifar.cli.train", "torch._inductor"])
    with contextlib.chdir(ROOT):
        ensure_running()
    return context


def start(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> BaseProcess:
    """Starts the command line in a warm process that writes its output to `log`.

    It uses one thread, so that the bits of its results do not depend on the machine.
    """
    process = forkserver().Process(target=_main, args=(list(argv), str(log), dict(env or {})))
    process.start()
    return process


def _main(argv: list[str], log: str, env: dict[str, str]) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    torch.set_num_threads(1)
    SHAPES["small"] = TINY
    plots.draw_curves = no_curves
    command.matrix_flop_per_s = lambda device, dtype: 1e11  # measured, it takes as long as some epochs of these runs
    sys.exit(train(argv))


def join_all(processes: Sequence[BaseProcess], timeout_s: float = 120) -> list[int | None]:
    """Waits for processes and returns their exit codes. Kills each that does not end within `timeout_s`."""
    for process in processes:
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def ranks(size: int) -> list[dict[str, str]]:
    """The environment variables that torchrun would set for each of `size` processes on this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**world, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]


def start_real(argv: Sequence[str], log: Path) -> subprocess.Popen:
    """Starts train_fast.py from the command line, with the usual network; its output goes to `log`."""
    with log.open("ab") as log_file:
        command = [sys.executable, str(ROOT / "train_fast.py"), *argv]
        return subprocess.Popen(command, stdout=log_file, stderr=log_file, env=one_thread())


def one_thread() -> dict[str, str]:
    """The environment of a real process that uses one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Checks a condition fifty times a second; returns whether it became true within `timeout_s`."""
    pause = threading.Event()
    return any(condition() or pause.wait(0.02) for _ in range(int(timeout_s * 50)))
