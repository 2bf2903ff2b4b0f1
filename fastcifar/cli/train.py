"""What `train_fast.py` and `fastcifar train` do: data -> banner -> training -> run folder and last line.

With --runs N they train seed, seed+1, ..., write runs.jsonl as they end, then statistics over them. Under --parallel
seeds each process trains its own seeds. Seeds that an interrupted job has finished are not trained again. With
--keep-all each seed has its run folder, from which an interrupted seed, too, goes on.
"""

import contextlib
import math
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcifar.cli import ensemble
from fastcifar.cli.main import DONE
from fastcifar.cli.schedule import preview
from fastcifar.cli.signals import Signals, Stopped
from fastcifar.cli.terminal import (
    duration,
    ends_in_json,
    make_progress,
    print_end,
    result_rows,
    route_log_to,
)
from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.data.load import load_of
from fastcifar.data.messages import counted
from fastcifar.files import lock_folder
from fastcifar.models import winograd
from fastcifar.models.counts import train_flop
from fastcifar.models.networks import make_model
from fastcifar.observers import profiling
from fastcifar.observers.checkpoints import Interrupted
from fastcifar.observers.progress import Lines, OfSeveral, fold
from fastcifar.observers.run_files import file_observers, measured, normalization_facts
from fastcifar.observers.trackers import require_tracker
from fastcifar.optim.schedule_table import make_schedule_table
from fastcifar.runs import folder, intervals, plots, record
from fastcifar.runs.checkpoint import ran_out_of_memory
from fastcifar.runs.config_file import config_to_plain
from fastcifar.runs.environment import device_name
from fastcifar.runs.model_file import SWAG_FILE, write_model
from fastcifar.training import processes
from fastcifar.training.hardware import resolve
from fastcifar.training.loop import train
from fastcifar.training.memory import batch_that_fits
from fastcifar.training.observer import Observer
from fastcifar.training.parts import check_parts
from fastcifar.training.processes import World
from fastcifar.training.rates import matrix_flop_per_s
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch, process_age_s
from fastcifar.training.task import Task, make_task


def main(config: Config, command: Command, signals: Signals) -> int:
    """Does what the flags ask for and returns the exit code. Raises the errors that become exit codes."""
    signals.phase = "prepare"
    try:
        return run(config, command, signals)
    except Interrupted as e:
        print(e, file=sys.stderr, flush=True)
        return 128 + e.number
    finally:
        processes.leave_processes()


def run(config: Config, command: Command, signals: Signals) -> int:
    """As `main`, in the process or processes of the run."""
    if command.plot_schedule:
        plots.draw_schedules(Path("schedule.png"), {config.run.recipe: preview(config)})
        print("schedule.png")
        return DONE
    resumed = Path(command.resume) if command.resume else None
    if resumed and not command.dry_run and (summary := folder.finished(resumed, config)):
        if (config.run.extend_epochs or math.inf) < summary["epochs"]:
            raise ValueError(f"--extend-epochs {config.run.extend_epochs:g}: {resumed} has {summary['epochs']:g} "
                             "epochs by now; give the larger number that it shall have in all")  # fmt: skip
        if os.environ.get("RANK", "0") == "0":  # the processes have not met yet
            longer = "" if "n" in summary else "; --extend-epochs N continues its averaging tail, to N epochs in all"
            print(f"{resumed}: this run is complete{longer}")
            print_end(command, summary, result_rows(summary, resumed))
        return DONE
    check_parts(config)
    require_tracker(command.log)
    world = processes.join_processes()
    config, hardware = resolve(config, world.local_rank)
    stopwatch = Stopwatch(hardware.device)
    stopwatch.time_s["import"] = process_age_s()
    writes = world.is_leader and not command.dry_run
    if writes:
        folder.check(config, command)
    with stopwatch("data"):
        dataset = processes.leader_first(world, lambda: load_of(config, progress=world.is_leader))
        training_world = world if config.run.parallel == "data" else World(local_rank=world.local_rank)
        task = make_task(config, dataset, hardware, training_world, command=command)
    out = folder.choose(config, command, dataset.name) if writes else None
    with lock_folder(out) if out else contextlib.nullcontext():
        if out:
            folder.claim(out, config, command)
        if world.is_leader:
            print(banner(task), flush=True)
        if command.dry_run:
            initial_state(task, stopwatch)
            if world.is_leader:
                planned = plan(task)
                print_end(command, planned, [(k, str(v)) for k, v in planned.items() if k != "config"])
            return DONE
        signals.phase = "train"
        with route_log_to(make_progress(config, command, task.num_steps, world.is_leader)) as progress:
            train_and_report(task, world, out, signals, progress, stopwatch)
        return DONE


