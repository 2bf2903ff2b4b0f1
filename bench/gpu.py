"""What do the GPU tests and all benches say about this card, within a time budget?

    python -m bench.gpu --out DIR --budget-s 540 --data PATH --peers airbench94=CHECKOUT

The same command is `make gpu OUT=DIR BUDGET_S=540`. Each part is a process with a limit of its own, the most important
first, so that a part that fails or hangs costs the others no more than its limit; later parts get the time that it does
not use. A part that reaches its limit still writes the tables of its rows. `index.json` has the status of every part,
`report.md` the tables. The same command goes on: parts that are done are left out, others continue.

The flags are read by argparse, because this program must also start where packages such as tyro are missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.peers import GRACE_S, ROOT, end_group
from fastcifar.config.recipes import RECIPES
from fastcifar.runs import environment, record
from fastcifar.training.stopwatch import Stopwatch, process_age_s

LEAST_S = 15.0
"""A part is left out when less time than this remains."""
LENGTHS = (4, 5, 6, 10)
"""Passes of speedrun94 beside its own, for the frontier."""


@dataclass
class Part:
    """A process of the plan and its outcome."""

    name: str
    arguments: list[str]
    """Arguments of python."""
    most_s: float
    """Longest time that the part may take, whatever the budget."""
    anew: bool = False
    """Whether the part cannot continue: its folder is emptied first."""
    needs: tuple[str, ...] = ("tyro", "matplotlib")
    """Packages that the part imports."""
    status: str = "not begun"
    """done, failed, cut (it reached its limit), left out, not begun."""
    reason: str = ""
    limit_s: float = 0.0
    """Time that the part got."""
    took_s: float = 0.0
    files: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None, used_s: float = 0.0) -> int:
    """Runs the plan and returns the exit code. `used_s`: time already used, as importing torch can take a minute."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Tests and benches within a time budget.")
    parser.add_argument("--out", type=Path, default=Path("bench-results/gpu"), help="folder of all results")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds until everything has ended")
    parser.add_argument("--data", default="auto", help="as in train_fast.py")
    parser.add_argument("--peers", nargs="*", default=[], help="NAME=CHECKOUT, as --peer of bench.compare")
    parser.add_argument("--only", nargs="*", help="names of parts, to run only these, also where they are done")
    parser.add_argument("--set", default="", help="settings of profile, sweeps and time to accuracy")
    parser.add_argument("--quick", action="store_true", help="few images and repeats, on any machine")
    options = parser.parse_args(argv)
    parts = plan(options)
    if unknown := set(options.only or ()) - {part.name for part in parts}:
        parser.error(f"--only {' '.join(unknown)}: known are {', '.join(part.name for part in parts)}")
    read_index(parts, options)
    todo = [part for part in parts if (part.name in options.only if options.only else part.status != "done")]
    parts = [part for part in parts if part in todo or part.status != "not begun"]
    stopwatch = Stopwatch()
    with stopwatch("all"), harness.interruptible() as interruption:
        for part in todo:
            run_part(part, options.budget_s - used_s - stopwatch.seconds("all"), options.out)
            write_index(parts, options, used_s + stopwatch.seconds("all"))
            print(f"{part.name}: {part.status} {part.reason} ({part.took_s:.0f} s)", flush=True)
    write_index(parts, options, used_s + stopwatch.time_s["all"])
    return interruption.code or int(any(part.status == "failed" for part in todo))


