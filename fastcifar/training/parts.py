"""Parts of a training that come from Python in place of settings: network, optimizer, loss, transform.

They are values of the Task. No file holds them: config.json names them, and a resumed run is given the same again.
Shapes: B images of a step, S x S pixels, K classes.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcifar.config.config import Config
from fastcifar.models.own_network import Network

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
Loss = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Parts:
    """What takes the place of settings; None: what the config says."""

    network: Network | None = None
    """A module, or a function that makes one: x [B, 3, S, S], normalised -> logits [B, K]."""
    optimizer: MakeOptimizer | None = None
    """Parameters -> optimizer. Its learning rates are those at the peak of the schedule, which scales them."""
    loss: Loss | None = None
    """(logits [B, K] f32, y) -> scalar; y is [B] int64, or what `transform` makes of it."""
    transform: Transform | None = None
    """(x, y) -> (x, y), on the augmented batch of a step, on the device, normalised; y may become [B, K], as mixup
    makes it."""

    @property
    def names(self) -> str:
        """The parts that are given, with commas."""
        return ", ".join(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def runs_on_the_host(self) -> str:
        """The parts that no captured step can hold: they decide and draw in Python at each step."""
        given = {"optimizer": self.optimizer, "transform": self.transform}
        return " and ".join(name for name, part in given.items() if part is not None)

    @contextmanager
    def draws(self, seed: int, step: int, device: torch.device) -> Iterator[None]:
        """Random numbers of the parts depend on (seed, step) alone, and the caller's generators stay as they were."""
        if not self.names:
            yield
            return
        on_card = [device] if device.type == "cuda" else []
        before = random.getstate(), np.random.get_state()  # noqa: NPY002 (what other people's code draws from)
        with torch.random.fork_rng(on_card):
            own = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
            torch.manual_seed(own)
            random.seed(own)
            np.random.seed(own)  # noqa: NPY002
            try:
                yield
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002


NO_PARTS = Parts()


def check_parts(config: Config, parts: Parts = NO_PARTS) -> None:
    """ValueError when the parts are not those that the config names, or do not go with it."""
    if missing := [name for name in config.from_python.split(", ") if name and name not in parts.names.split(", ")]:
        again = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(f"{', '.join(missing)} of this run came from Python, and no file holds that: give the same "
                         f"again with fastcifar.train(..., {again}, resume=RUN)")  # fmt: skip
    for name in ("loss", "transform"):
        part = getattr(parts, name)
        if part is not None and (isinstance(part, type) or not callable(part)):
            raise ValueError(f"{name} is {kind_of(part)}; give a function, or an instance that can be called")
    if parts.network is not None and parts.optimizer is None and config.optimizer.name == "muon":
        raise ValueError("optimizer muon and its rates are tuned to the networks of fastcifar: give an optimizer with "
                         'the network, or optimizer="sgd" and an lr_peak that suits it')  # fmt: skip
    if parts.optimizer is not None and config.schedule.peak == 0:
        raise ValueError("lr_peak is 0; the schedule scales the rates of an optimizer by what it is of its peak")


def kind_of(part: Any) -> str:
    """What was given in place of a part, in words."""
    return f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"


def check_network(model: nn.Module, num_classes: int, sizes_px: list[int]) -> None:
    """ValueError when a network does not give [B, K] for images of each size, first of the largest, 32 pixels."""
    model.eval()
    for size in sorted(sizes_px, reverse=True):
        advice = "" if size == 32 else "; low_res_px=(), low_res_until=() keeps all images at 32 pixels"
        try:
            with torch.no_grad():
                logits = model(torch.zeros(2, 3, size, size))
            if not isinstance(logits, Tensor):
                raise TypeError(f"its output is a {type(logits).__name__}; expected logits [2, {num_classes}]")
            if logits.shape != (2, num_classes):
                raise ValueError(f"its output is {list(logits.shape)}; expected [2, {num_classes}]")
        except Exception as e:  # a network may raise anything
            reason = (str(e).splitlines() or [type(e).__name__])[0][:150]
            raise ValueError(f"network: fails on two images of {size} pixels ({reason}){advice}") from e
    model.train()


def make_optimizer(make: MakeOptimizer, model: nn.Module, peak: float) -> Optimizer:
    """The optimizer of a function, whose rates the schedule scales and whose momenta stay as they are."""
    optimizer: Any = make([p for p in model.parameters() if p.requires_grad])
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer made a {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    for group in optimizer.param_groups:
        group |= {"lr_scale": float(group["lr"]) / peak, "fixed_momentum": True, "from_python": True}
    return optimizer


def is_from_python(optimizer: Optimizer) -> bool:
    """Whether it is one of the caller: all of its state is kept, in torch's own form."""
    return bool(optimizer.param_groups[0].get("from_python"))


def kept_by(optimizer: Optimizer) -> dict[str, Any]:
    """All that such an optimizer keeps: by weight, and in its groups, where some count their steps."""
    written_by_the_run = ("lr", "momentum", "lr_scale", "fixed_momentum", "from_python")
    plain = (bool, int, float, Tensor, np.generic)
    groups = {
        i: {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in group.items() if isinstance(value, plain) and name not in written_by_the_run
        }
        for i, group in enumerate(optimizer.param_groups)
    }  # fmt: skip
    return {"state": optimizer.state_dict()["state"], "groups": groups}


def give_back(optimizer: Optimizer, kept: dict[str, Any]) -> None:
    """Restores what `kept_by` gave."""
    fresh = optimizer.state_dict()["param_groups"]
    groups = [{**group, **kept["groups"].get(i, {})} for i, group in enumerate(fresh)]
    optimizer.load_state_dict({"state": kept["state"], "param_groups": groups})


def rates_in_use(optimizer: Optimizer, lr: float, momentum: float) -> tuple[float, float]:
    """A row of the schedule as an optimizer takes it: of one of the caller, the rate of its first group, and that
    group's momentum or first beta."""
    if not is_from_python(optimizer):
        return lr, momentum
    group = optimizer.param_groups[0]
    betas = group.get("betas")
    values = (group.get("momentum"), *(betas if isinstance(betas, (tuple, list)) else [betas]))
    return lr * group["lr_scale"], next((float(v) for v in values if isinstance(v, (int, float))), 0.0)


def transformed(transform: Transform, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a transform makes of a batch; ValueError when it is no (x, y)."""
    made: Any = transform(x, y)
    if not isinstance(made, (tuple, list)) or len(made) != 2 or not isinstance(made[0], Tensor):
        raise ValueError(
            f"transform returned a {type(made).__name__}; expected (x, y), a tensor and what the loss takes"
        )
    return made[0].contiguous(memory_format=torch.channels_last), made[1]


def require_scalar(loss: Any) -> None:
    """ValueError when a loss is not one number."""
    if not isinstance(loss, Tensor) or loss.ndim:
        found = list(loss.shape) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"loss returned {found}; expected a tensor of one number without dimensions, as the mean is")
