"""How long does a person wait from the command to the first training step? Starts the command several times.

    python -m bench.cold_start --data PATH

Each start is a process of its own, on the whole data set, stopped after a thousandth of an epoch. The first one fills
the cache of decoded images and is reported apart. Writes runs.jsonl, table.json and table.md.
"""

from __future__ import annotations

import json
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
    quick: bool = False
    """The synthetic set, 2 starts: shows that the bench works."""
    out: Path = Path("bench-results/cold_start")
    """Folder of runs.jsonl, table.json and table.md."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.cold_start")
    flags = ["--recipe", options.recipe, "--data", options.data, *options.flags.split()]
    starts = options.starts
    if options.quick:
        flags, starts = ["--data", "synthetic", "--subset", "500", "--scale", "small"], 2
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1 + starts):
            command = [sys.executable, str(ROOT / "train_fast.py"), *flags, "--epochs", "0.001", "--tta", "none",
                       "--swa-start", "None", "--out", f"{folder}/{i}"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr.strip() or f"error: exit code {done.returncode}", file=sys.stderr)
                return 2
            summary = json.loads(done.stdout.splitlines()[-1])
            rows.append({"start": i, **{k: summary["time_s"][k] for k in (*PHASES, "first_step")},
                         "device": summary["device"], "commit": summary["commit"]})  # fmt: skip
            record.write_lines(options.out / "runs.jsonl", rows)
    write_table(options, rows)
    return 0


def write_table(options: Options, rows: list[dict[str, Any]]) -> None:
    """Medians over the starts with a filled cache, and the first start beside them."""
    names = (*PHASES, "first_step")
    medians = {name: statistics.median(row[name] for row in rows[1:]) for name in names}
    record.write_json(options.out / "table.json", {"median_s": medians, "first_s": rows[0], "starts": len(rows) - 1})
    header = ("seconds", *names)
    lines = [("first start", *(f"{rows[0][name]:.2f}" for name in names)),
             (f"median of {len(rows) - 1}", *(f"{medians[name]:.2f}" for name in names))]  # fmt: skip
    note = f"{options.recipe}, {rows[0]['device']}, commit {str(rows[0]['commit'])[:10]}\n\n"
    (options.out / "table.md").write_text(note + harness.markdown_table(header, lines))
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
