"""What optimizers, networks, transforms and schedules from Python keep goes on where a run is resumed."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_parts import adamw, make_net, train, weights
from torch import nn

import fastcifar
from fastcifar.config.schedules import PerStep

pytestmark = pytest.mark.usefixtures("tiny_network")


class Counting(torch.optim.SGD):
    """Its rate falls with a count of its steps, which it keeps in its groups, as optimizers without schedules do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group["count"] = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] += 1
            group["lr"] = group["lr"] / group["count"]
        super().step(closure)


def masked_net() -> nn.Module:
    network = make_net()
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    return network


@pytest.mark.parametrize("optimizer", [Counting, lambda params: torch.optim.Adafactor(params, lr=1e-2)])
def test_all_that_an_optimizer_and_a_network_keep_goes_on(optimizer, tmp_path):
    class Broken(fastcifar.Observer):
        def on_step(self, run: Any) -> None:
            if run.step == 11:
                raise LookupError

    given = {"network": masked_net, "optimizer": optimizer, "checkpoint_every": 1}
    whole = weights(train(**given))
    with pytest.raises(LookupError):
        train(**given, out=tmp_path / "r", observers=[Broken()])
    resumed = weights(train(**given, resume=str(tmp_path / "r")))
    assert all(torch.equal(whole[name], p) for name, p in resumed.items())


@pytest.mark.parametrize(
    "given", [{"momentum": None}, {"betas": 0.9}, {"betas": ()}, {"momentum": np.float64(0.5)}], ids=str
)
def test_any_group_of_an_optimizer_trains_and_is_kept(given, tmp_path):
    class Plain(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            for group in self.param_groups:
                group["dampening"] = np.float64(0.25)
                group["kept"] = given

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                group["momentum"], group["betas"] = 0.5, (0.9,)
            super().step(closure)
            for group in self.param_groups:
                group.update({"momentum": None, "betas": None, **given})

    given_parts = {"network": make_net, "optimizer": Plain, "swa_start": 0.5}
    train(**given_parts, out=tmp_path / "r")
    longer = train(**given_parts, resume=tmp_path / "r", extend_epochs=3)
    assert longer.summary["num_steps"] == 24


def test_a_transform_may_give_the_loss_any_target():
    def mix(x: torch.Tensor, y: torch.Tensor) -> Any:
        return x, (y, y.flip(0), 0.3)

    def loss(logits: torch.Tensor, y: Any) -> torch.Tensor:
        return y[2] * F.cross_entropy(logits, y[0]) + (1 - y[2]) * F.cross_entropy(logits, y[1])

    assert train(network=make_net, optimizer=adamw, transform=mix, loss=loss).summary["num_steps"] == 16


def test_an_extension_with_a_schedule_of_ones_own_is_kept(tmp_path):
    given = {"schedule": PerStep(peak=0.4, factor=lambda step: 1 - step / 16), "swa_start": 0.5}
    train(**given, out=tmp_path / "r")
    longer, again = (train(**given, resume=tmp_path / "r", **more) for more in ({"extend_epochs": 3}, {}))
    assert longer.summary["epochs"] == again.summary["epochs"] == 3
