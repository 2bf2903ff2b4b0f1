"""Does torch.compile pay? Seconds to compile, cold and from the cache, against seconds saved per epoch.

    python -m bench.compile --recipe swa30 --scale full

For each mode, two processes of train_fast.py share a cache of compiled code that is empty at first; a process that
compiles nothing comes before and after them all. Writes runs.jsonl, table.json and table.md.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import tyro

from bench import harness
from bench.compare import CODE_CACHES
from bench.peers import ROOT
from fastcifar.config.config import Machine
from fastcifar.runs import record

MODES = tuple(mode for mode in get_args(get_type_hints(Machine)["compile"]) if mode not in ("auto", "off"))
EPOCH_IMAGES = 50_000
EPOCHS = 3
"""Epochs of a run; the first one is not timed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    modes: tuple[str, ...] = MODES
    """Modes of torch.compile."""
    recipe: str = "swa30"
    """Recipe whose network and optimizer are timed."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """As in train_fast.py."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As in train_fast.py."""
    batch: int = 500
    """Images per step."""
    steps: int = 100
    """Steps per epoch."""
    quick: bool = False
    """One mode, 3 steps of 100 images, the small network: shows that the bench works."""
    out: Path = Path("bench-results/compile")
    """Folder of runs.jsonl, table.json and table.md."""

    @property
    def settings(self) -> str:
        """Settings of every process, in the form of `harness.flags_of`."""
        return (f"device={self.device} scale={self.scale} batch_size={self.batch} epochs={EPOCHS} swa_start=None "
                "tta=none checkpoint_every=0")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.compile")
    if options.quick:
        options = replace(options, modes=options.modes[:1], scale="small", batch=100, steps=3)
    try:
        configs = {
            mode: harness.parse(options.recipe, f"{options.settings} compile={mode}")
            for mode in ("off", *options.modes)
        }
        head = harness.describe_environment(configs["off"])
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    head |= {"batch": options.batch, "steps": options.steps, "recipe": options.recipe}
    rows, found = harness.Rows(options.out / "runs.jsonl"), list[dict[str, Any]]()
    with harness.interruptible() as interruption, tempfile.TemporaryDirectory() as folder:
        images, data = Path(folder) / "images.npz", harness.random_dataset(options.batch * options.steps, options.batch)
        np.savez(images, x_train=data.x_train, y_train=data.y_train, x_test=data.x_test, y_test=data.y_test)
        for i, mode in enumerate(("off", *options.modes, "off")):
            state = harness.state_of(configs[mode], options.steps)
            row = rows.get_or_measure({"mode": mode, "place": i}, lambda m=mode: measure(m, options, images), state)  # type: ignore[misc]
            found.append(row)
            print(f"{mode}: {row.get('error') or row['step_ms']}", flush=True)
    if found:
        write_results(found, head, options.out)
        print((options.out / "table.md").read_text())
    return interruption.code or int(any("error" in row for row in found))


def measure(mode: str, options: Options, images: Path) -> dict[str, Any]:
    """Two processes that share a cache of compiled code, empty at first; one process where nothing is compiled.

    `warm_up_s`: seconds of the warm-up, which compiles; `cpu_s`: user and system seconds of the process and those that
    it started; `step_ms`: ms of a step after the first epoch, of each process.
    """
    caches = ("filled",) if mode == "off" else ("cold", "filled")
    row: dict[str, Any] = {"load": os.getloadavg()[0], "warm_up_s": {}, "cpu_s": {}, "step_ms": {}}
    with tempfile.TemporaryDirectory() as folder:
        for cache in caches:
            out, before = Path(folder) / cache, resource.getrusage(resource.RUSAGE_CHILDREN)
            flags = ["--data", str(images), "--cache-dir", folder, "--out", str(out)]
            command = [sys.executable, str(ROOT / "train_fast.py"), "--recipe", options.recipe, *flags]
            command += harness.flags_of(f"{options.settings} compile={mode}")
            env = {name: value for name, value in os.environ.items() if name not in CODE_CACHES}
            done = subprocess.run(command, capture_output=True, text=True, env=env)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                return {"error": done.stderr.strip()[-300:] or f"exit code {done.returncode}"}
            summary = json.loads(done.stdout.splitlines()[-1])
            if summary["compile"] != mode:
                return {"error": next(line for line in done.stdout.splitlines() if "torch.compile failed" in line)}
            first, *_, last = harness.read_rows(out / "metrics.jsonl")
            row["warm_up_s"][cache] = summary["time_s"]["compile"]
            row["cpu_s"][cache] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            row["step_ms"][cache] = 1e3 * (last["time_s"] - first["time_s"]) / (last["step"] - first["step"])
    pflop = summary["train_pflop"] / summary["num_steps"]
    return {**row, "loss": last["loss_train"], "pflop_per_step": pflop,
            **{key: summary[key] for key in ("device", "precision", "scale", "commit", "dirty")}}  # fmt: skip


