"""From a score map to keypoints.

Source: the public ASLFeat implementation (order, filters and refinement as described in the folder's README).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.methods.aslfeat.config import InferenceConfig

_EDGE_DILATION = 3
_LARGEST_STEP = 0.5


def select_keypoints(score_HW: Tensor, config: InferenceConfig) -> tuple[Tensor, Tensor]:
    """The keypoints of a score map, best first: positions (N, 2) float32 (x, y), scores (N,) float32; N may
    be 0.

    Above the threshold, largest in their window, off the border, off edges; the best `max_keypoints`, moved
    by at most half a pixel in x and y if `config.subpixel`. Equal scores are ordered by row, then column.
    """
    check_shape("score", score_HW, "H W")
    score_HW = score_HW.float()
    keep_HW = keypoint_mask(score_HW, config)
    rows_N, columns_N = keep_HW.nonzero(as_tuple=True)
    scores_N, order_N = score_HW[rows_N, columns_N].sort(descending=True, stable=True)
    order_N = order_N[: config.max_keypoints]
    rows_N, columns_N = rows_N[order_N], columns_N[order_N]
    points_N2 = torch.stack([columns_N, rows_N], dim=1).float()
    if config.subpixel and len(points_N2):
        points_N2 = points_N2 + newton_step(score_HW, rows_N, columns_N)
    return points_N2, scores_N[: config.max_keypoints]


def keypoint_mask(score_HW: Tensor, config: InferenceConfig) -> Tensor:
    """Which pixels are keypoints, (H, W) bool. A map smaller than twice the border has none."""
    window, border = config.nms_size, config.border
    largest_HW = F.max_pool2d(score_HW[None], window, stride=1, padding=window // 2)[0]
    keep_HW = (score_HW > config.score_threshold) & (score_HW == largest_HW)
    inside_HW = torch.zeros_like(keep_HW)
    inside_HW[
        border : max(border, score_HW.shape[0] - border), border : max(border, score_HW.shape[1] - border)
    ] = True
    keep_HW &= inside_HW
    if config.edge_threshold > 0:
        keep_HW &= ~edge_mask(score_HW, config.edge_threshold)
    return keep_HW


def edge_mask(score_HW: Tensor, ratio: float) -> Tensor:
    """Where the score is a ridge or a saddle: principal curvatures of different sign or of a ratio above
    `ratio`.

    Second differences over 3 pixels, zero outside the map: an edge unless det > 0 and tr^2/det <=
    (ratio+1)^2/ratio (Lowe 2004, section 4.1; 12.1 for ratio 10).
    """
    d = _EDGE_DILATION
    padded = F.pad(score_HW, (d, d, d, d))
    height, width = score_HW.shape

    def at(dy: int, dx: int) -> Tensor:
        return padded[d + dy * d : d + dy * d + height, d + dx * d : d + dx * d + width]

    yy = at(1, 0) - 2 * score_HW + at(-1, 0)
    xx = at(0, 1) - 2 * score_HW + at(0, -1)
    xy = 0.25 * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))
    determinant, trace = yy * xx - xy * xy, yy + xx
    return ~((determinant > 0) & (trace * trace * ratio <= determinant * (ratio + 1) ** 2))


def newton_step(score_HW: Tensor, rows_N: Tensor, columns_N: Tensor) -> Tensor:
    """One Newton step -H^-1 g towards the extremum near each pixel, (N, 2) as (dx, dy), each within +-0.5.

    First and second central differences of the score. Pixels must not lie on the border. No step where the
    Hessian is singular.
    """

    def at(dy: int, dx: int) -> Tensor:
        return score_HW[rows_N + dy, columns_N + dx].double()

    here = at(0, 0)
    gy, gx = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    yy, xx = at(1, 0) - 2 * here + at(-1, 0), at(0, 1) - 2 * here + at(0, -1)
    xy = 0.25 * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))
    determinant = yy * xx - xy * xy
    step_N2 = torch.stack([xy * gy - yy * gx, xy * gx - xx * gy], dim=1) / determinant[:, None]
    step_N2 = torch.where(determinant[:, None] != 0, step_N2, 0.0)
    return step_N2.clamp(-_LARGEST_STEP, _LARGEST_STEP).float()
