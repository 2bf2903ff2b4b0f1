"""Is anything lost when a run is killed at a random instant and resumed?

    PYTHONPATH=. python tests/kills.py --out DIR [--kills 50] [--real 3] [--quick]

Each run (a small network, twelve epochs, the last four an averaging tail) is ended by SIGKILL at an instant drawn
evenly between the creation of its folder and its end, and then resumed. Its final weights, raw and averaged, and its
metrics without times must be equal, bit for bit, to those of an undisturbed run. The last `--real` runs start from the
command line. It writes kills.json and kills.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
import torch
from safetensors.torch import load_file

from fastcifar.runs.checkpoint import load
from fastcifar.runs.environment import utc_stamp, versions
from fastcifar.runs.record import write_json
from fastcifar.training.stopwatch import Stopwatch

EPOCHS = 12


class Runs:
    """Starts runs in a folder: warm ones with the tiny network, or real ones from the command line."""

    def __init__(self, folder: Path, real: bool) -> None:
        self.folder, self.real, self.log = folder, real, folder / "log.txt"
        self.stopwatch = Stopwatch()
        self.flags = [*processes.FLAGS, "--data", str(processes.write_images(folder / "images.npz")),
                      "--cache-dir", str(folder / "cache"), "--epochs", str(EPOCHS)]  # fmt: skip

    def run(self, argv: list[str], out: Path, kill_at_s: float | None = None) -> int:
        """Runs to the end, or until a kill `kill_at_s` seconds after the folder `out` exists. Returns the exit code."""
        pause = threading.Event()
        process = processes.start_real(argv, self.log) if self.real else processes.start(argv, self.log)
        processes.wait_until(out.exists, 120)
        with self.stopwatch("run"):
            if kill_at_s is not None:
                pause.wait(kill_at_s)
                process.kill()
            if isinstance(process, subprocess.Popen):
                return process.wait()
            process.join()
            return process.exitcode or 0


def read_result(out: Path) -> dict[str, Any]:
    """What must not depend on interruptions: weights and metrics."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "averaged": load_file(out / "model.safetensors"),
        "raw": load(out / "checkpoint.pt")["state"]["model"],
        "metrics": [{name: value for name, value in row.items() if name != "time_s"} for row in rows],
    }


def are_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two results are equal bit for bit."""

    def has_equal(kind: str) -> bool:
        x, y = a[kind], b[kind]
        return x.keys() == y.keys() and all(torch.equal(value, y[name]) for name, value in x.items())

    return has_equal("averaged") and has_equal("raw") and a["metrics"] == b["metrics"]


def progress_of(out: Path) -> str:
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
    """Kills a run at an instant, resumes it and compares its result with the expected one."""
    out = runs.folder / "killed"
    shutil.rmtree(out, ignore_errors=True)
    argv = [*runs.flags, "--out", str(out)]
    if runs.run(argv, out, at_s) == 0:
        progress, code = "had ended", 0
    else:
        progress = progress_of(out)
        code = runs.run(argv if progress == "no folder yet" else ["--resume", str(out)], out)
    left = [path.name for path in out.glob(".*.part")]
    equal = code == 0 and not left and are_equal(read_result(out), expected)
    return {"at_s": round(at_s, 3), "real": runs.real, "came_to": progress, "exit": code, "left": left, "equal": equal}


def measure(folder: Path, kills: int, real: bool, seed: int) -> list[dict[str, Any]]:
    """Runs twice undisturbed (first to fill the cache, then to measure the length), then once per kill."""
    runs, generator, rows = Runs(folder, real), random.Random(seed), []
    for name in ("first", "undisturbed"):
        runs.stopwatch = Stopwatch()
        if code := runs.run([*runs.flags, "--out", str(folder / name)], folder / name):
            raise SystemExit(f"the undisturbed run ended with {code}: see {runs.log}")
    length_s, expected = runs.stopwatch.time_s["run"], read_result(folder / "undisturbed")
    for i in range(kills):
        rows.append(kill_once(runs, generator.random() * length_s, expected))
        print(f"{i + 1}/{kills}", rows[-1], flush=True)
    return rows


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Kills by how far the run had come."""
    lines = ["| the run had come to | kills | resumed to equal weights and metrics |", "|---|---|---|"]
    for progress in sorted({row["came_to"] for row in rows}):
        group = [row for row in rows if row["came_to"] == progress]
        lines.append(f"| {progress} | {len(group)} | {sum(row['equal'] for row in group)} |")
    return "\n".join([*lines, f"| all | {len(rows)} | {sum(row['equal'] for row in rows)} |", ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kills runs at random instants and resumes them.")
    parser.add_argument("--out", type=Path, required=True, help="folder of kills.json and kills.md")
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--real", type=int, default=3, help="how many of them start from the command line")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants")
    parser.add_argument("--quick", action="store_true", help="three kills, none from the command line")
    options = parser.parse_args(argv)
    kills, real_kills = (3, 0) if options.quick else (options.kills, options.real)
    rows = []
    for name, count in (("warm", kills - real_kills), ("real", real_kills)):
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        rows += measure(folder, count, name == "real", options.seed) if count else []
        shutil.rmtree(folder)
    head = {"date": utc_stamp(), "versions": versions(), "seed": options.seed, "epochs": EPOCHS}
    write_json(options.out / "kills.json", {**head, "kills": rows})
    (options.out / "kills.md").write_text(markdown_table(rows))
    print(markdown_table(rows))
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
