"""Which pairs of cameras stand apart: a pair without baseline has no epipolar geometry to learn from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Scene
from matchlib.match_sets.layout import Float64

Int64 = npt.NDArray[np.int64]
_LEAST_SHARE = 1e-3
_ROUNDING = 1e-9  # of the coordinates: what is left of equal positions after c = -R^T t in float64


def has_baseline(distance: Float64, index0: Int64, index1: Int64) -> npt.NDArray[np.bool_]:
    """Whether the cameras of each pair of images (P,) are apart, (P,) bool, from their distances (P,).

    Poses from images have no unit, so a distance is small only against others: a pair has a baseline if its
    distance exceeds a thousandth of the median of those that are not 0. Below that, a point at the typical
    distance of the scene moves by a fraction of a pixel, and the noise of the poses decides where the epipolar
    lines point. The median is over all pairs that chains of pairs join with it: what no chain joins may be a
    reconstruction of its own, in another unit (MegaDepth has several per scene).
    """
    apart = distance > 0
    group = _joined(index0, index1)
    for label in np.unique(group[apart]).tolist():
        members = apart & (group == label)
        apart[members] = distance[members] > _LEAST_SHARE * float(np.median(distance[members]))
    return apart


def _joined(index0: Int64, index1: Int64) -> Int64:
    """A label (P,) of each pair; two pairs have the same if a chain of pairs joins their images."""
    ids, ends = np.unique(np.concatenate([index0, index1]), return_inverse=True)
    first, second = ends.reshape(2, -1)
    root = np.arange(len(ids))
    while True:
        label0, label1 = root[first], root[second]
        if (label0 == label1).all():
            return label0
        least = np.minimum(label0, label1)
        np.minimum.at(root, label0, least)
        np.minimum.at(root, label1, least)
        while (root[root] != root).any():
            root = root[root]


def camera_distances(scene: Scene, index0: Int64, index1: Int64) -> Float64:
    """Distances (P,) between the centres of the cameras of pairs that all have cameras, in scene units.

    Exactly 0 where the positions are equal up to rounding, however the cameras are turned.
    """
    wanted = np.union1d(index0, index1)
    centres = np.array([_centre(scene.images[i].camera.T_world_to_cam) for i in wanted.tolist()])
    centres = centres.reshape(-1, 3)
    c0, c1 = centres[np.searchsorted(wanted, index0)], centres[np.searchsorted(wanted, index1)]
    distance: Float64 = np.linalg.norm(c1 - c0, axis=1)
    size = np.maximum(np.abs(c0).max(axis=1, initial=0), np.abs(c1).max(axis=1, initial=0))
    distance[distance <= _ROUNDING * size] = 0
    return distance


def _centre(T_world_to_cam: Float64) -> Float64:
    centre: Float64 = -T_world_to_cam[:3, :3].T @ T_world_to_cam[:3, 3]
    return centre
