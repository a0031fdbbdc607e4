"""From feature maps to scores: running maxima, peakiness, levels joined at image size.

Source: Luo et al., ASLFeat, CVPR 2020, sections 3.3-3.4; details after the public tfmatch implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.geometry.sampling import legacy_resize
from matchlib.methods.aslfeat.config import DetectionConfig
from matchlib.methods.aslfeat.network import FeatureMaps
from matchlib.ops.reduce import all_reduce_max

LEVELS = ("conv1", "conv3", "conv6")
_TINY = 1e-6  # keeps a featureless image (all maps zero) finite
_CHANNELS_AT_ONCE = 8  # bounds the memory that large images take


class RunningMaxima(nn.Module):
    """The debiased moving average of the largest response of each level, by which its map is divided.

    With v the maximum of one tower's batch: B <- momentum * B + (1 - momentum) * v and
    M = B / (1 - momentum^t), so the first step gives M = v. Each tower (first images, second images) keeps
    its own B and t; both write one M, which is what evaluation uses. tfmatch leaves open whether a tower
    divides by M before or after its own update: here after, tower 0 first.
    """

    averages: Tensor
    steps: Tensor
    maxima: Tensor

    def __init__(self, *, levels: int = 3, towers: int = 2, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("averages", torch.zeros(towers, levels))
        self.register_buffer("steps", torch.zeros(towers, dtype=torch.int64))
        self.register_buffer("maxima", torch.zeros(levels))

    @torch.no_grad()
    def update(self, tower: int, maps: Sequence[Tensor]) -> Tensor:
        """Take in one tower's batch of maps (B, C_l, H_l, W_l); the new M, (levels,), without gradient."""
        largest = all_reduce_max(torch.stack([level.amax().float() for level in maps]))
        self.averages[tower].lerp_(largest, 1 - self.momentum)
        self.steps[tower] += 1
        debias = 1 - self.momentum ** self.steps[tower].double()
        self.maxima.copy_(self.averages[tower] / debias)
        return self.maxima.clone()  # the other tower's update must not change what this one divided by

    @torch.no_grad()
    def stored(self, maps: Sequence[Tensor]) -> Tensor:
        """M for evaluation, (B, levels). Before any training step: each image's own maxima."""
        if self.steps.any():
            return self.maxima.expand(maps[0].shape[0], -1)
        return torch.stack([level.amax(dim=(1, 2, 3)).float() for level in maps], dim=1)


def smallest_image(dilations: tuple[int, int, int]) -> int:
    """The least height and width, a multiple of 4, whose maps can hold the neighbourhoods of all levels."""
    needed = max(stride * (dilation + 1) for stride, dilation in zip((1, 2, 4), dilations, strict=True))
    return math.ceil(needed / 4) * 4


def level_scores(features: FeatureMaps, maxima: Tensor, config: DetectionConfig) -> tuple[Tensor, ...]:
    """The score map of each level at the level's own size, (B, H_l, W_l) float32.

    maxima: (levels,) or (B, levels), see `RunningMaxima`.
    """
    score = peakiness if config.use_peakiness else d2net_score
    scores = []
    for level, dilation, maximum in zip(features.levels, config.dilations, maxima.unbind(-1), strict=True):
        scores.append(score(level.float() / maximum.clamp_min(_TINY).view(-1, 1, 1, 1), dilation))
    return tuple(scores)


def peakiness(response: Tensor, dilation: int) -> Tensor:
    """How much a response stands out from its neighbourhood and from the other channels (ASLFeat, eq. 5-7).

    response: (B, C, H, W) float, H and W above `dilation`. Returns (B, H, W): the maximum over channels of
    softplus(y - mean of the dilated 3x3 neighbourhood) * softplus(y - mean over channels).
    A flat response gives softplus(0)^2 = 0.48.
    """
    channel_mean = response.mean(dim=1, keepdim=True)
    best = []
    for group in torch.split(response, _CHANNELS_AT_ONCE, dim=1):
        local = F.softplus(group - neighbourhood_mean(group, dilation))
        best.append((local * F.softplus(group - channel_mean)).amax(dim=1))
    return torch.stack(best).amax(dim=0)


def d2net_score(response: Tensor, dilation: int) -> Tensor:
    """Soft detection score of D2-Net (Dusmanu et al., CVPR 2019, eq. 4-6), in the dilated neighbourhood.

    response, result: as `peakiness`. Spatial softmax times ratio to the channel maximum, maximum over
    channels.
    """
    exponential = (response - response.amax(dim=(1, 2, 3), keepdim=True).detach()).exp()
    spatial = exponential / (9.0 * neighbourhood_mean(exponential, dilation)).clamp_min(torch.finfo().tiny)
    ratio = response / response.amax(dim=1, keepdim=True).clamp_min(_TINY)
    return (spatial * ratio).amax(dim=1)


def neighbourhood_mean(response: Tensor, dilation: int) -> Tensor:
    """Mean over the dilated 3x3 neighbourhood; the border is a mirror through the centres of its pixels."""
    check_shape("response", response, "B C H W")
    d = dilation
    padded = F.pad(response, (d, d, d, d), mode="reflect")
    rows = padded[:, :, : -2 * d] + padded[:, :, d:-d] + padded[:, :, 2 * d :]
    return (rows[..., : -2 * d] + rows[..., d:-d] + rows[..., 2 * d :]) / 9.0


def score_map(scores: Sequence[Tensor], weights: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Weighted mean of the levels' scores (B, H_l, W_l) at image size (height, width): (B, height, width).

    Pixel p of the image reads cell p/4 of the 1/4 map, as descriptors do (see `legacy_resize`).
    """
    total = sum(weights)
    joined = torch.zeros((), device=scores[0].device)
    for level, weight in zip(scores, weights, strict=True):
        resized = level if level.shape[1:] == size else legacy_resize(level, size)
        joined = joined + resized * (weight / total)
    return joined
