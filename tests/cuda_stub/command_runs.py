"""The command line under the stub, and runs that are saved, interrupted and resumed."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import subject
import torch
from observe import card, make_task, watch_run

SETTINGS = ("--recipe", "speedrun94", "--data", "synthetic", "--subset", "60", "--batch-size", "20", "--epochs", "4",
            "--augment", "torch", "--compile", "off", "--scale", "small", "--no-fused-kernels")  # fmt: skip
"""Without the fused kernels: whether they agree with torch is chance here, where no kernel computes anything."""


class Asked(subject.Observer):
    """Stands for the signals of a process: the first so many questions are answered with none, then comes SIGTERM.

    A run asks after each step within an epoch, and at the end of each epoch.
    """

    phase = ""

    def __init__(self, after: int = 10**9, then: Callable[[], int] = lambda: 15) -> None:
        self.left, self.then = after, then

    def __call__(self) -> int | None:
        self.left -= 1
        return self.then() if self.left < 0 else None


def no_curves(path: Path, *_: object) -> None:
    """A picture takes longer than a run, and is drawn by the host alone."""
    path.write_bytes(b"no picture")


def command(*flags: str, signals: Asked | None = None) -> dict[str, Any]:
    """Exit code, output and counts of a command line."""
    said, complained = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained),
        mock.patch.object(subject.plots, "draw_curves", no_curves), card.counting() as counted,
    ):  # fmt: skip
        code = subject.command_line.train([*SETTINGS, *flags], signals or Asked())  # type: ignore[arg-type]
    lines = said.getvalue().strip().splitlines()
    return {"code": code, "stdout": lines, "stderr": complained.getvalue(), "counted": counted,
            "last": json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None}  # fmt: skip


def in_folder(*flags: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        told = command("--out", str(out), "--cache-dir", folder, *flags)
        return {**told, "files": sorted(path.name for path in out.iterdir())}


def interrupted_then_resumed(*flags: str) -> dict[str, Any]:
    """SIGTERM after some steps, then --resume to the end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        first = command("--out", str(out), "--cache-dir", folder, *flags, signals=Asked(after=5))
        return {"first": first, "second": command("--resume", str(out), "--cache-dir", folder, *flags)}


def out_of_memory() -> dict[str, Any]:
    """The card has no memory left after some steps."""

    def run_out() -> int:
        torch.cuda.empty_cache()
        card.fail_allocations(True)
        return 0

    with tempfile.TemporaryDirectory() as folder:
        try:
            return command("--out", f"{folder}/run", "--cache-dir", folder, "--no-cuda-graph",
                           signals=Asked(after=2, then=run_out))  # fmt: skip
        finally:
            card.fail_allocations(False)


def resumed(**settings: Any) -> dict[str, Any]:
    """A run that is stopped within its second epoch and goes on as another task: what the second part does."""
    with tempfile.TemporaryDirectory() as folder:

        def checkpoints(task: subject.Task, signals: Asked) -> subject.Checkpoints:
            path = Path(folder, "checkpoint.pt")
            return subject.Checkpoints(path, task.config, task.dataset.digest, lambda step: signals())

        first = make_task(**settings)
        with contextlib.suppress(subject.Interrupted):
            subject.train(first, [checkpoints(first, Asked(after=4))])
        second = replace(make_task(**settings), command=subject.Command(resume=folder))
        return watch_run(second, observers=[checkpoints(second, Asked())])


CASES: dict[str, Callable[[], Any]] = {
    "one run": in_folder,
    "two seeds": partial(in_folder, "--runs", "2"),
    "one run, sgd": partial(in_folder, "--optimizer", "sgd"),
    "interrupted": interrupted_then_resumed,
    "interrupted, plain": partial(interrupted_then_resumed, "--no-cuda-graph"),
    "out of memory": out_of_memory,
    "resumed": resumed,
    "resumed, sgd": partial(resumed, optimizer="sgd"),
    "resumed, plain": partial(resumed, cuda_graph=False),
}
