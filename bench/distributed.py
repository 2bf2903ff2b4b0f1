"""Several processes against one: are the losses the same, do seeds agree, how does a job end when a rank dies?

    python -m bench.distributed --out records/distributed [--quick]

On CPUs with gloo. `losses`: 20 steps in fp32 by 1, 2 and 4 processes. `seeds`: --runs N --parallel seeds in 2 processes
against one process. `death`: torchrun with 2 processes, one of which is killed; the run then goes on in one process.
`stop`: SIGTERM to torchrun. `--quick` leaves out the last two. Writes distributed.json and distributed.md.
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

from safetensors.torch import load_file

from bench import processes
from fastcifar.checkpoint import load
from fastcifar.record import versions, write_json
from fastcifar.timing import Stopwatch, utc_stamp

STEPS = 20


def flags(below: Path) -> list[str]:
    """Settings that all runs share; the images are made when they are not there."""
    images = below / "images.npz"
    if not images.exists():
        processes.write_images(images)
    return [*processes.FLAGS, "--data", str(images), "--cache-dir", str(below / "cache")]


def together(below: Path, name: str, size: int, argv: list[str]) -> list[int | None]:
    """Exit codes of a run by `size` warm processes; the words of each rank go to a file of its own."""
    envs = processes.ranks(size) if size > 1 else [{}]
    return processes.join_all([
        processes.start(argv, below / f"{name}.{rank}.log", env) for rank, env in enumerate(envs)
    ])  # fmt: skip


def losses(below: Path, optimizer: str, sizes: tuple[int, ...] = (2, 4)) -> list[dict[str, Any]]:
    """Largest differences to one process over 20 steps (a step per epoch, so metrics.jsonl has a loss for each)."""
    rows: list[dict[str, Any]] = []
    alone: dict[str, Any] = {}
    for size in (1, *sizes):
        out = below / f"losses-{optimizer}-{size}"
        steps = ["--batch-size", "160", "--epochs", str(STEPS), "--optimizer", optimizer]
        argv = [*flags(below), *steps, "--out", str(out)]
        codes = together(below, out.name, size, argv)
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        now: dict[str, Any] = {"metrics": metrics, "weights": load_file(out / "model.safetensors")}
        alone = alone or now
        pairs = list(zip(metrics, alone["metrics"], strict=True))
        rows.append({
            "optimizer": optimizer, "processes": size, "exit": codes, "steps": len(metrics),
            "loss_difference": max(abs(a["loss_train"] - b["loss_train"]) for a, b in pairs),
            "accuracy_difference": max(abs(a["accuracy_test"] - b["accuracy_test"]) for a, b in pairs),
            "weight_difference": max(
                (value - alone["weights"][k]).abs().max().item() for k, value in now["weights"].items()
            ),
        })  # fmt: skip
    return rows


def seeds(below: Path, runs: int = 3) -> dict[str, Any]:
    """Whether seeds in two processes give exactly what they give in one."""
    found = []
    for size in (1, 2):
        out = below / f"seeds-{size}"
        argv = [*flags(below), "--epochs", "2", "--runs", str(runs), "--parallel", "seeds", "--out", str(out)]
        codes = together(below, out.name, size, argv)
        lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
        found.append({line["seed"]: (line["accuracy"], line["loss_last"]) for line in lines})
    return {"runs": runs, "exit": codes, "equal": found[0] == found[1] and len(found[0]) == runs}


class Torchrun:
    """A long run of two processes by torchrun, of which the first epoch is over."""

    def __init__(self, below: Path, name: str) -> None:
        self.out, self.log = below / name, below / f"{name}.log"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
                   "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(processes.ROOT / "train_fast.py"),
                   *flags(below), "--epochs", "2000", "--out", str(self.out)]  # fmt: skip
        self.words = self.log.open("wb")
        self.process = subprocess.Popen(command, stdout=self.words, stderr=self.words, env=processes.one_thread())
        if not processes.wait_until((self.out / "checkpoint.pt").exists, 120):
            self.process.kill()
            raise SystemExit(f"torchrun did not start training: see {self.log}")

    def workers(self) -> list[int]:
        """Process ids, by rank."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = [int(pid) for pid in path.read_text().split()]

        def rank(pid: int) -> bytes:
            facts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return next((fact for fact in facts if fact.startswith(b"RANK=")), b"")

        return [pid for pid in sorted(children, key=rank) if rank(pid)]

    def end_s(self, pid: int, number: int) -> float:
        """Seconds from a signal to a process until torchrun has ended."""
        watch = Stopwatch()
        with watch("end"):
            os.kill(pid, number)
            self.process.wait(120)
        self.words.close()
        return watch.time_s["end"]


def resume_alone(below: Path, out: Path) -> dict[str, Any]:
    """A run of two processes goes on in one, up to the end of its epoch, where SIGTERM stops it again."""
    before = load(out / "checkpoint.pt")["state"]["step"]
    process = processes.start_real(["--resume", str(out)], below / "alone.log")
    went_on = processes.wait_until(lambda: load(out / "checkpoint.pt")["state"]["step"] > before, 120)
    process.terminate()
    return {"went_on": went_on, "exit": process.wait(120)}


def death(below: Path) -> dict[str, Any]:
    """One rank of torchrun is killed."""
    job = Torchrun(below, "death")
    end_s = job.end_s(job.workers()[1], signal.SIGKILL)
    return {"end_s": round(end_s, 2), "exit": job.process.returncode, "resumed": resume_alone(below, job.out)}


def stop(below: Path) -> dict[str, Any]:
    """SIGTERM to torchrun: the ranks agree on a step, save and end."""
    job = Torchrun(below, "stop")
    end_s = job.end_s(job.process.pid, signal.SIGTERM)
    saved = "interrupted and saved" in job.log.read_text(errors="replace")
    return {"end_s": round(end_s, 2), "saved": saved, "resumed": resume_alone(below, job.out)}


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = ["| optimizer | processes | largest difference of a loss, 20 steps | of a weight | of an accuracy |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in found["losses"]:
        figures = [f"{row[f'{what}_difference']:.2g}" for what in ("loss", "weight", "accuracy")]
        lines.append(f"| {row['optimizer']} | {row['processes']} | {' | '.join(figures)} |")
    lines += ["", f"--parallel seeds in 2 processes equal to one process: {found['seeds']['equal']}"]
    for what, said in (("death", "A rank killed"), ("stop", "SIGTERM to torchrun")):
        if row := found.get(what):
            lines += ["", f"{said}: the job ends after {row['end_s']} s; it goes on in one process: "
                          f"{row['resumed']['went_on']}"]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares several processes with one.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="without torchrun")
    asked = parser.parse_args()
    below = asked.out / "runs"
    below.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"date": utc_stamp(), "versions": versions()}
    found["losses"] = [row for optimizer in ("sgd", "muon") for row in losses(below, optimizer)]
    found["seeds"] = seeds(below)
    if not asked.quick:
        found |= {"death": death(below), "stop": stop(below)}
    shutil.rmtree(below)
    write_json(asked.out / "distributed.json", found)
    (asked.out / "distributed.md").write_text(table(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
