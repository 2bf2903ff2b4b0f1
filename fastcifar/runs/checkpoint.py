"""checkpoint.pt: everything that a resumed run needs, written atomically and loaded without executing anything.

The file holds plain containers and tensors only. It holds no state of a random generator: every draw of an epoch
depends on (seed, epoch) alone (`fastcifar.augment.plan`) and every draw inside a network on (seed, step)
(`fastcifar.models.noise`), so seed and step determine the rest.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcifar.config.config import Config
from fastcifar.files import write_atomically
from fastcifar.runs.config_file import config_to_plain

SCHEMA = 2


class CheckpointError(ValueError):
    """One line: which file, what is wrong with it, what to do."""


def save(path: Path, config: Config, digest: str, state: dict[str, Any]) -> None:
    """Writes a checkpoint. `state` is a tree of dicts, lists, numbers, strings and tensors. OSError if it cannot."""
    whole = io.BytesIO()  # torch.save would hide the system's error when a write falls short
    torch.save({"schema": SCHEMA, "config": config_to_plain(config), "digest": digest, "state": state}, whole)
    write_atomically(path, lambda f: f.write(whole.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint. CheckpointError for anything that is not a whole checkpoint of this schema."""
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: there is no checkpoint to resume from; give another --resume folder") from e
    except Exception as e:  # torch, zipfile and pickle raise many kinds on damaged or hostile files; none executes
        if ran_out_of_memory(e):
            raise
        raise CheckpointError(f"{path}: damaged or not a fastcifar checkpoint; resume another run or start anew") from e
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        found = f"schema {schema}" if type(schema) is int and abs(schema) < 1000 else "no known schema"
        raise CheckpointError(f"{path}: has {found}, this version reads schema {SCHEMA}; resume it with the version "
                              "that wrote it")  # fmt: skip
    if not all(isinstance(content.get(k), t) for k, t in (("config", dict), ("digest", str), ("state", dict))):
        raise CheckpointError(f"{path}: lacks config, digest or state, so it was not written by fastcifar; resume "
                              "another run or start anew")  # fmt: skip
    return content


def _check_archive(path: Path) -> None:
    """ValueError unless the checksums hold and nothing is compressed; torch.load checks neither.

    torch writes uncompressed archives. A compressed one could unpack to more than the memory.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("compressed")
        if archive.testzip():
            raise ValueError("checksum")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host had no memory left: then nothing is wrong with a file."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "DefaultCPUAllocator" in text)


def check(saved: Any, like: Any, name: str) -> None:
    """ValueError, naming the part, when a saved tree differs from `like` in type, keys, length, shape or dtype.

    Numbers and tensors must be finite, where those of `like` are.
    """
    if isinstance(like, Tensor):
        _check_tensor(saved, like, name)
    elif type(saved) is not type(like):
        raise ValueError(f"{name} is of type {type(saved).__name__} instead of {type(like).__name__}")
    elif isinstance(like, dict):
        if saved.keys() != like.keys():
            raise ValueError(f"{name} has other entries than this run: {repr(set(saved) ^ set(like))[:80]}")
        for key, part in like.items():
            check(saved[key], part, f"{name}.{key}")
    elif isinstance(like, (list, tuple)):
        if len(saved) != len(like):
            raise ValueError(f"{name} has {len(saved)} entries instead of {len(like)}")
        for i, part in enumerate(like):
            check(saved[i], part, f"{name}.{i}")
    elif isinstance(like, float) and math.isnan(saved):
        raise ValueError(f"{name} is not a number")


def _check_tensor(saved: Any, like: Tensor, name: str) -> None:
    if not isinstance(saved, Tensor) or saved.layout != torch.strided or saved.device.type != "cpu":
        raise ValueError(f"{name} is no plain tensor")
    if saved.shape != like.shape or saved.dtype != like.dtype:
        found, expected = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (saved, like))
        raise ValueError(f"{name} is {found[:80]} instead of {expected}")
    finite = saved.isfinite()
    if not finite.all() and (like.is_meta or not (finite | (saved == like.cpu())).all()):  # as a mask may be
        raise ValueError(f"{name} is not finite")
