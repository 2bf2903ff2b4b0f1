"""Accuracy of any model over any images, plain and averaged over mirrored (and shifted) views.

The views of test-time augmentation are added to the plain logits. With a share below 1 only the images of which the
model is least sure get them, chosen among all images: on the others they change nothing and cost most of the evaluation
(idea: hiverge's CIFAR-10 speedrun, 2025). N images, B of a batch, K classes; x is [B, C, H, W], logits are [B, K].
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.augment.images import DeviceImages
from fastcifar.models.folded import fold
from fastcifar.models.fused import is_fused
from fastcifar.models.resnet9 import ResNet9
from fastcifar.training.processes import sum_over_processes
from fastcifar.training.step import Capture, may_fail
from fastcifar.training.task import Task

EVAL_BATCH, CARD_BATCH = 1000, 2000
"""Most images evaluated at once; on a CUDA card, which a thousand images do not fill."""

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


def most_at_once(device: torch.device) -> int:
    """Most images of a batch."""
    return CARD_BATCH if device.type == "cuda" else EVAL_BATCH


def in_batches(count: int, most: int) -> tuple[int, int]:
    """Number and size of equal batches of at most `most` that hold `count` images, with as few to spare as can be."""
    batches = math.ceil(count / most)
    return batches, math.ceil(count / batches)


def batch_sizes(images: DeviceImages, tta: str = "none", share: float = 1.0) -> set[int]:
    """Sizes of the batches that an evaluation runs the model on."""
    num, most = len(images.labels), most_at_once(images.labels.device)
    return {in_batches(count, most)[1] for count in ([num] if tta == "none" else [num, count_unsure(num, share)])}


def count_unsure(num: int, share: float) -> int:
    """How many of all images get further views."""
    return math.ceil(share * num)


@torch.no_grad()
def all_logits(model: Model, images: DeviceImages, tta: str = "none", share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits [N, K] f32 of all images: plain ones, and those with views for the `share` of all N images whose two
    largest logits are closest. Every accuracy is counted from these, that of a run and those measured later.

    The model must be in eval mode. The arithmetic is that of the batches' dtype. Nothing waits, so that a CUDA graph
    can hold it all.
    """
    num, device = len(images.labels), images.labels.device

    def over(rows: Tensor, logits_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[n, K]: all batches have one shape, the last one is filled up from the first rows [n]."""
        count, size = in_batches(len(rows), most_at_once(device))
        filled = rows[torch.arange(count * size, device=device) % len(rows)]
        return torch.cat([logits_of(images.batch(part), part) for part in filled.view(count, size)])[: len(rows)]

    rows = torch.arange(num, device=device)
    with torch.autocast(device.type, images.dtype, enabled=images.dtype != torch.float32):
        plain = over(rows, lambda x, part: model(x))
        if tta == "none":
            return plain, plain
        if share < 1:
            first, second = plain.topk(2, dim=1).values.unbind(1)
            rows = (first - second).topk(count_unsure(num, share), largest=False).indices
        better = over(rows, lambda x, part: VIEWS[tta](model, x, plain[part]))
    return plain, plain.index_copy(0, rows, better)


class Measured(NamedTuple):
    """Of all images: fractions with the largest logit at the label, and the mean loss."""

    plain: float
    with_views: float
    loss: float
    """Cross-entropy of the plain logits, without label smoothing."""


def sums(model: Model, images: DeviceImages, tta: str = "none", share: float = 1.0) -> Tensor:
    """Sums of `Measured` over the images: f32 [3] on the device, where counts are exact up to 16 million."""
    plain, with_views = all_logits(model, images, tta, share)
    right = (torch.stack((plain, with_views)).argmax(2) == images.labels).sum(1)
    return torch.cat((right, F.cross_entropy(plain, images.labels, reduction="sum")[None]))


class Evaluator:
    """Accuracies of the network that is trained, over the images of all processes together.

    Where the step is a CUDA graph, two more are captured, for the accuracy of an epoch and for the final one with
    views: an evaluation is then one replay. With the fused kernels it begins with folding the batch norms into the
    filters. Where the views are for a share of the images, each process takes that share of its own.
    """

    def __init__(self, task: Task, model: nn.Module, capture: Capture | None = None) -> None:
        self.task, self.model = task, model
        self.captured: dict[tuple[int, str, float], tuple[Callable[[], None], Tensor]] = {}
        if capture:
            final = task.config.evaluation
            wanted = ((task.watched, "none", 1.0), (task.test, final.tta, final.tta_share))
            model.eval()
            with may_fail("the evaluation", task.hardware.device):
                for key, images in {(id(images), tta, share): images for images, tta, share in wanted}.items():
                    self.captured[key] = self._capture(capture, images, *key[1:])

    def __call__(self, images: DeviceImages, tta: str = "none", share: float = 1.0) -> Measured:
        """Accuracies and loss over the images. Puts the network into eval mode."""
        self.model.eval()
        captured = self.captured.get((id(images), tta, share))
        if captured is None:
            total = sums(self.model, images, tta, share)
        else:
            replay, total = captured
            replay()
        count = int(sum_over_processes(torch.tensor(len(images.labels)), self.task.world))  # on the host: no wait
        return Measured(*(value / count for value in sum_over_processes(total, self.task.world).tolist()))

    def _capture(
        self, capture: Capture, images: DeviceImages, tta: str, share: float
    ) -> tuple[Callable[[], None], Tensor]:
        """A replay and where its sums lie. It runs once before, so that kernels are loaded and chosen."""
        total = torch.zeros(3, device=images.labels.device)
        work = partial(self._sum_into, total, images, tta, share)
        work()
        return capture(work), total

    def _sum_into(self, total: Tensor, images: DeviceImages, tta: str, share: float) -> None:
        total.copy_(sums(self._network(), images, tta, share))

    def _network(self) -> Model:
        """The network by its weights of now, with folded batch norms where the Triton kernels run."""
        model = self.model
        if is_fused(model) and isinstance(model, ResNet9):
            return fold(model, self.task.hardware.dtype, kernel=True)
        return model
