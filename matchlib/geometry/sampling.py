"""Reading maps at pixel positions. An integer position is the centre of a pixel; the first is (0, 0)."""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.errors import ShapeError


def inside(points_N2: Tensor, height: int, width: int) -> Tensor:
    """(..., N) bool: between the centres of the outermost pixels, where bilinear reading needs no padding."""
    x, y = points_N2[..., 0], points_N2[..., 1]
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def sample_bilinear(map_CHW: Tensor, points_N2: Tensor) -> Tensor:
    """Values (..., C, N) of a map (..., C, H, W) at pixel positions (..., N, 2) = (x, y).

    Leading dimensions are equal in both. Positions outside take the value of the nearest border pixel; nan
    positions give the first pixel's value (mask with `inside`). A neighbour of weight 0 does not enter, so
    exact positions give exact values even beside nan. Differentiable in both arguments. Raises ShapeError.
    """
    if map_CHW.shape[:-3] != points_N2.shape[:-2] or points_N2.shape[-1:] != (2,):
        raise ShapeError(
            f"points: expected {(*map_CHW.shape[:-3], 'N', 2)} for a map of {tuple(map_CHW.shape)}, "
            f"got {tuple(points_N2.shape)}"
        )
    x0, x1, wx = _neighbours(points_N2[..., 0], map_CHW.shape[-1])
    y0, y1, wy = _neighbours(points_N2[..., 1], map_CHW.shape[-2])
    top = _mix(_gather(map_CHW, x0, y0), _gather(map_CHW, x1, y0), wx[..., None, :])
    bottom = _mix(_gather(map_CHW, x0, y1), _gather(map_CHW, x1, y1), wx[..., None, :])
    return _mix(top, bottom, wy[..., None, :])


def sample_depth(depth_HW: Tensor, points_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Depth (..., N) at positions (..., N, 2) of maps (..., H, W), and where it is known, (..., N) bool.

    Known: the position is inside and all (up to) four neighbours that bilinear reading mixes are above 0, so
    that unknown depth never mixes with known. Depth is 0 where unknown. Source: the rule of D2-Net and
    tfmatch.
    """
    height, width = depth_HW.shape[-2:]
    x0, x1, wx = _neighbours(points_N2[..., 0], width)
    y0, y1, wy = _neighbours(points_N2[..., 1], height)
    maps = depth_HW.unsqueeze(-3)
    corners = [_gather(maps, x, y).squeeze(-2) for y in (y0, y1) for x in (x0, x1)]
    known = inside(points_N2, height, width)
    for corner in corners:
        known = known & (corner > 0)
    value = _mix(_mix(corners[0], corners[1], wx), _mix(corners[2], corners[3], wx), wy)
    return torch.where(known, value, 0), known


def legacy_resize(map_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (..., C, H, W) to `size` = (height, width) as TensorFlow 1 did by default.

    Output index p reads source position p * (in / out), bilinear, clamped to the last pixel; there is no
    half-pixel shift, so `F.interpolate` cannot express it. [0, 1, 2, 3] resized to 16 is 0, .25, ... 2.75, 3,
    3, 3, 3.
    """
    for dim, out in ((-2, size[0]), (-1, size[1])):
        count = map_CHW.shape[dim]
        # Integer arithmetic: p * in / out is then exact wherever float32 can hold it.
        position = (torch.arange(out, device=map_CHW.device) * count).to(map_CHW.dtype) / out
        low, high, weight = _neighbours(position, count)
        shape = [1] * map_CHW.ndim
        shape[dim] = out
        map_CHW = _mix(map_CHW.index_select(dim, low), map_CHW.index_select(dim, high), weight.reshape(shape))
    return map_CHW


def pixel_grid(height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(H * W, 2) float32 positions (x, y) of all pixels, row by row."""
    rows = torch.arange(height, dtype=torch.float32, device=device)
    columns = torch.arange(width, dtype=torch.float32, device=device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def _neighbours(position: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper index (equal at integers and borders) and weight of the upper one."""
    clamped = torch.nan_to_num(position, nan=0.0).clamp(0, count - 1)
    floor = clamped.detach().floor()
    return floor.long(), clamped.detach().ceil().long(), clamped - floor


def _gather(map_CHW: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(..., C, N) values at integer positions (..., N)."""
    index = (y * map_CHW.shape[-1] + x).unsqueeze(-2).expand(*map_CHW.shape[:-2], -1)
    return map_CHW.flatten(-2).gather(-1, index)


def _mix(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    return low + weight * (high - low)
