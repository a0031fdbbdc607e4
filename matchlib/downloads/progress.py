"""Progress of a download: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import logging
import sys
import threading
import time

from tqdm import tqdm

log = logging.getLogger(__name__)
_LINE_EVERY_S = 15.0


def readable_bytes(count: float) -> str:
    """A length for people, in powers of ten: `27.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def readable_seconds(seconds: float) -> str:
    """A duration for people: `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Bytes of one archive so far, reported from several threads. Use as a context manager."""

    def __init__(self, title: str, total: int | None, *, terminal: bool | None = None) -> None:
        self.title, self.total, self.done = title, total, 0
        self._lock = threading.Lock()
        self._started = self._last_line = time.monotonic()
        self._fetched = 0
        show = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(desc=title, total=total, unit="B", unit_scale=True) if show else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int, *, fetched: bool = True) -> None:
        """`count` more bytes are there; negative where a file starts anew.

        fetched: they came over the wire just now (they count for the speed), not from an earlier run
        """
        with self._lock:
            self.done += count
            self._fetched += count if fetched else 0
            if self._bar is not None:
                self._bar.update(count)
            elif time.monotonic() - self._last_line > _LINE_EVERY_S:
                self._last_line = time.monotonic()
                log.info("%s", self.line())

    def line(self) -> str:
        """Where it stands, in one line."""
        elapsed = max(time.monotonic() - self._started, 1e-3)
        speed = max(self._fetched, 0) / elapsed
        text = f"{self.title}: {readable_bytes(self.done)}"
        if self.total:
            text += f" of {readable_bytes(self.total)} ({100 * self.done / self.total:.0f} %)"
        text += f", {readable_bytes(speed)}/s"
        if self.total and speed > 0:
            text += f", {readable_seconds(max(self.total - self.done, 0) / speed)} left"
        return text
