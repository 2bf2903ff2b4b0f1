"""fastcifar and other programs side by side: same machine, same images, in turn, each by its own clock and by ours.

    python -m bench.compare --peer airbench94=CHECKOUT --recipe swa30 --rounds 5

A peer is a script of a checkout that you name; it runs as it is. Both programs get the same images. A round is one
process of each. Its own clock is what a program calls its training time; the whole process runs from the command to the
accuracy of its first network. The first round starts with empty caches of compiled code, later rounds find them filled.
Without a CUDA card a peer runs through bench.launch, in float32 and not compiled, and a note in the table says so.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from bench import harness
from bench.peers import ROOT, Peer, PeerTable, find_peer, peer_command, prepare_images, read_ours, run_until
from fastcifar import data, record
from fastcifar.config import Config

OURS = "fastcifar"
CODE_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    peer: tuple[str, ...]
    """NAME=CHECKOUT for airbench94, airbench96 and hiverge; NAME=SCRIPT for a script that prints the same table."""
    recipe: str = "swa30"
    """Our recipe."""
    set: str = ""
    """Settings over the recipe: "name=value name=value"."""
    data: str = "auto"
    """Images for both, as in train_fast.py."""
    subset: int | None = None
    """Only so many training images, and a fifth as many for testing; a peer needs at least its batch, such as 2000."""
    rounds: int = 5
    """Processes of each program, in turn."""
    networks: int = 1
    """Networks that a peer trains in one process; ours trains one."""
    limit_s: float = 3600.0
    """A process is ended after so many seconds."""
    quick: bool = False
    """2,000 images, 1 round: shows that it works. Peers whose network is large take minutes even so."""
    out: Path = Path("bench-results/compare")
    """Where runs.jsonl, table.md, table.json, ratios.png and the logs of the processes go."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.compare")
    if options.quick:
        options = replace(options, rounds=1, networks=1, subset=options.subset or 2_000)
    try:
        peers = [find_peer(text) for text in options.peer]
        config = harness.parse(options.recipe, f"data={options.data}", f"subset={options.subset}", options.set)
        head = harness.facts(config)
        dataset = data.load(config)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows = harness.Rows(options.out / "runs.jsonl", "")
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fastcifar-compare-") as folder, harness.stoppable() as stop:
        images = prepare_images(dataset, Path(folder))
        measure(rows, peers, config, dataset, images, options, done)
    if any(row["runs"] for row in done):
        write_results(done, peers, dataset, head, options)
        print((options.out / "table.md").read_text())
    return stop.code or int(any("error" in row for row in done))


def measure(rows: harness.Rows, peers: list[Peer], config: Config, dataset: data.Dataset, images: Path,
            options: Options, done: list[dict[str, Any]]) -> None:  # fmt: skip
    """Fills `done`: ours, peer, ours, peer, ..."""
    work = images.parent
    env = {name: str(work / "caches" / name.lower()) for name in CODE_CACHES}
    flags = [*harness.words(options.set), "--data", str(images)]
    for number in range(options.rounds):

        def ours(number: int = number) -> dict[str, Any]:
            command = [sys.executable, str(ROOT / "train_fast.py"), "--recipe", options.recipe, *flags]
            command += ["--seed", str(number), "--out", str(work / f"run-{number}")]
            log = options.out / "logs" / f"{OURS}-{number}.txt"
            fresh = {**env, "FASTCIFAR_CACHE": str(work / f"decoded-{number}")}
            return run_until(command, work, log, read_ours, 1, options.limit_s, fresh, wait=True)

        def theirs(peer: Peer, number: int = number) -> dict[str, Any]:
            log = options.out / "logs" / f"{peer.name}-{number}.txt"
            row = run_until(peer_command(peer), work, log, PeerTable().feed, options.networks, options.limit_s, env)
            return {**row, "sha256": peer.digest}

        state = harness.state_of(config, dataset.digest)
        done.append(rows.once({"program": OURS, "round": number}, ours, state))
        for peer in peers:
            state = harness.state_of(config, dataset.digest, peer.digest, options.networks)
            done.append(rows.once({"program": peer.name, "round": number}, lambda p=peer: theirs(p), state))  # type: ignore[misc]
        for row in done[-1 - len(peers) :]:
            print(f"round {number}, {row['program']}: {row.get('error') or said(row)}", flush=True)


