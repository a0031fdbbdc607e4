"""Pose of a query from its matches with images of a model: the way of retrieval-based localisation.

A match with a keypoint of the model that has a 3D point is a 2D-3D match. Unlike `registration`, no database, no
verification, and no track of the model is completed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.errors import DataError, check_shape
from matchlib.matching.types import Matches
from matchlib.sfm.colmap import Float64, colmap_step, from_rigid, read_model, to_colmap_camera
from matchlib.sfm.config import LocalisationConfig
from matchlib.sfm.poses import Registered

logger = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
_MIN_POINTS = 4  # three solve for the pose, the fourth chooses among the solutions


class PointLookup:
    """The 3D points behind the keypoints of a model's images.

    The model's images must have the keypoints of the features that are matched, in their order, as models have that
    were triangulated from a database of these features.
    """

    def __init__(self, folder: Path) -> None:
        """Read the model; one without points is warned of: no query finds a pose. Raises DataError if it is none."""
        self.folder = folder
        self._model = read_model(folder)
        ids = sorted(self._model.points3D)
        if not ids:
            logger.warning("%s: has no 3D points, so that no query can be localised", folder)
        self.points_P3: Float64 = np.array(
            [self._model.points3D[index].xyz for index in ids], dtype=np.float64
        ).reshape(-1, 3)
        self._row_of = {point: row for row, point in enumerate(ids)}
        self._image_ids = {image.name: index for index, image in self._model.images.items() if image.has_pose}
        self._rows: dict[str, Int64] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._image_ids

    def rows(self, name: str) -> Int64:
        """(K,) row of `points_P3` for each keypoint of an image, -1 where it has no point. Raises DataError."""
        if name not in self._image_ids:
            raise DataError(
                f"{self.folder}: no registered image '{name}'; match queries with images of the model"
            )
        if name not in self._rows:  # on demand: a model has thousands of images, a query sees fifty
            image = self._model.image(self._image_ids[name])
            rows = np.full(image.num_points2D(), -1, dtype=np.int64)
            for index in image.get_observation_point2D_idxs():
                rows[index] = self._row_of[image.point2D(index).point3D_id]
            self._rows[name] = rows
        return self._rows[name]


def localise(
    lookup: PointLookup,
    *,
    query: str,
    keypoints_N2: npt.NDArray[np.float32],
    camera: ColmapCamera,
    matches: Mapping[str, Matches],
    config: LocalisationConfig,
    pixel_offset: float = 0.5,
) -> Registered | None:
    """Pose of one query by LO-RANSAC and refinement, None if there is none with enough inliers.

    keypoints_N2: of the query, float32 (x, y), centre of the first pixel at (0, 0); `pixel_offset` is added
    matches:      by name of the model's image; column 0 indexes the query, column 1 the image
    Raises DataError for images that the model lacks, and for indices beyond the keypoints.
    """
    check_shape("keypoints", keypoints_N2, "N 2")
    correspondences = {
        name: _correspondences(lookup, query, len(keypoints_N2), name, found)
        for name, found in matches.items()
    }
    groups: Iterable[Sequence[str]] = [list(matches)]
    if config.covisibility_clustering:
        groups = _covisible(lookup, list(matches))
    best: Registered | None = None
    for group in groups:
        pairs_M2 = np.unique(
            np.concatenate([np.zeros((0, 2), np.int64), *(correspondences[name] for name in group)]), axis=0
        )
        points2D = keypoints_N2[pairs_M2[:, 0]].astype(np.float64) + pixel_offset
        pose = _solve(query, points2D, lookup.points_P3[pairs_M2[:, 1]], camera, config)
        if pose is not None and (best is None or pose.inliers > best.inliers):
            best = pose
    return best


def _correspondences(lookup: PointLookup, query: str, count: int, name: str, found: Matches) -> Int64:
    """(M, 2) int64: keypoint of the query, row of the 3D point."""
    rows = lookup.rows(name)
    limits = np.array([count, len(rows)])
    if len(found) and ((found.index < 0) | (found.index >= limits)).any():
        raise DataError(
            f"matches of {query} and {name}: expected indices below {limits.tolist()}, got up to "
            f"{found.index.max(axis=0).tolist()}; matches, features and model are of different runs"
        )
    pairs = np.column_stack([found.index[:, 0], rows[found.index[:, 1]]]).astype(np.int64)
    return pairs[pairs[:, 1] >= 0]


def _solve(
    query: str, points2D: Float64, points3D: Float64, camera: ColmapCamera, config: LocalisationConfig
) -> Registered | None:
    import pycolmap

    if len(points2D) < _MIN_POINTS:
        return None
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = config.max_error_px
    options.ransac.random_seed = config.seed
    with colmap_step(Path(query), "pose", check="the intrinsics of the query"):
        found: dict[str, Any] | None = pycolmap.estimate_and_refine_absolute_pose(
            points2D, points3D, to_colmap_camera(camera), options
        )
    if found is None or found["num_inliers"] < config.min_inliers:
        return None
    return Registered(T_world_to_cam=from_rigid(found["cam_from_world"]), inliers=int(found["num_inliers"]))


def _covisible(lookup: PointLookup, names: Sequence[str]) -> list[list[str]]:
    """Groups of images connected by common points, largest first, each in the order of `names`."""
    seen_by = {name: frozenset(lookup.rows(name).tolist()) - {-1} for name in names}
    groups: list[list[str]] = []
    for name in names:
        joined = [group for group in groups if any(seen_by[name] & seen_by[other] for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([*(other for group in joined for other in group), name])
    order = {name: position for position, name in enumerate(names)}
    return sorted((sorted(group, key=order.__getitem__) for group in groups), key=len, reverse=True)
