"""The layout of the ETH local-feature benchmark (Schönberger et al. 2017): photographs of places to reconstruct.

A scene is a folder with `images/` and, where present:
`database.db`         COLMAP's tables of images and cameras, as shipped: says which images the scene has
`image-pairs.txt`     pairs to match, two names per line; scenes of 2,000 images and more need it
`keypoints/<image>.bin`, `descriptors/<image>.bin`, `matches/<image>---<image>.bin`
                      what other programs found; keypoints are x, y, scale, orientation
`true_poses.txt`      or `calibration/calibration_<image>.h5` (the Image Matching Workshop's): poses, where known

Keypoints in these files count from the centre of the first pixel, as ours do: the benchmark's export takes COLMAP's
half pixel off. (Its import does not put it on again: see `pixel_offset` of the protocol.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.aachen import read_pose_list, skeleton_images
from matchlib.datasets.images import list_images
from matchlib.datasets.types import DatasetFormat
from matchlib.errors import DataError, check_shape

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
UInt32 = npt.NDArray[np.uint32]

_log = logging.getLogger(__name__)

SPECS = (
    DatasetFormat(
        name="eth_benchmark", gives=frozenset(), list_scenes="matchlib.datasets.eth_benchmark:list_scenes"
    ),
)
IMAGES = "images"
DATABASE = "database.db"
PAIRS = "image-pairs.txt"
TRUE_POSES = "true_poses.txt"
CALIBRATION = "calibration"
KEYPOINTS, DESCRIPTORS, MATCHES = "keypoints", "descriptors", "matches"
_BETWEEN = "---"
_HEADER_BYTES = 8
_NOT_ROTATION = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class EthScene:
    """One scene. Image names are relative to `images`, sorted; other paths are None where the scene lacks them.

    names: images that are there and, where there is a database, listed in it
    truth: file or folder of true poses, see `read_truth`
    """

    name: str
    folder: Path
    names: tuple[str, ...]
    database: Path | None = None
    pairs: Path | None = None
    truth: Path | None = None

    @property
    def images(self) -> Path:
        """Folder of the photographs."""
        return self.folder / IMAGES


# ---------------------------------------------------------------- scenes
def list_scenes(root: Path, split: str = "all") -> tuple[str, ...]:
    """Names of the scenes below `root`, sorted; the root itself may be one. A split is "all" or a scene's name.

    Raises DataError if there is no such scene.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected scenes of the ETH benchmark")
    found = tuple(sorted(_scene_folders(root)))
    if not found:
        raise DataError(
            f"{root}: expected folders <scene>/{IMAGES}, found none; unpack the archives of the scenes there"
        )
    if split == "all":
        return found
    if split not in found:
        raise DataError(f"{root}: no scene '{split}' (there are: {', '.join(found)})")
    return (split,)


def read_scene(root: Path, name: str) -> EthScene:
    """One of `list_scenes`.

    Raises DataError for an unknown one, for one without images, and for a database that lists none of them.
    """
    list_scenes(root, name)
    folder = _scene_folders(root)[name]
    truth = next((folder / file for file in (TRUE_POSES, CALIBRATION) if (folder / file).exists()), None)
    return EthScene(
        name=name,
        folder=folder,
        names=_images_of(folder),
        database=_if_there(folder / DATABASE),
        pairs=_if_there(folder / PAIRS),
        truth=truth,
    )


def read_truth(scene: EthScene) -> dict[str, Float64] | None:
    """True (4, 4) `T_world_to_cam` by image name, at any scale; None where nobody knows them.

    `true_poses.txt` has lines `name qw qx qy qz tx ty tz`; a calibration has `R` (3, 3) and `T` (3,) per image, named
    without the ending. Images without a pose are left out. Raises DataError for poses of images that the scene lacks,
    and for faults of the files.
    """
    if scene.truth is None:
        return None
    poses = _read_calibrations(scene) if scene.truth.is_dir() else read_pose_list(scene.truth)
    if unknown := sorted(set(poses) - set(scene.names)):
        raise DataError(
            f"{scene.truth}: {len(unknown)} of {len(poses)} poses are of images that {scene.images} lacks: "
            f"{', '.join(unknown[:5])}; use names relative to that folder"
        )
    return poses


def _scene_folders(root: Path) -> dict[str, Path]:
    if (root / IMAGES).is_dir():
        return {root.resolve().name: root}
    return {path.name: path for path in root.iterdir() if (path / IMAGES).is_dir()}


def _images_of(folder: Path) -> tuple[str, ...]:
    there = list_images(folder / IMAGES)
    if not (folder / DATABASE).is_file():
        return tuple(there)
    listed = skeleton_images(folder / DATABASE)
    names = tuple(name for name in there if name in listed)
    if not names:
        raise DataError(
            f"{folder / DATABASE}: lists none of the {len(there)} images of {folder / IMAGES} (it has "
            f"'{next(iter(listed), '')}', there is '{there[0]}'); it is of another scene, remove it"
        )
    if len(names) < max(len(there), len(listed)):
        _log.warning(
            "%s: lists %d images, %d of them are there; %d other images are left out",
            folder / DATABASE,
            len(listed),
            len(names),
            len(there) - len(names),
        )
    return names


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _read_calibrations(scene: EthScene) -> dict[str, Float64]:
    import h5py  # not at module level: the graph imports every module of this package

    folder = scene.folder / CALIBRATION
    poses: dict[str, Float64] = {}
    for name in scene.names:
        path = folder / f"calibration_{Path(name).stem}.h5"
        if not path.is_file():
            continue
        try:
            with h5py.File(path, "r") as file:
                R, t = (np.asarray(file[key], dtype=np.float64) for key in ("R", "T"))
        except (OSError, KeyError) as error:
            raise DataError(
                f"{path}: expected an HDF5 file with R and T ({error}); fetch it again"
            ) from error
        poses[name] = _pose(path, R, t)
    if not poses:
        raise DataError(f"{folder}: no calibration_<image>.h5 of any of the {len(scene.names)} images")
    return poses


