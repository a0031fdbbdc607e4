"""Keypoints of a score map: local maxima, then the soft maximum around each (the paper's DKD)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.methods.alike.config import AlikeConfig

_TEMPERATURE = 0.1
_RECOVERY_ROUNDS = 2


def select_keypoints(scores_HW: Tensor, config: AlikeConfig) -> Tensor:
    """Keypoints (N, 2) float32 (x, y) of a score map (H, W), at most `max_keypoints`, best first.

    Their squares lie within the image: the border of `nms_radius` pixels has none.
    """
    radius = config.nms_radius
    is_keypoint = local_maxima(scores_HW, radius) & (scores_HW > config.score_threshold)
    is_inside = torch.zeros_like(is_keypoint)
    # One more at the upper left, as the published code leaves out; nothing but its results asks for it.
    is_inside[radius + 1 : -radius, radius + 1 : -radius] = True
    rows, columns = torch.nonzero(is_keypoint & is_inside, as_tuple=True)
    order = torch.argsort(scores_HW[rows, columns], descending=True, stable=True)[: config.max_keypoints]
    rows, columns = rows[order], columns[order]
    points = torch.stack([columns, rows], dim=1).to(scores_HW.dtype)
    return points + _soft_offsets(scores_HW, rows, columns, radius) if config.sub_pixel else points


def local_maxima(scores_HW: Tensor, radius: int) -> Tensor:
    """(H, W) bool: the best of the square around it; then twice, the best of what the found ones leave over.

    The rounds bring back maxima that lie beside a pixel that was itself suppressed (after SuperGlue's and ALIKE's
    `simple_nms`).
    """
    is_best = scores_HW == _windowed_max(scores_HW, radius)
    for _ in range(_RECOVERY_ROUNDS):
        is_taken = _windowed_max(is_best.to(scores_HW.dtype), radius) > 0
        left_over = scores_HW.masked_fill(is_taken, 0.0)
        is_best = is_best | ((left_over == _windowed_max(left_over, radius)) & ~is_taken)
    return is_best


def _windowed_max(values_HW: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(values_HW[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]


def _soft_offsets(scores_HW: Tensor, rows: Tensor, columns: Tensor, radius: int) -> Tensor:
    """Expected position (N, 2) in the square around each keypoint under softmax(score / temperature)."""
    step = torch.arange(-radius, radius + 1, device=scores_HW.device)
    dy, dx = (grid.flatten() for grid in torch.meshgrid(step, step, indexing="ij"))
    window_NK = scores_HW[rows[:, None] + dy, columns[:, None] + dx]
    weight_NK = (window_NK / _TEMPERATURE).softmax(dim=1)
    return weight_NK @ torch.stack([dx, dy], dim=1).to(scores_HW.dtype)
