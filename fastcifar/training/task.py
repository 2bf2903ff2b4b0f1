"""What a run is, before its first step: what is trained on what, all of it fixed (`Task`).

Shapes: B images of a step, N training images, K classes. Steps and epochs count from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.augment.executor import Executor, make_executor
from fastcifar.augment.images import DeviceImages, to_device
from fastcifar.augment.plan import EpochPlan, draw_plan, image_size
from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.data.dataset import Dataset, hold_out
from fastcifar.models.counts import count_parameters, train_flop
from fastcifar.models.networks import make_model
from fastcifar.models.own_network import own_network
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim.schedule_table import count_steps
from fastcifar.training.fixed_parts import saved_flop, stem_fixed_from_px
from fastcifar.training.hardware import Hardware
from fastcifar.training.parts import NO_PARTS, Loss, Parts, check_network, check_parts
from fastcifar.training.processes import World

NO_COMMAND = Command()
WHITENED = 5000
"""Training images that the stem's filters are made of on a CPU."""


@dataclass(frozen=True)
class Task:
    """What is trained on what: settings, hardware, data on the device. Nothing in it changes while training."""

    config: Config
    """Resolved: nothing in it is `auto` but the device, which `hardware` has."""
    hardware: Hardware
    dataset: Dataset
    world: World
    executor: Executor
    test: DeviceImages
    watched: DeviceImages
    """Images that the accuracy per epoch is measured on: the test images, or held-out ones with val_split."""
    num_train: int
    steps_per_epoch: int
    network: nn.Module
    """The network of the config's seed before its first step, in fp32 on the CPU: a run trains a copy of it. Its stem
    has the whitening filters of the training images, but where they are made on a card, in the timed part of a run."""
    num_parameters: int
    flop_per_image: dict[int, float]
    """Forward and backward, by image size in pixels: those that occur in the run, in increasing order."""
    can_capture: bool
    """Whether a CUDA graph can hold the step: the host may decide and read nothing in it."""
    parts: Parts = NO_PARTS
    """What came from Python in place of settings."""
    command: Command = NO_COMMAND
    """What this call does with the run."""

    @property
    def loss(self) -> Loss:
        """(logits [B, K] f32, labels [B] int64 or [B, K]) -> scalar."""
        smoothing = self.config.optimizer.label_smoothing
        return self.parts.loss or partial(F.cross_entropy, label_smoothing=smoothing)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run, its extension included."""
        return count_steps(self.config.final_epochs, self.steps_per_epoch)

    @property
    def batch_size(self) -> int:
        """Images of a step, of all processes together."""
        return min(self.config.optimizer.batch_size, self.num_train)

    @property
    def image_sizes(self) -> list[int]:
        """Image sizes in pixels that occur in the run, in increasing order."""
        return list(self.flop_per_image)

    @property
    def train_pflop(self) -> float:
        """PFLOP of forward and backward over the whole run."""
        return self.pflop(self.num_steps)

    def pflop(self, num_steps: int) -> float:
        """PFLOP of forward and backward over so many steps from the first."""
        per_epoch = self.steps_per_epoch * self.batch_size
        whole, steps_left = divmod(num_steps, self.steps_per_epoch)
        images = [per_epoch] * whole + [steps_left * self.batch_size]
        flop = sum(n * self.flop_per_image[image_size(self.config, e)] for e, n in enumerate(images) if n)
        return (flop - saved_flop(self, num_steps)) / 1e15

    def plans(self, first_step: int = 0) -> Iterator[tuple[EpochPlan, int]]:
        """(plan, image size in pixels) of each epoch from `first_step` to the end of the run, drawn when needed."""
        epoch, first = divmod(first_step, self.steps_per_epoch)
        while (done := epoch * self.steps_per_epoch) < self.num_steps:
            last = min(self.steps_per_epoch, self.num_steps - done)
            if first < last:
                yield self.plan(epoch).steps(first, last), image_size(self.config, epoch)
            epoch, first = epoch + 1, 0

    def plan(self, epoch: int) -> EpochPlan:
        """This process's share of an epoch's random draws."""
        labels = self.dataset.y_train
        return draw_plan(self.config, self.num_train, epoch, labels).part(self.world.rank, self.world.size)

    def with_config(self, config: Config) -> Task:
        """The same with another seed, and so another network, or other files."""
        network = self.network
        if config.seed != self.config.seed:
            network = _make_network(config, len(self.dataset.classes), self.world, self.parts)
            if isinstance(network, ResNet9) and isinstance(self.network, ResNet9):  # the filters are those of all seeds
                network.stem.weight.data.copy_(self.network.stem.weight)
        return replace(self, config=config, network=network)


def make_task(
    config: Config,
    dataset: Dataset,
    hardware: Hardware,
    world: World | None = None,
    parts: Parts = NO_PARTS,
    command: Command = NO_COMMAND,
) -> Task:
    """Puts the data on the device, builds the network and derives everything fixed from the settings.

    config: resolved, as is `hardware` (`fastcifar.training.hardware.resolve`). On a card the images have no borders
    yet: `fastcifar.training.start.preprocess` makes them. Raises ValueError when settings, data, parts from Python and
    number of processes do not fit together.
    """
    world, on_card = world or World(), hardware.on_card
    check_parts(config, parts)
    held_out: list[Any] = []
    if config.data.val_split:
        dataset, *held_out = hold_out(dataset, config.data.val_split)
    num_train = len(dataset.y_train)
    batch = min(config.optimizer.batch_size, num_train)
    if batch % world.size:
        raise ValueError(f"batch_size {batch} does not divide among {world.size} processes; choose a multiple")
    if min(len(labels) for labels in (dataset.y_test, *held_out[1:])) < world.size:
        raise ValueError(f"fewer test images than the {world.size} processes; use a larger set or fewer processes")

    def on_device(images: Any, labels: Any, pad_px: int) -> DeviceImages:
        return to_device(images, labels, dataset.mean, dataset.std, pad_px, hardware.device, hardware.dtype,
                         borders=not on_card)  # fmt: skip

    def share(images: Any, labels: Any) -> DeviceImages:
        return on_device(images[world.rank :: world.size], labels[world.rank :: world.size], 0)

    test = share(dataset.x_test, dataset.y_test)
    train_images = on_device(dataset.x_train, dataset.y_train, config.augment.crop_pad_px)
    executor = make_executor(config.machine.executor, train_images, config.augment.cutout_px)
    network = _make_network(config, len(dataset.classes), world, parts)
    if isinstance(network, ResNet9) and not on_card:
        network.stem.weight.data.copy_(filters_of_dataset(network, dataset))
    sizes_px = sorted({*config.augment.low_res_px, 32})
    if parts.network is not None:
        check_network(copy.deepcopy(network), len(dataset.classes), sizes_px)
    return Task(
        config=config, hardware=hardware, dataset=dataset, world=world, num_train=num_train, executor=executor,
        test=test, watched=share(*held_out) if held_out else test, steps_per_epoch=num_train // batch,
        network=network, num_parameters=count_parameters(network), parts=parts, command=command,
        flop_per_image={size: train_flop(network, size) for size in sizes_px},
        can_capture=_can_capture(config, hardware, world),
    )  # fmt: skip


def _can_capture(config: Config, hardware: Hardware, world: World) -> bool:
    """Excluded are gradients shared between processes, the compile modes that capture graphs themselves, and apex,
    whose kernel takes momentum as a number."""
    return (
        config.machine.cuda_graph
        and hardware.on_card
        and config.optimizer.name != "apex-sgd"
        and world.size == 1
        and config.machine.compile in ("off", "default")
    )


def _make_network(config: Config, num_classes: int, world: World, parts: Parts) -> nn.Module:
    """The network of a run on the CPU, before its first step."""
    if parts.network is not None:
        return own_network(parts.network, config.seed)
    model = make_model(config.model, num_classes, config.seed)
    if isinstance(model, ResNet9) and world.size == 1:
        model.stem_fixed_from_px = stem_fixed_from_px(config)
    return model


def filters_of_dataset(model: ResNet9, dataset: Dataset) -> Tensor:
    """Whitening filters [C0, 3, 2, 2] f64 of the training images, the same for every seed."""
    pixels = torch.as_tensor(dataset.x_train[spread_rows(len(dataset.y_train), WHITENED).numpy()]).float() / 255
    mean, std = (torch.tensor(v) for v in (dataset.mean, dataset.std))
    return model.whitening_filters(((pixels - mean) / std).permute(0, 3, 1, 2))


def spread_rows(num_images: int, most: int) -> Tensor:
    """Some images, of all classes also where they lie sorted."""
    return torch.linspace(0, num_images - 1, min(most, num_images)).long()
