"""`train_fast.py` and `fastcifar train`: flags -> config -> data -> training -> run folder, last line and exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fastcifar.cli import flags
from fastcifar.cli.banner import banner, plan
from fastcifar.cli.errors import DONE, message_and_code
from fastcifar.cli.progress import Lines, make_progress, shown
from fastcifar.cli.schedule import preview
from fastcifar.cli.seeds import train_seeds
from fastcifar.cli.signals import Signals, Stopped
from fastcifar.config.config import Config
from fastcifar.data.errors import printable
from fastcifar.files import lock_folder
from fastcifar.observers import profiling
from fastcifar.observers.checkpoints import Interrupted
from fastcifar.observers.run_files import file_observers
from fastcifar.observers.trackers import require_tracker
from fastcifar.runs import folder, plots, record
from fastcifar.runs.checkpoint import ran_out_of_memory
from fastcifar.training import processes
from fastcifar.training.hardware import resolve
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer
from fastcifar.training.parts import check_parts
from fastcifar.training.prepare import batch_that_fits
from fastcifar.training.processes import World
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch, process_age_s
from fastcifar.training.task import Task, load_data, make_task

DESCRIPTION = "Trains a CIFAR-10 network fast, and keeps what was trained."


def main(argv: Sequence[str], signals: Signals | None = None, prog: str = "train_fast.py") -> int:
    """Runs the command line and returns the exit code. An error is one line on stderr, below a traceback with --debug.

    signals: handlers that are set already; without them this function sets its own and restores the earlier ones.
    """
    handlers = signals or Signals()
    handlers.phase = "prepare"
    try:
        return run(flags.parse(argv, prog, DESCRIPTION), handlers)
    except (Interrupted, Stopped) as e:
        print(e, file=sys.stderr, flush=True)
        return 128 + e.number
    except Exception as e:
        message, code = message_and_code(e)
        if not message or "--debug" in argv:
            traceback.print_exc()
        print(f"error: {printable(' '.join(message.split())) or repr(e)}", file=sys.stderr, flush=True)
        return code
    finally:
        processes.leave_processes()
        if signals is None:
            handlers.restore()


def run(config: Config, signals: Signals) -> int:
    """Does what a config asks for and returns the exit code. Raises the errors that `main` turns into exit codes."""
    if config.run.plot_schedule:
        plots.draw_schedules(Path("schedule.png"), {config.run.recipe: preview(config)})
        print("schedule.png")
        return DONE
    if config.run.resume and not config.run.dry_run and (summary := folder.finished(config)):
        print(f"{config.run.resume}: this run is complete; --extend-epochs N continues its averaging tail")
        print(record.to_json(summary), flush=True)
        return DONE
    check_parts(config)
    require_tracker(config)
    world = processes.join_processes()
    config, hardware = resolve(config, world.local_rank)
    stopwatch = Stopwatch(hardware.device)
    stopwatch.time_s["import"] = process_age_s()
    writes = world.is_leader and not config.run.dry_run
    if writes:
        folder.check(config)
    with stopwatch("data"):
        dataset = processes.leader_first(world, lambda: load_data(config, progress=world.is_leader))
        together = world if config.run.parallel == "data" else World(local_rank=world.local_rank)
        task = make_task(config, dataset, hardware, together)
    out = folder.choose(config, dataset.name) if writes else None
    with lock_folder(out) if out else contextlib.nullcontext():
        if out:
            folder.claim(out, config)
        if world.is_leader:
            print(banner(task), flush=True)
        if config.run.dry_run:
            initial_state(task, stopwatch)
            if world.is_leader:
                print(record.to_json(plan(task)))
            return DONE
        signals.phase = "train"
        with shown(make_progress(task.num_steps, world.is_leader)) as progress:
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
            if (table := out / profiling.TABLE).exists() and task.config.run.profile:
                progress.say(table.read_text().rstrip())
            progress.say(f"results in {out}")
            print(record.to_json(result.summary), flush=True)
            folder.require_kept(out)
    except (Interrupted, Stopped):
        if out:
            command = folder.resume_command(out, world.size, task.config)
            print(f"interrupted and saved; continue with: {command}", flush=True)
        raise
    except (RuntimeError, MemoryError) as e:
        if not ran_out_of_memory(e):
            raise
        traceback.clear_frames(e.__traceback__)  # releases the step that did not fit
        fits = batch_that_fits(task)
        advice = f"--batch-size {fits} fits" if fits else "no batch size fits; try --scale small"
        raise ValueError(f"out of memory on {task.hardware.name} with --batch-size {task.batch_size}: {advice} (as a "
                         "new run; a checkpoint of this one is kept)") from e  # fmt: skip


def observers_of(task: Task, out: Path | None, signals: Signals) -> list[Observer]:
    """What watches a run of its own folder, the signals included."""
    observers = file_observers(task, out, signals)
    if task.world.size == 1:  # last, so that everything is saved when it lets a signal end the process at once
        observers.append(signals)  # type: ignore[arg-type]  # an observer that imports no torch
    return observers
