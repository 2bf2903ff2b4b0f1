"""How accurate is a recipe and how long does it take? N seeds of it, and of variants of it; and whole processes.

    python -m bench.time_to_accuracy --recipe swa30 --runs 20 --target 0.94
    python -m bench.time_to_accuracy --set "epochs=10 subset=10000" --runs 5 --vary lr_peak=0.8 "lr_peak=1.2 swa_lr=0.1"

Seconds are training, averaging and the evaluation that gives the accuracy; compiling and data are reported apart. A
variant is compared with the recipe seed by seed. A cold process starts with every cache of the program empty (compiled
code and decoded images), a warm one with those that the cold one left; both are timed from the command to its end, when
the weights are on disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from bench import harness
from fastcifar import data, record
from fastcifar.config import Config
from fastcifar.timing import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "FASTCIFAR_CACHE")
BASE = "as it is"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipe: str = "swa30"
    """Name of the recipe."""
    set: str = ""
    """Settings over the recipe, for all variants: "name=value name=value"."""
    vary: tuple[str, ...] = ()
    """Variants, each "name=value name=value" over the settings before."""
    data: str = "auto"
    """As in train_fast.py."""
    runs: int = 20
    """Seeds of each variant: 0, 1, ..."""
    target: float | None = None
    """Accuracy (fraction) whose share of runs is reported."""
    processes: int = 1
    """Pairs of a cold and a warm process; 0: none."""
    quick: bool = False
    """1,000 images, 2 epochs, 2 seeds, 1 pair of processes: shows that it works."""
    out: Path = Path("bench-results/time_to_accuracy")
    """Where runs.jsonl, table.md, table.json and runs.png go."""

    @property
    def base(self) -> list[str]:
        """The settings of every variant, as texts."""
        return [f"data={self.data}", self.set, "subset=1000 epochs=2" if self.quick else ""]


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.time_to_accuracy")
    if options.quick:
        options = replace(options, runs=min(options.runs, 2), processes=min(options.processes, 1))
    try:
        configs = {BASE: harness.parse(options.recipe, *options.base)}
        configs |= {text: harness.parse(options.recipe, *options.base, text) for text in options.vary}
        configs = {name: replace(c, checkpoint_every=0) for name, c in configs.items()}
        head = harness.facts(configs[BASE])
        sets = {key: data.load(config) for key, config in {part_of(c): c for c in configs.values()}.items()}
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows = harness.Rows(options.out / "runs.jsonl", "")
    runs: list[dict[str, Any]] = []
    processes: list[dict[str, Any]] = []
    with harness.stoppable() as stop:
        measure_runs(rows, configs, sets, options, runs)
        measure_processes(rows, sets[part_of(configs[BASE])].digest, configs[BASE], options, processes)
    if runs:
        write_results(configs, runs, processes, head, options)
        print((options.out / "table.md").read_text())
    return stop.code


def part_of(config: Config) -> tuple[Any, ...]:
    """What decides which images a config trains on."""
    return config.data, config.subset, config.smoke, config.cache_dir


def measure_runs(rows: harness.Rows, configs: dict[str, Config], sets: dict[tuple[Any, ...], data.Dataset],
                 options: Options, runs: list[dict[str, Any]]) -> None:  # fmt: skip
    """Fills `runs`, seed by seed, so that a bench that was stopped has the same seeds of every variant."""
    for seed in range(options.runs):
        for name, config in configs.items():
            dataset = sets[part_of(config)]

            def one(config: Config = config, seed: int = seed, dataset: data.Dataset = dataset) -> dict[str, Any]:
                return harness.train_once(harness.with_seed(config, seed), dataset).summary

            row = rows.once({"variant": name, "seed": seed}, one, harness.state_of(config, dataset.digest))
            runs.append(row)
            print(f"{name}, seed {seed}: {row['accuracy']:.2%} in {to_accuracy_s(row):.1f} s", flush=True)


def to_accuracy_s(run: dict[str, Any]) -> float:
    """Training, averaging, and the evaluation that gives the run's accuracy."""
    return run["time_s"]["train"] + run["time_s"]["swa"] + run["time_s"]["eval_final"]


def measure_processes(rows: harness.Rows, digest: str, config: Config, options: Options,
                      processes: list[dict[str, Any]]) -> None:  # fmt: skip
    """Fills `processes`: cold and warm in turn, each pair on caches of its own."""
    flags = [w for text in options.base for w in harness.words(text)]
    for pair in range(options.processes):
        with tempfile.TemporaryDirectory(prefix="fastcifar-cold-") as caches:
            for kind in ("cold", "warm"):

                def one(pair: int = pair, kind: str = kind, caches: str = caches) -> dict[str, Any]:
                    return run_process(["--recipe", options.recipe, *flags, "--seed", str(pair)], Path(caches), kind)

                row = rows.once({"process": kind, "pair": pair}, one, harness.state_of(config, digest))
                processes.append(row)
                print(
                    f"{kind} process {pair}: {row.get('error') or format(row['process_s'], '.1f') + ' s'}", flush=True
                )


