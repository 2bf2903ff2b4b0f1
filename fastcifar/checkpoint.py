"""Atomic save and safe load of everything a resume needs. Files hold plain containers and tensors only.

There is no state of a random generator in them: every draw of an epoch is made from (seed, epoch) alone (`augment`),
so step and seed say it all.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcifar.config import Config
from fastcifar.files import write_atomically

SCHEMA = 1
FREE_ON_RESUME = frozenset({
    "out", "resume", "extend_epochs", "debug", "dry_run", "plot_schedule", "target", "cache_dir", "data", "device",
    "compile", "cuda_graph", "augment", "tta", "tta_share", "checkpoint_every", "recipe", "parallel",
})  # fmt: skip
"""Settings that may differ between a run and its continuation: they do not change what is trained (the data set
is compared by its checksum, not by its path)."""


class CheckpointError(ValueError):
    """One line: which file, what is wrong with it, what to do."""


def save(path: Path, config: Config, digest: str, state: dict[str, Any]) -> None:
    """`state` is a tree of dicts, lists, numbers, strings and tensors. OSError when the disk does not take it."""
    whole = io.BytesIO()  # torch.save would hide the system's error when a write falls short
    torch.save({"schema": SCHEMA, "config": asdict(config), "digest": digest, "state": state}, whole)
    write_atomically(path, lambda f: f.write(whole.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; CheckpointError for anything that is not a whole checkpoint of this schema."""
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: there is no checkpoint to resume from; give another --resume folder") from e
    except Exception as e:  # torch, zipfile and pickle raise many kinds on damaged or hostile files; none executes
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
    """What torch.load does not look at: the checksums, and that nothing is compressed (torch never does, a small file
    that unpacks to fill the memory would be)."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("compressed")
        if archive.testzip():
            raise ValueError("checksum")


def config_from(values: dict[str, Any], where: str) -> Config:
    """A Config from a file's values; CheckpointError names the first field that is unknown or wrong."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: the settings are no table of names and values; start a new run")
    unknown = sorted(map(repr, values.keys() - {f.name for f in fields(Config)}))
    if unknown:
        raise CheckpointError(f"{where}: unknown setting {unknown[0][:80]}; it was written by another version")
    try:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**plain)
    except (TypeError, ValueError, OverflowError) as e:
        raise CheckpointError(f"{where}: {str(e)[:200]}; it was changed by hand or by another version") from e


def differences(saved: Config, now: Config) -> list[str]:
    """What must not change on resume and did: `name: saved -> now` each."""
    return [
        f"{f.name}: {getattr(saved, f.name)} -> {getattr(now, f.name)}"
        for f in fields(Config)
        if f.name not in FREE_ON_RESUME and getattr(saved, f.name) != getattr(now, f.name)
    ]


def check(saved: Any, like: Any, name: str) -> None:
    """ValueError that names the first part of a saved tree which differs from `like` in kind: type, keys, length,
    shape, dtype, or a number that is not finite."""
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
        found, wanted = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (saved, like))
        raise ValueError(f"{name} is {found[:80]} instead of {wanted}")
    if not saved.isfinite().all():
        raise ValueError(f"{name} is not finite")
