"""VisualSFM's NVM files: poses of images, and which images see each point. NumPy only.

Layout: a header `NVM_V3 ...`, a blank line, the number of cameras, a line `name f qw qx qy qz Cx Cy Cz r 0` each, a
blank line, the number of points, a line `X Y Z R G B n (image feature x y) * n` each. The quaternion turns world to
camera; C is the camera *centre*, so t = -R C. Source: VisualSFM's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.parsing import format_row, numbers, whole_number
from matchlib.errors import DataError, check_shape

Float64 = npt.NDArray[np.float64]
_HEADER = "NVM_V3"
_NOT_UNIT = 1e-3  # quaternions in text files are rounded
_PER_OBSERVATION = 4
_POINT_HEAD = 7  # X Y Z, R G B, number of observations


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NvmPoint:
    """A 3D point.

    position: (3,) float64
    images:   rows of the cameras that see it, as they stand in the file, from 0
    """

    position: Float64
    images: tuple[int, ...]


# ---------------------------------------------------------------- quaternions
def rotation_from_quaternion(wxyz: npt.ArrayLike) -> Float64:
    """(3, 3) float64 rotation of a quaternion (4,), w first, of any length but 0."""
    q = np.asarray(wxyz, dtype=np.float64)
    check_shape("quaternion", q, "4")
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(R: npt.ArrayLike) -> Float64:
    """(4,) float64 unit quaternion, w first and at least 0, of a rotation (3, 3).

    It is the eigenvector to the eigenvalue 1 of a symmetric matrix, which is exact at every angle and takes the nearest
    rotation where the digits of a file were rounded. Source: Bar-Itzhack 2000, "New method for extracting the
    quaternion from a rotation matrix".
    """
    m = np.asarray(R, dtype=np.float64)
    check_shape("R", m, "3 3")
    K = np.zeros((4, 4))
    K[0, 0] = np.trace(m)
    K[1:, 1:] = m + m.T - np.trace(m) * np.eye(3)
    K[0, 1:] = K[1:, 0] = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    q = np.linalg.eigh(K / 3)[1][:, -1]
    return np.asarray(-q if q[0] < 0 else q)


def pose_from_centre(wxyz: npt.ArrayLike, centre: npt.ArrayLike) -> Float64:
    """`T_world_to_cam` (4, 4) of a rotation world to camera and a camera centre (3,)."""
    T = np.eye(4)
    T[:3, :3] = rotation_from_quaternion(wxyz)
    T[:3, 3] = -T[:3, :3] @ np.asarray(centre, dtype=np.float64)
    return T


def camera_centre(T_world_to_cam: Float64) -> Float64:
    """Camera centre (3,) of a pose (4, 4), -R^T t."""
    return np.asarray(-T_world_to_cam[:3, :3].T @ T_world_to_cam[:3, 3])


# ---------------------------------------------------------------- reading
def read_nvm(path: Path) -> dict[str, Float64]:
    """`T_world_to_cam` (4, 4) float64 by image name, in the order of the file; its points are not read.

    Focal length and distortion are left out: benchmarks ship better ones. Raises DataError naming file and line for
    another header, fewer cameras than stated, a name that comes twice, or a quaternion that is far from unit length.
    """
    poses: dict[str, Float64] = {}
    with _lines(path) as lines:
        for line, text in _camera_lines(path, lines):
            name, pose = _pose(path, line, text)
            if name in poses:
                raise DataError(f"{path}:{line}: image '{name}' was given before; leave one line of it")
            poses[name] = pose
    return poses


def read_nvm_points(path: Path) -> Iterator[NvmPoint]:
    """Points one after the other, so that files of gigabytes pass through; none where the file ends before them.

    Raises DataError naming file and line, also for an image beyond the cameras and for fewer points than stated.
    """
    with _lines(path) as lines:
        cameras = sum(1 for _ in _camera_lines(path, lines))
        line, text = next(_filled(lines), (0, "0"))
        stated = whole_number(path, line, numbers(path, line, text, 1)[0], "number of points")
        found = 0
        for line, text in _filled(lines):
            if found == stated:
                return
            yield _point(path, line, text, cameras)
            found += 1
    if found < stated:
        raise DataError(f"{path}: expected {stated} points, found {found}; the file is cut, fetch it anew")


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[tuple[int, str]]]:
    """(line number from 1, text) of all lines, read as they are asked for."""
    try:
        with open(path, encoding="utf-8") as stream:
            yield ((number, line.strip()) for number, line in enumerate(stream, start=1))
    except FileNotFoundError:
        raise DataError(f"{path}: not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file, got {error}") from error


def _filled(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((number, text) for number, text in lines if text)


def _camera_lines(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines of the cameras; `lines` is left behind the last one. Later models of the file are not reached."""
    filled = _filled(lines)
    line, header = next(filled, (1, ""))
    if header.split()[:1] != [_HEADER]:
        raise DataError(f"{path}:{line}: expected the header {_HEADER}, got '{header[:40]}'")
    line, text = next(filled, (line, ""))
    stated = whole_number(path, line, numbers(path, line, text, 1)[0], "number of cameras")
    found = 0
    while found < stated:
        line, text = next(filled, (line, ""))
        if not text:
            raise DataError(
                f"{path}: expected {stated} cameras, found {found}; the file is cut, fetch it anew"
            )
        yield line, text
        found += 1


