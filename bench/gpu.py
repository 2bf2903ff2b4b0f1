"""All that needs a card, in one command with a time budget: `make gpu OUT=DIR BUDGET_S=540`.

    python -m bench.gpu --out DIR --budget-s 540 --data PATH --peers airbench94=CHECKOUT

The most telling part comes first. Each is a process with a limit of its own, so one that fails or hangs takes nothing
from the others but its limit; what a part does not use, later ones get. A part that is cut off still writes the tables
of what it had. `index.json` tells what ran, failed, was cut or left out and why; `report.md` joins the tables. With
--quick it runs on any machine, in small.

Flags by argparse, for once: this has to start, and to say so, where packages are missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.peers import GRACE_S, ROOT, end_group
from fastcifar import record
from fastcifar.recipes import RECIPES
from fastcifar.timing import Stopwatch, process_age_s, utc_stamp

LEAST_S = 15.0
"""A part is not begun with less time than this."""


@dataclass
class Part:
    """A process of the plan, and how it went."""

    name: str
    arguments: list[str]
    """Of python."""
    most_s: float
    needs: tuple[str, ...] = ("tyro", "matplotlib")
    status: str = "not begun"
    """done, failed, cut (its limit came), left out, not begun."""
    reason: str = ""
    limit_s: float = 0.0
    took_s: float = 0.0
    files: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None, begun_s: float = 0.0) -> int:
    """`begun_s` of the budget are spent already: importing torch can take a minute where the disk is slow."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Tests and benches within a time budget.")
    parser.add_argument("--out", type=Path, default=Path("bench-results/gpu"), help="folder of all results")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds until everything has ended")
    parser.add_argument("--data", default="auto", help="as in train_fast.py")
    parser.add_argument("--peers", nargs="*", default=[], help="NAME=CHECKOUT, as --peer of bench.compare")
    parser.add_argument("--only", nargs="*", help="names of parts, to run only these")
    parser.add_argument("--quick", action="store_true", help="everything in small, on any machine")
    options = parser.parse_args(argv)
    parts = plan(options)
    if unknown := set(options.only or ()) - {part.name for part in parts}:
        parser.error(f"--only {' '.join(unknown)}: known are {', '.join(part.name for part in parts)}")
    parts = [part for part in parts if not options.only or part.name in options.only]
    watch = Stopwatch()
    with watch("all"), harness.stoppable() as stop:
        for part in parts:
            run_part(part, options.budget_s - begun_s - watch.so_far("all"), options.out)
            write_index(parts, options, begun_s + watch.so_far("all"))
            print(f"{part.name}: {part.status} {part.reason} ({part.took_s:.0f} s)", flush=True)
    write_index(parts, options, begun_s + watch.time_s["all"])
    return stop.code or int(any(part.status == "failed" for part in parts))


def plan(options: argparse.Namespace) -> list[Part]:
    """All parts, the most telling first."""
    small = ["--quick"] if options.quick else []
    data = ["--data", "synthetic" if options.quick and options.data == "auto" else options.data]

    def bench(name: str, most_s: float, *arguments: str, folder: str = "") -> Part:
        out = ["--out", str(options.out.absolute() / (folder or name))]
        return Part(folder or name, ["-m", f"bench.{name}", *arguments, *small, *out], most_s)

    tests = ["-m", "pytest", "tests/gpu", "-m", "", "-p", "no:cacheprovider"]
    parts = [
        Part("tests", tests, 120, needs=("pytest",)),
        bench("loader", 90, "--repeats", "5", "--workers", str(min(8, os.cpu_count() or 1))),
    ]
    fast, *others = ("swa30",) if options.quick else ("speedrun94", "swa30", "accurate96")

    def time_to_accuracy(recipe: str, runs: int) -> Part:
        return bench("time_to_accuracy", 200, "--recipe", recipe, "--runs", str(runs), *data, folder=recipe)

    parts.append(time_to_accuracy(fast, 20))
    if options.peers:
        parts.append(bench("compare", 300, "--recipe", fast, "--peer", *options.peers, "--rounds", "2", "--networks",
                           "3", *data))  # fmt: skip
    parts.append(bench("step", 150))
    parts += [time_to_accuracy(recipe, 5) for recipe in others]
    compared = ("swa30", "onecycle30") if options.quick else tuple(RECIPES)
    parts.append(bench("schedules", 600, "--runs", "1", *data, "--recipes", *compared))
    return parts


def run_part(part: Part, left_s: float, out: Path) -> None:
    """Runs a part as long as it may, and notes how it went."""
    part.limit_s = min(part.most_s, left_s - GRACE_S - 2)
    missing = [package for package in part.needs if importlib.util.find_spec(package) is None]
    if missing:
        part.status, part.reason = "left out", f"not installed: {', '.join(missing)}"
        return
    if part.limit_s < LEAST_S:
        part.status, part.reason = "left out", f"{max(left_s, 0):.0f} s of the budget were left"
        return
    log = out / "logs" / f"{part.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch()
    with watch("part"), log.open("w") as said:
        process = subprocess.Popen([sys.executable, *part.arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            code: int | None = process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)  # SIGTERM: a bench then writes what it has
    part.took_s = round(watch.time_s["part"], 2)
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1][:300]
    if code is None:
        part.status, part.reason = "cut", f"after {part.limit_s:.0f} s"
    elif code:
        part.status, part.reason = "failed", f"exit code {code}: {last}"
    else:
        part.status, part.reason = "done", last if part.name == "tests" else ""
    part.files = sorted(str(p.relative_to(out)) for p in (out / part.name).glob("*") if p.is_file())


def write_index(parts: list[Part], options: argparse.Namespace, so_far_s: float) -> None:
    """index.json and report.md, as far as things are."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    head: dict[str, Any] = {
        "date": utc_stamp(), "card": card, "versions": record.versions(), **record.source_state(),
        "quick": options.quick, "budget_s": options.budget_s, "took_s": round(so_far_s, 1),
    }  # fmt: skip
    record.write_json(options.out / "index.json", {**head, "parts": [asdict(part) for part in parts]})
    lines = [(p.name, p.status, p.reason, f"{p.took_s:.0f}") for p in parts]
    text = f"# {card or 'no card'}, {head['date']}\n\n" + harness.markdown(("part", "status", "why", "s"), lines)
    for part in parts:
        table = options.out / part.name / "table.md"
        if part.status in ("done", "cut") and table.exists():
            text += f"\n## {part.name}\n\n{table.read_text()}"
    (options.out / "report.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main(begun_s=process_age_s()))
