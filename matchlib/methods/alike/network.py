"""ALIKE's network: four blocks at 1, 1/2, 1/8 and 1/32 of the image, joined at full resolution.

Source: Zhao et al., "ALIKE: Accurate and lightweight keypoint detection and descriptor extraction", IEEE TMM 2022,
section III. Names of the tensors are those of the published files.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 32
"""Height and width of the input are multiples of it."""

WIDTHS = {"alike-t": (8, 16, 32, 64), "alike-s": (8, 16, 48, 96), "alike-n": (16, 32, 64, 128)}
"""Channels of the four blocks; the descriptor has as many as the last."""


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU; past the first block, with a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, *, has_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1) if has_shortcut else None

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(inner if self.downsample is None else inner + self.downsample(maps))


class AlikeNetwork(nn.Module):
    """The variants with a single head (t, s, n)."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        dim = widths[3]
        self.block1 = _Block(3, widths[0], has_shortcut=False)
        self.block2 = _Block(widths[0], widths[1], has_shortcut=True)
        self.block3 = _Block(widths[1], widths[2], has_shortcut=True)
        self.block4 = _Block(widths[2], widths[3], has_shortcut=True)
        self.conv1 = nn.Conv2d(widths[0], dim // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(widths[1], dim // 4, 1, bias=False)
        self.conv3 = nn.Conv2d(widths[2], dim // 4, 1, bias=False)
        self.conv4 = nn.Conv2d(widths[3], dim // 4, 1, bias=False)
        self.convhead2 = nn.Conv2d(dim, dim + 1, 1, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, H, W) in (0, 1) and unit descriptors (B, D, H, W) of RGB images (B, 3, H, W) in [0, 1], H and
        W multiples of STRIDE.
        """
        maps1 = self.block1(image)
        maps2 = self.block2(F.max_pool2d(maps1, 2))
        maps3 = self.block3(F.max_pool2d(maps2, 4))
        maps4 = self.block4(F.max_pool2d(maps3, 4))
        size = (image.shape[-2], image.shape[-1])
        joined = torch.cat(
            [
                F.relu(self.conv1(maps1)),
                _enlarged(F.relu(self.conv2(maps2)), size),
                _enlarged(F.relu(self.conv3(maps3)), size),
                _enlarged(F.relu(self.conv4(maps4)), size),
            ],
            dim=1,
        )
        head = cast(Tensor, self.convhead2(joined))
        return head[:, -1].sigmoid(), F.normalize(head[:, :-1], dim=1)


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    # The outermost centres fall together, which is not where pooling puts them; the weights were trained so.
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)
