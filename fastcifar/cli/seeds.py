"""--runs N: trains seed, seed+1, ..., writes runs.jsonl as they end, then statistics over them.

Under --parallel seeds each process trains its own seeds. Seeds that an interrupted job has finished are not trained
again. With --keep-all each seed has its run folder, from which an interrupted seed, too, goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastcifar.cli import ensemble
from fastcifar.cli.progress import Lines
from fastcifar.cli.signals import Signals
from fastcifar.observers.checkpoints import Interrupted
from fastcifar.observers.run_files import file_observers, measured
from fastcifar.runs import folder, intervals, record
from fastcifar.runs.model_file import write_model
from fastcifar.training import processes
from fastcifar.training.loop import train
from fastcifar.training.processes import World
from fastcifar.training.task import Task, normalization_facts


def train_seeds(task: Task, world: World, out: Path | None, signals: Signals, progress: Lines) -> None:
    """Trains every seed that is left and prints the statistics as the last line. Raises Interrupted after a signal."""
    run, config = task.config.run, task.config
    kept = Path(processes.gather(str(out), world)[0]) if run.keep_all else None
    summaries = processes.gather(folder.finished_seeds(task.config), world)[0]
    done = {row["seed"] for row in summaries}
    left = [s for s in range(config.seed, config.seed + run.runs) if s not in done]
    at_once = world.size if run.parallel == "seeds" else 1
    for i in range(0, len(left), at_once):
        share = left[i : i + at_once][world.rank if at_once > 1 else 0 :][:1]
        outcome = _train_seed(task, share[0], out, kept, signals, progress) if share else (None, None)
        results = processes.gather(outcome, world)
        summaries += [summary for summary, _ in results[:at_once] if summary]
        if out:
            record.write_lines(out / "runs.jsonl", summaries)
        if signal := max(number or 0 for _, number in results):
            raise Interrupted(signal)
    if out:
        summary = intervals.summarize_runs(summaries, run.target)
        record.write_json(out / "summary.json", summary)
        if kept:
            signals.phase = "finish"  # all is saved: from here on a signal ends the process
            folders = [str(kept / f"seed{s}") for s in sorted(row["seed"] for row in summaries)]
            cache = ["--cache-dir", config.machine.cache_dir] if config.machine.cache_dir else []
            swag = ["--swag"] if config.tail and config.tail.swag_rank else []
            ensemble.main([*folders, "--out", str(out), *cache, *swag])
        print(record.to_json(summary), flush=True)


def _train_seed(
    task: Task, seed: int, out: Path | None, kept: Path | None, signals: Signals, progress: Lines
) -> tuple[dict[str, Any] | None, int | None]:
    """(summary, None), or (None, signal) when the run was interrupted. Keeps the first seed's model.

    kept: where each seed has its run folder, with --keep-all.
    """
    config, path = task.config, kept / f"seed{seed}" if kept else None
    resumed = str(path) if path and (path / "config.json").exists() else None
    run = replace(config.run, runs=1, keep_all=False, resume=resumed, out=str(path) if path else config.run.out)
    one = task.with_config(replace(config, seed=seed, run=run))
    if path and task.world.is_leader:
        path.mkdir(exist_ok=True)
        folder.claim(path, one.config)
    try:
        result = train(one, file_observers(one, path if task.world.is_leader else None, signals))
    except Interrupted as e:
        return None, e.number
    progress.say(f"seed {seed}: accuracy {result.summary['accuracy']:.2%}")
    if out and seed == config.seed:
        facts = {**normalization_facts(one), **measured(result.summary)}
        write_model(out / "model.safetensors", result.model, facts)
    return result.summary, None
