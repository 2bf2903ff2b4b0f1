"""The stopwatch: named phases of a run, each timed with the device idle at both ends.

No other file measures time. What a phase covers is decided by the caller: the loop, the command line or a bench.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_IMPORTED_AT = time.monotonic()
PHASES = ("import", "data", "compile", "train", "swa", "eval")


def wait_for(device: torch.device) -> None:
    """Blocks until the device has finished all work that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Stopwatch:
    """Seconds per named phase. A phase inside another pauses the outer one."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.time_s: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def _lap(self) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        if self._running:
            self.time_s[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._lap()
        self._running.append(phase)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def seconds(self, phase: str) -> float:
        """Seconds of a phase up to now, also while it runs. Does not wait for the device."""
        running = self._running and self._running[-1] == phase
        return self.time_s[phase] + (time.perf_counter() - self._since if running else 0.0)

    def report(self) -> dict[str, float]:
        """Seconds of all phases of the record, and `wall`: the age of the process."""
        return {**{p: round(self.time_s[p], 4) for p in PHASES}, "wall": round(process_age_s(), 4)}


def captured_ms(work: Callable[[], object], repeats: int = 5) -> float:
    """Milliseconds of the current card for the work, without the host's: it is recorded as a CUDA graph."""
    here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(2):  # builds kernels, and lets cuDNN choose its own
            work()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # DALI's threads keep running
            for _ in range(repeats):
                work()
    finally:
        torch.cuda.set_stream(here)  # torch leaves the capture's stream current when a capture fails
        here.wait_stream(stream)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def process_age_s() -> float:
    """Seconds since this process was started (on Linux; elsewhere since this module was imported)."""
    try:
        with open("/proc/self/stat") as f:
            started_ticks = int(f.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.monotonic() - _IMPORTED_AT
