"""Compiles the network and runs every batch shape once on random images, before the clock of the training starts."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import torch
from torch import nn

from fastcifar.augment.images import reflect
from fastcifar.models import conv_choice
from fastcifar.models.fused import fuse
from fastcifar.models.resnet9 import ResNet9
from fastcifar.training import evaluate
from fastcifar.training.compile_cache import keep_compiled_code
from fastcifar.training.step import autocast, random_batch
from fastcifar.training.stopwatch import captured_ms
from fastcifar.training.task import Task
from fastcifar.training.whitening import filters_of_device_images

log = logging.getLogger("fastcifar")


def warm_up(task: Task, model: nn.Module) -> Task:
    """Compiles the model in place and runs all its shapes; weights and statistics are left as they were.

    Where the compiler fails, the plain model is used and a warning is logged: the returned task then says that nothing
    is compiled. It also says which own kernels are used. On a CPU without compiling nothing needs a
    warm-up.
    """
    device, mode = task.hardware.device, task.hardware.compile
    # cuDNN times its kernels for each shape when it first sees it, which is here.
    torch.backends.cudnn.benchmark = device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    if mode == "off" and device.type == "cpu":
        return task
    config, before = task.config, copy.deepcopy(model.state_dict())
    if config.machine.fused_kernels and mode == "off" and device.type == "cuda" and isinstance(model, ResNet9):
        fused = fuse(model, config.model.activation, task.hardware.dtype)
        task = replace(task, hardware=replace(task.hardware, fused=fused))
        if fused:
            conv_choice.use_kernels(model, captured_ms)
    try:
        if mode != "off":
            keep_compiled_code(task.config)
            model.compile(mode=mode, dynamic=False)  # else the second image size is compiled for any size
        _run_all_shapes(task, model)
    except Exception as e:
        if mode == "off":
            raise
        model._compiled_call_impl = None  # back to the plain forward
        torch._dynamo.reset()
        reason = " ".join(str(e).split())[:150]
        log.warning("torch.compile failed (%s: %s); going on without it", type(e).__name__, reason)
        task = replace(task, hardware=replace(task.hardware, compile="off"))
        _run_all_shapes(task, model)
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return replace(task, hardware=replace(task.hardware, conv_kernels=conv_choice.choices(model)))


@torch.no_grad()
def prepare(task: Task, model: nn.Module) -> None:
    """Reflects the images' borders and makes the stem's filters, in place: what other programs do in every run.

    On a card it belongs to the timed part of a run, as in those programs. `make_task` has done both before, for all
    runs of a job, and from the same images: the values do not change.
    """
    executor = task.executor
    reflect(executor.images.padded, executor.images.pad_px)
    if isinstance(model, ResNet9) and task.config.model.init is None:  # else the first network's filters stay
        model.stem.weight.copy_(filters_of_device_images(model, executor.images))
    if executor.stream is not None:
        executor.stream.wait_stream(torch.cuda.current_stream(executor.images.padded.device))


def _run_all_shapes(task: Task, model: nn.Module) -> None:
    """Forward and backward of each training shape, forward of each evaluation shape."""
    generator = torch.Generator().manual_seed(0)
    evaluation = task.config.evaluation
    batch_sizes = evaluate.batch_sizes(task.watched)
    batch_sizes |= evaluate.batch_sizes(task.test, evaluation.tta, evaluation.tta_share)
    shapes = [(True, task.batch_size // task.world.size, size) for size in task.image_sizes]
    shapes += [(False, batch, 32) for batch in sorted(batch_sizes)]
    for training, batch, size in shapes:
        x = random_batch(task.hardware, batch, size, generator)
        model.train(training)
        with torch.set_grad_enabled(training), autocast(task.hardware):
            logits = model(x)
        if training:
            logits.sum().backward()
