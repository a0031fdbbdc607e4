"""A COLMAP model (text or binary) as undistorted pinhole cameras with their observations, pixels counted from 0.

COLMAP counts pixels from the corner of the image: its first pixel has its centre at (0.5, 0.5), ours at (0, 0). The
half pixel is taken off here, for principal points and observations, and put on again nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Camera
from matchlib.errors import DataError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColmapImage:
    """One registered image of a model.

    camera:     pinhole camera of the undistorted image, world to camera, COLMAP's scale
    keypoints:  (N, 2) float64, observations with a 3D point, in pixels of the undistorted image
    point_ids:  (N,) int64, ids of their 3D points
    source:     COLMAP's own camera, which `undistorted` needs
    """

    name: str
    camera: Camera
    keypoints: Float64
    point_ids: Int64
    source: Any


def read_colmap(folder: Path) -> Mapping[str, ColmapImage]:
    """Registered images of a model (`cameras`, `images`, `points3D`, all `.bin` or all `.txt`) by name, sorted.

    Cameras of any model are replaced by the pinhole camera that COLMAP's own undistortion gives (without blank
    pixels). Raises DataError for a folder that is no model, files that are cut short, and a model without images.
    """
    import pycolmap  # not at module level: the graph imports every module of this package

    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected a COLMAP model (cameras, images, points3D)")
    try:
        model = pycolmap.Reconstruction(str(folder))
    except (
        Exception
    ) as error:  # pycolmap raises whatever its C++ side throws: ValueError, IndexError, RuntimeError
        raise DataError(
            f"{folder}: expected a COLMAP model (cameras, images, points3D; .bin or .txt), got: {error}"
        ) from error
    images = [_image(image) for image in model.images.values() if image.has_pose]
    if not images:
        raise DataError(f"{folder}: expected registered images, found none")
    return {image.name: image for image in sorted(images, key=lambda image: image.name)}


def undistorted(image: ColmapImage, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The picture (H, W, 3) uint8 RGB that `image.camera` takes, from the one that COLMAP was given.

    A pinhole picture comes back as it is. Raises DataError for a picture of another size than the model's.
    """
    import pycolmap

    source = image.source
    if rgb.shape[:2] != (source.height, source.width):
        raise DataError(
            f"{image.name}: expected {source.width} x {source.height} px as the COLMAP model says, got "
            f"{rgb.shape[1]} x {rgb.shape[0]}; give the images that the model was made of"
        )
    if source.is_undistorted():
        return rgb
    bitmap, _ = pycolmap.undistort_image(
        pycolmap.UndistortCameraOptions(), pycolmap.Bitmap.from_array(np.ascontiguousarray(rgb)), source
    )
    return np.asarray(bitmap.to_array(), dtype=np.uint8)


def _image(image: Any) -> ColmapImage:
    import pycolmap

    source = copy.copy(image.camera)  # the model's own goes with the model
    is_pinhole = source.is_undistorted()
    pinhole = source if is_pinhole else pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), source)
    K = np.asarray(pinhole.calibration_matrix(), dtype=np.float64)
    K[:2, 2] -= 0.5
    T = np.eye(4)
    T[:3] = image.cam_from_world().matrix()
    seen = [point for point in image.points2D if point.has_point3D()]
    positions = np.array([point.xy for point in seen], dtype=np.float64).reshape(-1, 2)
    if seen and not is_pinhole:
        rays = np.column_stack([source.cam_from_img(positions), np.ones(len(seen))])
        positions = np.asarray(pinhole.img_from_cam(rays), dtype=np.float64)
    return ColmapImage(
        name=image.name,
        camera=Camera(K=K, T_world_to_cam=T, size=(pinhole.width, pinhole.height)),
        keypoints=positions - 0.5,
        point_ids=np.array([point.point3D_id for point in seen], dtype=np.int64),
        source=source,
    )
