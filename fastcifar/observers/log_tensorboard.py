"""--log tensorboard: event files in the run folder. `tensorboard --logdir runs` shows all runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastcifar.observers.trackers import Tracker


class Tensorboard(Tracker):
    """Scalars by step, the settings as text, and settings with results for the table of hyperparameters."""

    def open(self, out: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds

        self.settings = settings
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=self.last_step + 1)
        lines = json.dumps(settings, indent=2).splitlines()
        self.writer.add_text("settings", "\n".join(f"    {line}" for line in lines))  # Markdown: a block of code
        self.writer.flush()

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, summary: dict[str, float], step: int) -> None:
        self.writer.add_hparams(self.settings, summary, run_name=".", global_step=step)
        self.writer.close()
