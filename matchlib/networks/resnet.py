"""Residual networks under torchvision's key names, so that its ImageNet weights fit by name.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Zagoruyko & Komodakis, "Wide Residual
Networks", BMVC 2016. As in torchvision, the stride of a bottleneck is in its 3x3 convolution ("v1.5").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.features.foreign_weights import fill_module, read_state_dict
from matchlib.ops.batch_norm import BatchNorm

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2"]
STAGES = 4
STEM_CHANNELS = 64
_BOTTLENECK_EXPANSION = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks of the four stages; whether they are bottlenecks, and how many times as wide inside."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    widening: int = 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of the four stages."""
        expansion = _BOTTLENECK_EXPANSION if self.bottleneck else 1
        return tuple(STEM_CHANNELS * 2**stage * expansion for stage in range(STAGES))


LAYOUTS: dict[ResNetName, Layout] = {
    "resnet18": Layout((2, 2, 2, 2), bottleneck=False),
    "resnet34": Layout((3, 4, 6, 3), bottleneck=False),
    "resnet50": Layout((3, 4, 6, 3), bottleneck=True),
    "resnet101": Layout((3, 4, 23, 3), bottleneck=True),
    "resnet152": Layout((3, 8, 36, 3), bottleneck=True),
    "wide_resnet50_2": Layout((3, 4, 6, 3), bottleneck=True, widening=2),
}

MakeNorm = Callable[[int], BatchNorm]
"""Channels to a batch norm with the settings of the network."""


@dataclass(frozen=True, slots=True)
class ResNetMaps:
    """What the network makes of images (B, 3, H, W).

    stem:   (B, 64, H/4, W/4), before the first stage
    stages: outputs of the stages built, `Layout.channels` at 1/4, 1/8, 1/16, 1/32; sizes rounded up
    """

    stem: Tensor
    stages: tuple[Tensor, ...]


class ResNet(nn.Module):
    """Stem and the first `stages` stages, without the classifier.

    State names: conv1, bn1, layer1 to layer4 (those that are built), as torchvision has them.
    """

    def __init__(
        self, name: ResNetName, *, stages: int = STAGES, momentum: float = 0.1, synchronise: bool = True
    ) -> None:
        super().__init__()
        if not 1 <= stages <= STAGES:
            raise ShapeError(f"{name}: expected 1 to {STAGES} stages, got {stages}")
        layout = LAYOUTS[name]

        def norm(channels: int) -> BatchNorm:
            return BatchNorm(channels, momentum=momentum, synchronise=synchronise)

        self.name, self.stages = name, stages
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(STEM_CHANNELS)
        channels = STEM_CHANNELS
        for stage in range(stages):
            self.add_module(f"layer{stage + 1}", _make_stage(layout, stage, channels, norm))
            channels = layout.channels[stage]

    def forward(self, images: Tensor, towers: int = 1) -> ResNetMaps:
        """Maps of normalised images (B, 3, H, W); `towers`: see BatchNorm."""
        stem = stem_features(self.conv1, self.bn1, images, towers)
        maps = [stem]
        for stage in range(self.stages):
            maps.append(self.get_submodule(f"layer{stage + 1}")(maps[-1], towers))
        return ResNetMaps(stem, tuple(maps[1:]))


class Stage(nn.Sequential):
    """Residual blocks one after the other."""

    def forward(self, x: Tensor, towers: int = 1) -> Tensor:
        for block in self:
            x = block(x, towers)
        return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first has the stride."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor, towers: int = 1) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x, towers)
        x = F.relu_(self.bn1(self.conv1(x), towers))
        return F.relu_(self.bn2(self.conv2(x), towers).add_(shortcut))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution beside a shortcut."""

    def __init__(self, in_channels: int, width: int, channels: int, *, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor, towers: int = 1) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x, towers)
        x = F.relu_(self.bn1(self.conv1(x), towers))
        x = F.relu_(self.bn2(self.conv2(x), towers))
        return F.relu_(self.bn3(self.conv3(x), towers).add_(shortcut))


class Projection(nn.Sequential):
    """1x1 convolution and batch norm: the shortcut where size or channels change."""

    def forward(self, x: Tensor, towers: int = 1) -> Tensor:
        convolution, norm = self
        projected: Tensor = norm(convolution(x), towers)
        return projected


def stem_features(conv1: nn.Module, bn1: nn.Module, images: Tensor, towers: int = 1) -> Tensor:
    """(B, 64, H/4, W/4), sizes rounded up: convolution, batch norm, ReLU and 3x3 maximum with stride 2."""
    return F.max_pool2d(F.relu_(bn1(conv1(images), towers)), 3, stride=2, padding=1)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Normal kernels after He et al. 2015 (fan-out), in the order of `modules()`; batch norm as it is built."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)


def load_imagenet_weights(network: ResNet, path: Path) -> None:
    """Fill `network` from a file with torchvision's keys: safetensors, or a state dict that `torch.save` wrote.

    The classifier and stages that `network` does not have are left out. No code in the file is run. Raises
    DataError that names the first tensor that is missing, unexpected, or of another shape.
    """
    unused = ("fc.", *(f"layer{stage + 1}." for stage in range(network.stages, STAGES)))
    state = {name: tensor for name, tensor in read_state_dict(path).items() if not name.startswith(unused)}
    counters = tuple(name for name in state if name.endswith(".num_batches_tracked"))
    fill_module(network, state, path=path, what=network.name, computed=counters)


def _make_stage(layout: Layout, stage: int, in_channels: int, norm: MakeNorm) -> Stage:
    base, channels = STEM_CHANNELS * 2**stage, layout.channels[stage]
    blocks: list[nn.Module] = []
    for index in range(layout.blocks[stage]):
        stride = 2 if stage > 0 and index == 0 else 1
        if layout.bottleneck:
            width = base * layout.widening
            blocks.append(Bottleneck(in_channels, width, channels, stride=stride, norm=norm))
        else:
            blocks.append(BasicBlock(in_channels, channels, stride=stride, norm=norm))
        in_channels = channels
    return Stage(*blocks)


def _shortcut(in_channels: int, channels: int, stride: int, norm: MakeNorm) -> Projection | None:
    if stride == 1 and in_channels == channels:
        return None
    convolution = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return Projection(convolution, norm(channels))
