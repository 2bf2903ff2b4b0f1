"""The loop: every step at its row of the table, a row per epoch, and a summary with all that a reader is promised."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from comparison import same
from conftest import train_in_folder
from torch.utils._python_dispatch import TorchDispatchMode

from fastcifar.training import loop
from fastcifar.training.evaluate import Measured
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer

ROW = {"epoch", "step", "phase", "lr", "momentum", "loss_train", "accuracy_test", "loss_test", "time_s"}
SUMMARY = """
    dataset n_train n_test recipe scale epochs num_steps seed accuracy accuracy_raw accuracy_swa accuracy_tta loss_last
    time_s images_per_s stopped train_pflop peak_mem_mib device precision compile augment versions commit dirty
"""


@contextmanager
def recorded_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, float]]]:
    """(learning rate, momentum) that every optimizer step finds in its group."""
    rows: list[tuple[float, float]] = []
    step = torch.optim.SGD.step

    def recording(self, closure=None):
        rows.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
        return step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", recording)
        yield rows


# What a run does and says


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_every_step_uses_its_row_of_the_table(make_quick_task, monkeypatch, schedule):
    task = make_quick_task(epochs=3, schedule=schedule)
    with recorded_steps(monkeypatch) as rows:
        result = train(task)
    assert len(rows) == task.num_steps == 3 * 8 == result.summary["num_steps"]
    assert torch.tensor(rows, dtype=torch.float64).equal(result.schedule.table)


def test_history_has_a_row_per_epoch_with_the_last_row_of_the_table(make_quick_task):
    task = make_quick_task(epochs=3)
    result = train(task)
    assert [set(row) for row in result.history] == [ROW] * 3
    assert [(row["epoch"], row["step"]) for row in result.history] == [(1, 8), (2, 16), (3, 24)]
    assert [row["phase"] for row in result.history] == ["cycle", "cycle", "tail"]
    for row in result.history:
        assert [row["lr"], row["momentum"]] == result.schedule.table[row["step"] - 1].tolist()
        assert row["loss_train"] > 0 and row["loss_test"] > 0 and 0 <= row["accuracy_test"] <= 1
    times = [row["time_s"] for row in result.history]
    assert times == sorted(times) and times[0] > 0


def test_it_learns(make_quick_task):
    result = train(make_quick_task(epochs=6, seed=2))
    assert result.history[-1]["loss_train"] < result.history[0]["loss_train"]
    assert result.summary["accuracy"] > 0.5 and result.summary["accuracy_raw"] > 0.5


def test_summary_has_all_that_a_reader_is_promised(make_quick_task):
    task = make_quick_task(epochs=3, tta="flip")
    result = train(task)
    summary = result.summary
    assert set(summary) >= set(SUMMARY.split())
    assert (summary["n_train"], summary["n_test"], summary["dataset"]) == (256, 80, "synthetic")
    assert summary["accuracy"] == summary["accuracy_tta"]  # the figure the run stands for
    assert summary["loss_last"] == result.history[-1]["loss_train"] and summary["loss_test"] > 0
    assert summary["train_pflop"] == pytest.approx(24 * 32 * task.flop_per_image[32] / 1e15)
    json.dumps(summary, allow_nan=False)


def test_times_of_all_phases_add_up_to_no_more_than_the_process(make_quick_task):
    time_s = train(make_quick_task(epochs=3, tta="flip")).summary["time_s"]
    assert set(time_s) >= {"import", "data", "compile", "train", "swa", "eval", "wall"}
    assert all(time_s[phase] > 0 for phase in ("train", "swa", "eval", "eval_final"))
    assert sum(v for k, v in time_s.items() if k not in ("wall", "eval_final")) <= time_s["wall"]
    assert time_s["eval_final"] < time_s["eval"]


@pytest.mark.parametrize(
    ("tta", "swa_start", "stands_for"),
    [("flip", 2 / 3, "accuracy_tta"), ("none", 2 / 3, "accuracy_swa"), ("none", None, "accuracy_raw"),
     ("flip-shift", None, "accuracy_tta")],
)  # fmt: skip
def test_the_figure_of_a_run(make_quick_task, tta, swa_start, stands_for):
    summary = train(make_quick_task(epochs=1.5, tta=tta, swa_start=swa_start)).summary
    assert summary["accuracy"] == summary[stands_for]
    assert (summary["accuracy_tta"] is None) == (tta == "none")
    assert (summary["accuracy_swa"] is None) == (swa_start is None)


def test_fractions_of_an_epoch_end_inside_it(make_quick_task):
    result = train(make_quick_task(epochs=1.5))
    assert [row["step"] for row in result.history] == [8, 12]
    assert result.history[-1]["accuracy_test"] is not None
    assert len(result.schedule.table) == 12


def test_one_step_is_a_run(make_quick_task):
    result = train(make_quick_task(epochs=0.01))
    assert [row["step"] for row in result.history] == [1]
    assert np.isfinite(result.summary["loss_last"])


def test_a_batch_bigger_than_the_set_is_the_set(make_quick_task):
    task = make_quick_task(epochs=2, batch_size=1000)
    assert (task.batch_size, task.steps_per_epoch, task.num_steps) == (256, 1, 2)
    assert train(task).summary["images_per_s"] > 0


def test_a_batch_that_does_not_divide_the_set(make_quick_task):
    task = make_quick_task(epochs=2, batch_size=100)
    assert (task.steps_per_epoch, task.num_steps) == (2, 4)
    assert [row["step"] for row in train(task).history] == [2, 4]


def test_held_out_images_are_watched_and_the_test_set_is_the_figure(make_quick_task):
    task = make_quick_task(epochs=2, val_split=0.25)
    result = train(task)
    assert task.num_train == result.summary["n_train"] == 256 - 60  # 6 of the 25 or 26 of each class
    assert all(row["accuracy_test"] is None and 0 <= row["accuracy_val"] <= 1 for row in result.history)
    assert all("loss_test" not in row and row["loss_val"] > 0 for row in result.history)
    assert result.summary["n_test"] == 80 and result.summary["accuracy"] * 80 == pytest.approx(
        round(result.summary["accuracy"] * 80)
    )


def test_accuracy_is_measured_when_asked_and_at_the_end(make_quick_task):
    history = train(make_quick_task(epochs=5, eval_every=2)).history
    assert [row["accuracy_test"] is not None for row in history] == [False, True, False, True, True]


def test_plateau_drops_the_rate_of_epochs_to_come(make_quick_task, monkeypatch):
    task = make_quick_task(
        epochs=6, schedule="plateau", val_split=0.1, patience=0, factor=0.5, swa_start=None, lr_peak=0.4
    )
    monkeypatch.setattr(loop.Evaluator, "__call__", lambda *args: (0.3, 0.3, 1.0))  # never better
    with recorded_steps(monkeypatch) as rows:
        train(task)
    per_epoch = [lr for lr, _ in rows[:: task.steps_per_epoch]]
    assert per_epoch == pytest.approx([0.4, 0.4, 0.2, 0.1, 0.05, 0.025])


def test_a_test_loss_that_is_not_finite_is_none_and_the_run_goes_on_from_its_file(
    make_quick_task, tmp_path, monkeypatch
):
    """Logits may leave the range of fp16 while all weights are finite."""
    with monkeypatch.context() as m:
        m.setattr(loop.Evaluator, "__call__", lambda *args: Measured(0.3, 0.3, float("inf")))
        first = train_in_folder(make_quick_task(epochs=2), tmp_path)
    assert [row["loss_test"] for row in first.history] == [None, None]
    longer = make_quick_task(epochs=2, resume=str(tmp_path), extend_epochs=3)
    assert train(longer).history[-1]["loss_test"] > 0


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize(("network", "norm"), [("resnet9", "gn-ws"), ("resnet18", "bn")])
def test_other_networks_and_optimizers_run(make_quick_task, network, norm, optimizer):
    task = make_quick_task(epochs=0.25, network=network, norm=norm, optimizer=optimizer, swa_start=0.0, batch_size=8)
    task = replace(task, steps_per_epoch=8)
    assert np.isfinite(train(task).summary["loss_last"])


def test_low_resolution_first(make_quick_task):
    task = make_quick_task(epochs=2, low_res_px=16, low_res_until=0.5)
    sizes = []
    make = task.executor.make

    def watched(plan, size_px):
        sizes.extend([size_px] * len(plan))
        return make(plan, size_px)

    task.executor.make = watched
    train(task)
    assert sizes == [16] * 8 + [32] * 8 + [32] * 8  # the last for the batch-norm refresh
    assert task.flop_per_image[16] < task.flop_per_image[32]


@pytest.mark.parametrize("low_res", [True, False])
def test_the_stem_trains_in_the_low_resolution_part_alone(make_quick_task, low_res):
    """Where there is none, it always trains."""
    size = {"low_res_px": 16, "low_res_until": 0.5} if low_res else {}
    biases = []

    class Watch(Observer):
        def on_step(self, state):
            biases.append(state.model.stem.bias.clone())

    train(make_quick_task(epochs=2, optimizer="muon", train_stem="low-res", swa_start=None, **size), [Watch()])
    moved = [not torch.equal(a, b) for a, b in pairwise(biases)]
    assert len(moved) == 15 and moved == [True] * (7 if low_res else 15) + [False] * (8 if low_res else 0)


# Waiting for the device


class HostReads(TorchDispatchMode):
    """Counts reads of a single number by the host: on a card each would wait for all that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_the_host_reads_nothing_from_the_device_in_a_step(make_quick_task, optimizer):
    counts = []
    for batch_size in (64, 32):  # twice as many steps
        task = make_quick_task(epochs=1, batch_size=batch_size, swa_start=None, optimizer=optimizer)
        with HostReads() as reads:
            train(task)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


def test_each_seed_has_its_own_network(make_quick_task):
    """Built once: a run trains a copy of it."""
    task = make_quick_task()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    train(task)
    assert same(task.network.state_dict(), before)
    assert task.with_config(replace(task.config, epochs=1)).network is task.network
    other = task.with_config(replace(task.config, seed=1)).network
    assert same(other.state_dict(), make_quick_task(seed=1).network.state_dict())
    assert not same(other.state_dict(), before)
