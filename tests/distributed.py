"""Do several processes train what one process trains, and how does a job end when one of them dies?

    PYTHONPATH=. python tests/distributed.py --out DIR [--quick]

Everything runs on CPUs with gloo. `losses` compares 20 steps in fp32 by 1, 2 and 4 processes, `seeds` compares
`--runs N --parallel seeds` in 2 processes and in 1, `death` kills a process of torchrun and resumes the run alone, and
`stop` sends SIGTERM to torchrun. `--quick` leaves out the last two. It writes distributed.json and distributed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
from safetensors.torch import load_file

from fastcifar.runs.checkpoint import load
from fastcifar.runs.environment import utc_stamp, versions
from fastcifar.runs.record import write_json
from fastcifar.training.stopwatch import Stopwatch

STEPS = 20
TWO_SIZES = (
    "--low-res-px",
    "24",
    "--low-res-until",
    "0.5",
    "--train-stem",
    "low-res",
    "--cool-first-stage",
    "0.6",
    "0.8",
)
"""Flags of a run whose second half makes fewer gradients than the first, and its last fifth fewer still."""
START_S = END_S = 120.0
"""Seconds within which a job must start to train, and end after a signal."""


def flags(folder: Path) -> list[str]:
    """Flags of all runs in a folder. Writes their images first if necessary."""
    images = folder / "images.npz"
    if not images.exists():
        processes.write_images(images)
    return [*processes.FLAGS, "--data", str(images), "--cache-dir", str(folder / "cache")]


def together(folder: Path, name: str, size: int, argv: list[str]) -> list[int | None]:
    """Exit codes of a run by `size` warm processes. Each writes its output to a file of its own."""
    envs = processes.ranks(size) if size > 1 else [{}]
    return processes.join_all([
        processes.start(argv, folder / f"{name}.{rank}.log", env) for rank, env in enumerate(envs)
    ])  # fmt: skip


def losses(folder: Path, optimizer: str, sizes: tuple[int, ...] = (2, 4)) -> list[dict[str, Any]]:
    """Largest differences between several processes and one over 20 steps.

    An epoch has one step, so that metrics.jsonl has the loss of each step.
    """
    rows: list[dict[str, Any]] = []
    reference: dict[str, Any] = {}
    for size in (1, *sizes):
        out = folder / f"losses-{optimizer}-{size}"
        steps = ["--batch-size", "160", "--epochs", str(STEPS), "--optimizer", optimizer, *TWO_SIZES,
                 "--checkpoint-every", "0"]  # fmt: skip
        codes = together(folder, out.name, size, [*flags(folder), *steps, "--out", str(out)])
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        result: dict[str, Any] = {"metrics": metrics, "weights": load_file(out / "model.safetensors")}
        reference = reference or result
        pairs = list(zip(metrics, reference["metrics"], strict=True))
        rows.append({
            "optimizer": optimizer, "processes": size, "exit": codes, "steps": len(metrics),
            "loss_difference": max(abs(a["loss_train"] - b["loss_train"]) for a, b in pairs),
            "accuracy_difference": max(abs(a["accuracy_test"] - b["accuracy_test"]) for a, b in pairs),
            "weight_difference": max(
                (weight - reference["weights"][name]).abs().max().item() for name, weight in result["weights"].items()
            ),
        })  # fmt: skip
    return rows


def seeds(folder: Path, runs: int = 3) -> dict[str, Any]:
    """Whether seeds in two processes give exactly the results of one process."""
    results = []
    for size in (1, 2):
        out = folder / f"seeds-{size}"
        argv = [*flags(folder), "--epochs", "2", "--runs", str(runs), "--parallel", "seeds", "--out", str(out)]
        codes = together(folder, out.name, size, argv)
        rows = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
        results.append({row["seed"]: (row["accuracy"], row["loss_last"]) for row in rows})
    return {"runs": runs, "exit": codes, "equal": results[0] == results[1] and len(results[0]) == runs}


class Torchrun:
    """A long run of two processes under torchrun that has finished its first epoch."""

    def __init__(self, folder: Path, name: str) -> None:
        self.out, self.log = folder / name, folder / f"{name}.log"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
                   "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(processes.ROOT / "train_fast.py"),
                   *flags(folder), "--epochs", "2000", "--out", str(self.out)]  # fmt: skip
        self.log_file = self.log.open("wb")
        self.process = subprocess.Popen(
            command, stdout=self.log_file, stderr=self.log_file, env=processes.one_thread()
        )  # fmt: skip
        if not processes.wait_until((self.out / "checkpoint.pt").exists, START_S):
            self.process.kill()
            raise SystemExit(f"torchrun did not start training: see {self.log}")

    def workers(self) -> list[int]:
        """Process ids of the workers, in the order of their ranks."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = [int(pid) for pid in path.read_text().split()]

        def rank(pid: int) -> bytes:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return next((variable for variable in variables if variable.startswith(b"RANK=")), b"")

        return [pid for pid in sorted(children, key=rank) if rank(pid)]

    def end_s(self, pid: int, number: int) -> float:
        """Sends signal `number` to process `pid`; returns the seconds until torchrun has ended."""
        stopwatch = Stopwatch()
        with stopwatch("end"):
            os.kill(pid, number)
            self.process.wait(END_S)
        self.log_file.close()
        return stopwatch.time_s["end"]