def results(rows: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """A row per mode: seconds to compile and saved, both against the mean of the processes that do not compile.

    `break_even_epochs` (of 50,000 images) is None where nothing is saved.
    """
    plain = [row for row in rows if row["mode"] == "off" and "error" not in row]
    table: list[dict[str, Any]] = []
    for row in rows:
        if row["mode"] == "off":
            continue
        if "error" in row or not plain:
            table.append({"mode": row["mode"], "error": row.get("error", "nothing to compare with")})
            continue
        saved_ms = _mean(plain, "step_ms") - _mean([row], "step_ms")
        compile_s = {cache: s - _mean(plain, "warm_up_s") for cache, s in row["warm_up_s"].items()}
        saved_s = 1e-3 * saved_ms * EPOCH_IMAGES / batch
        table.append({
            "mode": row["mode"], "compile_s": compile_s, "step_ms": _mean([row], "step_ms"),
            "compile_cpu_s": {cache: s - _mean(plain, "cpu_s") for cache, s in row["cpu_s"].items()},
            "saved_s_per_epoch": saved_s, "saved_s_per_pflop": 1e-3 * saved_ms / row["pflop_per_step"],
            "break_even_epochs": {cache: s / saved_s if saved_s > 0 else None for cache, s in compile_s.items()},
        })  # fmt: skip
    return table


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(value for row in rows for value in row[name].values())


def write_results(rows: list[dict[str, Any]], head: dict[str, Any], out: Path) -> None:
    """Writes table.json and table.md of the modes that were measured."""
    table = results(rows, head["batch"])
    plain_ms = [row["step_ms"]["filled"] for row in rows if row["mode"] == "off" and "error" not in row]
    record.write_json(out / "table.json", {**head, "plain_step_ms": plain_ms, "table": table})
    lines = [("off", *["-"] * 4, ", ".join(f"{ms:.1f}" for ms in plain_ms), *["-"] * 4)]
    for row in table:
        if "error" in row:
            lines.append((row["mode"], row["error"], *["-"] * 8))
            continue
        epochs = [f"{n:.1f}" if n is not None else "never" for n in row["break_even_epochs"].values()]
        seconds = [f"{s:.1f}" for key in ("compile_s", "compile_cpu_s") for s in row[key].values()]
        lines.append((row["mode"], *seconds, f"{row['step_ms']:.1f}", f"{row['saved_s_per_epoch']:.2f}",
                      f"{row['saved_s_per_pflop']:.0f}", *epochs))  # fmt: skip
    header = ("mode", "compile s, cold", "from the cache", "its CPU s, cold", "from the cache", "step ms",
              "saved s per 50,000 images", "saved s per PFLOP", "pays after epochs, cold",
              "from the cache")  # fmt: skip
    loads = ", ".join(f"{row['load']:.1f}" for row in rows if "load" in row)
    note = (f"{head['recipe']}, scale {head['scale']}, {head['steps']} steps of {head['batch']} images an epoch, "
            f"{head['device']}, {head['precision']}; load before each mode: {loads}.\n\n")  # fmt: skip
    (out / "table.md").write_text(note + harness.markdown_table(header, lines))


if __name__ == "__main__":
    sys.exit(main())
