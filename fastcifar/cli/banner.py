"""What is printed before training: what runs on what and why, and the plan of --dry-run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastcifar.models.networks import make_model, train_flop
from fastcifar.optim.schedule_table import make_schedule_table
from fastcifar.runs.config_file import config_to_plain
from fastcifar.training.stopwatch import matrix_flop_per_s
from fastcifar.training.task import Task


def banner(task: Task) -> str:
    """Lines on the recipe, the device, the arithmetic, the data and the network, with the reason for each `auto`."""
    config, hardware, settings = task.config, task.hardware, task.config.model
    machine, scale = config.machine, settings.scale

    def reason(name: str) -> str:
        return f" ({hardware.reasons[name]})" if name in hardware.reasons else ""

    size = "of your own shape" if settings.shape else f"{scale}{reason('scale')}"
    lines = [
        f"recipe   {config.run.recipe}: {config.epochs:g} epochs x {task.steps_per_epoch} steps of {task.batch_size} "
        f"images, {config.schedule.name}" + (", averaging tail" if config.tail else ", no tail"),
        f"device   {hardware.name}" + (f", {task.world.size} processes" if task.world.size > 1 else ""),
        f"compute  {machine.precision}{reason('precision')}, {_layout(task.network)}, compile {machine.compile}"
        f"{reason('compile')}, augmentation by {machine.executor}{reason('augment')}",
        f"data     {task.dataset.name}: {task.num_train:,} training and {len(task.dataset.y_test):,} test images, "
        f"{len(task.dataset.classes)} classes",
        f"network  {settings.network} {size}: {task.num_parameters:,} parameters, "
        f"{task.train_pflop:.3g} PFLOP of training",
    ]
    if scale == "small" and settings.network == "resnet9" and not settings.shape:
        full = make_model(replace(settings, scale="full", shape=None), len(task.dataset.classes), seed=0)
        pflop = task.train_pflop * train_flop(full) / task.flop_per_image[32]
        hours = pflop * 1e15 / matrix_flop_per_s(hardware.device, hardware.dtype) / 3600
        lines.append("         --scale full would take "
                     f"{pflop:.2g} PFLOP, here at least {hours:.1f} h")  # fmt: skip
    return "\n".join(lines)


def _layout(model: nn.Module) -> str:
    filters = [p for p in model.parameters() if p.ndim == 4]
    channels_last = all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
    return "channels_last" if channels_last else "NCHW"


def plan(task: Task) -> dict[str, Any]:
    """What --dry-run prints: what would run on what, and how much work it is."""
    hardware, machine = task.hardware, task.config.machine
    return {
        "recipe": task.config.run.recipe, "dataset": task.dataset.name, "n_train": task.num_train,
        "n_test": len(task.dataset.y_test), "scale": task.config.model.scale, "epochs": task.config.epochs,
        "num_steps": task.num_steps, "steps_per_epoch": task.steps_per_epoch, "batch_size": task.batch_size,
        "tail_step": make_schedule_table(task.config, task.steps_per_epoch).tail_step,
        "train_pflop": task.train_pflop, "parameters": task.num_parameters,
        "device": hardware.name, "precision": machine.precision, "compile": machine.compile,
        "augment": machine.executor, "config": config_to_plain(task.config),
    }  # fmt: skip
