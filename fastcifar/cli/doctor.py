"""`fastcifar doctor`: what a run finds on this machine, what is missing, and the command that mends it."""

import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from fastcifar.augment.dali import DaliExecutor, DaliUnavailable, has_dali
from fastcifar.augment.images import to_device
from fastcifar.cli.flags import parse_quietly
from fastcifar.config.config import Config
from fastcifar.config.recipes import DEFAULT_RECIPE, RECIPES
from fastcifar.config.settings import with_settings
from fastcifar.data import cache
from fastcifar.data.load import locate
from fastcifar.data.official import CIFAR10
from fastcifar.optim.apex import apex_sgd
from fastcifar.runs.environment import device_name, versions
from fastcifar.training.compiling import compile_cache_dir
from fastcifar.training.hardware import Hardware, resolve

LIBRARIES = {"torchvision": "torchvision", "matplotlib": "matplotlib", "rich": "rich", "safetensors": "safetensors",
             "PIL": "pillow", "torchmetrics": "torchmetrics"}  # fmt: skip
"""Module -> package of what a run imports only when it needs it."""
RUN_MIB, DATA_MIB, COMPILED_MIB = 100, 400, 100
"""Free space that is needed for a run folder, for CIFAR-10 (archive and decoded images), and for compiled kernels."""
NEW_DRIVER = 580
"""First driver of CUDA 13, which nvidia-dali-cuda130 needs."""
APEX = ("git clone https://github.com/NVIDIA/apex && "
        "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation ./apex")  # fmt: skip


class Item(NamedTuple):
    """A line of the report. `missing`: a run works without it. `error`: a default run fails, or cannot get CIFAR-10."""

    mark: Literal["ok", "missing", "error"]
    name: str
    text: str


@dataclass(frozen=True)
class Options:
    """Reports device, driver, CUDA, DALI, apex, compiler, data, caches and disk space.

    One line each: ok, missing (a run works without it) or error, with the command that mends it. The exit code is 0
    when the default run would work, else 1.
    """


def main(argv: Sequence[str]) -> int:
    """Prints the report and returns the exit code. UsageError for any argument."""
    parse_quietly(Options, argv, "fastcifar doctor")
    items = []
    for item in examine():
        print(f"{item.mark:8s} {item.name:14s} {item.text}", flush=True)
        items.append(item)
    works = all(item.mark != "error" for item in items)
    print("the default run works here" if works else "the default run does not work here: see the lines marked error")
    return 0 if works else 1


def examine() -> Iterator[Item]:
    """Every item of the report."""
    found, config, problem = versions(), RECIPES[DEFAULT_RECIPE], ""
    try:
        config, hardware = resolve(config)
    except RuntimeError as error:  # a card that torch sees and cannot use
        config, hardware = resolve(with_settings(config, device="cpu"))
        problem = str(error) or "CUDA does not start"
    yield Item("ok", "python", f"{found['python']}, torch {found['torch']}, torchvision {found['torchvision'] or '-'}")
    absent = [package for module, package in LIBRARIES.items() if find_spec(module) is None]
    yield Item("error", "libraries", f"pip install {' '.join(absent)}") if absent else Item("ok", "libraries", "all")
    yield _device(config, hardware, problem)
    yield _cuda(found["driver"])
    yield _dali(hardware, found["dali"], found["driver"])
    try:
        apex_sgd()
        yield Item("ok", "apex", "FusedSGD (--optimizer apex-sgd)")
    except ValueError:
        yield Item("missing", "apex", f"only for --optimizer apex-sgd on a GPU: {APEX}")
    yield _compiler(on_gpu=hardware.device.type == "cuda")
    data = _cifar10()
    yield data
    is_here = data.mark == "ok"
    yield _folder("data cache", cache.cache_folder(), 0 if is_here else DATA_MIB, "--cache-dir DIR", not is_here)
    compiled = compile_cache_dir(RECIPES[DEFAULT_RECIPE])
    yield _folder("compiler cache", compiled, COMPILED_MIB, "TORCHINDUCTOR_CACHE_DIR=DIR")
    if triton := os.environ.get("TRITON_CACHE_DIR"):  # without it Triton's kernels lie in Inductor's folder
        yield _folder("Triton cache", Path(triton), COMPILED_MIB, "TRITON_CACHE_DIR=DIR")
    yield _folder("run folder", Path("runs"), RUN_MIB, "--out DIR", is_needed=True)


def _device(config: Config, hardware: Hardware, problem: str) -> Item:
    """The device of a run, which must multiply."""
    try:
        ones = torch.ones(64, 64, device=hardware.device, dtype=hardware.dtype)
        if not problem and (ones @ ones).float().sum().item() != 64**3:
            problem = "a product of matrices is wrong"
    except RuntimeError as error:
        problem = str(error)
    if problem:
        reason = " ".join(problem.split())[:150]
        return Item("error", "device", f"does not work ({reason}): look at nvidia-smi, or train with --device cpu")
    machine = config.machine
    text = f"{device_name(hardware.device)}; {machine.precision}, compile {machine.compile}, "
    return Item("ok", "device", f"{text}augmentation by {machine.executor}, scale {config.model.scale}")


