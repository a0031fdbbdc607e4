"""How much of one image's surface another image sees, for all pairs of a scene, from sparse depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Camera
from matchlib.match_sets.layout import Float32, Float64

_COARSE_SIDE = (
    128  # side of the depth maps that are looked up: 64 KiB an image, so a scene of 2,313 takes 150 MB
)
_TOLERANCE = 0.1  # relative; coarser than the correspondence check, because the lookup is coarse


@dataclass(frozen=True, slots=True)
class SparseView:
    """What overlap needs of one image.

    points: (M, 3) float32 world points of grid samples with known depth; coarse: (h, w) float32 depth,
            subsampled
    P:      (3, 4) float64 projection of world points to pixels of `coarse`
    """

    points: Float32
    coarse: Float32
    P: Float64


def sparse_view(depth: Float32, camera: Camera, grid: int) -> SparseView:
    """Sample a depth map (H, W) on a `grid` x `grid` raster and keep a coarse copy for lookups."""
    height, width = depth.shape
    columns = np.rint((np.arange(grid) + 0.5) * width / grid - 0.5).astype(np.int64)
    rows = np.rint((np.arange(grid) + 0.5) * height / grid - 0.5).astype(np.int64)
    x, y = (a.ravel() for a in np.meshgrid(columns, rows))
    z = depth[y, x].astype(np.float64)
    x, y, z = x[z > 0], y[z > 0], z[z > 0]
    K, T = camera.scaled_K(width, height), camera.T_world_to_cam
    in_camera = np.linalg.solve(K, np.stack([x, y, np.ones_like(x)]).astype(np.float64)) * z
    world = T[:3, :3].T @ (in_camera - T[:3, 3:])
    stride = max(1, -(-max(height, width) // _COARSE_SIDE))
    coarse = np.ascontiguousarray(depth[::stride, ::stride])
    return SparseView(world.T.astype(np.float32), coarse, np.diag([1 / stride, 1 / stride, 1]) @ K @ T[:3])


def overlap_matrix(views: Sequence[SparseView]) -> Float32:
    """Directed overlap (n, n): entry (i, j) is the share of image i's samples that image j sees at the same
    depth.

    0 for an image without known depth; the diagonal is 0.
    """
    n = len(views)
    overlap = np.zeros((n, n), dtype=np.float32)
    for j, seen_by in enumerate(views):
        for i in range(n):
            if i != j and len(views[i].points):
                overlap[i, j] = _visible_share(views[i].points, seen_by)
    return overlap


def overlapping_pairs(
    overlap: Float32, ids: npt.NDArray[np.int64], min_overlap: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float64]:
    """Pairs with ids[i] < ids[j] whose overlap, in the worse direction, is at least `min_overlap`, in order
    of ids.

    Returns first ids (P,), second ids (P,), overlaps (P,).
    """
    worse = np.minimum(overlap, overlap.T)
    first, second = np.nonzero(np.triu(worse >= max(min_overlap, 1e-6), k=1))
    return ids[first], ids[second], worse[first, second].astype(np.float64)


def _visible_share(points: Float32, view: SparseView) -> float:
    P = view.P.astype(np.float32)
    x, y, z = P[:, :3] @ points.T + P[:, 3:]
    height, width = view.coarse.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        column, row = np.rint(x / z), np.rint(y / z)
    hit = (z > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    found = view.coarse[row[hit].astype(np.int64), column[hit].astype(np.int64)]
    seen = (found > 0) & (np.abs(found - z[hit]) <= _TOLERANCE * z[hit])
    return float(seen.sum() / len(points))