def train_and_report(
    task: Task, world: World, out: Path | None, signals: Signals, progress: Lines, stopwatch: Stopwatch
) -> None:
    """Trains one run or several seeds, and prints the last line: the summary, or how to continue."""
    try:
        if task.config.run.runs > 1:
            train_seeds(task, world, out, signals, progress)
            if out:
                folder.require_kept(out)
            return
        result = train(task, [progress, *observers_of(task, out, signals)], stopwatch)
        if out:
            if (table := out / profiling.TABLE).exists() and task.command.profile:
                progress.say(table.read_text().rstrip())
            if ends_in_json(task.command):
                progress.say(f"results in {out}")
            progress.close()  # rich breaks the lines that are printed below its bar
            print_end(task.command, result.summary, result_rows(result.summary, out))
            folder.require_kept(out)
    except (Interrupted, Stopped):
        if out:
            command = folder.resume_command(out, world.size, task.config, task.command)
            progress.close()
            complete = folder.finished(out, task.config)
            told = "complete; what was drawn last may be missing" if complete else f"saved; continue with: {command}"
            print(f"interrupted and {told}", flush=True)
        raise
    except (RuntimeError, MemoryError) as e:
        if not ran_out_of_memory(e):
            raise
        traceback.clear_frames(e.__traceback__)  # releases the step that did not fit
        fits = batch_that_fits(task)
        advice = f"--batch-size {fits} fits" if fits else "no batch size fits; try --scale small"
        raise ValueError(f"out of memory on {device_name(task.hardware.device)} with --batch-size {task.batch_size}: "
                         f"{advice} (as a new run; a checkpoint of this one is kept)") from e  # fmt: skip


def observers_of(task: Task, out: Path | None, signals: Signals) -> list[Observer]:
    """What watches a run of its own folder, the signals included."""
    observers = file_observers(task, out, signals)
    if task.world.size == 1:  # last, so that everything is saved when it lets a signal end the process at once
        observers.append(signals)  # type: ignore[arg-type]  # an observer that imports no torch
    return observers


