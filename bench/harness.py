"""The functions that the benches share: a training run on loaded data, rows of measurements, tables and plots.

The benches import this module; it has no command.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import signal
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from bench.run_clock import RunClock
from fastcifar.augment.images import DeviceImages
from fastcifar.cli import flags
from fastcifar.cli.terminal import route_log_to
from fastcifar.config.config import Config
from fastcifar.config.settings import IneffectiveSetting, settings_by_flag
from fastcifar.data.dataset import Dataset
from fastcifar.files import write_atomically
from fastcifar.observers.progress import Silent
from fastcifar.runs import environment, intervals, record
from fastcifar.training.evaluate import all_logits
from fastcifar.training.hardware import make_deterministic, resolve
from fastcifar.training.loop import train
from fastcifar.training.observer import RunOutcome
from fastcifar.training.rates import repeats_s
from fastcifar.training.start import preprocess
from fastcifar.training.task import Task, make_task


def describe_environment(config: Config) -> dict[str, Any]:
    """Device, versions and commit: the head of every table.json. ValueError when a choice is not available here."""
    with deterministic_algorithms(config.machine.deterministic):
        config, hardware = resolve(config)
    machine = config.machine
    return {
        "date": environment.utc_stamp(), "device": environment.device_name(hardware.device),
        "precision": machine.precision, "compile": machine.compile, "augment": machine.executor,
        "scale": config.model.scale,
        "versions": environment.versions(), **environment.source_state(),
    }  # fmt: skip


def train_once(config: Config, dataset: Dataset, pause_s: float = 0.0, measure_loss: bool = False) -> RunOutcome:
    """Trains one run, on a card after a rest of `pause_s`. Prints nothing and writes no file.

    With `measure_loss` the summary has `loss_mirrored` (`mirrored_loss`). It also has `joules` of the card
    (`bench.run_clock`), and `preparation_s`: seconds of whitening and padding, which a CPU does once for all runs of a
    job; None on a card, where `time_s.train` has them.
    """
    with deterministic_algorithms(config.machine.deterministic):
        config, hardware = resolve(config)
        task = make_task(config, dataset, hardware)
        if task.hardware.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(task.hardware.device)  # else an earlier run could set the peak
        clock = RunClock(task.hardware.device, pause_s)
        with route_log_to(Silent()):
            result = train(task, stopwatch=clock)
        result.summary["joules"] = clock.joules()
        result.summary["preparation_s"] = None
        if task.hardware.device.type == "cpu":
            (result.summary["preparation_s"],) = repeats_s(lambda: prepare_alike(task), task.hardware.device, repeats=1)
        if measure_loss:
            result.summary["loss_mirrored"] = mirrored_loss(result.model, task.test)
        return result


def mirrored_loss(model: torch.nn.Module, images: DeviceImages) -> float:
    """Cross-entropy of the mean logits of an image and its mirror, at the temperature that makes it least.

    The seeds scatter it less than the accuracy, which counts the few images near a boundary: one run says as much about
    a change as nine do by their accuracies (docs/log/2026-11-28-full-width.md). The temperature (Guo et al. 2017,
    arXiv:1706.04599) takes out how sure the network is, which label smoothing and the averaging of weights change.
    """
    logits = all_logits(model.eval(), images, "flip")[1]
    losses = [cross_entropy(logits * factor, images.labels) for factor in torch.logspace(-1, 1, 201).tolist()]
    return float(torch.stack(losses).min())


def prepare_alike(task: Task) -> None:
    """What a run on a card does before its first step, on the images of a task and a network of its own."""
    preprocess(task, copy.deepcopy(task.network))


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Turns deterministic algorithms on inside if `enabled`, and restores the earlier state afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        make_deterministic()
    try:
        yield
    finally:
        if torch.are_deterministic_algorithms_enabled() != before:  # the call imports torch's compiler: seconds
            torch.use_deterministic_algorithms(before)


def with_seed(config: Config, seed: int) -> Config:
    """The same settings with another seed, for a single run."""
    return replace(config, seed=seed, run=replace(config.run, runs=1, target=None))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; an empty list if the file does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Rows:
    """Measurements in a JSON-lines file. Each is written when it is made, so a stopped bench can continue.

    A row belongs to a key and a state (`state_of`): a row of another commit, machine or setting is not used again.
    """

    def __init__(self, path: Path, state: str = "") -> None:
        self.path, self.state, self.all = path, state, read_rows(path)

    def get_or_measure(
        self, key: dict[str, Any], measure: Callable[[], dict[str, Any]], state: str = ""
    ) -> dict[str, Any]:
        """Returns the row of a key. Calls `measure` if there is none yet, or only a failed one (with an `error`)."""
        key = {**key, "state": state or self.state}
        for row in self.all:
            if "error" not in row and all(row.get(name) == value for name, value in key.items()):
                return row
        row = {**key, "date": environment.utc_stamp(), **measure()}
        self.all.append(row)
        record.write_lines(self.path, self.all)
        return row


def state_of(config: Config, *more: Any) -> str:
    """A short digest of what a measurement depends on besides its key: settings, device, torch, commit and `more`."""
    settings = settings_by_flag(with_seed(config, 0))
    with deterministic_algorithms(config.machine.deterministic):
        device = environment.device_name(resolve(config)[1].device)
    commit = environment.source_state()["commit"]
    text = json.dumps([settings, device, torch.__version__, commit, *more], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class Interruption:
    """Exit code of a bench: 0, or 130 after it was interrupted."""

    code: int = 0


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Ends the block on Ctrl-C or SIGTERM. The code after it then writes the tables of the rows that exist."""
    interruption = Interruption()
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    except KeyboardInterrupt:
        interruption.code = 130
        print("interrupted; the same command continues from here", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def flags_of(settings: str) -> list[str]:
    """Converts `epochs=10 swa_start=None cycle_momentum=false milestones=0.4,0.8` to flags of train_fast.py.

    `cool_first_stage=` is a list without numbers.
    ValueError when a part of the text is not of the form name=value.
    """
    converted: list[str] = []
    for setting in settings.split():
        name, equals, value = setting.partition("=")
        flag = _flag(name)
        if not equals or not name:
            raise ValueError(f"{setting!r}: give settings as name=value, separated by spaces")
        if value.lower() in ("true", "false"):
            converted.append(flag if value.lower() == "true" else flag.replace("--", "--no-", 1))
        else:
            values = [value] if value.startswith("{") else value.split(",") if value else []  # a shape is JSON
            converted += [flag, *values]
    return converted


def _flag(name: str) -> str:
    return "--" + name.strip("-").replace("_", "-")


def parse(recipe: str, settings: str, variant: str = "") -> Config:
    """The config of a recipe with `settings` and then those of a `variant` of it, in the form of `flags_of`.

    A variant may make a setting ineffective that it does not name: without a tail there is no use for `swa_lr`. Such a
    setting is left out. ValueError for an unknown recipe or setting, a wrong value, or any other ineffective setting.
    """
    kept = settings.split()
    while True:
        try:
            return flags.parse_config(["--recipe", recipe, *flags_of(" ".join([*kept, variant]))], prog="settings")
        except IneffectiveSetting as e:
            ineffective = [s for s in kept if s.partition("=")[0].replace("-", "_") == e.name]
            if not variant or not ineffective:
                raise
            kept = [setting for setting in kept if setting not in ineffective]


def random_dataset(n_train: int, n_test: int = 1_000) -> Dataset:
    """A data set of random pixels and labels, for benches of speed: speed does not depend on the pixels."""
    generator = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        return generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), generator.integers(0, 10, n)

    classes = tuple(str(label) for label in range(10))
    mean, std, digest = (0.5,) * 3, (0.29,) * 3, f"random {n_train}"
    return Dataset("random", classes, *draw(n_train), *draw(n_test), mean, std, digest)


