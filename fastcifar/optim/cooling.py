"""The first stage of resnet9 is trained for a part of the run only (`--cool-first-stage`).

Its learning rate and that of the stem fall in a line to 0. From then on both are fixed: no backward pass goes through
them, and the weights that the tail averages have no noise of theirs.

Source: entries of the CIFAR-100 speedrun hackathon of October 2026
(https://github.com/AIDDA-Institute/CIFAR-100-speedrun).
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcifar.config.config import Config


@dataclass(frozen=True)
class Cooling:
    """Steps between which the rate falls: it is whole at `first` and 0 from `end` on."""

    first: int = sys.maxsize
    end: int = sys.maxsize

    def factor(self, step: int) -> float:
        """Share of the learning rate of a step that stem and first stage get, in [0, 1]."""
        if step >= self.end:
            return 0.0
        return min(1.0, (self.end - step) / max(1, self.end - self.first))

    def factors(self, num_steps: int) -> Tensor:
        """[num_steps] f32: `factor` of each step of a run."""
        return torch.tensor([self.factor(step) for step in range(num_steps)])

    def is_over(self, step: int) -> bool:
        """Whether stem and first stage are fixed in a step."""
        return step >= self.end


NO_COOLING = Cooling()
FIRST_STAGE = ("stem.", "stages.0.")
"""How the names of its weights begin, with those of the stem."""


def make_cooling(config: Config, steps_per_epoch: int) -> Cooling:
    """The steps of a config. ValueError where the second point is before the first, or the run ends before both."""
    if not config.cools_first_stage:
        return NO_COOLING
    first, end = (config.epoch_of(when) for when in config.model.cool_first_stage)
    if not first <= end or first >= config.final_epochs:
        raise ValueError(f"cool_first_stage is from epoch {first:g} to {end:g} of {config.final_epochs:g} epochs; "
                         "choose rising points within the run")  # fmt: skip
    return Cooling(round(first * steps_per_epoch), round(end * steps_per_epoch))


def set_apart(optimizers: list[Optimizer], model: nn.Module) -> None:
    """Moves the weights of stem and first stage into groups of their own, in place, each before the group it was in.

    Such a group has the key `cools`, by which `set_row` knows it.
    """
    cooled = {p for name, p in model.named_parameters() if name.startswith(FIRST_STAGE)}
    for optimizer in optimizers:
        parts = [{**group, "params": [p for p in group["params"] if (p in cooled) == cools], "cools": cools}
                 for group in optimizer.param_groups for cools in (True, False)]  # fmt: skip
        optimizer.param_groups[:] = [part for part in parts if part["params"]]
