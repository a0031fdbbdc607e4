"""GL3D: large-scale reconstructions with SIFT keypoints, correspondences, depth maps.

Layout: `data/<scene>/{undist_images,blended_images,depths,rendered_depths,img_kpts,geolabel}/`,
`list/<split>/*.txt`. Files are little-endian without padding. Source of the formats: the documentation and
readers of `lzx551402/GL3D`.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_path, atomic_write
from matchlib.datasets.parsing import filled_lines, format_row, numbers, whole_number
from matchlib.datasets.types import Camera, DatasetFormat, Scene, SceneImage
from matchlib.errors import ConfigError, DataError, check_shape

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_GIVES = frozenset({"depth_pose", "pose", "tracks"})
_LIST_SCENES = "matchlib.datasets.gl3d:list_scenes"
SPECS = (
    DatasetFormat(
        name="gl3d", gives=_GIVES, list_scenes=_LIST_SCENES, read_scene="matchlib.datasets.gl3d:read_scene"
    ),
    # "v2" of ASLFeat: images blended with the rendered mesh, depth rendered from the mesh.
    DatasetFormat(
        name="gl3d_blended",
        gives=_GIVES,
        list_scenes=_LIST_SCENES,
        read_scene="matchlib.datasets.gl3d:read_blended_scene",
    ),
    # The split `blendedmvg` mixes both: tourism scenes were never blended.
    DatasetFormat(
        name="gl3d_blended_or_plain",
        gives=_GIVES,
        list_scenes=_LIST_SCENES,
        read_scene="matchlib.datasets.gl3d:read_blended_or_plain_scene",
    ),
)

_HEADER = struct.Struct("<QQQ")  # upstream's reader uses `unsigned long`, which is 4 bytes on Windows
CORR_COLUMNS = 15
_KEYPOINT_BYTES = 24
_CAMERA_COLUMNS = 23


@dataclass(frozen=True, slots=True)
class CorrRecord:
    """Correspondences of one image pair, as they survived structure from motion.

    index0, index1: scene-local image ids
    rows: (n, 15) float32: affine frame in image 0 (6) and image 1 (6) of the *distorted* original images,
          geometric distance (may be NaN), keypoint row in image 0, keypoint row in image 1
    """

    index0: int
    index1: int
    rows: Float32


@dataclass(frozen=True, slots=True)
class CorrIndex:
    """Where the records of a `corr.bin` lie. Each array has one entry per record, in file order.

    index0, index1: (P,) int64 scene-local image ids
    count:          (P,) int64 correspondences
    offset:         (P,) int64 byte offset of the first row (behind the header)
    """

    index0: npt.NDArray[np.int64]
    index1: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.count.shape[0])


# ---------------------------------------------------------------- cameras
def read_cameras(path: Path) -> dict[int, Camera]:
    """Cameras of `geolabel/cameras.txt` by scene-local image id, in ascending order.

    K is in pixels of the original W x H image; the pose is world-to-camera. Raises DataError naming the line.
    """
    cameras: dict[int, Camera] = {}
    for line, text in filled_lines(path):
        values = numbers(path, line, text, _CAMERA_COLUMNS)
        if not np.isfinite(values).all():
            raise DataError(f"{path}:{line}: expected finite numbers, got {text}")
        index = whole_number(path, line, values[0], "image id")
        if index in cameras:
            raise DataError(f"{path}:{line}: image {index} has a camera already")
        fx, fy, px, py, skew = values[1:6]
        T = np.eye(4)
        T[:3, :3] = np.reshape(values[9:18], (3, 3))
        T[:3, 3] = values[6:9]
        if not np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-2):
            raise DataError(
                f"{path}:{line}: columns 9-17: expected a rotation matrix, got {T[:3, :3].tolist()}"
            )
        cameras[index] = Camera(
            K=np.array([[fx, skew, px], [0.0, fy, py], [0.0, 0.0, 1.0]]),
            T_world_to_cam=T,
            size=(
                whole_number(path, line, values[21], "width"),
                whole_number(path, line, values[22], "height"),
            ),
            distortion=(values[18], values[19], values[20]),
        )
    return dict(sorted(cameras.items()))


def write_cameras(path: Path, cameras: Mapping[int, Camera]) -> None:
    """Write `cameras.txt` so that `read_cameras` gives the same numbers back."""
    lines = []
    for index, camera in sorted(cameras.items()):
        K, T = camera.K, camera.T_world_to_cam
        values = [
            K[0, 0],
            K[1, 1],
            K[0, 2],
            K[1, 2],
            K[0, 1],
            *T[:3, 3],
            *T[:3, :3].ravel(),
            *camera.distortion,
        ]
        lines.append(f"{index} {format_row(values)} {camera.size[0]} {camera.size[1]}\n")
    atomic_write(path, "".join(lines))


# ---------------------------------------------------------------- keypoints
def read_keypoints(path: Path) -> Float32:
    """(N, 6) float32 affine frames of `img_kpts/*.bin` (see `affine_to_pixel`); N may be 0.

    Raises DataError for a missing file or one whose length is not a multiple of 24 bytes.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    whole = len(data) // _KEYPOINT_BYTES * _KEYPOINT_BYTES
    if whole != len(data):
        raise DataError(
            f"{path}: expected keypoints of {_KEYPOINT_BYTES} bytes, got {len(data)} bytes: "
            f"the last keypoint, at byte {whole}, is cut; fetch the file anew"
        )
    return np.frombuffer(data, dtype="<f4").reshape(-1, 6).astype(np.float32, copy=False)


