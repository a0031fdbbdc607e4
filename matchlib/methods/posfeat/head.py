"""PoSFeat's keypoint head: a score for every pixel, from the frozen descriptor maps and the image itself.

Source: Li et al., CVPR 2022, section 3.3, and the released `KeypointDet`, whose state names are kept. 628,930
parameters. Its last step normalises each image's logits to mean 0 and variance 1: scores are relative within one
image, a textureless image has as many high ones as any other, and a crop of an image scores differently.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.methods.posfeat.config import NetworkConfig
from matchlib.methods.posfeat.network import DESCRIPTOR_DIM
from matchlib.methods.posfeat.resized_conv import conv_of_resized

_EARLY_CHANNELS = 64
_EPSILON = 1e-5  # of the instance normalisations
_INITIAL_SLOPE = 0.25  # PyTorch's for PReLU


class KeypointHead(nn.Module):
    """Score maps of images whose descriptor maps are given."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        coarse = DESCRIPTOR_DIM + _EARLY_CHANNELS
        image, hidden = config.head_channels
        self.conv1 = nn.Conv2d(coarse, coarse, 3, padding=1)
        self.convimg = nn.Conv2d(3, image, 3, padding=1)
        self.conv2 = nn.Conv2d(coarse + image, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden, 1, 1)
        self.relu = nn.PReLU()  # one slope, shared by both places

    def initialise(self, generator: torch.Generator) -> None:
        """PyTorch's default distributions, drawn from a CPU generator."""
        for layer in (self.conv1, self.convimg, self.conv2, self.conv3):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        nn.init.constant_(self.relu.weight, _INITIAL_SLOPE)

    def forward(self, fine: Tensor, early: Tensor, normalised: Tensor) -> Tensor:
        """Scores (B, 1, H, W), each >= 0, at least float32, also under autocast.

        fine, early: (B, 128, h, w) and (B, 64, h, w) from the description net; no gradient reaches them
        normalised:  (B, 3, H, W) the ImageNet-normalised images
        Raises ShapeError.
        """
        sizes = check_shape("fine", fine, f"B {DESCRIPTOR_DIM} h w")
        check_shape("early", early, f"{sizes['B']} {_EARLY_CHANNELS} {sizes['h']} {sizes['w']}")
        check_shape("normalised", normalised, f"{sizes['B']} 3 H W")
        maps = torch.cat([fine, early], dim=1).detach()
        coarse = self.relu(_instance_norm(self.conv1(maps)))
        image = _instance_norm(self.convimg(normalised))
        hidden = self.relu(_instance_norm(self.joined(coarse, image)))
        logits = self.conv3(hidden)
        return F.softplus(_instance_norm(logits.to(torch.promote_types(logits.dtype, torch.float32))))

    def joined(self, coarse: Tensor, image: Tensor) -> Tensor:
        """`conv2` of the enlarged coarse maps (B, 192, h, w) beside the image's (B, C, H, W): (B, O, H, W).

        The maps are neither enlarged nor joined for it. A part of `forward`, for `tiling`.
        """
        channels = coarse.shape[1]
        of_image = F.conv2d(image, self.conv2.weight[:, channels:], self.conv2.bias, padding=1)
        of_maps = conv_of_resized(coarse, self.conv2.weight[:, :channels], (image.shape[2], image.shape[3]))
        return of_image.add_(of_maps)


def _instance_norm(x: Tensor) -> Tensor:
    """Every channel of every image to mean 0 and variance 1."""
    return F.instance_norm(x, eps=_EPSILON)
