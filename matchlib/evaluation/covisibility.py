"""Repeatability and matching score among the keypoints that both images of a pair can see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from matchlib.evaluation.metrics import reprojection_errors, warp_points
from matchlib.features.types import Features
from matchlib.matching.types import Matches

_BLOCK = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class CovisibleScores:
    """repeatability: share of covisible keypoints with a counterpart.
    matching_score: correct matches per covisible keypoint.
    """

    repeatability: float
    matching_score: float


def covisible_mask(points: npt.ArrayLike, H: npt.ArrayLike, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which points fall inside an image of `size` (width, height) when mapped by H: (N,) bool.

    Inside means between the centres of the border pixels, [0, W-1] x [0, H-1].
    """
    warped = warp_points(points, H)
    with np.errstate(invalid="ignore"):
        return np.asarray(((warped >= 0) & (warped <= np.array(size) - 1.0)).all(axis=1))


def covisible_scores(
    features0: Features,
    features1: Features,
    matches: Matches,
    H_0to1: npt.NDArray[np.float64],
    *,
    threshold_px: float,
) -> CovisibleScores:
    """Repeatability and matching score of one pair, distances in pixels of image 1.

    Covisible keypoints of an image are those whose true position lies inside the other image. Repeatability
    is the mean over both images of the number of covisible keypoints with a covisible counterpart within the
    threshold, divided by the mean number of covisible keypoints. The matching score divides the number of
    correct matches between covisible keypoints by the same mean. Both are 0 if nothing is covisible.
    Source: ASLFeat's evaluator since April 2020 (symmetric count). differs from ASLFeat: matches are those of
    the whole images; it matches the covisible keypoints anew.
    """
    covisible0 = covisible_mask(features0.keypoints, H_0to1, features1.image_size)
    covisible1 = covisible_mask(features1.keypoints, np.linalg.inv(H_0to1), features0.image_size)
    mean_count = (int(covisible0.sum()) + int(covisible1.sum())) / 2
    if not covisible0.any() or not covisible1.any():
        return CovisibleScores(repeatability=0.0, matching_score=0.0)
    warped0 = warp_points(features0.keypoints[covisible0], H_0to1)
    nearest0, nearest1 = _nearest_distances(warped0, features1.keypoints[covisible1])
    repeated = (int((nearest0 <= threshold_px).sum()) + int((nearest1 <= threshold_px).sum())) / 2
    index0, index1 = matches.index.T
    errors = reprojection_errors(features0.keypoints[index0], features1.keypoints[index1], H_0to1)
    correct = int(((errors <= threshold_px) & covisible0[index0] & covisible1[index1]).sum())
    return CovisibleScores(repeatability=repeated / mean_count, matching_score=correct / mean_count)


def _nearest_distances(
    points0: npt.ArrayLike, points1: npt.ArrayLike
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Distance of each of N points to the nearest of M and the other way round: (N,), (M,). N, M > 0."""
    a = torch.from_numpy(np.asarray(points0, dtype=np.float32))
    b = torch.from_numpy(np.asarray(points1, dtype=np.float32))
    nearest_a, nearest_b = [], torch.full((len(b),), torch.inf)
    for start in range(0, len(a), _BLOCK):
        # The matrix-product form of cdist loses the sub-pixel digits of coordinates in the thousands.
        distance = torch.cdist(a[start : start + _BLOCK], b, compute_mode="donot_use_mm_for_euclid_dist")
        nearest_a.append(distance.amin(dim=1))
        nearest_b = torch.minimum(nearest_b, distance.amin(dim=0))
    return torch.cat(nearest_a).numpy(), nearest_b.numpy()
