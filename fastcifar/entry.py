"""What `train_fast.py` does: one run, or several seeds; its folder, its last line, its exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastcifar import data, distributed, flags, machine, plots, record, train
from fastcifar.config import Config
from fastcifar.job import Job, prepare, start
from fastcifar.model import WIDTHS, count_parameters, make_model, train_flop
from fastcifar.progress import make_progress
from fastcifar.schedules import make_schedule
from fastcifar.timing import Stopwatch, matrix_flop_per_s, process_age_s, utc_stamp

DONE, BAD_INPUT, DIVERGED = 0, 2, 3


class Signals:
    """The first SIGINT or SIGTERM asks for an end after the step; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.number is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.number = number

    def __call__(self) -> int | None:
        return self.number


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code. An error is one line on stderr, with --debug after its traceback."""
    try:
        return run(flags.parse(argv, description="Trains a CIFAR-10 network fast, and keeps what was trained."))
    except train.Interrupted as e:
        return 128 + e.number
    except train.Diverged as e:
        return _fail(f"training diverged: {e}", DIVERGED, argv)
    except OSError as e:
        what = f"{e.filename}: {e.strerror}" if e.filename else str(e)
        return _fail(f"{what}; free space or choose another folder", BAD_INPUT, argv)
    except (ValueError, train.Unavailable) as e:  # usage, data, checkpoint, settings that do not fit together
        return _fail(str(e), BAD_INPUT, argv)
    finally:
        distributed.leave()


def _fail(message: str, code: int, argv: Sequence[str]) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def run(config: Config) -> int:
    """A Config -> everything it asks for. Raises what `main` turns into exit codes."""
    if config.plot_schedule:
        plots.draw_schedules(Path("schedule.png"), {config.recipe: preview(config)})
        print("schedule.png")
        return DONE
    world = distributed.join()
    chosen = machine.choose(config, world.local_rank)
    if config.deterministic:
        machine.make_deterministic()
    watch = Stopwatch(chosen.device)
    watch.time_s["import"] = process_age_s()
    out = None if config.dry_run else claim_folder(config, world.leads)
    with watch("data"):
        dataset = data.load(config, progress=world.leads)
        together = world if config.parallel == "data" else distributed.World(local_rank=world.local_rank)
        job = prepare(config, dataset, chosen, together, watch=watch, out=out)
    if world.leads:
        print(banner(job), flush=True)
    if config.dry_run:
        start(job)
        if world.leads:
            print(record.to_json(plan(job)))
        return DONE
    job.stop = Signals()
    if config.runs > 1:
        return run_seeds(job, world)
    job.progress = make_progress(job.num_steps, world.leads)
    result = _train(job)
    if world.leads and out:
        print(record.to_json(finish_folder(out, job, result)), flush=True)
    return DONE


def _train(job: Job) -> train.Result:
    try:
        return train.train(job)
    except train.Interrupted:
        if job.out and job.world.leads:
            job.progress.say(f"interrupted and saved; go on with: python train_fast.py --resume {job.out}")
        raise
    finally:
        job.progress.close()


def run_seeds(job: Job, world: distributed.World) -> int:
    """--runs N: seed, seed+1, ...; runs.jsonl as they come, then statistics. Under --parallel seeds each process its own."""
    config, out = job.config, job.out
    seeds = range(config.seed, config.seed + config.runs)
    apart = config.parallel == "seeds"
    mine, summaries = seeds[world.rank :: world.size] if apart else seeds, []
    for seed in mine:
        one = replace(job, config=replace(config, seed=seed, runs=1), watch=Stopwatch(job.machine.device), out=None)
        one.progress = make_progress(job.num_steps, leads=False)
        result = train.train(one)
        summaries.append(result.summary)
        if world.leads and out:
            print(f"seed {seed}: accuracy {result.summary['accuracy']:.2%}", flush=True)
            record.write_lines(out / "runs.jsonl", summaries)
            if seed == config.seed:
                train.write_model(out / "model.safetensors", one, result)
    if apart:
        parts = distributed.gather(summaries, world)
        summaries = sorted((s for part in parts for s in part), key=lambda s: s["seed"])
    if world.leads and out:
        record.write_lines(out / "runs.jsonl", summaries)
        summary = record.summarize_runs(summaries, config.target)
        record.write_json(out / "summary.json", summary)
        print(record.to_json(summary), flush=True)
    return DONE


def claim_folder(config: Config, leads: bool) -> Path:
    """The run folder, made if missing. ValueError when it holds another run; OSError when it cannot be written."""
    if config.resume:
        return Path(config.resume)
    out = Path(config.out or f"runs/{utc_stamp()}-{config.recipe}-s{config.seed}")
    if not leads:
        return out
    if (out / "config.json").exists() or (out / "checkpoint.pt").exists():
        raise ValueError(f"--out {out}: holds a run already; continue it with --resume {out}, or choose another folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; choose a folder")
    record.write_config(out, config)
    return out


def finish_folder(out: Path, job: Job, result: train.Result) -> dict[str, Any]:
    """Writes what a person looks at; returns the summary with the age of the process at its end."""
    plots.draw_curves(out / "curves.png", result.history, result.schedule, result.summary)
    summary = result.summary
    summary["time_s"]["wall"] = round(process_age_s(), 4)
    record.write_json(out / "summary.json", summary)
    raw, swa = summary["accuracy_raw"], summary["accuracy_swa"]
    if swa is not None and swa < raw:
        job.progress.say(f"note: the averaged weights ({swa:.2%}) are worse than the raw ones ({raw:.2%}): "
                         "a longer tail or a higher --swa-lr may help")  # fmt: skip
    if summary["steps_skipped_fp16"]:
        job.progress.say(f"note: {summary['steps_skipped_fp16']} steps were skipped by fp16 overflow")
    job.progress.say(f"accuracy {summary['accuracy']:.2%} (raw {raw:.2%}"
                     + (f", averaged {swa:.2%}" if swa is not None else "") + f"); results in {out}")  # fmt: skip
    return summary


def preview(config: Config, num_train: int = 50_000) -> tuple[Any, int]:
    """(Schedule, steps per epoch) of a run, without data or training."""
    num_train = config.subset or num_train
    steps_per_epoch = max(1, int(num_train * (1 - config.val_split)) // config.batch_size)
    return make_schedule(config, steps_per_epoch), steps_per_epoch


def plan(job: Job) -> dict[str, Any]:
    """What --dry-run prints: what would run on what, and how much work it is."""
    model = make_model(job.config.network, job.machine.scale, len(job.dataset.classes), job.config.norm, 0)
    return {
        "recipe": job.config.recipe, "dataset": job.dataset.name, "n_train": job.num_train,
        "n_test": len(job.dataset.y_test), "scale": job.machine.scale, "epochs": job.config.epochs,
        "num_steps": job.num_steps, "steps_per_epoch": job.steps_per_epoch, "batch_size": job.batch_size,
        "tail_step": make_schedule(job.config, job.steps_per_epoch).tail_step, "train_pflop": job.train_pflop,
        "parameters": count_parameters(model), "device": job.machine.name, "precision": job.machine.precision,
        "compile": job.machine.compile, "augment": job.machine.augment, "config": asdict(job.config),
    }  # fmt: skip


def banner(job: Job) -> str:
    """What runs on what, and why."""
    config, chosen, why = job.config, job.machine, job.machine.why
    model = make_model(config.network, chosen.scale, len(job.dataset.classes), config.norm, 0)

    def reason(name: str) -> str:
        return f" ({why[name]})" if name in why else ""

    lines = [
        f"recipe   {config.recipe}: {config.epochs:g} epochs x {job.steps_per_epoch} steps of {job.batch_size} images, "
        f"{config.schedule}" + (", averaging tail" if config.swa_start is not None else ", no tail"),
        f"device   {chosen.name}" + (f", {job.world.size} processes" if job.world.size > 1 else ""),
        f"compute  {chosen.precision}{reason('precision')}, {_layout(model)}, compile {chosen.compile}"
        f"{reason('compile')}, augmentation by {chosen.augment}{reason('augment')}",
        f"data     {job.dataset.name}: {job.num_train:,} training and {len(job.dataset.y_test):,} test images, "
        f"{len(job.dataset.classes)} classes",
        f"network  {config.network} {chosen.scale}{reason('scale')}: {count_parameters(model):,} parameters, "
        f"{job.train_pflop:.3g} PFLOP of training",
    ]
    if chosen.scale == "small" and config.network == "resnet9":
        full = make_model(config.network, "full", len(job.dataset.classes), config.norm, 0)
        pflop = job.train_pflop * train_flop(full) / job.flop_per_image[32]
        hours = pflop * 1e15 / matrix_flop_per_s(chosen.device, chosen.dtype) / 3600
        lines.append(f"         --scale full (widths {', '.join(map(str, WIDTHS['full']))}) would take {pflop:.2g} PFLOP, "
                     f"here at least {hours:.1f} h")  # fmt: skip
    return "\n".join(lines)


def _layout(model: Any) -> str:
    import torch

    filters = [p for p in model.parameters() if p.ndim == 4]
    right = all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
    return "channels_last" if right else "NCHW"
