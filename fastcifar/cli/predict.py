"""`fastcifar predict IMAGE ... --run RUN_DIR`: classes of images by the model of a run, one line per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from fastcifar.runs.classifier import find_model as newest_model
from fastcifar.runs.model_file import load_model


@dataclass(frozen=True)
class Options:
    """Classes of images, by the model of a run."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files; other sizes than 32x32 are resized."""
    run: Path = Path("runs")
    """Run folder (or its model.safetensors); below runs/ the newest is taken."""
    top: int = 3
    """How many classes to name for each image."""


def main(argv: Sequence[str]) -> int:
    """Prints a line per image and returns the exit code. ValueError when a model or an image cannot be read."""
    options = tyro.cli(Options, args=list(argv), prog="fastcifar predict")
    model, facts = load_model(newest_model(options.run))
    mean, std = (torch.tensor(facts[k]).view(3, 1, 1) for k in ("mean", "std"))
    for path in options.images:
        x = (read_image(path) - mean) / std  # [3, 32, 32]
        with torch.no_grad():
            logits = model(torch.stack([x, x.flip(-1)]).contiguous(memory_format=torch.channels_last)).mean(0)
        best = logits.softmax(0).topk(min(options.top, len(logits)))
        shown = ", ".join(
            f"{facts['classes'][i]} {p:.1%}" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        print(f"{path}: {shown}")
    return 0


def read_image(path: Path) -> Tensor:
    """An image file as [3, 32, 32] f32 in [0, 1]. ValueError when it is no PNG, JPEG, WebP or BMP image."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError(f"{path}: cannot be read as an image ({e})") from e
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
