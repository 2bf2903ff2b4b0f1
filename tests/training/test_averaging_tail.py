"""The tail of a run: which weights join the average, and what becomes of batch norm."""

import pytest
import torch
from comparison import same, weights
from conftest import train_in_folder
from safetensors.torch import load_file
from torch import nn

from fastcifar.augment.plan import draw_plan
from fastcifar.optim.averaging import RunningMean
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer


class JoinedAt(Observer):
    """Keeps the weights that join the average, and the steps after which they do."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.steps: list[int] = []

    def on_step(self, run):
        if len(self.weights) > len(self.steps):
            self.steps.append(run.step)


@pytest.mark.parametrize(
    ("settings", "recorded"),
    [
        ({"epochs": 3}, [24]),
        ({"epochs": 6}, [40, 48]),
        ({"epochs": 5.5, "swa_start": 4}, [40, 44]),
        ({"epochs": 3, "swa_every": 3}, [19, 22]),
        ({"epochs": 3, "swa_every": 1, "swa_start": 2.5}, [21, 22, 23, 24]),
        ({"epochs": 3, "swa_every": 100}, [24]),  # never nothing
        ({"epochs": 2, "swa_start": None}, []),
        ({"epochs": 1, "swa_start": 0.0, "swa_every": 4}, [4, 8]),
    ],
)
def test_weights_are_recorded_where_the_tail_says_and_averaged(make_quick_task, monkeypatch, settings, recorded):
    joined, record = JoinedAt(), RunningMean.add

    def recording(self, model):
        joined.weights.append({n: p.detach().double().clone() for n, p in model.named_parameters()})
        record(self, model)

    monkeypatch.setattr(RunningMean, "add", recording)
    result = train(make_quick_task(**settings), [joined])
    assert joined.steps == recorded and len(joined.weights) == len(recorded) == result.summary["swa_recorded"]
    if recorded:
        for name, p in result.model.named_parameters():
            mean = sum(w[name] for w in joined.weights) / len(recorded)
            torch.testing.assert_close(p.double(), mean, rtol=1e-5, atol=1e-6)


def test_batch_norm_is_refreshed_on_images_of_an_epoch_to_come(make_quick_task):
    task = make_quick_task(epochs=3)
    plans = []
    make = task.executor.make

    def watched(plan, size_px):
        plans.append(plan)
        return make(plan, size_px)

    task.executor.make = watched
    result = train(task)
    assert torch.equal(torch.cat([plan.index for plan in plans[-8:]]), draw_plan(task.config, 256, 3).index)
    counts = [m.num_batches_tracked for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [8] * 7 and not result.model.training


def test_raw_and_averaged_weights_differ_and_keep_plain_keys(make_quick_task, tmp_path):
    result = train_in_folder(make_quick_task(epochs=3), tmp_path)
    raw = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["model"]
    assert raw.keys() == weights(result).keys() and not same(raw, weights(result))
    assert not any(key.startswith(("_orig_mod", "module")) for key in raw)
    assert same(load_file(tmp_path / "model.safetensors"), weights(result))