def plan(options: argparse.Namespace) -> list[Part]:
    """All parts, the most important first. The limits up to the screening for 94% fit the default budget together, but
    for lists and effects, which take seconds.

    Tests; a step at two batch sizes; quiet runs of `speedrun94` and 40 seeds of it side by side, which are its figures;
    two batch sizes by their accuracy; the screening for 94%; a profile and further steps, of which batch 16 says what a
    step costs beside its images. A peer that lets torch choose among kernels (`max-autotune`) compiles for minutes, so
    the comparison comes later.
    """
    make = Makers(options)
    held_out = ("--hold-out", "5000")
    if options.quick:
        parts = [make.tests(), make.bench("loader", 160, "--batches", "500", "2000")]  # slower without a card
        parts.append(make.time_to_accuracy("swa30", 2, 200))
    else:
        at_once = ["--processes", "0", "--pause-s", "0"]  # accuracies
        lengths = [*at_once, "--vary", *(f"epochs={length}" for length in LENGTHS)]
        parts = [
            make.tests(),
            make.step(500),
            make.step(1000),
            make.time_to_accuracy("speedrun94", 10, 70, "--processes", "0"),
            *make.sweep("recipe", 40, 60, "--first-seed", "100"),
            *make.sweep("batches", 20, 50, more=held_out),
            *make.sweep("94", 128, 180, more=held_out),
            make.profile(),
            make.step(16),
            make.step(2000),
            make.bench("loader", 40, "--batches", "500", "2000", "--executors", "torch", "dali", "--repeats", "5"),
            make.time_to_accuracy("speedrun94", 3, 80, *lengths, folder="lengths"),
            make.time_to_accuracy("swa30", 3, 80, *at_once),
            *make.sweep("95", 32, 120, more=held_out),
            *make.sweep("networks", 30, 80, more=held_out),
            make.time_to_accuracy("speedrun94", 1, 60, folder="processes"),
        ]
    if options.peers:
        recipe = "swa30" if options.quick else "speedrun94"
        words = ("--peer", *options.peers, "--rounds", "1", "--networks", "5", *make.data)
        parts.append(make.bench("compare", 300, "--recipe", recipe, *words))
    parts += [make.bench("step", 100, "--recipe", "speedrun94"), make.bench("compile", 150)]
    if not options.quick:
        parts.append(make.time_to_accuracy("accurate96", 3, 150, *at_once))
    recipes = ("swa30", "onecycle30") if options.quick else tuple(RECIPES)
    parts.append(make.bench("schedules", 600, "--runs", "1", *make.data, "--recipes", *recipes))
    return parts


class Makers:
    """Makes the parts, each with a folder of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out, self.settings = options.out.absolute(), options.set
        self.quick = ["--quick"] if options.quick else []
        self.data = ["--data", "synthetic" if options.quick and options.data == "auto" else options.data]
        self.set = ["--set", options.set] if options.set else []

    def tests(self) -> Part:
        """Side by side where there are cores for it; every test in a line of its own, as the part may be cut."""
        cores = os.cpu_count() or 1
        beside = ["-n", str(min(6, cores - 2))] if cores > 3 and importlib.util.find_spec("xdist") else []
        words = ["-m", "", "-p", "no:cacheprovider", "-v", "--tb", "short", *beside]
        return Part("tests", ["-m", "pytest", "tests/gpu", *words], 120, needs=("pytest",))

    def bench(self, name: str, most_s: float, *arguments: str, folder: str = "") -> Part:
        """The bench of this name."""
        out = ["--out", str(self.out / (folder or name))]
        return Part(folder or name, ["-m", f"bench.{name}", *arguments, *self.quick, *out], most_s)

    def step(self, batch: int) -> Part:
        """Milliseconds of a step of `speedrun94` with the kernels."""
        words = ("--recipe", "speedrun94", "--scale", "full", "--variants", "bf16-fused", "--steps", "50")
        return self.bench("step", 25, *words, "--batch", str(batch), "--repeats", "3", folder=f"step-{batch}")

    def profile(self) -> Part:
        """What a few steps are spent on."""
        words = ["--recipe", "speedrun94", "--batch-size", "1000", "--epochs", "3", "--profile", "--tta", "none"]
        words += [*self.data, *harness.flags_of(self.settings), "--out", str(self.out / "profile")]
        return Part("profile", ["train_fast.py", *words], 50, anew=True)

    def time_to_accuracy(self, recipe: str, runs: int, most_s: float, *more: str, folder: str = "") -> Part:
        """Runs of a recipe one after another, whose seconds count."""
        words = ["--recipe", recipe, "--runs", str(runs), "--first-seed", "100", *self.data, *self.set, *more]
        return self.bench("time_to_accuracy", most_s, *words, folder=folder or recipe)

    def sweep(self, design: str, runs: int, most_s: float, *listed: str, more: Sequence[str] = ()) -> list[Part]:
        """A design is written, its runs are trained six at a time, and its effects are printed."""
        folder = self.out / design
        rows, path = str(folder / "runs.jsonl"), str(folder / "list.jsonl")
        words = ["--design", design, "--runs", str(runs), *listed, "--list", path]
        at_once = ["--processes", "6", "--budget-s", str(most_s - 10), "--out", str(folder)]
        return [
            Part(f"{design}-list", ["-m", "bench.design", *words], 20),
            Part(design, ["-m", "bench.sweep", "--list", path, *self.data, *self.set, *more, *at_once], most_s),
            Part(f"{design}-effects", ["-m", "bench.design", "--rows", rows], 20),
        ]


def read_index(parts: list[Part], options: argparse.Namespace) -> None:
    """Sets the outcomes of an earlier call with the same commit, card and settings."""
    try:
        before = json.loads((options.out / "index.json").read_text())
        if {**before, **identity(options)} == before:
            outcomes = {part["name"]: part for part in before["parts"]}
            for part in parts:
                for name in ("status", "reason", "limit_s", "took_s", "files") if part.name in outcomes else ():
                    setattr(part, name, outcomes[part.name][name])
    except (OSError, ValueError, KeyError, TypeError):
        return  # none, or one of another version


def identity(options: argparse.Namespace) -> dict[str, Any]:
    """What two calls must share, so that one goes on with the other."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"card": card, **environment.source_state(), "quick": options.quick, "set": options.set,
            "data": options.data}  # fmt: skip


