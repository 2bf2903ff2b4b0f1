"""The refresh of batch norm in a run: which images it reads, and its CUDA graph where the step is one.

Shapes: K batches of B images, C = 3 channels, S x S = 32 pixels.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastcifar.augment.plan import EpochPlan
from fastcifar.optim.averaging import REFRESH_IMAGES, batch_norms, refresh_batch_norm
from fastcifar.training.evaluate import CARD_BATCH
from fastcifar.training.state import State
from fastcifar.training.step import Capture, autocast, may_fail
from fastcifar.training.task import Task


def refresh_shape(task: Task) -> tuple[int, int]:
    """K and B: as many batches of the training size as `REFRESH_IMAGES` has; on one card the same images in larger
    ones, as a small batch does not fill it."""
    count = max(1, min(task.steps_per_epoch, REFRESH_IMAGES // task.batch_size))
    size = task.batch_size // task.world.size
    if task.hardware.device.type == "cuda" and task.world.size == 1:
        larger = min(max(size, CARD_BATCH), count * size)
        count, size = count * size // larger, larger
    return count, size


def refresh_plan(task: Task) -> EpochPlan:
    """The first images of the epoch after the last, in K batches of B."""
    count, size = refresh_shape(task)
    plan = task.plan(-(-task.num_steps // task.steps_per_epoch))
    return plan.map(lambda t: t.flatten()[: count * size].view(count, size))


def refresh_batches(task: Task) -> Iterator[Tensor]:
    """Augmented training images: K batches [B, C, S, S] channels_last."""
    return (x for x, _ in task.executor.epoch(refresh_plan(task)))


class Refresh:
    """Re-estimates the batch norms of the network that is trained (`refresh_batch_norm`).

    Where the step is a CUDA graph, so is this, with all its batches: one replay on images that are copied to where it
    reads them. Rehearsal and capture restore the state in the end.
    """

    def __init__(self, task: Task, state: State, capture: Capture | None = None) -> None:
        self.task, self.model = task, state.model
        self.replay: Callable[[], None] | None = None
        if capture and task.config.tail and batch_norms(self.model):
            hardware = task.hardware
            with may_fail("the batch-norm refresh", hardware.device), state.preserved():
                self.images = torch.zeros(*refresh_shape(task), 32, 32, 3, dtype=hardware.dtype, device=hardware.device)
                self._refresh_by_images()  # loads and chooses kernels
                self.replay = capture(self._refresh_by_images)

    @torch.no_grad()
    def __call__(self) -> None:
        """Refreshes the statistics with the weights that the network has now."""
        batches = refresh_batches(self.task)
        if self.replay is None:
            self._refresh(batches)
            return
        for place, x in zip(self._batches(), batches, strict=True):
            place.copy_(x)
        self.replay()

    def _batches(self) -> Iterator[Tensor]:
        """What the graph reads: K batches [B, C, S, S] channels_last."""
        return iter(self.images.permute(0, 1, 4, 2, 3).unbind())

    def _refresh_by_images(self) -> None:
        self._refresh(self._batches())

    def _refresh(self, batches: Iterator[Tensor]) -> None:
        with autocast(self.task.hardware):
            refresh_batch_norm(self.model, batches)
