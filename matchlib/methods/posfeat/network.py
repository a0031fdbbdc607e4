"""The description net of PoSFeat: a residual network, decoded to 1/4 of the image.

Source: Li et al., "Decoupling Makes Weakly Supervised Local Feature Better", CVPR 2022; layers and names of the
public implementation, whose topology is that of CAPS (Wang et al., ECCV 2020). 20,508,992 parameters with
ResNet-50.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.geometry.sampling import sample_bilinear
from matchlib.methods.posfeat.config import NetworkConfig, Sampling
from matchlib.methods.posfeat.resized_conv import conv_of_resized
from matchlib.networks import resnet
from matchlib.ops.batch_norm import BatchNorm

DESCRIPTOR_DIM = 128
STRIDE = 4
SIZE_MULTIPLE = 16
"""Images whose sides are multiples of this need no padding inside the network."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ENCODER_PARTS = {
    "firstconv": "conv1",
    "firstbn": "bn1",
    "layer1": "layer1",
    "layer2": "layer2",
    "layer3": "layer3",
}
"""Names of the released network, and of torchvision, for the same parts."""


@dataclass(frozen=True, slots=True)
class DescriptorMaps:
    """What the description net sees in B images of height H and width W.

    fine:  (B, 128, H/4, W/4) descriptors, not of unit length, each component >= -1
    early: (B, 64, H/4, W/4) the encoder's map before its residual blocks, which the keypoint head reads, too
    Sizes are rounded up.
    """

    fine: Tensor
    early: Tensor


class DescriptionNet(nn.Module):
    """Images to descriptor maps.

    State names are those of the release: firstconv, firstbn, layer1 to layer3, conv_coarse, upconv3, iconv3,
    upconv2, iconv2, conv_fine. conv_coarse is part of published weights, but no loss reaches it: it is frozen.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        encoder = self._new_encoder()
        for name, part in _ENCODER_PARTS.items():
            self.add_module(name, encoder.get_submodule(part))
        at4, at8, at16 = resnet.LAYOUTS[config.encoder].channels[:3]
        wide, narrow = config.decoder_channels
        self.conv_coarse = ConvBlock(at16, DESCRIPTOR_DIM, kernel=1, config=config).requires_grad_(False)
        self.upconv3 = UpBlock(at16, wide, config=config)
        self.iconv3 = ConvBlock(at8 + wide, wide, kernel=3, config=config)
        self.upconv2 = UpBlock(wide, narrow, config=config)
        self.iconv2 = ConvBlock(at4 + narrow, narrow, kernel=3, config=config)
        self.conv_fine = ConvBlock(narrow, DESCRIPTOR_DIM, kernel=1, config=config)

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights; those of the encoder from `network.encoder_weights` if that names a file.

        Encoder: normal after He et al. 2015, as torchvision's; decoder: PyTorch's own default, as released. Raises
        DataError for a file that does not fit.
        """
        encoder = self._new_encoder()
        resnet.initialise(encoder, generator)
        if self.config.encoder_weights is not None:
            resnet.load_imagenet_weights(encoder, Path(self.config.encoder_weights))
        for name, part in _ENCODER_PARTS.items():
            self.get_submodule(name).load_state_dict(encoder.get_submodule(part).state_dict())
        for block in self.modules():
            if isinstance(block, ConvBlock):
                block.initialise(generator)

    def forward(self, normalised: Tensor, towers: int = 1) -> DescriptorMaps:
        """Maps of images (B, 3, H, W) as `normalise` gives them; any size above 0.

        towers: in training, batch statistics are taken of each of so many equal parts of the batch by itself:
        2 for the first and second images of pairs, joined along B.
        """
        check_shape("normalised", normalised, "B 3 H W")
        early, x1, x2, x3 = self._encode(normalised, towers)
        x = self.iconv3(_join(x2, self.upconv3(x3, towers)), towers)
        x = self.iconv2(_join(x1, self.upconv2(x, towers)), towers)
        return DescriptorMaps(self.conv_fine(x, towers), early)

    def coarse(self, normalised: Tensor) -> Tensor:
        """(B, 128, H/16, W/16): the release's global map, which nothing uses. For comparisons with it only."""
        check_shape("normalised", normalised, "B 3 H W")
        coarse: Tensor = self.conv_coarse(self._encode(normalised, 1)[-1])
        return coarse

    def _encode(self, images: Tensor, towers: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        early = resnet.stem_features(
            self.get_submodule("firstconv"), self.get_submodule("firstbn"), images, towers
        )
        x1 = self.get_submodule("layer1")(early, towers)
        x2 = self.get_submodule("layer2")(x1, towers)
        return early, x1, x2, self.get_submodule("layer3")(x2, towers)

    def _new_encoder(self) -> resnet.ResNet:
        config = self.config
        return resnet.ResNet(
            config.encoder,
            stages=3,
            momentum=config.batch_norm_momentum,
            synchronise=config.synchronise_statistics,
        )


class ConvBlock(nn.Module):
    """Convolution with bias, batch norm, ELU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, config: NetworkConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.bn = BatchNorm(
            out_channels, momentum=config.batch_norm_momentum, synchronise=config.synchronise_statistics
        )

    def initialise(self, generator: torch.Generator) -> None:
        """Uniform kernel and bias within 1 / sqrt(inputs of an output), nn.Conv2d's default."""
        weight = self.conv.weight
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.conv.get_parameter("bias"), -bound, bound, generator=generator)

    def forward(self, x: Tensor, towers: int = 1) -> Tensor:
        return self.activated(self.conv(x), towers)

    def activated(self, convolved: Tensor, towers: int) -> Tensor:
        """What follows the convolution."""
        return F.elu_(self.bn(convolved, towers))


