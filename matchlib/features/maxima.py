"""Local maxima of score maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_RECOVERY_ROUNDS = 2


def local_maxima(scores_HW: Tensor, radius: int) -> Tensor:
    """(H, W) bool: the best of the (2 radius + 1)^2 window around it; then twice, the best of what none covers.

    The rounds bring back maxima that lie beside a pixel that was itself suppressed. Neighbours that are equal maxima
    all survive. Scores are at least 0. Source: `simple_nms` of SuperGlue, which ALIKE uses too.
    """

    def window_maximum(values_HW: Tensor) -> Tensor:
        return F.max_pool2d(values_HW[None], 2 * radius + 1, stride=1, padding=radius)[0]

    survives_HW = scores_HW == window_maximum(scores_HW)
    for _ in range(_RECOVERY_ROUNDS):
        covered_HW = window_maximum(survives_HW.to(scores_HW.dtype)) > 0
        rest_HW = torch.where(covered_HW, 0.0, scores_HW)
        survives_HW |= (rest_HW == window_maximum(rest_HW)) & ~covered_HW
    return survives_HW
