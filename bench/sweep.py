"""Which of many settings is best? Trains a list of settings and seeds, several processes side by side on one device.

    python -m bench.sweep --list LIST.jsonl --data PATH --hold-out 5000 --processes 4 --budget-s 90

A line of the list is {"recipe": NAME, "settings": "name=value name=value", "seed": N}. The runs are begun in the order
of the list until the budget is used up. A run of seconds leaves the card idle while it is set up, so that several
processes train more runs a minute; their seconds are then no measurement. With `--hold-out N` the networks train on the
training images but N of them, in equal parts of every class, and are measured on those N: the choice does not see the
test images. Writes runs.jsonl, whose rows are the summaries, each as soon as its run has ended. The same command
continues a sweep that was stopped: it leaves out the runs whose rows are there, of this commit, device and images.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from bench import harness
from bench.time_to_accuracy import BASE
from fastcifar.config.config import Config
from fastcifar.data.dataset import Dataset, hold_out
from fastcifar.data.load import load_of
from fastcifar.data.messages import DataError
from fastcifar.runs import record
from fastcifar.training.stopwatch import Stopwatch, process_age_s

Job = dict[str, Any]
"""Recipe, settings and seed of a run."""
HOLD_OUT_SEED = 7
LEFT_OUT = ("versions", "config", "commit", "dirty")
"""Parts of a summary that all rows share, or that its settings repeat."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    list: Path | None = None
    """JSON lines with recipe, settings and seed."""
    data: str = "auto"
    """As in train_fast.py."""
    set: str = ""
    """Settings of every run, which those of a line replace."""
    hold_out: int = 0
    """Training images that the networks are measured on instead of the test images; 0: the test images."""
    processes: int = 1
    """Processes that train side by side. Only with one are the seconds a measurement."""
    budget_s: float = 1e9
    """Seconds, of the whole command, after which no run is begun."""
    quick: bool = False
    """Two runs of 1,000 images in two processes: shows that the bench works."""
    out: Path = Path("bench-results/sweep")
    """Folder of runs.jsonl and table.json."""


QUICK: list[Job] = [{"recipe": "speedrun94", "settings": "scale=small epochs=1", "seed": seed} for seed in (0, 1)]


def main(argv: Sequence[str] | None = None, used_s: float = 0.0) -> int:
    """Trains the list and returns the exit code. `used_s`: time already used, which counts against the budget."""
    stopwatch = Stopwatch()
    with stopwatch("all"):
        return run(argv, lambda: used_s + stopwatch.seconds("all"))


