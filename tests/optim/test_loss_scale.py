"""fp16: an overflow is undone by the optimizers themselves, as torch's GradScaler would have skipped the step."""

import pytest
import torch
from conftest import make_config
from torch import Tensor

from fastcifar.optim.optimizers import CapturableOptimizer, make_optimizers, set_row

INF, NAN = float("inf"), float("nan")
OVERFLOWS = (None, INF, None, None, None, NAN, INF, None)
"""Of each step: what is put into a gradient."""


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("body", torch.nn.Conv2d(3, 8, 3))
    model.add_module("head", torch.nn.Linear(8, 10, bias=False))
    return model


def momenta(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    return [kept["momentum_buffer"] for o in optimizers for kept in o.state.values()]


def take_step(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler,
              step: int, overflow: float | None) -> None:  # fmt: skip
    """With gradients of noise, of which one is spoiled by an overflow."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = scaler.scale(torch.randn(p.shape, generator=generator))
    if overflow is not None:
        model.get_parameter("body.weight").grad[0, 0, 0, 0] = overflow
        model.get_parameter("head.weight").grad[0, 0] = overflow
    set_row(optimizers, 0.1 + step / 100, 0.9 - step / 100)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("settings", [{"optimizer": "muon"}, {"optimizer": "sgd", "weight_decay": 0.1}],
                         ids=["muon", "sgd"])  # fmt: skip
def test_overflow_is_undone_as_torch_skips_it(settings):
    runs = []
    for by_torch in (True, False):
        model, scaler = small_network(), torch.amp.GradScaler("cpu", 2.0**12, growth_interval=3)
        optimizers, scales, changed = make_optimizers(model, make_config(**settings), capturable=True), [], []
        (own,) = (o for o in optimizers if isinstance(o, CapturableOptimizer))
        if by_torch:
            own._step_supports_amp_scaling = False  # the scaler then asks, and leaves out the step
        for step, overflow in enumerate(OVERFLOWS):
            before = [t.clone() for t in (*model.parameters(), *momenta(optimizers))]
            take_step(model, optimizers, scaler, step, overflow)
            after = [*model.parameters(), *momenta(optimizers)]
            changed.append([not torch.equal(a, b) for a, b in zip(after, before, strict=True)])
            scales.append(scaler.get_scale() / 2**12)
        runs.append((after, scales, changed))
    (expected, scales, _), (found, own_scales, changed) = runs
    assert scales == own_scales == [1, 0.5, 0.5, 0.5, 1, 0.5, 0.25, 0.25]
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(expected, found, strict=True))
    for overflow, tensors in zip(OVERFLOWS, changed, strict=True):
        if overflow is None:
            assert all(tensors)
        elif settings["optimizer"] == "sgd":  # with Muon the biases have an optimizer of their own, which goes on
            assert not any(tensors)


def test_without_a_scaler_nothing_is_kept_or_undone(monkeypatch):
    model = small_network()
    (sgd,) = make_optimizers(model, make_config(optimizer="sgd"), capturable=True)
    for p in model.parameters():
        p.grad = torch.full_like(p, INF)
    monkeypatch.setattr(torch, "where", None)
    sgd.step()
    assert not any(p.isfinite().any() for p in model.parameters())
