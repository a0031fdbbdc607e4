"""What process 0 of a run shows: a bar or plain lines, a log file, TensorBoard, the history, pictures."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from matchlib.training.history import Split, append_line, sync
from matchlib.training.pictures import EventWriter, Picture

_LOG = logging.getLogger(__name__)


class Progress:
    """Open while a run goes on; a context manager.

    out:  TensorBoard events in `tensorboard/`, lines with times in `train.log`
    work: `history.jsonl` and `pictures/`, which belong to the result
    On a terminal there is a bar, else each line goes to the logger as well. Pictures are encoded and events are
    written by a thread of their own; what it fails to write is a warning that names the file, with the next line.
    """

    def __init__(self, *, out: Path, work: Path, first_step: int, steps: int, batch_size: int) -> None:
        from tqdm import tqdm

        self.history = work / "history.jsonl"
        self._batch_size, self._steps, self._first_step = batch_size, steps, first_step
        out.mkdir(parents=True, exist_ok=True)
        self._log_file = open(out / "train.log", "a", encoding="utf-8")
        # Steps after the checkpoint were written by the killed run and are written again: TensorBoard drops
        # them.
        self._events = EventWriter(
            folder=work / "pictures",
            events=out / "tensorboard",
            purge_step=first_step + 1 if first_step else None,
        )
        self._bar = tqdm(initial=first_step, total=steps, unit="step") if sys.stderr.isatty() else None
        self._started = self._line_started = time.monotonic()
        self._waited_s = 0.0
        self._line_step = first_step

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        for failure in self._events.close():
            self.notice(failure)
        if self._bar is not None:
            self._bar.close()
        self._log_file.close()

    def step_done(self, waited_s: float) -> None:
        """Advance by one step, which waited so many seconds for its batch."""
        self._waited_s += waited_s
        if self._bar is not None:
            self._bar.update()

    def train_line(self, step: int, values: Mapping[str, float]) -> None:
        """Record means over the steps since the last line, with the speed of these steps."""
        self._record(step, "train", values)
        now = time.monotonic()
        elapsed_s = max(now - self._line_started, 1e-9)
        rate = (step - self._line_step) / elapsed_s
        whole_rate = max(step - self._first_step, 1) / max(now - self._started, 1e-9)
        speed = f"{rate * self._batch_size:.3g} pairs/s"
        waiting = f"waiting for data {self._waited_s / elapsed_s:.0%}"
        remaining = _clock((self._steps - step) / whole_rate)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {values.get('loss', float('nan')):.4g}, {speed}, {waiting}")
        self._write(
            f"step {step}/{self._steps}: {_listed(values)}; {speed}, {waiting}, {remaining} to go", plain=True
        )
        self._line_started, self._line_step, self._waited_s = now, step, 0.0

    def validation_line(
        self, step: int, figures: Mapping[str, float], *, is_best: bool, took_s: float, drawing_s: float
    ) -> None:
        """Record a validation, and the seconds it took with drawing, and drawing alone."""
        self._record(step, "validation", figures)
        best = " (best so far)" if is_best else ""
        drawing = f", of which drawing {drawing_s:.3g} s" if drawing_s else ""
        self._write(
            f"step {step}: validation: {_listed(figures)}{best}; took {took_s:.3g} s{drawing}", plain=True
        )

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Write pictures in the background; those of the validation before are replaced."""
        self._events.pictures(step, dict(pictures))

    def notice(self, text: str) -> None:
        """A line that a user may have to act on."""
        _LOG.warning(text)
        self._write(text, plain=False)

    def line(self, text: str) -> None:
        """A line of progress."""
        self._write(text, plain=True)

    def pause(self, since: float) -> None:
        """Leave the time since `since` (validating, saving) out of the speed of the steps."""
        self._line_started += time.monotonic() - since

    def flush(self) -> None:
        """Bring history and pictures to disk, before a checkpoint says that they are there."""
        self._events.flush()
        self._warn_of_failures()
        sync(self.history)

    def _record(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        append_line(self.history, step=step, split=split, values=values)
        self._events.scalars(step, {f"{split}/{name}": value for name, value in values.items()})
        self._warn_of_failures()

    def _warn_of_failures(self) -> None:
        for failure in self._events.failures():
            self.notice(failure)

    def _write(self, text: str, *, plain: bool) -> None:
        self._log_file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')} {text}\n")
        self._log_file.flush()
        if plain and self._bar is None:
            _LOG.info(text)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
