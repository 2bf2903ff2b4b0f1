"""How fast and accurate is fastcifar beside other programs, on the same machine and the same images?

    python -m bench.compare --peer airbench94=CHECKOUT --recipe swa30 --rounds 5

A peer is an unchanged script of a checkout. A round runs one process of each program in turn. The bench reports each
program's own clock (what the program calls its training time) and the whole process, from the command to the accuracy
of its first network. The first round starts with empty caches of compiled code, later rounds with filled ones. Without
a CUDA card a peer runs through `bench.launch`, in float32 and not compiled; the table then says so.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from bench import harness
from bench.peers import ROOT, Peer, PeerTable, find_peer, peer_command, prepare_images, read_summary, run_until
from fastcifar.config.config import Config
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load_of
from fastcifar.runs import intervals, record

FASTCIFAR = "fastcifar"
CODE_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    peer: tuple[str, ...]
    """NAME=CHECKOUT for airbench94, airbench96 and hiverge; NAME=SCRIPT for a script that prints the same table."""
    recipe: str = "swa30"
    """Recipe of fastcifar."""
    set: str = ""
    """Settings that replace those of the recipe: "name=value name=value"."""
    data: str = "auto"
    """Images for all programs, as in train_fast.py."""
    subset: int | None = None
    """Number of training images, with a fifth as many for testing. A peer needs at least one batch, such as 2000."""
    rounds: int = 5
    """Processes of each program, in turn; fastcifar's seeds are first_seed, first_seed + 1, ..."""
    first_seed: int = 100
    """Settings are chosen on seeds 0 to 9 only."""
    networks: int = 1
    """Networks that a peer trains in one process; fastcifar trains one."""
    limit_s: float = 3600.0
    """Seconds after which a process is ended."""
    quick: bool = False
    """2,000 images, 1 round: shows that the bench works. A peer with a large network still takes minutes."""
    out: Path = Path("bench-results/compare")
    """Folder of runs.jsonl, table.md, table.json, ratios.png and the logs of the processes."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.compare")
    if options.quick:
        options = replace(options, rounds=1, networks=1, subset=options.subset or 2_000)
    try:
        peers = [find_peer(text) for text in options.peer]
        settings = f"data={options.data} subset={options.subset} {options.set}"
        config = harness.parse(options.recipe, settings)
        head = harness.describe_environment(config)
        dataset = load_of(config, progress=True)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows = harness.Rows(options.out / "runs.jsonl")
    measurements: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fastcifar-compare-") as folder, harness.interruptible() as interruption:
        images = prepare_images(dataset, Path(folder))
        measure(rows, peers, config, dataset, images, options, measurements)
    if any(row["runs"] for row in measurements):
        write_results(measurements, peers, dataset, head, options)
        print((options.out / "table.md").read_text())
    return interruption.code or int(any("error" in row for row in measurements))


def measure(rows: harness.Rows, peers: list[Peer], config: Config, dataset: Dataset, images: Path,
            options: Options, measurements: list[dict[str, Any]]) -> None:  # fmt: skip
    """Appends to `measurements`, round by round: fastcifar, then each peer."""
    folder = images.parent
    env = {name: str(folder / "caches" / name.lower()) for name in CODE_CACHES}
    flags = [*harness.flags_of(options.set), "--data", str(images)]
    for number in range(options.rounds):

        def run_fastcifar(number: int = number) -> dict[str, Any]:
            command = [sys.executable, str(ROOT / "train_fast.py"), "--recipe", options.recipe, *flags]
            command += ["--seed", str(options.first_seed + number), "--out", str(folder / f"run-{number}")]
            log = options.out / "logs" / f"{FASTCIFAR}-{number}.txt"
            all_env = {**env, "FASTCIFAR_CACHE": str(folder / f"decoded-{number}")}
            return run_until(command, folder, log, read_summary, 1, options.limit_s, all_env, wait=True)

        def run_peer(peer: Peer, number: int = number) -> dict[str, Any]:
            log = options.out / "logs" / f"{peer.name}-{number}.txt"
            row = run_until(peer_command(peer), folder, log, PeerTable().feed, options.networks, options.limit_s, env)
            return {**row, "sha256": peer.digest}

        def measure_program(name: str, run: Callable[[], dict[str, Any]], *more: Any, number: int = number) -> None:
            state = harness.state_of(config, dataset.digest, *more)
            row = rows.get_or_measure({"program": name, "round": number}, run, state)
            measurements.append(row)
            print(f"round {number}, {name}: {row.get('error') or describe_row(row)}", flush=True)

        measure_program(FASTCIFAR, run_fastcifar)
        for peer in peers:
            measure_program(peer.name, partial(run_peer, peer), peer.digest, options.networks)


def describe_row(row: dict[str, Any]) -> str:
    """A row as a line of progress."""
    run = row["runs"][0]
    return f"{run['accuracy']:.2%} in {run['time_s']:.2f} s by its own clock, {row['first_s']:.1f} s with its process"


def write_results(measurements: list[dict[str, Any]], peers: list[Peer], dataset: Dataset, head: dict[str, Any],
                  options: Options) -> None:  # fmt: skip
    """Writes table.md, table.json and ratios.png."""
    succeeded = [row for row in measurements if "error" not in row]
    reference = {row["round"]: row for row in succeeded if row["program"] == FASTCIFAR}
    clocks = {"own clock": own_clock_s, "whole process": process_s}
    ratios: dict[str, dict[str, list[float]]] = {clock: {} for clock in clocks}
    table, lines = [], []
    for name in (FASTCIFAR, *(peer.name for peer in peers)):
        rows = [row for row in succeeded if row["program"] == name]
        for clock, seconds in clocks.items():
            compared = [row for row in rows if row["round"] in reference]
            if seconds is process_s:  # the first round compiles and fills caches
                compared = [row for row in compared if row["round"] > 0] or compared
            ratios[clock][name] = [seconds(row) / seconds(reference[row["round"]]) for row in compared]
        entry = summarize_program(name, rows, *(ratios[clock][name] for clock in clocks))
        entry["errors"] = [row["error"] for row in measurements if row["program"] == name and "error" in row]
        table.append(entry)
        first = entry["process_first_s"]
        shown_ratios = ("1" if name == FASTCIFAR else harness.format_interval(entry[key]) for key in
                        ("ratio_own_clock", "ratio_process"))  # fmt: skip
        lines.append((name, harness.format_percent(entry["accuracy"]), harness.format_interval(entry["time_s"]),
                      f"{first:.1f}" if first else "-", harness.format_interval(entry["process_later_s"]),
                      *shown_ratios, entry["accuracy"]["n"]))  # fmt: skip
    sizes = {"dataset": dataset.name, "n_train": len(dataset.y_train), "n_test": len(dataset.y_test)}
    without_card = not torch.cuda.is_available()
    record.write_json(options.out / "table.json", {**head, **sizes, "without_card": without_card, "table": table})
    run: dict[str, Any] = next((row["runs"][0] for row in reference.values()), {})
    note = (f"{sizes['dataset']}, {sizes['n_train']:,} training and {sizes['n_test']:,} test images for all programs, "
            f"{head['device']}, torch {head['versions']['torch']}; fastcifar: {options.recipe} {options.set}, "
            f"{run.get('epochs')} epochs, scale {run.get('scale')}, {run.get('precision')}. ")  # fmt: skip
    if without_card:
        note += "No CUDA card here: peers ran in float32 and not compiled, with their own settings. "
    if run.get("scale") == "small":
        note += "fastcifar trained its small network, the peers did not: the ratios say nothing about a card. "
    header = ("program", "accuracy %: mean ± std [95%]", "seconds by its own clock", "process, first round s",
              "process, later rounds s", "own clock / fastcifar's",
              "process / fastcifar's, later rounds", "n")  # fmt: skip
    failed = "".join(f"\n{entry['program']} failed: {error}\n" for entry in table for error in entry["errors"])
    (options.out / "table.md").write_text(note + "\n\n" + harness.markdown_table(header, lines) + failed)
    panels: list[harness.Panel] = [(f"{clock}: seconds / fastcifar's", values, {}) for clock, values in ratios.items()]
    harness.draw_panels(options.out / "ratios.png", f"times, {head['device']}", panels)


def summarize_program(
    name: str, rows: list[dict[str, Any]], own_clock_ratios: list[float], process_ratios: list[float]
) -> dict[str, Any]:
    """The entry of a program in table.json."""
    runs = [run for row in rows for run in row["runs"]]
    return {
        "program": name,
        "accuracy": intervals.interval([run["accuracy"] for run in runs]),
        "time_s": intervals.interval([run["time_s"] for run in runs]),
        "process_first_s": next((row["first_s"] for row in rows if row["round"] == 0), None),
        "process_later_s": intervals.interval([row["first_s"] for row in rows if row["round"] > 0]),
        "ratio_own_clock": intervals.interval(own_clock_ratios),
        "ratio_process": intervals.interval(process_ratios),
        "sha256": next((row.get("sha256") for row in rows), None),
    }


def own_clock_s(row: dict[str, Any]) -> float:
    """Mean seconds of the networks of a process, by the program's own clock."""
    return sum(run["time_s"] for run in row["runs"]) / len(row["runs"])


def process_s(row: dict[str, Any]) -> float:
    """Seconds from the command to the first network."""
    return row["first_s"]


if __name__ == "__main__":
    sys.exit(main())
