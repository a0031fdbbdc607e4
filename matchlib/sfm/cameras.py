"""Intrinsics as COLMAP states them; kept with the dataset formats, which read and write them too."""

from __future__ import annotations

from matchlib.datasets.colmap_camera import (
    CAMERA_MODELS,
    ColmapCamera,
    guessed_camera,
    read_intrinsics_list,
    require_cameras,
    write_intrinsics_list,
)

__all__ = [
    "CAMERA_MODELS",
    "ColmapCamera",
    "guessed_camera",
    "read_intrinsics_list",
    "require_cameras",
    "write_intrinsics_list",
]
