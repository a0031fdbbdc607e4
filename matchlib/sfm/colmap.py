"""The boundary to pycolmap: its noise, its exceptions, its types. Nothing else of the package touches these."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.errors import DataError, MatchlibError, check_shape

Float64 = npt.NDArray[np.float64]
_WARNING, _ERROR = 1, 2  # glog's levels
_ORTHONORMAL = 1e-4  # rotations in text files have five or six digits


@contextlib.contextmanager
def colmap_step(where: Path, step: str, *, check: str, quiet: bool = False) -> Iterator[None]:
    """Run pycolmap calls: information is not printed, and what they throw comes out as DataError.

    The message says the file, the step, COLMAP's words, and what to check. quiet: hide warnings too.
    """
    import pycolmap

    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = max(before, _ERROR if quiet else _WARNING)
    try:
        yield
    except (MatchlibError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        # pycolmap throws whatever its C++ side does: ValueError, IndexError, RuntimeError.
        raise DataError(f"{where}: {step}: COLMAP failed: {error}; check {check}") from error
    finally:
        pycolmap.logging.minloglevel = before


def to_colmap_camera(camera: ColmapCamera, camera_id: int | None = None) -> Any:
    """`pycolmap.Camera`; without an id where a database gives one."""
    import pycolmap

    fields: dict[str, Any] = {} if camera_id is None else {"camera_id": camera_id}
    result = pycolmap.Camera(
        model=camera.model, width=camera.width, height=camera.height, params=list(camera.params), **fields
    )
    result.has_prior_focal_length = camera.is_calibrated
    return result


def from_colmap_camera(camera: Any) -> ColmapCamera:
    """The other way. Raises DataError for a model that matchlib does not know."""
    return ColmapCamera(
        model=camera.model.name,
        width=int(camera.width),
        height=int(camera.height),
        params=tuple(float(value) for value in camera.params),
        is_calibrated=bool(camera.has_prior_focal_length),
    )


def to_rigid(name: str, T_world_to_cam: Float64) -> Any:
    """`pycolmap.Rigid3d` of a (4, 4) pose. Raises DataError naming the image if it is not rigid."""
    import pycolmap

    T = np.asarray(T_world_to_cam, dtype=np.float64)
    check_shape(f"{name}: T_world_to_cam", T, "4 4")
    R = T[:3, :3]
    is_rigid = (
        np.isfinite(T).all()
        and np.allclose(R @ R.T, np.eye(3), atol=_ORTHONORMAL)
        and np.linalg.det(R) > 0
        and np.allclose(T[3], [0, 0, 0, 1])
    )
    if not is_rigid:
        raise DataError(f"{name}: expected a rotation and a translation, world to camera, got {T.tolist()}")
    return pycolmap.Rigid3d(pycolmap.Rotation3d(R), T[:3, 3])


def from_rigid(rigid: Any) -> Float64:
    """(4, 4) float64 pose."""
    T = np.eye(4)
    T[:3] = rigid.matrix()
    return T


@contextlib.contextmanager
def open_database(path: Path, *, check: str = "that the file is a COLMAP database") -> Iterator[Any]:
    """`pycolmap.Database` of an existing file; closed at the end, with the write-ahead log folded in.

    COLMAP changes a database by opening it: it migrates an older schema, switches to a write-ahead log and counts the
    visit, even if it only reads. So give it a copy (`copy_database`), or what is being written. Raises DataError for an
    absent file and for what `check_schema` refuses.
    """
    import pycolmap

    check_schema(path)
    with colmap_step(path, "database", check=check):
        database = pycolmap.Database.open(str(path))
        try:
            yield database
        finally:
            database.close()


def copy_database(source: Path, target: Path) -> Path:
    """Copy a database, with what lies in a write-ahead log beside it; returns `target`, which is writable.

    Raises DataError as `check_schema` does.
    """
    check_schema(source)
    shutil.copyfile(source, target)  # bytes only: not the permissions of a shipped file
    log = source.with_name(source.name + "-wal")
    if log.is_file():
        shutil.copyfile(log, target.with_name(target.name + "-wal"))
        fold_log(target)
    return target


def fold_log(database: Path) -> None:
    """Make a database one plain file: readers of a read-only folder cannot open a write-ahead log.

    Raises DataError if SQLite cannot.
    """
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            mode = connection.execute("pragma journal_mode = delete").fetchone()[0]
    except sqlite3.Error as error:
        mode = str(error)
    if mode != "delete":
        raise DataError(
            f"{database}: its write-ahead log could not be folded in ({mode}); check that the disk has space, and that "
            f"no other program has the database open"
        )


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """An SQLite connection that changes no byte, needs no lock, and works in a read-only folder.

    It does not see what lies in a write-ahead log. Raises DataError for an absent file and whatever SQLite reports.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; expected a COLMAP database")
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)
        ) as connection:
            yield connection
    except sqlite3.Error as error:
        raise DataError(
            f"{path}: not a readable COLMAP database ({error}); fetch or build it again"
        ) from error


def verified_counts(path: Path) -> tuple[int, int]:
    """Pairs of a database with at least one inlier, and their inliers in all. Only reads; see `read_only`.

    COLMAP's own count of verified pairs also counts the pairs that failed.
    """
    with read_only(path) as connection:
        pairs, inliers = connection.execute(
            "select count(*), coalesce(sum(rows), 0) from two_view_geometries where rows > 0"
        ).fetchone()
    return int(pairs), int(inliers)


def require_verification(path: Path, *, source: Path) -> None:
    """Raise DataError for a database that no verification has run on, which would pass for a scene without geometry.

    Our verification leaves a row for every pair that it was asked for, failed ones too.
    path: a database without a write-ahead log; source: what it is a copy of, for the message
    """
    with read_only(path) as connection:
        was_tried = connection.execute("select exists(select 1 from two_view_geometries)").fetchone()[0]
    if not was_tried:
        raise DataError(
            f"{source}: expected a verified database, got one that no pair was verified in; run geometric "
            f"verification first"
        )


def check_schema(path: Path) -> int:
    """Version of the schema of a COLMAP database, e.g. 3400 for COLMAP 3.4. Never changes the file.

    Raises DataError for an absent file, one that is no COLMAP database, and a schema newer than this COLMAP's, which
    it would read as its own.
    """
    with read_only(path) as connection:
        version = int(connection.execute("pragma user_version").fetchone()[0])
        tables = {str(row[0]) for row in connection.execute("select name from sqlite_master")}
    missing = {"cameras", "images", "keypoints", "matches", "two_view_geometries"} - tables
    if missing:
        raise DataError(f"{path}: not a COLMAP database: no table {', '.join(sorted(missing))}")
    if version > _own_schema():
        raise DataError(
            f"{path}: written by a newer COLMAP (schema {version}, this one reads up to {_own_schema()}); install that "
            f"version of pycolmap, or write the database with this one"
        )
    return version


def _own_schema() -> int:
    """Highest number of this COLMAP's minor version: 4.2.1 writes 4020100."""
    import pycolmap

    major, minor = (int(part) for part in pycolmap.__version__.split(".")[:2])
    return major * 1_000_000 + minor * 10_000 + 9_999


def read_model(folder: Path) -> Any:
    """`pycolmap.Reconstruction` of a folder (binary or text). Raises DataError if it holds no model."""
    import pycolmap

    if not folder.is_dir():
        raise DataError(f"{folder}: not found; expected a COLMAP model (cameras, images, points3D)")
    with colmap_step(folder, "model", check="that cameras, images and points3D are there and whole"):
        return pycolmap.Reconstruction(str(folder))
