"""`fastcifar compare RUN RUN ...`: curves of several runs on one picture, their different settings and results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastcifar.cli.flags import UsageError, parse_quietly
from fastcifar.cli.terminal import format_table
from fastcifar.config.settings import settings_by_flag
from fastcifar.runs.plots import draw_comparison
from fastcifar.runs.results import RunResults, read_results

LONGEST_CELL = 40


@dataclass(frozen=True)
class Options:
    """Draws the curves of several runs, and prints the settings in which they differ and their results."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, at least two."""
    out: Path = Path("compare.png")
    """The picture."""


def main(argv: Sequence[str]) -> int:
    """Writes the picture, prints the table and returns the exit code. ValueError or OSError for bad input."""
    options = parse_quietly(Options, argv, "fastcifar compare")
    folders = [*{folder.resolve(): folder for folder in options.runs}.values()]  # a folder named twice is one run
    if len(folders) < 2:
        raise UsageError("there is nothing to compare; name at least two runs")
    runs = [read_results(folder) for folder in folders]
    names = short_names(folders)
    draw_comparison(options.out, runs, names)
    print(format_table([["", *names], *different_settings(runs), *results(runs)]))
    print(options.out)
    return 0


def short_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, or its whole path where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(f) for name, f in zip(names, folders, strict=True)]


def different_settings(runs: Sequence[RunResults]) -> list[list[str]]:
    """A row for each setting that is not the same in all runs, by its flag; `-` where a run does not have it."""
    settings = [{name: _text(value) for name, value in settings_by_flag(run.config).items()} for run in runs]
    names = dict.fromkeys(name for values in settings for name in values)
    rows = [["--" + name.replace("_", "-"), *(values.get(name, "-") for values in settings)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def results(runs: Sequence[RunResults]) -> list[list[str]]:
    """A row for each result; `-` where a run does not have it, as it has not ended or has no averaging tail."""
    rows = {
        "accuracy": ("accuracy", "{:.2%}"), "accuracy, last weights": ("accuracy_raw", "{:.2%}"),
        "accuracy, averaged": ("accuracy_swa", "{:.2%}"), "accuracy, with views": ("accuracy_tta", "{:.2%}"),
        "last training loss": ("loss_last", "{:.4f}"), "steps": ("num_steps", "{:.0f}"),
        "training, seconds": ("train_s", "{:.1f}"), "process, seconds": ("wall_s", "{:.1f}"),
        "data set": ("dataset", "{:.40}"), "device": ("device", "{:.40}"), "precision used": ("precision", "{:.40}"),
        "commit": ("commit", "{:.8}"),
    }  # fmt: skip
    table = [["epochs done", *(f"{run.history[-1]['epoch']:.0f}" for run in runs)]]
    for title, (key, form) in rows.items():
        values = [run.summary.get(key) for run in runs]
        if any(value is not None for value in values):
            table.append([title, *("-" if value is None else form.format(value) for value in values)])
    return table


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        text = {True: "yes", False: "no", None: "none"}[value]
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = ", ".join(map(_text, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"
