"""Runs are killed at random instants and resumed: is anything lost?

    python -m bench.kills --out records/kills [--kills 50] [--real 3] [--quick]

Each of `kills` runs (a small network, twelve epochs, the last four an averaging tail) is ended by SIGKILL at an instant
drawn evenly between the first trace of its folder and its end, then resumed to its end. Its final weights, raw and
averaged, must equal those of a run that was never disturbed bit for bit, and so must its metrics, times apart. The last
`real` of them go through train_fast.py as a person would start it. Writes kills.json and kills.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench import processes
from fastcifar.checkpoint import load
from fastcifar.record import versions, write_json
from fastcifar.timing import Stopwatch, utc_stamp

EPOCHS = 12


class Runs:
    """Starts runs below a folder: warm ones with the tiny network, or real ones by the command line."""

    def __init__(self, below: Path, real: bool) -> None:
        self.below, self.real, self.watch = below, real, Stopwatch()
        self.flags = [*processes.FLAGS, "--data", str(processes.write_images(below / "images.npz")),
                      "--cache-dir", str(below / "cache"), "--epochs", str(EPOCHS)]  # fmt: skip

    def go(self, argv: list[str], out: Path | None = None, kill_at_s: float | None = None) -> int:
        """The exit code of a run to its end, or to its kill so long after the folder `out` appeared."""
        log, pause = self.below / "log.txt", threading.Event()
        child = processes.start_real(argv, log) if self.real else processes.start(argv, log)
        if out:
            processes.wait_until(out.exists, 120)
        with self.watch("since its folder"):
            if kill_at_s is not None:
                pause.wait(kill_at_s)
                child.kill()
            if isinstance(child, subprocess.Popen):
                return child.wait()
            child.join()
            return child.exitcode or 0


def result(out: Path) -> dict[str, Any]:
    """What must not depend on interruptions: weights and metrics."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "averaged": load_file(out / "model.safetensors"),
        "raw": load(out / "checkpoint.pt")["state"]["model"],
        "metrics": [{k: v for k, v in row.items() if k != "time_s"} for row in rows],
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Bit for bit."""

    def equal(kind: str) -> bool:
        x, y = a[kind], b[kind]
        return x.keys() == y.keys() and all(torch.equal(v, y[name]) for name, v in x.items())

    return equal("averaged") and equal("raw") and a["metrics"] == b["metrics"]


def where(out: Path) -> str:
    """How far a killed run had come."""
    if not (out / "config.json").exists():
        return "no folder yet"
    if not (out / "checkpoint.pt").exists():
        return "no checkpoint yet"
    state = load(out / "checkpoint.pt")["state"]
    if state["step"] == len(state["schedule"]["table"]):
        return "all steps done"
    return "tail" if state["mean"]["count"] else "cycle"


def kill_once(runs: Runs, at_s: float, expected: dict[str, Any]) -> dict[str, Any]:
    """Kills a run at an instant, resumes it, compares."""
    out = runs.below / "killed"
    shutil.rmtree(out, ignore_errors=True)
    fresh = [*runs.flags, "--out", str(out)]
    if runs.go(fresh, out, at_s) == 0:
        came_to, code = "had ended", 0
    else:
        came_to = where(out)
        code = runs.go(fresh if came_to == "no folder yet" else ["--resume", str(out)])
    left = [path.name for path in out.glob(".*.part")]
    equal = code == 0 and not left and same(result(out), expected)
    return {"at_s": round(at_s, 3), "real": runs.real, "came_to": came_to, "exit": code, "left": left, "equal": equal}


def measure(below: Path, kills: int, real: bool, seed: int) -> list[dict[str, Any]]:
    """An undisturbed run (its second one gives the length: the first fills the cache), then the kills."""
    runs, draw, rows = Runs(below, real), random.Random(seed), []
    for name in ("first", "undisturbed"):
        runs.watch = Stopwatch()
        if code := runs.go([*runs.flags, "--out", str(below / name)], below / name):
            raise SystemExit(f"the undisturbed run ended with {code}: see {below / 'log.txt'}")
    length_s, expected = runs.watch.time_s["since its folder"], result(below / "undisturbed")
    for i in range(kills):
        rows.append(kill_once(runs, draw.random() * length_s, expected))
        print(f"{i + 1}/{kills}", rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Kills by how far the run had come."""
    lines = ["| the run had come to | kills | resumed to equal weights and metrics |", "|---|---|---|"]
    for place in sorted({row["came_to"] for row in rows}):
        here = [row for row in rows if row["came_to"] == place]
        lines.append(f"| {place} | {len(here)} | {sum(row['equal'] for row in here)} |")
    return "\n".join([*lines, f"| all | {len(rows)} | {sum(row['equal'] for row in rows)} |", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills runs at random instants and resumes them.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--real", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three kills, none through the command line")
    asked = parser.parse_args()
    kills, real = (3, 0) if asked.quick else (asked.kills, asked.real)
    rows = []
    for count, through_command_line in ((kills - real, False), (real, True)):
        below = asked.out / ("real" if through_command_line else "warm")
        below.mkdir(parents=True, exist_ok=True)
        rows += measure(below, count, through_command_line, asked.seed) if count else []
        shutil.rmtree(below)
    facts = {"date": utc_stamp(), "versions": versions(), "seed": asked.seed, "epochs": EPOCHS}
    write_json(asked.out / "kills.json", {**facts, "kills": rows})
    (asked.out / "kills.md").write_text(table(rows))
    print(table(rows))
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
