"""The `fastcifar` command: `schedule` draws schedules, `predict` names images, `doctor` tells what works here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from fastcifar import checkpoint, flags, plots
from fastcifar.config import Config
from fastcifar.entry import preview
from fastcifar.job import network
from fastcifar.machine import choose
from fastcifar.record import MODEL_FORMAT, versions


@dataclass(frozen=True)
class Predict:
    """Classes of images, by the model of a run."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files; other sizes than 32x32 are resized."""
    run: Path = Path("runs")
    """Run folder (or its model.safetensors); below runs/ the newest is taken."""
    top: int = 3
    """How many classes to name for each image."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code. Wrong use or bad input: 2 and one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"schedule": schedule, "predict": predict, "doctor": doctor}
    if not words or words[0] not in commands:
        asked = words[:1] in (["-h"], ["--help"])
        print(f"usage: fastcifar {{{','.join(commands)}}} [--help]", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        return commands[words[0]](words[1:])
    except (ValueError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2


def schedule(argv: list[str]) -> int:
    """`fastcifar schedule --recipe A [--recipe B ...] [flags]`: learning rate and momentum of each on one picture."""
    names, rest, path = [], [], Path("schedule.png")
    words = iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--recipe":
            names += (value or next(words, "")).split(",")
        elif flag == "--out":
            path = Path(value or next(words, ""))
        else:
            rest.append(word)
    curves = {}
    for name in names or ["swa30"]:
        config = flags.parse(["--recipe", name, *rest], prog="fastcifar schedule")
        curves[name] = preview(config)
    plots.draw_schedules(path, curves)
    print(path)
    return 0


def predict(argv: list[str]) -> int:
    """`fastcifar predict IMAGE ... --run RUN_DIR`: one line per image, best classes first."""
    asked = tyro.cli(Predict, args=argv, prog="fastcifar predict")
    model, facts = load_model(newest_model(asked.run))
    mean, std = (torch.tensor(facts[k]).view(3, 1, 1) for k in ("mean", "std"))
    for path in asked.images:
        x = (read_image(path) - mean) / std  # [3, 32, 32]
        with torch.no_grad():
            logits = model(torch.stack([x, x.flip(-1)]).contiguous(memory_format=torch.channels_last)).mean(0)
        best = logits.softmax(0).topk(min(asked.top, len(logits)))
        shown = ", ".join(
            f"{facts['classes'][i]} {p:.1%}" for p, i in zip(*map(torch.Tensor.tolist, best), strict=True)
        )
        print(f"{path}: {shown}")
    return 0


def newest_model(where: Path) -> Path:
    """The model file that is meant by a file, a run folder or a folder of runs."""
    if where.is_file():
        return where
    found = [*where.glob("model.safetensors"), *where.glob("*/model.safetensors")]
    if not found:
        raise ValueError(f"{where}: no model.safetensors in it; give the folder of a finished run with --run")
    return max(found, key=lambda p: p.stat().st_mtime)


def load_model(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network of a model.safetensors in eval mode, and its facts (classes, mean, ...). ValueError if damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            facts = dict(f.metadata() or {})
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
        if facts.pop("format", None) != MODEL_FORMAT:
            raise ValueError("not written by this version of fastcifar")
        facts = {k: json.loads(v) for k, v in facts.items()}
        config = _config_of(facts)
        if tensors["head.weight"].shape[:1] != (len(facts["classes"]),):  # before a network of that size is made
            raise ValueError("not as many classes as outputs")
        model = network(config, len(facts["classes"]))
        checkpoint.check(tensors, dict(model.state_dict()), "weights")
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as e:
        told = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise ValueError(f"{path}: not a whole fastcifar model ({told}); give --run another one") from e
    return model.eval(), facts


def _config_of(facts: dict[str, Any]) -> Config:
    """The network's settings; ValueError when what stands beside the weights cannot be what a run wrote."""
    config = Config(network=facts["network"], scale=facts["scale"], norm=facts["norm"], activation=facts["activation"])
    if config.scale == "auto":
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
    return config


def read_image(path: Path) -> torch.Tensor:
    """An image file as [3, 32, 32] f32 in [0, 1]; ValueError when it is none."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError(f"{path}: cannot be read as an image ({e})") from e
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def doctor(argv: list[str]) -> int:
    """`fastcifar doctor`: versions, the device, and for what is missing the command that brings it."""
    chosen = choose(flags.recipe("swa30"))
    for name, version in versions().items():
        print(f"{name:12s} {version or '-'}")
    print(
        f"device       {chosen.name}\ncompute      {chosen.precision}, compile {chosen.compile}, scale {chosen.scale}"
    )
    print(f"augmentation {chosen.augment}")
    if versions()["dali"] is None:
        print(
            "DALI is not installed: pip install nvidia-dali-cuda130 (driver 580 or later; older: nvidia-dali-cuda120)"
        )
    if chosen.device.type == "cuda" and versions()["driver"] is None:
        print("nvidia-smi does not run: the driver's version is not known")
    return 0


if __name__ == "__main__":
    sys.exit(main())
