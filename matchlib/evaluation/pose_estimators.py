"""Relative pose of two calibrated images from matches: one function over four robust estimators.

All of them get the same points, in pixels counted from the corner of the image, as pycolmap wants them; the intrinsics
are in the same pixels, so for the others it makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from matchlib.datasets.pose_pairs import PosePair, Size
from matchlib.errors import DataError, check_shape
from matchlib.evaluation.metrics import Float
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.randomness import generator_for

MIN_MATCHES = 5
"""Size of a minimal sample; a pair with fewer matches has no pose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedMatches:
    """Matched positions of two images with their intrinsics.

    points0, points1: (M, 2) float64, pixels with the corner of the image at (0, 0); row i of both is a match
    K0, K1:           (3, 3) float64, in the same pixels
    size0, size1:     (width, height) of the frames
    """

    points0: Float
    points1: Float
    K0: Float
    K1: Float
    size0: Size
    size1: Size

    def __post_init__(self) -> None:
        count = check_shape("points0", self.points0, "M 2")["M"]
        check_shape("points1", self.points1, f"{count} 2")

    def __len__(self) -> int:
        return len(self.points0)

    def normalized(self) -> tuple[Float, Float]:
        """Both point sets on the planes z = 1 of their cameras, (M, 2) each."""
        return _normalized(self.points0, self.K0), _normalized(self.points1, self.K1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedPose:
    """Rotation (3, 3) and direction of translation (3,), camera 0 to 1, and which of the matches agree (M,) bool."""

    R: Float
    t: Float
    inlier: npt.NDArray[np.bool_]


def calibrate(
    keypoints: tuple[npt.ArrayLike, npt.ArrayLike],
    image_sizes: tuple[Size, Size],
    pair: PosePair,
    *,
    pixel_offset: float,
    protocol: PoseProtocol,
) -> CalibratedMatches:
    """Matched keypoints, (M, 2) each, in the frame that the protocol's threshold speaks of.

    Keypoints are in our pixels (first centre at (0, 0)) of images of `image_sizes`; the intrinsics of `pair` put it at
    (pixel_offset, pixel_offset). Raises DataError if the intrinsics are those of another image size.
    """
    offset = pixel_offset if protocol.apply_pixel_offset else 0.0
    long_side = protocol.long_side if protocol.threshold_frame == "resized" else None
    frames = [
        _frame(points, size, K, stated, offset=offset, long_side=long_side, where=f"intrinsics of {name}")
        for points, size, K, stated, name in zip(
            keypoints,
            image_sizes,
            (pair.K0, pair.K1),
            (pair.size0, pair.size1),
            (pair.name0, pair.name1),
            strict=True,
        )
    ]
    (points0, K0, size0), (points1, K1, size1) = frames
    return CalibratedMatches(points0=points0, points1=points1, K0=K0, K1=K1, size0=size0, size1=size1)


def _frame(
    points: npt.ArrayLike,
    size: Size,
    K: Float,
    stated: Size | None,
    *,
    offset: float,
    long_side: int | None,
    where: str,
) -> tuple[Float, Float, Size]:
    """Points and intrinsics in corner pixels of the image, resized to a long side."""
    factor = 1.0 if long_side is None else long_side / max(size)
    frame = max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)
    K_corner = K.copy()
    K_corner[:2, 2] += 0.5 - offset
    # In pixels from the corner, resizing is multiplication.
    K_scale = np.array(frame) / (size if stated is None else stated)
    K_frame = np.diag([*K_scale, 1.0]) @ K_corner
    if not (0 < K_frame[0, 2] < frame[0] and 0 < K_frame[1, 2] < frame[1]):
        raise DataError(
            f"{where}: the principal point ({K[0, 2]:g}, {K[1, 2]:g}) lies outside the image of {stated or size} "
            f"pixels; were they given for another size?"
        )
    corner = (np.asarray(points, dtype=np.float64).reshape(-1, 2) + 0.5) * (np.array(frame) / size)
    return corner, K_frame, frame


def estimate_pose(
    matches: CalibratedMatches, protocol: PoseProtocol, *, seed: int = 0
) -> EstimatedPose | None:
    """The relative pose by the protocol's estimator, or None: fewer than five matches, or none that it accepts.

    seed: of the sampling, at least 0; equal seeds give equal poses. `protocol.seed` is not looked at here.
    """
    if len(matches) < MIN_MATCHES:
        return None
    estimate = {
        "opencv_ransac": _opencv,
        "opencv_magsac": _opencv,
        "poselib": _poselib,
        "pycolmap": _pycolmap,
    }[protocol.estimator]
    pose = estimate(matches, protocol, seed)
    if pose is None or pose.inlier.sum() < MIN_MATCHES:
        return None
    is_finite = np.isfinite(pose.R).all() and np.isfinite(pose.t).all()
    return pose if is_finite else None


def normalized_threshold(matches: CalibratedMatches, protocol: PoseProtocol) -> float:
    """The protocol's threshold on the plane z = 1: in pixels, divided by its mean focal length."""
    K0, K1 = matches.K0, matches.K1
    if protocol.mean_focal == "fx0_fy1":
        return protocol.threshold_px * 2 / float(K0[0, 0] + K1[1, 1])
    return protocol.threshold_px * 4 / float(K0[0, 0] + K0[1, 1] + K1[0, 0] + K1[1, 1])


# ---------------------------------------------------------------- estimators
def _opencv(matches: CalibratedMatches, protocol: PoseProtocol, seed: int) -> EstimatedPose | None:
    # OpenCV samples with a generator of its own that cannot be seeded: the order of the matches is what can vary.
    order = generator_for(seed, "pose", "order").permutation(len(matches))
    points0, points1 = (points[order] for points in matches.normalized())
    essentials, mask = cv2.findEssentialMat(
        points0,
        points1,
        np.eye(3),
        method=cv2.RANSAC if protocol.estimator == "opencv_ransac" else cv2.USAC_MAGSAC,
        prob=protocol.confidence,
        threshold=normalized_threshold(matches, protocol),
        maxIters=protocol.max_iterations,
    )
    if essentials is None or len(essentials) % 3:
        return None
    best: EstimatedPose | None = None
    most = 0
    for E in np.split(essentials, len(essentials) // 3):  # five points have up to ten solutions
        # By keyword: see UPSTREAM_DEPTH_LIMIT. The mask is copied because OpenCV writes into it.
        votes, R, t, _, _ = cv2.recoverPose(
            E, points0, points1, np.eye(3), distanceThresh=protocol.depth_limit, mask=mask.copy()
        )
        if votes > most:
            inlier = np.zeros(len(matches), dtype=bool)
            inlier[order] = mask.ravel() > 0
            best, most = (
                EstimatedPose(
                    R=np.asarray(R, np.float64), t=np.asarray(t, np.float64).ravel(), inlier=inlier
                ),
                votes,
            )
    return best


def _poselib(matches: CalibratedMatches, protocol: PoseProtocol, seed: int) -> EstimatedPose | None:
    import poselib

    options = {
        # PoseLib ignores options that it does not know, "max_error" among them.
        "max_epipolar_error": protocol.threshold_px,
        "success_prob": protocol.confidence,
        "min_iterations": protocol.min_iterations,
        "max_iterations": protocol.max_iterations,
        "seed": seed % 2**31,
    }
    cameras = [
        {"model": "PINHOLE", "width": size[0], "height": size[1], "params": _pinhole(K)}
        for K, size in ((matches.K0, matches.size0), (matches.K1, matches.size1))
    ]
    pose, info = poselib.estimate_relative_pose(matches.points0, matches.points1, *cameras, options, {})
    return EstimatedPose(
        R=np.asarray(pose.R), t=np.asarray(pose.t), inlier=np.array(info["inliers"], dtype=bool)
    )


def _pycolmap(matches: CalibratedMatches, protocol: PoseProtocol, seed: int) -> EstimatedPose | None:
    import pycolmap

    options = pycolmap.RANSACOptions(
        max_error=protocol.threshold_px,
        confidence=protocol.confidence,
        min_num_trials=protocol.min_iterations,
        max_num_trials=protocol.max_iterations,
        random_seed=seed % 2**31,
    )
    camera0, camera1 = (
        pycolmap.Camera(model="PINHOLE", width=size[0], height=size[1], params=_pinhole(K))
        for K, size in ((matches.K0, matches.size0), (matches.K1, matches.size1))
    )
    found = pycolmap.estimate_essential_matrix(matches.points0, matches.points1, camera0, camera1, options)
    if found is None:
        return None
    T_0to1 = np.asarray(found["cam2_from_cam1"].matrix())
    return EstimatedPose(R=T_0to1[:, :3], t=T_0to1[:, 3], inlier=np.asarray(found["inlier_mask"], dtype=bool))


def _pinhole(K: Float) -> list[float]:
    return [float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])]


def _normalized(points: Float, K: Float) -> Float:
    return np.asarray((points - K[:2, 2]) / K.diagonal()[:2])
