"""Runs in processes of their own, to be killed or joined: forked from a server that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from fastcifar import entry, model

ROOT = Path(__file__).parent.parent
TINY = (24, 8, 8, 8)
"""Channels of the network that these runs train, so that a run ends in a second or two."""
FLAGS = [
    "--device", "cpu", "--precision", "fp32", "--scale", "small", "--compile", "off", "--augment", "torch",
    "--deterministic", "--batch-size", "20", "--checkpoint-every", "1",
]  # fmt: skip


def write_images(path: Path, n_train: int = 160, n_test: int = 40) -> Path:
    """An .npz of noise about a colour that tells the class. Nowhere flat: among equal pixels rounding would
    decide which is the largest, and so how a run goes on."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (10, 3))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 10
        noise = random.integers(0, 256, (n, 32, 32, 3))
        return ((noise + colours[labels][:, None, None]) // 2).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = draw(n_train), draw(n_test)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def forkserver() -> ForkServerContext:
    """Where warm processes come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.processes", "matplotlib.pyplot"])
    return context


def start(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> BaseProcess:
    """The command line in a new process, its words in a file. One thread: bits must not depend on the machine."""
    process = forkserver().Process(target=_main, args=(list(argv), str(log), dict(env or {})))
    process.start()
    return process


def _main(argv: list[str], log: str, env: dict[str, str]) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    torch.set_num_threads(1)
    model.WIDTHS["small"] = TINY
    sys.exit(entry.main(argv))


def join_all(processes: Sequence[BaseProcess], timeout_s: float = 120) -> list[int | None]:
    """Exit codes; what has not ended by then is killed."""
    for process in processes:
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def ranks(size: int) -> list[dict[str, str]]:
    """The environment that torchrun would give to each of `size` processes on this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**world, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]


def start_real(argv: Sequence[str], log: Path) -> subprocess.Popen:
    """The same as a person would start it, with the network as it is shipped."""
    with log.open("ab") as words:
        command = [sys.executable, str(ROOT / "train_fast.py"), *argv]
        return subprocess.Popen(command, stdout=words, stderr=words, env=one_thread())


def one_thread() -> dict[str, str]:
    """The environment for a real process that computes on one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def wait_until(happened: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came true in time; looked at fifty times a second."""
    pause = threading.Event()
    return any(happened() or pause.wait(0.02) for _ in range(int(timeout_s * 50)))
