"""Atomic save and safe load of everything a resume needs. Files hold plain containers and tensors only."""

from __future__ import annotations

import errno
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from fastcifar.config import Config
from fastcifar.files import write_atomically

SCHEMA = 1
FREE_ON_RESUME = frozenset({
    "out", "resume", "extend_epochs", "debug", "dry_run", "plot_schedule", "target", "cache_dir", "data", "device",
    "compile", "augment", "tta", "checkpoint_every", "recipe", "parallel",
})  # fmt: skip
"""Settings that may differ between a run and its continuation: they do not change what is trained (the data set
is compared by its checksum, not by its path)."""


class CheckpointError(ValueError):
    """One line: which file, what is wrong with it, what to do."""


def save(path: Path, config: Config, digest: str, state: dict[str, Any]) -> None:
    """`state` is a tree of dicts, lists, numbers, strings and tensors."""
    content = {"schema": SCHEMA, "config": asdict(config), "digest": digest, "state": state}
    try:
        write_atomically(path, lambda f: torch.save(content, f))
    except RuntimeError as e:  # torch.save hides the system's error when a write falls short
        raise OSError(errno.ENOSPC, "could not write the whole checkpoint", str(path)) from e


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; CheckpointError for anything that is not a whole checkpoint of this schema."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: there is no checkpoint to resume from; give another --resume folder") from e
    except Exception as e:  # torch, zipfile and pickle raise many kinds on damaged or hostile files; none executes
        raise CheckpointError(f"{path}: damaged or not a fastcifar checkpoint; resume another run or start anew") from e
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: checkpoint schema {found!r}, this version reads {SCHEMA}; resume it with the "
                              "version that wrote it")  # fmt: skip
    if not all(isinstance(content.get(k), t) for k, t in (("config", dict), ("digest", str), ("state", dict))):
        raise CheckpointError(f"{path}: checkpoint lacks config, digest or state; it was not written by fastcifar")
    return content


def config_from(values: dict[str, Any], where: str) -> Config:
    """A Config from a file's values; CheckpointError names the first field that is unknown or wrong."""
    known = {f.name for f in fields(Config)}
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: the settings are no table of names and values")
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(f"{where}: unknown setting {unknown[0]!r}; it was written by another version")
    try:
        return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"{where}: {e}") from e


def differences(saved: Config, now: Config) -> list[str]:
    """What must not change on resume and did: `name: saved -> now` each."""
    return [
        f"{f.name}: {getattr(saved, f.name)} -> {getattr(now, f.name)}"
        for f in fields(Config)
        if f.name not in FREE_ON_RESUME and getattr(saved, f.name) != getattr(now, f.name)
    ]
