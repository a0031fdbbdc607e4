"""Keypoints of a score map: local maxima, then the soft maximum around each (the paper's DKD)."""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.features.maxima import local_maxima
from matchlib.methods.alike.config import AlikeConfig

_TEMPERATURE = 0.1


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


def _soft_offsets(scores_HW: Tensor, rows: Tensor, columns: Tensor, radius: int) -> Tensor:
    """Expected position (N, 2) in the square around each keypoint under softmax(score / temperature)."""
    step = torch.arange(-radius, radius + 1, device=scores_HW.device)
    dy, dx = (grid.flatten() for grid in torch.meshgrid(step, step, indexing="ij"))
    window_NK = scores_HW[rows[:, None] + dy, columns[:, None] + dx]
    weight_NK = (window_NK / _TEMPERATURE).softmax(dim=1)
    return weight_NK @ torch.stack([dx, dy], dim=1).to(scores_HW.dtype)
