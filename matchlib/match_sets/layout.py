"""The layout of match-set records: tfmatch's, for any number of keypoint slots.

A record is 46 + 13 * slots float32 (53,432 bytes at 1024 slots):

| float offset | count | content |
|---|---|---|
| 0, 1 | 2 | dataset-wide indices of image 0 and image 1 |
| 2 | 1 | number of inliers; they come first in the keypoint blocks |
| 3-4, 5-6 | 4 | (W, H) of the original image 0, image 1 |
| 7-15, 16-24 | 18 | K0, K1 row-major, original pixels |
| 25-33 | 9 | essential matrix, unit Frobenius norm, x1^T E x0 = 0 on points of z = 1 |
| 34-45 | 12 | `T_0to1` without its last row, row-major |
| 46.. | 6 * slots | affine frames of image 0, undistorted (`matchlib.datasets.gl3d.affine_to_pixel`) |
| .. | 6 * slots | affine frames of image 1; row i matches row i for i < inliers |
| .. | slots | geometric label per row, 0 for rows without a match |

Pairs without correspondences, from a dataset's own list, have no slots: their records end with the pose.

differs from tfmatch: where an image has too few keypoints to fill its slots, the last rows are all zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.errors import DataError, check_shape

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

HEADER_FLOATS = 46
TRANSLATION = slice(37, 46, 4)  # of T_0to1, whose rows of four begin at float 34
FLOATS_PER_SLOT = 13
TFMATCH_SLOTS = 1024


def record_floats(slots: int) -> int:
    """Number of float32 in a record of that many slots."""
    return HEADER_FLOATS + FLOATS_PER_SLOT * slots


@dataclass(frozen=True, slots=True, kw_only=True)
class PairGeometry:
    """The geometry part of a record.

    global_index: dataset-wide indices of both images; inliers: number of matched rows
    size0, size1: (W, H) of the original images; K0, K1: (3, 3) float64 in their pixels; T_0to1: (4, 4)
                  float64
    E_0to1:       (3, 3) float64
    """

    global_index: tuple[int, int]
    inliers: int
    size0: tuple[int, int]
    size1: tuple[int, int]
    K0: Float64
    K1: Float64
    T_0to1: Float64
    E_0to1: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRecord:
    """One record: geometry, frames (slots, 6) of both images, labels (slots,), float32; inliers first."""

    geometry: PairGeometry
    affine0: Float32
    affine1: Float32
    labels: Float32


def encode_headers(
    *,
    global_index: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    K0: Float64,
    K1: Float64,
    E_0to1: Float64,
    T_0to1: Float64,
) -> Float32:
    """Headers (P, 46) float32 of P pairs, inliers still 0.

    global_index (P, 2), sizes (P, 4) = W0 H0 W1 H1, K0, K1, E_0to1 (P, 3, 3), T_0to1 (P, 4, 4).
    """
    pairs = len(global_index)
    headers = np.zeros((pairs, HEADER_FLOATS), dtype=np.float32)
    headers[:, 0:2] = global_index
    headers[:, 3:7] = sizes
    headers[:, 7:16] = K0.reshape(pairs, 9)
    headers[:, 16:25] = K1.reshape(pairs, 9)
    headers[:, 25:34] = E_0to1.reshape(pairs, 9)
    headers[:, 34:46] = T_0to1[:, :3].reshape(pairs, 12)
    return headers


def decode_header(header: Float32) -> PairGeometry:
    """The geometry of one record's first 46 floats."""
    values = header[:HEADER_FLOATS].astype(np.float64)
    T = np.eye(4)
    T[:3] = values[34:46].reshape(3, 4)
    return PairGeometry(
        global_index=(int(values[0]), int(values[1])),
        inliers=int(values[2]),
        size0=(int(values[3]), int(values[4])),
        size1=(int(values[5]), int(values[6])),
        K0=values[7:16].reshape(3, 3),
        K1=values[16:25].reshape(3, 3),
        E_0to1=values[25:34].reshape(3, 3),
        T_0to1=T,
    )


def keypoint_blocks(record: Float32, slots: int) -> tuple[Float32, Float32, Float32]:
    """Views into a record: frames of image 0 (slots, 6), of image 1 (slots, 6), labels (slots,)."""
    check_shape("record", record, str(record_floats(slots)))
    body = record[HEADER_FLOATS:]
    affine0, affine1, labels = body[: 6 * slots], body[6 * slots : 12 * slots], body[12 * slots :]
    return affine0.reshape(slots, 6), affine1.reshape(slots, 6), labels


def decode_record(record: Float32, slots: int) -> MatchRecord:
    """One record, as views where possible. Raises ShapeError for another length."""
    affine0, affine1, labels = keypoint_blocks(record, slots)
    return MatchRecord(geometry=decode_header(record), affine0=affine0, affine1=affine1, labels=labels)


def map_records(path: Path, slots: int) -> Float32:
    """All records (P, floats) of a `records.f32`, memory-mapped read-only. Raises DataError if its size does
    not fit.
    """
    bytes_each = 4 * record_floats(slots)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); build the match set again") from error
    if size % bytes_each:
        raise DataError(
            f"{path}: expected records of {bytes_each} bytes ({slots} slots), got {size} bytes; "
            f"build the match set again"
        )
    if size == 0:
        return np.zeros((0, record_floats(slots)), dtype=np.float32)
    return np.memmap(path, dtype="<f4", mode="r").reshape(-1, record_floats(slots))
