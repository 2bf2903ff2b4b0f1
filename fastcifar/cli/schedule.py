"""`fastcifar schedule --recipe A [--recipe B ...] [flags]`: learning rate and momentum of each on one picture."""

from collections.abc import Sequence
from pathlib import Path

from fastcifar.cli import flags
from fastcifar.config.config import Config
from fastcifar.config.recipes import DEFAULT_RECIPE
from fastcifar.optim.schedule_table import ScheduleTable, make_schedule_table
from fastcifar.runs import plots

CIFAR10_TRAIN_IMAGES = 50_000


def main(argv: Sequence[str]) -> int:
    """Draws schedule.png (or --out FILE), prints its path and returns the exit code. ValueError for wrong flags."""
    names, rest, path = [], [], Path("schedule.png")
    arguments = iter(argv)
    for word in arguments:
        flag, _, value = word.partition("=")
        if flag == "--recipe":
            names += (value or next(arguments, "")).split(",")
        elif flag == "--out":
            path = Path(value or next(arguments, ""))
        else:
            rest.append(word)
    curves = {}
    for name in names or [DEFAULT_RECIPE]:
        curves[name] = preview(flags.parse_config(["--recipe", name, *rest], prog="fastcifar schedule"))
    plots.draw_schedules(path, curves)
    print(path)
    return 0


def preview(config: Config, num_train: int = CIFAR10_TRAIN_IMAGES) -> tuple[ScheduleTable, int]:
    """(schedule table, steps per epoch) of a run, without data or training."""
    num_train = config.data.subset or num_train
    steps_per_epoch = max(1, int(num_train * (1 - config.data.val_split)) // config.optimizer.batch_size)
    return make_schedule_table(config, steps_per_epoch), steps_per_epoch
