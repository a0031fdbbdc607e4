"""The growing records of a match set: appended in order, resumable after a kill at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matchlib.completion import atomic_write_json
from matchlib.match_sets.index import INDEX, PAIR_COLUMNS, RECORDS, PairRow, format_pairs
from matchlib.match_sets.layout import Float32

_PROGRESS = "progress.json"
_CHECKPOINT_S = 10.0
_HEADER = ",".join(PAIR_COLUMNS) + "\n"


class RecordLog:
    """`records.f32` and `index.csv` in a work folder. What lies behind the last checkpoint is cut off on
    resume.

    position: the first candidate that has no result yet; kept: number of records; dropped: reason -> pairs
    """

    def __init__(self, work: Path, record_floats: int) -> None:
        self._work, self._record_floats = work, record_floats
        state = self._read_state()
        self.position: int = state["position"]
        self.kept: int = state["kept"]
        self.dropped: dict[str, int] = dict(state["dropped"])
        self._records = open(work / RECORDS, "r+b" if (work / RECORDS).exists() else "w+b", buffering=0)
        self._index = open(work / INDEX, "r+b" if (work / INDEX).exists() else "w+b", buffering=0)
        self._records.truncate(state["records_bytes"])
        self._index.truncate(state["index_bytes"])
        self._digests = {RECORDS: _hash_of(self._records), INDEX: _hash_of(self._index)}
        if self._index.tell() == 0:
            self._append(self._index, INDEX, _HEADER.encode())
        self._saved_at = time.monotonic()

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._records.close()
        self._index.close()

    def begin(self, dropped: Mapping[str, int]) -> None:
        """Note pairs dropped before the first candidate; without effect when work has begun already."""
        if self.position == 0:
            self.dropped = dict(dropped)

    def append(
        self, records: Float32, rows: Sequence[PairRow], dropped: Mapping[str, int], *, position: int
    ) -> None:
        """Add records (n, floats) with their rows, and the count of pairs dropped, up to candidate
        `position`.
        """
        if len(rows):
            self._append(self._records, RECORDS, np.ascontiguousarray(records, dtype="<f4").data.cast("B"))
            self._append(self._index, INDEX, format_pairs(rows).encode())
        for reason, count in dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.kept += len(rows)
        self.position = position
        if time.monotonic() - self._saved_at > _CHECKPOINT_S:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make everything so far survive a kill and a power loss."""
        os.fsync(self._records.fileno())
        os.fsync(self._index.fileno())
        state = {
            "position": self.position,
            "kept": self.kept,
            "dropped": self.dropped,
            "records_bytes": self._records.tell(),
            "index_bytes": self._index.tell(),
        }
        atomic_write_json(self._work / _PROGRESS, state)
        self._saved_at = time.monotonic()

    def finish(self, folder: Path) -> dict[str, str]:
        """Move both files to `folder` and return their sha256 by name. Nothing may be appended afterwards."""
        self.checkpoint()
        for name in (RECORDS, INDEX):
            os.replace(self._work / name, folder / name)
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def _append(self, stream: Any, name: str, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
        self._digests[name].update(data)

    def _read_state(self) -> dict[str, Any]:
        """The last checkpoint, or the beginning if there is none or its files are shorter than it says."""
        start = {"position": 0, "kept": 0, "dropped": {}, "records_bytes": 0, "index_bytes": 0}
        try:
            state: dict[str, Any] = json.loads((self._work / _PROGRESS).read_text(encoding="utf-8"))
            whole = all(
                (self._work / name).stat().st_size >= state[f"{key}_bytes"]
                for name, key in ((RECORDS, "records"), (INDEX, "index"))
            )
        except (FileNotFoundError, ValueError, KeyError):
            return start
        fits = state["records_bytes"] == 4 * self._record_floats * state["kept"]
        return state if whole and fits else start


def _hash_of(stream: Any) -> Any:
    """sha256 of all there is; leaves the stream at its end."""
    digest = hashlib.sha256()
    stream.seek(0)
    while block := stream.read(1 << 22):
        digest.update(block)
    return digest
