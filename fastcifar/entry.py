"""What `train_fast.py` does: one run, or several seeds; its folder, its last line, its exit code."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastcifar import data, distributed, flags, folder, machine, memory, plots, record, train
from fastcifar.config import Config
from fastcifar.dali import DaliUnavailable
from fastcifar.distributed import World
from fastcifar.files import held
from fastcifar.interrupt import Signals, Stopped
from fastcifar.job import Job, network, prepare, start
from fastcifar.model import WIDTHS, count_parameters, train_flop
from fastcifar.progress import Silent, make_progress
from fastcifar.schedules import make_schedule
from fastcifar.timing import Stopwatch, matrix_flop_per_s, process_age_s

DONE, FAILED, BAD_INPUT, DIVERGED = 0, 1, 2, 3


def main(argv: Sequence[str], signals: Signals | None = None) -> int:
    """Runs the command line; returns the exit code. An error is one line on stderr (with --debug below a traceback)."""
    heard = signals or Signals()
    heard.phase = "prepare"
    try:
        return run(flags.parse(argv, description="Trains a CIFAR-10 network fast, and keeps what was trained."), heard)
    except (train.Interrupted, Stopped) as e:
        print(e, file=sys.stderr, flush=True)
        return 128 + e.number
    except Exception as e:
        message, code = explain(e)
        if not message or "--debug" in argv:
            traceback.print_exc()
        print(f"error: {' '.join(message.split()) or repr(e)}", file=sys.stderr, flush=True)
        return code
    finally:
        distributed.leave()
        if signals is None:
            heard.restore()


def explain(error: Exception) -> tuple[str, int]:
    """What went wrong, where and what to do, and the exit code; no message for what is a mistake of this program."""
    if isinstance(error, train.Diverged):
        return f"training diverged: {error}", DIVERGED
    if isinstance(error, BrokenPipeError):
        return "what read this output has ended; send it to a file (a checkpoint goes on by --resume)", BAD_INPUT
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        remedy = "make room or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "choose"
        return f"{what}; {remedy} another folder (a run with a checkpoint goes on by --resume)", BAD_INPUT
    if isinstance(error, (ValueError, DaliUnavailable)):  # usage, data, checkpoint, settings that do not fit together
        return str(error), BAD_INPUT
    if memory.ran_out(error):
        return "out of memory before training began; close other programs or use a smaller --subset", BAD_INPUT
    if distributed.was_cut_off(error):
        return "another process of this run has gone (its own message says why); continue with --resume", BAD_INPUT
    return "", FAILED


def run(config: Config, signals: Signals | None = None) -> int:
    """A Config -> everything it asks for. Raises what `main` turns into exit codes."""
    if config.plot_schedule:
        plots.draw_schedules(Path("schedule.png"), {config.recipe: preview(config)})
        print("schedule.png")
        return DONE
    if config.resume and not config.dry_run and (summary := folder.finished(config)):
        print(f"{config.resume}: this run is complete; --extend-epochs N goes on with its averaging tail")
        print(record.to_json(summary), flush=True)
        return DONE
    world = distributed.join()
    chosen = machine.choose(config, world.local_rank)
    if config.deterministic:
        machine.make_deterministic()
    watch = Stopwatch(chosen.device)
    watch.time_s["import"] = process_age_s()
    config = replace(config, scale=chosen.scale, precision=chosen.precision)  # type: ignore[arg-type]
    writes = world.leads and not config.dry_run
    out = folder.choose(config) if writes else None
    with held(out) if out else contextlib.nullcontext():
        if out:
            folder.claim(out, config)
        with watch("data"):
            dataset = distributed.first_on_each_machine(world, lambda: data.load(config, progress=world.leads))
            together = world if config.parallel == "data" else World(local_rank=world.local_rank)
            job = prepare(config, dataset, chosen, together, watch=watch, out=out)
        if world.leads:
            print(banner(job), flush=True)
        if config.dry_run:
            start(job)
            if world.leads:
                print(record.to_json(plan(job)))
            return DONE
        if signals:
            signals.phase, job.stop = "train", signals
        return train_and_report(job, world)


def train_and_report(job: Job, world: World) -> int:
    """Training of a prepared job, and what is said and written when it ends, well or not."""
    try:
        if job.config.runs > 1:
            return run_seeds(job, world)
        job.progress = make_progress(job.num_steps, world.leads)
        result = train.train(job)
        if job.out:
            print(record.to_json(finish_folder(job.out, job, result)), flush=True)
        return DONE
    except train.Interrupted as e:
        if job.out:
            saved = "interrupted and saved; go on with"
            print(f"{saved}: {folder.resume_command(job.out, world.size)}", flush=True)
        raise e
    except (RuntimeError, MemoryError) as e:
        if not memory.ran_out(e):
            raise
        traceback.clear_frames(e.__traceback__)  # lets go of the step that did not fit
        fits = memory.batch_that_fits(job)
        advice = f"--batch-size {fits} fits" if fits else "no batch size fits; try --scale small"
        raise ValueError(f"out of memory on {job.machine.name} with --batch-size {job.batch_size}: {advice} (as a new "
                         "run; a checkpoint of this one is kept)") from e  # fmt: skip
    finally:
        job.progress.close()


def run_seeds(job: Job, world: World) -> int:
    """--runs N: seed, seed+1, ...; runs.jsonl as they come, then statistics.

    Under --parallel seeds each process trains its own. Seeds that an interrupted job finished are not trained again.
    """
    config, out = job.config, job.out
    summaries = distributed.gather(folder.finished_seeds(config), world)[0]
    left = [s for s in range(config.seed, config.seed + config.runs) if s not in {row["seed"] for row in summaries}]
    at_once = world.size if config.parallel == "seeds" else 1
    for i in range(0, len(left), at_once):
        mine = left[i : i + at_once][world.rank if at_once > 1 else 0 :][:1]
        results = distributed.gather(_train_seed(job, *mine) if mine else (None, None), world)
        summaries += [summary for summary, _ in results[:at_once] if summary]
        if out:
            record.write_lines(out / "runs.jsonl", summaries)
        if signal := max(number or 0 for _, number in results):
            raise train.Interrupted(signal)
    if out:
        summary = record.summarize_runs(summaries, config.target)
        record.write_json(out / "summary.json", summary)
        print(record.to_json(summary), flush=True)
    return DONE


def _train_seed(job: Job, seed: int) -> tuple[dict[str, Any] | None, int | None]:
    """(summary, None), or (None, signal) when it was interrupted. The first seed's model is kept."""
    one = replace(job, config=replace(job.config, seed=seed, runs=1, resume=None), out=None,
                  watch=Stopwatch(job.machine.device), progress=Silent())  # fmt: skip
    try:
        result = train.train(one)
    except train.Interrupted as e:
        return None, e.number
    job.progress.say(f"seed {seed}: accuracy {result.summary['accuracy']:.2%}")
    if job.out and seed == job.config.seed:
        train.write_model(job.out / "model.safetensors", one, result)
    return result.summary, None


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
    model = network(job.config, len(job.dataset.classes))
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
    model = network(config, len(job.dataset.classes))

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
        full = network(replace(config, scale="full"), len(job.dataset.classes))
        pflop = job.train_pflop * train_flop(full) / job.flop_per_image[32]
        hours = pflop * 1e15 / matrix_flop_per_s(chosen.device, chosen.dtype) / 3600
        lines.append(f"         --scale full (widths {', '.join(map(str, WIDTHS['full']))}) would take "
                     f"{pflop:.2g} PFLOP, here at least {hours:.1f} h")  # fmt: skip
    return "\n".join(lines)


def _layout(model: Any) -> str:
    import torch

    filters = [p for p in model.parameters() if p.ndim == 4]
    right = all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
    return "channels_last" if right else "NCHW"
