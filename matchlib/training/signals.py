"""Stopping politely: a signal asks, the trainer finishes its step, saves, and leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75
"""Exit status of a run that saved its state and can be resumed (EX_TEMPFAIL: try again later)."""


class StopRequest:
    """While entered, SIGTERM and SIGINT set a flag instead of ending the process; the old handlers come back
    after.

    A second SIGINT raises KeyboardInterrupt, for a user who will not wait for the step. Outside the main
    thread
    no signal can be caught, and only `also` is asked: a function that says whether to stop.
    """

    def __init__(self, also: Callable[[], bool] | None = None) -> None:
        self._also = also
        self._signalled = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True

    def is_set(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signalled or (self._also is not None and self._also())
