"""Goes on from a file: the checkpoint of an interrupted run (--resume), or the weights of another one (--init).

The files may come from anywhere: what this run could not have written is refused, and nothing of it is loaded.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcifar.config.config import Config, Model
from fastcifar.config.settings import method_differences
from fastcifar.optim.schedule_table import ScheduleTable, count_steps, plan_averages
from fastcifar.runs import checkpoint
from fastcifar.runs.config_file import config_from_plain
from fastcifar.runs.model_file import find_model, load_model
from fastcifar.training.parts import is_from_python
from fastcifar.training.state import FIRST_LOSS_SCALE, State, weights_of

ALIKE = ("network", "scale", "norm", "activation")
"""Settings in which the model of the file of --init and that of the run must agree, as in the layers of resnet9."""
MEASURED = ("accuracy_test", "accuracy_val", "loss_test", "loss_val")
"""What a row of the history may have."""


def resume(state: State, folder: Path, config: Config, digest: str) -> bool:
    """Loads checkpoint.pt of a run folder into a fresh state, in place, and says whether there was one.

    A run that was stopped before its first checkpoint starts from the beginning. CheckpointError when the checkpoint
    is damaged, or is one of other settings or images; ValueError when the extension is shorter than the run.
    """
    path = folder / "checkpoint.pt"
    if not path.exists() and (path.parent / "config.json").exists():
        return False
    content = checkpoint.load(path)
    saved = config_from_plain(content["config"], str(path), own=config.schedule)
    changed = method_differences(saved, config)
    if content["digest"] != digest:
        changed.append("the images are not those it was trained on (checksum)")
    if changed:
        raise checkpoint.CheckpointError(f"{path}: may not change within a run: {'; '.join(changed)}")
    steps_per_epoch = state.steps_per_epoch
    num_steps = count_steps(config.final_epochs, steps_per_epoch)
    extend(state.rates, saved, steps_per_epoch)
    if num_steps < state.num_steps:
        raise ValueError(f"extend_epochs {config.final_epochs:g} is shorter than the run it extends, "
                         f"{saved.final_epochs:g} epochs")  # fmt: skip
    try:
        time_s: Any = content["state"].pop("time_s", None)
        checkpoint.check(time_s, {"train": 0.0, "eval": 0.0}, "time_s")
        check_tree(content["state"], state, num_steps)
        state.load(content["state"])
    except (ValueError, TypeError) as e:
        raise checkpoint.CheckpointError(f"{path}: {e}; resume another run or start anew") from e
    extend(state.rates, config, steps_per_epoch)
    plan_averages(state.rates, config, steps_per_epoch, state.step, state.average.count)
    for phase, seconds in time_s.items():  # times of the whole run, not of its last part
        state.stopwatch.time_s[phase] += seconds
    return True


def extend(schedule: ScheduleTable, config: Config, steps_per_epoch: int) -> ScheduleTable:
    """Lengthens the table to `extend_epochs` by repeating the last row of the tail. ValueError without a tail."""
    extend_epochs = config.run.extend_epochs
    if extend_epochs is None:
        return schedule
    num_steps, before = count_steps(extend_epochs, steps_per_epoch), len(schedule.table)
    if num_steps < before:
        raise ValueError(f"extend_epochs {extend_epochs:g} is shorter than the run it extends ({before} steps)")
    if schedule.tail_step >= before:
        raise ValueError("this run has no averaging tail: its schedule ended, so more epochs would train at its last "
                         "learning rate; start a new run with --epochs instead")  # fmt: skip
    schedule.table = torch.cat([schedule.table, schedule.table[-1:].expand(num_steps - before, 2)])
    plan_averages(schedule, config, steps_per_epoch)
    return schedule


def check_tree(tree: dict[str, Any], fresh: State, num_steps: int) -> None:
    """ValueError when this run could not have written the saved tree at any step."""
    like = fresh.tree()
    loose: tuple[str, ...] = ("history", "schedule")
    if any(map(is_from_python, fresh.optimizers)):  # whose state grows in the first step
        loose = (*loose, "optimizers")
        if not isinstance(tree["optimizers"], list) or len(tree["optimizers"]) != len(fresh.optimizers):
            raise ValueError("optimizers has other entries than this run")
        for saved, optimizer in zip(tree["optimizers"], fresh.optimizers, strict=True):
            _check_foreign(saved, optimizer)
    checkpoint.check({**tree, **{k: like[k] for k in loose if k in tree}}, like, "state")
    step, count = tree["step"], tree["mean"]["count"]
    if not 0 <= step <= num_steps:
        raise ValueError(f"step is not within this run's {num_steps}")
    if not 0 <= count <= step:
        raise ValueError(f"mean.count is not within its {step} steps")
    if not 0 < tree["loss_scale"] <= FIRST_LOSS_SCALE:
        raise ValueError("loss_scale is not a value that training can reach")
    _check_schedule(tree["schedule"], like["schedule"])
    _check_history(tree["history"], step, num_steps, fresh.steps_per_epoch)


def _check_foreign(saved: Any, optimizer: Optimizer) -> None:
    """ValueError unless it is finite tensors and numbers: of some weights by number, and of each group by name."""
    count, groups = len(weights_of(optimizer)), len(optimizer.param_groups)
    if not isinstance(saved, dict) or saved.keys() != {"state", "groups"}:
        raise ValueError("optimizers is of an older version, which did not keep all of an optimizer from Python")
    for part, most in (("state", count), ("groups", groups)):
        values = saved[part]
        if not isinstance(values, dict) or not all(type(k) is int and 0 <= k < most for k in values):
            raise ValueError("optimizers has other weights than this run")
        for number, entries in values.items():
            for name, value in (entries if isinstance(entries, dict) else {"": object()}).items():
                if isinstance(value, Tensor):
                    checkpoint.check(value, torch.empty_like(value), f"optimizers.{part}.{number}.{name}")
                elif value is not None and type(value) not in (int, float, bool):
                    raise ValueError(f"optimizers.{part}.{number}.{name} is no state of an optimizer")


def _check_schedule(saved: Any, like: dict[str, Any]) -> None:
    checkpoint.check(saved, like, "schedule")
    if "plateau" not in like and not torch.allclose(saved["table"], like["table"], rtol=1e-6, atol=1e-9):
        raise ValueError("schedule.table is not the one these settings make")
    measured = ("best", "num_bad_epochs", "last_epoch", "cooldown_counter", "_last_lr")
    for name, value in like.get("plateau", {}).items():
        if name not in measured and saved["plateau"][name] != value:
            raise ValueError(f"schedule.plateau.{name} is not the one these settings make")


def _check_history(rows: Any, step: int, num_steps: int, steps_per_epoch: int) -> None:
    """ValueError unless there is a row per whole epoch, and one where the run ended inside an epoch."""
    like: dict[str, Any] = dict.fromkeys(("lr", "momentum", "loss_train", "time_s"), 0.0)
    like |= {"epoch": 0, "step": 0, "phase": ""}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("history is no list of rows")
    for i, row in enumerate(rows):
        measured = {k: 0.0 for k, v in row.items() if k in MEASURED and v is not None}
        checkpoint.check({k: v for k, v in row.items() if v is not None}, like | measured, f"history.{i}")
    steps = [row["step"] for row in rows]
    whole = [s for s in steps if s % steps_per_epoch == 0]
    ended = step < num_steps or steps[-1:] == [step]
    if whole != list(range(steps_per_epoch, step + 1, steps_per_epoch)) or steps != sorted({*steps}) or not ended:
        raise ValueError(f"history has not the rows of {step} steps")


@torch.no_grad()
def load_initial(model: nn.Module, settings: Model) -> None:
    """Copies the weights and statistics of `settings.init` into a fresh model, in place; settings.scale is resolved.

    A head of another number of classes stays as it is, and so does the count of the random draws: it is this run's.
    Nothing in the file is executed. ValueError when it is no whole model or one of another network.
    """
    path = find_model(Path(settings.init or ""))
    source, facts = load_model(path, flag="--init")
    saved = Model(**{name: facts[name] for name in ALIKE}, shape=facts.get("shape"))
    if _kind(saved) != _kind(settings):
        raise ValueError(f"--init {path}: holds a model of {_told(saved)}, but this run has {_told(settings)}; give "
                         "the flags of the file")  # fmt: skip
    fresh, given = model.state_dict(), source.state_dict()
    own = {name for name in fresh if name == "noise.step"}
    if fresh["head.weight"].shape != given["head.weight"].shape:
        own |= {name for name in fresh if name.startswith("head.")}
    model.load_state_dict({name: fresh[name] if name in own else given[name] for name in fresh})


def _kind(settings: Model) -> tuple[Any, ...]:
    """What two networks of one kind share: the layers, whatever names them, norm and activation."""
    layers = settings.layers if settings.network == "resnet9" else settings.scale
    return settings.network, layers, settings.norm, settings.activation


def _told(settings: Model) -> str:
    shape = f", shape {settings.shape}" if settings.shape else ""
    return ", ".join(f"{name} {getattr(settings, name)}" for name in ALIKE) + shape
