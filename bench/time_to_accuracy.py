"""How accurate is a recipe, in how many seconds, and is a variant of it better?

    python -m bench.time_to_accuracy --recipe swa30 --runs 20 --target 0.94
    python -m bench.time_to_accuracy --set "epochs=10 subset=10000" --runs 5 --vary lr_peak=0.8 "lr_peak=1.2 swa_lr=0.1"

The bench trains N seeds of the recipe and of each variant, and compares them seed by seed. Our clock contains training,
averaging and the evaluation that gives the accuracy; the clock of airbench94 and hiverge also whitening and padding,
which ours has on a card only. Joules are those of the card, from the first step to the end. The bench also
times whole processes: a cold one with every cache of the program empty (compiled code, decoded images), then a warm one
with the caches that the cold one filled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from bench import harness
from bench.runs import Job, train_all
from fastcifar.config.config import Config
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load_of
from fastcifar.runs import intervals, record
from fastcifar.training.stopwatch import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "FASTCIFAR_CACHE")
BASE = "as it is"
"""Name of the recipe without a variant, in rows and tables."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipe: str = "swa30"
    """Name of the recipe."""
    set: str = ""
    """Settings that replace those of the recipe, for all variants: "name=value name=value"."""
    vary: tuple[str, ...] = ()
    """Variants, each with further settings: "name=value name=value"."""
    data: str = "auto"
    """As in train_fast.py."""
    runs: int = 20
    """Seeds of each variant: first_seed, first_seed + 1, ..."""
    first_seed: int = 0
    """Choose settings on seeds 0 to 9; report results of seeds from 100 on."""
    target: float | None = None
    """Accuracy (a fraction); the bench reports the share of runs that reach it."""
    pause_s: float = 3.0
    """Seconds that a card rests before the clock of each run; hiverge's program waits as long on the card."""
    processes: int = 1
    """Pairs of a cold and a warm process; 0: none."""
    quick: bool = False
    """1,000 images, 2 epochs, 2 seeds, 1 pair of processes: shows that the bench works."""
    out: Path = Path("bench-results/time_to_accuracy")
    """Folder of runs.jsonl, table.md, table.json and runs.png."""

    @property
    def base(self) -> str:
        """Settings of every variant, in the form of `harness.flags_of`."""
        return " ".join(filter(None, (f"data={self.data}", self.set, "subset=1000 epochs=2" if self.quick else "")))


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.time_to_accuracy")
    if options.quick:
        options = replace(options, runs=min(options.runs, 2), processes=min(options.processes, 1))
    try:
        configs = {BASE: harness.parse(options.recipe, options.base)}
        configs |= {text: harness.parse(options.recipe, options.base, text) for text in options.vary}
        head = harness.describe_environment(configs[BASE])
        sources = {source_of(config): config for config in configs.values()}
        datasets = {source: load_of(config, progress=True) for source, config in sources.items()}
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    runs: list[dict[str, Any]] = []
    processes: list[dict[str, Any]] = []
    with harness.interruptible() as interruption:
        runs.extend(train_all(options.out, jobs(configs, datasets, options)))  # what an interruption leaves is kept
        rows = harness.Rows(options.out / "runs.jsonl")
        measure_processes(rows, datasets[source_of(configs[BASE])].digest, configs[BASE], options, processes)
    if runs:
        write_results(configs, runs, processes, head, options)
        print((options.out / "table.md").read_text())
    return interruption.code


def source_of(config: Config) -> tuple[Any, ...]:
    """The settings that decide which images a config loads."""
    return config.data.source, config.data.subset, config.run.smoke, config.machine.cache_dir


def jobs(configs: dict[str, Config], datasets: dict[tuple[Any, ...], Dataset], options: Options) -> Iterator[Job]:
    """Seed by seed, so that an interrupted bench has the same seeds of every variant."""

    def train(config: Config, dataset: Dataset) -> dict[str, Any]:
        summary = harness.train_once(config, dataset, options.pause_s).summary
        energy = f", {summary['joules']:.0f} J" if summary.get("joules") else ""
        print(f"{to_accuracy_s(summary):.2f} s by our clock, {peer_clock_s(summary):.2f} s by the other programs'"
              f"{energy}", flush=True)  # fmt: skip
        return summary

    for seed in range(options.first_seed, options.first_seed + options.runs):
        for name, config in configs.items():
            key = {"variant": name, "seed": seed}
            yield Job(key=key, config=config, dataset=datasets[source_of(config)], train=train)