def _pose(path: Path, R: Float64, t: Float64) -> Float64:
    check_shape(f"{path}: R", R, "3 3")
    if t.size != 3 or not np.allclose(R @ R.T, np.eye(3), atol=_NOT_ROTATION) or np.linalg.det(R) < 0:
        raise DataError(
            f"{path}: expected a rotation R (3, 3) and a translation T (3,); fetch the file again"
        )
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t.ravel()
    return T


# ---------------------------------------------------------------- binaries
def keypoints_path(scene_folder: Path, image: str) -> Path:
    """Where the keypoints of an image lie."""
    return scene_folder / KEYPOINTS / f"{image}.bin"


def descriptors_path(scene_folder: Path, image: str) -> Path:
    """Where the descriptors of an image lie."""
    return scene_folder / DESCRIPTORS / f"{image}.bin"


def matches_path(scene_folder: Path, image0: str, image1: str) -> Path:
    """Where the matches of two images lie."""
    return scene_folder / MATCHES / f"{image0}{_BETWEEN}{image1}.bin"


def read_keypoints(path: Path) -> Float32:
    """(N, 4) float32: x, y in pixels, centre of the first pixel at (0, 0), scale, orientation. Raises DataError."""
    return _read_matrix(path, 4).view("<f4").astype(np.float32)


def write_keypoints(path: Path, keypoints: Float32) -> None:
    """Write (N, 4) float32, atomically. Raises ShapeError."""
    check_shape(f"keypoints for {path}", keypoints, "N 4")
    _write_matrix(path, np.ascontiguousarray(keypoints, dtype="<f4").view("<u4"))


def read_descriptors(path: Path) -> Float32:
    """(N, D) float32, as they were written: not necessarily of unit length. Raises DataError."""
    return _read_matrix(path, None).view("<f4").astype(np.float32)


def write_descriptors(path: Path, descriptors: Float32) -> None:
    """Write (N, D) float32, atomically. Raises ShapeError."""
    check_shape(f"descriptors for {path}", descriptors, "N D")
    _write_matrix(path, np.ascontiguousarray(descriptors, dtype="<f4").view("<u4"))


def read_matches(path: Path) -> UInt32:
    """(M, 2) uint32: keypoint of the first image, keypoint of the second, counted from 0. Raises DataError."""
    return _read_matrix(path, 2).astype(np.uint32)


def write_matches(path: Path, matches: npt.NDArray[np.integer]) -> None:
    """Write (M, 2) indices, atomically. Raises ShapeError."""
    check_shape(f"matches for {path}", matches, "M 2")
    _write_matrix(path, np.ascontiguousarray(matches, dtype="<u4"))


def list_matches(scene_folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str, Path]]:
    """(image0, image1, file) of every pair whose matches lie in a scene's folder, sorted by file.

    names: images of the scene; names of files are split so that both parts are among them.
    Raises DataError for a file that belongs to no two of them.
    """
    known, folder = set(names), scene_folder / MATCHES
    for path in sorted(folder.rglob("*.bin")):
        stem = path.relative_to(folder).as_posix().removesuffix(".bin")
        words = stem.split(_BETWEEN)
        splits = ((_BETWEEN.join(words[:k]), _BETWEEN.join(words[k:])) for k in range(1, len(words)))
        pair = next((pair for pair in splits if pair[0] in known and pair[1] in known), None)
        if pair is None:
            raise DataError(f"{path}: expected <image>{_BETWEEN}<image>.bin of two images of the scene")
        yield *pair, path


def _read_matrix(path: Path, columns: int | None) -> npt.NDArray[np.uint32]:
    """(N, D) words of 4 bytes after the header int32 N, int32 D."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: not found; expected int32 N, int32 D and N x D values") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) < _HEADER_BYTES:
        raise DataError(
            f"{path}: expected a header of {_HEADER_BYTES} bytes, got {len(data)}; write it again"
        )
    rows, found = (int(value) for value in np.frombuffer(data, dtype="<i4", count=2))
    if rows < 0 or found < 0 or (columns is not None and found != columns):
        raise DataError(
            f"{path}: expected N x {'D' if columns is None else columns} values, got a header of {rows} x {found}; "
            f"is this the file of something else?"
        )
    expected = _HEADER_BYTES + 4 * rows * found
    if len(data) != expected:
        raise DataError(
            f"{path}: expected {expected} bytes for {rows} x {found} values, got {len(data)}; write it again"
        )
    return np.frombuffer(data, dtype="<u4", offset=_HEADER_BYTES).reshape(rows, found)


def _write_matrix(path: Path, words: npt.NDArray[np.uint32]) -> None:
    atomic_write(path, np.array(words.shape, dtype="<i4").tobytes() + words.tobytes())
