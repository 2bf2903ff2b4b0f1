"""How long does a person wait from the command to the first training step? Starts the command several times.

    python -m bench.cold_start --data PATH

Each start is a process of its own, on the whole data set, stopped after a thousandth of an epoch. The first one fills
the cache of decoded images and is reported apart. `process_cpu`: user and system seconds of the whole process, which
depend little on what else the machine does. Writes runs.jsonl, table.json and table.md.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from bench import harness
from fastcifar.runs import record

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("import", "data", "compile")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipe: str = "speedrun94"
    """As in train_fast.py."""
    data: str = "auto"
    """As in train_fast.py."""
    flags: str = ""
    """Further flags of train_fast.py."""
    starts: int = 5
    """Starts with a filled cache."""
    programs: tuple[Path, ...] = (ROOT / "train_fast.py",)
    """train_fast.py of this checkout, or of several, which then start in turn."""
    quick: bool = False
    """The synthetic set, 1 start: shows that the bench works."""
    out: Path = Path("bench-results/cold_start")
    """Folder of runs.jsonl, table.json and table.md."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.cold_start")
    flags = ["--recipe", options.recipe, "--data", options.data, *options.flags.split()]
    starts = options.starts
    if options.quick:
        flags, starts = ["--data", "synthetic", "--subset", "500", "--scale", "small"], 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1 + starts):
            for program in options.programs:
                command = [sys.executable, str(program), *flags, "--epochs", "0.001", "--tta", "none", "--swa-start",
                           "None", "--out", tempfile.mkdtemp(dir=folder)]  # fmt: skip
                load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
                done = subprocess.run(command, capture_output=True, text=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                if done.returncode:
                    print(done.stderr.strip() or f"error: exit code {done.returncode}", file=sys.stderr)
                    return 2
                summary = json.loads(done.stdout.splitlines()[-1])
                cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                rows.append({"start": i, "program": options.programs.index(program), "load": load,
                             **{k: summary["time_s"][k] for k in (*PHASES, "first_step")}, "process_cpu": cpu_s,
                             "device": summary["device"], "commit": summary["commit"]})  # fmt: skip
                record.write_lines(options.out / "runs.jsonl", rows)
    write_table(options, rows)
    return 0


def write_table(options: Options, rows: list[dict[str, Any]]) -> None:
    """Medians over the starts with a filled cache, and the first start beside them, of each program."""
    names = (*PHASES, "first_step", "process_cpu")
    lines, table = [], []
    for program in range(len(options.programs)):
        first, *warm = (row for row in rows if row["program"] == program)
        medians = {name: statistics.median(row[name] for row in warm) for name in names}
        table.append({"median_s": medians, "first_s": first, "starts": len(warm)})
        which = f"program {program + 1}, " if len(options.programs) > 1 else ""
        lines += [(f"{which}first start", *(f"{first[name]:.2f}" for name in names)),
                  (f"{which}median of {len(warm)}", *(f"{medians[name]:.2f}" for name in names))]  # fmt: skip
    record.write_json(options.out / "table.json", {**table[0], "programs": table})
    header = ("seconds", *names)
    load = f"load {min(row['load'] for row in rows):.1f} to {max(row['load'] for row in rows):.1f}"
    note = f"{options.recipe} {options.flags}, {rows[0]['device']}, {load}, commit {str(rows[-1]['commit'])[:10]}\n\n"
    (options.out / "table.md").write_text(note + harness.markdown_table(header, lines))
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
