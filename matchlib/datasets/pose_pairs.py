"""Image pairs with known relative pose, as relative-pose benchmarks list them. Lists only: no image is opened."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write, digest_json
from matchlib.errors import DataError, check_shape

Float = npt.NDArray[np.float64]
PairFormat = Literal["matchlib", "superglue", "megadepth", "scannet", "glue_factory"]
Size = tuple[int, int]

LAYOUT = "matchlib-pose-pairs-1"
_ROTATION_TOLERANCE = 1e-3  # lists are rounded to five digits and more; a wrong column is off by far more
_MATRICES = {"K0": (3, 3), "K1": (3, 3), "T_0to1": (4, 4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PosePair:
    """Two images of one scene, and how the second camera stands to the first.

    name0, name1: images, as paths below the root of their set
    K0, K1:       (3, 3) float64 without skew, pixels of an image of `size0`, `size1`; where the first pixel's centre
                  lies is said by `PosePairSet.pixel_offset`
    T_0to1:       (4, 4) float64, maps camera-0 to camera-1 coordinates, any unit of length
    rot0, rot1:   quarter turns that stand the images upright (SuperGlue's lists); K and T_0to1 are those of the
                  images as they are on disk
    scene:        what pairs have in common that are not independent; "" if unknown
    size0, size1: (width, height) of the image that K is for; None: the image as it is on disk
    Raises ShapeError for other shapes, DataError for values that are no camera or no rigid pose.
    """

    name0: str
    name1: str
    K0: Float
    K1: Float
    T_0to1: Float
    rot0: int = 0
    rot1: int = 0
    scene: str = ""
    size0: Size | None = None
    size1: Size | None = None

    def __post_init__(self) -> None:
        for key, (rows, columns) in _MATRICES.items():
            check_shape(key, getattr(self, key), f"{rows} {columns}")
        for key in ("K0", "K1"):
            _check_intrinsics(key, getattr(self, key))
        _check_pose(self.T_0to1)
        for key in ("rot0", "rot1"):
            if getattr(self, key) not in (0, 1, 2, 3):
                raise DataError(f"{key}: expected 0, 1, 2 or 3 quarter turns, got {getattr(self, key)}")
        for key in ("size0", "size1"):
            size = getattr(self, key)
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise DataError(f"{key}: expected a width and a height of at least 1, got {size}")


def _check_intrinsics(key: str, K: Float) -> None:
    is_pinhole = K[0, 1] == K[1, 0] == 0 and K[2].tolist() == [0, 0, 1]
    if not (np.isfinite(K).all() and is_pinhole and K[0, 0] > 0 and K[1, 1] > 0):
        raise DataError(f"{key}: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {K.tolist()}")


def _check_pose(T: Float) -> None:
    R = T[:3, :3]
    is_rigid = np.isfinite(T).all() and T[3].tolist() == [0, 0, 0, 1]
    if not is_rigid or np.abs(R @ R.T - np.eye(3)).max() > _ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        raise DataError(f"T_0to1: expected a rotation and a translation, got {T.tolist()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PosePairSet:
    """A list of pairs and what its publishers agreed on.

    name:              in tables
    root:              folder that the names of images are relative to
    pixel_offset:      where K puts the centre of the first pixel: 0.5 in COLMAP's convention (principal point of
                       a centred camera: half the image size), 0 in ours
    epipolar_threshold: largest symmetric squared epipolar distance of a correct match, on the plane z = 1
    """

    name: str
    root: Path
    pairs: tuple[PosePair, ...]
    pixel_offset: float = 0.0
    epipolar_threshold: float = 5e-4

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError(f"{self.name}: expected at least one pair, got none")
        if self.pixel_offset not in (0.0, 0.5):
            raise DataError(f"{self.name}: pixel_offset: expected 0 or 0.5, got {self.pixel_offset}")
        if not self.epipolar_threshold > 0:
            raise DataError(
                f"{self.name}: epipolar_threshold: expected a value above 0, got {self.epipolar_threshold}"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def image_names(self) -> tuple[str, ...]:
        """All images of the list, each once, sorted: what features are needed of."""
        return tuple(sorted({name for pair in self.pairs for name in (pair.name0, pair.name1)}))

    @property
    def scenes(self) -> tuple[str, ...]:
        """All scenes, each once, sorted."""
        return tuple(sorted({pair.scene for pair in self.pairs}))

    @property
    def digest(self) -> str:
        """Digest of pairs and conventions; where the images lie does not matter."""
        return digest_json(_as_json(self))


def read_pose_pairs(
    index: Path,
    *,
    kind: PairFormat,
    root: Path | None = None,
    name: str | None = None,
    pixel_offset: float | None = None,
    epipolar_threshold: float | None = None,
) -> PosePairSet:
    """Read a list of pairs.

    index: `matchlib`: a file of `write_pose_pairs`, or a `.csv` of the same columns;
           `superglue`: a text file of 38 columns, of 36 without the rotations, or glue-factory's of 32;
           `megadepth`: a LoFTR scene index `.npz`, or a folder of them (MegaDepth-1500 has five);
           `scannet`: the folder of LoFTR's `test.npz` and `intrinsics.npz`;
           `glue_factory`: a folder with `views.txt` and `pairs.txt`, or a folder of such folders.
    root:  folder that the image names are relative to, by default that of the index.
    pixel_offset, epipolar_threshold: instead of what the format is published with (0.5 and 1e-4 for MegaDepth and
    glue-factory, 0 and 5e-4 for the others). A SuperGlue list does not say its convention: pass 0.5 where principal
    points are half the image size. Raises DataError naming file, line or pair.
    """
    corner = kind in ("megadepth", "glue_factory")
    pairs, stated = _read_pairs(index, kind)
    asked = {
        "name": name,
        "root": root,
        "pixel_offset": pixel_offset,
        "epipolar_threshold": epipolar_threshold,
    }
    settings: dict[str, Any] = {
        "name": index.stem,
        "root": index if index.is_dir() else index.parent,
        "pixel_offset": 0.5 if corner else 0.0,
        "epipolar_threshold": 1e-4 if corner else 5e-4,
        **stated,
        **{key: value for key, value in asked.items() if value is not None},
    }
    try:
        return PosePairSet(pairs=pairs, **settings)
    except (DataError, TypeError) as error:
        raise DataError(f"{index}: {error}") from error


def _read_pairs(index: Path, kind: PairFormat) -> tuple[tuple[PosePair, ...], dict[str, Any]]:
    """The pairs, and what the file itself says about the settings of the set."""
    # These modules build the types of this one.
    from matchlib.datasets.pose_indices import read_megadepth, read_scannet
    from matchlib.datasets.pose_texts import read_glue_factory, read_superglue

    if kind == "matchlib":
        return (_read_csv(index), {}) if index.suffix == ".csv" else _read_json(index)
    readers: dict[PairFormat, Callable[[Path], tuple[PosePair, ...]]] = {
        "superglue": read_superglue,
        "megadepth": read_megadepth,
        "scannet": read_scannet,
        "glue_factory": read_glue_factory,
    }
    return readers[kind](index), {}


# ---------------------------------------------------------------- our own files
def write_pose_pairs(pairs: PosePairSet, path: Path) -> None:
    """Write a list as JSON that reads back equal (but for `root`), atomically."""
    body = {"layout": LAYOUT, **_as_json(pairs)}
    atomic_write(path, json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _as_json(pairs: PosePairSet) -> dict[str, Any]:
    rows = []
    for pair in pairs.pairs:
        row = {field.name: getattr(pair, field.name) for field in fields(pair)}
        rows.append(row | {key: row[key].tolist() for key in _MATRICES})
    return {
        "name": pairs.name,
        "pixel_offset": pairs.pixel_offset,
        "epipolar_threshold": pairs.epipolar_threshold,
        "pairs": rows,
    }


def _read_json(path: Path) -> tuple[tuple[PosePair, ...], dict[str, Any]]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON file of pose pairs, got {error}") from error
    if not isinstance(body, dict) or body.pop("layout", None) != LAYOUT:
        raise DataError(f'{path}: expected a JSON object with "layout": "{LAYOUT}"')
    rows = body.pop("pairs", None)
    unknown = sorted(set(body) - {"name", "pixel_offset", "epipolar_threshold"})
    if not isinstance(rows, list) or unknown:
        raise DataError(
            f"{path}: expected a list 'pairs' and no other key, got {unknown or type(rows).__name__}"
        )
    return tuple(_pair_from(row, f"{path}: pairs[{number}]") for number, row in enumerate(rows)), body


def _pair_from(row: Mapping[str, Any], where: str) -> PosePair:
    """One pair from plain values. Raises DataError that starts with `where`."""
    try:
        values = dict(row)
        for key, shape in _MATRICES.items():
            values[key] = np.array(values[key], dtype=np.float64).reshape(shape)
        for key in ("size0", "size1"):
            if values.get(key) is not None:
                values[key] = (int(values[key][0]), int(values[key][1]))
        return PosePair(**values)
    except KeyError as error:
        raise DataError(f"{where}: {error} is missing") from error
    except (DataError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{where}: {error}") from error


def csv_columns() -> tuple[str, ...]:
    """Columns of a CSV list: `name0`, `name1`, then the matrices by row (`K0_00` .. `T_0to1_33`).

    Optional beside them: `scene`, `rot0`, `rot1`, `width0`, `height0`, `width1`, `height1`.
    """
    cells = [
        f"{key}_{r}{c}" for key, (rows, cols) in _MATRICES.items() for r in range(rows) for c in range(cols)
    ]
    return ("name0", "name1", *cells)


_OPTIONAL_COLUMNS = ("scene", "rot0", "rot1", "width0", "height0", "width1", "height1")


def _read_csv(path: Path) -> tuple[PosePair, ...]:
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(path, reader.fieldnames or ())
            return tuple(_csv_pair(row, f"{path}:{reader.line_num}") for row in reader)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a CSV file of pose pairs, got {error}") from error


def _check_columns(path: Path, found: Sequence[str]) -> None:
    missing = [column for column in csv_columns() if column not in found]
    unknown = [column for column in found if column not in (*csv_columns(), *_OPTIONAL_COLUMNS)]
    if missing or unknown:
        raise DataError(f"{path}:1: columns missing: {missing}; columns unknown: {unknown}")


def _csv_pair(row: Mapping[str, str | None], where: str) -> PosePair:
    text = {key: value or "" for key, value in row.items() if isinstance(key, str)}
    if len(text) != len(row) or None in row.values():
        raise DataError(f"{where}: expected as many cells as columns")
    values: dict[str, Any] = {key: text[key] for key in ("name0", "name1")} | {"scene": text.get("scene", "")}
    try:
        for key, (rows, columns) in _MATRICES.items():
            values[key] = [float(text[f"{key}_{r}{c}"]) for r in range(rows) for c in range(columns)]
        values |= {key: int(text[key]) for key in ("rot0", "rot1") if text.get(key)}
        for view in "01":
            sides = [text.get(f"{side}{view}", "") for side in ("width", "height")]
            values[f"size{view}"] = [int(side) for side in sides] if any(sides) else None
    except ValueError as error:
        raise DataError(f"{where}: expected numbers, got {error}") from error
    return _pair_from(values, where)


def scene_of(name: str) -> str:
    """The first folder of an image's path, or "" if it lies in none."""
    return name.partition("/")[0] if "/" in name else ""


def relative_pose(T_world_to_cam0: Float, T_world_to_cam1: Float) -> Float:
    """`T_0to1`, (4, 4), of two world-to-camera poses: the second after the inverse of the first.

    The rotation is inverted, not transposed, as the benchmarks do: published poses are rounded. Raises ShapeError, and
    LinAlgError for a pose without inverse.
    """
    check_shape("T_world_to_cam0", T_world_to_cam0, "4 4")
    check_shape("T_world_to_cam1", T_world_to_cam1, "4 4")
    T = np.eye(4)
    T[:3, :3] = T_world_to_cam1[:3, :3] @ np.linalg.inv(T_world_to_cam0[:3, :3])
    T[:3, 3] = T_world_to_cam1[:3, 3] - T[:3, :3] @ T_world_to_cam0[:3, 3]
    return T
