"""BlendedMVS, + and ++: `<scene>/{blended_images,cams,rendered_depth_maps}/`, MVSNet cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write
from matchlib.datasets.parsing import filled_lines, format_row, numbers, whole_number
from matchlib.datasets.types import Camera, DatasetFormat, Scene, SceneImage
from matchlib.errors import ConfigError, DataError, check_shape

SPECS = (
    DatasetFormat(
        name="blendedmvs",
        gives=frozenset({"depth_pose", "pose", "tracks"}),
        list_scenes="matchlib.datasets.blendedmvs:list_scenes",
        read_scene="matchlib.datasets.blendedmvs:read_scene",
    ),
)

Float64 = npt.NDArray[np.float64]
Pairs = Mapping[int, Sequence[tuple[int, float]]]
_LISTS = {"train": ("BlendedMVS_training.txt", "training_list.txt"), "validation": ("validation_list.txt",)}


def read_cam(path: Path) -> tuple[Float64, Float64, tuple[float, ...]]:
    """K (3, 3), T_world_to_cam (4, 4) and the depth range of a `_cam.txt`.

    K is in pixels of the stored image. The depth range is (minimum, interval) or (minimum, interval, count,
    maximum), as stored; upstream has some minima <= 0. Raises DataError naming the line.
    """
    lines = [(line, text) for line, text in filled_lines(path)]
    words = [text for _, text in lines]
    if len(lines) != 10 or words[0] != "extrinsic" or words[5] != "intrinsic":
        raise DataError(
            f"{path}: expected 'extrinsic', 4 rows, 'intrinsic', 3 rows and a depth range, "
            f"got {len(lines)} filled lines"
        )
    T = np.array([numbers(path, line, text, 4) for line, text in lines[1:5]])
    K = np.array([numbers(path, line, text, 3) for line, text in lines[6:9]])
    if not (np.isfinite(T).all() and np.isfinite(K).all()):
        raise DataError(f"{path}: expected finite matrices, got nan or inf")
    depth_range = tuple(numbers(path, *lines[9]))
    if len(depth_range) not in (2, 3, 4):
        raise DataError(
            f"{path}:{lines[9][0]}: expected 2 to 4 numbers (depth range), got {len(depth_range)}"
        )
    return K, T, depth_range


def write_cam(path: Path, K: Float64, T: Float64, depth_range: Sequence[float]) -> None:
    """Write a `_cam.txt`, exactly invertible. `depth_range`: (minimum, interval[, count, maximum])."""
    check_shape("K", K, "3 3")
    check_shape("T", T, "4 4")
    rows = [
        "extrinsic",
        *map(format_row, T),
        "",
        "intrinsic",
        *map(format_row, K),
        "",
        format_row(list(depth_range)),
    ]
    atomic_write(path, "\n".join(rows) + "\n")


def read_pairs(path: Path) -> dict[int, tuple[tuple[int, float], ...]]:
    """Source views of each image from `pair.txt`: image id -> ((other id, score), ...), best first. Raises
    DataError.

    The file: number of images; then two lines per image: its id, and `count id score id score ...`.
    """
    lines = list(filled_lines(path))
    if not lines:
        raise DataError(f"{path}: empty file")
    total = whole_number(path, lines[0][0], numbers(path, *lines[0], 1)[0], "number of images")
    if len(lines) != 1 + 2 * total:
        raise DataError(f"{path}: expected 2 lines for each of {total} images, got {len(lines) - 1} lines")
    pairs: dict[int, tuple[tuple[int, float], ...]] = {}
    for (id_line, id_text), (line, text) in zip(lines[1::2], lines[2::2], strict=True):
        index = whole_number(path, id_line, numbers(path, id_line, id_text, 1)[0], "image id")
        count, *rest = numbers(path, line, text)
        if len(rest) != 2 * whole_number(path, line, count, "number of pairs"):
            raise DataError(f"{path}:{line}: expected {count:g} times 'id score', got {len(rest)} numbers")
        ids = [whole_number(path, line, value, "image id") for value in rest[::2]]
        pairs[index] = tuple(zip(ids, rest[1::2], strict=True))
    return pairs


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write a `pair.txt` that `read_pairs` gives back."""
    lines = [str(len(pairs))]
    for index, others in pairs.items():
        words = [f"{other} {float(score)!r}" for other, score in others]
        lines += [str(index), " ".join([str(len(words)), *words])]
    atomic_write(path, "\n".join(lines) + "\n")


def list_scenes(root: Path, split: str) -> tuple[str, ...]:
    """Scenes of a split: "all" (every folder with a `cams/pair.txt`, by name), "train" or "validation"
    (upstream's lists).

    Raises ConfigError for another split, DataError where there is no scene or no list.
    """
    if split == "all":
        scenes = tuple(sorted(path.parents[1].name for path in root.glob("*/cams/pair.txt")))
        if not scenes:
            raise DataError(f"{root}: expected BlendedMVS scenes (<scene>/cams/pair.txt), found none")
        return scenes
    if split not in _LISTS:
        raise ConfigError(f"blendedmvs: unknown split '{split}' (known: all, train, validation)")
    for name in _LISTS[split]:
        if (root / name).is_file():
            return tuple(text.split()[0] for _, text in filled_lines(root / name))
    raise DataError(
        f"{root}: no {' or '.join(_LISTS[split])}; use split 'all' and name the scenes to leave out"
    )


def read_scene(root: Path, scene: str) -> Scene:
    """One scene: every image that has a camera file, with the pairs that `pair.txt` proposes.

    Files are named, not opened, but for cameras and one image header (the size that K refers to). Raises
    DataError.
    """
    folder = root / scene
    paths = sorted((folder / "cams").glob("*_cam.txt"))
    if not paths:
        raise DataError(f"{folder}: expected cameras cams/*_cam.txt, found none")
    size = _first_image_size(folder / "blended_images")
    images: dict[int, SceneImage] = {}
    for path in paths:
        stem = path.name.removesuffix("_cam.txt")
        if not stem.isdigit():
            raise DataError(f"{path}: expected a name <number>_cam.txt")
        K, T, _ = read_cam(path)
        images[int(stem)] = SceneImage(
            index=int(stem),
            image_path=folder / "blended_images" / f"{stem}.jpg",
            camera=Camera(K=K, T_world_to_cam=T, size=size),
            depth_path=folder / "rendered_depth_maps" / f"{stem}.pfm",
        )
    pairs = read_pairs(folder / "cams" / "pair.txt")
    unordered = {(min(i, j), max(i, j)) for i, others in pairs.items() for j, _ in others if i != j}
    return Scene(name=scene, images=images, candidate_pairs=tuple(sorted(unordered)))


def _first_image_size(folder: Path) -> tuple[int, int]:
    """(width, height) of the first readable image; all images of a scene have one size."""
    from matchlib.datasets.images import read_image

    paths = sorted(path for path in folder.glob("*.jpg") if path.stem.isdigit())
    for path in paths:
        try:
            height, width, _ = read_image(path).shape
        except DataError:  # the one that needs it will complain
            continue
        return width, height
    raise DataError(f"{folder}: expected images, found {len(paths)} of which none can be read")
