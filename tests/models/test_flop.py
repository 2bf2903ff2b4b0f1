"""The count of arithmetic, against torch's."""

from typing import Any

import pytest
import torch

from fastcifar.config.config import Model
from fastcifar.models import cpu_conv, winograd
from fastcifar.models.counts import train_flop
from fastcifar.models.networks import make_model


def without_products(monkeypatch):
    """Convolutions are torch's own on every CPU."""
    monkeypatch.setattr(cpu_conv, "MOST_PIXELS", 0)
    monkeypatch.setattr(winograd, "pays", lambda *_: False)


@pytest.mark.parametrize("network", ["resnet9", "resnet18", "shakedrop"])
@pytest.mark.parametrize(("norm", "freeze"), [("bn", "none"), ("gn-ws", "stem"), ("bn", "all-but-head")])
def test_train_flop_counts_what_torch_counts(network, norm, freeze, monkeypatch):
    """Not of shakeshake26: torch counts the backward pass of a convolution in groups as more than the forward one. Nor
    of convolutions by products: those leave out the padding, or take fewer."""
    without_products(monkeypatch)
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(Model(network=network, scale="small", norm=norm, freeze=freeze), 10, seed=0)
    flop = train_flop(model, 22)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 22, 22)).sum().backward()
    assert flop == counter.get_total_flops() / 2


def test_a_fixed_first_stage_has_no_backward_pass(monkeypatch):
    """The same outputs and statistics, the same gradients of the others, and torch counts that much less."""
    without_products(monkeypatch)
    from torch.utils.flop_counter import FlopCounterMode

    x, found = torch.randn(2, 3, 22, 22), []
    for fixed in (False, True):
        model: Any = make_model(Model(scale="small"), 10, seed=0)
        model.first_stage_fixed = fixed
        flop = train_flop(model, 22)
        with FlopCounterMode(display=False) as counter:
            logits = model(x)
            logits.sum().backward()
        assert flop == counter.get_total_flops() / 2
        found.append((flop, logits, model.state_dict(), {n: p.grad for n, p in model.named_parameters()}))
    (whole, logits, state, gradients), (less, *same, others) = found
    assert less < whole and torch.equal(logits, same[0])
    assert all(torch.equal(value, same[1][name]) for name, value in state.items())
    for name, gradient in others.items():
        expected = None if name.startswith(("stem.", "stages.0.")) else gradients[name]
        assert gradient is expected is None or torch.equal(gradient, expected), name


def test_a_stem_fixed_from_a_size_gets_no_gradient_there():
    """The same outputs, and the arithmetic is that of a fixed stem."""
    model: Any = make_model(Model(scale="small"), 10, seed=0)
    images = {size: torch.randn(2, 3, size, size) for size in (22, 32)}
    plain = {size: (model(images[size]), train_flop(model, size)) for size in images}
    model.stem_fixed_from_px = 32
    for size, trained in ((22, True), (32, False)):
        model.zero_grad()
        logits = model(images[size])
        logits.sum().backward()
        torch.testing.assert_close(logits, plain[size][0])
        assert (model.stem.bias.grad is not None) == trained
        assert (train_flop(model, size) == plain[size][1]) == trained
    model.stem.bias.requires_grad = False
    fixed = train_flop(model)
    model.stem_fixed_from_px = None
    assert train_flop(model) == fixed < plain[32][1]
