"""The draws of a plan have the right distribution, and the torch executor does what a plain NumPy version does."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.augment.executor import TorchExecutor, shrink
from fastcifar.augment.images import DeviceImages, to_device
from fastcifar.augment.plan import EpochPlan, draw_plan, image_size
from fastcifar.config.config import Augment, Config

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CPU = torch.device("cpu")
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of values up to 2.8


def random_images(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, num)


def on_cpu(images: np.ndarray, labels: np.ndarray, pad_px: int, dtype: torch.dtype = torch.float32) -> DeviceImages:
    return to_device(images, labels, MEAN, STD, pad_px, CPU, dtype)


def reference(images: np.ndarray, plan: EpochPlan, step: int, pad_px: int, cutout_px: int) -> np.ndarray:
    """Image by image in float64: pad, crop, mirror, normalise, blank. [B, C, H, W]"""
    batch = []
    for b, i in enumerate(plan.index[step].tolist()):
        top, left = int(plan.offset_y[step, b]), int(plan.offset_x[step, b])
        padded = np.pad(images[i], ((pad_px, pad_px), (pad_px, pad_px), (0, 0)), mode="reflect")
        x = padded[top : top + 32, left : left + 32]
        x = (x[:, ::-1] if plan.mirror[step, b] else x) / 255
        x = (x - MEAN) / STD
        y0, x0 = int(plan.cutout_y[step, b]) - cutout_px // 2, int(plan.cutout_x[step, b]) - cutout_px // 2
        x[max(y0, 0) : max(y0 + cutout_px, 0), max(x0, 0) : max(x0 + cutout_px, 0)] = 0
        batch.append(x.transpose(2, 0, 1))
    return np.stack(batch)


def same(a: EpochPlan, b: EpochPlan) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


def plan_config(**settings: Any) -> Config:
    """Crops of 4 pixels and alternating sides, unless told otherwise."""
    return make_config(**{"crop_pad_px": 4, "mirror": "alternating", **settings})


def plans(epochs: int, num: int = 5000, **settings: Any) -> list[EpochPlan]:
    return [draw_plan(plan_config(**settings), num, epoch) for epoch in range(epochs)]


def assert_uniform(values: torch.Tensor, places: int) -> None:
    """Every place occurs, each within 5 standard deviations of its share."""
    counts = values.flatten().bincount(minlength=places)
    share = values.numel() / places
    assert len(counts) == places
    assert (counts - share).abs().max() < 5 * (share * (1 - 1 / places)) ** 0.5


# The draws


@pytest.mark.parametrize(("num", "batch", "seen"), [(1000, 100, 1000), (1000, 300, 900), (7, 500, 7), (5, 1, 5)])
def test_each_image_at_most_once_an_epoch(num, batch, seen):
    plan = draw_plan(plan_config(batch_size=batch), num, 0)
    assert plan.index.shape == (num // min(batch, num), min(batch, num))
    assert len(plan) == len(plan.index)
    assert plan.index.unique().numel() == plan.index.numel() == seen


def test_a_ragged_epoch_leaves_out_other_images_each_time():
    left_out = [set(range(1000)) - set(plan.index.flatten().tolist()) for plan in plans(2, 1000, batch_size=300)]
    assert left_out[0] != left_out[1]


@pytest.mark.parametrize("pad_px", [0, 1, 2, 4])
def test_every_crop_and_side_equally_often(pad_px):
    drawn = plans(8, crop_pad_px=pad_px, mirror="random", batch_size=500)
    y, x, mirror = (torch.stack([getattr(p, n) for p in drawn]) for n in ("offset_y", "offset_x", "mirror"))
    places = 2 * pad_px + 1  # corners 0 and 2P included
    assert_uniform((y * places + x) * 2 + mirror, 2 * places**2)


def test_cutout_centres_are_uniform_and_free_of_the_crop():
    drawn = plans(8, crop_pad_px=2)
    assert_uniform(torch.stack([p.cutout_y for p in drawn]), 32)
    assert_uniform(torch.stack([p.cutout_x for p in drawn]), 32)
    assert_uniform(torch.stack([p.cutout_y % 4 * 5 + p.offset_y for p in drawn]), 20)


def test_draws_do_not_depend_on_the_image_or_its_neighbours():
    """Mean offset and side of each image over 200 epochs; sorting inside a batch must not tie them to the index."""
    drawn = plans(200, 100, crop_pad_px=2, mirror="random", batch_size=50)
    for name, sigma in (("offset_y", 2**0.5), ("offset_x", 2**0.5), ("mirror", 0.5), ("cutout_y", 9.24)):
        total = torch.zeros(100)
        for plan in drawn:
            total.index_add_(0, plan.index.flatten(), getattr(plan, name).flatten().float())
        mean = {"mirror": 0.5, "cutout_y": 15.5}.get(name, 2.0)
        assert (total / 200 - mean).abs().max() < 5 * sigma / 200**0.5


def test_alternating_mirror_shows_the_other_side_each_epoch():
    sides = []
    for plan in plans(4, 5000, mirror="alternating"):
        side = torch.zeros(5000, dtype=torch.bool)
        sides.append(side.index_put_((plan.index.flatten(),), plan.mirror.flatten()))
    assert abs(sides[0].sum() - 2500) < 5 * 0.5 * 5000**0.5
    assert all(torch.equal(a, ~b) for a, b in pairwise(sides))


def test_alternating_mirror_starts_from_other_sides_for_another_seed():
    a, b = (draw_plan(plan_config(seed=seed, batch_size=1000), 1000, 0) for seed in (0, 1))
    first = [p.mirror.flatten()[p.index.flatten().argsort()] for p in (a, b)]
    assert 0.4 < (first[0] ^ first[1]).float().mean() < 0.6


def test_mirror_none_and_pad_0_draw_nothing():
    plan = draw_plan(plan_config(mirror="none", crop_pad_px=0), 1000, 1)
    assert not plan.mirror.any() and not plan.offset_y.any() and not plan.offset_x.any()


def test_a_batch_is_sorted_by_crop_and_mirror():
    plan = draw_plan(plan_config(crop_pad_px=4, mirror="random"), 5000, 0)
    code = (plan.offset_y * 9 + plan.offset_x) * 2 + plan.mirror
    assert (code.diff(dim=1) >= 0).all()


# Seeds


def test_seed_and_epoch_fix_the_plan_and_history_does_not_matter():
    config = plan_config(seed=3)
    late = draw_plan(config, 2000, 5)
    before = torch.get_rng_state()
    torch.rand(7)
    for epoch in range(5):
        draw_plan(config, 2000, epoch)
    torch.set_rng_state(before)
    assert same(late, draw_plan(config, 2000, 5))
    assert torch.equal(before, torch.get_rng_state())  # nor does a draw touch the global generator
    assert not same(late, draw_plan(config, 2000, 6))
    assert not same(late, draw_plan(plan_config(seed=4), 2000, 5))


def test_no_two_pairs_of_seed_and_epoch_share_a_stream():
    """A sum such as 1000 * seed + epoch would: (0, 1000) and (1, 0)."""
    pairs = [(seed, epoch) for seed in range(40) for epoch in (*range(20), 1000, 2000)]
    orders = {tuple(draw_plan(plan_config(seed=s), 50, e).index.flatten().tolist()) for s, e in pairs}
    assert len(orders) == len(pairs)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_parts_of_all_processes_are_the_whole(world):
    plan = draw_plan(plan_config(batch_size=50), 200, 0)
    parts = [plan.part(rank, world) for rank in range(world)]
    for name in plan.__dataclass_fields__:
        together = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert torch.equal(together.sort(dim=1).values, getattr(plan, name).sort(dim=1).values)
    whole = {tuple(row) for row in torch.stack([plan.index, plan.offset_y, plan.cutout_x], -1).view(-1, 3).tolist()}
    shares = [torch.stack([p.index, p.offset_y, p.cutout_x], -1).reshape(-1, 3).tolist() for p in parts]
    assert {tuple(row) for share in shares for row in share} == whole


# The executor


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("pad_px", [0, 2, 4, 8])
def test_executor_does_what_numpy_does(dtype, pad_px):
    images, labels = random_images(120)
    data = on_cpu(images, labels, pad_px, dtype)
    for epoch in range(2):
        plan = draw_plan(plan_config(crop_pad_px=pad_px, cutout_px=8, batch_size=40, mirror="random"), 120, epoch)
        steps = list(TorchExecutor(data, cutout_px=8).epoch(plan))
        assert len(steps) == len(plan) == 3
        for step, (x, y) in enumerate(steps):
            assert x.shape == (40, 3, 32, 32) and x.dtype == dtype
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert y.dtype == torch.int64 and np.array_equal(y, labels[plan.index[step].numpy()])
            assert np.abs(x.double().numpy() - reference(images, plan, step, pad_px, 8)).max() < ROUNDING[dtype]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_size_of_anything(data):
    num, batch = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 30))
    pad_px, cutout_px = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 40))
    mirror = data.draw(st.sampled_from(["alternating", "random", "none"]))
    config = plan_config(batch_size=batch, crop_pad_px=pad_px, cutout_px=cutout_px, mirror=mirror)
    images, labels = random_images(num)
    plan = draw_plan(config, num, data.draw(st.integers(0, 3)))
    seen = 0
    for step, (x, y) in enumerate(TorchExecutor(on_cpu(images, labels, pad_px), cutout_px).epoch(plan)):
        assert np.abs(x.double().numpy() - reference(images, plan, step, pad_px, cutout_px)).max() < 2e-6
        assert np.array_equal(y, labels[plan.index[step].numpy()])
        seen += len(y)
    assert seen == num // min(batch, num) * min(batch, num)


@pytest.mark.parametrize("cutout_px", [1, 7, 8, 31, 32, 40, 64])
def test_cutout_square(cutout_px):
    """At 49 centres, among them all corners: area as cut off at the border; odd squares lie on their centre."""
    centres = torch.tensor([0, 1, 5, 16, 26, 30, 31])
    cy, cx = torch.cartesian_prod(centres, centres).T[:, None]
    zero = torch.zeros_like(cy)
    data = on_cpu(np.full((1, 32, 32, 3), 255, np.uint8), np.zeros(1, np.int64), 0)
    ((x, _),) = TorchExecutor(data, cutout_px).epoch(EpochPlan(zero, zero, zero, zero.bool(), cy, cx))
    before, after = cutout_px // 2, cutout_px - cutout_px // 2
    height, width = ((c + after).clamp(max=32) - (c - before).clamp(min=0) for c in (cy[0], cx[0]))
    blank = x[:, 0] == 0
    assert torch.equal(blank.sum(dim=(1, 2)), height * width)
    assert all(torch.equal(x[:, 0] == 0, x[:, channel] == 0) for channel in (1, 2))
    if cutout_px % 2:
        assert blank[torch.arange(49), cy[0], cx[0]].all()


def test_batches_stay_as_they_are_while_the_next_are_made():
    images, labels = random_images(60)
    executor = TorchExecutor(on_cpu(images, labels, 2))
    plan = draw_plan(plan_config(crop_pad_px=2, batch_size=20), 60, 0)
    kept = list(executor.epoch(plan))
    copies = [(x.clone(), y.clone()) for x, y in kept]
    list(executor.epoch(draw_plan(plan_config(crop_pad_px=2, batch_size=20), 60, 1)))
    assert all(torch.equal(a, b) for k, c in zip(kept, copies, strict=True) for a, b in zip(k, c, strict=True))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_shrink_halves_by_averaging_and_keeps_layout(dtype):
    x = torch.rand(4, 32, 32, 3).to(dtype)
    small = shrink(x, 16)
    assert small.shape == (4, 16, 16, 3) and small.dtype == dtype and small.is_contiguous()
    mean = torch.nn.functional.avg_pool2d(x.float().permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert (small.float() - mean).abs().max() <= {torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    assert shrink(x, 32) is x
    assert shrink(x, 20).shape == (4, 20, 20, 3)


def test_executor_shrinks_where_asked():
    images, labels = random_images(20)
    executor = TorchExecutor(on_cpu(images, labels, 2))
    plan = draw_plan(plan_config(crop_pad_px=2, batch_size=10), 20, 0)
    for (small, _), (x, _) in zip(executor.epoch(plan, size_px=24), executor.epoch(plan), strict=True):
        assert torch.equal(small, shrink(x.permute(0, 2, 3, 1), 24).permute(0, 3, 1, 2))


def test_the_size_is_low_first():
    config = plan_config(epochs=4, low_res_px=16, low_res_until=0.5)
    assert [image_size(config, epoch) for epoch in range(4)] == [16, 16, 32, 32]
    ladder = plan_config(epochs=4, low_res_px=(16, 24), low_res_until=(0.25, 3))
    assert [image_size(ladder, epoch) for epoch in range(4)] == [16, 24, 24, 32]
    never = replace(config, augment=Augment(low_res_px=24, low_res_until=0.0))
    assert image_size(never, 0) == 32
    none_whole = plan_config(epochs=1, low_res_px=16, low_res_until=0.6)
    assert image_size(none_whole, 0) == 32  # no epoch lies wholly before its end


@pytest.mark.parametrize("max_images", [1, 20, 45, 60, 1_000])
def test_a_block_holds_whole_steps_of_one_epoch(max_images):
    images, labels = random_images(60)
    executor = TorchExecutor(on_cpu(images, labels, 2), max_images=max_images)
    plans = [draw_plan(plan_config(crop_pad_px=2, batch_size=20), 60, epoch) for epoch in range(2)]
    blocks = list(executor.blocks([(plans[0], 32), (plans[1], 24)]))
    steps = max(1, min(3, max_images // 20))
    assert [len(block) for block in blocks] == [min(steps, 3 - i) for i in range(0, 3, steps)] * 2
    assert {block.images.shape[1] for block in blocks} == {32, 24}
    batches = [block.batch(step) for block in blocks for step in range(len(block))]
    expected = [*executor.epoch(plans[0], 32), *executor.epoch(plans[1], 24)]
    for (x, y), (x_ref, y_ref) in zip(batches, expected, strict=True):
        assert torch.equal(x, x_ref) and torch.equal(y, y_ref)
        assert x.is_contiguous(memory_format=torch.channels_last)
