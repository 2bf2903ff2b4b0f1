"""Every value of a Config makes sense, or ValueError says in one line which does not."""

from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from conftest import PLAIN

from fastcifar.config.config import Config, Optimizer, Run, Tail
from fastcifar.config.recipes import RECIPES
from fastcifar.config.schedule import epoch_of
from fastcifar.config.schedules import SCHEDULES, PerStep
from fastcifar.config.settings import (
    NAMES,
    SETTINGS,
    IneffectiveSetting,
    method_differences,
    settings_by_flag,
    with_all_settings,
    with_settings,
)

# A new setting is a decision: whoever adds one adds it here, and says in the change what it is worth.
FLAGS = """
    recipe epochs data cache_dir subset test_split val_split smoke scale shape network norm activation init freeze start
    train_stem cool_first_stage device precision compile cuda_graph fused_kernels augment deterministic batch_size
    crop_pad_px mirror order cutout_px low_res_px low_res_until
    optimizer lr_peak momentum weight_decay bias_lr_scale head_lr_scale label_smoothing
    schedule pct_start pct_hold momentum_min momentum_max cycle_momentum anneal_strategy div_factor final_div_factor
    milestones gamma step_size eta_min t_0 t_mult base_lr cyclic_mode cyclic_gamma cycles factor patience end_factor
    swa_start swa_lr swa_anneal swa_momentum swa_every swag_rank tta tta_share
    seed runs parallel keep_all target stop_at out config resume extend_epochs eval_every checkpoint_every log profile
    plot_schedule dry_run json debug
"""


def test_the_list_of_flags_is_frozen():
    assert set(NAMES) == set(FLAGS.split())


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        PLAIN.epochs = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        PLAIN.schedule.peak = 3  # type: ignore[misc]


def test_positional_values_are_refused():
    with pytest.raises(TypeError):
        Tail(0.5)  # type: ignore[call-arg, misc]


def hint_of(name: str) -> Any:
    return get_type_hints(SETTINGS[name].owners[0])[SETTINGS[name].field.name]


def of_kind(kind: Any) -> list[str]:
    return [name for name in SETTINGS if kind in (hint_of(name), *get_args(hint_of(name)))]


def may_be_none(name: str) -> bool:
    return type(None) in get_args(hint_of(name)) or name == "swa_start"


INTEGERS, FLOATS, BOOLEANS, TEXTS = of_kind(int), of_kind(float), of_kind(bool), of_kind(str)
CHOICES = ["schedule", *(name for name in SETTINGS if get_origin(hint_of(name)) is Literal)]
LISTS = ["milestones", "low_res_px", "low_res_until", "cool_first_stage"]
INTEGERS, FLOATS = ([name for name in names if name not in LISTS] for names in (INTEGERS, FLOATS))
NUMBERS = INTEGERS + FLOATS


def test_every_setting_is_of_a_kind_tested_here():
    assert set(NUMBERS + BOOLEANS + CHOICES + TEXTS + LISTS + ["shape"]) == set(NAMES)


BAD = [
    *((name, -1) for name in NUMBERS),
    *((name, value) for name in FLOATS for value in (float("nan"), float("inf"), -float("inf"), -0.1)),
    *((name, value) for name in NUMBERS for value in ("3", "", True, [1], (1,), 1j)),
    *((name, 2.5) for name in INTEGERS),
    *((name, value) for name in BOOLEANS for value in (1, 0, "yes", None)),
    *((name, value) for name in CHOICES for value in ("", "nonsense", "Auto", None, 1, ["sgd"])),
    *((name, value) for name in TEXTS for value in (1, True, ["a"], 2.5)),
    *((name, None) for name in SETTINGS if not may_be_none(name)),
    *((name, 0) for name in ("epochs", "batch_size", "runs", "eval_every", "div_factor", "t_mult", "t_0", "step_size",
                             "cycles", "subset", "swa_every", "extend_epochs", "final_div_factor", "gamma", "factor",
                             "target", "stop_at")),
    *((name, 1) for name in ("pct_start", "pct_hold", "momentum", "momentum_min", "momentum_max", "label_smoothing",
                             "val_split", "test_split", "factor", "target", "stop_at", "swa_momentum")),
    ("tta_share", 0),
    ("tta_share", 1.1),
    *((name, 94) for name in ("target", "stop_at", "val_split", "pct_start")),
    ("gamma", 1.5),
    ("seed", 2**64),
    ("epochs", 100_001),
    ("low_res_px", 15),
    ("low_res_px", (24, 33)),
    ("low_res_until", 0.5),
    ("low_res_until", -0.5),
    ("low_res_until", (0.5, 0.3)),
    *(("cool_first_stage", value) for value in (0.5, (0.5,), (0.8, 0.6), (0.0, 0.0), (-0.1, 0.5), (0.2, 0.4, 0.6))),
    ("crop_pad_px", 9),
    ("swa_start", 30),
    ("swa_start", 31.5),
    *(("milestones", value) for value in (0.5, "0.5", [0.5], (0.8, 0.5), (0.0, 0.5), (-1.0,), (float("nan"),),
                                          (float("inf"),), ("0.5",), (None,))),
    ("momentum_min", 0.999),
    ("momentum_max", 0.0),
    ("schedule", "plateau"),
]  # fmt: skip


