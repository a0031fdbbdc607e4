"""Poses of registered images, in memory and in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write_json
from matchlib.errors import DataError, ShapeError, check_shape

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Registered:
    """The pose of an image against a model.

    T_world_to_cam: (4, 4) float64
    inliers:        2D-3D matches that agree with it
    """

    T_world_to_cam: Float64
    inliers: int

    def __post_init__(self) -> None:
        check_shape("T_world_to_cam", self.T_world_to_cam, "4 4")

    @property
    def centre(self) -> Float64:
        """(3,) camera centre in the world, -R^T t."""
        centre: Float64 = -self.T_world_to_cam[:3, :3].T @ self.T_world_to_cam[:3, 3]
        return centre


def write_poses(path: Path, poses: Mapping[str, Registered | None]) -> None:
    """Write poses by image name as JSON, atomically; null where an image was not registered."""
    content = {
        name: None
        if pose is None
        else {"T_world_to_cam": pose.T_world_to_cam.tolist(), "inliers": pose.inliers}
        for name, pose in poses.items()
    }
    atomic_write_json(path, {"poses": content})


def read_poses(path: Path) -> dict[str, Registered | None]:
    """What `write_poses` wrote, to the same bits, sorted by name. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["poses"]
        return {
            name: None
            if pose is None
            else Registered(
                T_world_to_cam=np.array(pose["T_world_to_cam"], dtype=np.float64),
                inliers=int(pose["inliers"]),
            )
            for name, pose in content.items()
        }
    except FileNotFoundError:
        raise DataError(f"{path}: not found; register the images first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ShapeError) as error:
        raise DataError(
            f"{path}: expected poses as JSON, got {error!r}; register the images again"
        ) from error
