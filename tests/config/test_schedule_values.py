"""Schedules as values: each has a name and an interval, makes torch's scheduler, and refuses values by their flag."""

import inspect
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedulers

from fastcifar.config.schedule import Schedule, Span, epoch_of
from fastcifar.config.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Cyclic,
    Linear,
    MultiStep,
    OneCycle,
    PerEpoch,
    PerStep,
    Plateau,
    Step,
    WarmRestarts,
)

TORCH: dict[type[Schedule], type] = {
    OneCycle: torch_schedulers.OneCycleLR, MultiStep: torch_schedulers.MultiStepLR, Step: torch_schedulers.StepLR,
    Cosine: torch_schedulers.CosineAnnealingLR, WarmRestarts: torch_schedulers.CosineAnnealingWarmRestarts,
    Cyclic: torch_schedulers.CyclicLR, Plateau: torch_schedulers.ReduceLROnPlateau,
    Constant: torch_schedulers.ConstantLR, Linear: torch_schedulers.LinearLR, PerStep: torch_schedulers.LambdaLR,
    PerEpoch: torch_schedulers.LambdaLR,
}  # fmt: skip
CYCLES = (OneCycle, Cyclic)
OF_YOUR_OWN = (PerStep, PerEpoch)


def all_kinds(of: type[Schedule] = Schedule) -> list[type[Schedule]]:
    """Every schedule that can be made, which no abstract one can, in the order of the files."""
    kinds = {kind for sub in of.__subclasses__() for kind in (sub, *all_kinds(sub))}
    ours = (k for k in kinds if not inspect.isabstract(k) and k.__module__.startswith(Schedule.__module__))
    return sorted(ours, key=lambda k: (k.__module__, inspect.getsourcelines(k)[1]))


def make(kind: type[Schedule], **settings: Any) -> Schedule:
    own = {"factor": lambda i: 0.5**i} if issubclass(kind, OF_YOUR_OWN) else {}
    return kind(**{"peak": 0.4, **own, **settings})


def torch_scheduler(schedule: Schedule, span: Span) -> Any:
    return schedule.torch_scheduler(SGD([torch.zeros(1, requires_grad=True)], lr=schedule.peak, momentum=0.9), span)


# Names and intervals


def test_every_schedule_has_a_name_of_its_own():
    names = [kind.name for kind in all_kinds()]
    assert len(set(names)) == len(names)
    assert {name: kind.name for name, kind in SCHEDULES.items()} == {name: name for name in SCHEDULES}


def test_the_command_line_knows_all_but_those_of_your_own():
    assert [*SCHEDULES.values()] == [kind for kind in all_kinds() if kind not in OF_YOUR_OWN]


@pytest.mark.parametrize("kind", TORCH)
def test_it_makes_the_scheduler_of_torch(kind):
    schedule = make(kind)
    assert type(torch_scheduler(schedule, Span(10, 5.0))) is TORCH[kind]
    with pytest.raises(FrozenInstanceError):
        schedule.interval = "step"  # type: ignore[misc]


def test_equal_values_are_equal_schedules():
    assert OneCycle(peak=0.1) == OneCycle(peak=0.1, rise=0.3) != OneCycle(peak=0.1, rise=0.2)
    assert Constant(peak=0.1) != Cosine(peak=0.1)  # type: ignore[comparison-overlap]


# Of your own


@pytest.mark.parametrize("kind", OF_YOUR_OWN)
def test_a_schedule_of_your_own_equals_lambda_lr(kind):
    schedule = kind(peak=0.4, factor=lambda i: 1 / (1 + i))
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    ours = torch_scheduler(schedule, Span(8, 8.0))
    reference = torch_schedulers.LambdaLR(optimizer, lambda i: 1 / (1 + i))
    for i in range(8):
        assert ours.get_last_lr() == reference.get_last_lr() == [pytest.approx(0.4 / (1 + i), rel=1e-12)]
        for scheduler in (ours, reference):
            scheduler.optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("kind", OF_YOUR_OWN)
def test_a_schedule_of_your_own_needs_a_factor(kind):
    with pytest.raises(TypeError, match="factor"):
        kind(peak=0.1)


# Points of a run


@pytest.mark.parametrize(
    ("when", "run_epochs", "epochs"),
    [
        (0.5, 30, 15),
        (0.3, 10, 3),
        (0.29, 100, 29),  # the product is 28.999999999999996
        (1 / 3, 10, 3),
        (0.999, 10, 9),
        (4, 10, 4),
        (4.9, 10, 4),
        (40, 10, 40),  # a point after the end of the run
        (0.01, 30, 1),  # never before the first epoch has ended
        (1e-9, 0.5, 1),
        (1, 30, 1),
    ],
)
def test_a_point_of_the_run_in_whole_epochs(when, run_epochs, epochs):
    whole = Span(count=1, run_epochs=run_epochs).whole_epochs(when)
    assert whole == epochs and type(whole) is int


