"""Fine-tuning: a run that starts from the weights of a model trained before, on other images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fastcifar.config.config import Model
from fastcifar.runs.model_file import find_model, load_model

ALIKE = ("network", "scale", "norm", "activation")
"""Settings in which the model of the file and that of the run must agree."""


@torch.no_grad()
def load_initial(model: nn.Module, settings: Model) -> None:
    """Copies the weights and statistics of `settings.init` into a fresh model, in place; settings.scale is resolved.

    A head of another number of classes stays as it is, and so does the count of the random draws: it is this run's.
    Nothing in the file is executed. ValueError when it is no whole model or one of another network.
    """
    path = find_model(Path(settings.init or ""))
    source, facts = load_model(path, flag="--init")
    theirs = ", ".join(f"{name} {facts[name]}" for name in ALIKE)
    ours = ", ".join(f"{name} {getattr(settings, name)}" for name in ALIKE)
    if theirs != ours:
        raise ValueError(f"--init {path}: holds a model of {theirs}, but this run has {ours}; give the flags of the "
                         "file")  # fmt: skip
    fresh, given = model.state_dict(), source.state_dict()
    own = {name for name in fresh if name == "noise.step"}
    if fresh["head.weight"].shape != given["head.weight"].shape:
        own |= {name for name in fresh if name.startswith("head.")}
    model.load_state_dict({name: fresh[name] if name in own else given[name] for name in fresh})