def to_accuracy_s(run: dict[str, Any]) -> float:
    """Seconds of training, averaging, and the evaluation that gives the run's accuracy."""
    return run["time_s"]["train"] + run["time_s"]["swa"] + run["time_s"]["eval_final"]


def peer_clock_s(run: dict[str, Any]) -> float:
    """Seconds of whitening, padding, training, averaging and that evaluation, as airbench94 and hiverge count."""
    return to_accuracy_s(run) + (run["preparation_s"] or 0.0)


def measure_processes(rows: harness.Rows, digest: str, config: Config, options: Options,
                      processes: list[dict[str, Any]]) -> None:  # fmt: skip
    """Appends to `processes`: cold and warm in turn, each pair with caches of its own. A pair is one row."""
    flags = harness.flags_of(options.base)
    for pair in range(options.processes):

        def measure_pair(pair: int = pair) -> dict[str, Any]:
            measured: dict[str, Any] = {}
            with tempfile.TemporaryDirectory(prefix="fastcifar-cold-") as caches:
                for kind in ("cold", "warm"):
                    arguments = ["--recipe", options.recipe, *flags, "--seed", str(pair)]
                    measured[kind] = run_process(arguments, Path(caches), kind)
                    if error := measured[kind].get("error"):
                        return {**measured, "error": error}
            return measured

        row = rows.get_or_measure({"processes": pair}, measure_pair, harness.state_of(config, digest))
        for kind in ("cold", "warm"):
            if one := row.get(kind):
                processes.append({"process": kind, **one})
                outcome = one.get("error") or f"{one['process_s']:.1f} s"
                print(f"{kind} process {pair}: {outcome}", flush=True)


def run_process(arguments: list[str], caches: Path, kind: str) -> dict[str, Any]:
    """Runs `python train_fast.py` and times it from its start to its end.

    Images that would have to be downloaded come from the usual cache, because a download would time the network.
    """
    downloads = not {"auto", "cifar10", "cifar100"}.isdisjoint(arguments) and not os.environ.get("FASTCIFAR_DATA")
    fresh_caches = [name for name in CACHES if not (downloads and name == "FASTCIFAR_CACHE")]
    env = {**os.environ, **{name: str(caches / name.lower()) for name in fresh_caches}}
    out = caches / f"run-{kind}"
    command = [sys.executable, str(ROOT / "train_fast.py"), *arguments, "--out", str(out)]
    stopwatch = Stopwatch()
    with stopwatch("process"):
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode or not (out / "model.safetensors").exists():
        return {"error": f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:300]}"}
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    return {"process_s": stopwatch.time_s["process"], "time_s": summary["time_s"], "accuracy": summary["accuracy"],
            "fresh_caches": fresh_caches if kind == "cold" else []}  # fmt: skip