def _pose(path: Path, line: int, text: str) -> tuple[str, Float64]:
    name, _, rest = text.replace("\t", " ").partition(" ")
    values = np.array(numbers(path, line, rest, 10))
    if not np.isfinite(values).all():
        raise DataError(f"{path}:{line}: expected finite numbers, got nan or inf")
    length = float(np.linalg.norm(values[1:5]))
    if abs(length - 1) > _NOT_UNIT:
        raise DataError(
            f"{path}:{line}: expected a unit quaternion (w x y z) in columns 3 to 6, got one of length {length:g}"
        )
    return name, pose_from_centre(values[1:5], values[5:8])


def _point(path: Path, line: int, text: str, cameras: int) -> NvmPoint:
    values = numbers(path, line, text)
    if len(values) < _POINT_HEAD:
        raise DataError(f"{path}:{line}: expected 'X Y Z R G B n ...', got {len(values)} numbers")
    count = whole_number(path, line, values[6], "number of observations")
    if len(values) != _POINT_HEAD + _PER_OBSERVATION * count:
        raise DataError(
            f"{path}:{line}: expected {_PER_OBSERVATION} numbers for each of {count} observations, got "
            f"{len(values) - _POINT_HEAD}; the file is cut, fetch it anew"
        )
    rows = tuple(whole_number(path, line, value, "image") for value in values[_POINT_HEAD::_PER_OBSERVATION])
    if any(row >= cameras for row in rows):
        raise DataError(f"{path}:{line}: image {max(rows)} is beyond the {cameras} cameras of the file")
    return NvmPoint(position=np.array(values[:3]), images=rows)


# ---------------------------------------------------------------- writing
def write_nvm(
    path: Path,
    poses: Mapping[str, Float64],
    *,
    focal_px: Mapping[str, float],
    points: Sequence[NvmPoint] = (),
) -> None:
    """Write what `read_nvm` and `read_nvm_points` read, atomically; observations get no positions (0, 0).

    poses: `T_world_to_cam` (4, 4) by image name. Raises DataError for a name with white space.
    """
    lines = [_HEADER, "", str(len(poses))]
    for name, T in poses.items():
        check_shape(f"pose of {name}", T, "4 4")
        if not name or len(name.split()) != 1:
            raise DataError(f"{path}: expected an image name without white space, got '{name}'")
        quaternion, centre = quaternion_from_rotation(T[:3, :3]), camera_centre(T)
        row = [float(focal_px[name]), *quaternion.tolist(), *centre.tolist(), 0.0]
        lines.append(f"{name} {format_row(row)} 0")
    lines += ["", str(len(points))]
    for point in points:
        seen = " ".join(f"{image} 0 0 0" for image in point.images)
        lines.append(f"{format_row(point.position)} 128 128 128 {len(point.images)} {seen}".rstrip())
    atomic_write(path, "\n".join(lines) + "\n\n0\n")