def _cuda(driver: str | None) -> Item:
    """Driver and CUDA: a card that torch does not use is missing."""
    built = torch.version.cuda
    if torch.cuda.is_available():
        return Item("ok", "CUDA", f"CUDA {built}, driver {driver or 'unknown: nvidia-smi does not run'}")
    if driver and built is None:
        text = f"driver {driver}, but this torch has no CUDA: pip install --force-reinstall torch torchvision"
    elif driver:
        text = f"driver {driver} does not run CUDA {built}: sudo apt install nvidia-driver-{NEW_DRIVER}"
    else:
        text = (f"no NVIDIA card and driver are seen; if there is a card: sudo apt install nvidia-driver-{NEW_DRIVER} "
                "(in a container: docker run --gpus all)")  # fmt: skip
    return Item("missing", "CUDA", text)


def _dali(hardware: Hardware, version: str | None, driver: str | None) -> Item:
    """DALI, tried on the device of a run."""
    is_old = driver is not None and driver.partition(".")[0].isdigit() and int(driver.partition(".")[0]) < NEW_DRIVER
    command = f"pip install nvidia-dali-cuda{120 if is_old else 130}"
    if not has_dali():
        return Item("missing", "DALI", f"not installed, --augment dali needs it: {command}")
    pixels, zero, one = np.zeros((1, 32, 32, 3), np.uint8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    images = to_device(pixels, np.zeros(1, np.int64), zero, one, 0, hardware.device, hardware.dtype)
    try:
        DaliExecutor(images)
    except DaliUnavailable as error:
        return Item("missing", "DALI", str(error))
    return Item("ok", "DALI", version or "installed")


def _compiler(on_gpu: bool) -> Item:
    """What torch.compile needs: Python's headers, and a C++ compiler on a CPU, Triton and a C compiler on CUDA."""
    if on_gpu and find_spec("triton") is None:
        return Item("missing", "compiler", "--compile needs Triton on a GPU: pip install triton")
    chosen = os.environ.get("CC" if on_gpu else "CXX", "").split()[:1]
    wanted = chosen or (["gcc", "clang", "cc"] if on_gpu else ["g++"])  # as Triton and Inductor look for it
    found = next((path for path in map(shutil.which, wanted) if path), None)
    if found is None:
        return Item("missing", "compiler", f"--compile needs {' or '.join(wanted)}: sudo apt install build-essential")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return Item("missing", "compiler", "--compile needs the headers of Python: sudo apt install python3-dev")
    return Item("ok", "compiler", f"{found}{', Triton' if on_gpu else ''} (torch.compile)")


def _cifar10() -> Item:
    """Where CIFAR-10 comes from."""
    cached = cache.cache_file("cifar10")
    found, archive = locate(CIFAR10)
    if cached.is_file():
        try:
            return Item("ok", "CIFAR-10", f"{cache.read_cache(cached).name} from the cache, {cached}")
        except Exception as error:  # a damaged file may raise anything
            return Item("missing", "CIFAR-10", f"the cache is damaged ({error}): rm {cached}")
    if found:
        return Item("ok", "CIFAR-10", f"from {found}")
    return Item("missing", "CIFAR-10", f"not on this machine; a run downloads it, or without a network trains on the "
                f"synthetic set: curl --create-dirs -o {archive} {CIFAR10.url}")  # fmt: skip


def _folder(name: str, path: Path, need_mib: int, other: str, is_needed: bool = False) -> Item:
    """A folder that a run writes to: its size, whether it can be written, and the free space. Makes nothing."""
    mark: Literal["missing", "error"] = "error" if is_needed else "missing"
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free_mib = shutil.disk_usage(existing).free / 2**20
    except OSError as error:
        mend = f"sudo chown -R $USER {existing}, or " if isinstance(error, PermissionError) else ""
        return Item(mark, name, f"{path}: cannot be written ({error.strerror}): {mend}choose another with {other}")
    if free_mib < need_mib:
        return Item(mark, name, f"{path}: {free_mib:.0f} MiB free, {need_mib} are needed: du -sh {existing}/* shows "
                    f"what fills it, or choose another with {other}")  # fmt: skip
    used_mib = sum(_sizes(path)) / 2**20
    return Item("ok", name, f"{path}: {used_mib:.0f} MiB, writable, {free_mib / 1024:.1f} GiB free")


def _sizes(path: Path) -> Iterator[int]:
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                yield os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # removed by another process
                continue
