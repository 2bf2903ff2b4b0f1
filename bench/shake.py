"""What do Shake-Shake and ShakeDrop give? Trains each beside its plain twin: the same without the random factors.

    python -m bench.shake --epochs 10 --runs 1 --first-seed 100 --data PATH --scale small

In the plain twin every random factor has its expectation: both branches of Shake-Shake count half, and each block of
ShakeDrop is an ordinary residual block. Weights start equal. Rows go to runs.jsonl as they come, so that an interrupted
bench can continue.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import tyro
from torch import Tensor, nn

from bench import harness
from bench.runs import Job, train, train_all
from fastcifar.config.config import Config
from fastcifar.config.recipes import find_recipe
from fastcifar.config.settings import with_settings
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load_of
from fastcifar.models.networks import make_model
from fastcifar.models.shake import ShakeDrop, ShakeShake
from fastcifar.runs import intervals


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    networks: tuple[Literal["shakeshake26", "shakedrop"], ...] = ("shakeshake26", "shakedrop")
    """Networks to train."""
    recipe: str = "cosine50"
    """Recipe of all runs."""
    epochs: float = 10
    """Epochs of all runs."""
    runs: int = 1
    """Seeds: first_seed, first_seed + 1, ..."""
    first_seed: int = 100
    """Choose settings on seeds 0 to 9; report results of seeds from 100 on."""
    data: str = "auto"
    """As in train_fast.py."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """As in train_fast.py."""
    subset: int | None = None
    """As in train_fast.py."""
    quick: bool = False
    """An epoch on 250 images: shows that the bench works."""
    out: Path = Path("bench-results/shake")
    """Folder of runs.jsonl and table.md."""


class Expectation(nn.Module):
    """Takes the place of the random numbers [Q, B]: 1/2 each."""

    share: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("share", torch.tensor(0.5), persistent=False)

    def forward(self, batch: int) -> Tensor:
        return self.share.expand(self.count, batch)


def plain(model: nn.Module) -> nn.Module:
    """The plain twin of a Shake-Shake or ShakeDrop network on the CPU, made of the network itself."""
    assert isinstance(model, (ShakeShake, ShakeDrop))
    if isinstance(model, ShakeDrop):
        for block in model.blocks:
            block.keep = 1.0  # type: ignore[assignment]  # in training and in evaluation: an ordinary residual block
    model.noise = Expectation(model.noise.count)  # type: ignore[assignment]
    return model


@contextmanager
def plain_networks() -> Iterator[None]:
    """Runs that start inside train plain twins."""
    with mock.patch("fastcifar.training.task.make_model", lambda *a: plain(make_model(*a))):
        yield


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.shake")
    if options.quick:
        options = replace(options, epochs=1, subset=250)
    try:
        config = with_settings(find_recipe(options.recipe), data=options.data, scale=options.scale,
                               subset=options.subset, epochs=options.epochs)  # fmt: skip
        dataset = load_of(config, progress=True)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    with harness.interruptible() as interruption:
        rows.extend(train_all(options.out, jobs(config, dataset, options)))
    write_table(rows, options)
    return interruption.code


def jobs(config: Config, dataset: Dataset, options: Options) -> Iterator[Job]:
    """Each network and its plain twin, seed by seed."""
    for seed in range(options.first_seed, options.first_seed + options.runs):
        for network in options.networks:
            for is_plain in (False, True):
                yield Job(key={"network": network, "plain": is_plain, "seed": seed}, dataset=dataset,
                          config=with_settings(config, network=network),
                          train=train_plain if is_plain else train)  # fmt: skip


def train_plain(config: Config, dataset: Dataset) -> dict[str, Any]:
    with plain_networks():
        return train(config, dataset)


def write_table(rows: list[dict[str, Any]], options: Options) -> None:
    """Writes table.md: accuracy, training loss and seconds of each network and its plain twin."""
    lines = []
    for network in options.networks:
        for is_plain in (False, True):
            those = [row for row in rows if (row["network"], row["plain"]) == (network, is_plain)]
            if those:
                seconds = sum(row["time_s"]["train"] for row in those) / len(those)
                loss = sum(row["loss_last"] for row in those) / len(those)
                form = "plain twin" if is_plain else "random factors"
                lines.append((network, form, f"{those[0]['epochs']:g}",
                              harness.format_percent(intervals.interval([row["accuracy"] for row in those])),
                              f"{loss:.3f}", f"{those[0]['train_pflop']:.3f}", f"{seconds:.0f}",
                              len(those)))  # fmt: skip
    header = ("network", "form", "epochs", "accuracy %", "training loss", "PFLOP", "train s", "n")
    (options.out / "table.md").write_text(harness.markdown_table(header, lines))
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
