"""Descriptors of whole images with trained weights, at any place or at the keypoints of a detector.

Pixel coordinates: a resize keeps the corners of the image area fixed (OpenCV's convention), so position x in
an image of width W is (x + 0.5) * w / W - 0.5 after a resize to width w; the centre of the first pixel is 0.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.completion import digest_file, digest_json
from matchlib.errors import ConfigError, DataError, ShapeError, check_shape
from matchlib.features.dense import MemberPairs
from matchlib.features.described import DescribedKeypoints
from matchlib.features.trained_weights import read_trained
from matchlib.features.types import Float32, Image
from matchlib.geometry.sampling import pixel_grid, sample_bilinear
from matchlib.methods.msnet.config import MSNetConfig, Sampling
from matchlib.methods.msnet.importing import load_backbone
from matchlib.methods.msnet.model import DescriptorMaps, MSNet, cells_of_pixels
from matchlib.methods.msnet.network import DESCRIPTOR_DIM, DESCRIPTOR_STRIDE
from matchlib.methods.msnet.states import first_difference

REVISION = 1
_SMALLEST_SIDE = 16


def build(config: MSNetConfig, weights: Path | None, device: str) -> DescribedKeypoints:
    """An extractor: the detector's keypoints with the first member of the descriptor set.

    That is the fine descriptor for the sets of two; and for the oracle's blend too, because a single image
    has no true scale. The name says which. `weights` as in `build_dense`.
    """
    if config.used_members == "oracle_blend":
        config = replace(config, members="fine")
    return DescribedKeypoints(build_dense(config, weights, device), config.detector)


def build_dense(config: MSNetConfig, weights: Path | None, device: str) -> MSNetDescriber:
    """A describer with the weights of a safetensors file; None gives the untrained network of seed 0.

    Weights of v0, v1, sum and v2 with the oracle's scale are interchangeable. Raises DataError for a file
    that is not weights of this network; it names the first differing key and shape.
    """
    model = MSNet(config)
    if weights is None:
        model.initialise(0)
        digest = "untrained"
        if config.network.backbone_weights is not None:
            load_backbone(model.network.backbone, Path(config.network.backbone_weights))
            digest = f"untrained, backbone {digest_file(Path(config.network.backbone_weights))}"
    else:
        state = read_trained(weights, method="msnet")
        difference = first_difference(model.state_dict(), state)
        if difference is not None:
            raise DataError(f"{weights}: not weights of msnet, variant {config.variant}: {difference}")
        model.load_state_dict(state)
        digest = digest_file(weights)
    return MSNetDescriber(model.to(device).eval(), weights_digest=digest)


class MSNetDescriber:
    """See `matchlib.features.dense.DenseDescriber`."""

    descriptor_dim = DESCRIPTOR_DIM

    def __init__(self, model: MSNet, *, weights_digest: str) -> None:
        config = model.config
        used = config.used_members
        self.name = f"msnet-{config.variant}-{used}"
        self.members: tuple[str, ...] = ("fine", "coarse") if used in ("set2", "set2_3pairs") else (used,)
        self.member_pairs: MemberPairs = config.member_pairs
        self.uses_true_scale = used == "oracle_blend"
        network = asdict(config.network)
        settings = {
            **{"members": used, "sampling": config.sampling, "max_image_side": config.max_image_side},
            "blend": config.blend if self.uses_true_scale else None,
            "network": {name: network[name] for name in ("dilation", "mean", "std")},
        }
        self.fingerprint = digest_json(
            {"method": "msnet", "revision": REVISION, "weights": weights_digest, "settings": settings}
        )
        self._model = model
        self._config = config

    @torch.no_grad()
    def describe(self, image: Image, *, scale: Float32 | None = None) -> MSNetDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image; `scale` as in `DenseDescriber`.

        The image must have at least one pixel. Raises ShapeError, and ConfigError where the members need the
        true scale and none is given.
        """
        sizes = check_shape("image", image, "H W 3")
        if image.dtype != np.uint8 or image.size == 0:
            raise ShapeError(
                f"image: expected uint8 with at least one pixel, got {image.dtype} {image.shape}"
            )
        resized = shrink(image, self._config.max_image_side)
        device = self._model.network.mean.device
        pixels = (
            torch.from_numpy(np.ascontiguousarray(resized)).to(device).permute(2, 0, 1)[None].float() / 255
        )
        padded = pad_for_reading(pixels)
        original_size, seen_size = (sizes["W"], sizes["H"]), (resized.shape[1], resized.shape[0])
        scale_cells = None
        if self.uses_true_scale:
            cells = (padded.shape[2] // DESCRIPTOR_STRIDE, padded.shape[3] // DESCRIPTOR_STRIDE)
            scale_cells = _scale_at_cells(scale, cells, original_size, seen_size).to(device)
        maps = self._model(padded, members=self._config.used_members, scale=scale_cells)
        return MSNetDescriptors(maps, original_size, seen_size, self._config.sampling)


class MSNetDescriptors:
    """See `matchlib.features.dense.DenseDescriptors`. `original_size`, `seen_size`: (width, height)."""

    def __init__(
        self,
        maps: DescriptorMaps,
        original_size: tuple[int, int],
        seen_size: tuple[int, int],
        sampling: Sampling,
    ) -> None:
        self._maps = maps
        self._original_size, self._seen_size = original_size, seen_size
        self._sampling = sampling

    @torch.no_grad()
    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, S, 128) float32 of unit length at pixels (N, 2) of the original image."""
        check_shape("points", points_N2, "N 2")
        points = points_N2.to(self._maps.members[0])
        if self._seen_size != self._original_size:
            factor = points.new_tensor(self._seen_size) / points.new_tensor(self._original_size)
            points = (points + 0.5) * factor - 0.5
        return self._maps.read(0, cells_of_pixels(points, self._sampling, image_size=self._seen_size))


def shrink(image: Image, max_side: int) -> Image:
    """The image itself, or an area-averaged smaller one whose longer side is `max_side`."""
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image
    factor = max_side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def pad_for_reading(images: Tensor) -> Tensor:
    """Repeat the last row and column of (B, C, H, W) until no pixel lies beyond the last cell.

    Sizes become multiples of 4, at least 16.

    A row of 4 n pixels ends 3/4 of a cell beyond the n-th; with one cell more it is read between cells like
    the others.
    """
    height, width = images.shape[2:]
    padded = [
        max(_SMALLEST_SIDE, DESCRIPTOR_STRIDE * -(-(size + 3) // DESCRIPTOR_STRIDE))
        for size in (height, width)
    ]
    return F.pad(images, (0, padded[1] - width, 0, padded[0] - height), mode="replicate")


def _scale_at_cells(
    scale: Float32 | None, cells: tuple[int, int], original_size: tuple[int, int], seen_size: tuple[int, int]
) -> Tensor:
    """The true scale (1, h, w) at the cells; 1 where it is unknown (not finite, or not above 0)."""
    if scale is None:
        raise ConfigError("members: oracle_blend needs the true scale of each image, got none")
    check_shape("scale", scale, f"{original_size[1]} {original_size[0]}")
    if seen_size != original_size:
        raise ConfigError(
            f"max_image_side: expected at least {max(original_size)} for members oracle_blend, because shrinking an "
            f"image changes its true scale"
        )
    known = torch.from_numpy(np.where(np.isfinite(scale) & (scale > 0), scale, 1.0).astype(np.float32))
    factor = torch.tensor(original_size, dtype=torch.float32) / torch.tensor(seen_size, dtype=torch.float32)
    points = (pixel_grid(*cells) * DESCRIPTOR_STRIDE + 0.5) * factor - 0.5
    return sample_bilinear(known[None], points).reshape(1, *cells)
