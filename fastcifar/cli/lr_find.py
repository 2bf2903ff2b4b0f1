"""`fastcifar lr-find [flags of train]`: a peak for the learning rate, from a range test."""

import sys
from collections.abc import Sequence
from pathlib import Path

from fastcifar.cli import flags
from fastcifar.cli.flags import UsageError
from fastcifar.data.load import load_of
from fastcifar.runs import plots
from fastcifar.training.hardware import resolve
from fastcifar.training.lr_finder import (
    DIVERGED,
    LEAST_STEPS,
    SKIPPED_STEPS,
    SMOOTHING,
    STANDARD_ERRORS,
    growing_rates,
    range_test,
    suggest,
)
from fastcifar.training.task import make_task

OWN = {"--lr-first": "1e-3", "--lr-last": "10", "--steps": "200", "--out": "lr_find.png"}
"""Flags of this command and their defaults."""
HELP = f"""usage: fastcifar lr-find [--lr-first LR] [--lr-last LR] [--steps N]
                         [--out FILE] [flags of train]

Trains a new model while the learning rate grows exponentially, draws the loss
over it and suggests a peak: half of the rate at which the smoothed loss is
smallest. Smoothed is an exponential mean of weight {SMOOTHING:g}, from the front and
from the back. There is no suggestion where the loss never falls below that of
the untrained network, or only in the first {SKIPPED_STEPS} steps.

The test stops when the loss is not finite, or its running mean is {DIVERGED:g} times
its smallest value or {STANDARD_ERRORS:g} standard errors above it.

  --lr-first LR  first learning rate ({OWN["--lr-first"]})
  --lr-last LR   last learning rate ({OWN["--lr-last"]})
  --steps N      steps, at least {LEAST_STEPS} ({OWN["--steps"]})
  --out FILE     the picture ({OWN["--out"]})

The other flags are those of `fastcifar train --help`."""


def main(argv: Sequence[str]) -> int:
    """Writes the picture, prints the suggestion and returns the exit code. ValueError or OSError for bad input."""
    if any(word in ("-h", "--help") for word in argv):
        print(HELP)
        return 0
    own, rest = split(argv)
    rates = growing_rates(number(own, "--lr-first"), number(own, "--lr-last"), int(number(own, "--steps", whole=True)))
    config = flags.parse_config(rest, prog="fastcifar lr-find")
    if config.run.runs > 1:
        raise UsageError("--runs has no effect here: it belongs to fastcifar train")
    out = Path(own["--out"])
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder; name a file")
    config, hardware = resolve(config)
    dataset = load_of(config, progress=sys.stderr.isatty())
    task = make_task(config, dataset, hardware)
    tested = range_test(task, rates)
    peak = suggest(tested.lr, tested.loss, tested.smoothed) if tested.lr else None
    if tested.lr:
        title = f"{config.run.recipe}, {config.model.scale}, {config.optimizer.name}, batch {task.batch_size}"
        plots.draw_range_test(out, tested.lr, tested.loss, tested.smoothed, peak, f"{title}, {dataset.name}")
    if peak is None:
        raise ValueError(f"the loss does not fall between {rates[0]:g} and {rates[-1]:g}; choose another --lr-first")
    ended = f"the loss diverged at {tested.lr[-1]:.3g}" if tested.stopped else "the loss did not diverge"
    print(f"{len(tested.lr)} steps of {task.batch_size} images of {dataset.name}, learning rate {rates[0]:g} to "
          f"{tested.lr[-1]:.3g}, momentum {tested.momentum:g}: {ended}")  # fmt: skip
    print(f"smallest smoothed loss {min(tested.smoothed):.4f} at "
          f"{tested.lr[tested.smoothed.index(min(tested.smoothed))]:.3g}")  # fmt: skip
    print(out)
    print(f"suggested: --lr-peak {peak:.2g} (the recipe has {config.schedule.peak:g})")
    return 0


def split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of this command, and the words that are left. UsageError for a flag without a value."""
    own, rest, words = dict(OWN), [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in OWN:
            rest.append(word)
        elif text := value if equals else next(words, ""):
            own[flag] = text
        else:
            raise UsageError(f"{flag}: expected a value")
    return own, rest


def number(own: dict[str, str], flag: str, whole: bool = False) -> float:
    """The value of a flag as a number. UsageError for anything else."""
    try:
        return int(own[flag]) if whole else float(own[flag])
    except ValueError:
        raise UsageError(f"{flag} is {own[flag][:40]!r}; expected a {'whole ' if whole else ''}number") from None
