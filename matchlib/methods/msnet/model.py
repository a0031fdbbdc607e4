"""MSNet as a whole: images to the descriptor maps of a variant, and reading them at pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import ConfigError
from matchlib.geometry.sampling import sample_bilinear
from matchlib.methods.msnet import variants
from matchlib.methods.msnet.config import Members, MSNetConfig, Sampling
from matchlib.methods.msnet.network import DESCRIPTOR_STRIDE, MSNetNetwork, initialise
from matchlib.methods.msnet.scales import ScaleHead, coarse_weight
from matchlib.randomness import torch_generator_for


@dataclass(frozen=True, slots=True)
class DescriptorMaps:
    """Descriptors of B images at stride 4; cell i stands at pixel 4 i.

    members: one map (B, D, h, w) per member of the descriptor set, float32. The fine and the fused ones hold
             unit vectors; coarse and legacy-blended ones get unit length when they are read
    octaves: predicted scale (B, h, w), or None if the network predicts none
    """

    members: tuple[Tensor, ...]
    octaves: Tensor | None

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w)."""
        return int(self.members[0].shape[2]), int(self.members[0].shape[3])

    def read(self, index: int, cells_N2: Tensor) -> Tensor:
        """Descriptors (N, S, D) of unit length of image `index` at positions (x, y) in cells.

        Pixel x is cell x/4. Bilinear; beyond the outermost cells their values are repeated. Differentiable.
        """
        return torch.stack([read_map(member[index], cells_N2) for member in self.members], dim=1)

    def read_octaves(self, index: int, points_N2: Tensor) -> Tensor:
        """Predicted scale (N,) in octaves at pixels (N, 2). Raises ConfigError if none is predicted."""
        if self.octaves is None:
            raise ConfigError("scale: expected a network that predicts it: variant v2 with scale predicted")
        return sample_bilinear(self.octaves[index][None], points_N2 / DESCRIPTOR_STRIDE)[0]


class MSNet(nn.Module):
    """The network with the heads of the variant. `state_dict()` holds all that inference needs."""

    def __init__(self, config: MSNetConfig) -> None:
        super().__init__()
        self.config = config
        self.network = MSNetNetwork(config.network)
        self.scale_head = ScaleHead() if config.predicts_scale else None
        self.attention_head = variants.AttentionHead() if config.variant == "attention" else None

    def initialise(self, seed: int) -> None:
        """Random weights, a function of the seed."""
        # One address per part: v0's weights do not depend on which heads another variant adds.
        for name, part in self.named_children():
            initialise(part, torch_generator_for(seed, "msnet", "initialise", name))
        for head in (self.scale_head, self.attention_head):
            if head is not None:
                nn.init.zeros_(head.output.weight)  # all scales count alike until something is learned

    def forward(self, images: Tensor, *, members: Members, scale: Tensor | None = None) -> DescriptorMaps:
        """Descriptor maps of RGB images (B, 3, H, W) in [0, 1], H and W of any size above 0.

        scale: (B, h, w) true scale at the cells, for members="oracle_blend" only. In training mode, call it
               once for the first images of the pairs and once for the second: each tower has its own
               statistics.
        Raises ConfigError for members that this network has no head for, or a missing scale.
        """
        features = self.network.features(images)
        octaves = None if self.scale_head is None else self.scale_head(features).float()
        maps = self._maps(features, members, scale, octaves)
        return DescriptorMaps(tuple(part.float() for part in maps), octaves)

    def _maps(
        self, features: Tensor, members: Members, scale: Tensor | None, octaves: Tensor | None
    ) -> tuple[Tensor, ...]:
        at_scale = partial(variants.at_scale, self.network.head, features)
        if members == "sum":
            return (variants.fuse_by_sum([at_scale(s) for s in variants.SUM_SCALES]),)
        if members == "attention":
            return (self._attended(features),)
        if members == "fine":
            return (variants.normalise(at_scale(1.0)),)
        coarse = at_scale(variants.COARSE)
        if members == "coarse":
            return (coarse,)
        fine = variants.normalise(at_scale(1.0))
        if members == "oracle_blend":
            if scale is None:
                raise ConfigError("members: oracle_blend needs the true scale of each image, got none")
            return (variants.blend(fine, coarse, scale, self.config.blend),)
        if members == "predicted_blend":
            if octaves is None:
                raise ConfigError("members: predicted_blend needs variant v2 with scale predicted")
            return (variants.mix(fine, coarse, coarse_weight(octaves)),)
        return fine, coarse

    def _attended(self, features: Tensor) -> Tensor:
        if self.attention_head is None:
            raise ConfigError("members: attention needs variant attention")
        scales = variants.ATTENTION_SCALES
        maps = [variants.at_scale(self.network.head, features, s) for s in scales]
        return variants.fuse_by_attention(
            maps, [variants.at_scale(self.attention_head, features, s) for s in scales]
        )


def read_map(map_DHW: Tensor, cells_N2: Tensor) -> Tensor:
    """Descriptors (N, D) of unit length of one map at positions in cells, bilinear."""
    return F.normalize(sample_bilinear(map_DHW, cells_N2).T, dim=1)


def cells_of_pixels(points_N2: Tensor, sampling: Sampling, *, image_size: tuple[int, int]) -> Tensor:
    """Where pixels (N, 2) of an image of size (W, H) are read from its map, in cells.

    exact: x/4. The other two reproduce the published code, which normalised x by W/2 and left the rest to
    `grid_sample`: x (W' - 1) / W with the corner-aligned default of PyTorch 0.4, x W' / W - 1/2 with the
    default since 1.3; W' is the map's width.
    """
    if sampling == "exact":
        return points_N2 / DESCRIPTOR_STRIDE
    size = points_N2.new_tensor(image_size)
    cells = (size / DESCRIPTOR_STRIDE).ceil()
    if sampling == "legacy_corner_aligned":
        return points_N2 * (cells - 1) / size
    return points_N2 * cells / size - 0.5