def resume_alone(folder: Path, out: Path) -> dict[str, Any]:
    """Resumes a run of two processes in one until it saves a checkpoint, then ends it by SIGTERM."""
    before = load(out / "checkpoint.pt")["state"]["step"]
    process = processes.start_real(["--resume", str(out)], folder / "alone.log")
    went_on = processes.wait_until(lambda: load(out / "checkpoint.pt")["state"]["step"] > before, START_S)
    process.terminate()
    return {"went_on": went_on, "exit": process.wait(END_S)}


def death(folder: Path) -> dict[str, Any]:
    """Kills one process of torchrun."""
    job = Torchrun(folder, "death")
    end_s = job.end_s(job.workers()[1], signal.SIGKILL)
    return {"end_s": round(end_s, 2), "exit": job.process.returncode, "resumed": resume_alone(folder, job.out)}


def stop(folder: Path) -> dict[str, Any]:
    """Sends SIGTERM to torchrun: its processes agree on a step, save and end."""
    job = Torchrun(folder, "stop")
    end_s = job.end_s(job.process.pid, signal.SIGTERM)
    saved = "interrupted and saved" in job.log.read_text(errors="replace")
    return {"end_s": round(end_s, 2), "saved": saved, "resumed": resume_alone(folder, job.out)}


def markdown_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| optimizer | processes | largest difference of a loss, 20 steps | of a weight | of an accuracy |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in results["losses"]:
        differences = [f"{row[f'{kind}_difference']:.2g}" for kind in ("loss", "weight", "accuracy")]
        lines.append(f"| {row['optimizer']} | {row['processes']} | {' | '.join(differences)} |")
    lines += ["", f"--parallel seeds in 2 processes equal to one process: {results['seeds']['equal']}"]
    for name, event in (("death", "A process killed"), ("stop", "SIGTERM to torchrun")):
        if row := results.get(name):
            lines += ["", f"{event}: the job ends after {row['end_s']} s; it continues in one process: "
                          f"{row['resumed']['went_on']}"]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares several processes with one.")
    parser.add_argument("--out", type=Path, required=True, help="folder of distributed.json and distributed.md")
    parser.add_argument("--quick", action="store_true", help="leave out what needs torchrun")
    options = parser.parse_args()
    folder = options.out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"date": utc_stamp(), "versions": versions()}
    results["losses"] = [row for optimizer in ("sgd", "muon") for row in losses(folder, optimizer)]
    results["seeds"] = seeds(folder)
    if not options.quick:
        results |= {"death": death(folder), "stop": stop(folder)}
    shutil.rmtree(folder)
    write_json(options.out / "distributed.json", results)
    (options.out / "distributed.md").write_text(markdown_table(results))
    print(markdown_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
