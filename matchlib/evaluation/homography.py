"""Accuracy of homographies that robust estimators find from matches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from matchlib.evaluation.config import HomographyProtocol, SequenceSet
from matchlib.evaluation.covisibility import covisible_mask
from matchlib.evaluation.homography_result import HomographyPair, HomographyResult
from matchlib.evaluation.hpatches_data import read_sequences, select_sequences
from matchlib.evaluation.metrics import Float, warp_points
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features
from matchlib.matching.mutual_nearest import match_mutual_nearest
from matchlib.matching.types import Matches


# ---------------------------------------------------------------- one pair
def estimate_homography(
    points0: npt.ArrayLike, points1: npt.ArrayLike, protocol: HomographyProtocol
) -> Float | None:
    """Homography from image 0 to image 1 by the protocol's robust estimator, or None if it finds none.

    points0, points1: (M, 2), matched positions in the frame that `threshold_px` speaks of. Deterministic:
    both libraries start from a fixed seed.
    """
    source = np.asarray(points0, dtype=np.float64)
    target = np.asarray(points1, dtype=np.float64)
    if len(source) < 4:
        return None
    if protocol.estimator == "poselib":
        return _estimate_with_poselib(source, target, protocol)
    H, _ = cv2.findHomography(
        source,
        target,
        cv2.RANSAC,
        protocol.threshold_px,
        maxIters=protocol.max_iterations,
        confidence=protocol.confidence,
    )
    return None if H is None else np.asarray(H, dtype=np.float64)


def _estimate_with_poselib(source: Float, target: Float, protocol: HomographyProtocol) -> Float | None:
    import poselib

    options = {
        "max_reproj_error": protocol.threshold_px,
        "success_prob": protocol.confidence,
        "max_iterations": protocol.max_iterations,
        "min_iterations": min(1000, protocol.max_iterations),
        "seed": 0,
    }
    H, info = poselib.estimate_homography(source, target, options, {})
    # It always returns a matrix; without the four points of a minimal sample behind it, it means nothing.
    return np.asarray(H, dtype=np.float64) if info["num_inliers"] >= 4 else None


def corner_error_px(
    H_estimated: npt.ArrayLike | None, H_true: npt.ArrayLike, size: tuple[float, float], *, corners: str
) -> float:
    """Mean distance in px between the four corners of image 0 under two homographies.

    Infinite if there is no estimate, or if it sends a corner to infinity.

    size: (width, height) of image 0. corners: as in `HomographyProtocol.corners`.
    """
    if H_estimated is None:
        return math.inf
    margin = 0.5 if corners == "image_border" else 0.0
    left, right, top, bottom = -margin, size[0] - 1 + margin, -margin, size[1] - 1 + margin
    points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    distance = np.linalg.norm(warp_points(points, H_estimated) - warp_points(points, H_true), axis=1)
    error = float(distance.mean())
    return error if math.isfinite(error) else math.inf


def pair_corner_error(
    features0: Features, features1: Features, matches: Matches, H_0to1: Float, protocol: HomographyProtocol
) -> float:
    """Corner error in px of the protocol's frame for the matches of one pair; inf if estimation fails."""
    if protocol.max_matches is not None:
        matches = matches.top(protocol.max_matches)
    S0, size0 = frame_of(features0.image_size, protocol.short_side)
    S1, _ = frame_of(features1.image_size, protocol.short_side)
    points0 = warp_points(features0.keypoints[matches.index[:, 0]], S0)
    points1 = warp_points(features1.keypoints[matches.index[:, 1]], S1)
    estimated = estimate_homography(points0, points1, protocol)
    return corner_error_px(estimated, S1 @ H_0to1 @ np.linalg.inv(S0), size0, corners=protocol.corners)


def frame_of(size: tuple[int, int], short_side: int | None) -> tuple[Float, tuple[int, int]]:
    """Similarity from original to scaled pixels, (3, 3) float64, and the scaled (width, height).

    Pixel centres map as x' = (x + 1/2) w'/w - 1/2, where w' is the whole number of pixels of the scaled
    image.
    """
    if short_side is None:
        return np.eye(3), size
    factor = short_side / min(size)
    width, height = round(size[0] * factor), round(size[1] * factor)
    sx, sy = width / size[0], height / size[1]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1.0]]), (width, height)


# ---------------------------------------------------------------- all pairs
def evaluate_homography(
    features: Path,
    root: Path,
    *,
    protocol: HomographyProtocol,
    sequences: SequenceSet = "108",
    label: str | None = None,
    device: str = "cpu",
    show_progress: bool = True,
) -> HomographyResult:
    """Evaluate one features file (keys `<sequence>/<k>.ppm`) on the HPatches folder `root`.

    Arguments and errors as in `hpatches_run.evaluate_hpatches`.
    """
    names = select_sequences(root, sequences)
    pairs = []
    with FeatureReader(features) as reader:
        rows = tqdm(
            read_sequences(root, names, reader),
            total=len(names),
            desc=f"homography {protocol.name}",
            unit="sequence",
            disable=None if show_progress else True,
        )
        for sequence in rows:
            for k, all0, all1, H_0to1 in sequence.pairs():
                features0, features1 = limit_features(all0, all1, H_0to1, protocol)
                matches = match_mutual_nearest(features0, features1, device)
                used = (
                    len(matches) if protocol.max_matches is None else min(len(matches), protocol.max_matches)
                )
                error = pair_corner_error(features0, features1, matches, H_0to1, protocol)
                pairs.append(HomographyPair(sequence=sequence.name, k=k, matches=used, corner_error_px=error))
        header = reader.header
        name = label or (header.method if header is not None else features.stem)
        return HomographyResult(
            label=name,
            protocol=protocol,
            sequences=sequences,
            features_digest=reader.digest,
            pairs=tuple(pairs),
        )


def limit_features(
    features0: Features, features1: Features, H_0to1: Float, protocol: HomographyProtocol
) -> tuple[Features, Features]:
    """The keypoints that the protocol matches: covisible ones if it says so, then the best of each image."""
    if protocol.covisible_only:
        features0 = _subset(features0, covisible_mask(features0.keypoints, H_0to1, features1.image_size))
        back = np.linalg.inv(H_0to1)
        features1 = _subset(features1, covisible_mask(features1.keypoints, back, features0.image_size))
    if protocol.max_keypoints is not None:
        features0, features1 = features0.top(protocol.max_keypoints), features1.top(protocol.max_keypoints)
    return features0, features1


def _subset(features: Features, keep: npt.NDArray[np.bool_]) -> Features:
    return replace(
        features,
        keypoints=features.keypoints[keep],
        scores=features.scores[keep],
        descriptors=features.descriptors[keep],
    )
