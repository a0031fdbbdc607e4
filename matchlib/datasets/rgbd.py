"""Folders of RGB-D frames with poses, as 7-Scenes and TSDF-fusion samples come.

One folder is one scene: `camera-intrinsics.txt` (K, 3x3) and per frame `frame-NNNNNN.color.{png,jpg}`,
`.depth.png` (16 bit, millimetres), `.pose.txt` (4x4, camera-to-world, metres). Depth is taken as registered
to colour.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from matchlib.datasets.parsing import read_matrix
from matchlib.datasets.types import Camera, DatasetFormat, Scene, SceneImage
from matchlib.errors import ConfigError, DataError

SPECS = (
    DatasetFormat(
        name="rgbd",
        gives=frozenset({"depth_pose", "pose", "tracks"}),
        list_scenes="matchlib.datasets.rgbd:list_scenes",
        read_scene="matchlib.datasets.rgbd:read_scene",
    ),
)

_INTRINSICS = "camera-intrinsics.txt"
_log = logging.getLogger(__name__)


def list_scenes(root: Path, split: str) -> tuple[str, ...]:
    """Scenes of split "all": every folder below `root` with `camera-intrinsics.txt`, or "." if `root` itself
    is a scene.
    """
    if split != "all":
        raise ConfigError(f"rgbd: unknown split '{split}' (known: all)")
    if (root / _INTRINSICS).is_file():
        return (".",)
    scenes = tuple(sorted(path.parent.name for path in root.glob(f"*/{_INTRINSICS}")))
    if not scenes:
        raise DataError(f"{root}: expected folders with {_INTRINSICS}, found none")
    return scenes


def read_scene(root: Path, scene: str) -> Scene:
    """One folder of frames ("." for `root` itself); image ids are the frame numbers.

    Frames without a pose file or with a pose that tracking lost (nan, inf, not a rotation) are left out with
    a warning that names them. Raises DataError where intrinsics are missing or no frame is left.
    """
    folder = root / scene
    K = read_matrix(folder / _INTRINSICS, 3, 3)
    colours = sorted(path for path in folder.glob("frame-*.color.*") if path.suffix in (".png", ".jpg"))
    if not colours:
        raise DataError(f"{folder}: expected frames frame-NNNNNN.color.png or .jpg, found none")
    images: dict[int, SceneImage] = {}
    lost: list[str] = []
    size = _image_size(colours[0])
    for colour in colours:
        stem = colour.name.split(".")[0]
        pose = folder / f"{stem}.pose.txt"
        T_cam_to_world = read_matrix(pose, 4, 4) if pose.is_file() else np.full((4, 4), np.nan)
        R = T_cam_to_world[:3, :3]
        if not np.isfinite(T_cam_to_world).all() or not np.allclose(R @ R.T, np.eye(3), atol=1e-2):
            lost.append(stem)
            continue
        depth = folder / f"{stem}.depth.png"
        index = _frame_number(colour, stem)
        images[index] = SceneImage(
            index=index,
            image_path=colour,
            camera=Camera(K=K, T_world_to_cam=np.linalg.inv(T_cam_to_world), size=size),
            depth_path=depth,
        )
    if lost:
        _log.warning(
            "%s: %d of %d frames have no usable pose: %s",
            folder,
            len(lost),
            len(colours),
            " ".join(lost[:20]),
        )
    if not images:
        raise DataError(f"{folder}: none of {len(colours)} frames has a usable pose (frame-NNNNNN.pose.txt)")
    return Scene(name=scene, images=dict(sorted(images.items())))


def _frame_number(path: Path, stem: str) -> int:
    number = stem.removeprefix("frame-")
    if not number.isdigit():
        raise DataError(f"{path}: expected a name frame-<number>.color.*")
    return int(number)


def _image_size(path: Path) -> tuple[int, int]:
    from matchlib.datasets.images import read_image

    height, width, _ = read_image(path).shape
    return width, height
