"""On a card: the fused kernels give what plain torch gives, and a run with them trains as one without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_config, make_dataset, task_of
from fused_cases import KINDS, compare

from fastcifar.config.recipes import find_recipe
from fastcifar.config.settings import with_settings
from fastcifar.models.fused import is_fused
from fastcifar.models.networks import make_model
from fastcifar.optim import fused_update
from fastcifar.training.loop import train
from fastcifar.training.observer import RunOutcome
from fastcifar.training.prepare import warm_up
from fastcifar.training.start import initial_state
from fastcifar.training.step import CapturedStep, make_step
from fastcifar.training.stopwatch import Stopwatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")]

LIMITS = {"fp32": 1e-4, "bf16": 2.0**-6, "fp16": 2.0**-9}
"""fp32: sums of up to 480,000 terms in another order. Else two roundings of values of size 1 to 2."""
STATISTICS = {"d_weight", "d_bias", "running_mean", "running_var"}
DATASET = make_dataset(2000, 500)


def run(**settings: Any) -> RunOutcome:
    plain: dict[str, Any] = {"device": "cuda", "scale": "full", "compile": "off", "augment": "torch", "batch_size": 100,
                             "optimizer": "muon", "activation": "silu", "lr_peak": 0.05, "epochs": 3,
                             "low_res_px": 22, "low_res_until": 0.4}  # fmt: skip
    config = make_config(**plain | settings)
    return train(task_of(config, DATASET))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(500, 64, 31, 31), (500, 256, 15, 15), (500, 256, 3, 3), (7, 48, 9, 5)])
def test_the_kernels_agree_with_plain_torch(shape, kind, dtype):
    for name, off in compare(shape, kind, dtype, device="cuda").items():
        assert off <= (0.02 if name in STATISTICS and dtype != "fp32" else LIMITS[dtype]), name


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_other_activations_agree(activation):
    assert max(compare((100, 64, 15, 15), "pool", activation=activation, device="cuda").values()) <= 1e-4


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_run_with_the_kernels_trains_as_one_without(cuda_graph, exact_fp32, caplog):
    """In fp32, so that rounding does not hide a fault; with a tail, whose averages get their statistics anew.

    So few steps on so few images amplify any rounding: a change of the first weights by 1e-6 moves the loss of a later
    epoch by 4%, on a CPU. The first epoch shows a fault, the others that the training goes on.
    """
    plain = run(precision="fp32", cuda_graph=cuda_graph, fused_kernels=False)
    fused = run(precision="fp32", cuda_graph=cuda_graph, fused_kernels=True)
    assert fused.summary["fused_kernels"] and not plain.summary["fused_kernels"], caplog.messages
    losses = [[row["loss_train"] for row in result.history] for result in (plain, fused)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.002)
    assert losses[1] == pytest.approx(losses[0], rel=0.15)


def test_speedrun94_trains_as_without_graph_and_kernels(caplog):
    """Three forms of the step, each a graph: at 24 pixels, at 32 with a fixed stem, with a fixed first stage, too."""
    recipe = find_recipe("speedrun94")
    settings: dict[str, Any] = {"device": "cuda", "batch_size": 100, "epochs": 5.0, "low_res_until": (1,),
                                "compile": "off", "augment": "torch", "tta": "none", "precision": "bf16"}  # fmt: skip
    captured, plain = (
        train(task_of(with_settings(recipe, **settings, cuda_graph=kernels, fused_kernels=kernels), DATASET))
        for kernels in (True, False)
    )
    assert captured.summary["fused_update"], caplog.messages
    assert not plain.summary["fused_kernels"]
    losses = [[row["loss_train"] for row in result.history] for result in (captured, plain)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02) and losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(precision):
    history = run(precision=precision, optimizer="sgd", fused_kernels=True).history
    assert history[-1]["loss_train"] < history[0]["loss_train"]


def test_equal_seeds_agree_bit_for_bit(monkeypatch, deterministic):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    first, second = (run(precision="bf16", fused_kernels=True, deterministic=True, seed=3) for _ in range(2))
    assert first.summary["fused_kernels"]
    a, b = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_step_with_the_kernels_is_recorded(caplog):
    config = make_config(device="cuda", scale="full", compile="off", augment="torch", batch_size=100, precision="bf16",
                         fused_kernels=True, epochs=1)  # fmt: skip
    task = task_of(config, DATASET)
    state = initial_state(task, Stopwatch(task.hardware.device))
    warm_up(task, state.model)
    step = make_step(task, state, state.model)
    assert is_fused(state.model) and isinstance(step, CapturedStep) and step.fused, caplog.messages


@pytest.mark.parametrize(
    ("scale", "optimizer"), [("full", "muon"), ("full", "sgd"), ("wide", "muon"), ("small", "muon")]
)
def test_the_fused_update_takes_the_optimizers_steps(scale, optimizer):
    """Both in bf16: each is about 1% off."""
    config = make_config(device="cuda", scale=scale, optimizer=optimizer)
    model = make_model(config.model, 10, 0).cuda()
    assert fused_update.largest_difference(model, config, torch.bfloat16) < 0.03
