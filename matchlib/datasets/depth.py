"""Depth maps on disk, whatever the format: z in scene units, 0 = unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.pfm import read_pfm
from matchlib.errors import DataError

_MM_UNKNOWN = 65535
_SAME_SURFACE = 0.05  # relative


def read_depth(path: Path) -> npt.NDArray[np.float32]:
    """A depth map (H, W) float32: z in scene units; 0 where the file holds 0, a negative, nan or inf value.

    `.pfm` is taken as stored. A 16-bit `.png` is in millimetres (0 and 65535 = no measurement), comes back in
    metres, and has its one-pixel gaps closed (see `close_gaps`). Raises DataError for any other ending and
    for files that cannot be read. An all-zero map is not an error here.
    """
    if path.suffix == ".pfm":
        depth = read_pfm(path)
        depth[~(np.isfinite(depth) & (depth > 0))] = 0
        return depth
    if path.suffix == ".png":
        return close_gaps(_read_millimetres(path))
    raise DataError(f"{path}: expected a depth map .pfm or .png, got '{path.suffix}'")


def close_gaps(depth: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Fill unknown pixels between two known ones of the same surface; (H, W) float32, 0 = unknown.

    Registering a coarse depth image to a finer colour image leaves lines of unknown pixels between
    neighbouring measurements; with them, hardly a pixel has four known neighbours. An unknown pixel becomes
    the mean of its left and right neighbours, then of its upper and lower ones, if both are known and within
    5 % of each other.
    """
    for _ in range(2):  # rows, then columns
        before, after = depth[:, :-2], depth[:, 2:]
        nearer = np.minimum(before, after)
        same = (nearer > 0) & (np.abs(before - after) <= _SAME_SURFACE * nearer)
        filled = depth.copy()
        filled[:, 1:-1] = np.where((depth[:, 1:-1] == 0) & same, (before + after) / 2, depth[:, 1:-1])
        depth = filled.T
    return np.ascontiguousarray(depth, dtype=np.float32)


def _read_millimetres(path: Path) -> npt.NDArray[np.float32]:
    import cv2  # not at module level: the graph imports every module of this package

    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    image = (
        cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if data.size and data[-12:].tobytes().find(b"IEND") >= 0
        else None
    )
    if image is None:
        raise DataError(f"{path}: not a readable PNG ({data.size} bytes), or cut")
    if image.dtype != np.uint16 or image.ndim != 2:
        raise DataError(f"{path}: expected one channel of 16 bits, got shape {image.shape} of {image.dtype}")
    depth: npt.NDArray[np.float32] = image.astype(np.float32)
    depth /= 1000
    depth[image == _MM_UNKNOWN] = 0
    return depth


def write_depth_millimetres(path: Path, depth: npt.NDArray[np.float32]) -> None:
    """Write (H, W) metres as 16-bit PNG millimetres, rounded; unknown (0) stays 0, depths above 65.534 m
    become unknown.
    """
    import cv2

    millimetres = np.rint(depth.astype(np.float64) * 1000)
    millimetres[~np.isfinite(millimetres) | (millimetres < 0) | (millimetres >= _MM_UNKNOWN)] = 0
    done, encoded = cv2.imencode(".png", millimetres.astype(np.uint16))
    if not done:
        raise DataError(f"{path}: could not be encoded")
    atomic_write(path, encoded.tobytes())
