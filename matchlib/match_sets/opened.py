"""Finished match sets of several scenes as one numbered list of pairs, filtered for training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from matchlib.completion import MARKER, digest_file, digest_json, require_complete
from matchlib.errors import DataError
from matchlib.match_sets.baseline import has_baseline
from matchlib.match_sets.config import MatchSetConfig
from matchlib.match_sets.index import RECORDS, PairTable, read_images, read_pair_table, slots_of
from matchlib.match_sets.layout import (
    HEADER_FLOATS,
    TRANSLATION,
    Float32,
    Float64,
    PairGeometry,
    decode_header,
    record_floats,
)

_log = logging.getLogger(__name__)
_DEFAULT = MatchSetConfig()
_NO_LIMIT_DEG = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSetSource:
    """One scene's match set in `folder`, and the dataset below `root` whose images it speaks of.

    min_rotation_deg, max_rot_diff_deg: pairs outside are left out of training (tfmatch's load-time filter)
    max_rotation_deg: pairs whose cameras are rotated further against each other are left out too; the match
                      set may hold them, for methods that bear more
    """

    dataset_format: str
    root: Path
    scene: str
    folder: Path
    min_rotation_deg: float = _DEFAULT.min_rotation_deg
    max_rot_diff_deg: float = _DEFAULT.max_rot_diff_deg
    max_rotation_deg: float = _NO_LIMIT_DEG


@dataclass(frozen=True, slots=True)
class ListedPair:
    """One pair: a readable name, the header of its record, image and depth file (None: no depth) of both images."""

    name: str
    geometry: PairGeometry
    files: tuple[tuple[Path, Path | None], tuple[Path, Path | None]]


@dataclass(frozen=True, slots=True)
class _Scene:
    """What loading needs of one scene. record: (P,) number of each pair's record; index0, index1: (P,) image
    ids.
    """

    name: str
    records: Path
    slots: int
    record: npt.NDArray[np.int64]
    index0: npt.NDArray[np.int64]
    index1: npt.NDArray[np.int64]
    files: dict[int, tuple[Path, Path | None]]


class OpenedSets:
    """Pairs of several match sets, in the order of the sources. Holds no open file.

    supervision: "pose" leaves out pairs without baseline, which teach nothing where depth is not known
    Raises DataError for a match set that is not finished, or if no pair is left.
    """

    def __init__(
        self, sources: Sequence[MatchSetSource], *, supervision: Literal["pose", "depth_pose"]
    ) -> None:
        left_out: dict[str, int] = {}
        self._scenes = [_open_scene(source, supervision == "pose", left_out) for source in sources]
        self._ends = np.cumsum([len(scene.record) for scene in self._scenes], dtype=np.int64)
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        if len(self) == 0:
            raise DataError(
                f"no pair in {len(sources)} match sets: all were dropped when they were built (their logs name the "
                f"reasons) or are left out of training ({reasons or 'none'})"
            )
        if left_out:
            _log.info("%d pairs of %d match sets; left out: %s", len(self), len(sources), reasons)
        identities = [_identity(source) for source in sources]
        self.digest = digest_json(
            identities if supervision == "depth_pose" else {"supervision": supervision, "sets": identities}
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def find(self, index: int) -> ListedPair:
        """Pair `index`. Raises IndexError, and DataError where the match set was changed by hand."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        scene = self._scenes[place]
        row = index - (int(self._ends[place - 1]) if place else 0)
        index0, index1 = int(scene.index0[row]), int(scene.index1[row])
        return ListedPair(
            name=f"{scene.name}/{index0:08d}-{index1:08d}",
            geometry=_read_geometry(scene, int(scene.record[row])),
            files=(_files_of(scene, index0), _files_of(scene, index1)),
        )


def _identity(source: MatchSetSource) -> list[Any]:
    """What the pairs of a source depend on."""
    identity = [
        source.scene,
        digest_file(source.folder / MARKER),
        source.min_rotation_deg,
        source.max_rot_diff_deg,
    ]
    # No limit leaves no trace, so that trainings which know of none keep their digest.
    limit = source.max_rotation_deg
    return identity if limit >= _NO_LIMIT_DEG else [*identity, limit]


def _open_scene(source: MatchSetSource, needs_baseline: bool, left_out: dict[str, int]) -> _Scene:
    """Open one match set; adds to `left_out` how many pairs were left out for which reason."""
    require_complete(source.folder, hint="run: snakemake match_sets_all")
    table, slots = read_pair_table(source.folder), slots_of(source.folder)
    keep = np.ones(len(table), dtype=bool)
    for reason, fits in _filters(source, table, slots, needs_baseline):
        count = int((keep & ~fits).sum())
        if count:
            left_out[reason] = left_out.get(reason, 0) + count
        keep &= fits
    rows = np.flatnonzero(keep)
    return _Scene(
        name=source.root.name if source.scene == "." else source.scene,
        records=source.folder / RECORDS,
        slots=slots,
        record=rows,
        index0=table.index0[rows],
        index1=table.index1[rows],
        files=read_images(source.folder, source.root),
    )


def _filters(
    source: MatchSetSource, table: PairTable, slots: int, needs_baseline: bool
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Reasons to leave pairs out, and which pairs (P,) bool may stay."""
    least, most, twist = source.min_rotation_deg, source.max_rotation_deg, source.max_rot_diff_deg
    filters = [
        (f"rotation below min_rotation_deg = {least:g}", table.rotation_deg >= least),
        (f"rotation above max_rotation_deg = {most:g}", table.rotation_deg <= most),
        (f"keypoints turned by more than max_rot_diff_deg = {twist:g}", table.rot_diff_deg <= twist),
    ]
    if needs_baseline:
        distance = _camera_distances(source.folder / RECORDS, slots, len(table))
        apart = has_baseline(distance, table.index0, table.index1)
        filters.append(("cameras at the same place", apart))
    return filters


def _camera_distances(records: Path, slots: int, count: int) -> Float64:
    """Distance of the cameras of each record, (count,) in scene units. Raises DataError."""
    distances = np.zeros(count)
    with _opened(records) as file:
        if hasattr(
            os, "posix_fadvise"
        ):  # a few numbers of every 53 KB: reading ahead would read the whole file
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        for record in range(count):
            header = _read_header(file, records, slots, record)
            distances[record] = np.linalg.norm(header[TRANSLATION].astype(np.float64))
    return distances


def _read_geometry(scene: _Scene, record: int) -> PairGeometry:
    """The header of one record; a read of 184 bytes, so nothing stays mapped or open."""
    with _opened(scene.records) as file:
        return decode_header(_read_header(file, scene.records, scene.slots, record))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); build the match set again") from error
    try:
        yield file
    finally:
        os.close(file)


def _read_header(file: int, path: Path, slots: int, record: int) -> Float32:
    data = os.pread(file, 4 * HEADER_FLOATS, record * 4 * record_floats(slots))
    if len(data) != 4 * HEADER_FLOATS:
        raise DataError(f"{path}: record {record} is cut; build the match set again")
    return np.frombuffer(data, dtype="<f4")


def _files_of(scene: _Scene, index: int) -> tuple[Path, Path | None]:
    if index not in scene.files:
        raise DataError(
            f"{scene.records.parent}: image {index} is not in images.csv; build the match set again"
        )
    return scene.files[index]
