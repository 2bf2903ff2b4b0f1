"""Handles SIGINT and SIGTERM. Imports nothing heavy, so that the handlers are set before torch is imported."""

import os
import signal
import threading
from typing import Any, Literal

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """Raised by a signal while there is nothing to save. No Exception, so that no handler catches it by chance."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{message}")
        self.number = number


class Signals:
    """Notes the signal that arrived; calling the object returns its number, or None.

    While the process imports, a signal ends it at once; while it prepares or finishes a run, and in a command that
    trains none, a signal raises `Stopped`;
    while it trains, the signal is noted and the checkpoint observer ends the run after the current step. A second
    SIGINT ends the process at once in any phase. Handlers can be set by the main thread only.
    """

    def __init__(self, phase: Literal["import", "command", "prepare", "train", "finish"] = "import") -> None:
        self.phase = phase
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in NUMBERS}

    def __call__(self) -> int | None:
        return self.number

    def _handle(self, number: int, frame: Any) -> None:
        again = self.number is not None and number == signal.SIGINT
        if again or self.phase == "import":
            os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
            os._exit(128 + number)
        self.number = number
        if self.phase == "command":
            raise Stopped(number, "; no file is left half written")
        if self.phase == "prepare":
            raise Stopped(number, " before training began; nothing is lost")
        if self.phase == "finish":
            raise Stopped(number, " after the last step, which is saved")

    def restore(self) -> None:
        """Puts the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    # As an observer of a run (see fastcifar.training.observer, which would import torch here).

    def on_step(self, run: Any) -> None:
        """Does nothing."""

    def on_epoch(self, run: Any, row: dict[str, Any]) -> None:
        """After the last epoch, also of a run that was stopped, all is saved: from then on a signal ends it at once."""
        if run.is_over and self.phase == "train":
            self.phase = "finish"

    def on_end(self, result: Any) -> None:
        """Does nothing."""
