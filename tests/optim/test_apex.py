"""--optimizer apex-sgd, with a stand-in for NVIDIA's package, which is built from source."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import make_config
from torch import nn

from fastcifar.config.config import Model
from fastcifar.models.networks import make_model
from fastcifar.optim.apex import APEX_HELP
from fastcifar.optim.optimizers import make_optimizers, set_row
from fastcifar.training.loop import train


def small_network() -> nn.Module:
    return make_model(Model(scale="small"), 10, seed=0)


def install(monkeypatch: pytest.MonkeyPatch, **contents: object) -> None:
    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    for name, value in contents.items():
        setattr(optimizers, name, value)
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


def use_apex() -> list[torch.optim.Optimizer]:
    return make_optimizers(small_network(), make_config(optimizer="apex-sgd", momentum=0.8, cycle_momentum=False))


def assert_helpful(error: pytest.ExceptionInfo[ValueError]) -> None:
    message = str(error.value)
    assert message == APEX_HELP and "\n" not in message
    assert "https://github.com/NVIDIA/apex" in message and "--optimizer sgd" in message


def test_missing_apex_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    with pytest.raises(ValueError) as error:
        use_apex()
    assert_helpful(error)


def test_the_other_package_named_apex_is_told_in_one_line(monkeypatch):
    install(monkeypatch)  # there is something to import, and no FusedSGD in it
    with pytest.raises(ValueError) as error:
        use_apex()
    assert_helpful(error)


def test_a_package_without_optimizers_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    with pytest.raises(ValueError) as error:
        use_apex()
    assert_helpful(error)


class FusedSGD(torch.optim.Optimizer):
    """Stands in for NVIDIA's: its constructor, its `zero_grad` without an argument, its Nesterov momentum."""

    extensions = True

    def __init__(self, params, lr=None, momentum=0, dampening=0, weight_decay=0, nesterov=False,
                 wd_after_momentum=False, materialize_master_grads=True, set_grad_none=False):  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "dampening": dampening,
                                  "weight_decay": weight_decay, "nesterov": nesterov})  # fmt: skip
        self.param_groups[0]["params"][0]  # it asks the first weight for its device
        if not self.extensions:
            raise RuntimeError("FusedSGD requires cuda extensions")

    def zero_grad(self):
        super().zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert all(isinstance(group[name], float) for name in ("lr", "momentum"))  # its kernel takes numbers
            for p in (p for p in group["params"] if p.grad is not None):
                grad = p.grad + group["weight_decay"] * p
                velocity = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(grad)
                p -= group["lr"] * (grad + group["momentum"] * velocity if group["nesterov"] else velocity)


def test_nvidias_fused_sgd_is_used(monkeypatch):
    install(monkeypatch, FusedSGD=FusedSGD)
    (optimizer,) = use_apex()
    assert isinstance(optimizer, FusedSGD)
    set_row([optimizer], 0.3, 0.7)
    assert [(g["lr"], g["momentum"], g["nesterov"]) for g in optimizer.param_groups] == [(0.3, 0.7, True)] * 3
    assert np.count_nonzero([g["weight_decay"] for g in optimizer.param_groups]) == 2


def test_a_build_of_apex_without_cuda_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(FusedSGD, "extensions", False)
    install(monkeypatch, FusedSGD=FusedSGD)
    with pytest.raises(ValueError) as error:
        use_apex()
    assert_helpful(error)


@pytest.mark.parametrize("freeze", ["none", "all-but-head"])
def test_a_run_with_nvidias_fused_sgd_trains_as_with_torchs(monkeypatch, make_quick_task, freeze):
    install(monkeypatch, FusedSGD=FusedSGD)
    apex, plain = (train(make_quick_task(epochs=1, optimizer=name, freeze=freeze)).model.state_dict()
                   for name in ("apex-sgd", "sgd"))  # fmt: skip
    for name, value in plain.items():
        torch.testing.assert_close(apex[name], value, rtol=1e-3, atol=1e-4)
