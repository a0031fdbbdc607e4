"""True correspondences of a training pair, from depth and pose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matchlib.datasets.batch import PairBatch
from matchlib.geometry.depth_warp import warp_points_by_depth
from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.aslfeat.config import LossConfig
from matchlib.randomness import torch_generator_for


@dataclass(frozen=True, slots=True)
class Correspondences:
    """True correspondences of one pair: (N, 2) float32 positions (x, y) in pixels of the training images."""

    points0: Tensor
    points1: Tensor

    def __len__(self) -> int:
        return int(self.points0.shape[0])


def warp_pair(points0_N2: Tensor, batch: PairBatch, index: int, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Where points of image 0 of pair `index` lie in image 1, (N, 2), and whether that is known, (N,) bool.

    Known: all neighbouring depths are above 0 in both images, the point falls into image 1, and the depths
    agree as `config.depth_check` asks.
    """
    absolute = config.depth_check == "absolute"
    return warp_points_by_depth(
        points0_N2,
        batch.depth0[index],
        batch.depth1[index],
        batch.K0[index],
        batch.K1[index],
        batch.T_0to1[index],
        relative_threshold=config.depth_threshold,
        absolute_threshold=config.depth_threshold if absolute else None,
    )


def draw_correspondences(batch: PairBatch, index: int, config: LossConfig) -> Correspondences:
    """At most `config.correspondences` random true correspondences of pair `index`, integer pixels in image
    0.

    The draw depends on `batch.seeds[index]` alone. May return fewer, or none.
    """
    height, width = batch.depth0.shape[1:]
    device = batch.depth0.device
    pixels_N2 = pixel_grid(height, width, device=device)
    points1_N2, valid_N = warp_pair(pixels_N2, batch, index, config)
    survivors = valid_N.nonzero()[:, 0]
    generator = torch_generator_for(batch.seeds[index], "aslfeat", "correspondences")
    drawn = torch.randperm(len(survivors), generator=generator)[: config.correspondences].to(device)
    chosen = survivors[drawn]
    return Correspondences(pixels_N2[chosen], points1_N2[chosen])
