"""Where do the milliseconds of a training step go, and how far is each part from what the machine allows?

    python -m bench.step --scale full --batch 500 --variants bf16 bf16-compiled

The bench times the parts of a step with the device idle before and after each, the whole step without waits inside, and
the step in the training loop with its loader and with fixed blocks. Every step is one at 32 pixels that trains all of
the network. It prints the floor of each part (`bench.floors`)
and what the loader costs (goal: at most 3%).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from bench import harness
from bench.floors import PARTS, Floors
from bench.timed_step import FixedBlocks, time_parts, time_step
from fastcifar.config.config import Config
from fastcifar.config.settings import with_settings
from fastcifar.runs import intervals, record
from fastcifar.training.hardware import resolve
from fastcifar.training.loop import train
from fastcifar.training.task import Task, make_task

GOAL_LOADER = 0.03
DTYPES = ("fp32", "bf16", "fp16")
MODES = {"compiled": "default", "reduced": "reduce-overhead", "tuned": "max-autotune", "nchw": "off", "fused": "off"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    variants: tuple[str, ...] = ()
    """fp32, bf16 or fp16, each alone (eager) or with -compiled, -reduced (reduce-overhead), -tuned (max-autotune),
    -fused (eager, own kernels for norms) or -nchw (eager, channels first). Default: all useful on the device."""
    recipe: str = "swa30"
    """Recipe whose network and optimizer are timed."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """As in train_fast.py."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As in train_fast.py."""
    augment: Literal["auto", "dali", "torch"] = "auto"
    """As in train_fast.py."""
    batch: int = 500
    """Images per step."""
    steps: int = 100
    """Steps per repeat."""
    repeats: int = 5
    """Repeats of every variant, round robin."""
    quick: bool = False
    """6 steps of 100 images, 2 repeats: shows that the bench works."""
    out: Path = Path("bench-results/step")
    """Folder of runs.jsonl, table.md, table.json and steps.png."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.step")
    if options.quick:
        options = replace(options, batch=min(options.batch, 100), steps=min(options.steps, 6), repeats=2)
    try:
        options = replace(options, variants=options.variants or default_variants(options))
        configs = {name: configure(name, options) for name in options.variants}
        head = harness.describe_environment(next(iter(configs.values())))
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    head |= {"batch": options.batch, "steps": options.steps}
    measurements: list[dict[str, Any]] = []
    rows = harness.Rows(options.out / "runs.jsonl")
    with harness.interruptible() as interruption:
        measure(rows, configs, options, measurements)
    if measurements:
        write_results(measurements, head, options)
        print((options.out / "table.md").read_text())
    return interruption.code


def default_variants(options: Options) -> tuple[str, ...]:
    """On a card all dtypes and compile modes; on a CPU eager variants only, because compiling takes minutes there."""
    config, hardware = resolve(harness.parse(options.recipe, f"device={options.device}"))
    if hardware.device.type == "cuda":
        return (
            "bf16",
            "bf16-fused",
            "bf16-nchw",
            "bf16-compiled",
            "bf16-reduced",
            "bf16-tuned",
            "fp16-compiled",
            "fp32-compiled",
        )
    return ("fp32", "fp32-nchw", *(("bf16",) if config.machine.precision == "bf16" else ()))


def configure(name: str, options: Options) -> Config:
    """The config of a variant: one epoch of `options.steps` steps. ValueError for an unknown or impossible variant."""
    dtype, _, mode = name.partition("-")
    if dtype not in DTYPES or (mode and mode not in MODES):
        raise ValueError(f"variant {name!r}: known are {', '.join(DTYPES)}, alone or with -{', -'.join(MODES)}")
    config = with_settings(
        harness.parse(options.recipe, f"device={options.device} scale={options.scale}"),
        precision=dtype, compile=MODES[mode] if mode else "off", fused_kernels=mode == "fused",
        augment=options.augment, batch_size=options.batch,
        epochs=1.0, swa_start=2 / 3, swa_every=None, tta="none", val_split=0.0, low_res_px=(), low_res_until=(),
        cool_first_stage=(), train_stem="always", schedule="onecycle", lr_peak=0.01,
    )  # fmt: skip
    return resolve(config)[0]


def measure(
    rows: harness.Rows, configs: dict[str, Config], options: Options, measurements: list[dict[str, Any]]
) -> None:
    """Appends to `measurements`, one repeat of every variant after the other."""
    dataset = harness.random_dataset(options.batch * options.steps, n_test=max(100, options.batch // 5))
    tasks: dict[str, Task] = {}
    for repeat in range(options.repeats):
        for name, config in configs.items():

            def measure_variant(name: str = name, config: Config = config) -> dict[str, Any]:
                if name not in tasks:
                    tasks[name] = make_task(config, dataset, resolve(config)[1])
                return time_variant(tasks[name], nchw=name.endswith("-nchw"))

            state = harness.state_of(config, options.steps)
            row = rows.get_or_measure({"variant": name, "repeat": repeat}, measure_variant, state)
            measurements.append(row)
            print(f"{name} {repeat + 1}/{options.repeats}: {row['step_ms']:.2f} ms a step", flush=True)


def time_variant(task: Task, nchw: bool) -> dict[str, Any]:
    """One repeat of a variant: ms of its parts, of its step, and of the step in the training loop."""
    row: dict[str, Any] = {"parts_ms": time_parts(task, nchw), "step_ms": time_step(task, nchw)}
    if not nchw:  # the training loop is channels_last
        for key, executor in (("train_ms", task.executor), ("train_fixed_ms", FixedBlocks(task))):
            summary = train(replace(task, executor=executor)).summary
            row[key] = 1e3 * summary["time_s"]["train"] / task.num_steps
    floors = Floors(task.config, task.hardware, task.batch_size)
    return {**row, "floor_ms": floors.parts_ms(), "floor_why": floors.reasons(), "flop_per_s": floors.flop_per_s,
            "bytes_per_s": floors.bytes_per_s, "augment": task.config.machine.executor,
            "scale": task.config.model.scale}  # fmt: skip


def write_results(measurements: list[dict[str, Any]], head: dict[str, Any], options: Options) -> None:
    """Writes table.md, table.json and steps.png."""
    table, lines, panels = [], [], []
    for name in options.variants:
        rows = [row for row in measurements if row["variant"] == name]
        if not rows:
            continue
        floor = {part: min(row["floor_ms"][part] for row in rows) for part in (*PARTS, "step")}  # at the best rates
        values = {part: [row["parts_ms"][part] for row in rows] for part in PARTS}
        values["step"] = [row["step_ms"] for row in rows]
        cost = [row["train_ms"] / row["train_fixed_ms"] - 1 for row in rows if "train_ms" in row]
        in_loop = {k: intervals.interval([row[k] for row in rows if k in row]) for k in ("train_ms", "train_fixed_ms")}
        stats = {part: intervals.interval(numbers) for part, numbers in values.items()}
        table.append({"variant": name, "parts_ms": stats, "floor_ms": floor, **in_loop, "loader_cost":
                      intervals.interval(cost), "goal_loader_cost": GOAL_LOADER,
                      "flop_per_s": rows[-1]["flop_per_s"], "bytes_per_s": rows[-1]["bytes_per_s"]})  # fmt: skip
        for part, numbers in values.items():
            ratio = statistics.median(numbers) / floor[part]
            lines.append((name, part, harness.format_interval(stats[part]), f"{floor[part]:.3g}",
                          rows[-1]["floor_why"][part], f"{ratio:.1f}", len(numbers)))  # fmt: skip
        panels.append((f"{name}, ms", values, floor))
    augment, scale = measurements[-1]["augment"], measurements[-1]["scale"]
    record.write_json(options.out / "table.json", {**head, "augment": augment, "table": table})
    header = ("variant", "part", "ms: mean ± std [95%]", "floor ms", "floor is", "times its floor", "n")
    note = (f"{options.batch} images a step, {options.steps} steps a repeat, scale {scale}, {head['device']}, "
            f"augmentation by {augment}.\n\n")  # fmt: skip
    loop_lines = [(entry["variant"], harness.format_interval(entry["train_ms"]),
                   harness.format_interval(entry["train_fixed_ms"]), harness.format_percent(entry["loader_cost"]))
                  for entry in table if entry["train_ms"]["n"]]  # fmt: skip
    loop_header = ("variant", "step in the training loop, ms", "the same with fixed blocks, ms",
                   f"cost of the loader, % (goal: at most {GOAL_LOADER:.0%})")  # fmt: skip
    tables = harness.markdown_table(header, lines) + "\n" + harness.markdown_table(loop_header, loop_lines)
    (options.out / "table.md").write_text(note + tables)
    harness.draw_panels(options.out / "steps.png", f"parts of a step, {head['device']}", panels, log=True)


if __name__ == "__main__":
    sys.exit(main())
