"""A 3 x 3 convolution of a bilinearly enlarged map, without making the enlarged map.

Enlarging acts on places and each of the nine taps on channels, so that they commute: the taps are applied at the small
resolution, where they are cheap, and each is enlarged with its own shift. Enlarging and shifting along one axis is a
banded matrix. The result equals the direct one up to rounding, borders included; products and memory of one layer of
PoSFeat's head and two of its decoder fall to a fraction (`benchmarks/keypoint_loss.py`, `benchmarks/posfeat_step.py`),
and unlike PyTorch's resize its gradient is deterministic on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape

_LONGEST_TILE = 80  # entries at the small resolution that one dense product covers


def conv_of_resized(
    map_BChw: Tensor, weight: Tensor, size: tuple[int, int], *, align_corners: bool = False
) -> Tensor:
    """`conv2d(interpolate(map, size, mode="bilinear", align_corners=...), weight, padding=1)` as (B, O, H, W).

    map: (B, C, h, w); weight: (O, C, 3, 3); size: (H, W). Differentiable in map and weight. Fast where H and W are
    multiples of h and w. Raises ShapeError.
    """
    sizes = check_shape("map", map_BChw, "B C h w")
    channels = check_shape("weight", weight, f"O {sizes['C']} 3 3")["O"]
    taps = weight.permute(0, 2, 3, 1).reshape(-1, sizes["C"], 1, 1)
    tapped = F.conv2d(map_BChw, taps).reshape(-1, 3, 3, sizes["h"], sizes["w"])  # B O, tap y, tap x, h, w
    x = tapped.transpose(2, 3)
    along_x = _tiles(sizes["w"], size[1], align_corners, x)
    x = _joined(
        [x[..., part].flatten(-2) @ matrix.mT for part, matrix in along_x], dim=-1
    )  # B O, tap y, h, W
    along_y = _tiles(sizes["h"], size[0], align_corners, x)
    x = _joined([matrix @ x[:, :, part].flatten(1, 2) for part, matrix in along_y], dim=1)
    return x.reshape(-1, channels, *size)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _tiles(n: int, length: int, align_corners: bool, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Of each tile of results along an axis: the m of n entries it depends on, and the matrix (results, 3 m) to it.

    The matrix takes the three taps' signals, one after the other, resizes each, shifts it by -1, 0, 1, and adds.
    """
    matrix = _tap_matrix(n, length, align_corners, like)
    tile = _tile(n, length)
    results = length * tile // n
    for index in range(n // tile):
        # With either convention, results of a tile reach at most one entry beyond it.
        part = slice(max(index * tile - 1, 0), min((index + 1) * tile + 1, n))
        yield part, matrix[index * results : (index + 1) * results, :, part].flatten(1)


def _tap_matrix(n: int, length: int, align_corners: bool, like: Tensor) -> Tensor:
    """(length, 3, n): weight of entry k for result p and tap t, the resized signal at p + t - 1, 0 outside."""
    unit = torch.eye(n, dtype=like.dtype, device=like.device)
    resized = F.interpolate(unit[None], length, mode="linear", align_corners=align_corners)[0]
    return F.pad(resized, (1, 1)).unfold(1, 3, 1).permute(1, 2, 0)


def _tile(n: int, length: int) -> int:
    """The largest divisor of n that one product covers; n itself where results do not fall into equal tiles."""
    if length % n:
        return n
    return max(tile for tile in range(1, min(n, _LONGEST_TILE) + 1) if n % tile == 0)
