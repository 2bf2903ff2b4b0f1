"""model.safetensors: the weights a run stands for, with what rebuilds the network and reads images beside them.

swag.safetensors is the same file with the Gaussian over the weights: `variance.<name>` of the weight's shape and
`deviations.<name>` [R, ...] for every trained weight, fp32; the mean is the model itself. The raw weights of the last
step are in checkpoint.pt.

Both load without executing anything. Two equal models give equal bytes.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcifar.config.config import Model
from fastcifar.files import write_atomically
from fastcifar.models.networks import make_model
from fastcifar.models.own_network import Network, own_network
from fastcifar.runs import checkpoint
from fastcifar.runs.record import to_json

FORMAT = "fastcifar-1"
FROM_PYTHON = "python"
"""`network` of a file whose network came from Python: it holds the weights and the name of the class alone."""
SWAG_FILE = "swag.safetensors"
SPREAD = ("variance.", "deviations.")
Gaussian = dict[str, torch.Tensor]
"""`variance.<name>` and `deviations.<name>` of the trained weights, as `fastcifar.optim.swag` describes them."""


def write_model(path: Path, model: nn.Module, facts: dict[str, Any], gaussian: Gaussian | None = None) -> None:
    """Writes the weights as safetensors with plain keys; `facts` (each value as JSON) go into the metadata.

    gaussian: the further tensors of a swag.safetensors.
    """
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in {**model.state_dict(), **(gaussian or {})}.items()}
    metadata = {"format": FORMAT, **{k: to_json(v) for k, v in facts.items()}}
    content = _with_sorted_header(save(tensors, metadata))
    write_atomically(path, lambda f: f.write(content))


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with the entries of its header in order: safetensors writes them in a random one."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the tensors by spaces
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def digest_of(model: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of all weights and buffers, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def find_model(where: Path) -> Path:
    """The model file of a run folder, the newest one in a folder of runs, or the file itself. ValueError if none."""
    if where.is_file():
        return where
    named = list(where.glob("model.safetensors")) or list(where.glob("*/model.safetensors"))
    found = [path for path in named if path.is_file()]  # a pipe in its place would be waited for without an end
    if not found:
        raise ValueError(f"{where}: no model.safetensors in it; give the folder of a finished run")
    return max(found, key=lambda p: p.stat().st_mtime)


def load_model(path: Path, flag: str = "--run", network: Network | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a model.safetensors in eval mode, and its facts (classes, mean, ...).

    network: the one from Python that the file has the weights of. ValueError, naming the flag that gave the file, if
    it is damaged.
    """
    model, facts, _ = _load(path, f"model ({{}}); give {flag} another one", swag=False, network=network)
    return model, facts


def load_swag(folder: Path) -> tuple[nn.Module, dict[str, Any], Gaussian]:
    """The averaged network of a run folder's swag.safetensors in eval mode, its facts, and the Gaussian around it.

    ValueError when there is none, it is damaged, or its mean is not the run's model.
    """
    path = folder / SWAG_FILE
    if not path.is_file():
        raise ValueError(f"{path}: there is none; SWAG needs a run that was trained with --swag-rank")
    mean, facts, gaussian = _load(path, "SWAG file ({}); train the run again", swag=True)
    model = load_model(path.with_name("model.safetensors"))[0].state_dict()
    saved = mean.state_dict()
    if model.keys() != saved.keys() or not all(torch.equal(value, saved[name]) for name, value in model.items()):
        raise ValueError(f"{path}: is of another run than the model.safetensors beside it; put the right one back")
    return mean, facts, gaussian


def _load(
    path: Path, complaint: str, swag: bool, network: Network | None = None
) -> tuple[nn.Module, dict[str, Any], Gaussian]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            facts = dict(f.metadata() or {})
            tensors: dict[str, torch.Tensor] = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no dict)
        if facts.pop("format", None) != FORMAT:
            raise ValueError("not written by this version of fastcifar")
        facts = {k: json.loads(v) for k, v in facts.items()}
        _check_facts(facts)
        model = _make_network(facts, tensors, network)
        gaussian = {k: tensors.pop(k) for k in list(tensors) if swag and k.startswith(SPREAD)}
        checkpoint.check(tensors, dict(model.state_dict()), "weights")
        model.load_state_dict(tensors)
        if swag:
            _check_gaussian(gaussian, model)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as e:
        if checkpoint.ran_out_of_memory(e):
            raise
        reason = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise ValueError(f"{path}: not a whole fastcifar {complaint.format(reason)}") from e
    return model.eval(), facts, gaussian


def _check_gaussian(gaussian: Gaussian, model: nn.Module) -> None:
    """ValueError unless both tensors are there for some weights of the model, in shapes that fit together."""
    trained = [key.removeprefix(SPREAD[0]) for key in gaussian if key.startswith(SPREAD[0])]
    weights = {name: p.float().to("meta") for name, p in model.named_parameters()}
    if not trained or not weights.keys() >= set(trained):
        raise ValueError("variances of no weights, or of weights that the network has not")
    columns = len(gaussian[f"{SPREAD[1]}{trained[0]}"])
    like = {f"{SPREAD[0]}{n}": weights[n] for n in trained}
    like |= {f"{SPREAD[1]}{n}": weights[n].new_empty(columns, *weights[n].shape) for n in trained}
    checkpoint.check(gaussian, like, "swag")
    if columns < 1 or any((gaussian[f"{SPREAD[0]}{n}"] < 0).any() for n in trained):
        raise ValueError("no deviations, or a variance below 0")


def _make_network(facts: dict[str, Any], tensors: dict[str, torch.Tensor], network: Network | None) -> nn.Module:
    """The network that the facts name, or the given one. ValueError when they cannot be those that a run wrote."""
    if facts["network"] == FROM_PYTHON:
        if network is None:
            raise ValueError("its network came from Python: fastcifar.load(path, network=...)")
        return own_network(network)
    names = ("network", "scale", "norm", "activation")
    settings = Model(**{name: facts[name] for name in names}, shape=facts.get("shape"))
    if settings.scale == "auto":
        raise ValueError("scale is 'auto'")
    if tensors["head.weight"].shape[:1] != (len(facts["classes"]),):  # before a network of that size is made
        raise ValueError("not as many classes as outputs")
    return make_model(settings, len(facts["classes"]), seed=0)


def _check_facts(facts: dict[str, Any]) -> None:
    """ValueError when classes or normalisation cannot be those that a run wrote."""
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