def run_process(arguments: list[str], caches: Path, kind: str) -> dict[str, Any]:
    """One `python train_fast.py` from its start to its end. Where images would have to be fetched, theirs are kept."""
    fetched = any(w in ("auto", "cifar10") for w in arguments) and not os.environ.get("FASTCIFAR_DATA")
    own = [name for name in CACHES if not (fetched and name == "FASTCIFAR_CACHE")]
    env = {**os.environ, **{name: str(caches / name.lower()) for name in own}}
    out = caches / f"run-{kind}"
    command = [sys.executable, str(ROOT / "train_fast.py"), *arguments, "--out", str(out)]
    watch = Stopwatch()
    with watch("process"):
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode or not (out / "model.safetensors").exists():
        return {"error": f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:300]}"}
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    return {"process_s": watch.time_s["process"], "time_s": summary["time_s"], "accuracy": summary["accuracy"],
            "fresh_caches": own if kind == "cold" else []}  # fmt: skip


def write_results(configs: dict[str, Config], runs: list[dict[str, Any]], processes: list[dict[str, Any]],
                  head: dict[str, Any], options: Options) -> None:  # fmt: skip
    """table.md, table.json and runs.png."""
    base = {row["seed"]: row["accuracy"] for row in runs if row["variant"] == BASE}
    table, lines = [], []
    for name in configs:
        mine = [row for row in runs if row["variant"] == name]
        if not mine:
            continue
        entry: dict[str, Any] = {
            "variant": name, **record.summarize_runs(mine, options.target),
            "difference": record.interval([r["accuracy"] - base[r["seed"]] for r in mine if r["seed"] in base]),
            "compile_s": record.interval([r["time_s"]["compile"] for r in mine]),
            "peak_mem_mib": {k: max((r["peak_mem_mib"][k] or 0) for r in mine) for k in ("host", "device")},
        }  # fmt: skip
        table.append(entry)
        memory = " / ".join(f"{v:,.0f}" if v else "-" for v in entry["peak_mem_mib"].values())
        share = f"{entry['share_reached']:.0%}" if options.target else "-"
        lines.append((name, harness.percent(entry["accuracy"]), "-" if name == BASE else
                      harness.percent(entry["difference"]), harness.measured(entry["time_to_accuracy_s"]), share,
                      f"{entry['epochs']:g}", f"{entry['train_pflop']:.3g}", memory, entry["n"]))  # fmt: skip
    process_s = {kind: record.interval([r["process_s"] for r in processes if r.get("process") == kind
                 and "process_s" in r]) for kind in ("cold", "warm")}  # fmt: skip
    failed = [row["error"] for row in processes if "error" in row]
    result = {**head, "settings": [options.recipe, *options.base], "table": table, "process_s": process_s}
    record.write_json(options.out / "table.json", {**result, "failed": failed})
    first = runs[0]
    note = (f"{options.recipe} with {' '.join(filter(None, options.base))}: {first['dataset']}, {first['n_train']:,} "
            f"training and {first['n_test']:,} test images, scale {first['scale']}, {head['device']}, "
            f"{first['precision']}, compile {first['compile']}, augmentation by {first['augment']}, "
            f"torch {head['versions']['torch']}.\n\n")  # fmt: skip
    header = ("variant", "accuracy %: mean ± std [95%]", "difference, points [95%, paired]",
              "seconds to accuracy [95%]", f"share over {options.target or 'target'}", "epochs", "PFLOP",
              "peak MiB host / card", "n")  # fmt: skip
    whole = [(kind, harness.measured(s), s["n"]) for kind, s in process_s.items() if s["n"]]
    text = note + harness.markdown(header, lines)
    if whole:
        text += "\n" + harness.markdown(("whole process", "seconds [95%]", "n"), whole)
    (options.out / "table.md").write_text(text + "".join(f"\nfailed: {why}\n" for why in failed))
    accuracies = {n: [100 * r["accuracy"] for r in runs if r["variant"] == n] for n in configs}
    marks = dict.fromkeys(configs, 100 * options.target) if options.target else {}
    seconds = {n: [to_accuracy_s(r) for r in runs if r["variant"] == n] for n in configs}
    panels: list[harness.Panel] = [("accuracy, %", accuracies, marks), ("seconds to accuracy", seconds, {})]
    harness.draw_panels(options.out / "runs.png", f"{options.recipe}, {head['device']}", panels, mark="target")


if __name__ == "__main__":
    sys.exit(main())
