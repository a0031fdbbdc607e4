"""CAPS' MegaDepth subset: `<phase>/<scene>/dense<k>/aligned/{img_cam.txt,pairs.txt,images/}`; poses, no depth."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.parsing import filled_lines, format_row, numbers, whole_number
from matchlib.datasets.types import Camera, DatasetFormat, Scene, SceneImage
from matchlib.errors import ConfigError, DataError
from matchlib.randomness import generator_for

PHASES = ("train", "val", "test")
SPECS = (
    DatasetFormat(
        name="caps_megadepth",
        gives=frozenset({"pose"}),
        list_scenes="matchlib.datasets.caps_megadepth:list_scenes",
        read_scene="matchlib.datasets.caps_megadepth:read_scene",
        folder_splits=frozenset({"all", *PHASES}),
    ),
)

Float64 = npt.NDArray[np.float64]
IndexPair = tuple[int, int]
MAX_PAIRS_PER_MODEL = 5000  # CAPS' balancing: part of what the dataset is, so not a setting
_SEED = 234  # upstream's; there one generator runs on over all folders in the order of the file system
_COLUMNS = 19
_NOT_RIGID = 1e-3  # files round rotations to six digits or so
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PairList:
    """What a `pairs.txt` proposes.

    pairs:    (first name, second name), in the order of the file, each pair of images once
    repeated: lines left out because the pair was there before, in either order
    selfs:    lines left out because they name one image twice
    """

    pairs: tuple[tuple[str, str], ...]
    repeated: int = 0
    selfs: int = 0


# ---------------------------------------------------------------- img_cam.txt
def read_cameras(path: Path) -> dict[str, Camera]:
    """Cameras of an `img_cam.txt` by image name, in the order of the file.

    A line: name, width, height, fx, fy, cx, cy, R (9, row major), t (3), world to camera. K is in pixels of the
    stored image. Blank lines and those that begin with # are skipped. Raises DataError naming file and line for
    another number of columns, a name given twice, intrinsics that cannot be inverted, or an R that does not rotate.
    """
    cameras: dict[str, Camera] = {}
    for line, text in filled_lines(path):
        if text.startswith("#"):
            continue
        name, *words = text.split()
        if len(words) != _COLUMNS - 1:
            raise DataError(
                f"{path}:{line}: expected {_COLUMNS} columns (name, size, fx fy cx cy, R, t), got {len(words) + 1}"
            )
        if name in cameras:
            raise DataError(f"{path}:{line}: image {name} was given before; leave one line of it")
        _check_name(path, line, name)
        cameras[name] = _camera(path, line, numbers(path, line, " ".join(words)))
    if not cameras:
        raise DataError(f"{path}: expected a line for each image, found none")
    return cameras


def write_cameras(path: Path, cameras: Mapping[str, Camera]) -> None:
    """Write an `img_cam.txt` that `read_cameras` gives back exactly.

    Raises DataError for what the format cannot say: names with white space, skew, distortion.
    """
    lines: list[str] = []
    for name, camera in cameras.items():
        K, T = camera.K, camera.T_world_to_cam
        _check_name(path, len(lines) + 1, name)
        if K[0, 1] != 0 or any(camera.distortion):
            raise DataError(
                f"{path}: {name}: expected a camera without skew and distortion; undistort it first"
            )
        values = [K[0, 0], K[1, 1], K[0, 2], K[1, 2], *T[:3, :3].ravel(), *T[:3, 3]]
        lines.append(f"{name} {camera.size[0]} {camera.size[1]} {format_row([float(v) for v in values])}")
    atomic_write(path, "\n".join(lines) + "\n")


def _camera(path: Path, line: int, values: Sequence[float]) -> Camera:
    width, height = (whole_number(path, line, value, "image size") for value in values[:2])
    fx, fy, cx, cy = values[2:6]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{path}:{line}: expected finite numbers, got nan or inf")
    if min(width, height) < 1 or fx <= 0 or fy <= 0:
        raise DataError(
            f"{path}:{line}: expected a size and focal lengths above 0, got {width} x {height}, fx {fx:g}, fy {fy:g}"
        )
    T = np.eye(4)
    T[:3, :3] = R = np.reshape(values[6:15], (3, 3))
    T[:3, 3] = values[15:18]
    if np.abs(R @ R.T - np.eye(3)).max() > _NOT_RIGID or np.linalg.det(R) < 0:
        raise DataError(f"{path}:{line}: expected a rotation in columns 7 to 15, got a matrix that is none")
    K = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return Camera(K=K, T_world_to_cam=T, size=(width, height))


def _check_name(path: Path, line: int, name: str) -> None:
    """A name is a path below `images/`: it may not lead out of it, nor be cut in two by white space."""
    if re.search(r"\s|^#|^$", name) or name.startswith("/") or ".." in name.split("/"):
        raise DataError(
            f"{path}:{line}: expected an image name without white space below images/, got '{name}'"
        )


# ---------------------------------------------------------------- pairs.txt
def read_pairs(path: Path, known: Mapping[str, object]) -> PairList:
    """The pairs of a `pairs.txt`; any white space separates the two names.

    Pairs given again, in either order, and pairs of an image with itself (which have no epipolar geometry) are
    left out and counted. Raises DataError naming file and line for another number of names, and for a name that
    is not in `known`, the sub-model's cameras.
    """
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    repeated = selfs = 0
    for line, text in filled_lines(path):
        names = text.split()
        if len(names) != 2:
            raise DataError(f"{path}:{line}: expected two image names, got {len(names)} words")
        for name in names:
            if name not in known:
                raise DataError(
                    f"{path}:{line}: image {name} has no camera in {path.with_name('img_cam.txt')}"
                )
        key = frozenset(names)
        selfs += len(key) == 1
        repeated += key in pairs
        if len(key) == 2:
            pairs.setdefault(key, (names[0], names[1]))
    return PairList(tuple(pairs.values()), repeated, selfs)


def write_pairs(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write a `pairs.txt`: two names and one space between them a line. Raises DataError for unwritable names."""
    for line, pair in enumerate(pairs, start=1):
        for name in pair:
            _check_name(path, line, name)
    atomic_write(path, "".join(f"{first} {second}\n" for first, second in pairs))


