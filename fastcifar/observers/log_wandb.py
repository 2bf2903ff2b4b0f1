"""--log wandb: Weights & Biases. WANDB_MODE=offline logs without network and account; `wandb sync` uploads later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcifar.observers.trackers import PROJECT, Tracker


class Wandb(Tracker):
    """Values by step, settings and summary. Its files lie in the run folder, below wandb/."""

    def open(self, out: Path, settings: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project=PROJECT, name=out.resolve().name, id=self.id, dir=str(out), config=settings,
                              resume="allow", settings=wandb.Settings(console="off"))  # fmt: skip

    def write(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self, summary: dict[str, float], step: int) -> None:
        self.run.summary.update(summary)
        self.run.finish()
