"""Every row of every schedule is what torch's scheduler gives in the loop that PyTorch's documentation shows."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_config
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedulers

from fastcifar.config import Config
from fastcifar.schedules import Schedule, count_steps, extend, make_schedule, own_rule

LARGEST_DIFFERENCE = 1e-12
# (epochs, steps per epoch): the usual; one epoch, one step; epochs not divisible by 3; fractions of an epoch
SIZES = [(30, 7), (1, 5), (1, 1), (2, 1), (10, 3), (7, 4), (2.5, 4), (0.5, 6), (3.3, 10), (100, 2)]


def throwaway(config: Config) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr_peak, momentum=config.momentum)


def documented_loop(optimizer: SGD, scheduler: Any, per: str, steps_per_epoch: int, num_steps: int) -> torch.Tensor:
    """Learning rate and momentum that each optimizer step used, with the scheduler stepped after it."""
    rows = []
    group = optimizer.param_groups[0]
    for step in range(num_steps):
        group["params"][0].grad = torch.zeros(1)
        rows.append((float(group["lr"]), float(group["momentum"])))
        optimizer.step()
        if per == "step" or (step + 1) % steps_per_epoch == 0:
            scheduler.step()
    return torch.tensor(rows, dtype=torch.float64)


def whole(epochs: float) -> int:
    """A milestone in whole epochs, as torch counts them; never before the first epoch has ended."""
    return max(1, math.floor(epochs + 1e-9))


# name: settings, how often torch's scheduler is stepped, and that scheduler; n steps, e epochs
TORCH: dict[str, tuple[dict[str, Any], str, Callable[[SGD, int, float], Any]]] = {
    "multistep": (
        {"schedule": "multistep", "lr_peak": 0.1, "milestones": (0.3, 0.6, 0.9), "gamma": 0.2},
        "epoch",
        lambda o, n, e: torch_schedulers.MultiStepLR(o, [whole(0.3 * e), whole(0.6 * e), whole(0.9 * e)], gamma=0.2),
    ),
    "step": (
        {"schedule": "step", "lr_peak": 0.05, "step_size": 0.3, "gamma": 0.5},
        "epoch",
        lambda o, n, e: torch_schedulers.StepLR(o, whole(0.3 * e), gamma=0.5),
    ),
    "cosine": (
        {"schedule": "cosine", "lr_peak": 0.1, "eta_min": 1e-4},
        "epoch",
        lambda o, n, e: torch_schedulers.CosineAnnealingLR(o, T_max=math.ceil(e), eta_min=1e-4),
    ),
    "restarts": (
        {"schedule": "restarts", "lr_peak": 0.1, "t_0": 0.2, "t_mult": 2, "eta_min": 1e-3},
        "epoch",
        lambda o, n, e: torch_schedulers.CosineAnnealingWarmRestarts(o, T_0=whole(0.2 * e), T_mult=2, eta_min=1e-3),
    ),
    **{
        f"cyclic {mode}": (
            {"schedule": "cyclic", "lr_peak": 0.1, "base_lr": 0.01, "cycles": 3, "cyclic_mode": mode,
             "cyclic_gamma": 0.99},
            "step",
            lambda o, n, e, mode=mode: torch_schedulers.CyclicLR(  # type: ignore[misc]
                o, 0.01, 0.1, step_size_up=max(1, n // 6), mode=mode, gamma=0.99, base_momentum=0.85, max_momentum=0.95
            ),
        )
        for mode in ("triangular", "triangular2", "exp_range")
    },
    **{
        f"onecycle {shape}": (
            {"schedule": "onecycle", "lr_peak": 1.5, "pct_start": 0.3, "anneal_strategy": shape},
            "step",
            lambda o, n, e, shape=shape: torch_schedulers.OneCycleLR(  # type: ignore[misc]
                o, 1.5, total_steps=n, pct_start=0.3, anneal_strategy=shape
            ),
        )
        for shape in ("cos", "linear")
    },
    "constant": (
        {"schedule": "constant", "lr_peak": 0.05},
        "epoch",
        lambda o, n, e: torch_schedulers.ConstantLR(o, factor=1.0),
    ),
    "linear": (
        {"schedule": "linear", "lr_peak": 0.1, "end_factor": 0.05},
        "step",
        lambda o, n, e: torch_schedulers.LinearLR(o, 1.0, 0.05, total_iters=n),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), SIZES)
@pytest.mark.parametrize("name", TORCH)
def test_rows_equal_torch(name, epochs, steps_per_epoch):
    knobs, per, build = TORCH[name]
    config = make_config(epochs=epochs, swa_start=None, **knobs)
    num_steps = round(epochs * steps_per_epoch)
    optimizer = throwaway(config)
    expected = documented_loop(optimizer, build(optimizer, num_steps, epochs), per, steps_per_epoch, num_steps)
    schedule = make_schedule(config, steps_per_epoch)
    assert schedule.table.shape == (num_steps, 2) and schedule.table.dtype == torch.float64
    assert schedule.tail_step == num_steps
    assert (schedule.table - expected).abs().max() < LARGEST_DIFFERENCE


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), SIZES)
@pytest.mark.parametrize("per", ["step", "epoch"])
def test_own_rule_is_lambda_lr(per, epochs, steps_per_epoch):
    config = make_config(epochs=epochs, swa_start=None, lr_peak=0.3, momentum=0.8)
    optimizer = throwaway(config)
    scheduler = torch_schedulers.LambdaLR(optimizer, lambda i: 0.95**i)
    num_steps = round(epochs * steps_per_epoch)
    expected = documented_loop(optimizer, scheduler, per, steps_per_epoch, num_steps)
    table = make_schedule(config, steps_per_epoch, own_rule(lambda i: 0.95**i, per)).table
    assert (table - expected).abs().max() < LARGEST_DIFFERENCE


def test_own_rule_overrides_the_schedule_of_the_config():
    schedule = make_schedule(make_config(epochs=4, swa_start=None, **PLATEAU), 2, own_rule(lambda epoch: 0.5**epoch))
    for epoch in range(4):
        schedule.end_epoch(2 * (epoch + 1), 0.1)
    assert schedule.table[:, 0].tolist() == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97])
def test_onecycle_without_a_rise(count):
    config = make_config(epochs=1, swa_start=None, pct_start=0.0)
    optimizer = throwaway(config)
    scheduler = torch_schedulers.OneCycleLR(optimizer, 1.0, total_steps=count, pct_start=0.0)
    expected = documented_loop(optimizer, scheduler, "step", count, count)
    assert (make_schedule(config, count).table - expected).abs().max() < LARGEST_DIFFERENCE


@pytest.mark.parametrize("count", range(2, 200))
def test_onecycle_whose_rise_is_one_step(count):
    """Where pct_start * steps rounds to 1 torch divides by zero; then a rise longer by next to nothing is meant."""
    config = make_config(epochs=1, swa_start=None, pct_start=1 / count)
    optimizer, pct_start = throwaway(config), config.pct_start
    if pct_start * count == 1:
        pct_start *= 1 + 1e-13
    scheduler = torch_schedulers.OneCycleLR(optimizer, 1.0, total_steps=count, pct_start=pct_start)
    expected = documented_loop(optimizer, scheduler, "step", count, count)
    assert (make_schedule(config, count).table - expected).abs().max() < LARGEST_DIFFERENCE


def test_onecycle_ends_where_it_should_and_not_past_it():
    table = make_schedule(make_config(epochs=10, swa_start=None, lr_peak=1.0), 9).table
    lr, momentum = table.T
    assert lr[0] == pytest.approx(1 / 25) and lr.max() == pytest.approx(1.0)
    assert lr[-1] == lr.min() == pytest.approx(1 / 25 / 1e4)
    assert momentum[0] == pytest.approx(0.95) and momentum[-1] == pytest.approx(0.95)
    assert momentum[lr.argmax()] == momentum.min() == pytest.approx(0.85)


# Momentum is what the table says


@pytest.mark.parametrize("schedule", ["multistep", "step", "cosine", "restarts", "constant", "linear"])
def test_momentum_is_the_configured_one_where_it_does_not_cycle(schedule):
    table = make_schedule(make_config(schedule=schedule, epochs=6, momentum=0.7, swa_start=None), 5).table
    assert (table[:, 1] == 0.7).all()


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("schedule", ["onecycle", "cyclic"])
def test_constructors_do_not_overwrite_a_momentum_that_does_not_cycle(schedule, momentum):
    config = make_config(schedule=schedule, epochs=6, momentum=momentum, cycle_momentum=False)
    assert (make_schedule(config, 5).table[:, 1] == momentum).all()


# The joint with the averaging tail


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(30, 97), (3, 5), (7, 4), (4.5, 10)])
def test_cycle_ends_at_swa_lr_without_a_jump(epochs, steps_per_epoch, strategy):
    config = make_config(epochs=epochs, swa_lr=0.2, lr_peak=1.0, anneal_strategy=strategy)
    schedule = make_schedule(config, steps_per_epoch)
    assert schedule.tail_step == round(2 / 3 * epochs * steps_per_epoch)
    lr, momentum = schedule.table.T
    assert lr[schedule.tail_step - 1] == pytest.approx(0.2, abs=LARGEST_DIFFERENCE)
    assert (lr[schedule.tail_step :] == 0.2).all()
    assert (momentum[schedule.tail_step :] == momentum[schedule.tail_step - 1]).all()


def test_a_given_final_div_factor_holds_with_a_tail():
    schedule = make_schedule(make_config(epochs=6, final_div_factor=100.0), 5)
    assert schedule.table[schedule.tail_step - 1, 0] == pytest.approx(1 / 25 / 100)


def test_rows_before_the_tail_are_those_of_a_shorter_run():
    with_tail = make_schedule(make_config(epochs=30, final_div_factor=1e4), 7)
    alone = make_schedule(make_config(epochs=20, final_div_factor=1e4, swa_start=None), 7)
    assert torch.equal(with_tail.table[: with_tail.tail_step], alone.table)


def test_twenty_epochs_of_onecycle_then_ten_at_a_constant_rate():
    config = make_config(epochs=30, lr_peak=0.1, swa_start=20, swa_lr=0.01, final_div_factor=1e4)
    schedule = make_schedule(config, 10)
    optimizer = throwaway(config)
    cycle = torch_schedulers.OneCycleLR(optimizer, 0.1, total_steps=200)
    expected = documented_loop(optimizer, cycle, "step", 10, 200)
    assert schedule.tail_step == 200
    assert (schedule.table[:200] - expected).abs().max() < LARGEST_DIFFERENCE
    assert (schedule.table[200:, 0] == 0.01).all() and (schedule.table[200:, 1] == expected[-1, 1]).all()


def test_anneal_moves_linearly_over_epochs_not_over_calls():
    config = make_config(epochs=10, schedule="constant", lr_peak=1.0, swa_start=5, swa_lr=0.2, swa_anneal=2)
    lr = make_schedule(config, 4).table[:, 0]
    assert (lr[:20] == 1.0).all()
    assert lr[20:28].tolist() == pytest.approx([1.0 - 0.1 * k for k in range(1, 9)])
    assert (lr[28:] == 0.2).all()


def test_an_anneal_longer_than_the_tail_stops_on_its_way():
    config = make_config(epochs=4, schedule="constant", lr_peak=1.0, swa_start=3, swa_lr=0.0, swa_anneal=2)
    assert make_schedule(config, 2).table[-2:, 0].tolist() == pytest.approx([0.75, 0.5])


def test_tail_momentum_can_be_set():
    schedule = make_schedule(make_config(epochs=6, swa_momentum=0.5), 5)
    assert (schedule.table[schedule.tail_step :, 1] == 0.5).all()
    assert (schedule.table[: schedule.tail_step, 1] >= 0.85).all()


@pytest.mark.parametrize("name", TORCH)
def test_any_schedule_takes_a_tail(name):
    knobs, _, _ = TORCH[name]
    with_tail = make_schedule(make_config(epochs=9, swa_start=6, swa_lr=0.03, **knobs), 4)
    assert with_tail.tail_step == 24
    assert (with_tail.table[24:, 0] == 0.03).all()
    assert (with_tail.table[24:, 1] == with_tail.table[23, 1]).all()


def test_a_run_that_is_all_tail():
    schedule = make_schedule(make_config(epochs=2, swa_start=0.0, swa_lr=0.03, momentum=0.7), 4)
    assert schedule.tail_step == 0
    assert (schedule.table == torch.tensor([0.03, 0.7], dtype=torch.float64)).all()


def test_anneal_below_one_is_a_fraction_of_the_run():
    knobs = {"epochs": 20, "schedule": "constant", "lr_peak": 1.0, "swa_start": 0.75, "swa_lr": 0.0}
    fraction, epochs = (make_schedule(make_config(swa_anneal=a, **knobs), 5).table for a in (0.15, 3))
    assert torch.equal(fraction, epochs) and fraction[-1, 0] == 0 and (fraction[:, 0] > 0).sum() == 75 + 14


@given(
    name=st.sampled_from(sorted(TORCH)),
    epochs=st.floats(0.01, 40),
    steps_per_epoch=st.integers(1, 30),
    swa_start=st.none() | st.floats(0, 0.999),
    swa_anneal=st.floats(0, 5),
    lr_peak=st.floats(0, 10),
    pct_start=st.floats(0, 0.999),
)
def test_no_row_is_negative_infinite_or_above_the_peak(
    name, epochs, steps_per_epoch, swa_start, swa_anneal, lr_peak, pct_start
):
    knobs = TORCH[name][0] | {"lr_peak": lr_peak, "pct_start": pct_start}
    config = make_config(epochs=epochs, swa_start=swa_start, swa_anneal=swa_anneal, **knobs)
    schedule = make_schedule(config, steps_per_epoch)
    assert len(schedule.table) == count_steps(epochs, steps_per_epoch) >= 1
    assert 0 <= schedule.tail_step <= len(schedule.table)
    lr, momentum = schedule.table.T
    highest = max(lr_peak, config.swa_lr, config.base_lr if config.schedule == "cyclic" else 0, config.eta_min)
    assert lr.isfinite().all() and (lr >= 0).all() and (lr <= highest * (1 + 1e-9)).all()
    assert ((momentum >= 0.85 - 1e-9) & (momentum <= 0.95 + 1e-9)).all()


# Plateau, the one schedule that needs a metric

METRICS = [0.3, 0.4, 0.4, 0.39, 0.4, 0.41, 0.3, 0.3, 0.41, 0.41, 0.41, 0.5]
PLATEAU: dict[str, Any] = {"schedule": "plateau", "val_split": 0.1, "lr_peak": 0.1, "factor": 0.5, "patience": 1}


def torch_plateau_rows(steps_per_epoch: int) -> torch.Tensor:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = torch_schedulers.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1)
    rows = []
    for metric in METRICS:
        rows += [optimizer.param_groups[0]["lr"]] * steps_per_epoch
        scheduler.step(metric)
    return torch.tensor(rows, dtype=torch.float64)


def go_on(schedule: Schedule, steps_per_epoch: int, first_epoch: int, last_epoch: int) -> None:
    for epoch in range(first_epoch, last_epoch):
        schedule.end_epoch((epoch + 1) * steps_per_epoch, METRICS[epoch])


def test_plateau_equals_torch_on_the_same_metrics():
    schedule = make_schedule(make_config(epochs=len(METRICS), swa_start=None, **PLATEAU), 3)
    assert (schedule.table[:, 0] == 0.1).all()  # all that is known beforehand
    go_on(schedule, 3, 0, len(METRICS))
    assert (schedule.table[:, 0] - torch_plateau_rows(3)).abs().max() < LARGEST_DIFFERENCE
    assert schedule.table[-1, 0] < 0.1 / 3 and (schedule.table[:, 1] == 0.9).all()


@pytest.mark.parametrize("cut", range(len(METRICS)))
def test_plateau_goes_on_from_a_checkpoint(cut):
    config = make_config(epochs=len(METRICS), swa_start=None, **PLATEAU)
    first, file = make_schedule(config, 3), io.BytesIO()
    go_on(first, 3, 0, cut)
    torch.save(first.state(), file)
    file.seek(0)
    second = make_schedule(config, 3)
    second.load(torch.load(file, weights_only=True))
    go_on(second, 3, cut, len(METRICS))
    assert (second.table[:, 0] - torch_plateau_rows(3)).abs().max() < LARGEST_DIFFERENCE


def test_plateau_leaves_the_tail_at_swa_lr():
    schedule = make_schedule(make_config(epochs=len(METRICS), swa_start=9, swa_lr=0.02, **PLATEAU), 3)
    go_on(schedule, 3, 0, len(METRICS))
    assert (schedule.table[:27, 0] - torch_plateau_rows(3)[:27]).abs().max() < LARGEST_DIFFERENCE
    assert (schedule.table[27:, 0] == 0.02).all()


def test_an_anneal_after_plateau_starts_where_plateau_ended():
    schedule = make_schedule(make_config(epochs=len(METRICS), swa_start=9, swa_lr=0.0, swa_anneal=1, **PLATEAU), 4)
    go_on(schedule, 4, 0, len(METRICS))
    last = schedule.table[35, 0].item()
    assert last < 0.1
    assert schedule.table[36:40, 0].tolist() == pytest.approx([0.75 * last, 0.5 * last, 0.25 * last, 0.0])


# Epochs and steps


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "steps"),
    [(30, 97, 2910), (30, 98, 2940), (1, 1, 1), (0.5, 97, 48), (0.001, 5, 1), (2.5, 4, 10), (1 / 3, 3, 1)],
)
def test_one_converter_from_epochs_to_steps(epochs, steps_per_epoch, steps):
    assert count_steps(epochs, steps_per_epoch) == steps
    assert len(make_schedule(make_config(epochs=epochs), steps_per_epoch).table) == steps


# A longer run


def test_extending_keeps_all_rows_and_repeats_the_last():
    config = make_config(epochs=6, resume="run", extend_epochs=8)
    short = make_schedule(config, 5)
    rows = short.table.clone()
    long = extend(short, config, 5)
    assert len(long.table) == 40 and long.tail_step == 20
    assert torch.equal(long.table[:30], rows)
    assert (long.table[30:] == rows[-1]).all()


def test_without_extend_epochs_nothing_changes():
    schedule = make_schedule(make_config(epochs=6), 5)
    assert extend(schedule, make_config(epochs=6), 5) is schedule and len(schedule.table) == 30


def test_a_run_without_a_tail_is_not_extended():
    config = make_config(epochs=6, swa_start=None, resume="run", extend_epochs=8)
    with pytest.raises(ValueError, match="no averaging tail"):
        extend(make_schedule(config, 5), config, 5)


def test_extending_to_less_is_refused():
    config = make_config(epochs=6, resume="run", extend_epochs=4)
    with pytest.raises(ValueError, match="extend_epochs 4 is shorter"):
        extend(make_schedule(config, 5), config, 5)


def test_an_extended_run_goes_on_from_a_checkpoint():
    config = make_config(epochs=6, resume="run", extend_epochs=8)
    saved = extend(make_schedule(config, 5), config, 5)
    again = make_schedule(config, 5)
    again.load(saved.state())
    assert torch.equal(extend(again, config, 5).table, saved.table)
