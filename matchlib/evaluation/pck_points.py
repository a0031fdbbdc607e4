"""The query points of a PCK evaluation: drawn once per dataset and protocol, shared by all methods.

One HDF5 file: a row per image pair in `sequence`, `k`, `size0`, `size1`, `H_0to1`, `image0`, `image1` (digests
of the image files) and `count`; the points of all pairs one after the other in `points0` and `points1`. The
attribute `complete`, a digest of all of it, is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_path, digest_file
from matchlib.datasets import hpatches
from matchlib.datasets.images import read_image
from matchlib.errors import DataError, ShapeError, check_shape
from matchlib.evaluation.hpatches_data import select_sequences
from matchlib.evaluation.metrics import Float, warp_points
from matchlib.evaluation.pck_config import HarrisQueries, PCKProtocol, point_settings
from matchlib.evaluation.pck_frames import frame_scaling, frame_size, resize_image
from matchlib.randomness import generator_for

logger = logging.getLogger(__name__)

LAYOUT = "matchlib-pck-points-1"
_COMPLETE = "complete"
# Truncation turns the last bit of a product into a whole pixel, and the last bit differs between processors.
_TRUNCATION_DECIMALS = 6

Image = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPoints:
    """Query points of the pair (1, k) of one sequence; all lengths in pixels of the scaled images.

    size0, size1:   (width, height) of images 1 and k, scaled
    H_0to1:         (3, 3) float64 between the scaled images
    points0:        (N, 2) float32, pixels (x, y) of image 1, N > 0
    points1:        (N, 2) float32, their true positions in image k, truncated if the protocol says so
    image0, image1: digests of the image files that the points were drawn for
    """

    sequence: str
    k: int
    size0: tuple[int, int]
    size1: tuple[int, int]
    H_0to1: Float
    points0: Float32
    points1: Float32
    image0: str
    image1: str

    def __post_init__(self) -> None:
        check_shape("H_0to1", self.H_0to1, "3 3")
        count = check_shape("points0", self.points0, "N 2")["N"]
        check_shape("points1", self.points1, f"{count} 2")


@dataclass(frozen=True, kw_only=True)
class PCKPoints:
    """All pairs that have query points, in order of sequence and k.

    settings: `pck_config.point_settings` of the protocol they were drawn for
    left_out: pairs without a single valid point, as "v_bark 1-4"
    """

    settings: dict[str, Any]
    pairs: tuple[PairPoints, ...]
    left_out: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Digest of settings and values, whatever file they are stored in."""
        digest = hashlib.sha256(json.dumps([self.settings, self.left_out], sort_keys=True).encode())
        for name, array in _columns(self.pairs).items():
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


# ---------------------------------------------------------------- drawing
def strong_pixels(image: Image, harris: HarrisQueries) -> npt.NDArray[np.bool_]:
    """Pixels of an (H, W, 3) uint8 RGB image with a strong Harris response, (H, W) bool; none in a flat image."""
    check_shape("image", image, "H W 3")
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    response = cv2.cornerHarris(grey, harris.block_size, harris.sobel_size, harris.k)
    return np.asarray(response > np.percentile(response, harris.percentile))


