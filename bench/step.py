"""Where do the milliseconds of a training step go, and how far is each part from what the machine allows?

    python -m bench.step --scale full --batch 500 --variants bf16 bf16-compiled

The bench times the parts of a step with the device idle before and after each, the whole step without waits inside, and
the step in the training loop with its loader and with a fixed batch. It prints the floor of each part (`bench.floors`)
and what the loader costs (goal: at most 3%).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from bench import harness
from bench.floors import PARTS, Floors
from fastcifar.augment.plan import EpochPlan
from fastcifar.config import Config
from fastcifar.optim.optimizers import set_row
from fastcifar.runs import intervals, record
from fastcifar.settings import with_settings
from fastcifar.training.hardware import choose_hardware
from fastcifar.training.loop import train
from fastcifar.training.state import State
from fastcifar.training.step import Forward, Step, autocast, make_step
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task, make_task, start
from fastcifar.training.warm_up import warm_up

GOAL_LOADER = 0.03
UNTIMED_STEPS = 2
"""Number of first steps of an epoch that are not timed."""
DTYPES = ("fp32", "bf16", "fp16")
MODES = {"compiled": "default", "reduced": "reduce-overhead", "tuned": "max-autotune", "nchw": "off"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    variants: tuple[str, ...] = ()
    """fp32, bf16 or fp16, each alone (eager) or with -compiled, -reduced (reduce-overhead), -tuned (max-autotune) or
    -nchw (eager, channels first). Default: all that are useful on the device."""
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


class FixedBatch:
    """An executor that yields its first batch again and again, so that loading costs nothing."""

    def __init__(self, task: Task) -> None:
        self.x, self.y = next(iter(task.executor.epoch(task.plan(0).steps(0, 1))))

    def epoch(self, plan: EpochPlan, size_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(plan)):
            yield self.x, self.y


class TimedStep(Step):
    """The step of the training loop, with the device idle before and after each part."""

    def __init__(self, task: Task, state: State, forward: Forward, stopwatch: Stopwatch) -> None:
        super().__init__(task, state, forward)
        self.part = stopwatch

    def __call__(self, x: Tensor, y: Tensor) -> None:
        with self.part("optimizer"):
            set_row(self.state.optimizers, *self.rows[self.state.step])
        self.update(x, y)

    def update(self, x: Tensor, y: Tensor) -> None:
        state = self.state
        with self.part("forward"):
            with autocast(self.task.hardware):
                logits = self.forward(x)
            loss = F.cross_entropy(logits, y, label_smoothing=self.task.config.optimizer.label_smoothing)
            state.loss_sum += loss.detach()
        with self.part("backward"):
            state.scaler.scale(loss).backward()
        with self.part("optimizer"):
            for optimizer in state.optimizers:
                state.scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            state.scaler.update()


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
    hardware = choose_hardware(harness.parse(options.recipe, f"device={options.device}"))
    if hardware.device.type == "cuda":
        return ("bf16", "bf16-nchw", "bf16-compiled", "bf16-reduced", "bf16-tuned", "fp16-compiled", "fp32-compiled")
    return ("fp32", "fp32-nchw", *(("bf16",) if hardware.precision == "bf16" else ()))


def configure(name: str, options: Options) -> Config:
    """The config of a variant: one epoch of `options.steps` steps. ValueError for an unknown or impossible variant."""
    dtype, _, mode = name.partition("-")
    if dtype not in DTYPES or (mode and mode not in MODES):
        raise ValueError(f"variant {name!r}: known are {', '.join(DTYPES)}, alone or with -{', -'.join(MODES)}")
    config = with_settings(
        harness.parse(options.recipe, f"device={options.device} scale={options.scale}"),
        precision=dtype, compile=MODES[mode] if mode else "off", augment=options.augment, batch_size=options.batch,
        epochs=1.0, swa_start=2 / 3, swa_every=None, tta="none", val_split=0.0, low_res_px=32, low_res_until=0.0,
        schedule="onecycle", lr_peak=0.01,
    )  # fmt: skip
    choose_hardware(config)
    return config


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
                    tasks[name] = make_task(config, dataset, choose_hardware(config))
                return time_variant(tasks[name], nchw=name.endswith("-nchw"))

            state = harness.state_of(config, options.steps)
            row = rows.get_or_measure({"variant": name, "repeat": repeat}, measure_variant, state)
            measurements.append(row)
            print(f"{name} {repeat + 1}/{options.repeats}: {row['step_ms']:.2f} ms a step", flush=True)


def time_variant(task: Task, nchw: bool) -> dict[str, Any]:
    """One repeat of a variant: ms of its parts, of its step, and of the step in the training loop."""
    row: dict[str, Any] = {"parts_ms": time_parts(task, nchw), "step_ms": time_step(task, nchw)}
    if not nchw:  # the training loop is channels_last
        for key, executor in (("train_ms", task.executor), ("train_fixed_ms", FixedBatch(task))):
            summary = train(replace(task, executor=executor)).summary
            row[key] = 1e3 * summary["time_s"]["train"] / task.num_steps
    floors = Floors(task.config, task.hardware, task.batch_size)
    return {**row, "floor_ms": floors.parts_ms(), "floor_why": floors.reasons(), "flop_per_s": floors.flop_per_s,
            "bytes_per_s": floors.bytes_per_s, "augment": task.hardware.executor,
            "scale": task.hardware.scale}  # fmt: skip


def time_parts(task: Task, nchw: bool) -> dict[str, float]:
    """Median ms of each part of a step."""
    stopwatch, steps_s = Stopwatch(task.hardware.device), []
    steps = train_epoch(task, nchw, stopwatch)
    next(steps)
    for _ in steps:
        steps_s.append(dict(stopwatch.time_s))
        stopwatch.time_s.clear()
    timed = steps_s[count_untimed(task) :]
    return {part: 1e3 * statistics.median(step_s[part] for step_s in timed) for part in PARTS}


def time_step(task: Task, nchw: bool) -> float:
    """Mean ms of a step. The device does not wait between steps, so only the time of all of them is known."""
    stopwatch, steps, untimed = Stopwatch(task.hardware.device), train_epoch(task, nchw), count_untimed(task)
    for _ in range(1 + untimed):
        next(steps)
    with stopwatch("step"):
        for _ in range(task.steps_per_epoch - untimed):
            next(steps)
    for _ in steps:  # lets the executor end its epoch
        pass
    return 1e3 * stopwatch.time_s["step"] / (task.steps_per_epoch - untimed)


def count_untimed(task: Task) -> int:
    """Number of first steps that are not timed; at least one step is."""
    return min(UNTIMED_STEPS, task.steps_per_epoch - 1)


def train_epoch(task: Task, nchw: bool, stopwatch: Stopwatch | None = None) -> Iterator[None]:
    """Trains the first epoch; yields once before the first step, when everything is set up, and after each step.

    With a stopwatch it times the parts of each step and adds the weights to the average after it. Without one it takes
    the step of the training loop, recorded as a CUDA graph where possible; with `nchw` a plain one, because the buffers
    of a recorded step are channels_last.
    """
    state = start(task, Stopwatch(task.hardware.device))
    layout = torch.contiguous_format if nchw else torch.channels_last
    model = state.model.to(memory_format=layout)
    task = warm_up(task, model)
    if stopwatch:
        step: Step = TimedStep(task, state, model, stopwatch)
    else:
        step = Step(task, state, model) if nchw else make_step(task, state, model)
    model.train()
    step.begin_epoch()
    batches = task.executor.epoch(task.plan(0))
    yield
    for _ in range(task.steps_per_epoch):
        with stopwatch("augment") if stopwatch else nullcontext():
            x, y = next(batches)
            x = x.contiguous(memory_format=layout)
        step(x, y)
        state.step += 1
        if stopwatch:
            with stopwatch("averaging"):
                state.average.record(model)
        yield
    for _ in batches:
        pass


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
    loop_header = ("variant", "step in the training loop, ms", "the same with a fixed batch, ms",
                   f"cost of the loader, % (goal: at most {GOAL_LOADER:.0%})")  # fmt: skip
    tables = harness.markdown_table(header, lines) + "\n" + harness.markdown_table(loop_header, loop_lines)
    (options.out / "table.md").write_text(note + tables)
    harness.draw_panels(options.out / "steps.png", f"parts of a step, {head['device']}", panels, log=True)


if __name__ == "__main__":
    sys.exit(main())
