"""The loader alone gives the epochs that a training of the same seed sees, and takes other images in between."""

import numpy as np
import pytest
import torch
from conftest import QUICK, make_dataset

import fastcifar
from fastcifar import Loader
from fastcifar.augment.executor import TorchExecutor
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import draw_plan
from fastcifar.config.settings import with_settings


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


@pytest.mark.parametrize("labels", [np.zeros(59, int), np.zeros(60), np.zeros((60, 2), int)])
def test_wrong_labels_are_told(labels):
    with pytest.raises(ValueError, match=r"expected (integers|one label)"):
        fastcifar.Loader(make_dataset(60).x_train, labels, 20)


def arrays(n):
    dataset = make_dataset(n)
    return dataset.x_train, dataset.y_train


def test_evaluation_keeps_the_order_and_drops_nothing():
    images, labels = arrays(70)
    training = Loader(images, labels, 32)
    loader = Loader(images, labels, 32, train=False, mean=training.mean, std=training.std, cutout_px=8)
    for _ in range(2):
        batches = list(loader)
        assert [len(y) for _, y in batches] == [32, 32, 6] and len(loader) == 3
        assert torch.equal(torch.cat([y for _, y in batches]), torch.from_numpy(labels))
        x = torch.cat([x for x, _ in batches])
        expected = (torch.from_numpy(images) / 255 - torch.tensor(training.mean)) / torch.tensor(training.std)
        assert torch.allclose(x.permute(0, 2, 3, 1), expected, atol=1e-5)
        assert batches[0][0].is_contiguous(memory_format=torch.channels_last)


def test_images_labels_and_normalize_are_those_of_the_batches():
    images, labels = arrays(64)
    loader = Loader(images, labels, 32, crop_pad_px=3)
    assert np.array_equal(loader.images.numpy(), images) and np.array_equal(loader.labels.numpy(), labels)
    plain = Loader(images, labels, 64, crop_pad_px=0, mirror="none")
    ((x, y),) = plain
    order = [int((plain.normalize(plain.images) - row).flatten(1).norm(dim=1).argmin()) for row in x]
    assert torch.equal(plain.normalize(plain.images)[order], x) and torch.equal(plain.labels[order], y)


def test_set_epoch_gives_that_epoch_again():
    images, labels = arrays(64)
    loader, again = Loader(images, labels, 16), Loader(images, labels, 16)
    epochs = [list(loader) for _ in range(3)]
    again.set_epoch(2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs[2], again, strict=True)) and again.epoch == 3


@pytest.mark.parametrize("train", [True, False])
def test_processes_share_an_epoch(train):
    images, _ = arrays(96)
    numbers = np.arange(96)  # as labels, so that an image is known by its label
    shares = [Loader(images, numbers, 16, train=train, rank=rank, world=3) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    seen = [torch.cat([y for _, y in share]) for share in shares]
    assert all(len(y) == 32 for y in seen) and sorted(torch.cat(seen).tolist()) == list(range(96))
    if not train:
        assert seen[1].tolist() == list(range(1, 96, 3))
    whole = torch.cat([y for _, y in Loader(images, numbers, 48)])
    assert not train or {*seen[0][:16].tolist(), *seen[1][:16].tolist()} <= {*whole[:48].tolist()}  # of one step


@pytest.mark.parametrize(("rank", "world"), [(1, 1), (-1, 2), (0, 0)])
def test_a_process_that_is_none_of_them_is_told(rank, world):
    with pytest.raises(ValueError, match=f"rank is {rank} of {world} processes"):
        Loader(*arrays(4), 2, rank=rank, world=world)


def test_few_images_are_shared_in_equal_parts():
    images, labels = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10) % 2
    batches = [[len(y) for _, y in Loader(images, labels, 4, rank=rank, world=3)] for rank in range(3)]
    assert batches == [[3], [3], [3]]
    with pytest.raises(ValueError, match="10 images for 12 processes; each needs one at least"):
        Loader(images, labels, 1, rank=11, world=12)
    nobody = Loader(images, labels, 4, train=False, rank=11, world=12)
    assert len(nobody) == 0 and list(nobody) == []
