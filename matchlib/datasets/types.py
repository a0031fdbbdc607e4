"""What datasets give: cameras, images, scenes. NumPy only, so that the graph may import it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from matchlib.errors import check_shape
from matchlib.registry import Registry

Supervision = Literal["homography", "depth_pose", "pose", "tracks", "labels"]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A pinhole camera with radial distortion.

    K:              (3, 3) float64, pixels of an image of `size`; centre of the first pixel at (0, 0)
    T_world_to_cam: (4, 4) float64, x right, y down, z forward, scene units
    size:           (width, height) of the image that K refers to
    distortion:     (k1, k2, k3) radial, OpenCV's meaning; zeros for undistorted images
    """

    K: Float
    T_world_to_cam: Float
    size: tuple[int, int]
    distortion: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check_shape("K", self.K, "3 3")
        check_shape("T_world_to_cam", self.T_world_to_cam, "4 4")

    def scaled_K(self, width: int, height: int) -> Float:
        """K for the same image resized to width x height.

        Follows the datasets' own rule (row 0 times width/W, row 1 times height/H; no half-pixel term).
        """
        scale = np.diag([width / self.size[0], height / self.size[1], 1.0])
        return scale @ self.K


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneImage:
    """One image of a scene: files that may be absent are None; nothing is read until asked.

    index:          scene-local id (what corr.bin and pair.txt speak of)
    image_path:     undistorted image
    depth_path:     z-depth map in scene units, 0 = unknown; its size may differ from the image's
    keypoints_path: GL3D `img_kpts` file
    """

    index: int
    image_path: Path
    camera: Camera
    depth_path: Path | None = None
    keypoints_path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene of a dataset. `images` maps the scene-local id to its image, in ascending order of id.

    first_global_index: the dataset-wide index of scene-local image 0 (GL3D's image_index_offset.txt; 0
                        elsewhere)
    corr_path:          GL3D `corr.bin`, or None
    candidate_pairs:    pairs that the dataset itself proposes (BlendedMVS pair.txt), i < j, or None
    """

    name: str
    images: dict[int, SceneImage]
    first_global_index: int = 0
    corr_path: Path | None = None
    candidate_pairs: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFormat:
    """One on-disk format.

    gives:       kinds of supervision; `depth_pose` implies `pose`
    list_scenes: "module:function" with (root: Path, split: str) -> tuple[str, ...]
    read_scene:  "module:function" with (root: Path, scene: str) -> Scene; None for formats without scenes
    list_images: "module:function" with (root: Path, split: str) -> tuple[str, ...], paths relative to `root`
                 of single photographs, sorted; None for formats that are not folders of photographs
    folder_splits: splits that name whatever folders are there; any other split is a list that somebody wrote
    """

    name: str
    gives: frozenset[str]
    list_scenes: str
    read_scene: str | None = None
    list_images: str | None = None
    folder_splits: frozenset[str] = frozenset({"all"})


FORMATS: Registry[DatasetFormat] = Registry("dataset format", "matchlib.datasets")
