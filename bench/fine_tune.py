"""What is fine-tuning worth where images are few? Learns five classes of CIFAR-10, then the others from few.

    python -m bench.fine_tune --runs 3 --first-seed 100 --data PATH --scale small

Each seed trains a model on all images of the first five classes. Then it learns the last five classes from `--images`
training images in three ways, at equal images and epochs: from random weights, from those of the first model
(`--init`), and from those with all but the classifier frozen (`--freeze all-but-head`). The accuracy is that on all
test images of the last five classes. Rows go to runs.jsonl as they come, so that an interrupted bench can continue.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

import fastcifar
from bench import harness
from bench.runs import Job, train_all
from fastcifar.config.recipes import DEFAULT_RECIPE, find_recipe
from fastcifar.config.settings import with_settings
from fastcifar.data.dataset import Dataset, dataset_digest, take_subset
from fastcifar.data.load import load
from fastcifar.runs import intervals

# swa30 at a fifth of its batch: so that a few hundred images make enough steps
SMALL_BATCH: dict[str, Any] = {
    "batch_size": 100, "lr_peak": 0.054, "swa_lr": 0.0054, "bias_lr_scale": 25.0, "head_lr_scale": 78.0,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "from random weights": {},
    "--init": {},
    "--init --freeze all-but-head": {"freeze": "all-but-head"},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    images: tuple[int, ...] = (250, 1000)
    """Training images of the last five classes together."""
    runs: int = 3
    """Seeds: first_seed, first_seed + 1, ..."""
    first_seed: int = 100
    """Choose settings on seeds 0 to 9; report results of seeds from 100 on."""
    first_epochs: float = 15
    """Epochs on the first five classes."""
    epochs: float = 60
    """Epochs on the few images."""
    data: str = "auto"
    """As in train_fast.py."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """As in train_fast.py."""
    quick: bool = False
    """Two epochs on a few images: shows that the bench works."""
    out: Path = Path("bench-results/fine-tune")
    """Folder of runs.jsonl, table.md and the models of the first five classes."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.fine_tune")
    if options.quick:
        options = replace(options, images=(100,), runs=1, first_epochs=1, epochs=2)
    try:
        whole = load(options.data, subset=1_000 if options.quick else None, progress=True)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    with harness.interruptible() as interruption:
        rows.extend(train_all(options.out, jobs(of_classes(whole, range(5)), of_classes(whole, range(5, 10)), options)))
    write_table(rows, options)
    return interruption.code


def of_classes(whole: Dataset, labels: range) -> Dataset:
    """The images of some classes, which become 0, 1, ..."""
    train, test = (np.flatnonzero(np.isin(y, labels)) for y in (whole.y_train, whole.y_test))
    arrays = (whole.x_train[train], whole.y_train[train] - labels.start, whole.x_test[test],
              whole.y_test[test] - labels.start)  # fmt: skip
    classes = tuple(whole.classes[i] for i in labels)
    return replace(whole, classes=classes, x_train=arrays[0], y_train=arrays[1], x_test=arrays[2], y_test=arrays[3],
                   digest=dataset_digest(classes, arrays))  # fmt: skip


def jobs(first: Dataset, other: Dataset, options: Options) -> Iterator[Job]:
    """Seed by seed, each after the model of the first classes."""
    recipe = with_settings(find_recipe(DEFAULT_RECIPE), scale=options.scale)
    for seed in range(options.first_seed, options.first_seed + options.runs):
        config = with_settings(recipe, epochs=options.first_epochs, seed=seed)
        model = options.out / f"first-five-s{seed}-{harness.state_of(config, first.digest)}"
        if not (model / "summary.json").exists():
            begun = (model / "config.json").exists()
            fastcifar.train(config, data=first, **{"resume" if begun else "out": str(model)})  # type: ignore[arg-type]
        for images in options.images:
            few = replace(take_subset(other, images), x_test=other.x_test, y_test=other.y_test)
            for way, settings in WAYS.items():
                init: dict[str, Any] = {"init": str(model)} if "--init" in way else {}
                config = with_settings(
                    recipe, epochs=options.epochs, eval_every=1000, **SMALL_BATCH, **init, **settings
                )
                yield Job(key={"seed": seed, "images": images, "way": way}, config=config, dataset=few)


def write_table(rows: list[dict[str, Any]], options: Options) -> None:
    """Writes table.md: accuracy of each way, and its difference to random weights, paired by seed."""
    lines = []
    for images in sorted({row["images"] for row in rows}):
        by_way = {way: {row["seed"]: row["accuracy"] for row in rows if (row["images"], row["way"]) == (images, way)}
                  for way in WAYS}  # fmt: skip
        scratch = next(iter(by_way.values()))
        for way, of_seed in by_way.items():
            if not of_seed:
                continue
            gain = intervals.interval([of_seed[s] - scratch[s] for s in of_seed if s in scratch])
            lines.append((f"{images:,}", way, harness.format_percent(intervals.interval(list(of_seed.values()))),
                          harness.format_percent(gain) if of_seed is not scratch else "-", len(of_seed)))  # fmt: skip
    header = ("images", "weights start", "accuracy %", "more than random weights, points", "n")
    note = "Mean ± std [95% interval of the mean]; the difference is paired by seed.\n\n"
    (options.out / "table.md").write_text(note + harness.markdown_table(header, lines))
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
