"""How many images per second does each executor deliver alone? A plain torch DataLoader is measured beside them, with a
transform in a few tensor operations ("dataloader") and with torchvision's ("torchvision").

    python -m bench.loader --batches 500 1000 2000 --repeats 10

A repeat is an epoch: its random draws, its blocks and batches, and the wait until the device has made the last one. The
bench measures executors and batch sizes in turn, so that a disturbance of the machine affects all of them. The pixels
are random: speed does not depend on them. What a block costs the host, without the arithmetic:

    python -m bench.loader --executors dali --batches 500 --block-steps 1 100 --image-px 1
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
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
from fastcifar.augment.executor import Executor, TorchExecutor
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import draw_plan
from fastcifar.config.config import Config
from fastcifar.config.recipes import DEFAULT_RECIPE, RECIPES
from fastcifar.config.settings import with_settings
from fastcifar.data.dataset import Dataset
from fastcifar.runs import intervals, record
from fastcifar.training.hardware import resolve
from fastcifar.training.rates import repeats_s
from fastcifar.training.stopwatch import Stopwatch

Kind = Literal["torch", "dali", "dataloader", "torchvision"]
Case = tuple[str, int, int]
"""Executor, batch size, steps per block."""
Epoch = Callable[[Stopwatch], None]
PARTS = ("plan", "block", "rows")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    executors: tuple[Kind, ...] = ("torch", "dali", "dataloader", "torchvision")
    """Executors to measure."""
    batches: tuple[int, ...] = (500, 1000, 2000)
    """Images per batch."""
    block_steps: tuple[int, ...] = (0,)
    """Steps per block. 0: what the executor takes by itself, on a card an epoch if memory allows, on a CPU one step."""
    images: int = 50_000
    """Images per epoch."""
    image_px: int = 32
    """Height and width of the images; with 1 the arithmetic costs next to nothing. Only the executors take it."""
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


class TorchvisionImages(PlainImages):
    """The same by torchvision.transforms.v2, as its documentation trains on CIFAR-10."""

    def __init__(self, dataset: Dataset, pad_px: int) -> None:
        super().__init__(dataset, pad_px)
        from torchvision.transforms import v2

        self.transform = v2.Compose([
            v2.RandomCrop(32, padding=pad_px, padding_mode="reflect"), v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(dataset.mean, dataset.std),
        ])  # fmt: skip

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[i].permute(2, 0, 1)), self.labels[i]


DATALOADERS = {"dataloader": PlainImages, "torchvision": TorchvisionImages}


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
    rows = harness.Rows(
        options.out / "runs.jsonl", harness.state_of(config, options.images, options.image_px, options.workers)
    )
    measurements: list[dict[str, Any]] = []
    with harness.interruptible() as interruption:
        measure(rows, config, options, measurements)
    if any("images_per_s" in row for row in measurements):
        write_results(measurements, head, options)
        print((options.out / "table.md").read_text())
    return interruption.code


def measure(rows: harness.Rows, config: Config, options: Options, measurements: list[dict[str, Any]]) -> None:
    """Appends to `measurements`, one repeat of every executor and batch size after the other."""
    dataset, device = harness.random_dataset(options.images), resolve(config)[1].device
    epochs: dict[Case, Epoch] = {}
    for repeat in range(options.repeats):
        for kind in options.executors:
            for batch, steps in cases(kind, options):
                case = kind, batch, steps

                def measure_epoch(case: Case = case) -> dict[str, Any]:
                    is_first = case not in epochs
                    if is_first:
                        epochs[case] = make_epoch(*case, dataset, config, options)
                    clock = Stopwatch()  # of the host: does not wait for a card
                    (epoch_s,) = repeats_s(lambda: epochs[case](clock), device, repeats=1, warm_ups=int(is_first))
                    num_steps = options.images // case[1]
                    host_us = {part: 1e6 * s / (1 + is_first) / num_steps for part, s in clock.time_s.items()}
                    return {"epoch_s": epoch_s, "images_per_s": num_steps * case[1] / epoch_s, "host_us": host_us}

                try:
                    key = {"executor": kind, "batch": batch, "block_steps": steps, "repeat": repeat}
                    measurements.append(rows.get_or_measure(key, measure_epoch))
                except DaliUnavailable as e:
                    if not any(row["executor"] == kind for row in measurements):
                        measurements.append({"executor": kind, "skipped": str(e)})
                        print(f"{kind} is left out: {e}", flush=True)
                    break
        print(f"repeat {repeat + 1} of {options.repeats}", flush=True)


def cases(kind: str, options: Options) -> list[tuple[int, int]]:
    """Batch sizes and steps per block of an executor; the plain DataLoader knows no blocks."""
    return list(product(options.batches, options.block_steps if kind not in DATALOADERS else (0,)))


def make_epoch(kind: str, batch: int, steps: int, dataset: Dataset, config: Config, options: Options) -> Epoch:
    """Returns a function that makes all batches of the next epoch. DaliUnavailable where DALI does not run.

    Its clock measures three parts of it: "plan" (the random draws), "block" and "rows" (taking a batch of a block).
    """
    hardware, pad_px = resolve(config)[1], config.augment.crop_pad_px
    if kind in DATALOADERS:
        loader = DataLoader(
            DATALOADERS[kind](dataset, pad_px), batch, shuffle=True, drop_last=True, num_workers=options.workers,
            persistent_workers=options.workers > 0, pin_memory=hardware.device.type == "cuda",
        )  # fmt: skip

        def load_epoch(clock: Stopwatch) -> None:
            for x, y in loader:
                x.to(hardware.device, hardware.dtype, non_blocking=True)
                y.to(hardware.device, non_blocking=True)

        return load_epoch
    images = to_device(
        dataset.x_train, dataset.y_train, dataset.mean, dataset.std, pad_px, hardware.device, hardware.dtype
    )
    size = options.image_px + 2 * pad_px
    images = replace(images, padded=images.padded[:, :size, :size].contiguous())
    executor: Executor = (DaliExecutor if kind == "dali" else TorchExecutor)(images, 0, steps * batch or None)
    config = with_settings(config, batch_size=batch)
    numbers = iter(range(10**9))

    def execute_epoch(clock: Stopwatch) -> None:
        with clock("plan"):
            plan = draw_plan(config, len(dataset.y_train), next(numbers), dataset.y_train)
        blocks, num_steps = executor.blocks([(plan, options.image_px)]), 0
        while num_steps < len(plan):
            with clock("block"):
                block = next(blocks)
            with clock("rows"):
                for step in range(len(block)):
                    block.batch(step)
            num_steps += len(block)

    return execute_epoch


def write_results(measurements: list[dict[str, Any]], head: dict[str, Any], options: Options) -> None:
    """Writes table.md, table.json and rates.png."""
    table, lines, values = [], [], {}
    for kind in options.executors:
        for batch, steps in cases(kind, options):
            rows = [row for row in measurements if (row["executor"], row.get("batch"), row.get("block_steps"))
                    == (kind, batch, steps)]  # fmt: skip
            if not rows:
                continue
            rates = [row["images_per_s"] for row in rows]
            stats, median = intervals.interval(rates), statistics.median(rates)
            host_us = {part: statistics.median(row["host_us"][part] for row in rows) for part in rows[0]["host_us"]}
            table.append({"executor": kind, "batch": batch, "block_steps": steps, "host_us": host_us,
                          "images_per_s": {**stats, "best": max(rates), "median": median}})  # fmt: skip
            lines.append((kind, batch, steps or "default", f"{max(rates):,.0f}", f"{median:,.0f}",
                          harness.format_interval(stats), f"{1e6 / median:.2f}",
                          ", ".join(f"{host_us[part]:.1f}" for part in PARTS) if host_us else "-",
                          len(rates)))  # fmt: skip
            values[f"{kind} {batch}" + f" x {steps}" * bool(steps)] = rates
    skipped = {row["executor"]: row["skipped"] for row in measurements if "skipped" in row}
    record.write_json(options.out / "table.json", {**head, "skipped": skipped, "table": table})
    header = ("executor", "batch", "steps a block", "best images/s", "median", "mean ± std [95%]",
              "µs/image at the median", f"host, µs a step: {', '.join(PARTS)}", "n")  # fmt: skip
    note = (
        f"{options.images:,} images of {options.image_px} px an epoch, crop of {options.crop_pad_px} px and "
        f"mirror, {head['device']}, {head['precision']}; plain DataLoader: {options.workers} worker processes.\n"
    )
    note += "".join(f"{kind} is left out: {reason}\n" for kind, reason in skipped.items())
    (options.out / "table.md").write_text(note + "\n" + harness.markdown_table(header, lines))
    harness.draw_panels(options.out / "rates.png", f"loader alone, {head['device']}", [("images/s", values, {})])


if __name__ == "__main__":
    sys.exit(main())
