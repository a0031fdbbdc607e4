"""The tables beside the records of a match set: its pairs, and the files of its images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import require_complete
from matchlib.errors import DataError
from matchlib.match_sets.layout import record_floats

RECORDS = "records.f32"
INDEX = "index.csv"
IMAGES = "images.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One kept pair: the row of `index.csv` that belongs to the record of the same number.

    pair:           number of the pair among the candidates (position in `corr.bin`)
    index0, index1: scene-local image ids
    inliers:        matched keypoint rows
    rows0, rows1:   filled keypoint rows of each image; the first `inliers` of both match
    rotation_deg:   angle between the cameras; rot_diff_deg: mean difference of keypoint orientations
    overlap:        share of image 0's known depth that image 1 sees, the worse direction; None if not
                    measured
    """

    pair: int
    index0: int
    index1: int
    inliers: int
    rows0: int
    rows1: int
    rotation_deg: float
    rot_diff_deg: float
    overlap: float | None


PAIR_COLUMNS = tuple(f.name for f in fields(PairRow))


@dataclass(frozen=True, slots=True)
class PairTable:
    """Columns of `index.csv` that training needs, one entry per record, in order.

    index0, index1: (P,) int64; rotation_deg, rot_diff_deg: (P,) float64
    """

    index0: npt.NDArray[np.int64]
    index1: npt.NDArray[np.int64]
    rotation_deg: npt.NDArray[np.float64]
    rot_diff_deg: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return int(self.index0.shape[0])


def format_pairs(rows: Iterable[PairRow]) -> str:
    """Lines of `index.csv`, without its first."""
    lines = []
    for row in rows:
        overlap = "" if row.overlap is None else f"{row.overlap:.4f}"
        lines.append(
            f"{row.pair},{row.index0},{row.index1},{row.inliers},{row.rows0},{row.rows1},"
            f"{row.rotation_deg:.6g},{row.rot_diff_deg:.6g},{overlap}\n"
        )
    return "".join(lines)


def read_pairs(folder: Path) -> list[PairRow]:
    """All rows of a match set's `index.csv`. Raises DataError."""
    path = folder / INDEX
    rows = _read_csv(path, PAIR_COLUMNS)
    try:
        return [_parse_row(row) for row in rows]
    except ValueError as error:
        raise DataError(f"{path}: {error}; build the match set again") from error


def _parse_row(row: dict[str, str]) -> PairRow:
    return PairRow(
        pair=int(row["pair"]),
        index0=int(row["index0"]),
        index1=int(row["index1"]),
        inliers=int(row["inliers"]),
        rows0=int(row["rows0"]),
        rows1=int(row["rows1"]),
        rotation_deg=float(row["rotation_deg"]),
        rot_diff_deg=float(row["rot_diff_deg"]),
        overlap=float(row["overlap"]) if row["overlap"] else None,
    )


def read_pair_table(folder: Path) -> PairTable:
    """The columns that training needs; fast for hundreds of thousands of rows. Raises DataError."""
    path = folder / INDEX
    used = ("index0", "index1", "rotation_deg", "rot_diff_deg")
    columns = [PAIR_COLUMNS.index(name) for name in used]
    try:
        with open(path, encoding="utf-8") as stream:
            if stream.readline().rstrip("\n") != ",".join(PAIR_COLUMNS):
                raise DataError(f"{path}:1: expected the columns {','.join(PAIR_COLUMNS)}")
            lines = stream.readlines()
        if not lines:
            values = np.zeros((0, len(used)))
        else:
            values = np.loadtxt(lines, delimiter=",", usecols=columns, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); build the match set again") from error
    return PairTable(values[:, 0].astype(np.int64), values[:, 1].astype(np.int64), values[:, 2], values[:, 3])


def format_images(files: dict[int, tuple[Path, Path | None]], root: Path) -> str:
    """`images.csv`: scene-local id, image file and depth file ("" if none), relative to `root` where inside
    it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "image", "depth"])
    for index, (image, depth) in sorted(files.items()):
        writer.writerow([index, _relative(image, root), "" if depth is None else _relative(depth, root)])
    return text.getvalue()


def read_images(folder: Path, root: Path) -> dict[int, tuple[Path, Path | None]]:
    """Image and depth file of each scene-local id. Raises DataError."""
    rows = _read_csv(folder / IMAGES, ("index", "image", "depth"))
    return {int(r["index"]): (root / r["image"], root / r["depth"] if r["depth"] else None) for r in rows}


def slots_of(folder: Path) -> int:
    """Number of slots of a finished match set, from the size of its records; 0 if it has no pair, or pairs
    without keypoints. Raises DataError.
    """
    require_complete(folder, hint="build the match set")
    pairs = len(read_pair_table(folder))
    size = (folder / RECORDS).stat().st_size
    if pairs == 0:
        return 0
    floats, rest = divmod(size, 4 * pairs)
    slots = (floats - record_floats(0)) // (record_floats(1) - record_floats(0))
    if rest or slots < 0 or record_floats(slots) != floats:
        raise DataError(
            f"{folder / RECORDS}: {size} bytes do not fit {pairs} pairs; build the match set again"
        )
    return slots


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.resolve().as_posix()


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            if tuple(reader.fieldnames or ()) != columns:
                raise DataError(
                    f"{path}:1: expected the columns {','.join(columns)}, got {reader.fieldnames}"
                )
            rows = list(reader)
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); build the match set again") from error
    for line, row in enumerate(rows, start=2):
        if None in row.values() or None in row:
            raise DataError(f"{path}:{line}: expected {len(columns)} columns; build the match set again")
    return rows
