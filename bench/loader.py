"""How many images per second does each executor deliver alone? A plain torch DataLoader is measured beside them.

    python -m bench.loader --batches 500 1000 2000 --repeats 10

A repeat is an epoch: its random draws, its batches, and the wait until the device has made the last one. The bench
measures executors and batch sizes in turn, so that a disturbance of the machine affects all of them. The pixels are
random: speed does not depend on them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bench import harness
from fastcifar.augment.dali import DaliExecutor, DaliUnavailable
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import draw_plan
from fastcifar.augment.torch_executor import Executor, TorchExecutor
from fastcifar.config import Config
from fastcifar.data.dataset import Dataset
from fastcifar.recipes import DEFAULT_RECIPE, RECIPES
from fastcifar.runs import intervals, record
from fastcifar.settings import with_settings
from fastcifar.training.hardware import choose_hardware
from fastcifar.training.stopwatch import repeats_s

Kind = Literal["torch", "dali", "dataloader"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    executors: tuple[Kind, ...] = ("torch", "dali", "dataloader")
    """Executors to measure."""
    batches: tuple[int, ...] = (500, 1000, 2000)
    """Images per batch."""
    images: int = 50_000
    """Images per epoch."""
    repeats: int = 10
    """Epochs to measure of each executor and batch size, after one that is not timed."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device that holds the images."""
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Precision of the batches."""
    crop_pad_px: int = 2
    """As in train_fast.py."""
    workers: int = 2
    """Processes of the plain DataLoader."""
    quick: bool = False
    """4,000 images, 3 repeats: shows that the bench works."""
    out: Path = Path("bench-results/loader")
    """Folder of runs.jsonl, table.md, table.json and rates.png."""


class PlainImages(TorchDataset):
    """Pads, crops, mirrors and normalises each image on its own, as most programs do."""

    def __init__(self, dataset: Dataset, pad_px: int) -> None:
        self.images, self.labels = torch.from_numpy(dataset.x_train), torch.from_numpy(dataset.y_train)
        self.pad_px = pad_px
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (dataset.mean, dataset.std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.images[i].permute(2, 0, 1)  # [3, 32, 32] uint8
        image = F.pad(image.float()[None], (self.pad_px,) * 4, "reflect")[0] / 255
        top, left = torch.randint(2 * self.pad_px + 1, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return (image - self.mean) / self.std, self.labels[i]


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.loader")
    if options.quick:
        options = replace(options, images=min(options.images, 4_000), repeats=min(options.repeats, 3))
    try:
        config = with_settings(
            RECIPES[DEFAULT_RECIPE], device=options.device, precision=options.precision,
            crop_pad_px=options.crop_pad_px, augment="torch",
        )  # fmt: skip
        head = {**harness.describe_environment(config), "images": options.images}
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows = harness.Rows(options.out / "runs.jsonl", harness.state_of(config, options.images, options.workers))
    measurements: list[dict[str, Any]] = []
    with harness.interruptible() as interruption:
        measure(rows, config, options, measurements)
    if any("images_per_s" in row for row in measurements):
        write_results(measurements, head, options)
        print((options.out / "table.md").read_text())
    return interruption.code


def measure(rows: harness.Rows, config: Config, options: Options, measurements: list[dict[str, Any]]) -> None:
    """Appends to `measurements`, one repeat of every executor and batch size after the other."""
    dataset, device = harness.random_dataset(options.images), choose_hardware(config).device
    epochs: dict[tuple[str, int], Callable[[], Any]] = {}
    for repeat in range(options.repeats):
        for kind in options.executors:
            for batch in options.batches:

                def measure_epoch(kind: str = kind, batch: int = batch) -> dict[str, Any]:
                    is_first = (kind, batch) not in epochs
                    if is_first:
                        epochs[kind, batch] = make_epoch(kind, batch, dataset, config, options)
                    (epoch_s,) = repeats_s(epochs[kind, batch], device, repeats=1, warm_ups=int(is_first))
                    return {"epoch_s": epoch_s, "images_per_s": options.images // batch * batch / epoch_s}

                try:
                    key = {"executor": kind, "batch": batch, "repeat": repeat}
                    measurements.append(rows.get_or_measure(key, measure_epoch))
                except DaliUnavailable as e:
                    if not any(row["executor"] == kind for row in measurements):
                        measurements.append({"executor": kind, "skipped": str(e)})
                        print(f"{kind} is left out: {e}", flush=True)
                    break
        print(f"repeat {repeat + 1} of {options.repeats}", flush=True)


def make_epoch(kind: str, batch: int, dataset: Dataset, config: Config, options: Options) -> Callable[[], Any]:
    """Returns a function that makes all batches of the next epoch. DaliUnavailable where DALI does not run."""
    hardware, pad_px = choose_hardware(config), config.augment.crop_pad_px
    if kind == "dataloader":
        loader = DataLoader(
            PlainImages(dataset, pad_px), batch, shuffle=True, drop_last=True, num_workers=options.workers,
            persistent_workers=options.workers > 0, pin_memory=hardware.device.type == "cuda",
        )  # fmt: skip

        def load_epoch() -> None:
            for x, y in loader:
                x.to(hardware.device, hardware.dtype, non_blocking=True)
                y.to(hardware.device, non_blocking=True)

        return load_epoch
    images = to_device(
        dataset.x_train, dataset.y_train, dataset.mean, dataset.std, pad_px, hardware.device, hardware.dtype
    )
    executor: Executor = DaliExecutor(images) if kind == "dali" else TorchExecutor(images)
    config = with_settings(config, batch_size=batch)
    numbers = iter(range(10**9))

    def execute_epoch() -> None:
        for _ in executor.epoch(draw_plan(config, len(dataset.y_train), next(numbers))):
            pass

    return execute_epoch


def write_results(measurements: list[dict[str, Any]], head: dict[str, Any], options: Options) -> None:
    """Writes table.md, table.json and rates.png."""
    table, lines, values = [], [], {}
    for kind in options.executors:
        for batch in options.batches:
            rates = [row["images_per_s"] for row in measurements
                     if row["executor"] == kind and row.get("batch") == batch]  # fmt: skip
            if rates:
                stats, median = intervals.interval(rates), statistics.median(rates)
                table.append({"executor": kind, "batch": batch, "images_per_s": {
                    **stats, "best": max(rates), "median": median}})  # fmt: skip
                lines.append((kind, batch, f"{max(rates):,.0f}", f"{median:,.0f}", harness.format_interval(stats),
                              f"{1e6 / median:.2f}", len(rates)))  # fmt: skip
                values[f"{kind} {batch}"] = rates
    skipped = {row["executor"]: row["skipped"] for row in measurements if "skipped" in row}
    record.write_json(options.out / "table.json", {**head, "skipped": skipped, "table": table})
    header = ("executor", "batch", "best images/s", "median", "mean ± std [95%]", "µs/image at the median", "n")
    note = (f"{options.images:,} images an epoch, crop of {options.crop_pad_px} px and mirror, {head['device']}, "
            f"{head['precision']}; plain DataLoader: {options.workers} worker processes.\n")  # fmt: skip
    note += "".join(f"{kind} is left out: {reason}\n" for kind, reason in skipped.items())
    (options.out / "table.md").write_text(note + "\n" + harness.markdown_table(header, lines))
    harness.draw_panels(options.out / "rates.png", f"loader alone, {head['device']}", [("images/s", values, {})])


if __name__ == "__main__":
    sys.exit(main())
