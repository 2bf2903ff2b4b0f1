"""Where do the milliseconds of a training step go, and how far is each part from what the machine allows?

    python -m bench.step --scale full --batch 500 --variants bf16 bf16-compiled

Parts are timed with the device idle at both ends, so their sum is more than a step; the step itself runs without waits
inside, and as in training: recorded as a CUDA graph where that can be. Beside every part stands its floor: FLOP over
the measured rate of a matrix product in that dtype, or bytes over the measured rate of a copy, whichever is longer. The
last columns come from the real training loop, once with its loader and once with one batch over and over: their
difference is what the loader costs (goal: at most 3%).
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
from fastcifar import machine, record
from fastcifar.augment import EpochPlan, draw_plan
from fastcifar.config import Config
from fastcifar.data import Dataset
from fastcifar.job import Job, prepare, start
from fastcifar.optim import set_row
from fastcifar.progress import Silent
from fastcifar.step import make_step
from fastcifar.timing import Stopwatch
from fastcifar.train import train, warm_up

GOAL_LOADER = 0.03
NOT_COUNTED = 2  # steps before the clock starts
DTYPES = ("fp32", "bf16", "fp16")
MODES = {"compiled": "default", "reduced": "reduce-overhead", "tuned": "max-autotune", "nchw": "off"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    variants: tuple[str, ...] = ()
    """Of fp32, bf16, fp16, each alone (eager) or with -compiled, -reduced (reduce-overhead), -tuned (max-autotune) or
    -nchw (eager, channels first). Default: what makes sense on the device."""
    recipe: str = "swa30"
    """Whose network and optimizer."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """As in train_fast.py."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As in train_fast.py."""
    augment: Literal["auto", "dali", "torch"] = "auto"
    """As in train_fast.py."""
    batch: int = 500
    """Images per step."""
    steps: int = 100
    """Steps of a repeat."""
    repeats: int = 5
    """Repeats of every variant, round robin."""
    quick: bool = False
    """6 steps of 100 images, 2 repeats: shows that it works."""
    out: Path = Path("bench-results/step")
    """Where runs.jsonl, table.md, table.json and steps.png go."""


class FixedBatch:
    """In an executor's place: its first batch, over and over. What remains of a step is not the loader's."""

    def __init__(self, job: Job) -> None:
        plan = draw_plan(job.config, job.num_train, 0).steps(0, 1)
        self.x, self.y = next(iter(job.executor.epoch(plan)))

    def epoch(self, plan: EpochPlan, side_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(plan)):
            yield self.x, self.y


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.step")
    if options.quick:
        options = replace(options, batch=min(options.batch, 100), steps=min(options.steps, 6), repeats=2)
    try:
        options = replace(options, variants=options.variants or usual_variants(options))
        configs = {name: configure(name, options) for name in options.variants}
        head = {**harness.facts(next(iter(configs.values()))), "batch": options.batch, "steps": options.steps}
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    done: list[dict[str, Any]] = []
    rows = harness.Rows(options.out / "runs.jsonl", "")
    with harness.stoppable() as stop:
        measure(rows, configs, options, done)
    if done:
        write_results(done, head, options)
        print((options.out / "table.md").read_text())
    return stop.code


def usual_variants(options: Options) -> tuple[str, ...]:
    """On a card all dtypes and ways to compile; on a CPU eager ones, as compiling takes minutes there."""
    chosen = machine.choose(Config(device=options.device))
    if chosen.device.type == "cuda":
        return ("bf16", "bf16-nchw", "bf16-compiled", "bf16-reduced", "bf16-tuned", "fp16-compiled", "fp32-compiled")
    return ("fp32", "fp32-nchw", *(("bf16",) if chosen.precision == "bf16" else ()))


