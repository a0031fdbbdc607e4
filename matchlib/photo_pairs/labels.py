"""Interest points of photographs on disk, one finished folder per shard.

names.json (list of names), counts.npy (n,) int64, points.npy (sum of counts, 3) float32: x and y in pixels of the
original photograph, and a score; best first.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import (
    MARKER,
    atomic_write,
    digest_file,
    digest_json,
    require_complete,
    write_marker,
)
from matchlib.errors import DataError, ShapeError, check_shape
from matchlib.features.types import Float32

STAGE = "labels"
NAMES, COUNTS, POINTS = "names.json", "counts.npy", "points.npy"


# ---------------------------------------------------------------- writing
def write_labels(folder: Path, names: Sequence[str], points: Sequence[Float32], *, fingerprint: str) -> None:
    """Write a finished shard: points[i] (K_i, 3) float32 belong to names[i].

    Equal labels give equal bytes. Raises ShapeError for points of another shape or dtype, DataError for a name that
    occurs twice.
    """
    if len(names) != len(points):
        raise ShapeError(f"points: expected {len(names)} arrays, one per name, got {len(points)}")
    if len(set(names)) != len(names):
        raise DataError(f"{folder}: {len(names) - len(set(names))} photographs are named twice")
    for name, array in zip(names, points, strict=True):
        check_points(name, array)
    joined = np.concatenate([np.empty((0, 3), np.float32), *points])
    counts = np.array([len(array) for array in points], dtype=np.int64)
    atomic_write(folder / NAMES, json.dumps(list(names), indent=0) + "\n")
    atomic_write(folder / COUNTS, npy_bytes(counts))
    atomic_write(folder / POINTS, npy_bytes(joined))
    files = [folder / NAMES, folder / COUNTS, folder / POINTS]
    write_marker(folder, stage=STAGE, fingerprint=fingerprint, files=files)


def check_points(name: str, points: Float32) -> None:
    """Raises ShapeError unless the points are (K, 3) float32 and finite."""
    check_shape(f"labels of {name}", points, "K 3")
    if points.dtype != np.float32 or not np.isfinite(points).all():
        raise ShapeError(f"labels of {name}: expected finite float32, got {points.dtype}")


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """The array as the bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


# ---------------------------------------------------------------- reading
@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows of one shard's points.npy."""

    shard: int
    start: int
    stop: int


class PseudoLabels:
    """Labels of the photographs of several shards. Points stay on disk until asked for, and no file stays open.

    digest: of the shards' markers. Raises DataError for a shard that is not finished or damaged, and for a
    photograph that is in two shards.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._slices: dict[str, _Slice] = {}
        for shard, folder in enumerate(self._folders):
            for name, rows in _read_index(folder, shard).items():
                if name in self._slices:
                    other = self._folders[self._slices[name].shard]
                    raise DataError(f"{folder}: labels '{name}', which {other} labels too")
                self._slices[name] = rows
        self.digest = digest_json(sorted(digest_file(folder / MARKER) for folder in self._folders))

    def __len__(self) -> int:
        return len(self._slices)

    def __contains__(self, name: str) -> bool:
        return name in self._slices

    def points(self, name: str) -> Float32:
        """(K, 3) float32: x, y in pixels of the original photograph, score. DataError if it has no labels."""
        rows = self._slices.get(name)
        if rows is None:
            raise DataError(
                f"'{name}' has no labels among the {len(self)} photographs of {len(self._folders)} shards; label the "
                f"photographs again"
            )
        array: Float32 = _read_array(self._folders[rows.shard] / POINTS, lazily=True)
        return np.array(array[rows.start : rows.stop])


def finished_shards(folder: Path) -> tuple[Path, ...]:
    """Every direct subfolder that is finished, sorted. Raises DataError if there is none."""
    found = tuple(sorted(marker.parent for marker in folder.glob(f"*/{MARKER}")))
    if not found:
        raise DataError(
            f"{folder}: expected folders of labels (with {MARKER}), found none; label the photographs first"
        )
    return found


def _read_index(folder: Path, shard: int) -> dict[str, _Slice]:
    marker = require_complete(folder, hint="label these photographs again")
    names = _read_names(folder / NAMES)
    counts = _read_array(folder / COUNTS)
    points = _read_array(folder / POINTS, lazily=True)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    if len(counts) != len(names) or points.shape != (total, 3) or points.dtype != np.float32:
        raise DataError(
            f"{folder}: {len(names)} names, {len(counts)} counts of {total} points in all, and {POINTS} of shape "
            f"{points.shape} {points.dtype} do not belong together; label these photographs again"
        )
    for name in (NAMES, COUNTS):  # small; wrong ones would give points to the wrong photographs
        if digest_file(folder / name) != marker.files[name]:
            raise DataError(f"{folder / name}: changed since it was written; label these photographs again")
    starts = ends - counts
    return {
        name: _Slice(shard, int(start), int(stop))
        for name, start, stop in zip(names, starts, ends, strict=True)
    }


def _read_names(path: Path) -> list[str]:
    try:
        names: list[str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not readable as a list of names ({error}); label these photographs again"
        ) from error
    return names


def _read_array(path: Path, *, lazily: bool = False) -> npt.NDArray[np.float32]:
    try:
        array: npt.NDArray[np.float32] = np.load(path, mmap_mode="r" if lazily else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:  # EOFError: an empty file
        raise DataError(
            f"{path}: not readable as an array ({error}); label these photographs again"
        ) from error
    return array
