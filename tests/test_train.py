"""The loop: every step at its row of the table, reproducible, resumable from anywhere, honest about failure."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_dataset
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcifar import checkpoint
from fastcifar import job as job_module
from fastcifar import state as state_module
from fastcifar import train as train_module
from fastcifar.augment import draw_plan
from fastcifar.job import Job
from fastcifar.schedules import own_rule
from fastcifar.swa import RunningMean
from fastcifar.train import Diverged, Interrupted, train, warm_up

ROW = {"epoch", "step", "phase", "lr", "momentum", "loss_train", "accuracy_test", "time_s"}
SUMMARY = """
    dataset n_train n_test recipe scale epochs num_steps seed accuracy accuracy_raw accuracy_swa accuracy_tta loss_last
    time_s images_per_s train_pflop peak_mem_mib device precision compile augment versions commit dirty
"""
PINNED = Path(__file__).parent / "data" / "pinned_losses.json"


def weights(result: train_module.Result) -> dict[str, torch.Tensor]:
    return result.model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time_s"} for row in rows]


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


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_every_step_uses_its_row_of_the_table(make_job, monkeypatch, schedule):
    job = make_job(epochs=3, schedule=schedule)
    with recorded_steps(monkeypatch) as rows:
        result = train(job)
    assert len(rows) == job.num_steps == 3 * 8 == result.summary["num_steps"]
    assert torch.tensor(rows, dtype=torch.float64).equal(result.schedule.table)


def test_history_has_a_row_per_epoch_with_the_last_row_of_the_table(make_job):
    job = make_job(epochs=3)
    result = train(job)
    assert [set(row) for row in result.history] == [ROW] * 3
    assert [(row["epoch"], row["step"]) for row in result.history] == [(1, 8), (2, 16), (3, 24)]
    assert [row["phase"] for row in result.history] == ["cycle", "cycle", "tail"]
    for row in result.history:
        assert [row["lr"], row["momentum"]] == result.schedule.table[row["step"] - 1].tolist()
        assert row["loss_train"] > 0 and 0 <= row["accuracy_test"] <= 1
    times = [row["time_s"] for row in result.history]
    assert times == sorted(times) and times[0] > 0


def test_it_learns(make_job):
    result = train(make_job(epochs=6, seed=2))
    assert result.history[-1]["loss_train"] < result.history[0]["loss_train"]
    assert result.summary["accuracy"] > 0.5 and result.summary["accuracy_raw"] > 0.5


def test_summary_has_all_that_a_reader_is_promised(make_job):
    job = make_job(epochs=3, tta="flip")
    result = train(job)
    summary = result.summary
    assert set(summary) >= set(SUMMARY.split())
    assert (summary["n_train"], summary["n_test"], summary["dataset"]) == (256, 80, "synthetic")
    assert summary["accuracy"] == summary["accuracy_tta"]  # the figure the run stands for
    assert summary["loss_last"] == result.history[-1]["loss_train"]
    assert summary["train_pflop"] == pytest.approx(24 * 32 * job.flop_per_image[32] / 1e15)
    json.dumps(summary, allow_nan=False)


def test_times_of_all_phases_add_up_to_no_more_than_the_process(make_job):
    time_s = train(make_job(epochs=3, tta="flip")).summary["time_s"]
    assert set(time_s) >= {"import", "data", "compile", "train", "swa", "eval", "wall"}
    assert all(time_s[phase] > 0 for phase in ("train", "swa", "eval", "eval_final"))
    assert sum(v for k, v in time_s.items() if k not in ("wall", "eval_final")) <= time_s["wall"]
    assert time_s["eval_final"] < time_s["eval"]


@pytest.mark.parametrize(
    ("tta", "swa_start", "stands_for"),
    [("flip", 2 / 3, "accuracy_tta"), ("none", 2 / 3, "accuracy_swa"), ("none", None, "accuracy_raw"),
     ("flip-shift", None, "accuracy_tta")],
)  # fmt: skip
def test_the_figure_of_a_run(make_job, tta, swa_start, stands_for):
    summary = train(make_job(epochs=1.5, tta=tta, swa_start=swa_start)).summary
    assert summary["accuracy"] == summary[stands_for]
    assert (summary["accuracy_tta"] is None) == (tta == "none")
    assert (summary["accuracy_swa"] is None) == (swa_start is None)


def test_fractions_of_an_epoch_end_inside_it(make_job):
    result = train(make_job(epochs=1.5))
    assert [row["step"] for row in result.history] == [8, 12]
    assert result.history[-1]["accuracy_test"] is not None
    assert len(result.schedule.table) == 12


def test_one_step_is_a_run(make_job):
    result = train(make_job(epochs=0.01))
    assert [row["step"] for row in result.history] == [1]
    assert np.isfinite(result.summary["loss_last"])


def test_a_batch_bigger_than_the_set_is_the_set(make_job):
    job = make_job(epochs=2, batch_size=1000)
    assert (job.batch_size, job.steps_per_epoch, job.num_steps) == (256, 1, 2)
    assert train(job).summary["images_per_s"] > 0


def test_a_batch_that_does_not_divide_the_set(make_job):
    job = make_job(epochs=2, batch_size=100)
    assert (job.steps_per_epoch, job.num_steps) == (2, 4)
    assert [row["step"] for row in train(job).history] == [2, 4]


def test_held_out_images_are_watched_and_the_test_set_is_the_figure(make_job):
    job = make_job(epochs=2, val_split=0.25)
    result = train(job)
    assert job.num_train == result.summary["n_train"] == 256 - 60  # 6 of the 25 or 26 of each class
    assert all(row["accuracy_test"] is None and 0 <= row["accuracy_val"] <= 1 for row in result.history)
    assert result.summary["n_test"] == 80 and result.summary["accuracy"] * 80 == pytest.approx(
        round(result.summary["accuracy"] * 80)
    )


def test_accuracy_is_measured_when_asked_and_at_the_end(make_job):
    history = train(make_job(epochs=5, eval_every=2)).history
    assert [row["accuracy_test"] is not None for row in history] == [False, True, False, True, True]


def test_plateau_drops_the_rate_of_epochs_to_come(make_job, monkeypatch):
    job = make_job(epochs=6, schedule="plateau", val_split=0.1, patience=0, factor=0.5, swa_start=None, lr_peak=0.4)
    monkeypatch.setattr(train_module, "_accuracies", lambda *args, **more: [0.3, 0.3])  # never better
    with recorded_steps(monkeypatch) as rows:
        train(job)
    per_epoch = [lr for lr, _ in rows[:: job.steps_per_epoch]]
    assert per_epoch == pytest.approx([0.4, 0.4, 0.2, 0.1, 0.05, 0.025])


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize(("network", "norm"), [("resnet9", "gn-ws"), ("resnet18", "bn")])
def test_other_networks_and_optimizers_run(make_job, network, norm, optimizer):
    job = make_job(epochs=0.25, network=network, norm=norm, optimizer=optimizer, swa_start=0.0, batch_size=8)
    job = replace(job, steps_per_epoch=8)
    assert np.isfinite(train(job).summary["loss_last"])


def test_low_resolution_first(make_job):
    job = make_job(epochs=2, low_res_px=16, low_res_until=0.5)
    sides = []
    epoch = job.executor.epoch

    def watched(plan, side_px=32):
        sides.append(side_px)
        return epoch(plan, side_px)

    job.executor.epoch = watched
    train(job)
    assert sides == [16, 32, 32]  # the last for the batch-norm refresh
    assert job.flop_per_image[16] < job.flop_per_image[32]


# Averaging


@pytest.mark.parametrize(
    ("knobs", "recorded"),
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
def test_weights_are_recorded_where_the_tail_says_and_averaged(make_job, monkeypatch, knobs, recorded):
    job, at, seen = make_job(**knobs), [], []
    record = RunningMean.record

    def recording(self, model):
        at.append(job.progress.now)
        seen.append({n: p.detach().double().clone() for n, p in model.named_parameters()})
        record(self, model)

    monkeypatch.setattr(RunningMean, "record", recording)
    result = train(job)
    assert at == recorded and result.summary["swa_recorded"] == len(recorded)
    if recorded:
        for name, p in result.model.named_parameters():
            mean = sum(w[name] for w in seen) / len(seen)
            torch.testing.assert_close(p.double(), mean, rtol=1e-5, atol=1e-6)


def test_batch_norm_is_refreshed_on_images_of_an_epoch_to_come(make_job):
    job = make_job(epochs=3)
    plans = []
    epoch = job.executor.epoch

    def watched(plan, side_px=32):
        plans.append(plan)
        return epoch(plan, side_px)

    job.executor.epoch = watched
    result = train(job)
    assert torch.equal(plans[-1].index, draw_plan(job.config, 256, 3).index)
    counts = [m.num_batches_tracked for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [8] * 7 and not result.model.training


def test_raw_and_averaged_weights_differ_and_keep_plain_keys(make_job, tmp_path):
    job = make_job(epochs=3, out=tmp_path)
    result = train(job)
    raw = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["model"]
    assert raw.keys() == weights(result).keys() and not same(raw, weights(result))
    assert not any(key.startswith(("_orig_mod", "module")) for key in raw)
    assert same(load_file(tmp_path / "model.safetensors"), weights(result))


# Reproducibility


def test_equal_seeds_agree_bit_for_bit_and_others_do_not(make_job, deterministic):
    torch.manual_seed(1)
    first = train(make_job(epochs=2, seed=3, cutout_px=8, deterministic=True))
    torch.manual_seed(2)  # global generators play no part
    second = train(make_job(epochs=2, seed=3, cutout_px=8, deterministic=True))
    other = train(make_job(epochs=2, seed=4, cutout_px=8, deterministic=True))
    assert same(weights(first), weights(second))
    assert without_times(first.history) == without_times(second.history)
    assert not same(weights(first), weights(other))
    assert first.history[0]["loss_train"] != other.history[0]["loss_train"]


def test_global_generators_are_left_alone(make_job):
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    train(make_job(epochs=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002


def test_losses_are_those_pinned(make_job, deterministic):
    """Twenty steps, an epoch each. FASTCIFAR_PIN=1 writes them anew: only for a change of numbers that is meant."""
    knobs = {"epochs": 20, "eval_every": 20, "swa_every": 2, "cutout_px": 8, "lr_peak": 0.1, "swa_lr": 0.02}
    job = make_job(data_set=make_dataset(64, 10), batch_size=64, **knobs)
    losses = [row["loss_train"] for row in train(job).history]
    assert len(losses) == 20
    kind, made_on = torch.backends.cpu.get_cpu_capability(), f"{job.machine.name}, torch {torch.__version__}"
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    if os.environ.get("FASTCIFAR_PIN"):
        pinned[kind] = {"made_on": made_on, "losses": losses}
        PINNED.write_text(json.dumps(pinned, indent=1) + "\n")
    if kind not in pinned:
        pytest.skip(f"no losses are pinned for CPUs of kind {kind}")
    if pinned[kind]["made_on"] == made_on:
        assert losses == pinned[kind]["losses"]
    else:  # rounding differs, and from the second step on it decides which of two equal pixels is the largest
        assert losses[0] == pytest.approx(pinned[kind]["losses"][0], rel=1e-4)
        assert losses == pytest.approx(pinned[kind]["losses"], rel=0.1)


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
def test_the_host_reads_nothing_from_the_device_in_a_step(make_job, optimizer):
    counts = []
    for batch_size in (64, 32):  # twice as many steps
        job = make_job(epochs=2, batch_size=batch_size, swa_start=None, optimizer=optimizer)
        with HostReads() as reads:
            train(job)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


# Warm-up


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


@pytest.fixture
def compiled_by(monkeypatch):
    """Makes nn.Module.compile use a given backend instead of the C++ compiler."""

    def use(backend: Any) -> None:
        compile_ = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self, mode, dynamic: compile_(self, backend=backend))

    yield use
    torch._dynamo.reset()


def no_images(*args):
    raise AssertionError("the warm-up asked for real images")


def broken_compiler(graph, inputs):
    raise RuntimeError("no C++ compiler here\na second line")


@pytest.mark.parametrize("backend", ["eager", broken_compiler])
def test_warm_up_changes_nothing_and_draws_no_image(make_job, monkeypatch, compiled_by, backend):
    compiled_by(backend)
    job = make_job(compile="default", low_res_px=16, low_res_until=0.5)
    state = job_module.start(job)
    job.executor.epoch = no_images
    monkeypatch.setattr(train_module, "draw_plan", no_images)
    monkeypatch.setattr(train_module, "test_batches", no_images)
    before, random = state_of(state.model), torch.get_rng_state()
    warmed = warm_up(job, state.model)
    assert same(state.model.state_dict(), before)
    assert list(state.model.state_dict()) == list(before)  # plain keys
    assert all(p.grad is None for p in state.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(s["momentum_buffer"].any() for o in state.optimizers for s in o.state.values())
    assert warmed(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_warm_up_runs_every_shape_of_the_run(make_job, compiled_by):
    compiled_by("eager")
    job = make_job(compile="default", low_res_px=16, low_res_until=0.5)
    state, shapes = job_module.start(job), []
    state.model.register_forward_pre_hook(lambda m, x: shapes.append((m.training, *x[0].shape)))
    warm_up(job, state.model)
    assert sorted(shapes) == [(False, 80, 3, 32, 32), (True, 32, 3, 16, 16), (True, 32, 3, 32, 32)]


def test_nothing_is_warmed_on_a_cpu_without_compiling(make_job):
    job = make_job()
    state = job_module.start(job)
    state.model.register_forward_pre_hook(no_images)
    assert warm_up(job, state.model) is state.model


def test_each_image_size_is_compiled_for_itself(make_job, monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: asked.update(settings))
    job = make_job(compile="default")
    warm_up(job, job_module.start(job).model)
    assert asked == {"mode": "default", "dynamic": False}


@pytest.mark.parametrize("deterministic_run", [False, True])
def test_cudnn_times_its_kernels_in_the_warm_up_unless_deterministic(make_job, monkeypatch, deterministic_run):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic_run)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic_run)
    job = make_job()
    on_card = replace(job, machine=replace(job.machine, device=torch.device("cuda")))
    with pytest.raises((RuntimeError, AssertionError)):  # there is no card to run the shapes on
        warm_up(on_card, nn.Linear(1, 1))
    assert torch.backends.cudnn.benchmark is not deterministic_run


def test_checkpoints_follow_time_unless_told(make_job, monkeypatch, tmp_path):
    saved: list[int] = []
    monkeypatch.setattr(checkpoint, "save", lambda path, config, digest, tree: saved.append(tree["step"]))
    train(make_job(checkpoint_every=None, out=tmp_path))
    assert saved == [24]  # a run of seconds: at its end alone
    monkeypatch.setattr(job_module, "CHECKPOINT_AFTER_S", 0.0)
    train(make_job(checkpoint_every=None, out=tmp_path))
    assert saved[1:] == [8, 16, 24]


def test_a_compiled_run_equals_a_plain_one(make_job, compiled_by):
    plain = train(make_job(epochs=1.5, tta="flip"))
    compiled_by("eager")
    compiled = train(make_job(epochs=1.5, tta="flip", compile="default"))
    assert compiled.summary["compile"] == "default"
    assert same(weights(plain), weights(compiled))


def test_a_failing_compiler_costs_one_line(make_job, compiled_by):
    compiled_by(broken_compiler)
    job = make_job(epochs=1, compile="default")
    result = train(job)
    told = [line for line in job.progress.lines if "compile" in line]
    assert len(told) == 1 and "no C++ compiler here" in told[0] and len(told[0]) < 250
    assert "going on without it" in told[0] and "\n" not in told[0]
    assert result.summary["compile"] == "off"  # the record says what really ran
    assert same(weights(result), weights(train(make_job(epochs=1))))


# Failure


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(make_job, tmp_path):
    job = make_job(epochs=3, out=tmp_path, lr_peak=0.1)
    kept: list[bytes] = []
    rule = own_rule(lambda epoch: 1.0 if epoch == 0 else 1e30)
    step = job.progress.step

    def watch_step(number: int) -> None:
        step(number)
        if number == 9:
            kept.append((tmp_path / "checkpoint.pt").read_bytes())

    job.progress.step = watch_step
    with pytest.raises(Diverged, match=r"in epoch 2 .*lower --lr-peak") as error:
        train(job, rule)
    assert "\n" not in str(error.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept[0]
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert state["step"] == 8 and all(w.isfinite().all() for w in state["model"].values())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "model.safetensors").exists()


def test_an_interrupted_run_does_not_save_ruined_weights(make_job, tmp_path):
    job = make_job(epochs=3, out=tmp_path, lr_peak=0.1)
    job.stop = partial(signal_after, job, 12)
    with pytest.raises(Diverged, match="not finite"):
        train(job, own_rule(lambda epoch: 1.0 if epoch == 0 else 1e30))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert state["step"] == 8 and all(w.isfinite().all() for w in state["model"].values())


def test_accuracy_at_chance_after_many_steps_ends_the_run(make_job):
    same_image = replace(make_dataset(256, 80), x_train=np.full((256, 32, 32, 3), 90, np.uint8),
                         x_test=np.full((80, 32, 32, 3), 90, np.uint8))  # fmt: skip
    with pytest.raises(Diverged, match=r"accuracy is 10\.0% after the first epoch, which is chance for 10 classes"):
        train(make_job(data_set=same_image, epochs=3, batch_size=5))
    assert train(make_job(data_set=same_image, epochs=3)).summary["accuracy"] == 0.1  # 8 steps: too early to tell


def test_overflow_in_fp16_skips_steps_and_the_table_goes_on(make_job, monkeypatch):
    for module in (job_module, state_module):
        monkeypatch.setattr(module, "SCALER_START", 2.0**34)
    job = make_job(epochs=3)
    job = replace(job, machine=replace(job.machine, precision="fp16"))
    result = train(job)
    assert 0 < result.summary["steps_skipped_fp16"] < 24
    assert result.history[-1]["step"] == 24
    assert all(w.isfinite().all() for w in weights(result).values())
    assert result.history[-1]["lr"] == result.schedule.table[-1, 0]


# Interrupted and resumed


def signal_after(job: Any, step: int) -> int | None:
    return 15 if job.progress.now >= step else None


def resumed(make: Callable[..., Job], folder: Path, knobs: dict[str, Any], cuts: list[int]) -> train_module.Result:
    """A run that is cut after each of `cuts` steps and continued by a new Job each time."""
    for i, cut in enumerate([*cuts, None]):
        job = make(out=folder, **knobs, **({"resume": str(folder)} if i else {}))
        if cut is None:
            return train(job)
        job.stop = partial(signal_after, job, cut)
        with pytest.raises(Interrupted) as end:
            train(job)
        assert end.value.number == 15
        content = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert content["state"]["step"] == cut
    raise AssertionError


@pytest.mark.parametrize(
    ("knobs", "cuts"),
    [
        ({"epochs": 3, "swa_every": 2}, [3]),  # in the first epoch
        ({"epochs": 3, "swa_every": 2}, [8]),  # between epochs
        ({"epochs": 3, "swa_every": 2}, [19]),  # in the tail, between two records
        ({"epochs": 3, "swa_every": 2}, [24]),  # after the last step
        ({"epochs": 3, "checkpoint_every": 0}, [2, 11, 17, 23]),
        ({"epochs": 2.5, "cutout_px": 8, "mirror": "random"}, [18]),  # in the last, partial epoch
        ({"epochs": 3, "optimizer": "muon"}, [11]),
        ({"epochs": 4, "schedule": "plateau", "val_split": 0.1, "patience": 0, "factor": 0.5, "batch_size": 29}, [13]),
        ({"epochs": 2, "low_res_px": 16, "low_res_until": 0.5, "norm": "gn-ws"}, [5]),
        ({"epochs": 2, "precision": "bf16"}, [10]),
    ],
)
def test_a_resumed_run_is_bit_identical(make_job, tmp_path, deterministic, knobs, cuts):
    knobs = {"tta": "flip"} | knobs
    whole = train(make_job(out=tmp_path / "whole", **knobs))
    parts = resumed(make_job, tmp_path / "parts", knobs, cuts)
    assert same(weights(parts), weights(whole))
    assert without_times(parts.history) == without_times(whole.history)
    for key in ("accuracy", "accuracy_raw", "accuracy_swa", "accuracy_tta", "swa_recorded", "loss_last", "num_steps"):
        assert parts.summary[key] == whole.summary[key], key
    ends = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["state"] for name in ("whole", "parts")]
    assert same(ends[0]["model"], ends[1]["model"]) and ends[0]["step"] == ends[1]["step"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert without_times([json.loads(x) for x in lines[0]]) == without_times([json.loads(x) for x in lines[1]])


def test_a_finished_run_goes_on_where_it_is_extended(make_job, tmp_path):
    train(make_job(out=tmp_path, epochs=3))
    longer = train(make_job(out=tmp_path, epochs=3, resume=str(tmp_path), extend_epochs=4))
    assert [row["step"] for row in longer.history] == [8, 16, 24, 32]
    assert longer.history[-1]["lr"] == 0.2 and longer.history[-1]["phase"] == "tail"
    assert (longer.summary["swa_recorded"], longer.summary["epochs"], longer.summary["num_steps"]) == (2, 4, 32)


def test_an_extended_run_can_be_interrupted_and_resumed(make_job, tmp_path):
    train(make_job(out=tmp_path, epochs=3))
    knobs = {"out": tmp_path, "epochs": 3, "resume": str(tmp_path), "extend_epochs": 4}
    job = make_job(**knobs)
    job.stop = partial(signal_after, job, 28)
    with pytest.raises(Interrupted):
        train(job)
    assert train(make_job(**knobs)).history[-1]["step"] == 32


def test_other_images_are_not_resumed(make_job, tmp_path):
    train(make_job(out=tmp_path, epochs=1))
    with pytest.raises(ValueError, match="not those it was trained on"):
        train(make_job(data_set=make_dataset(seed=9), out=tmp_path, epochs=1, resume=str(tmp_path)))


def test_other_settings_are_not_resumed(make_job, tmp_path):
    train(make_job(out=tmp_path, epochs=1))
    with pytest.raises(ValueError, match=r"lr_peak: 0\.5 -> 0\.25"):
        train(make_job(out=tmp_path, epochs=1, lr_peak=0.25, resume=str(tmp_path)))


def test_classes_of_the_shared_set_are_ten():
    assert len(CLASSES) == 10 == len(make_dataset().classes)
