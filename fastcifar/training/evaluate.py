"""Accuracy of any model over any images, plain and averaged over mirrored (and shifted) views.

The views of test-time augmentation are added to the plain logits. With a share below 1 only the images of which the
model is least sure get them: on the others they change nothing and cost most of the evaluation (idea: hiverge's
CIFAR-10 speedrun, 2025). x is [B, C, H, W], logits are [B, K].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.augment.images import DeviceImages, test_batches
from fastcifar.config import Evaluation
from fastcifar.training.processes import sum_over_processes
from fastcifar.training.step import autocast
from fastcifar.training.task import Task

EVAL_BATCH = 1000

Model = Callable[[Tensor], Tensor]


def flip(model: Model, x: Tensor, logits: Tensor) -> Tensor:
    """Mean logits of images and their mirrors, from the images' own."""
    return (logits + model(x.flip(-1))) / 2


def flip_shift(model: Model, x: Tensor, logits: Tensor) -> Tensor:
    """Half `flip` of the image, half of the image shifted by one pixel up-left and down-right: six views (airbench)."""
    size = x.shape[-1]
    padded = F.pad(x, (1, 1, 1, 1), "reflect")
    views = (channels_last(padded[..., d : d + size, d : d + size]) for d in (0, 2))
    return flip(model, x, logits) / 2 + sum(flip(model, v, model(v)) for v in views) / 4


def channels_last(x: Tensor) -> Tensor:
    """In the layout of the training batches, so that a compiled model is not compiled again."""
    return x.contiguous(memory_format=torch.channels_last)


VIEWS: dict[str, Callable[[Model, Tensor, Tensor], Tensor]] = {
    "none": lambda model, x, logits: logits,
    "flip": flip,
    "flip-shift": flip_shift,
}


def count_unsure(batch: int, share: float) -> int:
    """How many images of a batch get further views."""
    return math.ceil(share * batch)


def with_views(model: Model, x: Tensor, tta: str, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Plain logits, and those with the views for the `share` of images whose two largest logits are closest."""
    plain = model(x)
    if share == 1 or tta == "none":
        return plain, VIEWS[tta](model, x, plain)
    first, second = plain.topk(2, dim=1).values.unbind(1)
    unsure = (first - second).topk(count_unsure(len(x), share), largest=False).indices
    better = VIEWS[tta](model, channels_last(x[unsure]), plain[unsure])
    return plain, plain.index_copy(0, unsure, better)


@torch.no_grad()
def count_right(model: Model, batches: Iterable[tuple[Tensor, Tensor, int]], tta: str = "none",
                share: float = 1.0) -> Tensor:  # fmt: skip
    """How many images have their largest logit at the label, plainly and with views: int64 [2] on the device, no wait.

    batches: x [B, 3, 32, 32], y [B], and how many rows of the batch count. The model must be in eval mode.
    """
    counts = []
    for x, y, real in batches:
        both = torch.stack(with_views(model, x, tta, share))  # [2, B, K]
        counts.append((both.argmax(2) == y)[:, :real].sum(1))
    return torch.stack(counts).sum(0)


def batch_size(images: DeviceImages) -> int:
    """Images evaluated at once."""
    return min(EVAL_BATCH, len(images.labels))


def accuracies(
    task: Task, model: nn.Module, images: DeviceImages, evaluation: Evaluation | None = None
) -> tuple[float, float]:
    """Plain accuracy, and the one with the views of `evaluation`, over the images of all processes together."""
    views = evaluation or Evaluation()
    model.eval()
    with autocast(task.hardware):
        right = count_right(model, test_batches(images, batch_size(images)), views.tta, views.tta_share)
    count = int(sum_over_processes(torch.tensor(len(images.labels)), task.world))  # on the host: known without a wait
    plain, with_views = sum_over_processes(right, task.world).tolist()
    return plain / count, with_views / count