def true_positions(
    points0: npt.ArrayLike, H_0to1: Float, size1: tuple[int, int], *, truncate: bool
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Where a homography puts points, (N, 2) float64, and which of them lie inside image 1, (N,) bool.

    Inside means in front of the horizon and between the centres of the border pixels of an image of `size1`
    (width, height). `truncate` cuts the positions toward zero first, so that one at -0.9 counts as inside, at 0
    (as lin-zju). differs from lin-zju: a position within 1e-6 px of a whole number counts as that number, and
    points beyond the horizon, which come back mirrored, are outside.
    """
    points = np.asarray(points0, dtype=np.float64)
    positions = warp_points(points, H_0to1)
    in_front = (points @ H_0to1[2, :2] + H_0to1[2, 2]) * H_0to1[2, 2] > 0
    if truncate:
        positions = np.trunc(np.round(positions, _TRUNCATION_DECIMALS)) + 0.0  # -0.0 becomes 0.0
    with np.errstate(invalid="ignore"):
        inside = ((positions >= 0) & (positions <= np.array(size1) - 1.0)).all(axis=1)
    return positions, np.asarray(inside & in_front)


def draw_points(
    image0: Image,
    H_0to1: Float,
    size1: tuple[int, int],
    protocol: PCKProtocol,
    generator: np.random.Generator,
) -> tuple[Float32, Float32]:
    """Query points of one pair and their true positions: two (N, 2) float32, N <= protocol.points, maybe 0.

    image0: (H, W, 3) uint8, scaled. H_0to1: (3, 3) between the scaled images. Drawn without replacement from
    the pixels that the protocol admits and whose true position lies inside image 1 of `size1`.
    """
    admitted = np.ones(image0.shape[:2], dtype=np.bool_)
    if protocol.points_from == "harris":
        admitted = strong_pixels(image0, protocol.harris)
    pixels = np.argwhere(admitted)[:, ::-1].astype(np.float32)
    positions, inside = true_positions(pixels, H_0to1, size1, truncate=protocol.truncate)
    pixels, positions = pixels[inside], positions[inside]
    drawn = generator.choice(len(pixels), size=min(protocol.points, len(pixels)), replace=False)
    return np.ascontiguousarray(pixels[drawn]), positions[drawn].astype(np.float32)


def write_points(root: Path, protocol: PCKProtocol, out: Path) -> PCKPoints:
    """Draw the query points of all pairs of the HPatches folder `root` and write them to `out`, atomically.

    The draw of a pair depends on the seed and its name only. Pairs that offer no point are left out, with a
    warning. Raises DataError for an incomplete sequence set, a broken sequence, or if no pair is left.
    """
    pairs: list[PairPoints] = []
    left_out: list[str] = []
    for name in select_sequences(root, protocol.sequences):
        for pair in _sequence_points(root, name, protocol):
            if len(pair.points0):
                pairs.append(pair)
            else:
                left_out.append(f"{pair.sequence} 1-{pair.k}")
    if not pairs:
        raise DataError(
            f"{root}: none of {len(left_out)} pairs has a pixel that is textured and seen in both images; "
            f"check the images and homographies, or set points_from: uniform"
        )
    if left_out:
        logger.warning("%d pairs without query points are left out: %s", len(left_out), ", ".join(left_out))
    points = PCKPoints(settings=point_settings(protocol), pairs=tuple(pairs), left_out=tuple(left_out))
    _write(points, out)
    few = sum(len(pair.points0) < protocol.points for pair in pairs)
    logger.info("%s: %d pairs, %d of them with fewer than %d points", out, len(pairs), few, protocol.points)
    return points


def _sequence_points(root: Path, name: str, protocol: PCKProtocol) -> Iterator[PairPoints]:
    sequence = hpatches.read_sequence(root, name)
    digests = [digest_file(path) for path in sequence.image_paths]
    images = [read_image(path) for path in sequence.image_paths]
    original = [(image.shape[1], image.shape[0]) for image in images]
    scaled = [frame_size(size, protocol.longer_side) for size in original]
    scalings = [
        frame_scaling(before, after, protocol.resize_origin)
        for before, after in zip(original, scaled, strict=True)
    ]
    image0 = resize_image(images[0], scaled[0])
    for k, H_1tok in enumerate(sequence.homographies, start=2):
        H = scalings[k - 1] @ H_1tok @ np.linalg.inv(scalings[0])
        generator = generator_for(protocol.seed, "pck", name, k)
        points0, points1 = draw_points(image0, H, scaled[k - 1], protocol, generator)
        yield PairPoints(
            sequence=name,
            k=k,
            size0=scaled[0],
            size1=scaled[k - 1],
            H_0to1=H,
            points0=points0,
            points1=points1,
            image0=digests[0],
            image1=digests[k - 1],
        )


# ---------------------------------------------------------------- the file
def _columns(pairs: Sequence[PairPoints]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of the file by name."""
    return {
        "sequence": np.array([pair.sequence.encode() for pair in pairs]),
        "k": np.array([pair.k for pair in pairs], dtype=np.int64),
        "size0": np.array([pair.size0 for pair in pairs], dtype=np.int64).reshape(-1, 2),
        "size1": np.array([pair.size1 for pair in pairs], dtype=np.int64).reshape(-1, 2),
        "H_0to1": np.array([pair.H_0to1 for pair in pairs], dtype=np.float64).reshape(-1, 3, 3),
        "image0": np.array([pair.image0.encode() for pair in pairs]),
        "image1": np.array([pair.image1.encode() for pair in pairs]),
        "count": np.array([len(pair.points0) for pair in pairs], dtype=np.int64),
        "points0": np.concatenate([pair.points0 for pair in pairs]),
        "points1": np.concatenate([pair.points1 for pair in pairs]),
    }


def _write(points: PCKPoints, out: Path) -> None:
    with atomic_path(out) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["layout"] = LAYOUT
        file.attrs["settings"] = json.dumps(points.settings, sort_keys=True)
        file.attrs["left_out"] = json.dumps(points.left_out)
        for name, array in _columns(points.pairs).items():
            file.create_dataset(name, data=array)
        file.attrs[_COMPLETE] = points.digest


def read_points(path: Path) -> PCKPoints:
    """Read what `write_points` wrote. Raises DataError if the file is absent, foreign, unfinished or damaged."""
    if not path.is_file():
        raise DataError(f"{path}: not found; draw the points first")
    try:
        with h5py.File(path, "r") as file:
            layout = file.attrs.get("layout")
            if layout != LAYOUT:
                raise DataError(f"{path}: expected layout {LAYOUT}, got {layout}; draw the points again")
            points = PCKPoints(
                settings=json.loads(file.attrs["settings"]),
                pairs=_read_pairs({name: dataset[()] for name, dataset in file.items()}),
                left_out=tuple(json.loads(file.attrs["left_out"])),
            )
            stated = file.attrs[_COMPLETE]
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, ShapeError) as error:
        raise DataError(f"{path}: not a readable points file ({error}); draw the points again") from error
    if points.digest != stated:
        raise DataError(f"{path}: the points are not those that were written; draw them again")
    return points


def _read_pairs(columns: dict[str, npt.NDArray[Any]]) -> tuple[PairPoints, ...]:
    ends = np.cumsum(columns["count"])
    points0 = np.split(columns["points0"], ends[:-1])
    points1 = np.split(columns["points1"], ends[:-1])
    return tuple(
        PairPoints(
            sequence=columns["sequence"][row].decode(),
            k=int(columns["k"][row]),
            size0=(int(columns["size0"][row, 0]), int(columns["size0"][row, 1])),
            size1=(int(columns["size1"][row, 0]), int(columns["size1"][row, 1])),
            H_0to1=columns["H_0to1"][row],
            points0=points0[row],
            points1=points1[row],
            image0=columns["image0"][row].decode(),
            image1=columns["image1"][row].decode(),
        )
        for row in range(len(ends))
    )
