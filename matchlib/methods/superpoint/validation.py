"""What validation asks of one picture or of one pair of views."""

from __future__ import annotations

from torch import Tensor

from matchlib.methods.superpoint.config import DescriptorConfig, DetectionConfig
from matchlib.methods.superpoint.metrics import (
    CheckedMatches,
    Detections,
    check_matches,
    one_pair,
    repeatability,
    swapped,
)
from matchlib.methods.superpoint.postprocess import select_keypoints
from matchlib.methods.superpoint.sampling import sample_descriptors
from matchlib.methods.superpoint.training_config import ValidationConfig
from matchlib.photo_pairs.batch import HomographyBatch


def detect(heat_HW: Tensor, valid_HW: Tensor, settings: ValidationConfig) -> Detections:
    """All detections of a heat map at pixels that show the picture, best first."""
    detection = DetectionConfig(
        threshold=settings.min_score,
        nms="max_pool",
        nms_radius=settings.nms_radius,
        border=settings.border,
        max_keypoints=heat_HW.numel(),
    )
    points, scores = select_keypoints(heat_HW, detection)
    return Detections(points, scores).chosen(_at(valid_HW, points))


def askable_labels(points_N2: Tensor, valid_HW: Tensor, settings: ValidationConfig) -> Tensor:
    """The labels that `detect` could find: at pixels that show the picture, off the border."""
    height, width = valid_HW.shape
    x, y = points_N2.round().unbind(dim=1)
    border = settings.border
    off_border = (x >= border) & (y >= border) & (x < width - border) & (y < height - border)
    inner = points_N2[off_border & (x >= 0) & (y >= 0) & (x < width) & (y < height)]
    return inner[_at(valid_HW, inner)]


def pair_repeatability(
    batch: HomographyBatch, pair: int, found: tuple[Detections, ...], settings: ValidationConfig
) -> float:
    """Repeatability of one pair: of the detections whose place both views show, the `max_points` best of each."""
    views = one_pair(batch, pair)
    found0, found1 = found
    warped0, known0 = views.warp(found0.points[None])
    _, known1 = swapped(views).warp(found1.points[None])
    count = settings.max_points
    return repeatability(
        warped0[0][known0[0]][:count], found1.points[known1[0]][:count], threshold_px=settings.threshold_px
    )


def match_views(
    batch: HomographyBatch,
    pair: int,
    points: tuple[Tensor, Tensor],
    maps: tuple[Tensor, Tensor],
    config: DescriptorConfig,
) -> CheckedMatches:
    """Match points (N, 2), (M, 2) of the views of one pair by their descriptors, read from maps (D, h, w)."""
    descriptors0, descriptors1 = (
        sample_descriptors(read, places, config) for read, places in zip(maps, points, strict=True)
    )
    return check_matches(one_pair(batch, pair), *points, descriptors0, descriptors1)


def _at(valid_HW: Tensor, points_N2: Tensor) -> Tensor:
    """(N,) bool: the mask at points inside the picture."""
    column, row = points_N2.round().long().unbind(dim=1)
    return valid_HW[row, column]
