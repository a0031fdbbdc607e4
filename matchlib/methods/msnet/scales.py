"""Scale maps: true ones from homographies, and predicted ones from single images.

The scale at a point of an image tells how much larger the image shows the spot than the other image of the
pair does; above 1, the coarse descriptor of this image resembles the fine one of the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.geometry.homography import local_scale
from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.msnet.network import DESCRIPTOR_STRIDE, FEATURE_CHANNELS

_SLOPE_PER_OCTAVE = (
    4.0  # the sigmoid then rises by 1 per octave at its centre, as fast as the oracle's weight
)


class ScaleHead(nn.Module):
    """Features (B, 128, h, w) to a scale in octaves (B, h, w), up to an unknown constant of the method.

    differs from the public research variants V9 to V12, which predict the relative scale from both images of
    a pair (all of V9's cells are correlated with all others): from one image alone, the prediction serves
    every benchmark that extracts images one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(FEATURE_CHANNELS, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3, padding=2, dilation=2),
            nn.ReLU(),
        )
        self.output = nn.Conv2d(32, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        octaves: Tensor = self.output(self.layers(features))
        return octaves[:, 0]


def coarse_weight(octaves: Tensor) -> Tensor:
    """Weight of the coarse descriptor in [0, 1] for a predicted scale in octaves, of any shape.

    A sigmoid: from fine to coarse within about an octave, 1/2 at 0.
    """
    return torch.sigmoid(_SLOPE_PER_OCTAVE * octaves)


def covariance_loss(
    octaves0_N: Tensor, octaves1_N: Tensor, true_scale_0to1_N: Tensor, *, transition_octaves: float
) -> Tensor:
    """Mean smooth L1 of (octaves1 - octaves0) - log2(true scale) over N correspondences, a scalar.

    octaves0_N, octaves1_N: predictions at a point of view 0 and at its partner in view 1
    true_scale_0to1_N:      `local_scale` of H_0to1 at the points of view 0, above 0
    Square below the transition, linear above: |e| - transition/2. Only the difference is supervised; a
    constant added to all predictions changes nothing. N must be above 0.
    """
    check_shape("octaves1", octaves1_N, str(len(octaves0_N)))
    target_N = torch.log2(true_scale_0to1_N).to(octaves0_N.dtype)
    return F.smooth_l1_loss(octaves1_N - octaves0_N, target_N, beta=transition_octaves)


def true_scale_at_cells(H_to_other_B33: Tensor, cells: tuple[int, int]) -> Tensor:
    """The true scale at all cells (h, w) of the maps of B images, (B, h, w) float32, from their homographies.

    1 / sqrt|det J| of the map to the other image. 1 on the horizon, where it is 0 or not
    finite.
    """
    height, width = cells
    grid = pixel_grid(height, width, device=H_to_other_B33.device).to(H_to_other_B33.dtype)
    points = (grid * DESCRIPTOR_STRIDE).expand(len(H_to_other_B33), -1, 2)
    scale = 1.0 / local_scale(H_to_other_B33, points)
    usable = scale.isfinite() & (scale > 0)
    return torch.where(usable, scale, 1.0).float().reshape(-1, height, width)
