"""DALI's CPU operators give the batches of the torch executor; where DALI is missing, one line says so."""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import make_config

from fastcifar.augment.dali import SIZES_OF_A_RUN, DaliExecutor, DaliUnavailable, has_dali
from fastcifar.augment.executor import TorchExecutor
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import EpochPlan, draw_plan

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Same fp32 arithmetic, rounded once at the end. In fp32 the constants differ in their last bit (DALI is given std, we
# keep 1/std): one fp32 ulp of the largest values. 16-bit results come out equal, bit for bit.
LARGEST_DIFFERENCE = {torch.float32: 2.4e-7, torch.float16: 0.0, torch.bfloat16: 0.0}


def assert_same_epoch(steps: list, plan: EpochPlan, reference: TorchExecutor, size_px: int = 32) -> None:
    allowed = LARGEST_DIFFERENCE[reference.images.dtype]
    assert len(steps) == len(plan)
    for (x, y), (x_ref, y_ref) in zip(steps, reference.epoch(plan, size_px), strict=True):
        assert x.dtype == x_ref.dtype and x.shape == x_ref.shape
        assert x.stride() == x_ref.stride() and x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, y_ref)
        assert (x.float() - x_ref.float()).abs().max() <= allowed


def pair(pad_px: int = 2, dtype: torch.dtype = torch.float16, cutout_px: int = 0, num: int = 400, prefetch: int = 2):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, num)
    data = to_device(images, labels, MEAN, STD, pad_px, torch.device("cpu"), dtype)
    return DaliExecutor(data, cutout_px, prefetch), TorchExecutor(data, cutout_px)


def plan_of(epoch: int, num: int = 400, batch_size: int = 100, crop_pad_px: int = 2) -> EpochPlan:
    return draw_plan(make_config(batch_size=batch_size, mirror="random", crop_pad_px=crop_pad_px), num, epoch)


@needs_dali
@pytest.mark.parametrize("dtype", LARGEST_DIFFERENCE)
@pytest.mark.parametrize("pad_px", [0, 2, 4])
def test_same_batches_as_torch(pad_px, dtype):
    dali, reference = pair(pad_px, dtype, cutout_px=8)
    for epoch in range(3):  # all steps of an epoch are kept, so a buffer used again would show
        plan = plan_of(epoch, crop_pad_px=pad_px)
        assert_same_epoch(list(dali.epoch(plan)), plan, reference)


@needs_dali
@pytest.mark.parametrize("pad_px", [1, 3, 8])
def test_every_crop_and_side_in_one_batch(pad_px):
    places = range(2 * pad_px + 1)
    code = torch.cartesian_prod(torch.tensor(places), torch.tensor(places), torch.tensor([0, 1]))
    y, x, mirror = code.T[:, None].contiguous()
    plan = EpochPlan(torch.arange(len(code))[None] % 400, y, x, mirror.bool(), y, x)
    dali, reference = pair(pad_px)
    assert_same_epoch(list(dali.epoch(plan)), plan, reference)


@needs_dali
def test_plans_of_any_size_and_low_resolution():
    dali, reference = pair()
    for batch_size, size_px in ((100, 32), (1, 32), (400, 16), (37, 24), (400, 32)):
        plan = plan_of(1, batch_size=batch_size)
        assert_same_epoch(list(dali.epoch(plan, size_px)), plan, reference, size_px)


@needs_dali
@pytest.mark.parametrize("prefetch", [1, 2, 4])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_abandoned_epoch_leaves_nothing_behind(prefetch, taken):
    dali, reference = pair(prefetch=prefetch)
    for epoch in range(3):
        left_early = dali.epoch(plan_of(epoch))
        assert len(list(islice(left_early, taken))) == taken
        plan = plan_of(epoch + 1)
        assert_same_epoch(list(dali.epoch(plan)), plan, reference)


@needs_dali
def test_an_epoch_shorter_than_the_prefetch():
    dali, reference = pair(prefetch=4)
    for epoch in range(3):
        plan = plan_of(epoch, batch_size=400)
        assert_same_epoch(list(dali.epoch(plan)), plan, reference)


