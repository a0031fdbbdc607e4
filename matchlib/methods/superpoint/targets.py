"""What the detector should say: interest points of pictures as one class per cell of 8 x 8 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import ShapeError, check_shape
from matchlib.methods.superpoint.network import CELL
from matchlib.randomness import torch_generator_for

NO_POINT = CELL * CELL
"""The class of a cell without an interest point."""


def cell_targets(
    keypoints: Sequence[Tensor], valid: Tensor, seeds: Sequence[int], *, purpose: str
) -> tuple[Tensor, Tensor]:
    """The class of each cell and whether it counts.

    keypoints: interest points (N, 2) = (x, y) per picture, rounded to whole pixels; those outside are left out
    valid:     (B, H, W) bool, H and W multiples of 8: the pixel shows the picture
    seeds:     one per picture; of several points in one cell one is drawn, at (seed, `purpose`)
    Returns classes (B, H/8, W/8) int64, 8 row + column of the point within its cell or `NO_POINT`, and a mask
    of the same shape: a cell counts if all its 64 pixels are valid. Raises ShapeError.
    """
    sizes = check_shape("valid", valid, f"{len(keypoints)} H W")
    if len(seeds) != len(keypoints):
        raise ShapeError(f"seeds: expected {len(keypoints)}, one per picture, got {len(seeds)}")
    counts = whole_cells(valid)
    maps = [_point_map(points, sizes["H"], sizes["W"]) for points in keypoints]
    classes = [
        _draw_class(_to_cells(points_HW), torch_generator_for(seed, "superpoint", "targets", purpose))
        for points_HW, seed in zip(maps, seeds, strict=True)
    ]
    return torch.stack(classes).to(valid.device), counts


def whole_cells(valid: Tensor) -> Tensor:
    """(B, H/8, W/8) bool: cells of which all pixels are valid, (B, H, W) bool. Raises ShapeError."""
    sizes = check_shape("valid", valid, "B H W")
    if sizes["H"] % CELL or sizes["W"] % CELL:
        raise ShapeError(
            f"valid: expected height and width that are multiples of {CELL}, got {tuple(valid.shape[1:])}; "
            f"set image_size accordingly"
        )
    return _to_cells(valid).all(dim=1)


def _point_map(points_N2: Tensor, height: int, width: int) -> Tensor:
    """(H, W) bool on the CPU: which pixels hold a point."""
    column, row = points_N2.detach().cpu().round().long().unbind(dim=1)
    within = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    points_HW = torch.zeros(height, width, dtype=torch.bool)
    points_HW[row[within], column[within]] = True
    return points_HW


def _to_cells(map_HW: Tensor) -> Tensor:
    """(..., H, W) to (..., 64, H/8, W/8): channel 8 row + column of each cell."""
    return F.pixel_unshuffle(map_HW.unsqueeze(-3), CELL)


def _draw_class(points_Khw: Tensor, generator: torch.Generator) -> Tensor:
    """(h, w) int64: one of the positive channels of each cell, all equally likely, or `NO_POINT`."""
    priority = torch.rand(points_Khw.shape, generator=generator)
    drawn = priority.masked_fill(~points_Khw, -1.0).argmax(dim=0)
    return torch.where(points_Khw.any(dim=0), drawn, NO_POINT)