def train_seeds(task: Task, world: World, out: Path | None, signals: Signals, progress: Lines) -> None:
    """Trains every seed that is left and prints the statistics as the last line. Raises Interrupted after a signal."""
    run, config = task.config.run, task.config
    seed_folders = Path(processes.gather(str(out), world)[0]) if run.keep_all else None
    finished = folder.finished_seeds(Path(task.command.resume), config) if task.command.resume else []
    if out and task.command.resume:
        folder.keep_settings(out, config)
    summaries = processes.gather(finished, world)[0]
    done = {row["seed"] for row in summaries}
    left = [s for s in range(config.seed, config.seed + run.runs) if s not in done]
    at_once = world.size if run.parallel == "seeds" else 1
    progress.expect(task.num_steps * -(-len(left) // at_once))
    for i in range(0, len(left), at_once):
        mine = i + (world.rank if at_once > 1 else 0)
        has_one = mine < len(left)
        shown = OfSeveral(progress, before=i // at_once * task.num_steps)
        outcome = _train_seed(task, left[mine], out, seed_folders, signals, shown) if has_one else (None, None)
        results = processes.gather(outcome, world)
        summaries += [summary for summary, _ in results[:at_once] if summary]
        if out:
            record.write_lines(out / "runs.jsonl", summaries)
        if signal := max(number or 0 for _, number in results):
            raise Interrupted(signal)
    if out:
        progress.close()
        summary = intervals.summarize_runs(summaries, run.target)
        if seed_folders:
            signals.phase = "finish"  # all is saved: from here on a signal ends the process
            folders = [str(seed_folders / f"seed{s}") for s in sorted(row["seed"] for row in summaries)]
            cache = ["--cache-dir", config.machine.cache_dir] if config.machine.cache_dir else []
            swag = ["--swag"] if all((Path(folder) / SWAG_FILE).exists() for folder in folders) else []
            try:
                ensemble.main([*folders, "--out", str(out), *cache, *swag])
            except Exception:  # all seeds are trained, whatever became of their mean; after a signal --resume makes it
                record.write_json(out / "summary.json", summary)
                raise
        record.write_json(out / "summary.json", summary)
        print_end(task.command, summary, result_rows(summary, out))


def _train_seed(
    task: Task, seed: int, out: Path | None, seed_folders: Path | None, signals: Signals, progress: OfSeveral
) -> tuple[dict[str, Any] | None, int | None]:
    """(summary, None), or (None, signal) when the run was interrupted. Keeps the first seed's model.

    seed_folders: where each seed has its run folder, with --keep-all.
    """
    config, path = task.config, seed_folders / f"seed{seed}" if seed_folders else None
    resumed = str(path) if path and (path / "config.json").exists() else None
    run = replace(config.run, runs=1, keep_all=False)
    command = replace(task.command, resume=resumed, out=str(path) if path else task.command.out)
    one = replace(task.with_config(replace(config, seed=seed, run=run)), command=command)
    if path and task.world.is_leader:
        path.mkdir(exist_ok=True)
        folder.claim(path, one.config, command)
    try:
        result = train(one, [progress, *file_observers(one, path if task.world.is_leader else None, signals)])
    except Interrupted as e:
        return None, e.number
    progress.display.say(f"seed {seed}: accuracy {result.summary['accuracy']:.2%}")
    if out and seed == config.seed:
        facts = {**normalization_facts(one), **measured(result.summary)}
        write_model(out / "model.safetensors", result.model, facts)
    return result.summary, None


def banner(task: Task) -> str:
    """Lines on the recipe, the device, the arithmetic, the data and the network, with the reason for each `auto`."""
    config, hardware, settings = task.config, task.hardware, task.config.model
    machine, scale = config.machine, settings.scale

    def reason(name: str) -> str:
        return f" ({hardware.reasons[name]})" if name in hardware.reasons else ""

    ending = "averaging tail" if config.tail else "no tail"
    size = "of your own shape" if settings.shape else f"{scale}{reason('scale')}"
    lines = [
        f"recipe   {config.run.recipe}: {counted(config.epochs, 'epoch')} x {counted(task.steps_per_epoch, 'step')} "
        f"of {counted(task.batch_size, 'image')}, {config.schedule.name}, {ending}",
        f"device   {device_name(hardware.device)}" + (f", {task.world.size} processes" if task.world.size > 1 else ""),
        f"compute  {machine.precision}{reason('precision')}, {_layout(task.network)}, compile {machine.compile}"
        f"{reason('compile')}, augmentation by {machine.executor}{reason('augment')}",
        f"data     {task.dataset.name}: {task.num_train:,} training and {len(task.dataset.y_test):,} test images, "
        f"{len(task.dataset.classes)} classes",
        f"network  {settings.network} {size}: {task.num_parameters:,} parameters, "
        f"{task.train_pflop:.3g} PFLOP of training",
    ]
    if scale == "small" and settings.network == "resnet9" and not settings.shape:
        full = make_model(replace(settings, scale="full", shape=None), len(task.dataset.classes), seed=0)
        pflop = task.train_pflop * train_flop(full) / task.flop_per_image[32]
        least_s = pflop * 1e15 / matrix_flop_per_s(hardware.device, hardware.dtype)
        if not hardware.on_card and winograd.is_used_for(hardware.dtype):
            least_s *= winograd.FULL_STEP
        lines.append(f"         --scale full would take {pflop:.2g} PFLOP, here at least {duration(least_s)}")
    return "\n".join(fold(line, indent=" " * 9) for line in lines)


def _layout(model: nn.Module) -> str:
    filters = [p for p in model.parameters() if p.ndim == 4]
    channels_last = all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
    return "channels_last" if channels_last else "NCHW"


def plan(task: Task) -> dict[str, Any]:
    """What --dry-run prints: what would run on what, and how much work it is."""
    hardware, machine = task.hardware, task.config.machine
    return {
        "recipe": task.config.run.recipe, "dataset": task.dataset.name, "n_train": task.num_train,
        "n_test": len(task.dataset.y_test), "scale": task.config.model.scale, "epochs": task.config.epochs,
        "num_steps": task.num_steps, "steps_per_epoch": task.steps_per_epoch, "batch_size": task.batch_size,
        "tail_step": make_schedule_table(task.config, task.steps_per_epoch).tail_step,
        "train_pflop": task.train_pflop, "parameters": task.num_parameters,
        "device": device_name(hardware.device), "precision": machine.precision,
        "compile": machine.compile, "augment": machine.executor, "config": config_to_plain(task.config),
    }  # fmt: skip