# ---------------------------------------------------------------- scenes
def list_scenes(root: Path, split: str) -> tuple[str, ...]:
    """Scenes of a phase ("train", "val", "test") or of all that are there ("all"), by name: folders with a
    `dense*/aligned/img_cam.txt`.

    Raises ConfigError for another split, DataError where there is no scene.
    """
    if split not in ("all", *PHASES):
        raise ConfigError(f"caps_megadepth: unknown split '{split}' (known: all, {', '.join(PHASES)})")
    phases = PHASES if split == "all" else (split,)
    found = {
        path.parents[2].name
        for phase in phases
        for path in (root / phase).glob("*/*dense*/aligned/img_cam.txt")
    }
    if not found:
        raise DataError(
            f"{root}: expected CAPS-MegaDepth scenes ({'|'.join(phases)}/<scene>/dense<k>/aligned/img_cam.txt), "
            f"found none; set `root` to the folder that holds the phases"
        )
    return tuple(sorted(found))


def read_scene(root: Path, scene: str) -> Scene:
    """One MegaDepth scene: the images of all its sub-models, numbered on from one to the next, names in order.

    Each sub-model has a world of its own, so `candidate_pairs` join images of one sub-model only; an absent or
    empty `pairs.txt` proposes none, which is logged. Of more than 5,000 pairs of a sub-model, 5,000 are drawn at
    random, by a seed that follows from scene and sub-model alone. Of the images, one header is read per sub-model.
    Raises DataError naming file and line, and for a scene that two phases hold.
    """
    images: dict[int, SceneImage] = {}
    pairs: list[IndexPair] = []
    for model in _sub_models(root, scene):
        aligned = model / "aligned"
        cameras = read_cameras(aligned / "img_cam.txt")
        size = _stored_size(aligned, cameras)
        indices = {name: len(images) + place for place, name in enumerate(sorted(cameras))}
        for name, index in indices.items():
            camera = Camera(K=cameras[name].K, T_world_to_cam=cameras[name].T_world_to_cam, size=size)
            images[index] = SceneImage(index=index, image_path=aligned / "images" / name, camera=camera)
        pairs += _balanced(_index_pairs(aligned / "pairs.txt", indices), f"{scene}/{model.name}")
    return Scene(name=scene, images=images, candidate_pairs=tuple(pairs))


def _sub_models(root: Path, scene: str) -> list[Path]:
    phases = [phase for phase in PHASES if (root / phase / scene).is_dir()]
    if len(phases) > 1:
        raise DataError(f"{root}: scene {scene} lies in {' and '.join(phases)}; a scene belongs to one phase")
    models = [
        path.parents[1]
        for phase in phases
        for path in (root / phase / scene).glob("*dense*/aligned/img_cam.txt")
    ]
    if not models:
        raise DataError(
            f"{root}: expected scene {scene} as {'|'.join(PHASES)}/{scene}/dense<k>/aligned/img_cam.txt, found none"
        )
    return sorted(models, key=lambda model: (len(model.name), model.name))  # dense2 before dense10


def _index_pairs(path: Path, indices: Mapping[str, int]) -> list[IndexPair]:
    if not path.is_file():
        _log.info("%s: not there, so this sub-model proposes no pairs", path)
        return []
    listed = read_pairs(path, indices)
    if listed.repeated or listed.selfs:
        _log.warning(
            "%s: left out %d repeated pairs and %d of an image with itself",
            path,
            listed.repeated,
            listed.selfs,
        )
    if not listed.pairs:
        _log.info("%s: no pairs", path)
    found = ((indices[first], indices[second]) for first, second in listed.pairs)
    return sorted((min(pair), max(pair)) for pair in found)


def _balanced(pairs: list[IndexPair], address: str) -> list[IndexPair]:
    """At most `MAX_PAIRS_PER_MODEL` of sorted pairs, in order."""
    if len(pairs) <= MAX_PAIRS_PER_MODEL:
        return pairs
    draw = generator_for(_SEED, "caps_megadepth", address)
    chosen = np.sort(draw.choice(len(pairs), MAX_PAIRS_PER_MODEL, replace=False))
    _log.info("%s: %d of %d pairs drawn", address, MAX_PAIRS_PER_MODEL, len(pairs))
    return [pairs[place] for place in chosen.tolist()]


def _stored_size(aligned: Path, cameras: Mapping[str, Camera]) -> tuple[int, int]:
    """(width, height) of the first readable image, which K refers to; all images of a sub-model have one size.

    Upstream never reads the size in the file, so a file that says otherwise is believed about K but not about this.
    """
    from matchlib.datasets.images import read_image

    for name in sorted(cameras):
        try:
            height, width, _ = read_image(aligned / "images" / name).shape
        except DataError:  # the one that needs it will complain
            continue
        if (width, height) != cameras[name].size:
            _log.warning(
                "%s: says %d x %d px, but the image has %d x %d; K is taken as that of the stored image",
                aligned / "img_cam.txt",
                *cameras[name].size,
                width,
                height,
            )
        return width, height
    raise DataError(f"{aligned / 'images'}: expected images, found none of {len(cameras)} that can be read")