def write_results(configs: dict[str, Config], runs: list[dict[str, Any]], processes: list[dict[str, Any]],
                  head: dict[str, Any], options: Options) -> None:  # fmt: skip
    """Writes table.md, table.json and runs.png."""
    by_variant = {name: [run for run in runs if run["variant"] == name] for name in configs}
    by_variant = {name: variant_runs for name, variant_runs in by_variant.items() if variant_runs}
    base = {run["seed"]: run["accuracy"] for run in by_variant.get(BASE, ())}
    table, lines = [], []
    for name, variant_runs in by_variant.items():
        entry = summarize_variant(name, variant_runs, base, options.target)
        table.append(entry)
        memory = " / ".join(f"{mib:,.0f}" if mib else "-" for mib in entry["peak_mem_mib"].values())
        share = f"{entry['share_reached']:.0%}" if options.target else "-"
        lines.append((name, harness.format_percent(entry["accuracy"]), "-" if name == BASE else
                      harness.format_percent(entry["difference"]),
                      harness.format_interval(entry["time_to_accuracy_s"]),
                      harness.format_interval(entry["peer_clock_s"]), harness.format_interval(entry["joules"]), share,
                      f"{entry['epochs']:g}",
                      f"{entry['train_pflop']:.3g}", memory, entry["n"]))  # fmt: skip
    process_s = {kind: intervals.interval([row["process_s"] for row in processes if row.get("process") == kind
                 and "process_s" in row]) for kind in ("cold", "warm")}  # fmt: skip
    failed = [row["error"] for row in processes if "error" in row]
    result = {**head, "settings": [options.recipe, *options.base.split()], "table": table, "process_s": process_s}
    record.write_json(options.out / "table.json", {**result, "failed": failed})
    first = runs[0]
    note = (f"{options.recipe} with {options.base}: {first['dataset']}, {first['n_train']:,} "
            f"training and {first['n_test']:,} test images, scale {first['scale']}, {head['device']}, "
            f"{first['precision']}, compile {first['compile']}, augmentation by {first['augment']}, "
            f"torch {head['versions']['torch']}. {contents(first)}\n\n")  # fmt: skip
    header = ("variant", "accuracy %: mean ± std [95%]", "difference, points [95%, paired]",
              "seconds to accuracy [95%]", "by the other programs' clock", "joules of the card",
              f"share over {options.target or 'target'}", "epochs", "PFLOP",
              "peak MiB host / card", "n")  # fmt: skip
    text = note + harness.markdown_table(header, lines)
    process_lines = [(kind, harness.format_interval(stats), stats["n"]) for kind, stats in process_s.items()
                     if stats["n"]]  # fmt: skip
    if process_lines:
        text += "\n" + harness.markdown_table(("whole process", "seconds [95%]", "n"), process_lines)
    (options.out / "table.md").write_text(text + "".join(f"\nfailed: {error}\n" for error in failed))
    draw_runs(by_variant, head["device"], options)


def contents(run: dict[str, Any]) -> str:
    """What the two clocks of a table contain."""
    if run["preparation_s"] is None:
        return ("Both clocks contain whitening, padding, training, averaging and the final evaluation; "
                "so the programs' clocks are alike.")  # fmt: skip
    return (f"Seconds to accuracy: training, averaging, final evaluation; the other programs' clock also whitening and "
            f"padding ({run['preparation_s']:.2g} s).")  # fmt: skip


def summarize_variant(
    name: str, runs: list[dict[str, Any]], base: dict[int, float], target: float | None
) -> dict[str, Any]:
    """The entry of a variant in table.json. `base`: accuracy of the recipe by seed."""
    paired = [run["accuracy"] - base[run["seed"]] for run in runs if run["seed"] in base]
    return {
        "variant": name, **intervals.summarize_runs(runs, target), "difference": intervals.interval(paired),
        "compile_s": intervals.interval([run["time_s"]["compile"] for run in runs]),
        "peer_clock_s": intervals.interval([peer_clock_s(run) for run in runs]),
        "joules": intervals.interval([run["joules"] for run in runs if run["joules"] is not None]),
        "peak_mem_mib": {kind: max((run["peak_mem_mib"][kind] or 0) for run in runs) for kind in ("host", "device")},
    }  # fmt: skip


def draw_runs(by_variant: dict[str, list[dict[str, Any]]], device: str, options: Options) -> None:
    """Draws runs.png: accuracy and seconds of every run, by variant."""
    accuracies = {name: [100 * run["accuracy"] for run in runs] for name, runs in by_variant.items()}
    seconds = {name: [to_accuracy_s(run) for run in runs] for name, runs in by_variant.items()}
    targets = dict.fromkeys(by_variant, 100 * options.target) if options.target else {}
    panels: list[harness.Panel] = [("accuracy, %", accuracies, targets), ("seconds to accuracy", seconds, {})]
    harness.draw_panels(options.out / "runs.png", f"{options.recipe}, {device}", panels, mark="target")


if __name__ == "__main__":
    sys.exit(main())
