"""PoSFeat on images that do not fit into memory as a whole: in overlapping tiles, put together again.

The description net sees one tile at a time; a descriptor near a seam lacks what lies beyond the overlap. The head
normalises over the whole image, so it is given the statistics of the whole image here, gathered over the tiles
first: its scores are those that it gives the same descriptor maps in one piece, for about twice the work and that of
the overlaps. (If each tile were normalised by itself, the scores of neighbours would not be comparable.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.methods.posfeat.head import KeypointHead
from matchlib.methods.posfeat.model import PoSFeat
from matchlib.methods.posfeat.network import SIZE_MULTIPLE, STRIDE, DescriptorMaps, normalise

_HEAD_OVERLAP_PX = 16  # the head looks 2 pixels far, and enlarged cells 4 more
_EPSILON = 1e-5  # the head's
_Slices = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis, in pixels: the network sees [start, stop), of which [first, last) is used.

    All are multiples of the stride of the descriptor map.
    """

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of an image; slices (rows, columns) in pixels, or in cells of `stride` pixels."""

    y: Span
    x: Span

    def seen(self, stride: int = 1) -> _Slices:
        """What the network sees, in the image."""
        return _slices((self.y.start, self.y.stop), (self.x.start, self.x.stop), stride)

    def used(self, stride: int = 1) -> _Slices:
        """What is used of it, in the image."""
        return _slices((self.y.first, self.y.last), (self.x.first, self.x.last), stride)

    def used_of_seen(self, stride: int = 1) -> _Slices:
        """What is used of it, in the tile."""
        rows, columns = ((span.first - span.start, span.last - span.start) for span in (self.y, self.x))
        return _slices(rows, columns, stride)


def tiles_of(size: tuple[int, int], tile_px: int | None, overlap_px: int) -> tuple[Tile, ...]:
    """The tiles of an image of `size` = (width, height), multiples of 16; see `spans`. One if `tile_px` is None."""
    columns, rows = (spans(side, side if tile_px is None else tile_px, overlap_px) for side in size)
    return tuple(Tile(y, x) for y, x in itertools.product(rows, columns))


def spans(side: int, tile_px: int, overlap_px: int) -> tuple[Span, ...]:
    """Tiles along a side of that many pixels, a multiple of 16: as few as possible, and no longer than need be.

    They are equally long, at most `tile_px` (at least 64). Neighbours have at least `overlap_px` (below half of
    `tile_px`) in common, in whose middle the parts used meet. One tile if the side is no longer than `tile_px`.
    """
    longest = tile_px // SIZE_MULTIPLE * SIZE_MULTIPLE
    if side <= longest:
        return (Span(0, side, 0, side),)
    overlap = _rounded_up(overlap_px)
    count = math.ceil((side - overlap) / (longest - overlap))
    length = _rounded_up(math.ceil((side - overlap) / count)) + overlap
    starts = [i * (side - length) // (count - 1) // SIZE_MULTIPLE * SIZE_MULTIPLE for i in range(count)]
    # Half a multiple of 16 is one of 8, so that no cell of 4 pixels is cut.
    seams = [(start + after + length) // 2 for start, after in itertools.pairwise(starts)]
    used = itertools.pairwise([0, *seams, side])
    return tuple(Span(start, start + length, *ends) for start, ends in zip(starts, used, strict=True))


def _rounded_up(side: int) -> int:
    return math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE


def tiled_maps(model: PoSFeat, padded_3HW: Tensor, tiles: Sequence[Tile]) -> DescriptorMaps:
    """Descriptor maps of an RGB image (3, H, W) uint8 whose sides are multiples of 16, as a batch of one."""
    cells = [side // STRIDE for side in padded_3HW.shape[1:]]
    whole: DescriptorMaps | None = None
    for tile in tiles:
        maps = model.maps(padded_3HW[None, :, *tile.seen()].float() / 255)
        if whole is None:
            fine, early = (part.new_empty(*part.shape[:2], *cells) for part in (maps.fine, maps.early))
            whole = DescriptorMaps(fine, early)
        used, of_seen = tile.used(STRIDE), tile.used_of_seen(STRIDE)
        whole.fine[:, :, *used] = maps.fine[:, :, *of_seen]
        whole.early[:, :, *used] = maps.early[:, :, *of_seen]
    if whole is None:
        raise ValueError("tiles: expected at least one, got none")
    return whole


def tiled_scores(head: KeypointHead, maps: DescriptorMaps, padded_3HW: Tensor, tile_px: int) -> Tensor:
    """What the head says about an image (3, H, W) uint8 and its maps: (1, 1, H, W), in tiles of `tile_px` at most.

    Only maps at 1/4 of the resolution are ever held for the whole image.
    """
    height, width = padded_3HW.shape[1:]
    tiles = tiles_of((width, height), tile_px, _HEAD_OVERLAP_PX)
    coarse = head.conv1(torch.cat([maps.fine, maps.early], dim=1))
    coarse = head.relu(F.instance_norm(coarse, eps=_EPSILON))

    def image_branch(tile: Tile) -> Tensor:
        branch: Tensor = head.convimg(normalise(padded_3HW[None, :, *tile.seen()].float() / 255))
        return branch

    image_norm = _whole_norm(image_branch, tiles)

    def hidden_layer(tile: Tile) -> Tensor:
        return head.joined(coarse[:, :, *tile.seen(STRIDE)], image_norm(image_branch(tile)))

    hidden_norm = _whole_norm(hidden_layer, tiles)
    logits = coarse.new_empty(1, 1, height, width)
    for tile in tiles:
        seen = head.conv3(head.relu(hidden_norm(hidden_layer(tile))))
        logits[:, :, *tile.used()] = seen[:, :, *tile.used_of_seen()]
    return F.softplus(F.instance_norm(logits, eps=_EPSILON))


@dataclass(frozen=True, slots=True)
class _Normalisation:
    """Of every channel, by statistics (1, C, 1, 1) of a whole image."""

    mean: Tensor
    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.factor


def _whole_norm(layer: Callable[[Tile], Tensor], tiles: Sequence[Tile]) -> _Normalisation:
    """Instance normalisation of a layer over all tiles; sums in float64, because variances are their differences."""
    sums, count = [], 0
    for tile in tiles:
        part = layer(tile)[:, :, *tile.used_of_seen()]
        powers = [power.sum(dim=(2, 3), keepdim=True, dtype=torch.float64) for power in (part, part.square())]
        sums.append(torch.stack(powers))
        count += part.shape[2] * part.shape[3]
    mean, mean_square = torch.stack(sums).sum(dim=0) / count
    variance = (mean_square - mean.square()).clamp_min(0)
    return _Normalisation(mean.float(), (variance + _EPSILON).rsqrt().float())


def _slices(rows: tuple[int, int], columns: tuple[int, int], stride: int) -> _Slices:
    (top, bottom), (left, right) = rows, columns
    return slice(top // stride, bottom // stride), slice(left // stride, right // stride)
