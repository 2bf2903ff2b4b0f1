"""Network, optimizer, loss, transform and schedule from Python: they do what they say, and a run of them goes on."""

import json
import random
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, make_dataset
from own_parts import adamw, make_net, train, weights
from torch import nn
from torch.optim import lr_scheduler
from torchvision.transforms import v2

import fastcifar
from fastcifar.cli import main as command
from fastcifar.config.schedules import Cosine, OneCycle, PerStep, Schedule
from fastcifar.config.settings import with_settings
from fastcifar.runs.model_file import load_model
from fastcifar.training import step as steps
from fastcifar.training.parts import Parts

pytestmark = pytest.mark.usefixtures("tiny_network")


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x, x


class ForLarge(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ torch.zeros(224 * 224 * 3, 10)


mixup = v2.MixUp(num_classes=10)
OWN: dict[str, Any] = {"network": make_net, "optimizer": adamw, "loss": F.cross_entropy, "transform": mixup}


def test_all_parts_at_once_learn():
    result = train(**OWN, epochs=6)
    assert result.accuracy > 0.5 and isinstance(result.model.network, nn.Sequential)
    assert result.summary["config"]["from_python"] == "network, optimizer, loss, transform"


def test_a_module_is_copied_and_trained_from_its_weights():
    network = make_net()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    result = train(network=network, optimizer=lambda params: torch.optim.SGD(params, lr=0.0), swa_start=None)
    assert all(torch.equal(before[name], p) for name, p in network.state_dict().items())
    assert all(torch.equal(before[n], p) for n, p in weights(result).items() if n.endswith(("weight", "bias")))


def test_seeds_decide_what_a_function_makes_and_the_parts_draw():
    global_draws = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again, other = (weights(train(**OWN, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert torch.equal(global_draws[0], torch.random.get_rng_state()) and global_draws[1] == random.getstate()
    assert global_draws[2] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_the_schedule_scales_the_rates_of_an_optimizer():
    kept: list[Any] = []

    def make(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        kept.append(torch.optim.AdamW([{"params": params[:2], "lr": 0.01}, {"params": params[2:]}], lr=0.03))
        return kept[-1]

    class Rates(fastcifar.Observer):
        def on_step(self, run: Any) -> None:
            rates.append(tuple(group["lr"] for group in kept[-1].param_groups))

    rates: list[tuple[float, ...]] = []
    result = train(optimizer=make, schedule=OneCycle(peak=0.5), swa_start=None, observers=[Rates()])
    table = 16 * [0.0]
    for row in result.history:
        table[row["step"] - 1] = row["lr"]
        assert rates[row["step"] - 1] == pytest.approx((row["lr"], row["lr"] * 3)) and row["momentum"] == 0.9
    assert max(rates)[1] == pytest.approx(0.03, rel=0.01) and kept[-1].param_groups[0]["betas"] == (0.9, 0.999)


def test_the_default_loss_takes_soft_labels_and_an_own_loss_is_the_one_that_is_lowered():
    seen: list[tuple[torch.Size, torch.dtype]] = []

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append((y.shape, y.dtype))
        return 0 * logits.sum() + 7

    assert train(transform=mixup).history[-1]["loss_train"] > 0
    assert train(transform=mixup, loss=loss).history[-1]["loss_train"] == 7
    assert set(seen) == {(torch.Size([32, 10]), torch.float32)}


def test_a_transform_sees_each_batch_of_the_training_and_no_other():
    shapes: list[torch.Size] = []

    def transform(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.is_contiguous(memory_format=torch.channels_last) and abs(x.mean()) < 1
        shapes.append(x.shape)
        return torch.zeros_like(x), y

    result = train(transform=transform)
    assert shapes == 16 * [torch.Size([32, 3, 32, 32])] and result.accuracy < 0.3  # nothing could be learned


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    name = "polynomial"
    interval = "step"
    power: float = 2.0

    def torch_scheduler(self, optimizer: Any, span: Any) -> Any:
        return lr_scheduler.PolynomialLR(optimizer, total_iters=span.count, power=self.power)


@pytest.mark.parametrize("schedule", [Polynomial(peak=0.4), PerStep(peak=0.4, factor=lambda step: 1 - step / 16)])
def test_a_run_of_parts_goes_on_as_if_it_had_not_stopped(schedule, tmp_path, capfd):
    class Broken(fastcifar.Observer):
        def on_step(self, run: Any) -> None:
            if run.step == 11:
                raise LookupError

    given = {**OWN, "schedule": schedule, "checkpoint_every": 1}
    whole = weights(train(**given))
    with pytest.raises(LookupError):
        train(**given, out=tmp_path / "r", observers=[Broken()])
    resumed = train(**given, resume=str(tmp_path / "r"))
    assert all(torch.equal(whole[name], p) for name, p in weights(resumed).items())
    saved = json.loads((tmp_path / "r/config.json").read_text())
    assert saved["from_python"] == "network, optimizer, loss, transform" and resumed.folder == tmp_path / "r"


def test_what_must_be_given_again_is_told_in_one_line(tmp_path, capfd):
    out = tmp_path / "r"
    train(**OWN, out=out)
    assert command.train(["--resume", str(out), "--extend-epochs", "3"]) == 2
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 1 and "network, optimizer, loss, transform of this run came from Python" in err[0]
    assert "fastcifar.train(..., network=..., optimizer=..., loss=..., transform=..., resume=RUN)" in err[0]
    with pytest.raises(ValueError, match="parts from Python: network, optimizer, loss, transform -> none"):
        train(resume=str(out))


def test_a_network_of_python_is_saved_with_plain_keys_and_loads_when_it_is_given(tmp_path):
    result = train(**OWN, out=tmp_path / "r")
    images = make_dataset().x_test
    for network in (make_net, make_net()):
        loaded = fastcifar.load(tmp_path / "r", network=network)
        assert torch.equal(loaded.logits(images), result.model.logits(images))
    facts = load_model(tmp_path / "r/model.safetensors", network=make_net)[1]
    assert (facts["network"], facts["scale"]) == ("python", "torch.nn.modules.container.Sequential")
    with pytest.raises(ValueError, match=r"its network came from Python: fastcifar\.load\(path, network=\.\.\.\)"):
        fastcifar.load(tmp_path / "r")
    with pytest.raises(ValueError, match="not a whole fastcifar model"):
        fastcifar.load(tmp_path / "r", network=nn.Linear(3, 10))


@pytest.mark.parametrize("optimizer", ["sgd", adamw], ids=["ours", "another"])
def test_what_a_recipe_has_for_resnet9_does_nothing_to_another_network(optimizer):
    def named() -> nn.Module:  # its weights have names such as ours
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        stages = nn.Sequential(nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(OrderedDict(stem=stem, stages=stages, head=nn.Linear(8, 10)))

    low = with_settings(QUICK, low_res_px=24, low_res_until=0.5)
    ours = with_settings(low, cool_first_stage=(0.2, 0.4), train_stem="low-res", start="cosines")
    plain, other = (
        weights(fastcifar.train(recipe, data=make_dataset(), epochs=2, network=named, optimizer=optimizer))
        for recipe in (low, ours)
    )
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"network": make_net, "scale": "small"}, ValueError, "scale has no effect here: the network comes from Pyt"),
        ({"network": make_net, "recipe": "swa30"}, ValueError, 'optimizer muon .* give an optimizer .* or optimizer="'),
        ({"optimizer": adamw, "weight_decay": 0.1}, ValueError, "weight_decay has no effect here: the optimizer comes"),
        ({"optimizer": adamw, "cool_first_stage": (0.2, 0.4)}, ValueError, "cool_first_stage has no effect here: the"),
        ({"loss": F.cross_entropy, "label_smoothing": 0.1}, ValueError, "label_smoothing has no effect here: the loss"),
        ({"network": lambda: 3, "optimizer": adamw}, TypeError, "network made a int; expected a torch.nn.Module"),
        ({"optimizer": lambda params: 3}, TypeError, "optimizer made a int; expected a torch.optim.Optimizer"),
        ({"network": nn.Flatten(), "optimizer": adamw}, ValueError, r"output is \[2, 3072\]; expected \[2, 10\]"),
        ({"network": nn.Linear(3, 4), "optimizer": adamw}, ValueError, "network: fails on two images of 32 pixels"),
        ({"optimizer": adamw, "schedule": Cosine(peak=0.0)}, ValueError, "lr_peak is 0"),
        ({"optimizer": adamw, "lr_peak": 0.5}, ValueError, "lr_peak has no effect here: the optimizer"),
        ({"schedule": Cosine}, ValueError, "schedule is the class Cosine; give a name, or a value such as Cosine"),
        ({"schedule": lambda step: 0.0}, ValueError, "schedule is a function; give a name"),
        ({"loss": nn.CrossEntropyLoss}, ValueError, "loss is the class CrossEntropyLoss; give a function"),
        ({"loss": "focal"}, ValueError, "loss is a str; give a function"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, ValueError, r"loss returned \[32\]; expected a tensor"),
        ({"transform": lambda x, y: x}, ValueError, r"transform returned a Tensor; expected \(x, y\)"),
        ({"network": TwoOutputs, "optimizer": adamw}, ValueError, "pixels .its output is a tuple; expected logits"),
        ({"network": ForLarge, "optimizer": adamw}, ValueError, r"fails on two images of 32 pixels \([^;]*\)$"),
        ({"schedule": "nope"}, ValueError, "schedule is 'nope'; known"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_told_in_one_line(given, error, told):
    recipe = given.pop("recipe", replace(QUICK, tail=None))
    with pytest.raises(error, match=told) as raised:
        fastcifar.train(recipe, data=make_dataset(), epochs=1, **given)
    assert "\n" not in str(raised.value)


def test_a_part_that_no_graph_can_hold_is_launched_step_by_step_with_a_line(make_quick_task, monkeypatch, said):
    task, state = replace(make_quick_task(), can_capture=True), object()
    monkeypatch.setattr(steps, "CapturedStep", lambda *args: "recorded")
    monkeypatch.setattr(steps, "CudaGraphs", lambda: None)
    monkeypatch.setattr(steps, "Step", lambda *args: "plain")
    assert steps.make_step(replace(task, parts=Parts(loss=F.cross_entropy)), state, None) == "recorded"
    assert said == []
    assert steps.make_step(replace(task, parts=Parts(transform=mixup)), state, None) == "plain"
    assert said == ["the transform from Python cannot be part of a CUDA graph: the step is launched without one"]
