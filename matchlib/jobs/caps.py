"""A dataset in the layout of CAPS' MegaDepth subset, from a COLMAP model or from any scene with depth maps.

Published copies of the subset may go; what it needs is only resized images, their cameras, and pairs that see the
same things, and those any reconstruction has.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.completion import (
    MARKER,
    Lease,
    close_work,
    digest_file,
    fingerprint,
    open_work,
    read_marker,
    write_marker,
)
from matchlib.datasets.caps_megadepth import PHASES, write_cameras, write_pairs
from matchlib.datasets.colmap_model import read_colmap, undistorted
from matchlib.datasets.images import read_image, write_image
from matchlib.datasets.types import FORMATS, Camera, Scene, SceneImage
from matchlib.errors import ConfigError, DataError, requirement
from matchlib.jobs.caps_pairs import (
    IndexPair,
    covisible_counts,
    covisible_pairs,
    from_different_views,
    overlapping,
)
from matchlib.match_sets.inputs import input_digest
from matchlib.registry import load_symbol
from matchlib.revisions import REVISIONS

STAGE = "caps_dataset"
MODEL = "dense0"  # a built scene is one sub-model
_require = requirement("")
_log = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsBuildConfig:
    """How images are resized and which pairs are kept."""

    size: tuple[int, int] = (640, 480)
    """(width, height) of all images; each side is resized by a factor of its own, as K says."""
    max_rotation_deg: float = 80.0
    """Largest rotation between the cameras of a pair."""
    min_covisible: int = 30
    """COLMAP: smallest number of 3D points that both images observe."""
    min_overlap: float = 0.1
    """Depth: smallest share of an image's known depth that the other sees, in the worse direction."""
    overlap_grid: int = 24
    """Depth: the overlap is measured on a grid of this many samples along each image side."""
    max_unreadable_share: float = 0.1
    """Stop if more than this share of the images cannot be used."""
    jpeg_quality: int = 95
    """JPEG quality, 1 to 100."""

    def __post_init__(self) -> None:
        _require(min(self.size) >= 32, "size", "(width, height) of at least 32 px each", self.size)
        _require(
            0 < self.max_rotation_deg <= 180, "max_rotation_deg", "above 0 to 180", self.max_rotation_deg
        )
        _require(self.min_covisible >= 1, "min_covisible", "at least 1", self.min_covisible)
        _require(0 < self.min_overlap <= 1, "min_overlap", "a share above 0 to 1", self.min_overlap)
        _require(2 <= self.overlap_grid <= 256, "overlap_grid", "2 to 256", self.overlap_grid)
        _require(
            0 <= self.max_unreadable_share < 1,
            "max_unreadable_share",
            "0 to below 1",
            self.max_unreadable_share,
        )
        _require(1 <= self.jpeg_quality <= 100, "jpeg_quality", "1 to 100", self.jpeg_quality)


@dataclass(frozen=True, slots=True)
class _View:
    """One image to write. load: its pixels (H, W, 3); camera: K at any size of it, world to camera, no distortion."""

    name: str
    load: Callable[[], Image]
    camera: Camera


@dataclass(frozen=True, slots=True)
class BuiltScene:
    """What was written into `folder`, and the images that could not be used."""

    folder: Path
    images: int
    pairs: int
    left_out: tuple[str, ...] = ()


# ---------------------------------------------------------------- the two kinds of input
def build_from_colmap(
    model: Path,
    images: Path,
    out: Path,
    *,
    scene: str,
    phase: str = "train",
    config: CapsBuildConfig | None = None,
) -> BuiltScene:
    """Write `<out>/<phase>/<scene>/dense0/aligned` from a COLMAP model and the folder of its images.

    Distorted images are undistorted first. Pairs see at least `min_covisible` 3D points together. A finished scene
    of the same input and settings is left alone; an interrupted one keeps the images it had written. Raises DataError
    for a folder that is no model, and if too many images cannot be read or no pair is left.
    """
    config = config or CapsBuildConfig()
    registered = read_colmap(model)
    paths = {name: images / name for name in registered}
    inputs = {name: digest_file(path) if path.is_file() else "missing" for name, path in paths.items()}
    model_files = {
        path.name: digest_file(path) for path in sorted(model.iterdir()) if path.suffix in (".txt", ".bin")
    }

    def loader(name: str) -> Callable[[], Image]:
        return lambda: undistorted(registered[name], read_image(paths[name]))

    names = _flat_names(list(registered))
    views = [_View(names[name], loader(name), image.camera) for name, image in registered.items()]
    # By the model alone: one matrix product is cheaper than deciding it again for the readable images.
    counts = covisible_counts([image.point_ids for image in registered.values()])

    def pairs(usable: Sequence[int]) -> list[IndexPair]:
        return covisible_pairs(counts, usable, config.min_covisible)

    return _build(views, pairs, out / phase / scene, phase, config, {"model": model_files, "images": inputs})


