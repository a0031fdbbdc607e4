"""PFM float images, the depth maps of GL3D and BlendedMVS."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_path
from matchlib.errors import DataError, check_shape

# One white-space character ends the header; the pixels may begin with any byte, so no more may be skipped.
_HEADER = re.compile(rb"(P[fF])\s+(\d{1,6})\s+(\d{1,6})\s+([-+0-9.eE]+)[ \t]*(?:\r?\n|[ \t\r])")
_LONGEST_HEADER = 200


def read_pfm(path: Path) -> npt.NDArray[np.float32]:
    """The (H, W) float32 values of a one-channel PFM file, first row on top, as stored (no unit, no
    clipping).

    Both byte orders are read; the file's rows run bottom-up and are turned here. Raises DataError for a file
    that is missing, not PFM, of three channels, or of any length but the one its header announces.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    header = _HEADER.match(data[:_LONGEST_HEADER])
    if header is None:
        raise DataError(f"{path}: expected a PFM header (Pf, width height, scale), got {data[:20]!r}")
    if header[1] == b"PF":
        raise DataError(f"{path}: expected one channel (Pf), got three (PF)")
    width, height = int(header[2]), int(header[3])
    try:
        scale = float(header[4])
    except ValueError:
        scale = 0.0
    if scale == 0.0 or width == 0 or height == 0:
        raise DataError(f"{path}: expected a size and a scale other than 0, got {header[0]!r}")
    expected = header.end() + 4 * width * height
    if len(data) != expected:
        raise DataError(f"{path}: expected {expected} bytes for {width} x {height}, got {len(data)}")
    values = np.frombuffer(data, dtype="<f4" if scale < 0 else ">f4", offset=header.end())
    return np.flipud(values.reshape(height, width)).astype(np.float32)


def write_pfm(path: Path, depth: npt.NDArray[np.float32]) -> None:
    """Write (H, W) values as little-endian one-channel PFM, atomically. Raises ShapeError."""
    sizes = check_shape("depth", depth, "H W")
    rows = np.ascontiguousarray(np.flipud(depth), dtype="<f4")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"Pf\n%d %d\n-1.0\n" % (sizes["W"], sizes["H"]) + rows.tobytes())
