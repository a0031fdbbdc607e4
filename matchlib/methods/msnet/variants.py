"""Descriptors at several scales from one feature map: resampling, blending, fusing.

All members come from one head. Resizing keeps the corners of the map's area fixed (`align_corners=False`), so
a map that went to another scale and back stays in place; maps of odd size are continued by a row or a column
first, because only then the factor is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.methods.msnet.config import BlendRule
from matchlib.methods.msnet.network import FEATURE_CHANNELS

COARSE = 0.5
SUM_SCALES = (0.5, 1.0, 2.0)
ATTENTION_SCALES = (0.5, 1.0, 1.5, 2.0)


class AttentionHead(nn.Module):
    """Features (B, 128, h, w) of one scale to logits (B, 1, h, w): how much this scale counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(FEATURE_CHANNELS, 256, 1),
            nn.ReLU(),
            nn.Conv2d(256, 128, 3, padding=1),
            nn.ReLU(),
        )
        self.output = nn.Conv2d(128, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(self.layers(features))
        return logits


def normalise(descriptors: Tensor) -> Tensor:
    """Unit length over the channels of (B, D, h, w), in float32 at least."""
    wide = descriptors.float() if descriptors.dtype in (torch.float16, torch.bfloat16) else descriptors
    return F.normalize(wide, dim=1)


def at_scale(head: Callable[[Tensor], Tensor], features: Tensor, scale: float) -> Tensor:
    """What `head` says of features (B, C, h, w) resized by `scale`, a multiple of 1/2; resized back."""
    height, width = features.shape[2:]
    if scale == 1.0:
        return head(features)
    even = F.pad(features, (0, width % 2, 0, height % 2), mode="replicate")
    size = (int(even.shape[2]), int(even.shape[3]))
    resized = _resize(even, (round(size[0] * scale), round(size[1] * scale)))
    return _resize(head(resized), size)[:, :, :height, :width]


def blend(fine: Tensor, coarse: Tensor, scale_Bhw: Tensor, rule: BlendRule) -> Tensor:
    """Mix the fine map (B, D, h, w) of unit vectors with the raw coarse one by a scale map (B, h, w).

    clamped: weight w = clamp(s, 1, 2) - 1 of the coarse member, both members of unit length, and so is the
             result (the research variant V8).
    legacy:  w = min(s, 2) - 1, negative for s < 1, the coarse map raw, the result of any length (lin-zju's
             V2).
    """
    check_shape("scale", scale_Bhw, f"{fine.shape[0]} {fine.shape[2]} {fine.shape[3]}")
    if rule == "legacy":
        weight = (scale_Bhw.clamp(max=2.0) - 1.0).to(fine.dtype)[:, None]
        return weight * coarse + (1.0 - weight) * fine
    return mix(fine, coarse, scale_Bhw.clamp(1.0, 2.0) - 1.0)


def mix(fine: Tensor, coarse: Tensor, weight_Bhw: Tensor) -> Tensor:
    """(1 - w) fine + w coarse of unit vectors, brought to unit length; w (B, h, w) in [0, 1]."""
    weight = weight_Bhw.to(fine.dtype)[:, None]
    return normalise((1.0 - weight) * fine + weight * normalise(coarse))


def fuse_by_sum(maps: Sequence[Tensor]) -> Tensor:
    """Sum of the descriptors (B, D, h, w) of several scales, of unit length before and after (V4)."""
    return normalise(torch.stack([normalise(descriptors) for descriptors in maps]).sum(dim=0))


def fuse_by_attention(maps: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Mean of the unit descriptors of several scales, weighted by a softmax over them (V5), of unit length.

    maps: (B, D, h, w) each; logits: (B, 1, h, w) each.
    """
    weights = torch.stack(list(logits)).float().softmax(dim=0)
    return normalise((weights * torch.stack([normalise(descriptors) for descriptors in maps])).sum(dim=0))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
