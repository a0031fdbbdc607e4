"""Pictures as PNG files and TensorBoard events, made by one thread beside the training."""

from __future__ import annotations

import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write

Picture = npt.NDArray[np.uint8]
_WAITING_SETS = 2  # sets of pictures in memory; a third one waits, since a slow disk must not fill it


class EventWriter:
    """TensorBoard curves in `events`, and the pictures of the last validation in `folder`.

    One thread does both, in the order of the calls, so that the steps in TensorBoard are in order. What it
    cannot write is no reason to lose a training: it is kept as a message until `failures` is asked.
    purge_step: TensorBoard drops what an earlier, killed run wrote at this step and after it
    """

    def __init__(self, *, folder: Path, events: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._events_path = events
        self._events = SummaryWriter(str(events), purge_step=purge_step)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")
        self._tasks: deque[Future[list[str]]] = deque()
        self._room = threading.BoundedSemaphore(_WAITING_SETS)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point on each curve."""
        self._submit(lambda: self._add_scalars(step, dict(values)))

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Replace the pictures by these; waits only if the two sets before are not written yet.

        pictures: (H, W, 3) uint8 RGB by name; the caller does not change them afterwards
        """
        self._room.acquire()
        self._submit(lambda: self._write_pictures(step, pictures))

    def flush(self) -> None:
        """Wait until everything is written."""
        for task in list(self._tasks):
            task.exception()

    def failures(self) -> list[str]:
        """What could not be written since the last call, one message each; does not wait."""
        messages = []
        while self._tasks and self._tasks[0].done():
            messages += self._tasks.popleft().result()
        return messages

    def close(self) -> list[str]:
        """Write the rest, end the thread, and return the last failures."""
        self._submit(lambda: _attempt(self._events.close, f"TensorBoard {self._events_path}"))
        self._thread.shutdown(wait=True)
        return self.failures()

    def _submit(self, task: Callable[[], list[str]]) -> None:
        self._tasks.append(self._thread.submit(task))

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> list[str]:
        def add() -> None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

        return _attempt(add, f"TensorBoard {self._events_path}")

    def _write_pictures(self, step: int, pictures: Mapping[str, Picture]) -> list[str]:
        try:
            failures = _attempt(self._empty_folder, str(self._folder))
            for name, picture in pictures.items():
                path = self._folder / f"{_file_name(name)}.png"
                failures += _attempt(lambda: self._write_picture(step, name, picture, path), str(path))  # noqa: B023  called in this turn
            return failures
        finally:
            self._room.release()

    def _empty_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _write_picture(self, step: int, name: str, picture: Picture, path: Path) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        data = encode_png(picture)
        atomic_write(path, data)
        # `SummaryWriter.add_image` would encode the picture a second time, more slowly.
        height, width, _ = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        writer = cast(Any, self._events.file_writer)
        writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def encode_png(picture: Picture) -> bytes:
    """A PNG file. picture: (H, W, 3) uint8 RGB; raises ValueError for anything else."""
    import cv2

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ValueError(f"expected a picture (H, W, 3) of uint8, got {picture.shape} of {picture.dtype}")
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return bytes(data.tobytes())


def _attempt(action: Callable[[], None], what: str) -> list[str]:
    try:
        action()
    except Exception as error:  # whatever it is, a curve or picture less is better than no training
        return [f"{what}: not written ({type(error).__name__}: {error})"]
    return []


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "picture"
