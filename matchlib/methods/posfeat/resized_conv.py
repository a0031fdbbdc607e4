"""A 3 x 3 convolution of a bilinearly enlarged map, without making the enlarged map.

Enlarging acts on places and each of the nine taps on channels, so that they commute: the taps are applied at the small
resolution, where they are cheap, and each is enlarged with its own shift. Enlarging and shifting along one axis is a
banded matrix. The result equals the direct one up to rounding, borders included; products and memory of one layer of
PoSFeat's head fall to a fraction (`benchmarks/keypoint_loss.py`), and unlike PyTorch's resize its gradient is
deterministic on CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape

_LONGEST_TILE = 16  # rows at the small resolution that one dense product covers


def conv_of_resized(map_BChw: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """`conv2d(interpolate(map, size, mode="bilinear"), weight, padding=1)` as (B, O, H, W).

    map: (B, C, h, w); weight: (O, C, 3, 3); size: (H, W). Pixel centres as with `align_corners=False`. Differentiable
    in map and weight. Fast where H and W are multiples of h and w. Raises ShapeError.
    """
    sizes = check_shape("map", map_BChw, "B C h w")
    channels = check_shape("weight", weight, f"O {sizes['C']} 3 3")["O"]
    taps = weight.permute(0, 2, 3, 1).reshape(-1, sizes["C"], 1, 1)
    tapped = F.conv2d(map_BChw, taps)
    tapped = tapped.reshape(-1, channels, 3, 3, sizes["h"], sizes["w"])  # B, O, tap y, tap x, h, w
    columns = _resize_taps(tapped.mT, size[1])  # B, O, tap y, W, h
    return _resize_taps(columns.mT, size[0])


def _resize_taps(x: Tensor, length: int) -> Tensor:
    """(..., length, L) from (..., 3, n, L): resize each of the three taps' maps along n, shift by -1, 0, 1, and add."""
    n, L = x.shape[-2:]
    tile = _tile(n, length)
    # The results of a tile depend on its own entries and one more at each side, which at the borders has weight 0.
    windows = F.pad(x, (0, 0, 1, 1)).unfold(-2, tile + 2, tile)  # (..., 3, tiles, L, tile + 2)
    windows = windows.transpose(-4, -3).mT.reshape(*x.shape[:-3], n // tile, 3 * (tile + 2), L)
    resized: Tensor = _tile_matrices(n, length, tile, x) @ windows
    return resized.reshape(*x.shape[:-3], length, L)


def _tile_matrices(n: int, length: int, tile: int, like: Tensor) -> Tensor:
    """(tiles, length / tiles, 3 (tile + 2)): what takes the window of each tile to its results."""
    matrix = F.pad(_tap_matrix(n, length, like), (1, 1))
    results = length * tile // n
    parts = [
        matrix[index * results : (index + 1) * results, :, index * tile : (index + 1) * tile + 2]
        for index in range(n // tile)
    ]
    return torch.stack(parts).flatten(2)


def _tap_matrix(n: int, length: int, like: Tensor) -> Tensor:
    """(length, 3, n): weight of entry k for result p and tap t, the resized signal at p + t - 1, 0 outside."""
    unit = torch.eye(n, dtype=like.dtype, device=like.device)
    resized = F.pad(F.interpolate(unit[None], length, mode="linear", align_corners=False)[0], (1, 1))
    return resized.unfold(1, 3, 1).permute(1, 2, 0)


def _tile(n: int, length: int) -> int:
    """The largest divisor of n up to 16; n itself where results do not fall into equal tiles."""
    if length % n:
        return n
    return max(tile for tile in range(1, min(n, _LONGEST_TILE) + 1) if n % tile == 0)
