"""What the networks say about one whole image of any size, and how much memory that takes.

The network wants sides that are multiples of 16. The release cuts off up to 15 pixels on the right and below; here
the last row and column are repeated instead, nothing is lost and any image will do. The head normalises over all
pixels, the padding too, and feels it less than a cut: with 15 of 240 x 320 pixels added, an untrained head kept 94 to
98 % of the best 1000 keypoints that it has in the image with its true border; with a cut 89 to 95 %, with reflection
97 %, with zeros 44 to 85 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from matchlib.errors import DataError, MatchlibError, check_shape
from matchlib.methods.posfeat.config import InferenceConfig, NetworkConfig
from matchlib.methods.posfeat.model import PoSFeat
from matchlib.methods.posfeat.network import DESCRIPTOR_DIM, SIZE_MULTIPLE, STRIDE
from matchlib.methods.posfeat.tiling import tiled_maps, tiled_scores, tiles_of

_FLOAT = 4  # bytes of a float32
_COARSE = DESCRIPTOR_DIM + 64  # channels of the two maps that the head reads
_HIDDEN_COPIES = 5.5  # 4.6 to 5.3 measured
_BACKBONE_BYTES = 800  # per pixel; 560 to 730 measured for three encoders
_REMEDY = (
    "set inference.max_image_side to make large images smaller, or inference.tile_px to see them in tiles"
)


@dataclass(frozen=True, slots=True)
class ImageMaps:
    """What the network says about one image, padding included.

    fine:   (D, H/4, W/4) float32, not of unit length
    scores: (H, W) float32, each >= 0; None if not asked for
    """

    fine: Tensor
    scores: Tensor | None

    @property
    def padded_size(self) -> tuple[int, int]:
        """(W, H) of the image that the maps belong to."""
        return self.fine.shape[2] * STRIDE, self.fine.shape[1] * STRIDE


def image_maps(model: PoSFeat, image_3HW: Tensor, config: InferenceConfig, *, with_scores: bool) -> ImageMaps:
    """Maps of an RGB image (3, H, W) uint8 of at least one pixel, on the device of the model.

    An image with a side above `config.tile_px` is seen in tiles. Raises ShapeError, and DataError for an image that
    needs more memory than `config.max_memory_gb` (nothing has been computed then) or than the GPU has, and if the
    network's output is not finite. Raises MatchlibError if scores are wanted of a model without a head.
    """
    check_shape("image", image_3HW, "3 H W")
    if with_scores and model.head is None:
        raise MatchlibError("posfeat: expected weights with a keypoint head, got none; use SIFT's keypoints")
    padded_3HW = pad_for_network(image_3HW)
    where = f"posfeat: image of {image_3HW.shape[2]} x {image_3HW.shape[1]} pixels"
    size = (padded_3HW.shape[2], padded_3HW.shape[1])
    needed = needed_bytes(size, model.config.network, config, with_scores=with_scores)
    if needed > config.max_memory_gb * 1e9:
        raise DataError(
            f"{where}: expected to need at most inference.max_memory_gb = {config.max_memory_gb:g} GB, got about "
            f"{needed / 1e9:.3g} GB; {_REMEDY}"
        )
    try:
        maps = _compute(model, padded_3HW, config, with_scores=with_scores)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{where}: does not fit into the memory of the device ({reason}); {_REMEDY}"
        ) from error
    if not (maps.fine.isfinite().all() and (maps.scores is None or maps.scores.isfinite().all())):
        raise DataError(f"{where}: the network's output is not finite; its weights are damaged: use others")
    return maps


def pad_for_network(image_3HW: Tensor) -> Tensor:
    """The image with its last row and column repeated until both sides are multiples of 16."""
    height, width = image_3HW.shape[1:]
    rows_H, columns_W = (
        torch.arange(_padded(side), device=image_3HW.device).clamp_max(side - 1) for side in (height, width)
    )
    return image_3HW[:, rows_H][:, :, columns_W]


def needed_bytes(
    size: tuple[int, int], network: NetworkConfig, config: InferenceConfig, *, with_scores: bool
) -> int:
    """About how much memory the maps of an image of `size` = (W, H) take at worst, beside the weights.

    The head's second convolution decides, at every pixel that is seen at once: alive are the image branch and, in
    several forms, the layer itself, `_HIDDEN_COPIES` of it as measured on a CPU: 3072 bytes at the published sizes,
    where images of 0.08 to 1.2 megapixels took 2970 to 2600. Without a head the backbone counts. In tiles, the whole
    image costs its pixels, its maps and, for the head, four copies of these.
    """
    width, height = (_padded(side) for side in size)
    longest = max(width, height) if config.tile_px is None else config.tile_px
    seen = min(width, longest) * min(height, longest)
    image, hidden = network.head_channels
    head = _FLOAT * (image + _HIDDEN_COPIES * hidden) if with_scores else 0
    channels = (1 + 4 * with_scores) * _COARSE / STRIDE**2 + with_scores if seen < width * height else 0
    return math.ceil(seen * max(head, _BACKBONE_BYTES) + width * height * (3 + _FLOAT * channels))


def _compute(model: PoSFeat, padded_3HW: Tensor, config: InferenceConfig, *, with_scores: bool) -> ImageMaps:
    size = (padded_3HW.shape[2], padded_3HW.shape[1])
    tiles = tiles_of(size, config.tile_px, config.tile_overlap_px)
    if len(tiles) == 1 or config.tile_px is None:
        image = padded_3HW[None].float() / 255
        maps = model.maps(image)
        scores = model.scores(image, maps) if with_scores else None
    else:
        maps = tiled_maps(model, padded_3HW, tiles)
        scores = None
        if with_scores and model.head is not None:
            scores = tiled_scores(model.head, maps, padded_3HW, config.tile_px)
    return ImageMaps(maps.fine[0], None if scores is None else scores[0, 0])


def _padded(side: int) -> int:
    return math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE
