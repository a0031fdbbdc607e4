"""What is said of a model: its size and consistency, and its pose errors where the truth is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.completion import atomic_write_json, require_complete
from matchlib.errors import DataError
from matchlib.sfm.colmap import colmap_step, from_rigid, read_model, read_only, verified_counts

Float64 = npt.NDArray[np.float64]
STATISTICS = "statistics.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """The columns of the ETH benchmark, for one model; counts are 0 for a reconstruction that failed, means None.

    images:                      in the database
    registered_images:           with a pose
    points:                      3D points
    observations:                keypoints with a point
    mean_track_length:           observations per point; None: there is no point
    mean_observations_per_image: per registered image; None: there is none
    mean_reprojection_error_px:  over all points, each the mean over its track; None: there is no point
    dense_points:                None: not computed
    verified_pairs:              pairs of the database with inliers
    inlier_matches:              their inliers in all
    models:                      how many the mapper made; this is the one of most images
    """

    images: int
    registered_images: int
    points: int
    observations: int
    mean_track_length: float | None
    mean_observations_per_image: float | None
    mean_reprojection_error_px: float | None
    verified_pairs: int
    inlier_matches: int
    models: int = 1
    dense_points: int | None = None


def model_statistics(model: Any, database: Path, *, models: int = 1) -> ModelStatistics:
    """Statistics of a `pycolmap.Reconstruction` and the database that it came from, which is only read."""
    with read_only(database) as opened:
        images = int(opened.execute("select count(*) from images").fetchone()[0])
    pairs, inliers = verified_counts(database)
    registered, points = int(model.num_reg_images()), int(model.num_points3D())
    return ModelStatistics(
        images=images,
        registered_images=registered,
        points=points,
        observations=int(model.compute_num_observations()),
        # Of nothing, COLMAP's means are 0: the best error of all.
        mean_track_length=float(model.compute_mean_track_length()) if points else None,
        mean_observations_per_image=float(model.compute_mean_observations_per_reg_image())
        if registered
        else None,
        mean_reprojection_error_px=float(model.compute_mean_reprojection_error()) if points else None,
        verified_pairs=pairs,
        inlier_matches=inliers,
        models=models,
    )


def write_statistics(folder: Path, statistics: ModelStatistics) -> None:
    """Write `statistics.json` beside a model."""
    atomic_write_json(folder / STATISTICS, asdict(statistics))


def read_statistics(folder: Path) -> ModelStatistics:
    """Statistics of a finished model folder. Raises DataError."""
    require_complete(folder, hint="reconstruct again")
    path = folder / STATISTICS
    try:
        return ModelStatistics(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected statistics as JSON, got {error}; reconstruct again") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelPoseErrors:
    """Errors of a model's poses after the similarity that fits its camera centres best to the true ones.

    names:                 of the images compared, sorted
    missing:               images with a true pose that the model lacks, sorted
    centre:                (N,) distance to the true centre, in units of the truth
    rotation_deg:          (N,) angle to the true rotation
    pairwise_rotation_deg: (N (N - 1) / 2,) errors of relative rotations, which need no alignment
    extent:                mean distance of the true centres to their centroid, to put `centre` in relation
    """

    names: tuple[str, ...]
    missing: tuple[str, ...]
    centre: Float64
    rotation_deg: Float64
    pairwise_rotation_deg: Float64
    extent: float


def compare_with_truth(model: Path, poses: Mapping[str, Float64]) -> ModelPoseErrors:
    """Compare a model with true poses, (4, 4) T_world_to_cam by image name.

    The similarity is the least-squares one over all common images (Umeyama 1991): no image is left out as an outlier.
    Raises DataError with fewer than three common images, or with centres on one line.
    """
    found = registered_poses(read_model(model))
    names = sorted(set(found) & set(poses))
    if len(names) < 3:
        raise DataError(f"{model}: expected at least 3 registered images with a true pose, got {len(names)}")
    estimated, truth = (np.stack([source[name] for name in names]) for source in (found, poses))
    scale, R, t = _similarity(model, centres_of(estimated), centres_of(truth))
    aligned = scale * centres_of(estimated) @ R.T + t
    # x_cam = R_est x_model and x_world = s R x_model + t: the rotation from the world is R_est R^T.
    rotations = estimated[:, :3, :3] @ R.T
    i, j = np.triu_indices(len(names), k=1)
    relative = [T[j, :3, :3] @ T[i, :3, :3].transpose(0, 2, 1) for T in (estimated, truth)]
    centres = centres_of(truth)
    return ModelPoseErrors(
        names=tuple(names),
        missing=tuple(sorted(set(poses) - set(found))),
        centre=np.linalg.norm(aligned - centres, axis=1),
        rotation_deg=angle_deg(rotations, truth[:, :3, :3]),
        pairwise_rotation_deg=angle_deg(*relative),
        extent=float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).mean()),
    )


def registered_poses(model: Any) -> dict[str, Float64]:
    """(4, 4) T_world_to_cam of the registered images of a `pycolmap.Reconstruction`, by name, sorted."""
    posed = [image for image in model.images.values() if image.has_pose]
    return {
        image.name: from_rigid(image.cam_from_world())
        for image in sorted(posed, key=lambda image: image.name)
    }


def centres_of(T_world_to_cam: Float64) -> Float64:
    """Camera centres (..., 3) of poses (..., 4, 4): -R^T t."""
    centres: Float64 = -np.einsum("...ji,...j->...i", T_world_to_cam[..., :3, :3], T_world_to_cam[..., :3, 3])
    return centres


def angle_deg(R0: Float64, R1: Float64) -> Float64:
    """Angles (...) in degrees between rotations (..., 3, 3), exact near 0, where an arccosine is not.

    The Frobenius norm of the difference of two rotations is 2 sqrt(2) sin(angle / 2).
    """
    chord = np.linalg.norm(R0 - R1, axis=(-2, -1)) / (2 * np.sqrt(2))
    angle: Float64 = np.rad2deg(2 * np.arcsin(np.minimum(chord, 1)))
    return angle


def _similarity(model: Path, source_N3: Float64, target_N3: Float64) -> tuple[float, Float64, Float64]:
    """Scale, rotation and translation from source to target."""
    import pycolmap

    with colmap_step(model, "alignment", check="that the camera centres are not on one line"):
        found = pycolmap.estimate_sim3d(source_N3, target_N3)
    if found is None or not np.isfinite(found.matrix()).all() or found.scale <= 0:
        raise DataError(
            f"{model}: no similarity fits its camera centres to the true ones; are they on one line?"
        )
    return float(found.scale), np.asarray(found.rotation.matrix()), np.asarray(found.translation)
