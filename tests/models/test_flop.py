"""The count of arithmetic, against torch's."""

import pytest
import torch

from fastcifar.config import Model
from fastcifar.models.networks import make_model, train_flop


@pytest.mark.parametrize("network", ["resnet9", "resnet18", "shakedrop"])
@pytest.mark.parametrize(("norm", "freeze"), [("bn", "none"), ("gn-ws", "stem"), ("bn", "all-but-head")])
def test_train_flop_counts_what_torch_counts(network, norm, freeze):
    """Not of shakeshake26: torch counts the backward pass of a convolution in groups as more than the forward one."""
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(Model(network=network, scale="small", norm=norm, freeze=freeze), 10, seed=0)
    flop = train_flop(model, 22)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 22, 22)).sum().backward()
    assert flop == counter.get_total_flops() / 2
