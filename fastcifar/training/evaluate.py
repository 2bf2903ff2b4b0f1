"""Accuracy of any model over any images, plain and averaged over mirrored (and shifted) views.

The views of test-time augmentation are added to the plain logits. With a share below 1 only the images of which the
model is least sure get them: on the others they change nothing and cost most of the evaluation (idea: hiverge's
CIFAR-10 speedrun, 2025). x is [B, C, H, W], logits are [B, K].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.augment.images import DeviceImages
from fastcifar.training.hardware import Hardware
from fastcifar.training.processes import sum_over_processes
from fastcifar.training.step import Recorder, autocast, may_fail
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


def batch_size(images: DeviceImages, most: int = EVAL_BATCH) -> int:
    """Images evaluated at once."""
    return min(most, len(images.labels))


class RightAnswers:
    """Counts the images whose largest logit is at their label, plainly and with views, batch by batch in order.

    Which batch is next and the counts lie on the device, so that a CUDA graph can hold `add_batch`. The last batch is
    filled up from the first images, which do not count again: all batches have one shape. Nothing waits.
    """

    def __init__(self, model: Model, images: DeviceImages, hardware: Hardware, tta: str = "none", share: float = 1.0,
                 batch: int = EVAL_BATCH) -> None:  # fmt: skip
        self.model, self.images, self.hardware, self.tta, self.share = model, images, hardware, tta, share
        self.first_rows = torch.arange(batch_size(images, batch), device=images.labels.device)
        self.rows = self.first_rows.clone()  # of the batch that is next
        self.counts = torch.zeros(2, dtype=torch.int64, device=images.labels.device)
        self.next: Callable[[], None] = self.add_batch

    def __call__(self) -> Tensor:
        """Counts over all images, plainly and with views: int64 [2] on the device. The model must be in eval mode."""
        self.rows.copy_(self.first_rows)
        self.counts.zero_()
        for _ in range(math.ceil(len(self.images.labels) / len(self.rows))):
            self.next()
        return self.counts

    @torch.no_grad()
    def add_batch(self) -> None:
        """Adds the batch at `rows` and goes on to the one after it."""
        images, num = self.images, len(self.images.labels)
        rows = self.rows % num
        x = images.normalize(images.padded[rows]).permute(0, 3, 1, 2)  # [B, C, H, W] channels_last by strides
        with autocast(self.hardware):
            both = torch.stack(with_views(self.model, x, self.tta, self.share))  # [2, B, K]
        self.counts += ((both.argmax(2) == images.labels[rows]) & (self.rows < num)).sum(1)
        self.rows += len(self.rows)

    def record(self, recorder: Recorder) -> None:
        """From now on a batch is a replay. It runs once before, so that kernels are loaded and chosen."""
        self.add_batch()
        self.next = recorder(self.add_batch)


class Evaluator:
    """Accuracies of a run over the images of all processes together, by CUDA graphs where the step is one.

    Two graphs are recorded on the network that is trained, for the accuracy of an epoch and for the final one with
    views. A graph reads fixed addresses, so other weights are copied into that network while they are measured.
    """

    def __init__(self, task: Task, model: nn.Module, recorder: Recorder | None = None) -> None:
        self.task, self.model = task, model
        self.recorded: dict[tuple[int, str, float], RightAnswers] = {}
        if recorder:
            final = task.config.evaluation
            wanted = ((task.watched, "none", 1.0), (task.test, final.tta, final.tta_share))
            model.eval()
            with may_fail("the evaluation", task.hardware.device):
                for key, images in {(id(images), tta, share): images for images, tta, share in wanted}.items():
                    answers = RightAnswers(model, images, task.hardware, *key[1:])
                    answers.record(recorder)
                    self.recorded[key] = answers

    def __call__(self, model: nn.Module, images: DeviceImages, tta: str = "none",
                 share: float = 1.0) -> tuple[float, float]:  # fmt: skip
        """Plain accuracy of a model over the images, and the one with views. Puts the model into eval mode."""
        model.eval()
        answers = self.recorded.get((id(images), tta, share))
        if answers is None:
            right = RightAnswers(model, images, self.task.hardware, tta, share)()
        else:
            self.model.eval()
            with nullcontext() if model is self.model else self._weights_of(model):
                right = answers()
        count = int(sum_over_processes(torch.tensor(len(images.labels)), self.task.world))  # on the host: no wait
        plain, with_views = sum_over_processes(right, self.task.world).tolist()
        return plain / count, with_views / count

    @contextmanager
    def _weights_of(self, other: nn.Module) -> Iterator[None]:
        """Lends the recorded network the weights and statistics of another model."""
        own, lent = ([t for t in m.state_dict().values() if t.is_floating_point()] for m in (self.model, other))
        before = torch._foreach_mul(own, 1)  # copies, in one launch
        torch._foreach_copy_(own, lent)
        try:
            yield
        finally:
            torch._foreach_copy_(own, before)