def write_keypoints(path: Path, affine: Float32) -> None:
    """Write (N, 6) affine frames, atomically. Raises ShapeError."""
    check_shape("affine", affine, "N 6")
    atomic_write(path, np.ascontiguousarray(affine, dtype="<f4").tobytes())


def pixel_to_affine(
    xy: npt.ArrayLike, size: tuple[int, int], radius_px: npt.ArrayLike, angle_rad: npt.ArrayLike
) -> Float32:
    """GL3D's affine frames (N, 6) of round keypoints.

    xy: (N, 2) pixels, `size` = (W, H); radius_px: (N,) half-width of the support region in pixels; angle_rad:
    (N,) orientation. A frame is the row-major 2x3 matrix that maps the patch square [-1, 1]^2 to image
    coordinates n = 2 * pixel / size - 1 (no half-pixel term); its 2x2 part in pixels is r * [[cos, sin],
    [-sin, cos]], so that the orientation is atan2(a01, a00).
    """
    half = np.asarray(size, dtype=np.float64) / 2
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    radius, angle = np.asarray(radius_px, dtype=np.float64), np.asarray(angle_rad, dtype=np.float64)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    affine = np.empty((len(points), 6), dtype=np.float32)
    affine[:, 0], affine[:, 1] = along / half[0], across / half[0]
    affine[:, 3], affine[:, 4] = -across / half[1], along / half[1]
    affine[:, 2], affine[:, 5] = (points / half - 1).T
    return affine


def affine_to_pixel(affine: npt.NDArray[np.floating], size: tuple[int, int]) -> Float64:
    """Centres (N, 2) float64 of affine frames (N, 6), pixels of an image of `size` = (W, H)."""
    check_shape("affine", affine, "N 6")
    half = np.asarray(size, dtype=np.float64) / 2
    return (affine[:, [2, 5]].astype(np.float64) + 1) * half


def affine_radius_angle(affine: npt.NDArray[np.floating], size: tuple[int, int]) -> tuple[Float64, Float64]:
    """Half-width of the support region in pixels and orientation in radians, (N,) float64 each, of round
    frames.
    """
    along = affine[:, 0].astype(np.float64) * size[0] / 2
    across = affine[:, 1].astype(np.float64) * size[0] / 2
    return np.hypot(along, across), np.arctan2(affine[:, 1], affine[:, 0], dtype=np.float64)


