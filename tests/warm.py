"""Runs Python programs in warm processes: each is forked from the server of `processes`, which has imported torch."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from processes import forkserver, no_curves


def run(
    command: Sequence[object],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    package: Path | None = None,
    **_: Any,
) -> subprocess.CompletedProcess[str]:
    """Stands in for `subprocess.run` with `python FILE ...`, `python -c CODE ...` or `python -m NAME ...`.

    It keeps the output. The program uses one thread and draws no curves.

    Args:
        package: The folder whose fastcifar the program imports, if it is not this one.

    Raises:
        subprocess.TimeoutExpired: The program has not ended after `timeout` seconds; it is killed.
    """
    arguments, folder = [str(word) for word in command[1:]], str(cwd or Path.cwd())
    with tempfile.TemporaryDirectory() as logs:
        outputs = [Path(logs, name) for name in ("stdout", "stderr")]
        process = forkserver().Process(
            target=_main, args=(arguments, folder, dict(env or os.environ), outputs, package)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in outputs))


def _main(
    arguments: list[str], folder: str, env: dict[str, str], outputs: Sequence[Path], package: Path | None
) -> None:
    for number, path in enumerate(outputs, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    if package:
        for name in [name for name in sys.modules if name.partition(".")[0] == "fastcifar"]:
            del sys.modules[name]
        sys.path.insert(0, str(package))
    importlib.import_module("fastcifar.runs.plots").draw_curves = no_curves
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "-c", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
