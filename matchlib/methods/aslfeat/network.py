"""The network of ASLFeat: one feature map at each of the resolutions 1, 1/2 and 1/4.

Source: Luo et al., "ASLFeat: Learning Local Features of Accurate Shape and Localization", CVPR 2020; layer by
layer after the public tfmatch implementation, whose names are kept (its conv6_0, conv6_1, conv6 are the
paper's conv6, conv7, conv8). Parameters: 728,352; with deformable convolutions 821,745.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.methods.aslfeat.config import NetworkConfig, Stride2Padding
from matchlib.ops.batch_norm import BatchNorm
from matchlib.ops.deform_conv import modulated_deform_conv2d

BATCH_NORM_EPSILON = 1e-5
STANDARDISATION_EPSILON = 1e-5
DEFORMABLE_LAYERS = ("conv6_0", "conv6_1", "conv6")
DESCRIPTOR_STRIDE = 4
_CHANNELS = {"full": (32, 64, 128), "small": (16, 32, 64)}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the Y of a JPEG file: tfmatch decodes to one channel


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """What the network sees in B images of height H and width W.

    levels: raw outputs (no normalisation, no ReLU) of conv1 (B, C, H, W), conv3 (B, 2C, H/2, W/2) and
            conv6 (B, 4C, H/4, W/4), sizes rounded up; C is 32 (variant "small": 16)
    """

    levels: tuple[Tensor, Tensor, Tensor]

    @property
    def descriptors(self) -> Tensor:
        """The descriptor map (B, D, H/4, W/4), not yet of unit length."""
        return self.levels[2]


class ASLFeatNetwork(nn.Module):
    """Images to feature maps; `deformable` puts deformable convolutions into conv6_0, conv6_1 and conv6."""

    def __init__(self, config: NetworkConfig, *, deformable: bool) -> None:
        super().__init__()
        low, mid, high = _CHANNELS[config.variant]
        self.descriptor_dim = high
        self.conv0 = nn.Conv2d(1, low, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(low, low, 3, padding=1, bias=False)
        self.conv2 = StridedConv2d(low, mid, stride2_padding=config.stride2_padding)
        self.conv3 = nn.Conv2d(mid, mid, 3, padding=1, bias=False)
        self.conv4 = StridedConv2d(mid, high, stride2_padding=config.stride2_padding)
        self.conv5 = nn.Conv2d(high, high, 3, padding=1, bias=False)
        for name in DEFORMABLE_LAYERS:
            layer = DeformConv2d(high) if deformable else nn.Conv2d(high, high, 3, padding=1, bias=False)
            self.add_module(name, layer)
        for name in ("conv0", "conv1", "conv2", "conv3", "conv4", "conv5", "conv6_0", "conv6_1"):
            channels = getattr(self, name).weight.shape[0]
            self.add_module(
                f"{name}_bn",
                BatchNorm(
                    channels, momentum=config.batch_norm_momentum, eps=BATCH_NORM_EPSILON, affine=False
                ),
            )

    def initialise(self, generator: torch.Generator) -> None:
        """Glorot uniform kernels; offsets and amplitudes of deformable layers stay zero."""
        for name, parameter in self.named_parameters():
            if "deform_param" not in name:
                nn.init.xavier_uniform_(parameter, generator=generator)

    def freeze_statistics(self) -> None:
        """Keep the running statistics as they are; training still normalises by the batch."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.momentum = 0.0

    def forward(self, grey: Tensor) -> FeatureMaps:
        """Feature maps of standardised grey images (B, 1, H, W) (see `standardise`), H and W of any size
        above 0."""
        check_shape("grey", grey, "B 1 H W")
        x = self._unit("conv0", grey)
        level1 = self.conv1(x)
        x = self._unit("conv2", self._activate("conv1", level1))
        level3 = self.conv3(x)
        x = self._activate("conv3", level3)
        for name in ("conv4", "conv5", "conv6_0", "conv6_1"):
            x = self._unit(name, x)
        return FeatureMaps((level1, level3, self.get_submodule("conv6")(x)))

    def _unit(self, name: str, x: Tensor) -> Tensor:
        return self._activate(name, self.get_submodule(name)(x))

    def _activate(self, name: str, raw: Tensor) -> Tensor:
        return F.relu_(self.get_submodule(f"{name}_bn")(raw))


class StridedConv2d(nn.Conv2d):
    """3x3 convolution with stride 2, without bias; output sizes are input sizes / 2, rounded up."""

    def __init__(self, in_channels: int, out_channels: int, *, stride2_padding: Stride2Padding) -> None:
        centred = stride2_padding == "centred"
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1 if centred else 0, bias=False)
        self.pads_bottom_right = not centred

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_bottom_right:
            x = F.pad(x, same_padding(x.shape[2], x.shape[3]))
        return super().forward(x)


def same_padding(height: int, width: int) -> tuple[int, int, int, int]:
    """TensorFlow's SAME padding of a 3x3 convolution with stride 2, as (left, right, top, bottom) for
    `F.pad`.

    Even sizes are padded at the right and bottom only, odd ones by 1 on each side.
    """
    left, top = width % 2, height % 2
    return left, 1, top, 1


class DeformConv2d(nn.Module):
    """3x3 modulated deformable convolution without bias whose offsets and amplitudes come from its own input.

    `deform_param` gives 18 offsets (dy, dx per tap, taps row by row) and 9 amplitudes before the sigmoid. Its
    weights start at zero, so the layer starts as half the plain convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.xavier_uniform_(self.weight)
        self.deform_param = nn.Conv2d(channels, 27, 3, padding=1)
        nn.init.zeros_(self.deform_param.weight)
        nn.init.zeros_(self.deform_param.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(
            x.device.type, enabled=False
        ):  # half a pixel of offset needs more than half precision
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            deform = self.deform_param(x)
            return modulated_deform_conv2d(
                x, deform[:, :18], deform[:, 18:].sigmoid(), self.weight, padding=1
            )


def grey_from_rgb(rgb: Tensor) -> Tensor:
    """Luma of RGB images: (B, 3, H, W) float in [0, 1] to (B, 1, H, W) float in [0, 255]."""
    check_shape("rgb", rgb, "B 3 H W")
    weights = rgb.new_tensor(_LUMA)[:, None, None] * 255.0
    return (rgb * weights).sum(dim=1, keepdim=True)


def standardise(grey: Tensor) -> Tensor:
    """Each image of (B, 1, H, W) shifted to mean 0 and scaled to variance 1; a constant image becomes 0."""
    var, mean = torch.var_mean(grey, dim=(1, 2, 3), keepdim=True, correction=0)
    return (grey - mean) * torch.rsqrt(var + STANDARDISATION_EPSILON)