def run(argv: Sequence[str] | None, elapsed_s: Callable[[], float]) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.sweep")
    if options.quick:
        options = replace(options, set="subset=1000", hold_out=200, processes=2)
    try:
        jobs = QUICK if options.quick else read_list(options.list)
        configs = parse_all(jobs, f"data={options.data} {options.set}")
        first = configs[0]
        dataset = load_images(first, options)
        head = harness.describe_environment(first)
        state = harness.state_of(first, options.set, dataset.digest)
    except (OSError, KeyError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    sizes = {"dataset": dataset.name, "n_train": len(dataset.y_train), "n_test": len(dataset.y_test)}
    record.write_json(options.out / "table.json", {**head, **sizes, "processes": options.processes})
    finished = [row for row in harness.read_rows(options.out / "runs.jsonl") if "error" not in row]
    done = [key_of(row) for row in finished if row.get("state") == state]
    todo = [({**job, "number": n, "state": state}, config)
            for n, (job, config) in enumerate(zip(jobs, configs, strict=True)) if key_of(job) not in done]  # fmt: skip
    print(f"{len(todo)} runs" + (f", {len(done)} more are there" if done else ""), flush=True)
    context = multiprocessing.get_context("forkserver")  # a process with CUDA cannot be forked; the server has none
    context.set_forkserver_preload(["bench.harness"])  # so that torch is imported once
    turn, rows = context.Value("i", 0), context.Queue()
    arguments = (todo, first, options, turn, rows)
    workers = [context.Process(target=work, args=arguments, daemon=True) for _ in range(options.processes)]
    for worker in workers:
        worker.start()
    failed = 0
    with harness.interruptible() as interruption, (options.out / "runs.jsonl").open("a", buffering=1) as lines:
        for row in received(rows, workers):
            if elapsed_s() > options.budget_s:
                turn.value = len(todo)  # no further run is begun
            if row is None:
                continue
            failed += "error" in row
            lines.write(json.dumps(row) + "\n")
            print(describe(row), flush=True)
    failed += any(worker.exitcode for worker in workers)
    return interruption.code or int(failed > 0)


def read_list(path: Path | None) -> list[Job]:
    """The runs of a list. ValueError when a line lacks something, or there is none."""
    if path is None:
        raise ValueError("--list: give a file of JSON lines with recipe, settings and seed")
    jobs: list[Job] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            job = json.loads(line)
        except ValueError as e:
            raise ValueError(f"{path}, line {number}: no JSON ({e})") from None
        if missing := {"recipe", "settings", "seed"} - job.keys():
            raise ValueError(f"{path}, line {number}: {', '.join(sorted(missing))} is missing")
        jobs.append(job)
    if not jobs:
        raise ValueError(f"{path}: no line in it")
    return jobs


def parse_all(jobs: list[Job], settings: str) -> list[Config]:
    """The config of each run, parsed once for all of its seeds: a tenth of a second each."""
    parsed = {pair: harness.parse(pair[0], settings, pair[1])
              for pair in dict.fromkeys((job["recipe"], job["settings"]) for job in jobs)}  # fmt: skip
    return [harness.with_seed(parsed[job["recipe"], job["settings"]], job["seed"]) for job in jobs]


def key_of(job: Job) -> tuple[Any, ...]:
    """What tells a run from the others of its list."""
    return job["recipe"], job["settings"], job["seed"]


def measured_on_held_out(dataset: Dataset, count: int) -> Dataset:
    """The same training images but `count` of them, in equal parts of every class, which take the test images' place.

    The same images are held out in every sweep, so that all runs are measured on them.
    """
    try:
        rest, images, labels = hold_out(dataset, count / len(dataset.y_train), HOLD_OUT_SEED)
    except DataError as e:
        raise DataError(f"--hold-out {count}: {e}") from None
    return replace(rest, x_test=images, y_test=labels, name=f"{dataset.name}, {count} held out")


def load_images(config: Config, options: Options) -> Dataset:
    """What the networks train on and are measured on."""
    dataset = load_of(config, progress=True)
    return measured_on_held_out(dataset, options.hold_out) if options.hold_out else dataset


def received(rows: Any, workers: list[Any]) -> Iterator[dict[str, Any] | None]:
    """The rows that the processes send, until all have ended; None where none has come for a second."""
    while True:
        alive = any(worker.is_alive() for worker in workers)  # before the queue is looked at: what was sent is there
        try:
            yield rows.get(timeout=1.0)
        except queue.Empty:
            if not alive:
                return
            yield None


def work(jobs: list[tuple[Job, Config]], first: Config, options: Options, turn: Any, rows: Any) -> None:
    """A process: takes the next run of the list until there is none, or its card answers no more."""
    torch.set_num_threads(max(1, torch.get_num_threads() // options.processes))
    dataset = load_images(first, options)
    while True:
        with turn.get_lock():
            number, turn.value = turn.value, turn.value + 1
        if number >= len(jobs):
            return
        job, config = jobs[number]
        row = train_one(config, dataset)
        rows.put({**job, "variant": job["settings"] or BASE, **row})
        if "error" in row and not card_answers():
            return


def train_one(config: Config, dataset: Dataset) -> dict[str, Any]:
    """The summary of a run, or its error: the others go on."""
    try:
        summary = harness.train_once(config, dataset, measure_loss=True).summary
    except Exception as e:
        return {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
    return {name: value for name, value in summary.items() if name not in LEFT_OUT}


def card_answers() -> bool:
    """Whether this process can still use its card: after an illegal access every further call fails."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as e:
        print(f"a process ends, as its card does not answer: {' '.join(str(e).split())[:150]}", file=sys.stderr)
        return False
    return True


def describe(row: dict[str, Any]) -> str:
    """A row as a line of progress."""
    outcome = row.get("error") or f"{row['accuracy']:.2%} in {row['time_s']['train']:.2f} s of training"
    return f"{row['number']}: {row['recipe']} {row['settings']}, seed {row['seed']}: {outcome}"


if __name__ == "__main__":
    sys.exit(main(used_s=process_age_s()))
