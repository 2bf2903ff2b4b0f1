"""--profile: what a few steps of a run are spent on, by torch's own profiler."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from fastcifar.data.messages import counted
from fastcifar.files import write_atomically
from fastcifar.observers.kernel_groups import PEAKS, Row, Work, report
from fastcifar.runs.record import warn_if_unwritten
from fastcifar.training.observer import Observer, RunView

log = logging.getLogger("fastcifar")

SKIPPED_STEPS, RECORDED_STEPS = 3, 5
TABLE, TRACE = "profile.txt", "trace.json.gz"
ABOVE_ERRORS = "6"
"""Level of torch's profiler at which it writes nothing; its errors have 4."""
MARKS = re.compile(r"ProfilerStep|Optimizer\.|## ")
"""Names that begin so are spans around others."""


class Profile(Observer):
    """Records some steps, and writes a Chrome trace and a table of all operations, by group and one by one.

    On a card kernels are recorded, too, and a recorded step is one launch of a graph. Files are written between two
    epochs, where the clock of the training stands.

    after_step: nothing is recorded up to this step and the first three after it. work: gives the least work of a step.
    """

    def __init__(self, out: Path, after_step: int, heading: str, work: Callable[[], dict[str, Work]]) -> None:
        on_card = torch.cuda.is_available()
        if not on_card:  # else torch's profiler writes on stderr that it found no card; it reads this when it starts
            os.environ.setdefault("KINETO_LOG_LEVEL", ABOVE_ERRORS)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
        steps = schedule(wait=0, warmup=SKIPPED_STEPS - 1, active=RECORDED_STEPS, repeat=1)
        self.profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._end)
        self.on_card, self.after_step, self.heading, self.work = on_card, after_step, heading, work
        self.out, self.steps, self.is_recorded, self.is_written = out, 0, False, False

    def _end(self, profiler: Any) -> None:
        self.is_recorded = True

    def on_step(self, run: RunView) -> None:
        if self.is_recorded or run.step <= self.after_step:
            return
        is_last = run.is_over
        if self.steps == 0:
            self.profiler.start()
        elif not is_last:
            self.profiler.step()
        self.steps += 1
        if is_last:  # with fewer steps than wanted, or none
            self.profiler.stop()

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        if self.is_recorded and not self.is_written:
            self._write()
        elif run.is_over and not self.is_written:
            log.warning("warning: --profile: %d steps are too few, %d are needed", self.steps, SKIPPED_STEPS + 1)

    def _write(self) -> None:
        self.is_written = True
        rows, steps = self._rows()
        card = torch.cuda.get_device_name() if self.on_card else ""
        text = report(
            rows, steps, self.work(), PEAKS.get(card), f"{counted(steps, 'step')}, {self.heading}, {card or 'CPU'}"
        )
        table, trace = self.out / TABLE, self.out / TRACE
        warn_if_unwritten(table, lambda: write_atomically(table, lambda file: file.write(f"{text}\n".encode())))
        warn_if_unwritten(trace, lambda: self.profiler.export_chrome_trace(str(trace)))

    def _rows(self) -> tuple[list[Row], int]:
        """Kernels on a card, else operators, with their own time; and the number of recorded steps."""
        events = self.profiler.key_averages()
        steps = max((event.count for event in events if event.key.startswith("ProfilerStep")), default=1)
        if self.on_card:
            kernels = [event for event in events if event.device_type == DeviceType.CUDA]
            rows = [Row(event.key, event.count, event.self_device_time_total) for event in kernels]
        else:
            rows = [Row(event.key, event.count, event.self_cpu_time_total) for event in events]
        return [row for row in rows if not MARKS.match(row.name)], steps
