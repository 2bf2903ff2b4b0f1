"""A trained model in use: uint8 images in, classes and probabilities out. Normalisation is part of the module."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcifar.augment.images import DeviceImages
from fastcifar.data.pixels import to_rgb_32
from fastcifar.models.own_network import Network
from fastcifar.runs.model_file import find_model, load_model
from fastcifar.training.evaluate import VIEWS, all_logits

if TYPE_CHECKING:
    from fastcifar.inference.hub_folder import Material


class Classifier(nn.Module):
    """A network with its normalisation and class names.

    `forward` takes uint8 images [B, 32, 32, 3] as a tensor and gives logits [B, K] f32; it can be exported.
    """

    mean: Tensor
    std: Tensor
    origin: Path | Material | None = None
    """What a model card is made of: the file that was loaded, or the run that has just ended. None: there is none."""

    def __init__(self, network: nn.Module, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network, self.classes = network, tuple(classes)
        self.register_buffer("mean", torch.tensor(mean) * 255)
        self.register_buffer("std", torch.tensor(std) * 255)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() - self.mean) / self.std
        logits: Tensor = self.network(x.permute(0, 3, 1, 2))  # channels_last by strides
        return logits

    def logits(
        self, images: Any, views: bool | str = False, share: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Logits [N, K] f32 on the CPU, of images [N, H, W, C], [N, C, H, W] or [N, H, W], as `fit` takes them.

        The accuracy of a run is counted from the same logits (`fastcifar.training.evaluate.all_logits`). A single image
        [H, W, C] or [H, W] is a batch of one.

        views: averaged over these views, by their name for --tta; True: the image and its mirror, as "flip". share: of
        all N images, the least sure ones, that get the views. dtype: of the arithmetic. Raises DataError, a ValueError,
        for other arrays, and ValueError for other views or shares.
        """
        tta = views if isinstance(views, str) else "flip" if views else "none"
        if tta not in VIEWS:
            raise ValueError(f"views is {tta!r}; choose from {', '.join(VIEWS)}")
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; it must be above 0 and at most 1")
        array = np.asarray(images)
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3)):  # a width of 3 pixels is refused anyway
            array = array[None]
        pixels = torch.from_numpy(to_rgb_32(array)).to(self.mean.device)
        if not len(pixels):
            return torch.empty(0, len(self.classes))
        labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)  # not looked at
        taken = DeviceImages(pixels, labels, self.mean, 1 / self.std, pad_px=0, dtype=dtype)
        return all_logits(self.eval().network, taken, tta, share)[1].float().cpu()

    def predict_proba(self, images: Any, views: bool | str = True) -> Tensor:
        """Probabilities [N, K] f32 of all classes, as `classes` orders them, of uint8 images as `logits` takes them."""
        return self.logits(images, views).softmax(1)

    def predict(self, images: Any, views: bool | str = True) -> tuple[list[str], Tensor]:
        """(most probable classes [N], their probabilities [N] f32) of uint8 images, as `logits` takes them."""
        probability, label = self.predict_proba(images, views).max(1)
        return [self.classes[i] for i in label.tolist()], probability

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, network: Network | None = None, **arguments: Any
    ) -> Classifier:
        """The model of a repository "USER/NAME" on the Hugging Face hub, or of a folder of `save_pretrained`.

        network: as for `load`. arguments: revision, token, cache_dir, force_download and local_files_only, as
        huggingface_hub has them. No code is executed. Raises ValueError when there is no such model, it is damaged or
        huggingface_hub is not installed.
        """
        require_hub()
        from fastcifar.inference.hub import fetch

        return load(fetch(name_or_folder, arguments), network)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> str | None:
        """Writes model.safetensors, config.json and a model card, README.md, as `fastcifar export` does.

        save_directory: must be new or empty. arguments: those of huggingface_hub's `ModelHubMixin.save_pretrained`.
        The model is a `Result`'s, or loaded from the folder of a run; its figures are in the card. Raises ValueError
        when there are none, or the weights have changed since, or huggingface_hub is not installed.
        """
        require_hub()
        from fastcifar.inference.hub import HubModel

        return HubModel(self).save_pretrained(save_directory, **arguments)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """Publishes what `save_pretrained` writes as the repository "USER/NAME", and returns the URL of the commit.

        arguments: those of huggingface_hub's `ModelHubMixin.push_to_hub`: private, token, branch, commit_message, ...
        Raises ValueError as `save_pretrained`, and when the hub refuses.
        """
        require_hub()
        from fastcifar.inference.hub import publish

        return publish(self, repo_id, arguments)


def require_hub() -> None:
    """ValueError when huggingface_hub is not installed. A run does not need it, so nothing else imports it."""
    if find_spec("huggingface_hub") is None:
        raise ValueError("the Hugging Face hub needs a package that is not installed: pip install huggingface_hub")


def load(run_or_file: str | Path, network: Network | None = None) -> Classifier:
    """The classifier of a run folder or a model.safetensors. ValueError when there is none or it is damaged.

    network: the module that was trained, or the function that makes it, where it came from Python.
    """
    return load_with_facts(find_model(Path(run_or_file)), network)[0]


def load_with_facts(path: Path, network: Network | None = None) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a model.safetensors, and the facts beside its weights. ValueError when it is damaged."""
    model, facts = load_model(path, network=network)
    classifier = Classifier(model, facts["classes"], facts["mean"], facts["std"]).eval()
    classifier.origin = path
    return classifier, facts
