"""Layers that the networks share, and the filters of the stem, against their formulas in numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.config.config import Model
from fastcifar.models.layers import make_norm
from fastcifar.models.networks import make_model


def test_running_statistics_move_by_two_fifths():
    norm, x = make_norm(4, "bn"), torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    norm.train()(x)
    torch.testing.assert_close(norm.running_mean, 0.4 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.6 + 0.4 * x.var((0, 2, 3)))


def test_batch_norms_of_resnet9_train_no_scale():
    model = make_model(Model(network="resnet9", scale="small"), 10, seed=0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 7 and all(m.bias.requires_grad and not m.weight.requires_grad for m in norms)
    assert all(torch.equal(m.weight, torch.ones_like(m.weight)) for m in norms)


@pytest.mark.parametrize("scale", ["small", "full"])
def test_the_stem_holds_the_strongest_directions_damped_by_5e_4(scale):
    """A direction of variance v gets the factor 1 / sqrt(v + 5e-4), so its outputs have variance v / (v + 5e-4)."""
    model, generator = make_model(Model(network="resnet9", scale=scale), 10, seed=0), torch.Generator().manual_seed(0)
    coarse = torch.randn(40, 3, 4, 4, generator=generator)
    x = F.interpolate(coarse, size=(32, 32), mode="bicubic") + 0.01 * torch.randn(40, 3, 32, 32, generator=generator)
    patches = np.lib.stride_tricks.sliding_window_view(x.double().numpy(), (2, 2), axis=(2, 3))
    patches = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))  # in increasing order
    assert variances[0] < 5e-4 < variances[-1], "some directions must be damped and some not"
    half = len(model.stem.weight) // 2
    outputs = patches @ model.whitening_filters(x)[:half].reshape(half, 12).numpy().T
    expected = (variances / (variances + 5e-4))[-half:]
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.diag(expected), atol=1e-6)