# ---------------------------------------------------------------- correspondences
def scan_corr(path: Path) -> CorrIndex:
    """Where the records of a `corr.bin` lie, read from their headers only.

    Raises DataError naming the byte offset at which the file is cut or holds something else.
    """
    headers: list[tuple[int, int, int, int]] = []
    # Single reads, not a memory map: the headers touch most pages, which would count as this process's memory.
    with _opened(path) as file:
        at, end = 0, os.fstat(file).st_size
        while at < end:
            if end - at < _HEADER.size:
                raise DataError(
                    f"{path}: byte {at}: expected a record header of {_HEADER.size} bytes, got {end - at}; "
                    f"the file is cut, fetch it anew"
                )
            index0, index1, count = _HEADER.unpack(os.pread(file, _HEADER.size, at))
            at += _HEADER.size
            if count * CORR_COLUMNS * 4 > end - at:
                raise DataError(
                    f"{path}: byte {at}: record {len(headers)} (images {index0} and {index1}) announces {count} "
                    f"correspondences, {count * CORR_COLUMNS * 4} bytes, but {end - at} are left; the file is cut or "
                    f"not a corr.bin, fetch it anew"
                )
            headers.append((index0, index1, count, at))
            at += count * CORR_COLUMNS * 4
    columns = np.array(headers, dtype=np.int64).reshape(-1, 4).T
    return CorrIndex(*columns)


def read_corr(path: Path) -> Iterator[CorrRecord]:
    """The records of a `corr.bin` in file order, one at a time. Raises DataError (see `scan_corr`) before the
    first.
    """
    index = scan_corr(path)
    with open(path, "rb") as stream:
        for index0, index1, count, offset in zip(
            index.index0.tolist(),
            index.index1.tolist(),
            index.count.tolist(),
            index.offset.tolist(),
            strict=True,
        ):
            stream.seek(offset)
            rows = np.frombuffer(stream.read(count * CORR_COLUMNS * 4), dtype="<f4")
            yield CorrRecord(index0, index1, rows.reshape(count, CORR_COLUMNS).astype(np.float32, copy=False))


