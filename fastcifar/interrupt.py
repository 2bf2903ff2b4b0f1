"""What SIGINT and SIGTERM do. Imports nothing heavy, so that it is in force before torch is imported."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, Literal

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal arrived before training began: nothing to save. No Exception, so that nobody handles it by chance."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} before training began; nothing is lost")
        self.number = number


class Signals:
    """Calling it gives the signal that arrived while training, or None: then the step is finished and saved.

    A signal before training ends the process: at once while it only imports, by `Stopped` while it prepares. A second
    SIGINT ends it at once in any phase. Handlers can be set by the main thread only; in another one nothing is caught.
    """

    def __init__(self, phase: Literal["import", "prepare", "train"] = "import") -> None:
        self.phase = phase
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in NUMBERS}

    def __call__(self) -> int | None:
        return self.number

    def _note(self, number: int, frame: Any) -> None:
        again = self.number is not None and number == signal.SIGINT
        if again or self.phase == "import":
            os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
            os._exit(128 + number)
        self.number = number
        if self.phase == "prepare":
            raise Stopped(number)

    def restore(self) -> None:
        """Puts the handlers back that were in force before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
