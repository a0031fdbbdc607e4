"""The network of SuperPoint: a shared encoder at 1/8 of the image, a detector head and a descriptor head.

Source: DeTone, Malisiewicz, Rabinovich, "SuperPoint: Self-Supervised Interest Point Detection and
Description", CVPRW 2018. Two layouts of the same convolutions:

"vgg"     convolution -> ReLU; the last of each head bare. 1,300,865 parameters.
"vgg_bn"  convolution -> ReLU -> batch norm; the last of each head convolution -> batch norm. 1,304,067
          parameters. Normalising after the activation is what the MIT-licensed weights were trained with.

MagicPoint is the same network whose descriptor head nobody reads (`detector_logits`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import ShapeError, check_shape
from matchlib.features.types import Image
from matchlib.methods.superpoint.config import NetworkConfig
from matchlib.ops.batch_norm import BatchNorm

CELL = 8
DETECTOR_CHANNELS = CELL * CELL + 1  # one per pixel of a cell, and "no point here"
BATCH_NORM_EPSILON = 1e-3
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_ENCODER_CHANNELS = (64, 64, 128, 128)
_HEAD_CHANNELS = 256


@dataclass(frozen=True, slots=True)
class SuperPointMaps:
    """What the network says about B images of height H and width W.

    logits:      (B, 65, H/8, W/8) before the softmax; channel c < 64 of cell (i, j) is pixel
                 (8 i + c // 8, 8 j + c % 8) (row, column), channel 64 says that the cell has no point
    descriptors: (B, D, H/8, W/8), not of unit length; cell (i, j) is centred at pixel (8 j + 3.5, 8 i + 3.5)
    """

    logits: Tensor
    descriptors: Tensor


class SuperPointNetwork(nn.Module):
    """Grey images to detector logits and descriptors."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        divisor = 2 if config.variant == "small" else 1
        self.descriptor_dim = _HEAD_CHANNELS // divisor
        momentum = config.batch_norm_momentum if config.layout == "vgg_bn" else None
        stages, channels = [], 1
        for wide in _ENCODER_CHANNELS:
            width = wide // divisor
            first = ConvBlock(channels, width, kernel=3, is_last=False, momentum=momentum)
            second = ConvBlock(width, width, kernel=3, is_last=False, momentum=momentum)
            stages.append(nn.Sequential(first, second))
            channels = width
        self.backbone = nn.Sequential(*stages)
        self.detector = _head(channels, self.descriptor_dim, DETECTOR_CHANNELS, momentum)
        self.descriptor = _head(channels, self.descriptor_dim, self.descriptor_dim, momentum)

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights: He's normal kernels before a ReLU, Glorot's at the end of each head, zero biases."""
        for block in self.modules():
            if not isinstance(block, ConvBlock):
                continue
            weight = block.conv.weight
            if block.is_last:
                nn.init.xavier_normal_(weight, generator=generator)
            else:
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            with torch.no_grad():
                block.conv.get_parameter("bias").zero_()

    def forward(self, grey: Tensor) -> SuperPointMaps:
        """Both heads for grey images (B, 1, H, W) float in [0, 1]; H and W multiples of 8. Raises
        ShapeError."""
        encoded = self._encode(grey)
        return SuperPointMaps(self.detector(encoded), self.descriptor(encoded))

    def detector_logits(self, grey: Tensor) -> Tensor:
        """`forward(grey).logits` without the work of the descriptor head."""
        logits: Tensor = self.detector(self._encode(grey))
        return logits

    def _encode(self, grey: Tensor) -> Tensor:
        sizes = check_shape("grey", grey, "B 1 H W")
        if any(sizes[side] < CELL or sizes[side] % CELL for side in "HW"):
            raise ShapeError(
                f"grey: expected height and width that are multiples of {CELL}, got {tuple(grey.shape[2:])}; "
                f"pad the image first"
            )
        x = grey
        for index, stage in enumerate(self.backbone):
            x = stage(x if index == 0 else F.max_pool2d(x, 2))
        return x


class ConvBlock(nn.Module):
    """Convolution with bias, then ReLU unless `is_last`, then batch norm if `momentum` is given."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, is_last: bool, momentum: float | None
    ) -> None:
        super().__init__()
        self.is_last = is_last
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.bn = (
            None if momentum is None else BatchNorm(out_channels, momentum=momentum, eps=BATCH_NORM_EPSILON)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if not self.is_last:
            y = F.relu_(y)
        return y if self.bn is None else self.bn(y)


def grey_from_rgb(rgb: Tensor) -> Tensor:
    """Luma of RGB images: (B, 3, H, W) float in [0, 1] to (B, 1, H, W) float in [0, 1]."""
    check_shape("rgb", rgb, "B 3 H W")
    return (rgb * rgb.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def grey_from_image(image: Image, device: torch.device | str) -> Tensor:
    """What the network sees of an (H, W, 3) uint8 RGB image: (1, 1, H, W) float32 in [0, 1] on `device`.

    Raises ShapeError for another shape or dtype.
    """
    check_image(image)
    rgb = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None]
    return grey_from_rgb(rgb.float() / 255.0)


def check_image(image: Image) -> tuple[int, int]:
    """(width, height) of an (H, W, 3) uint8 image. Raises ShapeError for another shape or dtype."""
    sizes = check_shape("image", image, "H W 3")
    if image.dtype != np.uint8:
        raise ShapeError(f"image: expected uint8, got {image.dtype}")
    return sizes["W"], sizes["H"]


def pad_to_cells(image_B1HW: Tensor) -> Tensor:
    """Repeat the last row and column until both sizes are multiples of 8; (B, C, H, W), H and W above 0."""
    height, width = image_B1HW.shape[2:]
    bottom, right = (math.ceil(size / CELL) * CELL - size for size in (height, width))
    if not bottom and not right:
        return image_B1HW
    return F.pad(image_B1HW, (0, right, 0, bottom), mode="replicate")


def _head(in_channels: int, hidden: int, out_channels: int, momentum: float | None) -> nn.Sequential:
    return nn.Sequential(
        ConvBlock(in_channels, hidden, kernel=3, is_last=False, momentum=momentum),
        ConvBlock(hidden, out_channels, kernel=1, is_last=True, momentum=momentum),
    )
