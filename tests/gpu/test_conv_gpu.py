"""On a card: the kernels of pooled convolutions give what plain torch gives, and each layer chooses among them."""

from __future__ import annotations

import pytest
import torch
from conftest import make_config, make_dataset, task_of
from conv_cases import USES, compare

from fastcifar.models.pooled_conv import Kernels
from fastcifar.training.loop import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")]

LIMITS = {"bf16": 0.02, "fp16": 0.005}
"""Of the norm of a difference: products are rounded to 2^-9 or 2^-12, once by either side, and summed in fp32."""


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("use", USES, ids=str)
@pytest.mark.parametrize(("shape", "c_out"), [
    ((500, 24, 31, 31), 64), ((500, 64, 15, 15), 256), ((500, 256, 7, 7), 256), ((100, 24, 21, 21), 64),
    ((7, 40, 10, 6), 72),
])  # fmt: skip
def test_the_kernels_agree_with_plain_torch(shape, c_out, use, dtype):
    found = compare(shape, c_out, 3, use, dtype, device="cuda")
    assert max(found.values()) <= LIMITS[dtype], found


@pytest.mark.parametrize("dtype", LIMITS)
def test_filters_of_two_pixels_agree(dtype):
    assert max(compare((100, 24, 31, 31), 64, 2, Kernels(True, True), dtype, device="cuda").values()) <= LIMITS[dtype]


@pytest.mark.parametrize("deterministic_run", [False, True])
def test_every_layer_chooses_once_per_image_size(deterministic_run, request, caplog):
    if deterministic_run:
        request.getfixturevalue("deterministic")
    config = make_config(device="cuda", scale="full", compile="off", augment="torch", batch_size=500, optimizer="muon",
                         activation="silu", lr_peak=0.05, epochs=2, low_res_px=22, low_res_until=0.5, precision="bf16",
                         deterministic=deterministic_run)  # fmt: skip
    summary = train(task_of(config, make_dataset(2000, 500))).summary
    assert not [line for line in caplog.messages if "convolution kernels" in line], caplog.messages
    sizes = {f"stages.{i}.conv1 {s}x{s}" for i, both in enumerate(((22, 32), (12, 16), (6, 8))) for s in both}
    assert set(summary["conv_kernels"]) == sizes
    if deterministic_run:
        assert set(summary["conv_kernels"].values()) == {"none"}
