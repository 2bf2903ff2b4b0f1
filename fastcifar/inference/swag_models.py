"""Models drawn from the Gaussian of a run that was trained with --swag-rank (`fastcifar.optim.swag`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fastcifar.config.config import Machine
from fastcifar.data.dataset import Dataset
from fastcifar.inference.classifier import Classifier
from fastcifar.optim.averaging import refresh_batch_norm
from fastcifar.optim.swag import draw_sample
from fastcifar.runs.config_file import load_config
from fastcifar.runs.model_file import SWAG_FILE, load_swag
from fastcifar.training.hardware import resolve
from fastcifar.training.refresh import refresh_batches
from fastcifar.training.step import autocast
from fastcifar.training.task import load_data, make_task


def swag_models(run: str | Path, count: int, data: Dataset | None = None) -> Iterator[Classifier]:
    """Draws `count` models, each with batch-norm statistics of its own: those of augmented training images.

    run: a run folder with swag.safetensors. data: whose training images are taken; by default those of the run. The
    draws depend on the seed of the run alone, so a longer series begins with the shorter one. Probabilities of the
    models are to be averaged. Raises ValueError when a file of the run is missing or damaged, or the data is.
    """
    network, facts, gaussian = load_swag(Path(run))
    config = load_config(Path(run) / "config.json")
    dataset = load_data(config, progress=False) if data is None else data
    if tuple(facts["classes"]) != dataset.classes:
        raise ValueError(f"{Path(run) / SWAG_FILE}: is of a model for other classes than those of {dataset.name}")
    if not len(dataset.y_train):
        raise ValueError(f"{dataset.name}: has no training images to refresh the batch norms of SWAG's samples with")
    machine = Machine(executor="torch", compile="off")  # the run may have been trained on another one
    config, hardware = resolve(replace(config, machine=machine, from_python=""))  # a loss or a transform is not needed
    task = make_task(config, replace(dataset, mean=tuple(facts["mean"]), std=tuple(facts["std"])), hardware)
    task.executor.fill_borders()
    batches = list(refresh_batches(task))
    mean = {name: p.detach().clone() for name, p in network.named_parameters()}
    for i in range(count):
        model = copy.deepcopy(network)
        draw_sample(model, mean, gaussian, (config.seed * 65_537 + i) % 2**63)
        model.to(hardware.device)
        with autocast(hardware):
            refresh_batch_norm(model, batches)
        yield Classifier(model, facts["classes"], facts["mean"], facts["std"]).to(hardware.device).eval()
