"""Runs a program for a CUDA card on a machine without one, for `bench.compare`, and leaves its file unchanged.

    python -m bench.launch SCRIPT

Without a card, moves to the card do nothing, half precision becomes float32 (as a CPU computes it), CUDA events read
the stopwatch, and torch.compile returns its argument. The warm-up network of a peer, which only has code compiled, is
then skipped: it would double the time. With a card the launcher replaces nothing.
"""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastcifar.training.stopwatch import Stopwatch


class Event:
    """Stands in for torch.cuda.Event on a CPU, which has always finished the work before."""

    stopwatch = Stopwatch()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.at_s = 0.0

    def record(self, stream: Any = None) -> None:
        self.at_s = self.stopwatch.seconds("process")

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds between two events."""
        return 1e3 * (later.at_s - self.at_s)

    def synchronize(self) -> None:
        pass


def on_cpu(value: Any) -> Any:
    """Replaces a CUDA device by the CPU and a half-precision dtype by float32; returns other values unchanged."""
    if isinstance(value, (str, torch.device)) and str(value).startswith("cuda"):
        return torch.device("cpu")
    return torch.float32 if value in (torch.float16, torch.bfloat16) and isinstance(value, torch.dtype) else value


class NoCard(TorchFunctionMode):
    """Makes every torch call use the CPU instead of a card, and float32 instead of half precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.cuda, Tensor.pin_memory):
            return args[0]
        if func in (Tensor.half, Tensor.bfloat16):
            return args[0].to(torch.float32, copy=True)
        kwargs = {k: on_cpu(v) if k in ("device", "dtype") else v for k, v in (kwargs or {}).items()}
        if func is Tensor.to:
            args = tuple(a if isinstance(a, Tensor) else on_cpu(a) for a in args)
        return func(*args, **kwargs)


def compile_nothing(model: Any = None, **kwargs: Any) -> Any:
    """Stands in for torch.compile as a function, a decorator, or a decorator with settings; returns its argument."""
    if model is None:
        return lambda fn: compile_nothing(fn)
    if isinstance(model, nn.Module):
        object.__setattr__(model, "_orig_mod", model)  # as on compiled modules; not registered as its own child
    return model


def replace_card() -> None:
    """Replaces, for the whole process, the functions that `NoCard` does not see."""
    put: Any = setattr  # not typed, as the stand-ins have other types
    for name in ("synchronize", "empty_cache", "_sleep"):
        put(torch.cuda, name, lambda *_, **__: None)
    put(torch.cuda, "Event", Event)
    put(torch, "compile", compile_nothing)
    put(nn.Module, "compile", lambda *_, **__: None)
    load = torch.load
    put(torch, "load", lambda *args, **kwargs: load(*args, **{**kwargs, "map_location": "cpu"}))


def without_warm_up(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the `main(run, ...)` of a peer so that it does nothing for the run "warmup"."""
    return lambda run, *rest, **more: None if run == "warmup" else main(run, *rest, **more)


def run_program(script: Path) -> None:
    """Executes the statements of a script as __main__, and wraps its `main` as soon as that is defined."""
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    for statement in ast.parse(script.read_bytes(), str(script)).body:
        exec(compile(ast.Module([statement], []), str(script), "exec"), names)
        if isinstance(statement, ast.FunctionDef) and statement.name == "main":
            names["main"] = without_warm_up(names["main"])


def main(argv: list[str]) -> int:
    script = Path(argv[0]).resolve()
    sys.argv = [str(script), *argv[1:]]
    sys.path[0] = str(script.parent)
    if torch.cuda.is_available():
        runpy.run_path(str(script), run_name="__main__")
        return 0
    replace_card()
    with Event.stopwatch("process"), NoCard():
        run_program(script)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
