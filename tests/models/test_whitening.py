"""The whitening filters of the stem are those of a computation in NumPy, whose eps shows in their size."""

import numpy as np
import pytest
import torch

from fastcifar.config.config import Model
from fastcifar.models.networks import make_model
from fastcifar.models.resnet9 import ResNet9

EPS = 5e-4
"""Added to the variance of each direction, for normalised pixels."""


def smooth_images(num: int) -> np.ndarray:
    """f32 [num, 3, 32, 32]: waves that colours share, and noise so faint that its variance is about that of eps."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32] / 32
    frequency, phase = random.uniform(-3, 3, (2, num, 1, 1)), random.uniform(0, 6, (num, 1, 1))
    waves = np.sin(2 * np.pi * (frequency[0] * rows + frequency[1] * columns) + phase)  # [num, 32, 32]
    shades = random.uniform(0.8, 1.2, (num, 3, 1, 1))
    noise = random.standard_normal((num, 3, 32, 32))
    return (waves[:, None] * shades + 0.02 * noise).astype(np.float32)


@pytest.mark.parametrize("scale", ["full", "small"])
def test_filters_are_those_of_numpy(scale):
    """F'F is V diag(1 / (lambda + eps)) V' over the strongest directions, whatever the signs of the eigenvectors."""
    images = smooth_images(60)
    model = make_model(Model(scale=scale), 10, seed=0)
    assert isinstance(model, ResNet9)
    filters = model.whitening_filters(torch.from_numpy(images)).reshape(-1, 12).numpy()
    patches = np.stack(
        [images[:, c, i : 31 + i, j : 31 + j].reshape(-1) for c in range(3) for i in range(2) for j in range(2)]
    ).astype(np.float64)  # [12, P]
    variances, directions = np.linalg.eigh(patches @ patches.T / patches.shape[1])
    assert variances[0] < 2 * EPS and variances[-1] > 1000 * EPS  # eps counts for some directions, and not for others
    strongest = len(filters) // 2
    assert strongest == {"full": 12, "small": 8}[scale]
    expected = (directions / (variances + EPS))[:, -strongest:] @ directions[:, -strongest:].T
    np.testing.assert_allclose(filters[:strongest].T @ filters[:strongest], expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(filters[strongest:], -filters[:strongest])


def test_the_last_filter_is_the_strongest_direction():
    images = torch.from_numpy(smooth_images(60))
    model = make_model(Model(scale="full"), 10, seed=0)
    filters = model.whitening_filters(images)[:12].flatten(1)  # type: ignore[operator]
    sizes = filters.norm(dim=1)
    assert (sizes.diff() <= 0).all()  # the weaker a direction, the larger its filter
    assert (filters[-1] > 0).all() or (filters[-1] < 0).all()  # the mean of a patch
    assert sizes[0] == pytest.approx(1 / np.sqrt(0.02**2 + EPS), rel=0.05)
