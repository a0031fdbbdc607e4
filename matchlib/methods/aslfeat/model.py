"""ASLFeat as a whole: images to descriptor maps and score maps, in training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.geometry.sampling import sample_bilinear
from matchlib.methods.aslfeat.config import ASLFeatConfig
from matchlib.methods.aslfeat.detection import RunningMaxima, level_scores, score_map, smallest_image
from matchlib.methods.aslfeat.network import DESCRIPTOR_STRIDE, ASLFeatNetwork


@dataclass(frozen=True, slots=True)
class DenseFeatures:
    """Descriptors and scores of B images of height H and width W, before keypoints are chosen.

    descriptor_map: (B, D, H/4, W/4), not yet of unit length; cell o stands at pixel 4 o
    level_scores:   the score of each level at its own size, (B, H_l, W_l) float32
    level_weights:  what the levels count
    image_size:     (H, W)
    """

    descriptor_map: Tensor
    level_scores: tuple[Tensor, ...]
    level_weights: tuple[float, ...]
    image_size: tuple[int, int]

    def score_map(self) -> Tensor:
        """Scores at image size, (B, H, W)."""
        return score_map(self.level_scores, self.level_weights, self.image_size)

    def scores_at(self, index: int, points_N2: Tensor) -> Tensor:
        """Scores of image `index` at pixel positions (N, 2), (N,).

        Reads each level at its own size: the same values as the map of `score_map`, whose interpolation is
        linear between its pixels wherever a level's is (sizes divisible by 4), without making it.
        """
        total = points_N2.new_zeros(len(points_N2))
        for scores, weight in zip(self.level_scores, self.level_weights, strict=True):
            height, width = scores.shape[1:]
            factor = points_N2.new_tensor([width / self.image_size[1], height / self.image_size[0]])
            total = total + weight * sample_bilinear(scores[index][None], points_N2 * factor)[0]
        return total / sum(self.level_weights)

    def descriptors_at(self, index: int, points_N2: Tensor) -> Tensor:
        """Descriptors of image `index` at pixel positions (N, 2): (N, D) float32 of unit length."""
        sampled_DN = sample_bilinear(self.descriptor_map[index].float(), points_N2 / DESCRIPTOR_STRIDE)
        return F.normalize(sampled_DN.T, dim=1)


class ASLFeat(nn.Module):
    """The network with the running maxima of its scores. `state_dict()` holds all that inference needs."""

    def __init__(self, config: ASLFeatConfig, *, deformable: bool) -> None:
        super().__init__()
        self.config = config
        self.network = ASLFeatNetwork(config.network, deformable=deformable)
        self.running_maxima = RunningMaxima(momentum=config.detection.running_max_momentum)

    def forward(self, grey: Tensor, *, tower: int = 0) -> DenseFeatures:
        """Dense features of standardised grey images (B, 1, H, W).

        In training mode, `tower` says whether these are the first (0) or the second (1) images of their
        pairs: each tower is normalised by its own statistics. Raises ShapeError for images smaller than 8
        pixels (more with larger dilations).
        """
        size = (int(grey.shape[-2]), int(grey.shape[-1]))
        smallest = smallest_image(self.config.detection.dilations)
        if min(size) < smallest:
            raise ShapeError(f"grey: expected height and width of at least {smallest}, got {size}")
        maps = self.network(grey)
        maxima = self.running_maxima
        normaliser = maxima.update(tower, maps.levels) if self.training else maxima.stored(maps.levels)
        detection = self.config.detection
        with torch.autocast(grey.device.type, enabled=False):
            scores = level_scores(maps, normaliser, detection)
        return DenseFeatures(maps.descriptors, scores, detection.level_weights, size)
