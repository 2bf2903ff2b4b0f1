"""A trained model in use: uint8 images in, classes and probabilities out. Normalisation is part of the module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.pixels import to_rgb_32
from fastcifar.models.networks import Network
from fastcifar.runs.model_file import find_model, load_model

BATCH = 1000
"""Images classified at once."""


class Classifier(nn.Module):
    """A network with its normalisation and class names.

    `forward` takes uint8 images [B, 32, 32, 3] as a tensor and gives logits [B, K] f32; it can be exported.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network, self.classes = network, tuple(classes)
        self.register_buffer("mean", torch.tensor(mean) * 255)
        self.register_buffer("std", torch.tensor(std) * 255)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() - self.mean) / self.std
        logits: Tensor = self.network(x.permute(0, 3, 1, 2))  # channels_last by strides
        return logits

    @torch.no_grad()
    def logits(self, images: Any, views: bool = False) -> Tensor:
        """Logits [N, K] f32 on the CPU, of images [N, H, W, C], [N, C, H, W] or [N, H, W], as `fit` takes them.

        views: average over the image and its mirror. Raises DataError, a ValueError, for other arrays.
        """
        pixels = torch.from_numpy(to_rgb_32(images))
        self.eval()
        parts = []
        for part in pixels.split(BATCH):
            part = part.to(self.mean.device)
            logits = self(part)
            parts.append((logits + self(part.flip(2))) / 2 if views else logits)
        return torch.cat(parts).cpu() if parts else torch.empty(0, len(self.classes))

    def predict(self, images: Any, views: bool = True) -> tuple[list[str], Tensor]:
        """(class names [N], their probabilities [N] f32) of uint8 images, as `logits` takes them."""
        probability, label = self.logits(images, views).softmax(1).max(1)
        return [self.classes[i] for i in label.tolist()], probability


def load(run_or_file: str | Path, network: Network | None = None) -> Classifier:
    """The classifier of a run folder or a model.safetensors. ValueError when there is none or it is damaged.

    network: the module that was trained, or the function that makes it, where it came from Python.
    """
    return load_with_facts(find_model(Path(run_or_file)), network)[0]


def load_with_facts(path: Path, network: Network | None = None) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a model.safetensors, and the facts beside its weights. ValueError when it is damaged."""
    model, facts = load_model(path, network=network)
    return Classifier(model, facts["classes"], facts["mean"], facts["std"]).eval(), facts
