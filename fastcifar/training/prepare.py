"""Before the first step: compiles, runs every shape once on random images, and captures what a graph can hold.

All of it is outside the clock of the training but what a card makes of the real images.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastcifar.augment.images import to_device
from fastcifar.models import conv_choice
from fastcifar.models.fused import fuse, is_fused
from fastcifar.models.resnet9 import ResNet9
from fastcifar.training import evaluate, fixed_parts
from fastcifar.training.compiling import compile_model
from fastcifar.training.evaluate import Evaluator
from fastcifar.training.processes import data_parallel
from fastcifar.training.refresh import Refresh, refresh_shape
from fastcifar.training.start import WHITENED_ON_CARD, filters_of_device_images, preprocess
from fastcifar.training.state import State
from fastcifar.training.step import Step, autocast, make_step, random_batch
from fastcifar.training.stopwatch import captured_ms
from fastcifar.training.task import Task


@dataclass(frozen=True)
class Prepared:
    """What the loop calls."""

    step: Step
    accuracies: Evaluator
    refresh: Refresh
    facts: dict[str, Any]
    """How the network computes on this machine, as the warm-up has found out: a part of summary.json."""


def prepare(task: Task, state: State) -> Prepared:
    """Warms up, and makes step, evaluation and batch-norm refresh, each as a CUDA graph where that can be.

    On a card it ends with borders and filters of the real images, which count as training: other programs make them in
    every run, too.
    """
    model = state.model
    compiled = warm_up(task, model)
    step = make_step(task, state, data_parallel(model, task.world, task.hardware.device))
    accuracies = Evaluator(task, model, step.capture)
    refresh = Refresh(task, state, step.capture)
    if task.hardware.on_card:
        with state.stopwatch("train"):
            preprocess(task, model, is_new=state.step == 0)
    facts = {
        "compile": compiled, "fused_kernels": is_fused(model), "fused_update": step.fused is not None,
        "conv_kernels": conv_choice.choices(model), "conv_ms": conv_choice.timings_ms(model),
    }  # fmt: skip
    return Prepared(step, accuracies, refresh, facts)


def warm_up(task: Task, model: nn.Module) -> str:
    """Compiles the model in place and runs all its shapes; weights and statistics are left as they were.

    Returns the torch.compile mode in use: "off" where the compiler fails, after a warning. Lets resnet9 use its own
    kernels where they work. On a CPU without compiling nothing needs a warm-up.
    """
    mode: str = task.config.machine.compile
    # cuDNN times its kernels for each shape when it first sees it, which is here.
    torch.backends.cudnn.benchmark = task.hardware.on_card and not torch.are_deterministic_algorithms_enabled()
    if mode == "off" and task.hardware.device.type == "cpu":
        return mode
    config, before = task.config, copy.deepcopy(model.state_dict())
    if task.hardware.on_card and isinstance(model, ResNet9):
        _preprocess_noise(task, model)
        if config.machine.fused_kernels and mode == "off" and fuse(model, config.model.activation, task.hardware.dtype):
            conv_choice.use_kernels(model, captured_ms)
    if mode != "off":
        mode = compile_model(model, config, lambda: _run_all_shapes(task, model))
    if mode == "off":
        _run_all_shapes(task, model)
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return mode


def _preprocess_noise(task: Task, model: ResNet9) -> None:
    """Loads the kernels that `preprocess` launches within the clock."""
    generator, hardware = torch.Generator().manual_seed(0), task.hardware
    noise = torch.randint(0, 256, (WHITENED_ON_CARD, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels, statistics = torch.zeros(len(noise), dtype=torch.int64), (task.dataset.mean, task.dataset.std)
    pad_px = task.config.augment.crop_pad_px
    images = to_device(noise, labels, *statistics, pad_px, hardware.device, hardware.dtype)
    filters_of_device_images(model, images)


def _run_all_shapes(task: Task, model: nn.Module) -> None:
    """Forward and backward of each training shape, forward of each evaluation shape and of the batch-norm refresh."""
    generator, config = torch.Generator().manual_seed(0), task.config
    evaluation = config.evaluation
    batch_sizes = evaluate.batch_sizes(task.watched)
    batch_sizes |= evaluate.batch_sizes(task.test, evaluation.tta, evaluation.tta_share)
    shapes = [(True, task.batch_size // task.world.size, *form) for form in fixed_parts.step_forms(task)]
    shapes += [(False, batch, 32, False) for batch in sorted(batch_sizes)]
    for training, batch, size, fixed in shapes:
        fixed_parts.fix_first_stage(model, fixed)
        x = random_batch(task.hardware, batch, size, generator)
        model.train(training)
        with torch.set_grad_enabled(training), autocast(task.hardware):
            logits = model(x)
        if training:
            logits.sum().backward()
    if task.hardware.on_card and config.tail:  # a step that is not captured has not rehearsed the refresh either
        model.train()
        with torch.no_grad(), autocast(task.hardware):
            model.forward(random_batch(task.hardware, refresh_shape(task)[1], 32, generator))