def build_from_dataset(
    dataset_format: str,
    root: Path,
    scene: str,
    out: Path,
    *,
    phase: str = "train",
    config: CapsBuildConfig | None = None,
) -> BuiltScene:
    """Write `<out>/<phase>/<scene>/dense0/aligned` from a scene of a dataset with depth maps.

    Pairs see at least `min_overlap` of each other's known depth, as match sets measure it. Otherwise as
    `build_from_colmap`; ConfigError for a format without depth.
    """
    config = config or CapsBuildConfig()
    spec = FORMATS.get(dataset_format)
    if spec.read_scene is None or "depth_pose" not in spec.gives:
        gives = ", ".join(sorted(spec.gives))
        raise ConfigError(f"dataset: expected a format with depth maps, but {dataset_format} gives {gives}")
    loaded = cast(Callable[[Path, str], Scene], load_symbol(spec.read_scene))(root, scene)
    images = list(loaded.images.values())

    def loader(path: Path) -> Callable[[], Image]:
        return lambda: read_image(path)

    names = _flat_names([image.image_path.name for image in images])
    cameras = _stored_cameras(images)
    views = [
        _View(names[image.image_path.name], loader(image.image_path), camera)
        for image, camera in zip(images, cameras, strict=True)
    ]

    def pairs(usable: Sequence[int]) -> list[IndexPair]:
        return overlapping(loaded, usable, grid=config.overlap_grid, min_overlap=config.min_overlap)

    identity = {"format": dataset_format, "inputs": input_digest(loaded, "depth")}
    return _build(views, pairs, out / phase / scene, phase, config, identity)


def scenes_of(dataset_format: str, root: Path) -> tuple[str, ...]:
    """Names of all scenes of a dataset on disk. Raises ConfigError, DataError."""
    lister = load_symbol(FORMATS.get(dataset_format).list_scenes)
    return cast(Callable[[Path, str], tuple[str, ...]], lister)(root, "all")


# ---------------------------------------------------------------- what both share
def _build(
    views: Sequence[_View],
    pairs: Callable[[Sequence[int]], list[IndexPair]],
    folder: Path,
    phase: str,
    config: CapsBuildConfig,
    inputs: Mapping[str, object],
) -> BuiltScene:
    """Write a scene into `folder`; `pairs` proposes pairs of the views at the given places."""
    if phase not in PHASES:
        raise ConfigError(f"phase: expected one of {', '.join(PHASES)}, got '{phase}'")
    settings = {"config": asdict(config), "scene": folder.name, "inputs": inputs}
    mark = fingerprint(stage=STAGE, revision=REVISIONS[STAGE], settings=settings)
    with Lease(folder):
        if _is_finished(folder, mark):
            _log.info("%s: finished already", folder)
            return _count(folder)
        (folder / MARKER).unlink(missing_ok=True)
        model = open_work(folder, mark) / MODEL
        left_out = _write_images(views, model / "aligned" / "images", config)
        usable = [place for place in range(len(views)) if views[place].name not in left_out]
        chosen = from_different_views(pairs(usable), [view.camera for view in views], config.max_rotation_deg)
        if not chosen:
            raise DataError(
                f"{folder}: no pair of {len(usable)} images is left; lower min_covisible or min_overlap, or raise "
                f"max_rotation_deg"
            )
        _write_lists(model / "aligned", views, usable, chosen, config.size)
        shutil.rmtree(folder / MODEL, ignore_errors=True)  # of other inputs or settings
        os.replace(model, folder / MODEL)  # readers of the layout know no marker: it appears as a whole
        write_marker(
            folder,
            stage=STAGE,
            fingerprint=mark,
            files=sorted(path for path in (folder / MODEL).rglob("*") if path.is_file()),
        )
        close_work(folder)
    _log.info("%s: %d images, %d pairs", folder, len(usable), len(chosen))
    return BuiltScene(folder, len(usable), len(chosen), tuple(left_out))


