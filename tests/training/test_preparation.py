"""What a card does inside the clock before the first step: the stem's filters and the images' borders."""

import pytest
import torch

from fastcifar.training import loop
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import start
from fastcifar.training.warm_up import prepare
from fastcifar.training.whitening import filters_of_device_images


def test_borders_and_filters_are_made_again(make_quick_task):
    task = make_quick_task()
    model, images = start(task, Stopwatch()).model, task.executor.images
    padded, filters = images.padded.clone(), filters_of_device_images(model, images)
    inner = slice(images.pad_px, -images.pad_px)
    lost = torch.full_like(padded, 255)
    lost[:, inner, inner] = padded[:, inner, inner]
    images.padded.copy_(lost)
    model.stem.weight.data.zero_()
    prepare(task, model)
    assert torch.equal(images.padded, padded) and torch.equal(model.stem.weight, filters.float())


def test_filters_in_fp32_of_the_device_images_whiten_like_those_in_fp64(make_quick_task):
    task = make_quick_task()
    model, images = start(task, Stopwatch()).model, task.executor.images
    inner = slice(images.pad_px, -images.pad_px)
    x = ((images.padded[:, inner, inner].double() - images.mean) * images.inv_std).permute(0, 3, 1, 2)
    exact = model.whitening_filters(x)  # of all 256 images, as `filters_of_device_images` takes up to 1,000
    rounded = filters_of_device_images(model, images)
    signs = (exact * rounded).sum((1, 2, 3), keepdim=True).sign()  # those of an eigenvector mean nothing
    assert (exact - signs * rounded).abs().max() < 1e-3 * exact.abs().max()
    outputs = torch.nn.functional.conv2d(x, rounded[: len(rounded) // 2]).transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(covariance, torch.eye(len(outputs), dtype=torch.float64), atol=0.02)


def test_a_cpu_prepares_nothing_in_the_clock_and_an_init_keeps_its_stem(make_quick_task, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "prepare", lambda *_: pytest.fail("prepared on a CPU"))
    loop.train(make_quick_task(epochs=1))
    task = make_quick_task(init=str(tmp_path))
    model = start(make_quick_task(), Stopwatch()).model
    model.stem.weight.data.fill_(3.0)
    prepare(task, model)
    assert (model.stem.weight == 3).all()
