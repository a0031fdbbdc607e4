"""What one camera of a scene sees of another's picture, by exact depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Camera
from matchlib.errors import check_shape
from matchlib.mirror.render import World, cast_depth

Float = npt.NDArray[np.float64]
_SAME_SURFACE = 0.01  # relative difference of depth up to which two views see the same surface


def transfer(camera0: Camera, camera1: Camera, points0_N2: Float, depth0_N: Float) -> tuple[Float, Float]:
    """Positions (N, 2) and z-depths (N,) in camera 1 of the points of image 0 at the given z-depth.

    All float64. Points behind camera 1 come back with a depth of 0 or less; their positions mean nothing.
    """
    check_shape("points0", points0_N2, f"{len(depth0_N)} 2")
    T = camera1.T_world_to_cam @ np.linalg.inv(camera0.T_world_to_cam)
    rays = np.column_stack([points0_N2, np.ones(len(depth0_N))]) @ np.linalg.inv(camera0.K).T
    in1 = (rays * depth0_N[:, None]) @ T[:3, :3].T + T[:3, 3]
    depth1 = in1[:, 2]
    positions = (in1 @ camera1.K.T)[:, :2] / np.where(depth1 > 0, depth1, 1.0)[:, None]
    return positions, depth1


def warp_points(
    world: World, camera0: Camera, camera1: Camera, points0_N2: Float
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Where image 1 shows what image 0 shows at these positions, (N, 2), and whether it does, (N,).

    A point is visible if it lies on a surface, inside image 1, in front of camera 1, and nothing hides it.
    """
    depth0 = cast_depth(world, camera0, points0_N2)
    points1, depth1 = transfer(camera0, camera1, points0_N2, depth0)
    return points1, (depth0 > 0) & _shown(world, camera1, points1, depth1)


def covisible_shares(world: World, cameras: Sequence[Camera], *, grid: int = 20) -> Float:
    """(n, n) float64: the share of image i, by grid x grid sample points, that image j shows too."""
    views = []
    for camera in cameras:
        x, y = ((np.arange(grid) + 0.5) / grid * side - 0.5 for side in camera.size)
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        views.append((camera, points, cast_depth(world, camera, points)))
    shares = np.zeros((len(cameras), len(cameras)))
    for j, camera1 in enumerate(cameras):
        moved = [transfer(camera0, camera1, points, depth) for camera0, points, depth in views]
        shown = _shown(world, camera1, *(np.concatenate(part) for part in zip(*moved, strict=True)))
        known = np.concatenate([depth for _, _, depth in views]) > 0
        shares[:, j] = (shown & known).reshape(len(views), -1).mean(axis=1)
    return shares


def _shown(world: World, camera: Camera, points_N2: Float, depth_N: Float) -> npt.NDArray[np.bool_]:
    """Whether points at these positions and z-depths are in the picture and nothing is before them."""
    high = np.array(camera.size) - 0.5
    shown = (depth_N > 0) & (points_N2 > -0.5).all(axis=1) & (points_N2 < high).all(axis=1)
    seen = cast_depth(world, camera, points_N2[shown])
    shown[shown] = np.abs(seen - depth_N[shown]) <= _SAME_SURFACE * depth_N[shown]
    return np.asarray(shown)
