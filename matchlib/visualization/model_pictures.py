"""COLMAP models on disk as pictures of the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.sfm.colmap import from_rigid, read_model, read_only
from matchlib.sfm.registration import read_registered
from matchlib.visualization.model_view import ModelPicture, ViewCamera

Float64 = npt.NDArray[np.float64]
_HALF_PIXEL = 0.5  # COLMAP's origin is the corner of the first pixel


def picture_of_model(
    folder: Path, title: str, *, poses: Path | None = None, database: Path | None = None
) -> ModelPicture | None:
    """The model in `folder`; with the query poses of a registration (`poses`), whose intrinsics `database` holds.

    None for a model without images. Raises DataError for a folder without a model.
    """
    model = read_model(folder)
    mapped = {image.name: image for image in model.images.values() if image.has_pose}
    if not mapped:
        return None
    cameras = [
        _camera(name, image.camera, from_rigid(image.cam_from_world()), is_query=False)
        for name, image in sorted(mapped.items())
    ]
    if poses is not None and database is not None:
        found = {name: pose for name, pose in read_registered(poses).items() if pose is not None}
        for name, camera in _cameras_in(database, found):
            cameras.append(_camera(name, camera, found[name].T_world_to_cam, is_query=True))
    points = list(model.points3D.values())
    return ModelPicture(
        title=title,
        points=np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3),
        colours=np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3),
        cameras=cameras,
        errors_px=np.array([point.error for point in points], dtype=np.float64),
    )


def _camera(name: str, camera: Any, T_world_to_cam: Float64, *, is_query: bool) -> ViewCamera:
    K = np.array(camera.calibration_matrix(), dtype=np.float64)
    K[:2, 2] -= _HALF_PIXEL
    return ViewCamera(
        name=name,
        K=K,
        size=(int(camera.width), int(camera.height)),
        T_world_to_cam=T_world_to_cam,
        kind="registered" if is_query else "mapped",
    )


def _cameras_in(database: Path, names: Iterable[str]) -> list[tuple[str, Any]]:
    """`pycolmap.Camera` of images, without opening the database by COLMAP, which would change the file."""
    import pycolmap

    query = (
        "select cameras.model, cameras.width, cameras.height, cameras.params from images "
        "join cameras using (camera_id) where images.name = ?"
    )
    cameras = []
    with read_only(database) as rows:
        for name in sorted(names):
            kind, width, height, params = rows.execute(query, (name,)).fetchone()
            camera = pycolmap.Camera(
                model=pycolmap.CameraModelId(kind),
                width=width,
                height=height,
                params=np.frombuffer(params, dtype=np.float64).tolist(),
            )
            cameras.append((name, camera))
    return cameras