def said(row: dict[str, Any]) -> str:
    """A row for a person who waits."""
    run = row["runs"][0]
    return f"{run['accuracy']:.2%} in {run['time_s']:.2f} s by its own clock, {row['first_s']:.1f} s with its process"


def write_results(done: list[dict[str, Any]], peers: list[Peer], dataset: data.Dataset, head: dict[str, Any],
                  options: Options) -> None:  # fmt: skip
    """table.md, table.json and ratios.png."""
    good = [row for row in done if "error" not in row]
    table, lines = [], []
    ratios: dict[str, dict[str, list[float]]] = {"own clock": {}, "whole process": {}}
    own = {row["round"]: row for row in good if row["program"] == OURS}
    for name in (OURS, *(peer.name for peer in peers)):
        mine = [row for row in good if row["program"] == name]
        runs = [run for row in mine for run in row["runs"]]
        later = [row["first_s"] for row in mine if row["round"] > 0]
        for kind, key in (("own clock", own_s), ("whole process", process_s)):
            ratios[kind][name] = [key(r) / key(own[r["round"]]) for r in mine if r["round"] in own]
        entry: dict[str, Any] = {
            "program": name, "accuracy": record.interval([run["accuracy"] for run in runs]),
            "time_s": record.interval([run["time_s"] for run in runs]),
            "process_first_s": next((row["first_s"] for row in mine if row["round"] == 0), None),
            "process_later_s": record.interval(later),
            "ratio_own_clock": record.interval(ratios["own clock"][name]),
            "ratio_process": record.interval(ratios["whole process"][name]),
            "sha256": next((row.get("sha256") for row in mine), None),
            "errors": [row["error"] for row in done if row["program"] == name and "error" in row],
        }  # fmt: skip
        table.append(entry)
        first = entry["process_first_s"]
        lines.append((name, harness.percent(entry["accuracy"]), harness.measured(entry["time_s"]),
                      f"{first:.1f}" if first else "-", harness.measured(entry["process_later_s"]),
                      *("1" if name == OURS else harness.measured(entry[f"ratio_{k}"]) for k in
                        ("own_clock", "process")), len(runs)))  # fmt: skip
    sizes = {"dataset": dataset.name, "n_train": len(dataset.y_train), "n_test": len(dataset.y_test)}
    shims = not torch.cuda.is_available()
    ours: dict[str, Any] = next((row["runs"][0] for row in good if row["program"] == OURS), {})
    note = (f"{sizes['dataset']}, {sizes['n_train']:,} training and {sizes['n_test']:,} test images for all, "
            f"{head['device']}, torch {head['versions']['torch']}; ours: {options.recipe} {options.set}, "
            f"{ours.get('epochs')} epochs, scale {ours.get('scale')}, {ours.get('precision')}. ")  # fmt: skip
    if shims:
        note += "No CUDA card here: peers ran in float32 and not compiled, their recipes as they are. "
    if ours.get("scale") == "small":
        note += "Our network is the small one, the peers' are not: the ratios tell nothing about a card. "
    record.write_json(options.out / "table.json", {**head, **sizes, "without_card": shims, "table": table})
    header = ("program", "accuracy %: mean ± std [95%]", "seconds by its own clock", "process, first round s",
              "process, later rounds s", "own clock / ours", "process / ours", "n")  # fmt: skip
    failed = "".join(f"\n{e['program']} failed: {why}\n" for e in table for why in e["errors"])
    (options.out / "table.md").write_text(note + "\n\n" + harness.markdown(header, lines) + failed)
    panels: list[harness.Panel] = [(f"{kind}: seconds / ours", values, {}) for kind, values in ratios.items()]
    harness.draw_panels(options.out / "ratios.png", f"times, {head['device']}", panels)


def own_s(row: dict[str, Any]) -> float:
    """Mean of a process's networks by its own clock."""
    return sum(run["time_s"] for run in row["runs"]) / len(row["runs"])


def process_s(row: dict[str, Any]) -> float:
    """From the command to the first network."""
    return row["first_s"]


if __name__ == "__main__":
    sys.exit(main())
