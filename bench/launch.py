"""Runs a program made for a CUDA card on a machine without one: `python -m bench.launch SCRIPT`. Its file is untouched.

Only what the machine lacks is replaced: moves to the card do nothing, half precision becomes float32 (a CPU computes it
so), the card's events read the stopwatch, and torch.compile leaves functions as they are. So there is nothing to warm
up, and a first network on made-up labels, which peers train to have everything compiled, is left out: it would double
their time. With a card nothing is replaced at all.
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

from fastcifar.timing import Stopwatch


class Event:
    """torch.cuda.Event on a CPU, where everything asked for before is done already."""

    watch = Stopwatch()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.at_s = 0.0

    def record(self, stream: Any = None) -> None:
        self.at_s = self.watch.so_far("process")

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds."""
        return 1e3 * (later.at_s - self.at_s)

    def synchronize(self) -> None:
        pass


def on_cpu(value: Any) -> Any:
    """cpu for whatever names a card, float32 for a dtype of half the width, anything else as it is."""
    if isinstance(value, (str, torch.device)) and str(value).startswith("cuda"):
        return torch.device("cpu")
    return torch.float32 if value in (torch.float16, torch.bfloat16) and isinstance(value, torch.dtype) else value


class NoCard(TorchFunctionMode):
    """Every torch call with the CPU in the place of the card and float32 in that of half precision."""

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
    """torch.compile, as a call or a decorator with or without settings."""
    if model is None:
        return lambda fn: compile_nothing(fn)
    if isinstance(model, nn.Module):
        object.__setattr__(model, "_orig_mod", model)  # as on compiled modules; not registered as its own child
    return model


def replace_card() -> None:
    """Puts in place, for the whole process, what does not go through a torch function."""
    put: Any = setattr  # the types of what is replaced are not kept
    for name in ("synchronize", "empty_cache", "_sleep"):
        put(torch.cuda, name, lambda *_, **__: None)
    put(torch.cuda, "Event", Event)
    put(torch, "compile", compile_nothing)
    put(nn.Module, "compile", lambda *_, **__: None)
    load = torch.load
    put(torch, "load", lambda *args, **kwargs: load(*args, **{**kwargs, "map_location": "cpu"}))


def without_warm_up(main: Callable[..., Any]) -> Callable[..., Any]:
    """A peer's `main(run, ...)` that trains nothing when the run is called warmup."""
    return lambda run, *rest, **more: None if run == "warmup" else main(run, *rest, **more)


def run_program(script: Path) -> None:
    """The statements of a script in their order, as __main__; its `main` is replaced as soon as it is defined."""
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
    with Event.watch("process"), NoCard():
        run_program(script)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