def base_for(name: str) -> Config:
    """A config in which a setting has an effect."""
    base = PLAIN
    if name in SETTINGS and SETTINGS[name].part == "schedule" and not isinstance(base.schedule, SETTINGS[name].owners):
        owner: Any = SETTINGS[name].owners[0]
        base = with_settings(base, schedule=owner.name, val_split=0.1)
    return base


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in BAD))
def test_a_bad_value_is_named_in_one_line(name):
    for value in (value for named, value in BAD if named == name):
        with pytest.raises(ValueError) as error:
            with_all_settings(base_for(name), {name: value, **({"resume": "run"} if name == "extend_epochs" else {})})
            pytest.fail(f"{name} = {value!r} is taken")
        message = str(error.value)
        assert name in message and "\n" not in message and len(message) < 200, value


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_may_be_any_text(name):
    config, command = with_all_settings(PLAIN, {name: "-1 é"})
    assert {**settings_by_flag(config), **asdict(command)}[name] == "-1 é"


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1},
        {"epochs": 0.01},
        {"epochs": 5, "swa_start": 4.99},
        {"swa_start": 0.0},
        {"swa_start": None},
        {"schedule": "multistep", "milestones": ()},
        {"schedule": "multistep", "milestones": (0.25, 3, 7.5)},
        {"pct_start": 0.0, "lr_peak": 0.0},
        {"schedule": "constant", "momentum": 0.0},
        {"schedule": "plateau", "val_split": 0.1},
        {"target": 0.94},
        {"resume": "run", "extend_epochs": 40},
        {"seed": 2**63 - 1},
        {"low_res_px": (16,), "low_res_until": (0.5,)},
        {"low_res_px": (24, 28), "low_res_until": (0.3, 0.6)},
    ],
)
def test_values_at_the_edge_are_taken(settings):
    config, command = with_all_settings(PLAIN, settings)
    values = {**settings_by_flag(config), **asdict(command)}
    assert all(values[name] == value for name, value in settings.items())


def test_target_in_percent_is_told_how_to_write_it():
    with pytest.raises(ValueError, match=r"target is 94; it must be a fraction, such as 0\.94"):
        Run(target=94)


def test_plateau_without_held_out_images_is_told_what_to_add():
    with pytest.raises(ValueError, match=r"--val-split 0\.1"):
        with_settings(PLAIN, schedule="plateau")


def test_plateau_needs_the_accuracy_of_every_epoch():
    with pytest.raises(ValueError, match="eval_every must be 1"):
        with_settings(PLAIN, schedule="plateau", val_split=0.1, eval_every=2)


def test_extending_needs_a_run_to_extend():
    with pytest.raises(ValueError, match="add --resume"):
        with_settings(PLAIN, extend_epochs=40)


def test_several_runs_are_not_extended():
    with pytest.raises(ValueError, match="--extend-epochs has no effect here: it belongs to a single run"):
        with_all_settings(PLAIN, {"runs": 2, "resume": "run", "extend_epochs": 40})


def test_what_is_of_a_command_is_no_setting_of_a_run():
    with pytest.raises(ValueError, match="dry_run is no setting of a run; it belongs to a Command"):
        with_settings(PLAIN, dry_run=True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"keep_all": True}, "--keep-all has no effect here: it belongs to several seeds (add --runs N)"),
     ({"runs": 2, "profile": True}, "--profile has no effect here: it belongs to a single run (without --runs)"),
     ({"runs": 2, "log": "wandb"}, "--log has no effect here: it belongs to a single run (without --runs)"),
     ({"network": "resnet18", "cool_first_stage": (0.6, 0.8)},
      "--cool-first-stage has no effect here: it belongs to --network resnet9 whose stages are trained"),
     ({"freeze": "all-but-head", "cool_first_stage": (0.6, 0.8)}, "--cool-first-stage has no effect here"),
     ({"schedule": "linear", "pct_hold": 0.3}, "--pct-hold has no effect with schedule linear: it belongs to onecycle"),
     ({"network": "resnet18", "start": "cosines"}, "--start has no effect here: it belongs to --network resnet9"),
     ({"stop_at": 0.9, "eval_every": 30}, "--stop-at has no effect here: it belongs to a run that measures before")],
)  # fmt: skip
def test_what_has_no_effect_is_told_where_it_belongs(settings, told):
    with pytest.raises(IneffectiveSetting) as error:
        with_all_settings(PLAIN, settings)
    assert str(error.value).startswith(told)