class UpBlock(nn.Module):
    """Twice the resolution, bilinear with the corner pixels' centres fixed, then a 3x3 ConvBlock."""

    def __init__(self, in_channels: int, out_channels: int, *, config: NetworkConfig) -> None:
        super().__init__()
        self.conv = ConvBlock(in_channels, out_channels, kernel=3, config=config)

    def forward(self, x: Tensor, towers: int = 1) -> Tensor:
        block = self.conv
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        bias = block.conv.get_parameter("bias")[:, None, None]
        return block.activated(conv_of_resized(x, block.conv.weight, size, align_corners=True) + bias, towers)


def normalise(image01: Tensor) -> Tensor:
    """RGB images (B, 3, H, W) in [0, 1], shifted and scaled by ImageNet's mean and standard deviation."""
    check_shape("image", image01, "B 3 H W")
    mean, std = (image01.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image01 - mean) / std


def map_positions(
    points: Tensor, image_size: tuple[int, int], map_size: tuple[int, int], sampling: Sampling
) -> Tensor:
    """Positions (..., 2) in cells of a map, whose integers are cell centres, of image positions (..., 2) in pixels.

    image_size, map_size: (width, height). "exact" keeps the corners of the image area in place,
    u = (x + 0.5) w / W - 0.5. "legacy" is what the release computes by mixing two conventions,
    u = x w / (W - 1) - 0.5: off by -1/8 to +1/8 of a cell from one border to the other.
    """
    image, cells = points.new_tensor(image_size), points.new_tensor(map_size)
    if sampling == "legacy":
        return points * (cells / (image - 1)) - 0.5
    return (points + 0.5) * (cells / image) - 0.5


def descriptors_at(fine: Tensor, points: Tensor, image_size: tuple[int, int], sampling: Sampling) -> Tensor:
    """Unit descriptors (..., N, D) at image positions (..., N, 2) in pixels, read bilinearly, then normalised.

    fine: (..., D, h, w) of images of `image_size` = (width, height), with the same leading dimensions. Beyond the
    outermost cell centres the border counts on. Differentiable; half precision is raised to float32 first. Raises
    ShapeError.
    """
    wide = fine.float() if fine.dtype in (torch.float16, torch.bfloat16) else fine
    map_size = (fine.shape[-1], fine.shape[-2])
    positions = map_positions(points.to(wide.dtype), image_size, map_size, sampling)
    return F.normalize(sample_bilinear(wide, positions).transpose(-1, -2), dim=-1)


def _join(skip: Tensor, enlarged: Tensor) -> Tensor:
    """Both maps along the channels; the second is first padded with zeros, or cut, to the size of the first."""
    rows, columns = skip.shape[2] - enlarged.shape[2], skip.shape[3] - enlarged.shape[3]
    if rows or columns:
        left, top = columns // 2, rows // 2
        enlarged = F.pad(enlarged, (left, columns - left, top, rows - top))
    return torch.cat([skip, enlarged], dim=1)