def _is_finished(folder: Path, mark: str) -> bool:
    marker = read_marker(folder)
    return (
        marker is not None
        and marker.fingerprint == mark
        and all((folder / name).is_file() for name in marker.files)
    )


def _write_lists(
    aligned: Path,
    views: Sequence[_View],
    usable: Sequence[int],
    pairs: Sequence[IndexPair],
    size: tuple[int, int],
) -> None:
    cameras = {views[place].name: resized(views[place].camera, size) for place in usable}
    write_cameras(aligned / "img_cam.txt", cameras)
    write_pairs(aligned / "pairs.txt", [(views[i].name, views[j].name) for i, j in pairs])


def resized(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera of the same picture after `cv2.resize` to `size`, which keeps the corners of the image area.

    x' + 1/2 = (x + 1/2) * width' / width, so the principal point moves by more than the factor.
    """
    sx, sy = size[0] / camera.size[0], size[1] / camera.size[1]
    to_size = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
    return Camera(K=to_size @ camera.K, T_world_to_cam=camera.T_world_to_cam, size=size)


def _write_images(views: Sequence[_View], folder: Path, config: CapsBuildConfig) -> list[str]:
    """Write what is not there yet; returns the names of images that cannot be used."""
    left_out: dict[str, str] = {}
    for view in views:
        if (folder / view.name).is_file():  # written whole by an earlier attempt
            continue
        try:
            pixels = view.load()
        except DataError as error:
            left_out[view.name] = str(error)
            continue
        # A side that shrinks is averaged; one that grows is not, so the two are done one after the other.
        least = min(pixels.shape[1], config.size[0]), min(pixels.shape[0], config.size[1])
        small = cv2.resize(pixels, least, interpolation=cv2.INTER_AREA)
        small = cv2.resize(small, config.size, interpolation=cv2.INTER_LINEAR)
        write_image(folder / view.name, np.asarray(small, np.uint8), config.jpeg_quality)
    if left_out:
        first = next(iter(left_out.values()))
        line = f"{len(left_out)} of {len(views)} images cannot be used, the first: {first}"
        if len(left_out) > config.max_unreadable_share * len(views):
            raise DataError(
                f"{line}; give all images or raise max_unreadable_share = {config.max_unreadable_share:g}"
            )
        _log.warning("%s", line)
    return list(left_out)


def _stored_cameras(images: Sequence[SceneImage]) -> list[Camera]:
    """Cameras of the images as they are stored: GL3D's are smaller than what K refers to, all of one size."""
    for image in images:
        try:
            height, width, _ = read_image(image.image_path).shape
        except DataError:  # counted where images are written
            continue
        if (width, height) == image.camera.size:
            break
        return [
            Camera(
                K=other.camera.scaled_K(width, height),
                T_world_to_cam=other.camera.T_world_to_cam,
                size=(width, height),
            )
            for other in images
        ]
    return [image.camera for image in images]


def _flat_names(names: Sequence[str]) -> dict[str, str]:
    """Names without folders and white space, ending in .jpg, as the layout wants them. Raises DataError for two
    that become one.
    """
    flat: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in names:
        new = "_".join(str(Path(name).with_suffix("")).replace("/", "_").lstrip("#").split()) + ".jpg"
        if new in taken:
            raise DataError(f"images {taken[new]} and {name} would both be written as {new}; rename one")
        flat[name], taken[new] = new, name
    return flat


def _count(folder: Path) -> BuiltScene:
    aligned = folder / MODEL / "aligned"
    lines = (aligned / "pairs.txt").read_text(encoding="utf-8").splitlines()
    return BuiltScene(folder, len(list((aligned / "images").iterdir())), len(lines))