def test_what_asks_for_nothing_is_taken_anywhere():
    settings = {"keep_all": False, "stop_at": None, "low_res_px": (), "low_res_until": (), "extend_epochs": None,
                "shape": None, "network": "resnet18", "cool_first_stage": ()}  # fmt: skip
    assert with_settings(PLAIN, **settings) == with_settings(PLAIN, network="resnet18")


@pytest.mark.parametrize(
    ("when", "epochs", "expected"),
    [(0.5, 30, 15), (2 / 3, 30, 20), (2 / 3, 9, 6), (20, 30, 20), (1, 30, 1), (0.0, 30, 0), (0.5, 1, 0.5)],
)
def test_below_one_is_a_share_of_the_run_else_an_epoch(when, epochs, expected):
    assert epoch_of(when, epochs) == pytest.approx(expected)


def test_replacing_epochs_keeps_the_proportions():
    assert PLAIN.tail and PLAIN.epoch_of(PLAIN.tail.start) == pytest.approx(20)
    shorter = replace(PLAIN, epochs=12)
    assert shorter.tail and shorter.epoch_of(shorter.tail.start) == pytest.approx(8)


# Settings by flag


def test_an_unknown_setting_is_refused_with_the_closest_one():
    with pytest.raises(ValueError, match="lr_peek is no setting; did you mean lr_peak"):
        with_settings(PLAIN, lr_peek=0.1)


def test_with_settings_takes_what_settings_by_flag_gives():
    for config in RECIPES.values():
        values = {name: settings_by_flag(config)[name] for name in ("epochs", "lr_peak", "tta", "seed")}
        assert with_settings(config, **values) == config


@pytest.mark.parametrize("name", SCHEDULES)
def test_another_schedule_keeps_what_it_shares(name):
    before = with_settings(PLAIN, lr_peak=0.37, momentum_min=0.5, val_split=0.1)
    schedule = with_settings(before, schedule=name).schedule
    assert type(schedule) is SCHEDULES[name] and schedule.peak == 0.37
    if hasattr(schedule, "momentum_min"):
        assert schedule.momentum_min == 0.5


def test_a_schedule_from_python_keeps_its_type_under_other_settings():
    config = replace(PLAIN, schedule=PerStep(peak=0.1, factor=lambda step: 1.0))
    assert isinstance(with_settings(config, epochs=3).schedule, PerStep)


def test_a_tail_comes_and_goes():
    without = with_settings(PLAIN, swa_start=None)
    assert without.tail is None and settings_by_flag(without)["swa_start"] is None
    assert with_settings(without, swa_start=0.5, swa_lr=0.3).tail == Tail(start=0.5, lr=0.3)


def test_what_decides_the_weights_is_compared_and_nothing_else():
    free = {"device": "cpu", "precision": "fp32", "tta": "flip", "runs": 3, "data": "elsewhere",
            "deterministic": True, "checkpoint_every": 2}  # fmt: skip
    assert method_differences(PLAIN, with_settings(PLAIN, **free)) == []
    for name, value in {"seed": 1, "epochs": 3, "lr_peak": 0.3, "batch_size": 7, "subset": 100, "swa_lr": 0.1,
                        "crop_pad_px": 1, "norm": "gn-ws", "val_split": 0.1}.items():  # fmt: skip
        (difference,) = method_differences(PLAIN, with_settings(PLAIN, **{name: value}))
        assert difference == f"{name}: {settings_by_flag(PLAIN)[name]} -> {value}"
    assert method_differences(PLAIN, with_settings(PLAIN, swa_start=None))
    assert "schedule: onecycle -> cosine" in method_differences(PLAIN, with_settings(PLAIN, schedule="cosine"))


# Recipes


@pytest.mark.parametrize("name", sorted(set(INTEGERS) - {"seed"}))
def test_every_count_has_an_upper_bound(name):
    with pytest.raises(ValueError, match=rf"{name} is 1000000000001; it must be (at most|from) "):
        SETTINGS[name].owners[0](**{**needed(name), SETTINGS[name].field.name: 10**12 + 1})


def needed(name: str) -> dict[str, Any]:
    """What the class of a setting needs besides it."""
    owner = SETTINGS[name].owners[0]
    return {"batch_size": 1} if owner is Optimizer else {"peak": 0.1} if owner in SCHEDULES.values() else {}
