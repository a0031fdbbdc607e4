"""The network of MSNet: the first three stages of ResNet-18 at stride 4, and a head of three convolutions.

Source: lin-zju/my-descriptor-space, MSNetV0; He et al., "Deep Residual Learning for Image Recognition", CVPR
2016. Parameters: 1,289,792. The backbone's names are torchvision's, so that ImageNet weights fit by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.methods.msnet.config import NetworkConfig
from matchlib.ops.batch_norm import BatchNorm

DESCRIPTOR_STRIDE = 4
"""Cell i of the map stands at pixel 4 i: every layer with a stride is centred."""
DESCRIPTOR_DIM = 128
FEATURE_CHANNELS = 128


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, or a 1x1 convolution where the channels change."""

    def __init__(
        self, in_channels: int, channels: int, *, dilations: tuple[int, int] = (1, 1), momentum: float
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, dilations[0])
        self.bn1 = BatchNorm(channels, momentum=momentum)
        self.conv2 = _conv3x3(channels, channels, dilations[1])
        self.bn2 = BatchNorm(channels, momentum=momentum)
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False), BatchNorm(channels, momentum=momentum)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Backbone(nn.Module):
    """Images to features at stride 4: stem, layer1 and layer2 of ResNet-18, the last without its stride."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        momentum, dilation = config.batch_norm_momentum, config.dilation
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(64, momentum=momentum)
        self.layer1 = nn.Sequential(
            BasicBlock(64, 64, momentum=momentum), BasicBlock(64, 64, momentum=momentum)
        )
        # The first convolution is the one that had the stride: its taps stay where they were.
        self.layer2 = nn.Sequential(
            BasicBlock(64, FEATURE_CHANNELS, dilations=(1, dilation), momentum=momentum),
            BasicBlock(FEATURE_CHANNELS, FEATURE_CHANNELS, dilations=(dilation, dilation), momentum=momentum),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer1(x)
        features: Tensor = self.layer2(x)
        return features


class MSNetNetwork(nn.Module):
    """Images to features, and features to descriptors: the head serves features of any scale."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = nn.Sequential(
            nn.Conv2d(FEATURE_CHANNELS, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, DESCRIPTOR_DIM, 1),
        )
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 128, H/4, W/4), sizes rounded up, of RGB images (B, 3, H, W) in [0, 1]."""
        check_shape("images", images, "B 3 H W")
        features: Tensor = self.backbone((images - self.mean) / self.std)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Raw descriptors (B, 128, h, w), before they are brought to unit length."""
        descriptors: Tensor = self.head(self.features(images))
        return descriptors


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Normal kernels after He et al. 2015 (fan-out, as in torchvision's ResNet); biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _conv3x3(in_channels: int, out_channels: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
