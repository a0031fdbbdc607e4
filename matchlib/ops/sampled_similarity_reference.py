"""Sampled similarity in plain PyTorch: the meaning of `matchlib.ops.sampled_similarity`, for every device.

Reading between cells is linear, so a query's products with all cells are taken first, a tile of queries at a time,
and then read like a map of one channel. The backward pass takes the products of a tile again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_TILE_BYTES = 16 << 20  # of products: stays in the last cache


def sampled_similarity_reference(queries: Tensor, maps: Tensor, positions: Tensor, zeros: bool) -> Tensor:
    """Products of `queries` (B, N, D) with `maps` (B, H, W, D) read at `positions` (B, N, K, 2): (B, N, K).

    All of one dtype. `zeros`: outside of the map are zero vectors; else positions are moved to the nearest
    point inside. Differentiable by PyTorch in queries and maps.
    """
    batch, height, width, depth = maps.shape
    samples = positions.shape[2]
    if positions.numel() == 0:
        # Still a function of both, so that gradients of zero come out.
        return (queries.sum() + maps.sum()) * 0 + queries.new_zeros(positions.shape[:3])
    rows = max(1, _TILE_BYTES // (height * width * maps.element_size()))
    images = []
    for image in range(batch):
        cells_MD = maps[image].reshape(height * width, depth)
        tiles = [
            checkpoint(_tile, query, cells_MD, position, (height, width), zeros, use_reentrant=False)
            for query, position in zip(
                torch.split(queries[image], rows), torch.split(positions[image], rows), strict=True
            )
        ]
        images.append(torch.cat(tiles))
    return torch.stack(images).view(batch, -1, samples)


def _tile(
    queries_RD: Tensor, cells_MD: Tensor, positions: Tensor, size: tuple[int, int], zeros: bool
) -> Tensor:
    """Similarities (R, K) of some queries of one image."""
    cell, weight = corners(positions, size, zeros)
    products_RM = queries_RD @ cells_MD.mT
    read = products_RM.gather(1, cell.flatten(1)).view_as(weight)
    similarity = (read * weight).sum(dim=-1)
    return similarity.masked_fill(positions.isnan().any(dim=-1), torch.nan)


def corners(positions: Tensor, size: tuple[int, int], zeros: bool) -> tuple[Tensor, Tensor]:
    """The four cells around each position (..., 2), numbered row by row, and their bilinear weights, both (..., 4).

    size: (H, W) of the map. A cell outside of it has weight 0 and the number of some cell inside; so have all
    four of a NaN position.
    """
    height, width = size
    nowhere = positions.isnan().any(dim=-1, keepdim=True)
    last = positions.new_tensor([width - 1, height - 1])
    # With zeros nothing is left one cell outside; going no further keeps huge values from the integers below.
    margin = 1 if zeros else 0
    near = positions.maximum(torch.full_like(last, -margin)).minimum(last + margin)
    x, y = near.masked_fill(nowhere, 0).unbind(-1)
    left, top = x.floor(), y.floor()
    column = torch.stack([left, left + 1, left, left + 1], dim=-1)
    row = torch.stack([top, top, top + 1, top + 1], dim=-1)
    weight = (1 - (x[..., None] - column).abs()) * (1 - (y[..., None] - row).abs())
    missing = (column < 0) | (column >= width) | (row < 0) | (row >= height) | nowhere
    cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return cell.long(), weight.masked_fill(missing, 0)