def write_corr(path: Path, records: Iterable[CorrRecord]) -> None:
    """Write a `corr.bin`, atomically. Raises ShapeError."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        for record in records:
            count = check_shape("rows", record.rows, f"n {CORR_COLUMNS}")["n"]
            stream.write(_HEADER.pack(record.index0, record.index1, count))
            stream.write(np.ascontiguousarray(record.rows, dtype="<f4").tobytes())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file descriptor for reading."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        yield file
    finally:
        os.close(file)


# ---------------------------------------------------------------- scenes and lists
def read_scene(root: Path, scene: str) -> Scene:
    """A scene with `undist_images` and `depths`. See `_read_scene`."""
    return _read_scene(root, scene, ("undist_images",), ("depths",))


def read_blended_scene(root: Path, scene: str) -> Scene:
    """A scene with `blended_images` and `rendered_depths`. See `_read_scene`."""
    return _read_scene(root, scene, ("blended_images",), ("rendered_depths",))


def read_blended_or_plain_scene(root: Path, scene: str) -> Scene:
    """As `read_blended_scene`; a scene without a folder `blended_images` is read as by `read_scene`."""
    return _read_scene(root, scene, ("blended_images", "undist_images"), ("rendered_depths", "depths"))


def _read_scene(
    root: Path, scene: str, image_folders: tuple[str, ...], depth_folders: tuple[str, ...]
) -> Scene:
    """One scene: every image that has a camera; files are named, not opened.

    The first of `image_folders` that exists is used, and the depth folder of the same place in its list; if
    that folder does not exist, images have no depth. Raises DataError for a missing scene, camera file or
    image folder.
    """
    folder = root / "data" / scene
    if not folder.is_dir():
        raise DataError(f"{folder}: no such scene; expected GL3D's layout data/<scene>/ below {root}")
    cameras = read_cameras(folder / "geolabel" / "cameras.txt")
    present = [k for k, name in enumerate(image_folders) if (folder / name).is_dir()]
    if not present:
        raise DataError(f"{folder}: expected a folder {' or '.join(image_folders)} with images, found none")
    images, depths = image_folders[present[0]], depth_folders[present[0]]
    has_depth, has_keypoints = (folder / depths).is_dir(), (folder / "img_kpts").is_dir()
    corr = folder / "geolabel" / "corr.bin"
    return Scene(
        name=scene,
        images={
            index: SceneImage(
                index=index,
                image_path=folder / images / f"{index:08d}.jpg",
                camera=camera,
                depth_path=folder / depths / f"{index:08d}.pfm" if has_depth else None,
                keypoints_path=folder / "img_kpts" / f"{index:08d}.bin" if has_keypoints else None,
            )
            for index, camera in cameras.items()
        },
        first_global_index=_first_global_index(root, scene),
        corr_path=corr if corr.is_file() else None,
    )


def list_scenes(root: Path, split: str) -> tuple[str, ...]:
    """Scenes of a split, in file order: "<list>/<part>", e.g. "comb/train" (`list/comb/imageset_train.txt`).

    The part is "all", "train" or "test". A list alone means all of it; a part alone will do where `list/`
    holds one list only. Raises ConfigError for any other split, DataError for a missing or empty list file.
    """
    known = sorted(path.name for path in (root / "list").glob("*") if path.is_dir())
    if not known:
        raise DataError(f"{root / 'list'}: expected GL3D's list folders (e.g. list/comb), found none")
    name, _, part = f"{split}/all".rpartition("/") if split in known else split.rpartition("/")
    if not name and len(known) == 1:
        name = known[0]
    if name not in known or part not in ("all", "train", "test"):
        raise ConfigError(
            f"gl3d: unknown split '{split}'; expected <list>/<part> with list one of {', '.join(known)} "
            f"and part one of all, train, test"
        )
    path = root / "list" / name / f"imageset_{part}.txt"
    scenes = tuple(text.split()[0] for _, text in filled_lines(path))
    if not scenes:
        raise DataError(f"{path}: expected one scene per line, got an empty file")
    return scenes


def write_lists(
    root: Path,
    split: str,
    scenes: Mapping[str, int],
    train: Iterable[str],
    test: Iterable[str],
    *,
    image_dir: str = "undist_images",
    depth_dir: str = "depths",
) -> None:
    """Write the six list files of `list/<split>/`. `scenes` maps each scene, in order, to its count of
    images.
    """
    offsets, images, depths = [], [], []
    first = 0
    for scene, count in scenes.items():
        offsets.append(f"{scene} {first} {first + count}")
        images += [f"data/{scene}/{image_dir}/{index:08d}.jpg" for index in range(count)]
        depths += [f"data/{scene}/{depth_dir}/{index:08d}.pfm" for index in range(count)]
        first += count
    files = {
        "image_index_offset": offsets,
        "image_list": images,
        "depth_list": depths,
        "imageset_all": list(scenes),
        "imageset_train": list(train),
        "imageset_test": list(test),
    }
    for name, lines in files.items():
        atomic_write(root / "list" / split / f"{name}.txt", "".join(f"{line}\n" for line in lines))


def _first_global_index(root: Path, scene: str) -> int:
    """From the first list that knows the scene (`comb`, then by name); 0 without lists (used for export
    only).
    """
    paths = sorted(
        (root / "list").glob("*/image_index_offset.txt"), key=lambda p: (p.parent.name != "comb", p)
    )
    for path in paths:
        for line, text in filled_lines(path):
            name, *rest = text.split()
            if name == scene:
                return whole_number(path, line, numbers(path, line, " ".join(rest), 2)[0], "first image")
    return 0
