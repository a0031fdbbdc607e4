"""Figures of validation: how well detections agree with labels, with each other, and descriptors with the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matchlib.errors import ShapeError, check_shape
from matchlib.ops.nearest import mutual_nearest
from matchlib.photo_pairs.batch import HomographyBatch


@dataclass(frozen=True, slots=True)
class Detections:
    """Points (N, 2) = (x, y) in pixels and scores (N,) of one view, best first."""

    points: Tensor
    scores: Tensor

    def chosen(self, keep: Tensor) -> Detections:
        """Those where `keep`, (N,) bool, holds, in the same order."""
        return Detections(self.points[keep], self.scores[keep])

    def best(self, count: int) -> Detections:
        """The first `count`."""
        return Detections(self.points[:count], self.scores[:count])


@dataclass(frozen=True, slots=True)
class CheckedMatches:
    """Matched points (K, 2), (K, 2) of two views, and how far each errs: (K,) pixels of view 1, nan where the
    truth is not known."""

    points0: Tensor
    points1: Tensor
    error_px: Tensor


def average_precision(
    detections: Sequence[Detections], labels: Sequence[Tensor], *, threshold_px: float
) -> float:
    """Area under the curve of precision over recall of all detections of a batch, 0 to 1.

    detections: one per picture; labels: true points (M, 2) per picture. A detection is true if it is the best
    that claims a label within `threshold_px`, see `true_detections`. Precision is the largest at that recall or
    a higher one (Everingham et al., the PASCAL VOC challenge 2010). nan if no picture has a label.
    """
    if len(detections) != len(labels):
        raise ShapeError(f"labels: expected {len(detections)}, one per picture, got {len(labels)}")
    count = sum(len(points) for points in labels)
    if count == 0:
        return math.nan
    scores = torch.cat([found.scores.cpu() for found in detections])
    is_true = torch.cat(
        [
            true_detections(found.points, points, threshold_px=threshold_px)
            for found, points in zip(detections, labels, strict=True)
        ]
    )
    ordered = is_true[scores.argsort(descending=True, stable=True)].double()
    precision = ordered.cumsum(0) / torch.arange(1, len(ordered) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(precision) else precision
    return float((envelope * ordered).sum() / count)


def picture_precision(
    detections: Detections, labels: Tensor, *, threshold_px: float, min_score: float
) -> float:
    """Average precision of one picture, 0 to 1, so that a mean over pictures does not depend on batches.

    A picture without labels (an ellipse, noise) counts 1 if nothing in it scores above `min_score`, else 0.
    """
    if len(labels) == 0:
        return float(not bool((detections.scores > min_score).any()))
    return average_precision([detections], [labels], threshold_px=threshold_px)


def true_detections(points: Tensor, labels: Tensor, *, threshold_px: float) -> Tensor:
    """(N,) bool on the CPU: which detections (N, 2), best first, are true.

    One after the other, each claims the nearest label (M, 2) that lies within `threshold_px` and is still free.
    """
    check_shape("points", points, "N 2")
    check_shape("labels", labels, "M 2")
    distance = _distances(points.detach(), labels).cpu()
    distance[distance > threshold_px] = torch.inf
    is_true = torch.zeros(len(points), dtype=torch.bool)
    if len(labels) == 0:
        return is_true
    for index in distance.isfinite().any(dim=1).nonzero()[:, 0].tolist():
        nearest = int(distance[index].argmin())
        if torch.isfinite(distance[index, nearest]):
            is_true[index] = True
            distance[:, nearest] = torch.inf
    return is_true


def repeatability(warped0: Tensor, points1: Tensor, *, threshold_px: float) -> float:
    """Share of the points of both views that have one of the other view within the threshold, 0 to 1.

    warped0: (N, 2) points of view 0 where they lie in view 1; points1: (M, 2). Both only where both views show
    the same. 0 if there are no points at all. Source: DeTone et al. 2018, appendix A.
    """
    if len(warped0) + len(points1) == 0:
        return 0.0
    near = _distances(warped0, points1) <= threshold_px
    repeated = near.any(dim=1).sum() + near.any(dim=0).sum()
    return float(repeated) / (len(warped0) + len(points1))


def check_matches(
    pair: HomographyBatch, points0: Tensor, points1: Tensor, descriptors0: Tensor, descriptors1: Tensor
) -> CheckedMatches:
    """Mutual nearest neighbours among unit descriptors (N, D), (M, D) at points of one pair of views."""
    index, _ = mutual_nearest(descriptors0, descriptors1)
    matched0, matched1 = points0[index[:, 0]], points1[index[:, 1]]
    truth, known = pair.warp(matched0[None])
    error_px = torch.where(known[0], (truth[0] - matched1).norm(dim=1), torch.nan)
    return CheckedMatches(matched0, matched1, error_px)


def matching_accuracy(matches: CheckedMatches, *, threshold_px: float) -> float:
    """Share of the matches with known truth that err by at most the threshold; 0 if there are none."""
    known = matches.error_px[matches.error_px.isfinite()]
    return float((known <= threshold_px).sum()) / max(len(known), 1)


def one_pair(batch: HomographyBatch, index: int) -> HomographyBatch:
    """One pair of a batch, as a batch."""
    part = slice(index, index + 1)
    return HomographyBatch(
        image0=batch.image0[part],
        image1=batch.image1[part],
        H_0to1=batch.H_0to1[part],
        valid0=batch.valid0[part],
        valid1=batch.valid1[part],
        seeds=batch.seeds[part],
        names=batch.names[part],
        keypoints0=None if batch.keypoints0 is None else batch.keypoints0[part],
        keypoints1=None if batch.keypoints1 is None else batch.keypoints1[part],
    )


def swapped(batch: HomographyBatch) -> HomographyBatch:
    """The same pairs with the views exchanged."""
    inverse = torch.linalg.inv(batch.H_0to1)
    return replace(
        batch,
        image0=batch.image1,
        image1=batch.image0,
        H_0to1=inverse / inverse[:, 2:, 2:],
        valid0=batch.valid1,
        valid1=batch.valid0,
        keypoints0=batch.keypoints1,
        keypoints1=batch.keypoints0,
    )


def _distances(points0: Tensor, points1: Tensor) -> Tensor:
    """(N, M) pixels, float64: a distance of exactly the threshold counts as within it."""
    difference = points0.double()[:, None] - points1.double()[None]
    distance: Tensor = difference.square().sum(dim=2).sqrt()
    return distance