def format_interval(stats: dict[str, Any] | None, digits: int = 3) -> str:
    """Formats `intervals.interval` as mean ± std [95% interval], with `digits` significant digits."""
    if not stats or stats["mean"] is None:
        return "-"

    def show(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"

    if stats["std"] is None:
        return show(stats["mean"])
    low, high = stats["ci95"]
    return f"{show(stats['mean'])} ± {show(stats['std'])} [{show(low)}, {show(high)}]"


def format_percent(stats: dict[str, Any] | None) -> str:
    """Formats `intervals.interval` of fractions in percent: 90.12 ± 0.10 [89.87, 90.37]."""
    if not stats or stats["mean"] is None:
        return "-"
    mean = f"{100 * stats['mean']:.2f}"
    if stats["std"] is None:
        return mean
    low, high = stats["ci95"]
    return f"{mean} ± {100 * stats['std']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


Panel = tuple[str, dict[str, list[float]], dict[str, float]]
"""Title with unit; values by name; reference values by name, such as a floor or a target."""


def draw_panels(path: Path, title: str, panels: Sequence[Panel], mark: str = "floor", log: bool = False) -> None:
    """Draws panels with a row per name: all values as dots, their mean and 95% interval, the reference as a red bar.

    The axis spans values and references. A wide interval of few values is cut off at its ends.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    lines, tallest = -(-len(panels) // columns), max(len(values) for _, values, _ in panels)
    figure = Figure(figsize=(2 + 4.2 * columns, 0.6 + lines * (1.0 + 0.42 * tallest)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for i, (axis, (name, values, marks)) in enumerate(zip(axes, panels, strict=False)):
        axis.set_xscale("log" if log else "linear")
        axis.margins(x=0.08)
        for y, (label, numbers) in enumerate(values.items()):
            axis.plot(numbers, [y] * len(numbers), "o", color="tab:blue", alpha=0.5, markersize=5)
            if label in marks:
                axis.plot(marks[label], y, "|", color="tab:red", markersize=17, markeredgewidth=3)
        axis.set_xlim(axis.get_xlim())  # fixed before the intervals are drawn
        for y, numbers in enumerate(values.values()):
            stats = intervals.interval(numbers)
            if stats["ci95"]:
                axis.plot(stats["ci95"], [y, y], color="tab:blue", linewidth=2, alpha=0.7)
            if numbers:
                axis.plot(stats["mean"], y, "|", color="tab:blue", markersize=13, markeredgewidth=2)
        labelled = i % columns == 0 or list(values) != list(panels[i - 1][1])  # else the panel to the left has them
        axis.set_yticks(range(len(values)), labels=[textwrap.fill(v, 44) for v in values] if labelled else [])
        axis.set(title=name, ylim=(len(values) - 0.5, -0.5))
        axis.grid(alpha=0.3, axis="x")
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle(title + (f" (red: {mark})" if any(marks for _, _, marks in panels) else ""))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_atomically(path, lambda f: f.write(image.getvalue()))
