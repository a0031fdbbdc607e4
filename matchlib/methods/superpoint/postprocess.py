"""From detector logits to keypoints: probabilities per pixel, non-maximum suppression, selection.

The three suppressions are those of the published programs (`DetectionConfig.nms`). All of them only ever drop
points: a survivor keeps its score.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.features.maxima import local_maxima
from matchlib.methods.superpoint.config import DetectionConfig, Softmax
from matchlib.methods.superpoint.network import CELL, DETECTOR_CHANNELS

_LEGACY_EPSILON = 1e-5
_CENTROID_RADIUS = 2

Stencil = npt.NDArray[np.bool_]


def heatmap(logits: Tensor, *, softmax: Softmax = "exact") -> Tensor:
    """Probability that each pixel is an interest point: (B, 65, h, w) logits to (B, 8 h, 8 w) float32.

    Softmax over the channels, without the last ("no point"); channel c of cell (i, j) goes to row 8 i + c //
    8, column 8 j + c % 8. "legacy_epsilon" is exp(l) / (sum exp(l) + 1e-5), written so that it cannot
    overflow. Raises ShapeError.
    """
    check_shape("logits", logits, f"B {DETECTOR_CHANNELS} h w")
    logits = logits.float()
    if softmax == "exact":
        probability = logits.softmax(dim=1)
    else:
        largest = logits.amax(dim=1, keepdim=True)
        shares = (logits - largest).exp()
        probability = shares / (shares.sum(dim=1, keepdim=True) + _LEGACY_EPSILON * (-largest).exp())
    return F.pixel_shuffle(probability[:, :-1], CELL)[:, 0]


def select_keypoints(heat_HW: Tensor, config: DetectionConfig) -> tuple[Tensor, Tensor]:
    """The keypoints of a heat map, best first: (N, 2) float32 (x, y) and scores (N,) float32; N may be 0.

    Suppression, threshold, border, the best `max_keypoints`, refinement. Equal scores are ordered by row,
    then column. Raises ShapeError.
    """
    check_shape("heat", heat_HW, "H W")
    heat_HW = heat_HW.detach().float()
    height, width = heat_HW.shape
    keep_HW = suppress(heat_HW, config) & (heat_HW > config.threshold)
    inside_HW = torch.zeros_like(keep_HW)
    border = config.border
    inside_HW[border : max(border, height - border), border : max(border, width - border)] = True
    rows_N, columns_N = (keep_HW & inside_HW).nonzero(as_tuple=True)
    scores_N, order_N = heat_HW[rows_N, columns_N].sort(descending=True, stable=True)
    best_N = order_N[: config.max_keypoints]
    points_N2 = torch.stack([columns_N[best_N], rows_N[best_N]], dim=1).float()
    if config.refine == "centroid":
        points_N2 = centroids(heat_HW, points_N2)
    return points_N2, scores_N[: config.max_keypoints]


def suppress(heat_HW: Tensor, config: DetectionConfig) -> Tensor:
    """Which pixels survive the suppression that `config` names, (H, W) bool.

    The greedy ones look only at pixels above `config.threshold` (the others are never kept, and could
    suppress nothing that is).
    """
    if config.nms_radius == 0:
        return torch.ones_like(heat_HW, dtype=torch.bool)
    methods: dict[str, Callable[[], Tensor]] = {
        "max_pool": lambda: local_maxima(heat_HW, config.nms_radius),
        "greedy": lambda: suppress_greedily(heat_HW, square_stencil(config.nms_radius), config.threshold),
        "box_iou": lambda: suppress_greedily(
            heat_HW, box_stencil(config.nms_radius, config.nms_iou), config.threshold
        ),
    }
    return methods[config.nms]()


def suppress_greedily(heat_HW: Tensor, stencil: Stencil, threshold: float) -> Tensor:
    """Survivors (H, W) bool among the pixels above the threshold: best first, each removes what lies under
    `stencil` centred on it.

    stencil: (2 r + 1, 2 r + 1) bool, point-symmetric. Equal scores go by row, then column. Runs on the CPU
    wherever the map is: each decision depends on the ones before.
    """
    radius = stencil.shape[0] // 2
    heat = heat_HW.cpu().numpy()
    rows_N, columns_N = np.nonzero(heat > threshold)
    order_N = np.argsort(-heat[rows_N, columns_N], kind="stable")
    height, width = heat.shape
    # Padded, so that the stencil needs no clipping at the border.
    free = np.ones((height + 2 * radius, width + 2 * radius), dtype=np.bool_)
    survives = np.zeros(heat.shape, dtype=np.bool_)
    beyond, size = ~stencil, 2 * radius + 1
    for row, column in zip(rows_N[order_N].tolist(), columns_N[order_N].tolist(), strict=True):
        if free[row + radius, column + radius]:
            survives[row, column] = True
            free[row : row + size, column : column + size] &= beyond
    return torch.from_numpy(survives).to(heat_HW.device)


def square_stencil(radius: int) -> Stencil:
    """The whole square: Magic Leap's `nms_fast`."""
    return np.ones((2 * radius + 1, 2 * radius + 1), dtype=np.bool_)


def box_stencil(side: int, iou: float) -> Stencil:
    """Offsets at which two boxes of `side` overlap by more than `iou` (intersection over union).

    So suppression under this stencil equals suppression by boxes centred on the points, as rpautrat does with
    TensorFlow: offset (dx, dy) has the intersection (side - |dx|)(side - |dy|).
    """
    reach = side - 1
    lengths = side - np.abs(np.arange(-reach, reach + 1, dtype=np.float64))
    intersection = np.outer(lengths, lengths)
    stencil: Stencil = intersection > iou * (2 * side**2 - intersection)
    return stencil


def centroids(heat_HW: Tensor, points_N2: Tensor) -> Tensor:
    """Centroid of the heat map in the 5 x 5 pixels around each whole-pixel point, (N, 2) float32.

    Pixels outside the map weigh nothing; a window without any weight leaves its point as it is.
    """
    r = _CENTROID_RADIUS
    offsets = torch.arange(-r, r + 1, device=heat_HW.device)
    dy_K, dx_K = (axis.flatten() for axis in torch.meshgrid(offsets, offsets, indexing="ij"))
    columns_N, rows_N = points_N2.long().unbind(dim=1)
    padded = F.pad(heat_HW, (r, r, r, r))
    weight_NK = padded[rows_N[:, None] + dy_K + r, columns_N[:, None] + dx_K + r]
    steps_N2 = weight_NK @ torch.stack([dx_K, dy_K], dim=1).to(weight_NK)
    total_N1 = weight_NK.sum(dim=1, keepdim=True)
    return points_N2 + torch.where(total_N1 > 0, steps_N2 / total_N1, 0.0)
