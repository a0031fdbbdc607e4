"""Interest points for photographs from a trained detector, kept in shards that are labelled independently."""

from __future__ import annotations

import io
import logging
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from matchlib.completion import (
    MARKER,
    Lease,
    atomic_write,
    close_work,
    digest_json,
    fingerprint,
    open_work,
    read_marker,
)
from matchlib.datasets.images import read_image
from matchlib.errors import DataError
from matchlib.features.types import Float32, Image
from matchlib.photo_pairs.labels import COUNTS, NAMES, POINTS, STAGE, check_points, write_labels
from matchlib.randomness import address_seed
from matchlib.revisions import REVISIONS

_log = logging.getLogger(__name__)


class Labeller(Protocol):
    """A detector that labels photographs.

    fingerprint: digest of method, settings and weights
    """

    fingerprint: str

    def label(self, image: Image, seed: int) -> Float32:
        """Interest points (K, 3) float32 of an (H, W, 3) uint8 RGB image: x, y in pixels of that image, and
        a score, best first. Random draws come from `seed`."""
        ...


def label_photographs(
    *, root: Path, names: Sequence[str], labeller: Labeller, out: Path, seed: int, save_every: int = 16
) -> None:
    """Label the photographs `names`, paths below `root`, as one shard `out` (see `photo_pairs.labels`).

    seed:       each photograph is labelled with a seed of (seed, its name), so shards may be cut differently
    save_every: photographs whose labels are saved together; a killed run loses at most that many
    Returns at once if `out` is finished for the same labeller, seed, names and file sizes; otherwise continues what
    an interrupted attempt left. Photographs that cannot be read get no points and a warning. Raises DataError if
    none can be read, and while another process writes to `out`.
    """
    identity = fingerprint(
        stage=STAGE,
        revision=REVISIONS["labels"],
        settings={
            "labeller": labeller.fingerprint,
            "seed": seed,
            "photographs": [[name, file_size(root / name)] for name in names],
        },
    )
    with Lease(out):
        if _is_current(out, identity):
            close_work(out)  # a kill right after the marker leaves it
            _log.info("%s: up to date", out)
            return
        (out / MARKER).unlink(missing_ok=True)
        work = open_work(out, digest_json([identity, save_every]))
        points = _label_parts(root, names, labeller, work, seed, save_every)
        write_labels(out, names, points, fingerprint=identity)
        close_work(out)


def _is_current(out: Path, identity: str) -> bool:
    marker = read_marker(out)
    is_same = marker is not None and marker.fingerprint == identity
    return is_same and all((out / name).is_file() for name in (NAMES, COUNTS, POINTS))


def file_size(path: Path) -> int:
    """Bytes of a file, -1 where it cannot be asked: such a photograph counts as unreadable when it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _label_parts(
    root: Path, names: Sequence[str], labeller: Labeller, work: Path, seed: int, save_every: int
) -> list[Float32]:
    """Points of all photographs, in order; parts that a former attempt saved are read, the others made."""
    points: list[Float32] = []
    unreadable: list[str] = []
    started, made = time.monotonic(), 0
    for number, first in enumerate(range(0, len(names), save_every)):
        part_names = names[first : first + save_every]
        path = work / f"part-{number:05d}.npz"
        part = _read_part(path, len(part_names))
        if part is None:
            part = [_label_one(root, name, labeller, seed) for name in part_names]
            _write_part(path, part)
            made += len(part_names)
            rate = made / max(time.monotonic() - started, 1e-9)
            _log.info("labelled %d of %d photographs (%.2f per second)", first + len(part), len(names), rate)
        points += [np.empty((0, 3), np.float32) if found is None else found for found in part]
        unreadable += [name for name, found in zip(part_names, part, strict=True) if found is None]
    if names and len(unreadable) == len(names):
        raise DataError(f"{root}: none of {len(names)} photographs can be read, the first is {names[0]}")
    total = sum(len(found) for found in points)
    _log.info("%d points on %d photographs, %d unreadable", total, len(names), len(unreadable))
    return points


def _label_one(root: Path, name: str, labeller: Labeller, seed: int) -> Float32 | None:
    """Points of one photograph, None if it cannot be read."""
    try:
        image = read_image(root / name)
    except DataError as error:
        _log.warning("%s; left without labels", error)
        return None
    found = labeller.label(image, address_seed(seed, name))
    check_points(name, found)
    return found


def _write_part(path: Path, part: Sequence[Float32 | None]) -> None:
    """Save points of some photographs; a count of -1 stands for an unreadable one."""
    counts = np.array([-1 if found is None else len(found) for found in part], dtype=np.int64)
    readable = [found for found in part if found is not None]
    stream = io.BytesIO()
    np.savez(stream, counts=counts, points=np.concatenate([np.empty((0, 3), np.float32), *readable]))
    atomic_write(path, stream.getvalue())


def _read_part(path: Path, count: int) -> list[Float32 | None] | None:
    """What `_write_part` saved for `count` photographs, or None if there is no such part."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            counts, joined = stored["counts"], stored["points"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s: damaged (%s); these photographs are labelled again", path, error)
        return None
    ends = np.cumsum(np.maximum(counts, 0))
    if len(counts) != count or joined.shape != (int(ends[-1]), 3):
        _log.warning("%s: damaged (%d photographs); they are labelled again", path, len(counts))
        return None
    return [
        None if number < 0 else joined[end - number : end] for number, end in zip(counts, ends, strict=True)
    ]
