"""What a card makes inside the clock before the first step, once: the stem's filters and the images' borders."""

from dataclasses import replace

import pytest
import torch
from conftest import QUICK, make_dataset

from fastcifar.augment.images import to_device
from fastcifar.config.settings import with_settings
from fastcifar.training import loop, prepare
from fastcifar.training.hardware import Hardware, resolve
from fastcifar.training.start import filters_of_device_images, initial_state, preprocess
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import filters_of_dataset, make_task


def test_borders_and_filters_are_made_from_the_images_inside(make_quick_task):
    task = make_quick_task()
    model, images = initial_state(task, Stopwatch()).model, task.executor.images
    padded, filters = images.padded.clone(), filters_of_device_images(model, images)
    inner = slice(images.pad_px, -images.pad_px)
    lost = torch.full_like(padded, 255)
    lost[:, inner, inner] = padded[:, inner, inner]
    images.padded.copy_(lost)
    model.stem.weight.data.zero_()
    preprocess(task, model, is_new=False)
    assert torch.equal(images.padded, padded) and not model.stem.weight.any()  # a resumed run has its filters
    preprocess(task, model)
    assert torch.equal(images.padded, padded) and torch.equal(model.stem.weight, filters.float())


def test_images_can_come_without_their_borders():
    dataset, rest = make_dataset(4), (2, torch.device("cpu"), torch.float32)
    whole, bare = (to_device(dataset.x_train, dataset.y_train, dataset.mean, dataset.std, *rest, borders=borders)
                   for borders in (True, False))  # fmt: skip
    assert torch.equal(whole.padded[:, 2:34, 2:34], bare.padded[:, 2:34, 2:34])
    assert bare.padded.shape == whole.padded.shape == (4, 36, 36, 3)


def test_filters_in_fp32_of_the_device_images_whiten_like_those_in_fp64(make_quick_task):
    task = make_quick_task()
    model, images = initial_state(task, Stopwatch()).model, task.executor.images
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
    monkeypatch.setattr(prepare, "preprocess", lambda *_: pytest.fail("prepared on a CPU"))
    task = make_quick_task(epochs=1)
    model = loop.train(task).model
    assert torch.equal(model.stem.weight, filters_of_dataset(model, task.dataset).float())
    task = make_quick_task(init=str(tmp_path))
    model.stem.weight.data.fill_(3.0)
    preprocess(task, model)
    assert (model.stem.weight == 3).all()


class OnCard(Hardware):
    """The CPU in the part of a card."""

    on_card = True  # type: ignore[assignment]


def test_a_card_makes_them_once_and_in_the_timed_part(tiny_network, monkeypatch):
    """The set-up leaves them out: the filters are torch's own, and the borders are not written."""
    config, hardware = resolve(with_settings(QUICK, epochs=1))
    task = make_task(config, make_dataset(), OnCard(hardware.device, hardware.dtype))
    task = replace(task, can_capture=False)  # there is no card to capture on
    stopwatch, phases, made = Stopwatch(), [], []
    whiten = prepare.preprocess

    def note(*args, **more):
        phases.append(stopwatch._running[-1])
        whiten(*args, **more)
        made.append(args[1].stem.weight.clone())

    monkeypatch.setattr(prepare, "preprocess", note)
    monkeypatch.setattr(prepare, "warm_up", lambda task, model: "off")
    state = initial_state(task, stopwatch)
    assert torch.equal(state.model.stem.weight, task.network.stem.weight)  # type: ignore[union-attr, arg-type]
    with stopwatch("compile"):
        ready = prepare.prepare(task, state)
    assert phases == ["train"] and not torch.equal(made[0], task.network.stem.weight)  # type: ignore[union-attr, arg-type]
    padded, pad_px = task.executor.images.padded, task.executor.images.pad_px
    assert torch.equal(padded[:, pad_px - 1], padded[:, pad_px + 1])
    assert ready.facts == {"compile": "off", "fused_kernels": False, "fused_update": False, "conv_kernels": {},
                           "conv_ms": {}}  # fmt: skip
