"""Verification against known poses instead of RANSAC: what retrieval-based localisation does for mapping pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.errors import DataError
from matchlib.sfm.colmap import Float64, copy_database, fold_log, open_database, to_colmap_camera
from matchlib.sfm.database import (
    VerificationSummary,
    has_matches,
    log_summary,
    unique_pairs,
    write_inliers,
)
from matchlib.sfm.database_rows import read_rows
from matchlib.sfm.work import finished_file

Known = Mapping[str, tuple[ColmapCamera, Float64]]
_CACHED_IMAGES = 512  # 10 000 keypoints are 160 kB
_TINY = 1e-12


def verify_with_poses(
    database: Path, out: Path, pairs: Iterable[tuple[str, str]], known: Known, *, max_error_px: float = 4.0
) -> VerificationSummary:
    """Keep the matches of `pairs` within `max_error_px` of their epipolar lines in both images, into a new `out`.

    known: intrinsics and (4, 4) T_world_to_cam of every image of the pairs. Distances are taken between rays of the
    plane z = 1, the threshold is brought there by the focal length. The points themselves are not asked for, so pairs
    of a common centre keep everything. No verified pair at all is a result, and warned of, as in `verify_database`.
    Raises DataError as that does, and for images without a pose.
    """
    without, kept = 0, []
    with finished_file(out) as draft:
        copy_database(database, draft)
        with open_database(draft) as opened:
            opened.clear_two_view_geometries()
            wanted = unique_pairs(pairs, read_rows(opened).image_ids, database)
            rays_of = lru_cache(_CACHED_IMAGES)(lambda name, image_id: _rays(opened, name, image_id, known))
            for pair in wanted:
                if not has_matches(opened, *pair.ids):
                    without += 1
                    write_inliers(opened, pair, np.zeros((0, 2), np.int64))
                    continue
                rays0, rays1 = (rays_of(name, id_) for name, id_ in zip(pair.names, pair.ids, strict=True))
                matches = np.asarray(opened.read_matches(*pair.ids), dtype=np.int64)
                views = (known[pair.names[0]], known[pair.names[1]])
                is_inlier = _is_inlier(rays0[matches[:, 0]], rays1[matches[:, 1]], views, max_error_px)
                write_inliers(opened, pair, matches[is_inlier])
                kept.append(int(is_inlier.sum()))
        summary = VerificationSummary(
            pairs=len(wanted),
            without_matches=without,
            verified=sum(count > 0 for count in kept),
            inlier_matches=sum(kept),
        )
        fold_log(draft)
    log_summary(out, summary)
    return summary


def epipolar_errors(rays0_N2: Float64, rays1_N2: Float64, T_0to1: Float64) -> tuple[Float64, Float64]:
    """Distances (N,) of rays of the plane z = 1 to their epipolar lines, in image 0 and in image 1.

    0 for a pose without translation, which has no epipolar lines. Source: Hartley & Zisserman, eq. 9.12.
    """
    t = T_0to1[:3, 3]
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    E = cross @ T_0to1[:3, :3]
    homogeneous0, homogeneous1 = (
        np.column_stack([rays, np.ones(len(rays))]) for rays in (rays0_N2, rays1_N2)
    )
    lines1, lines0 = homogeneous0 @ E.T, homogeneous1 @ E
    residual = np.abs((homogeneous1 * lines1).sum(axis=1))
    return (
        residual / np.maximum(np.linalg.norm(lines0[:, :2], axis=1), _TINY),
        residual / np.maximum(np.linalg.norm(lines1[:, :2], axis=1), _TINY),
    )


def _is_inlier(
    rays0_N2: Float64,
    rays1_N2: Float64,
    views: tuple[tuple[ColmapCamera, Float64], tuple[ColmapCamera, Float64]],
    max_error_px: float,
) -> npt.NDArray[np.bool_]:
    (camera0, T0), (camera1, T1) = views
    error0, error1 = epipolar_errors(rays0_N2, rays1_N2, T1 @ np.linalg.inv(T0))
    limit0, limit1 = (
        to_colmap_camera(camera).cam_from_img_threshold(max_error_px) for camera in (camera0, camera1)
    )
    # Rays that no undistortion gives are nan, and fail.
    is_inlier: npt.NDArray[np.bool_] = (error0 <= limit0) & (error1 <= limit1)
    return is_inlier


def _rays(database: Any, name: str, image_id: int, known: Known) -> Float64:
    if name not in known:
        raise DataError(f"{name}: no known pose to verify its matches with; give one, or leave out its pairs")
    positions = np.asarray(database.read_keypoints(image_id), dtype=np.float64)[:, :2]
    return np.asarray(to_colmap_camera(known[name][0]).cam_from_img(positions), dtype=np.float64).reshape(
        -1, 2
    )
