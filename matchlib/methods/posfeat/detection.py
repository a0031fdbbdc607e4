"""From a score map to keypoints: suppression, threshold, refinement to parts of a pixel, the best ones.

Source: the published extraction of PoSFeat. Differs where that has a fault: fewer keypoints come back when fewer
survive (`min_keypoints` restores the release), and a flat neighbourhood is not divided by its sum of zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.methods.posfeat.config import InferenceConfig

BORDER = 1  # pixels at the border are no keypoints: their 3 x 3 neighbourhood is not in the map


def select_keypoints(scores_HW: Tensor, config: InferenceConfig) -> tuple[Tensor, Tensor]:
    """The keypoints of a score map, best first.

    scores_HW: (H, W), each >= 0
    Returns positions (N, 2) float32 (x, y) in pixels of the map and the scores (N,) float32 of the peaks. N may be
    0, as it is for maps without a pixel inside the border. Equal scores are ordered by row, then column. Peaks are
    more than `nms_radius` apart in x or in y, and a refined position lies within one pixel of its peak in each.
    What `min_keypoints` adds has score 0. Raises ShapeError.
    """
    check_shape("scores", scores_HW, "H W")
    scores_HW = scores_HW.detach().float()
    indices_N, scores_N = _best_indices(scores_HW, config)
    rows_N = torch.div(indices_N, scores_HW.shape[1], rounding_mode="floor")
    columns_N = indices_N - rows_N * scores_HW.shape[1]
    points_N2 = torch.stack([columns_N, rows_N], dim=1).float()
    if config.subpixel:
        points_N2 = points_N2 + centroid_offsets(scores_HW, rows_N, columns_N)
    return points_N2, scores_N


def _best_indices(scores_HW: Tensor, config: InferenceConfig) -> tuple[Tensor, Tensor]:
    """Flat indices (N,) int64 of the pixels that are returned, best first, and their scores (N,)."""
    keep_HW = is_peak(scores_HW, config.nms_radius)
    keep_HW &= scores_HW > config.score_threshold * _reference(scores_HW, config.score_reference)
    peaks_N = keep_HW.flatten().nonzero()[:, 0]
    scores_N, order_N = scores_HW.flatten()[peaks_N].sort(descending=True, stable=True)
    indices_N = peaks_N[order_N]
    missing = min(config.min_keypoints, config.max_keypoints) - len(indices_N)
    if missing > 0:
        # Released: the top-k of scores times mask, where all that was masked out ties at zero. Which of those come
        # first is arbitrary there; here it is the reading order.
        others_M = (_inside(scores_HW) & ~keep_HW).flatten().nonzero()[:missing, 0]
        indices_N = torch.cat([indices_N, others_M])
        scores_N = torch.cat([scores_N, scores_N.new_zeros(len(others_M))])
    return indices_N[: config.max_keypoints], scores_N[: config.max_keypoints]


def is_peak(scores_HW: Tensor, radius: int) -> Tensor:
    """(H, W) bool: the pixel is the largest of the (2 radius + 1)^2 window around it, and the first such in it.

    Pixels at the border compete with nothing outside, and are themselves not competitors (see `BORDER`). Of equal
    pixels within one window the first in reading order wins, so no two peaks lie within `radius` of each other;
    the release takes the first in its window likewise.
    """
    peak_HW = torch.zeros_like(scores_HW, dtype=torch.bool)
    if min(scores_HW.shape) <= 2 * BORDER:
        return peak_HW
    inner_hw = scores_HW[BORDER:-BORDER, BORDER:-BORDER].contiguous()
    # max_pool2d keeps the first of equal values. Its padding is -inf; the reflection of the release repeats values
    # that are in the window anyway.
    _, best_hw = F.max_pool2d(inner_hw[None], 2 * radius + 1, stride=1, padding=radius, return_indices=True)
    own_hw = torch.arange(inner_hw.numel(), device=inner_hw.device).view_as(inner_hw)
    peak_HW[BORDER:-BORDER, BORDER:-BORDER] = best_hw[0] == own_hw
    return peak_HW


def centroid_offsets(scores_HW: Tensor, rows_N: Tensor, columns_N: Tensor) -> Tensor:
    """Centroid of the scores of the 3 x 3 neighbourhood less its centre: (N, 2) float32 (dx, dy), each in [-1, 1].

    sum S p / sum S. Pixels must not lie on the border. Zero where all nine scores are.
    """
    steps_9 = torch.arange(9, device=scores_HW.device)
    dy_9, dx_9 = torch.div(steps_9, 3, rounding_mode="floor") - 1, steps_9 % 3 - 1
    around_N9 = scores_HW[rows_N[:, None] + dy_9, columns_N[:, None] + dx_9]
    weights_N9 = around_N9 / around_N9.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    offsets_92 = torch.stack([dx_9, dy_9], dim=1).to(weights_N9.dtype)
    # A sum and not a matrix product, whose precision is a setting of the device.
    return (weights_N9[:, :, None] * offsets_92).sum(dim=1)


def _inside(scores_HW: Tensor) -> Tensor:
    inside_HW = torch.zeros_like(scores_HW, dtype=torch.bool)
    inside_HW[BORDER:-BORDER, BORDER:-BORDER] = True
    return inside_HW


def _reference(scores_HW: Tensor, kind: str) -> Tensor:
    """What the threshold is a multiple of: 1, or the largest or mean score inside the border."""
    inner_hw = scores_HW[BORDER:-BORDER, BORDER:-BORDER]
    if kind == "abs" or not inner_hw.numel():
        return scores_HW.new_ones(())
    return inner_hw.max() if kind == "max" else inner_hw.mean()
