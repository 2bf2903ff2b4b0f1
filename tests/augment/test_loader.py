"""The loader alone gives the epochs that a training of the same seed sees, and takes other images in between."""

import numpy as np
import pytest
import torch
from conftest import QUICK, make_dataset

import fastcifar
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import draw_plan
from fastcifar.augment.torch_executor import TorchExecutor
from fastcifar.settings import with_settings


def make_loader(n: int = 60, batch_size: int = 20, **arguments):
    dataset = make_dataset(n)
    return fastcifar.Loader(dataset.x_train, dataset.y_train, batch_size, **arguments), dataset


def test_batches_are_those_of_a_training():
    loader, dataset = make_loader(crop_pad_px=2, seed=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    config = with_settings(QUICK, batch_size=20, crop_pad_px=2, seed=3)
    images = to_device(dataset.x_train, dataset.y_train, (0.5,) * 3, (0.25,) * 3, 2, torch.device("cpu"), torch.float32)
    for epoch in range(2):
        expected = TorchExecutor(images).epoch(draw_plan(config, 60, epoch))
        for (x, y), (x_ref, y_ref) in zip(loader, expected, strict=True):
            assert torch.equal(x, x_ref) and torch.equal(y, y_ref)
            assert x.shape == (20, 3, 32, 32) and x.is_contiguous(memory_format=torch.channels_last)
    assert len(loader) == 3


def test_pixels_are_normalised_by_the_images_own_mean_and_std():
    loader, _ = make_loader(crop_pad_px=0, mirror="none")
    x = torch.cat([x for x, _ in loader]).double()
    assert x.mean((0, 2, 3)).abs().max() < 1e-3 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_images_are_filtered_and_replaced_between_epochs():
    loader, dataset = make_loader(crop_pad_px=0, mirror="none")
    loader.keep(dataset.y_train < 5)
    assert {int(label) for _, y in loader for label in y} == set(range(5))
    loader.keep([0, 1, 2])
    ((_, y),) = loader
    assert sorted(y.tolist()) == [0, 1, 2]
    loader.replace(dataset.x_train[:40], dataset.y_train[:40])
    assert len(loader) == len(list(loader)) == 2


def test_equal_seeds_give_equal_epochs_and_others_do_not():
    first, second, other = (torch.cat([y for _, y in make_loader(seed=seed)[0]]) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be above 0"),
        ({"executor": "ffcv"}, "executor is 'ffcv'; known: auto, torch, dali"),
        ({"crop_pad_px": 9}, "crop_pad_px is 9; it must be from 0 to 8"),
        ({"mirror": "up"}, "mirror is 'up'"),
    ],
)
def test_wrong_arguments_are_told(arguments, told):
    with pytest.raises(ValueError, match=told):
        make_loader(**arguments)


@pytest.mark.parametrize("labels", [np.zeros(59, int), np.zeros(60), np.zeros((60, 1), int)])
def test_wrong_labels_are_told(labels):
    with pytest.raises(ValueError, match="expected integers"):
        fastcifar.Loader(make_dataset(60).x_train, labels, 20)