def configure(name: str, options: Options) -> Config:
    """The config of a variant: one epoch of the wanted number of steps. ValueError lists what is known."""
    dtype, _, mode = name.partition("-")
    if dtype not in DTYPES or (mode and mode not in MODES):
        raise ValueError(f"variant {name!r}: known are {', '.join(DTYPES)}, alone or with -{', -'.join(MODES)}")
    config = replace(
        harness.parse(options.recipe, f"precision={dtype} scale={options.scale} device={options.device}"),
        compile=MODES[mode] if mode else "off", augment=options.augment, batch_size=options.batch, epochs=1.0,  # type: ignore[arg-type]
        swa_start=2 / 3, swa_every=None, tta="none", checkpoint_every=0, val_split=0.0, low_res_until=0.0,
        schedule="onecycle", lr_peak=0.01,
    )  # fmt: skip
    machine.choose(config)
    return config


def measure(rows: harness.Rows, configs: dict[str, Config], options: Options, done: list[dict[str, Any]]) -> None:
    """Fills `done`, round by round."""
    dataset = harness.noise(options.batch * options.steps, n_test=max(100, options.batch // 5))
    jobs: dict[str, Job] = {}
    for repeat in range(options.repeats):
        for name, config in configs.items():

            def one(name: str = name, config: Config = config) -> dict[str, Any]:
                if name not in jobs:
                    jobs[name] = prepare(config, dataset, machine.choose(config))
                return time_variant(jobs[name], dataset, name)

            row = rows.once({"variant": name, "repeat": repeat}, one, harness.state_of(config, options.steps))
            done.append(row)
            print(f"{name} {repeat + 1}/{options.repeats}: {row['step_ms']:.2f} ms a step", flush=True)


def time_variant(job: Job, dataset: Dataset, name: str) -> dict[str, Any]:
    """A repeat of a variant: its parts, its step, and both steps of the real loop, in ms."""
    nchw = name.endswith("-nchw")
    parts = run_steps(job, nchw, apart=True)
    whole = run_steps(job, nchw=True, apart=False) if nchw else run_recorded_steps(job)
    row = {"parts_ms": {p: parts[p] for p in PARTS}, "step_ms": whole["step"]}
    if not nchw:  # the loop is channels_last
        for key, executor in (("train_ms", job.executor), ("train_fixed_ms", FixedBatch(job))):
            run = replace(job, executor=executor, watch=Stopwatch(job.machine.device), progress=Silent())
            row[key] = 1e3 * train(run).summary["time_s"]["train"] / job.num_steps
    chosen = job.machine
    floors = Floors(job.config, chosen, job.batch_size)
    return {**row, "floor_ms": floors.parts_ms(), "floor_why": floors.why(), "flop_per_s": floors.flop_per_s,
            "bytes_per_s": floors.bytes_per_s, "augment": chosen.augment, "scale": chosen.scale}  # fmt: skip


def run_steps(job: Job, nchw: bool, apart: bool) -> dict[str, float]:
    """ms per step of the parts (`apart`: each waited for) or of the step as a whole; the first steps are not counted.

    A part is the median over steps, the step their mean: without waits only the time of all of them is known.
    """
    config, chosen, state = job.config, job.machine, start(job)
    layout = torch.contiguous_format if nchw else torch.channels_last
    model = state.model.to(memory_format=layout)
    forward = warm_up(replace(job, progress=Silent()), model).train()
    plan = draw_plan(config, job.num_train, 0)
    rows, batches = state.schedule.table.tolist(), job.executor.epoch(plan)
    uncounted = min(NOT_COUNTED, len(plan) - 1)
    watch, seconds = Stopwatch(chosen.device), []

    def part(name: str) -> Any:
        return watch(name) if apart else nullcontext()

    def step(row: list[float]) -> None:
        with part("augment"):
            x, y = next(batches)
            x = x.contiguous(memory_format=layout)
        with part("forward"), torch.autocast(chosen.device.type, chosen.dtype, enabled=chosen.precision != "fp32"):
            loss = F.cross_entropy(forward(x), y, label_smoothing=config.label_smoothing)
        with part("backward"):
            state.scaler.scale(loss).backward()
        with part("optimizer"):
            set_row(state.optimizers, *row)
            for optimizer in state.optimizers:
                state.scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            state.scaler.update()
        if apart:
            with part("averaging"):
                state.mean.record(model)
            seconds.append(dict(watch.time_s))
            watch.time_s.clear()

    for row in rows[:uncounted]:
        step(row)
    counted = rows[uncounted : len(plan)]
    with nullcontext() if apart else watch("step"):
        for row in counted:
            step(row)
    for _ in batches:
        pass
    if apart:
        return {name: 1e3 * statistics.median(s[name] for s in seconds[uncounted:]) for name in PARTS}
    return {"step": 1e3 * watch.time_s["step"] / len(counted)}


def run_recorded_steps(job: Job) -> dict[str, float]:
    """ms per step of the training loop's own step, over one epoch; the first steps are not counted."""
    state = start(job)
    quiet = replace(job, progress=Silent())
    step = make_step(quiet, state, warm_up(quiet, state.model))
    state.model.train()
    step.begin_epoch()
    plan, watch = draw_plan(job.config, job.num_train, 0), Stopwatch(job.machine.device)
    uncounted, batches = min(NOT_COUNTED, len(plan) - 1), job.executor.epoch(plan)

    def run(count: int) -> None:
        for _ in range(count):
            step(*next(batches))
            state.step += 1

    run(uncounted)
    with watch("step"):
        run(len(plan) - uncounted)
    for _ in batches:
        pass
    return {"step": 1e3 * watch.time_s["step"] / (len(plan) - uncounted)}


def write_results(done: list[dict[str, Any]], head: dict[str, Any], options: Options) -> None:
    """table.md, table.json and steps.png."""
    table, lines, panels = [], [], []
    for name in options.variants:
        mine = [row for row in done if row["variant"] == name]
        if not mine:
            continue
        floor = {p: min(row["floor_ms"][p] for row in mine) for p in (*PARTS, "step")}  # at the best rates seen
        values = {p: [row["parts_ms"][p] for row in mine] for p in PARTS} | {"step": [row["step_ms"] for row in mine]}
        cost = [row["train_ms"] / row["train_fixed_ms"] - 1 for row in mine if "train_ms" in row]
        in_loop = {k: record.interval([row[k] for row in mine if k in row]) for k in ("train_ms", "train_fixed_ms")}
        stats = {p: record.interval(v) for p, v in values.items()}
        table.append({"variant": name, "parts_ms": stats, "floor_ms": floor, **in_loop, "loader_cost":
                      record.interval(cost), "goal_loader_cost": GOAL_LOADER,
                      "flop_per_s": mine[-1]["flop_per_s"], "bytes_per_s": mine[-1]["bytes_per_s"]})  # fmt: skip
        for p, numbers in values.items():
            middle = statistics.median(numbers)
            lines.append((name, p, harness.measured(stats[p]), f"{floor[p]:.3g}", mine[-1]["floor_why"][p],
                          f"{middle / floor[p]:.1f}", len(numbers)))  # fmt: skip
        panels.append((f"{name}, ms", values, floor))
    record.write_json(options.out / "table.json", {**head, "augment": done[-1]["augment"], "table": table})
    header = ("variant", "part", "ms: mean ± std [95%]", "floor ms", "floor is", "times its floor", "n")
    note = (f"{options.batch} images a step, {options.steps} steps a repeat, scale {done[-1]['scale']}, "
            f"{head['device']}, augmentation by {done[-1]['augment']}.\n\n")  # fmt: skip
    loop = [(e["variant"], harness.measured(e["train_ms"]), harness.measured(e["train_fixed_ms"]),
             harness.percent(e["loader_cost"])) for e in table if e["train_ms"]["n"]]  # fmt: skip
    heads = ("variant", "step in the training loop, ms", "the same with a fixed batch, ms",
             f"cost of the loader, % (goal: at most {GOAL_LOADER:.0%})")  # fmt: skip
    (options.out / "table.md").write_text(note + harness.markdown(header, lines) + "\n" + harness.markdown(heads, loop))
    harness.draw_panels(options.out / "steps.png", f"parts of a step, {head['device']}", panels, log=True)


if __name__ == "__main__":
    sys.exit(main())
