"""What process 0 of a run shows: a bar or plain lines, a log file, TensorBoard, the history, pictures."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from matchlib.completion import atomic_write
from matchlib.training.history import Split, append_line, sync
from matchlib.training.validation import Picture

_LOG = logging.getLogger(__name__)


class Progress:
    """Open while a run goes on; a context manager.

    out:  TensorBoard events in `tensorboard/`, lines with times in `train.log`
    work: `history.jsonl` and `pictures/`, which belong to the result
    On a terminal there is a bar, else each line goes to the logger as well. Pictures are encoded and events
    are written by a thread of their own.
    """

    def __init__(self, *, out: Path, work: Path, first_step: int, steps: int, batch_size: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.history = work / "history.jsonl"
        self._pictures_folder = work / "pictures"
        self._batch_size, self._steps, self._first_step = batch_size, steps, first_step
        out.mkdir(parents=True, exist_ok=True)
        self._log_file = open(out / "train.log", "a", encoding="utf-8")
        # Steps after the checkpoint were written by the killed run and are written again: TensorBoard drops
        # them.
        self._events = SummaryWriter(
            str(out / "tensorboard"), purge_step=first_step + 1 if first_step else None
        )
        self._bar = tqdm(initial=first_step, total=steps, unit="step") if sys.stderr.isatty() else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")
        self._drawing: Future[None] | None = None
        self._started = self._line_started = time.monotonic()
        self._waited_s = 0.0
        self._line_step = first_step

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        self._events.close()
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

    def validation_line(self, step: int, figures: Mapping[str, float], *, is_best: bool) -> None:
        """Record a validation."""
        self._record(step, "validation", figures)
        self._write(
            f"step {step}: validation: {_listed(figures)}{' (best so far)' if is_best else ''}", plain=True
        )

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Write pictures in the background; those of the validation before are replaced."""
        self.flush_pictures()
        self._drawing = self._thread.submit(self._draw, step, dict(pictures))

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

    def flush_pictures(self) -> None:
        """Wait for the pictures; raises what their writing raised."""
        if self._drawing is not None:
            self._drawing.result()
            self._drawing = None

    def flush(self) -> None:
        """Bring history and pictures to disk, before a checkpoint says that they are there."""
        self.flush_pictures()
        sync(self.history)

    def _record(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        append_line(self.history, step=step, split=split, values=values)
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def _draw(self, step: int, pictures: dict[str, Picture]) -> None:
        shutil.rmtree(self._pictures_folder, ignore_errors=True)
        self._pictures_folder.mkdir()
        for name, picture in pictures.items():
            atomic_write(self._pictures_folder / f"{_file_name(name)}.png", _png(picture))
            self._events.add_image(name, picture, step, dataformats="HWC")

    def _write(self, text: str, *, plain: bool) -> None:
        self._log_file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')} {text}\n")
        self._log_file.flush()
        if plain and self._bar is None:
            _LOG.info(text)


def _png(picture: Picture) -> bytes:
    import cv2

    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return bytes(data.tobytes())


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "picture"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
