"""--log trackio: Trackio's local data base. `trackio show --project fastcifar` shows all runs."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from fastcifar.observers.trackers import PROJECT, Tracker


class Trackio(Tracker):
    """Values by step and the settings; Trackio has no summary, so that its numbers are values of the last step."""

    def open(self, out: Path, settings: dict[str, Any]) -> None:
        import trackio

        self.trackio = trackio
        with redirect_stdout(sys.stderr):  # the last line on stdout is the summary
            trackio.init(PROJECT, name=f"{out.resolve().name}-{self.id}", config=settings, resume="allow", embed=False,
                         auto_log_gpu=False, auto_log_cpu=False)  # fmt: skip

    def write(self, values: dict[str, float], step: int) -> None:
        self.trackio.log(values, step=step)

    def close(self, summary: dict[str, float], step: int) -> None:
        with redirect_stdout(sys.stderr):
            self.trackio.log(summary, step=step)
            self.trackio.finish()
