"""torch.compile, and where compiled code is kept between processes."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fastcifar.config.config import Config
from fastcifar.data.cache import cache_folder

log = logging.getLogger("fastcifar")

COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Read by torch at each compilation. Triton's cache lies below the same folder, unless $TRITON_CACHE_DIR is set."""


def compile_model(model: nn.Module, config: Config, run_all_shapes: Callable[[], None]) -> str:
    """Compiles the model in place, as the config says, for all shapes that the function runs.

    Returns the mode in use: "off" where the compiler fails, after a warning; then the model is plain again.
    """
    mode = config.machine.compile
    try:
        keep_compiled_code(config)
        model.compile(mode=mode, dynamic=False)  # else the second image size is compiled for any size
        run_all_shapes()
        return mode
    except Exception as e:
        uncompile(model)
        torch._dynamo.reset()
        reason = " ".join(str(e).split())[:150]
        log.warning("torch.compile failed (%s: %s); going on without it", type(e).__name__, reason)
        return "off"


def compile_cache_dir(config: Config) -> Path:
    """Folder of compiled code: $TORCHINDUCTOR_CACHE_DIR if that is set, else `compiled` in the cache of fastcifar."""
    chosen = os.environ.get(COMPILE_CACHE)
    return Path(chosen) if chosen else cache_folder(config.machine.cache_dir).absolute() / "compiled"


def keep_compiled_code(config: Config) -> None:
    """Makes this process and its children use `compile_cache_dir`. Must be called before the first compilation.

    Where the folder cannot be written, torch keeps its own below the folder of temporary files.
    """
    folder = compile_cache_dir(config)
    if os.environ.get(COMPILE_CACHE):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            os.environ[COMPILE_CACHE] = str(folder)
    except OSError:
        pass


def uncompile(model: nn.Module) -> None:
    """Makes the model call its plain forward pass again. torch has no public name for it."""
    model._compiled_call_impl = None