def test_a_point_below_1_is_a_fraction_and_from_1_up_an_epoch():
    assert [epoch_of(when, 40) for when in (0.0, 0.25, 0.975, 1.0, 2.5, 50)] == [0, 10, 39, 1, 2.5, 50]


def test_points_count_in_the_whole_run_and_not_in_the_part_before_the_tail():
    scheduler = torch_scheduler(MultiStep(peak=0.1, milestones=(0.5, 0.8)), Span(20, 30.0, tail_lr=0.01))
    assert [*scheduler.milestones] == [15, 24]


def test_onecycle_ends_at_the_rate_of_the_tail_unless_told_otherwise():
    def last(schedule: OneCycle, tail_lr: float | None) -> float:
        return torch_scheduler(schedule, Span(10, 1.0, tail_lr)).optimizer.param_groups[0]["min_lr"]

    assert last(OneCycle(peak=1.0), None) == pytest.approx(1 / 25 / 1e4)
    assert last(OneCycle(peak=1.0), 0.02) == pytest.approx(0.02)
    assert last(OneCycle(peak=1.0, final_div_factor=100.0), 0.02) == pytest.approx(1 / 25 / 100)
    assert last(OneCycle(peak=1.0), 0.0) == pytest.approx(1 / 25 / 1e4)


# Wrong values

WRONG: list[tuple[type[Schedule], dict[str, Any], str]] = [
    *((kind, {"peak": peak}, "lr_peak") for kind in TORCH for peak in (-0.1, float("nan"), float("inf"), "1")),
    (OneCycle, {"rise": 1.0}, "pct_start"),
    (OneCycle, {"rise": -0.1}, "pct_start"),
    (OneCycle, {"anneal": "cosine"}, "anneal_strategy"),
    (OneCycle, {"div_factor": 0}, "div_factor"),
    (OneCycle, {"final_div_factor": 0}, "final_div_factor"),
    *((kind, {"momentum_max": 1.0}, "momentum_max") for kind in CYCLES),
    *((kind, {"momentum_min": -0.5}, "momentum_min") for kind in CYCLES),
    *((kind, {"momentum_min": 0.9, "momentum_max": 0.8}, "momentum_min") for kind in CYCLES),
    *((kind, {"cycle_momentum": 1}, "cycle_momentum") for kind in CYCLES),
    (MultiStep, {"milestones": (0.8, 0.5)}, "milestones"),
    (MultiStep, {"milestones": (0.0, 0.5)}, "milestones"),
    (MultiStep, {"milestones": (0.5, float("nan"))}, "milestones"),
    (MultiStep, {"milestones": 0.5}, "milestones"),
    *((kind, {"gamma": gamma}, "gamma") for kind in (MultiStep, Step) for gamma in (0, 1.5)),
    (Step, {"step_size": 0}, "step_size"),
    (Cosine, {"eta_min": -1e-9}, "eta_min"),
    (WarmRestarts, {"eta_min": -1e-9}, "eta_min"),
    (WarmRestarts, {"t_0": 0}, "t_0"),
    (WarmRestarts, {"t_mult": 0}, "t_mult"),
    (WarmRestarts, {"t_mult": 1.5}, "t_mult"),
    (Cyclic, {"base_lr": -0.1}, "base_lr"),
    (Cyclic, {"cycles": 0}, "cycles"),
    (Cyclic, {"mode": "triangle"}, "cyclic_mode"),
    (Cyclic, {"gamma": 1.1}, "cyclic_gamma"),
    (Plateau, {"factor": 0.0}, "factor"),
    (Plateau, {"factor": 1.0}, "factor"),
    (Plateau, {"patience": -1}, "patience"),
    (Plateau, {"patience": True}, "patience"),
    (Linear, {"end_factor": -0.1}, "end_factor"),
]


@pytest.mark.parametrize("kind", TORCH)
def test_a_wrong_value_is_refused_by_the_name_of_its_flag(kind):
    for settings, flag in [(settings, flag) for of, settings, flag in WRONG if of is kind]:
        with pytest.raises(ValueError, match=rf"\b{flag}\b") as error:
            make(kind, **settings)
            pytest.fail(f"{settings} are taken")
        assert "\n" not in str(error.value)