def run_part(part: Part, remaining_s: float, out: Path) -> None:
    """Runs a part within its limit and the remaining time, and sets its outcome."""
    part.limit_s = min(part.most_s, remaining_s - GRACE_S - 2)
    missing = [package for package in part.needs if importlib.util.find_spec(package) is None]
    if missing:
        part.status, part.reason = "left out", f"not installed: {', '.join(missing)}"
        return
    if part.limit_s < LEAST_S:
        part.status, part.reason = "left out", f"{max(remaining_s, 0):.0f} s of the budget were left"
        return
    if part.anew:
        shutil.rmtree(out / part.name, ignore_errors=True)
    log = out / "logs" / f"{part.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    stopwatch = Stopwatch()
    with stopwatch("part"), log.open("w") as log_file:
        process = subprocess.Popen(
            [sys.executable, *part.arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log_file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)  # a bench writes its tables after SIGTERM
    part.took_s = round(stopwatch.time_s["part"], 2)
    last_line = (log.read_text(errors="replace").strip().splitlines() or [""])[-1][:300]
    if code is None:
        part.status, part.reason = "cut", f"after {part.limit_s:.0f} s"
    elif code:
        part.status, part.reason = "failed", f"exit code {code}: {last_line}"
    else:
        part.status, part.reason = "done", last_line if part.name == "tests" else ""
    part.files = sorted(str(p.relative_to(out)) for p in (out / part.name).glob("*") if p.is_file())


def write_index(parts: list[Part], options: argparse.Namespace, took_s: float) -> None:
    """Writes index.json and report.md of the parts, finished or not."""
    head: dict[str, Any] = {
        "date": environment.utc_stamp(), "versions": environment.versions(), **identity(options),
        "budget_s": options.budget_s, "took_s": round(took_s, 1),
    }  # fmt: skip
    card = head["card"]
    record.write_json(options.out / "index.json", {**head, "parts": [asdict(part) for part in parts]})
    lines = [(p.name, p.status, p.reason, f"{p.took_s:.0f}") for p in parts]
    text = f"# {card or 'no card'}, {head['date']}\n\n" + harness.markdown_table(("part", "status", "why", "s"), lines)
    for part in parts:
        table = options.out / part.name / "table.md"
        if part.status in ("done", "cut") and table.exists():
            text += f"\n## {part.name}\n\n{table.read_text()}"
    (options.out / "report.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main(used_s=process_age_s()))
