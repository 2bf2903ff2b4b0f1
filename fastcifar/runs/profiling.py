"""--profile: what a few steps of a run are spent on, by torch's own profiler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fastcifar.data.files import write_atomically
from fastcifar.runs.observers import Observer, Progress
from fastcifar.runs.record import warn_if_unwritten

log = logging.getLogger("fastcifar")

SKIPPED_STEPS, RECORDED_STEPS = 3, 5
TABLE, TRACE = "profile.txt", "trace.json.gz"
ROWS = 20


class Profile(Observer):
    """Records some steps after the first ones, and writes a Chrome trace and a table of the costliest operations.

    On a card kernels are recorded, too, and a recorded step is one launch of a graph. Files are written between two
    epochs, where the clock of the training stands.
    """

    def __init__(self, out: Path) -> None:
        on_card = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
        steps = schedule(wait=0, warmup=SKIPPED_STEPS - 1, active=RECORDED_STEPS, repeat=1)
        self.profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._end)
        self.order = "self_device_time_total" if on_card else "self_cpu_time_total"
        self.out, self.steps, self.is_recorded, self.is_written = out, 0, False, False

    def _end(self, profiler: Any) -> None:
        self.is_recorded = True

    def on_step(self, run: Progress) -> None:
        if self.is_recorded:
            return
        is_last = run.step == run.num_steps
        if self.steps == 0:
            self.profiler.start()
        elif not is_last:
            self.profiler.step()
        self.steps += 1
        if is_last:  # with fewer steps than wanted, or none
            self.profiler.stop()

    def on_epoch(self, run: Progress, row: dict[str, Any]) -> None:
        if self.is_recorded and not self.is_written:
            self._write()
        elif run.step == run.num_steps and not self.is_written:
            log.warning("warning: --profile: %d steps are too few, %d are needed", self.steps, SKIPPED_STEPS + 1)

    def _write(self) -> None:
        self.is_written = True
        text = self.profiler.key_averages().table(sort_by=self.order, row_limit=ROWS, max_name_column_width=60).strip()
        table, trace = self.out / TABLE, self.out / TRACE
        warn_if_unwritten(table, lambda: write_atomically(table, lambda file: file.write(f"{text}\n".encode())))
        warn_if_unwritten(trace, lambda: self.profiler.export_chrome_trace(str(trace)))
