"""How many images a second does each executor make, alone? Beside them, for scale, a plain torch DataLoader.

    python -m bench.loader --batches 500 1000 2000 --repeats 10

A repeat is an epoch: its draws, its batches, and the wait until the device has made the last one. Repeats go round
robin over executors and batch sizes, so that a disturbance of the machine meets all of them. Pixels are random; speed
does not depend on them.
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
from fastcifar import machine, record
from fastcifar.augment import TorchExecutor, draw_plan, to_device
from fastcifar.config import Config
from fastcifar.dali import DaliExecutor, DaliUnavailable
from fastcifar.data import Dataset
from fastcifar.timing import repeats_s

Kind = Literal["torch", "dali", "dataloader"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    executors: tuple[Kind, ...] = ("torch", "dali", "dataloader")
    """Who makes the batches."""
    batches: tuple[int, ...] = (500, 1000, 2000)
    """Images per batch."""
    images: int = 50_000
    """Images of an epoch."""
    repeats: int = 10
    """Epochs measured of each; the first one, before them, is not counted."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the images lie."""
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Of the batches."""
    crop_pad_px: int = 2
    """As in train_fast.py."""
    workers: int = 2
    """Processes of the plain DataLoader."""
    quick: bool = False
    """4,000 images, 3 repeats: shows that it works."""
    out: Path = Path("bench-results/loader")
    """Where runs.jsonl, table.md, table.json and rates.png go."""


class PlainImages(TorchDataset):
    """Images one by one, each padded, cropped, mirrored and normalised on its own: the usual recipe."""

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
        config = Config(
            device=options.device, precision=options.precision, crop_pad_px=options.crop_pad_px, augment="torch"
        )
        head = {**harness.facts(config), "images": options.images}
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows = harness.Rows(options.out / "runs.jsonl", harness.state_of(config, options.images, options.workers))
    done: list[dict[str, Any]] = []
    with harness.stoppable() as stop:
        measure(rows, config, options, done)
    if any("images_per_s" in row for row in done):
        write_results(done, head, options)
        print((options.out / "table.md").read_text())
    return stop.code


def measure(rows: harness.Rows, config: Config, options: Options, done: list[dict[str, Any]]) -> None:
    """Fills `done`, round by round."""
    dataset = harness.noise(options.images)
    makers: dict[tuple[str, int], Callable[[], Any]] = {}
    for repeat in range(options.repeats):
        for kind in options.executors:
            for batch in options.batches:
                key = {"executor": kind, "batch": batch, "repeat": repeat}

                def one(kind: str = kind, batch: int = batch) -> dict[str, Any]:
                    fresh = (kind, batch) not in makers
                    if fresh:
                        makers[kind, batch] = make_epoch(kind, batch, dataset, config, options)
                    device = machine.choose(config).device
                    (epoch_s,) = repeats_s(makers[kind, batch], device, repeats=1, warm_ups=int(fresh))
                    return {"epoch_s": epoch_s, "images_per_s": options.images // batch * batch / epoch_s}

                try:
                    done.append(rows.once(key, one))
                except DaliUnavailable as e:
                    if not any(row["executor"] == kind for row in done):
                        done.append({"executor": kind, "skipped": str(e)})
                        print(f"{kind} is left out: {e}", flush=True)
                    break
        print(f"round {repeat + 1} of {options.repeats}", flush=True)


def make_epoch(kind: str, batch: int, dataset: Dataset, config: Config, options: Options) -> Callable[[], Any]:
    """A call that makes all batches of an epoch, each time of the next one. DaliUnavailable where DALI does not run."""
    chosen, epoch = machine.choose(config), iter(range(10**9))
    if kind == "dataloader":
        loader = DataLoader(
            PlainImages(dataset, config.crop_pad_px), batch, shuffle=True, drop_last=True, num_workers=options.workers,
            persistent_workers=options.workers > 0, pin_memory=chosen.device.type == "cuda",
        )  # fmt: skip

        def plain() -> None:
            for x, y in loader:
                x.to(chosen.device, chosen.dtype, non_blocking=True)
                y.to(chosen.device, non_blocking=True)

        return plain
    data = to_device(
        dataset.x_train, dataset.y_train, dataset.mean, dataset.std, config.crop_pad_px, chosen.device, chosen.dtype
    )
    executor = DaliExecutor(data) if kind == "dali" else TorchExecutor(data)

    def planned() -> None:
        plan = draw_plan(replace(config, batch_size=batch), len(dataset.y_train), next(epoch))
        for _ in executor.epoch(plan):
            pass

    return planned


def write_results(done: list[dict[str, Any]], head: dict[str, Any], options: Options) -> None:
    """table.md, table.json and rates.png."""
    table, lines = [], []
    for kind in options.executors:
        for batch in options.batches:
            mine = [r["images_per_s"] for r in done if r["executor"] == kind and r.get("batch") == batch]
            if mine:
                stats, middle = record.interval(mine), statistics.median(mine)
                table.append({"executor": kind, "batch": batch, "images_per_s": {
                    **stats, "best": max(mine), "median": middle}})  # fmt: skip
                lines.append((kind, batch, f"{max(mine):,.0f}", f"{middle:,.0f}", harness.measured(stats),
                              f"{1e6 / middle:.2f}", len(mine)))  # fmt: skip
    skipped = {r["executor"]: r["skipped"] for r in done if "skipped" in r}
    record.write_json(options.out / "table.json", {**head, "skipped": skipped, "table": table})
    header = ("executor", "batch", "best images/s", "median", "mean ± std [95%]", "µs/image at the median", "n")
    note = (f"{options.images:,} images an epoch, crop of {options.crop_pad_px} px and mirror, {head['device']}, "
            f"{head['precision']}; plain DataLoader: {options.workers} worker processes.\n")  # fmt: skip
    note += "".join(f"{kind} left out: {why}\n" for kind, why in skipped.items())
    (options.out / "table.md").write_text(note + "\n" + harness.markdown(header, lines))
    values = {f"{e['executor']} {e['batch']}": [r["images_per_s"] for r in done if r["executor"] == e["executor"]
              and r.get("batch") == e["batch"]] for e in table}  # fmt: skip
    harness.draw_panels(options.out / "rates.png", f"loader alone, {head['device']}", [("images/s", values, {})])


if __name__ == "__main__":
    sys.exit(main())