@needs_dali
@pytest.mark.parametrize("max_images", [1, 50, 1_000])
@pytest.mark.parametrize("size_px", [32, 24])
def test_blocks_of_any_size_give_the_same_images(max_images, size_px):
    _, reference = pair()
    dali = DaliExecutor(reference.images, max_images=max_images)
    plan = plan_of(0)
    assert_same_epoch(list(dali.epoch(plan, size_px)), plan, reference, size_px)


@needs_dali
def test_dali_is_called_once_per_block(monkeypatch):
    _, reference = pair()
    dali, calls = DaliExecutor(reference.images, max_images=1_000), []
    pipeline_for = dali._pipeline_for
    monkeypatch.setattr(dali, "_pipeline_for", lambda num: calls.append(num) or pipeline_for(num))
    assert len(list(dali.epoch(plan_of(0)))) > 1 and calls == [400]


@needs_dali
def test_replaced_pipelines_give_the_same_images():
    """A pipeline for each number of images, replaced after two calls, and no more than a few of them kept."""
    _, reference = pair()
    dali, seen = DaliExecutor(reference.images, max_images=1_000), set()
    dali.most_calls = 2
    for epoch, steps in enumerate((4, 4, 4, 1, 4, 2, 3, 1)):
        plan = plan_of(epoch).steps(0, steps)
        assert_same_epoch(list(dali.epoch(plan)), plan, reference)
        seen |= {id(pipe) for pipe, _ in dali.used.values()}
        assert len(dali.used) <= SIZES_OF_A_RUN and all(calls <= 2 for _, calls in dali.used.values())
    assert len(seen) > SIZES_OF_A_RUN


@needs_dali
def test_two_epochs_at_once_do_not_disturb_each_other():
    dali, reference = pair()
    first, second = dali.epoch(plan_of(0)), dali.epoch(plan_of(1))
    pairs = list(zip(first, second, strict=True))
    assert_same_epoch([a for a, _ in pairs], plan_of(0), reference)
    assert_same_epoch([b for _, b in pairs], plan_of(1), reference)


@needs_dali
def test_a_share_of_a_batch():
    dali, reference = pair()
    for rank in range(3):
        plan = plan_of(0).part(rank, 3)
        assert_same_epoch(list(dali.epoch(plan)), plan, reference)


# Where DALI does not run. No mark: these need no DALI


def assert_one_line(error: pytest.ExceptionInfo) -> None:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    assert "pip install nvidia-dali-cuda130" in text and "--augment torch" in text


@pytest.mark.parametrize("module", ["nvidia", "nvidia.dali"])
def test_not_installed(monkeypatch, module):
    for name in [name for name in sys.modules if name == "nvidia" or name.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert not has_dali()
    with pytest.raises(DaliUnavailable, match="DALI does not run here") as error:
        pair(num=4)
    assert_one_line(error)


def test_no_driver_or_one_too_old(monkeypatch):
    backend = {"__name__": "nvidia.dali.backend"}
    exec("def build(*_):\n raise RuntimeError('\\nerror cudaErrorInsufficientDriver (35):\\ntoo old\\n' * 9)", backend)
    monkeypatch.setattr(DaliExecutor, "_build", backend["build"])
    with pytest.raises(DaliUnavailable, match="InsufficientDriver") as error:
        pair(num=4)
    assert_one_line(error)


def test_a_dali_that_is_too_old(monkeypatch):
    monkeypatch.setattr(DaliExecutor, "_build", lambda _: ModuleType("nvidia.dali.fn").crop_mirror_normalize)
    with pytest.raises(DaliUnavailable, match="has no attribute 'crop_mirror_normalize'") as error:
        pair(num=4)
    assert_one_line(error)


@pytest.mark.parametrize("mistake", ["None.pixels", "len(3)", "torch.zeros(2) @ torch.zeros(3)"])
def test_a_mistake_of_our_own_is_not_called_dalis(monkeypatch, mistake):
    monkeypatch.setattr(DaliExecutor, "_build", lambda _: eval(mistake))
    with pytest.raises((AttributeError, TypeError, RuntimeError)) as error:
        pair(num=4)
    assert not isinstance(error.value, DaliUnavailable)


def test_importing_the_file_does_not_import_dali():
    code = "import sys, fastcifar.augment.dali; sys.exit('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
