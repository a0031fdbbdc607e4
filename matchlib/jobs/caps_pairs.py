"""Which images of a reconstruction make pairs: those that see the same things from different places."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from matchlib.datasets.depth import read_depth
from matchlib.datasets.types import Camera, Scene
from matchlib.errors import DataError
from matchlib.match_sets.angles import camera_angles_deg
from matchlib.match_sets.overlap import overlap_matrix, overlapping_pairs, sparse_view

Int64 = npt.NDArray[np.int64]
IndexPair = tuple[int, int]
_log = logging.getLogger(__name__)


def covisible_counts(points: Sequence[Int64]) -> Int64:
    """(n, n) number of 3D points that two images both observe, from the ids of the points (N_i,) each observes."""
    ids = [np.unique(image_points) for image_points in points]
    distinct, column = np.unique(np.concatenate(ids), return_inverse=True)
    row = np.repeat(np.arange(len(ids)), [len(image_points) for image_points in ids])
    counts = np.zeros((len(ids), len(ids)), dtype=np.int64)
    # One pass over all observations for each image: a table of images x points may not fit into memory.
    for image in range(len(ids)):
        is_seen = np.zeros(len(distinct), dtype=bool)
        is_seen[column[row == image]] = True
        counts[image] = np.bincount(row[is_seen[column]], minlength=len(ids))
    return counts


def covisible_pairs(counts: Int64, usable: Sequence[int], min_covisible: int) -> list[IndexPair]:
    """Pairs i < j of usable images with at least `min_covisible` common points, in order."""
    return [(i, j) for i in usable for j in usable if i < j and counts[i, j] >= min_covisible]


def overlapping(scene: Scene, usable: Sequence[int], *, grid: int, min_overlap: float) -> list[IndexPair]:
    """Pairs i < j of usable images, by their place in the scene, that see at least `min_overlap` of each other's
    known depth, in the worse direction; `grid` samples along each side. Images without readable depth have none.
    """
    images = list(scene.images.values())
    places, views = [], []
    for place in usable:
        path = images[place].depth_path
        try:
            depth = read_depth(path) if path is not None else None
        except DataError as error:
            _log.warning("image %d proposes no pairs: %s", images[place].index, error)
            continue
        if depth is not None and depth.any():
            places.append(place)
            views.append(sparse_view(depth, images[place].camera, grid))
    first, second, _ = overlapping_pairs(overlap_matrix(views), np.array(places, dtype=np.int64), min_overlap)
    return list(zip(first.tolist(), second.tolist(), strict=True))


def from_different_views(
    pairs: Sequence[IndexPair], cameras: Sequence[Camera], max_rotation_deg: float
) -> list[IndexPair]:
    """Pairs whose cameras are turned by no more than the limit, and do not stand in one place (which has no
    epipolar geometry). What is left out is logged.
    """
    if not pairs:
        return []
    poses = np.stack([camera.T_world_to_cam for camera in cameras])
    first, second = np.array(pairs).T
    T_0to1 = poses[second] @ np.linalg.inv(poses[first])
    turned = camera_angles_deg(T_0to1, "exact") > max_rotation_deg
    scale = np.abs(poses[:, :3, 3]).max()
    still = np.linalg.norm(T_0to1[:, :3, 3], axis=1) <= 1e-9 * scale
    if turned.any() or still.any():
        _log.info(
            "of %d pairs left out: %d turned by more than %g deg, %d from one place",
            len(pairs),
            int(turned.sum()),
            max_rotation_deg,
            int(still.sum()),
        )
    return [pair for pair, bad in zip(pairs, turned | still, strict=True) if not bad]
