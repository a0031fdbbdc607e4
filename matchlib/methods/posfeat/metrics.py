"""How good matches are where only poses are known: distances to epipolar lines, and what chance would give.

A match on the epipolar line may still be wrong along it, so the precision here is an upper bound of the true one.
Lines are long: `chance_precision` says what pairing keypoints at random would score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from matchlib.datasets.batch import PairBatch
from matchlib.errors import check_shape
from matchlib.geometry.depth_warp import warp_points_by_depth
from matchlib.geometry.epipolar import epipolar_lines, fundamental_from_pose, point_line_distance
from matchlib.geometry.pose import invert_pose
from matchlib.ops.nearest import mutual_nearest

OTHER_THRESHOLDS_PX = (1.0, 5.0)
"""Precision is told at these, too, beside the one that chooses the weights."""
_BLOCK = 512  # keypoints of image 0 that are paired with all of image 1 at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Keypoints:
    """Keypoints of one image, best first: points (N, 2) float32 px, scores (N,), unit descriptors (N, D)."""

    points: Tensor
    scores: Tensor
    descriptors: Tensor

    def __len__(self) -> int:
        return int(self.points.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedMatches:
    """Mutual nearest neighbours of one pair, best first.

    points0, points1: (K, 2) float32 px
    quality:          (K,) by which they are ordered
    error_px:         (K,) float64, larger of the distances to the two epipolar lines; inf without such lines
    """

    points0: Tensor
    points1: Tensor
    quality: Tensor
    error_px: Tensor

    def __len__(self) -> int:
        return int(self.points0.shape[0])


def epipolar_errors(points0: Tensor, points1: Tensor, F_0to1: Tensor) -> Tensor:
    """(N,) float64 px: larger of the distances of (N, 2) to the epipolar lines of their partners (N, 2).

    F_0to1: (3, 3) maps pixels of image 0 to lines of image 1. inf where a point has no line: at an epipole, and
    everywhere for a pose without translation, whose F is 0. Raises ShapeError.
    """
    count = check_shape("points0", points0, "N 2")["N"]
    check_shape("points1", points1, f"{count} 2")
    check_shape("F_0to1", F_0to1, "3 3")
    F = F_0to1.double()
    return torch.maximum(_distances(points0, points1, F), _distances(points1, points0, F.mT))


def check_matches(
    keypoints0: Keypoints, keypoints1: Keypoints, F_0to1: Tensor, *, rank_by: Literal["scores", "similarity"]
) -> CheckedMatches:
    """Mutual nearest neighbours by descriptor with their distance from the epipolar lines.

    rank_by: the best match has the largest sum of both keypoint scores, or the most similar descriptors
    """
    index, quality = mutual_nearest(keypoints0.descriptors, keypoints1.descriptors)
    if rank_by == "scores":
        quality = keypoints0.scores[index[:, 0]] + keypoints1.scores[index[:, 1]]
    order = quality.argsort(descending=True, stable=True)
    points0, points1 = keypoints0.points[index[order, 0]], keypoints1.points[index[order, 1]]
    return CheckedMatches(
        points0=points0,
        points1=points1,
        quality=quality[order],
        error_px=epipolar_errors(points0, points1, F_0to1),
    )


def precision(error_px: Tensor, threshold_px: float) -> float:
    """Share of errors (N,) up to the threshold; 0 if there are none."""
    return float((error_px <= threshold_px).sum()) / max(len(error_px), 1)


def chance_precision(points0: Tensor, points1: Tensor, F_0to1: Tensor, threshold_px: float) -> float:
    """Precision that matching keypoints (N, 2), (M, 2) at random has on average: the mean over all N M pairings.

    0 if an image has no keypoints. Memory: 512 M numbers at a time.
    """
    check_shape("points0", points0, "N 2")
    check_shape("points1", points1, "M 2")
    F = F_0to1.double()
    lines0 = epipolar_lines(points1.double(), F.mT)
    right = 0
    for first in range(0, len(points0), _BLOCK):
        part = points0[first : first + _BLOCK]
        near0 = _all_distances(part, lines0) <= threshold_px
        near1 = _all_distances(points1, epipolar_lines(part.double(), F)) <= threshold_px
        right += int((near0 & near1.mT).sum())
    return right / max(len(points0) * len(points1), 1)


def pose_figures(
    keypoints0: Keypoints,
    keypoints1: Keypoints,
    matches: CheckedMatches,
    F_0to1: Tensor,
    threshold_px: float,
) -> dict[str, float]:
    """What the pose says about one pair; the names are those of `TrainablePoSFeat.validation_step`."""
    points0, points1 = keypoints0.points, keypoints1.points
    return {
        "epipolar_precision": precision(matches.error_px, threshold_px),
        "chance_precision": chance_precision(points0, points1, F_0to1, threshold_px),
        "keypoints": 0.5 * (len(keypoints0) + len(keypoints1)),
        "matches": float(len(matches)),
        **{f"precision_{other:g}px": precision(matches.error_px, other) for other in OTHER_THRESHOLDS_PX},
    }


def depth_figures(
    batch: PairBatch,
    pair: int,
    matches: CheckedMatches,
    points0: Tensor,
    points1: Tensor,
    threshold_px: float,
) -> dict[str, float]:
    """What depth, where it is at hand, says about one pair; nan where no truth is known.

    matching_accuracy: share of the matches within the threshold of the true place, of those whose true place is
                       known
    repeatability:     share of the keypoints (N, 2), (M, 2), of those that the other image shows too, with a
                       keypoint of the other image within the threshold of their true place
    """
    truth, known = _warp(batch, pair, matches.points0, forward=True)
    error_px = (truth - matches.points1).norm(dim=1)[known]
    accuracy = precision(error_px, threshold_px) if len(error_px) else math.nan
    shown, repeated = 0, 0
    for points, others, forward in ((points0, points1, True), (points1, points0, False)):
        warped, known = _warp(batch, pair, points, forward=forward)
        shown += int(known.sum())
        if len(others):
            nearest_px = torch.cdist(warped[known].double(), others.double()).amin(dim=1)
            repeated += int((nearest_px <= threshold_px).sum())
    return {"matching_accuracy": accuracy, "repeatability": repeated / shown if shown else math.nan}


def fundamental_matrices(T_0to1: Tensor, K0: Tensor, K1: Tensor) -> Tensor:
    """F (B, 3, 3) float64 from poses and intrinsics of any precision: its entries span six decades."""
    return fundamental_from_pose(T_0to1.double(), K0.double(), K1.double())


def _warp(batch: PairBatch, pair: int, points: Tensor, *, forward: bool) -> tuple[Tensor, Tensor]:
    """True places (N, 2) of points in the other image of a pair, and where they are known, (N,) bool."""
    maps = (batch.depth0[pair], batch.depth1[pair], batch.K0[pair], batch.K1[pair], batch.T_0to1[pair])
    if not forward:
        maps = (maps[1], maps[0], maps[3], maps[2], invert_pose(maps[4]))
    return warp_points_by_depth(points, *maps)


def _distances(points: Tensor, others: Tensor, F: Tensor) -> Tensor:
    """(N,) distance of each of the others (N, 2) to the epipolar line of its own point (N, 2); inf without a line."""
    lines = epipolar_lines(points.double(), F)
    return torch.where(lines.any(dim=1), point_line_distance(others.double(), lines), torch.inf)


def _all_distances(points: Tensor, lines: Tensor) -> Tensor:
    """(N, M) distance of each point (N, 2) to each line (M, 3) of unit normal, or 0: inf."""
    signed = points.double() @ lines[:, :2].mT + lines[:, 2]
    return torch.where(lines.any(dim=1), signed.abs(), torch.inf)
