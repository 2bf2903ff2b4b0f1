"""--log: what a run measures, in TensorBoard, Trackio or Weights & Biases.

`Tracker` is the observer, with a subclass for each kind of program. Nothing is logged per step, as that would make the
host wait for the device.
"""

import importlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.config.settings import settings_by_flag
from fastcifar.runs.record import epoch_accuracy, write_lines
from fastcifar.training.observer import Observer, RunOutcome, RunView

log = logging.getLogger("fastcifar")

PROJECT = "fastcifar"
"""Where neither WANDB_PROJECT nor TRACKIO_PROJECT names another."""


class Tracker(Observer):
    """Logs each row of the history once, the settings at the start and the summary at the end.

    The run folder keeps `log-<program>.json`: the id of the log and the last step in it. So a resumed run goes on in
    the same log, without the rows that are there already. Raises ValueError when the program cannot start. When it
    fails later, a warning is given and the training goes on without it.
    """

    def __init__(self, name: str, out: Path, config: Config, resumed: bool = False) -> None:
        self.name, self.path = name, out / f"log-{name}.json"
        self.id, self.last_step = secrets.token_hex(4), 0
        if resumed and self.path.exists():
            self.id, self.last_step = _read(self.path)
        settings = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in settings_by_flag(config).items()}
        self.works = True
        try:
            self.open(out, settings)
            self._remember()
        except Exception as error:  # a package of others may raise anything
            raise ValueError(f"--log {name} does not start: {_first_line(error)}; or train without --log") from error

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        self._try(lambda: self._log_rows(run.history))

    def on_end(self, result: RunOutcome) -> None:
        self._try(lambda: self.close(dict(_numbers(result.summary)), self.last_step))

    def _log_rows(self, history: list[dict[str, Any]]) -> None:
        for row in history:
            if row["step"] > self.last_step:
                self.write(_values(row), row["step"])
                self.last_step = row["step"]
        self._remember()

    def _remember(self) -> None:
        write_lines(self.path, [{"id": self.id, "step": self.last_step}], sync=False)

    def _try(self, work: Callable[[], None]) -> None:
        if self.works:
            try:
                work()
            except Exception as error:  # hours of training are worth more than their log
                self.works = False
                log.warning("warning: --log %s failed (%s); training goes on without it", self.name, _first_line(error))

    def open(self, out: Path, settings: dict[str, Any]) -> None:
        """Begins the log `self.id` or goes on with it."""
        raise NotImplementedError

    def write(self, values: dict[str, float], step: int) -> None:
        """Adds the values of an epoch."""
        raise NotImplementedError

    def close(self, summary: dict[str, float], step: int) -> None:
        """Adds the numbers of the summary and ends the log."""
        raise NotImplementedError


class Tensorboard(Tracker):
    """Event files in the run folder: scalars by step, the settings as text, and both for the table of hyperparameters.

    `tensorboard --logdir runs` shows all runs.
    """

    def open(self, out: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds

        self.settings = settings
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=self.last_step + 1)
        lines = json.dumps(settings, indent=2).splitlines()
        self.writer.add_text("settings", "\n".join(f"    {line}" for line in lines))  # Markdown: a block of code
        self.writer.flush()

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, summary: dict[str, float], step: int) -> None:
        self.writer.add_hparams(self.settings, summary, run_name=".", global_step=step)
        self.writer.close()


class Wandb(Tracker):
    """Weights & Biases, or Trackio, which has the same calls: values by step, the summary's at the last one.

    Variables of the environment that belong to the program go before what a run would choose. WANDB_MODE=offline logs
    without network and account, into the run folder; `wandb sync` uploads later. `trackio show` shows its data base.
    """

    def open(self, out: Path, settings: dict[str, Any]) -> None:
        self.program, name, given = importlib.import_module(self.name), out.resolve().name, os.environ.get
        if self.name == "wandb":
            own = {"id": given("WANDB_RUN_ID", self.id), "name": given("WANDB_NAME", name),
                   "dir": given("WANDB_DIR", str(out)), "settings": self.program.Settings(console="off")}  # fmt: skip
        else:  # it knows a run by its name
            own = {"name": f"{name}-{self.id}", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        project = given(f"{self.name.upper()}_PROJECT", PROJECT)
        with redirect_stdout(sys.stderr):  # the last line on stdout is the summary
            self.program.init(project=project, config=settings, resume="allow", **own)

    def write(self, values: dict[str, float], step: int) -> None:
        self.program.log(values, step=step)

    def close(self, summary: dict[str, float], step: int) -> None:
        with redirect_stdout(sys.stderr):
            self.program.log(summary, step=step)
            self.program.finish()


def require_tracker(name: str) -> None:
    """ValueError when the program of --log is not installed."""
    if name != "none" and find_spec(name) is None:
        raise ValueError(f"--log {name} needs a package that is not installed: pip install {name}")


def make_tracker(config: Config, command: Command, out: Path) -> Tracker:
    """The tracker of --log. ValueError when it does not start."""
    kind = Tensorboard if command.log == "tensorboard" else Wandb
    return kind(command.log, out, config, command.resume is not None)


def _values(row: dict[str, Any]) -> dict[str, float]:
    names = ("epoch", "loss_train", "loss_test", "loss_val", "lr", "momentum")
    values = {**{name: row.get(name) for name in names}, "accuracy": epoch_accuracy(row)}
    return {name: value for name, value in values.items() if value is not None}


def _numbers(values: dict[str, Any], name: str = "summary") -> Iterator[tuple[str, float]]:
    """(name, number) of every number in nested dictionaries, settings left out."""
    for key, item in values.items():
        if isinstance(item, dict) and key != "config":
            yield from _numbers(item, f"{name}/{key}")
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            yield f"{name}/{key}", item


def _read(path: Path) -> tuple[str, int]:
    """Id and last step of the log of an earlier part of the run. ValueError for a damaged file."""
    try:
        content = json.loads(path.read_text())
        if not content["id"].isalnum() or len(content["id"]) > 64:
            raise ValueError("the id is not one of letters and digits")
        return content["id"], int(content["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({_first_line(error)}); remove it to begin a new log") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
