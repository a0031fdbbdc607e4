"""Descriptors at pixel positions, read from a map with one descriptor per 8 x 8 cell."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.geometry.sampling import sample_bilinear
from matchlib.methods.superpoint.config import DescriptorConfig, Sampling
from matchlib.methods.superpoint.network import CELL

_CENTRE = (CELL - 1) / 2  # of cell 0, in pixels


def sample_descriptors(map_DHW: Tensor, points_N2: Tensor, config: DescriptorConfig) -> Tensor:
    """Descriptors (N, D) float32 of unit length at pixel positions (N, 2); N may be 0.

    map_DHW: (D, h, w), cell o centred at pixel 8 o + 3.5. Beyond the outermost centres the value of the
    nearest border cell holds; "bicubic" is then still bicubic. Raises ShapeError.
    """
    sizes = check_shape("map", map_DHW, "D h w")
    check_shape("points", points_N2, "N 2")
    cells_N2 = cell_positions(points_N2, (sizes["w"], sizes["h"]), config.sampling)
    read = sample_bilinear if config.interpolation == "bilinear" else _sample_bicubic
    return F.normalize(read(map_DHW.float(), cells_N2).T, dim=1)


def cell_positions(points_N2: Tensor, map_size: tuple[int, int], sampling: Sampling) -> Tensor:
    """Where pixels (N, 2) = (x, y) are read in a map of `map_size` = (w, h) cells, (N, 2); 0 is the first cell.

    The legacy forms are those of published programs (see `DescriptorConfig.sampling`), for images of exactly
    8 w x 8 h pixels.
    """
    cells = points_N2.new_tensor(map_size)
    if sampling == "legacy_corner_aligned":
        return points_N2 * (cells - 1) / (CELL * cells)
    if sampling == "legacy_half_pixel":
        return points_N2 / CELL - 0.5
    if sampling == "superglue":
        return (points_N2 - _CENTRE) * (cells - 1) / (CELL * cells - _CENTRE - 1)
    return (points_N2 - _CENTRE) / CELL


def _sample_bicubic(map_DHW: Tensor, cells_N2: Tensor) -> Tensor:
    """Values (D, N) by PyTorch's bicubic convolution (a = -0.75), border cells repeated."""
    if not len(cells_N2):
        return map_DHW.new_zeros(map_DHW.shape[0], 0)
    height, width = map_DHW.shape[1:]
    # Half-pixel convention of grid_sample: unlike the corner-aligned one it is defined for a single cell.
    size = cells_N2.new_tensor([width, height])
    grid = (2 * cells_N2 + 1) / size - 1
    sampled: Tensor = F.grid_sample(
        map_DHW[None], grid[None, None], mode="bicubic", padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0]
