"""What the benches share: a run of a config on loaded data, results kept as they come, tables, one kind of picture."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar import data, flags, machine, record, train
from fastcifar.config import Config
from fastcifar.files import write_atomically
from fastcifar.job import prepare
from fastcifar.progress import Silent
from fastcifar.timing import utc_stamp


def facts(config: Config) -> dict[str, Any]:
    """Machine, versions and commit: the head of every result file."""
    chosen = machine.choose(config)
    return {
        "date": utc_stamp(), "device": chosen.name, "precision": chosen.precision, "compile": chosen.compile,
        "augment": chosen.augment, "scale": chosen.scale, "versions": record.versions(), **record.source_state(),
    }  # fmt: skip


def train_once(config: Config, dataset: data.Dataset) -> train.Result:
    """One silent run, nothing written."""
    job = prepare(config, dataset, machine.choose(config))
    job.progress = Silent()
    if job.machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.machine.device)  # this run's memory, not that of the run before
    return train.train(job)


def with_seed(config: Config, seed: int) -> Config:
    """The same settings under another seed."""
    return replace(config, seed=seed, runs=1)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; none if it is not there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Rows:
    """Results of a bench, each written to a JSON-lines file as it ends: a bench that was stopped goes on where it was.

    A row belongs to a key and to a state (`state_of`): what another commit, machine or setting left is not used.
    """

    def __init__(self, path: Path, state: str) -> None:
        self.path, self.state, self.all = path, state, read_rows(path)

    def once(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]], state: str = "") -> dict[str, Any]:
        """The row of a key, measured if it is not there yet (or if it failed: then it has an `error`)."""
        key = {**key, "state": state or self.state}
        for row in self.all:
            if "error" not in row and all(row.get(k) == v for k, v in key.items()):
                return row
        row = {**key, "date": utc_stamp(), **measure()}
        self.all.append(row)
        record.write_lines(self.path, self.all)
        return row


def state_of(config: Config, *more: Any) -> str:
    """What a figure depends on apart from its key, as a short digest: settings, machine, torch and commit."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("seed", "runs", "out", "target", "debug")}
    facts = [settings, machine.choose(config).name, torch.__version__, record.source_state()["commit"], *more]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]


@dataclass
class Stop:
    """Whether measuring was stopped: the exit code."""

    code: int = 0


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C or SIGTERM ends the measuring inside; what follows writes the tables of what is there."""
    stop = Stop()
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        stop.code = 130
        print("stopped; the same command goes on from here", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def words(text: str) -> list[str]:
    """`epochs=10 swa_start=None cycle_momentum=false milestones=0.4,0.8` as flags of train_fast.py.

    ValueError when a word is no name=value.
    """
    out: list[str] = []
    for word in text.split():
        name, equals, value = word.partition("=")
        flag = "--" + name.strip("-").replace("_", "-")
        if not equals or not name:
            raise ValueError(f"{word!r}: give settings as name=value, separated by spaces")
        if value.lower() in ("true", "false"):
            out.append(flag if value.lower() == "true" else flag.replace("--", "--no-", 1))
        else:
            out += [flag, *value.split(",")]
    return out


def parse(recipe: str, *settings: str) -> Config:
    """A recipe under settings in the form of `words`, the later ones stronger. ValueError for anything wrong."""
    return flags.parse(["--recipe", recipe, *(w for text in settings for w in words(text))], prog="settings")


def noise(n_train: int, n_test: int = 1_000) -> data.Dataset:
    """Random pixels and labels: for benches of speed, which does not depend on what the images show."""
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, n)

    classes = tuple(str(label) for label in range(10))
    return data.Dataset("noise", classes, *draw(n_train), *draw(n_test), (0.5,) * 3, (0.29,) * 3, f"noise {n_train}")


def measured(stats: dict[str, Any] | None, digits: int = 3, scale: float = 1.0) -> str:
    """`record.interval` as mean ± std [95% interval of the mean], to significant digits of the mean."""
    if not stats or stats["mean"] is None:
        return "-"

    def show(value: float) -> str:
        value *= scale
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"

    if stats["std"] is None:
        return show(stats["mean"])
    low, high = stats["ci95"]
    return f"{show(stats['mean'])} ± {show(stats['std'])} [{show(low)}, {show(high)}]"


def percent(stats: dict[str, Any] | None) -> str:
    """`record.interval` of accuracies as 90.12 ± 0.10 [89.87, 90.37], in percent."""
    if not stats or stats["mean"] is None:
        return "-"
    mean = f"{100 * stats['mean']:.2f}"
    if stats["std"] is None:
        return mean
    low, high = stats["ci95"]
    return f"{mean} ± {100 * stats['std']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


Panel = tuple[str, dict[str, list[float]], dict[str, float]]
"""Title with unit; values by name; marks by name: a floor, a goal."""


def draw_panels(path: Path, title: str, panels: Sequence[Panel], mark: str = "floor", log: bool = False) -> None:
    """Panels of rows: per name all its values as dots, mean and 95% interval, and the mark as a red bar.

    The axis spans values and marks; a wide interval of few values goes on beyond it.
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
        axis.set_xlim(axis.get_xlim())  # of values and marks, before the intervals
        for y, numbers in enumerate(values.values()):
            stats = record.interval(numbers)
            if stats["ci95"]:
                axis.plot(stats["ci95"], [y, y], color="tab:blue", linewidth=2, alpha=0.7)
            if numbers:
                axis.plot(stats["mean"], y, "|", color="tab:blue", markersize=13, markeredgewidth=2)
        named = i % columns == 0 or list(values) != list(panels[i - 1][1])  # else the panel to the left has them
        axis.set_yticks(range(len(values)), labels=[textwrap.fill(v, 44) for v in values] if named else [])
        axis.set(title=name, ylim=(len(values) - 0.5, -0.5))
        axis.grid(alpha=0.3, axis="x")
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle(title + (f" (red: {mark})" if any(marks for _, _, marks in panels) else ""))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, lambda f: f.write(picture.getvalue()))
