"""model.safetensors: the weights a run stands for, with what rebuilds the network and reads images beside them.

The file loads without executing anything. Two equal models give equal bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcifar.config import Model
from fastcifar.data.files import write_atomically
from fastcifar.models.networks import make_model
from fastcifar.runs import checkpoint
from fastcifar.runs.observers import Observer, Result
from fastcifar.runs.record import to_json

FORMAT = "fastcifar-1"


class ModelFile(Observer):
    """Writes model.safetensors when the run ends. `facts`: classes, mean, std, dataset and the network's settings."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts

    def on_end(self, result: Result) -> None:
        write_model(self.path, result.model, {**self.facts, "accuracy": result.summary["accuracy"]})


def write_model(path: Path, model: nn.Module, facts: dict[str, Any]) -> None:
    """Writes the weights as safetensors with plain keys; `facts` (each value as JSON) go into the metadata."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    metadata = {"format": FORMAT, **{k: to_json(v) for k, v in facts.items()}}
    content = _with_sorted_header(save(tensors, metadata))
    write_atomically(path, lambda f: f.write(content))


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with the entries of its header in order: safetensors writes them in a random one."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the tensors by spaces
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def load_model(path: Path, flag: str = "--run") -> tuple[nn.Module, dict[str, Any]]:
    """The network of a model.safetensors in eval mode, and its facts (classes, mean, ...).

    ValueError, naming the flag that gave the file, if it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            facts = dict(f.metadata() or {})
            tensors: dict[str, torch.Tensor] = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no dict)
        if facts.pop("format", None) != FORMAT:
            raise ValueError("not written by this version of fastcifar")
        facts = {k: json.loads(v) for k, v in facts.items()}
        settings = _checked_settings(facts)
        if tensors["head.weight"].shape[:1] != (len(facts["classes"]),):  # before a network of that size is made
            raise ValueError("not as many classes as outputs")
        model = make_model(settings, len(facts["classes"]), seed=0)
        checkpoint.check(tensors, dict(model.state_dict()), "weights")
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise ValueError(f"{path}: not a whole fastcifar model ({reason}); give {flag} another one") from e
    return model.eval(), facts


def _checked_settings(facts: dict[str, Any]) -> Model:
    """The network's settings. ValueError when the facts beside the weights cannot be those that a run wrote."""
    settings = Model(**{name: facts[name] for name in ("network", "scale", "norm", "activation")})
    if settings.scale == "auto":
        raise ValueError("scale is 'auto'")
    names = facts["classes"]
    if not isinstance(names, list) or not all(isinstance(n, str) and n and n.isprintable() for n in names):
        raise ValueError("classes is no list of names")
    if len(set(names)) != len(names):
        raise ValueError("two classes of one name")
    for name in ("mean", "std"):
        values = facts[name]
        if (
            not isinstance(values, list)
            or len(values) != 3
            or not all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
        ):
            raise ValueError(f"{name} is no list of three numbers within 0 and 1")
    if min(facts["std"]) == 0:
        raise ValueError("std is 0")
    return settings
