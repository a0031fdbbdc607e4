"""Where a query of image 0 is found in image 1: first along its epipolar line, then in a window around that place.

Source: Li et al., CVPR 2022, section 3.2, and the public implementation. B pairs, N queries, D descriptor dimensions,
K places per query. Positions are pixels of the image; "normalised units" are half the image's width and height.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from matchlib.errors import ConfigError, ShapeError
from matchlib.geometry.epipolar import clip_lines
from matchlib.geometry.sampling import inside
from matchlib.methods.posfeat.config import DescriptorLossConfig, Sampling
from matchlib.methods.posfeat.network import map_positions
from matchlib.ops.sampled_similarity import sampled_similarity
from matchlib.randomness import torch_generator_for

Size = tuple[int, int]
"""(width, height)"""

Padding = Literal["border", "zeros"]

_JITTER = 0.707  # of the window's half-width, per axis
_SMALLEST_VARIANCE = 1e-10  # keeps the weight of a query finite


@dataclass(frozen=True, slots=True)
class Found:
    """Where the queries are expected in the other image.

    points: (B, N, 2) pixels, differentiable
    spread: (B, N) standard deviations along x and y, added up, in normalised units, without gradient
    valid:  (B, N) bool: the epipolar line crosses the image, and the window's centre is inside
    """

    points: Tensor
    spread: Tensor
    valid: Tensor


def draw_queries(
    image_size: Size, cell_px: int, seeds: tuple[int, ...], purpose: str, device: torch.device
) -> Tensor:
    """(B, N, 2) float32 pixels: one drawn in each cell of `cell_px` pixels on a side, row by row.

    Each pair's draw depends on its seed and `purpose` only, and is the same on every device. What is left of the image
    at the right and bottom, if its sides are no multiples, has no cell. Raises ShapeError without any cell.
    """
    columns, rows = (side // cell_px for side in image_size)
    if columns < 1 or rows < 1:
        raise ShapeError(
            f"image: expected at least {cell_px} x {cell_px} pixels for a cell, got {image_size}"
        )
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x, y], dim=-1).reshape(-1, 2) * cell_px
    drawn = [
        torch.randint(cell_px, corners.shape, generator=torch_generator_for(seed, "posfeat", purpose))
        for seed in seeds
    ]
    return (corners + torch.stack(drawn)).to(device, torch.float32)


def draw_jitter(
    image_size: Size, queries: int, config: DescriptorLossConfig, seeds: tuple[int, ...], purpose: str
) -> Tensor:
    """(B, N, 2) float32 pixels, uniform within 0.707 of the window's half-width, on the CPU; addressed as queries."""
    drawn = [
        2 * torch.rand(queries, 2, generator=torch_generator_for(seed, "posfeat", purpose)) - 1
        for seed in seeds
    ]
    return torch.stack(drawn) * _JITTER * _half_window(image_size, config, drawn[0])


def search(
    queries_BND: Tensor,
    unit_map: Tensor,
    lines_BN3: Tensor,
    jitter_BN2: Tensor | None,
    image_size: Size,
    config: DescriptorLossConfig,
    sampling: Sampling,
) -> Found:
    """Expected positions of queries in the image whose epipolar lines they have.

    queries: (B, N, D) unit descriptors; unit_map: (B, D, h, w) unit descriptors of the image of `image_size`
    lines:   (B, N, 3) in pixels; jitter: (B, N, 2) pixels to move the windows by, None for not at all
    All of one floating dtype, float32 or float64. Raises ConfigError for a window of fewer than 2 x 2 places.
    """
    ends, valid = line_ends(lines_BN3, image_size, config)
    with torch.no_grad():
        centre = line_position(queries_BND, unit_map, ends, image_size, config, sampling)
        if jitter_BN2 is not None:
            centre = centre + jitter_BN2
    valid = valid & inside(centre, image_size[1], image_size[0])
    points, spread = window_position(queries_BND, unit_map, centre, image_size, config, sampling)
    return Found(points, spread, valid)


def line_ends(lines: Tensor, image_size: Size, config: DescriptorLossConfig) -> tuple[Tensor, Tensor]:
    """Ends (B, N, 2, 2) of the usable lines in the image and which are usable, (B, N) bool."""
    ends, valid = clip_lines(lines, image_size)
    if config.line_ends == "legacy":
        valid = valid & (border_hits(lines, image_size) == 2)
    return ends, valid


def border_hits(lines: Tensor, image_size: Size) -> Tensor:
    """How many of the image's four sides each line (..., 3) meets, (...,) int64; a corner belongs to two sides."""
    a, b, c = lines.unbind(-1)
    right, bottom = image_size[0] - 1, image_size[1] - 1
    hits = torch.zeros_like(a, dtype=torch.int64)
    for x in (0, right):
        y = -(a * x + c) / b  # parallel lines give inf or nan, which is no hit
        hits += (y >= 0) & (y <= bottom)
    for y_side in (0, bottom):
        x_hit = -(b * y_side + c) / a
        hits += (x_hit >= 0) & (x_hit <= right)
    return hits


def line_position(
    queries: Tensor,
    unit_map: Tensor,
    ends: Tensor,
    image_size: Size,
    config: DescriptorLossConfig,
    sampling: Sampling,
) -> Tensor:
    """(B, N, 2) pixels: the best of, or the mean over, `line_samples` places from end to end of each line.

    The first of equally good places counts (differs from the release, which adds them up).
    """
    along = torch.linspace(0, 1, config.line_samples, dtype=ends.dtype, device=ends.device)[:, None]
    places = torch.lerp(ends[:, :, :1], ends[:, :, 1:], along)
    similarity = _similarity(queries, unit_map, places, image_size, sampling, padding="border")
    if config.line_position == "expected":
        probability = (config.temperature * similarity).softmax(dim=-1)
        return (probability[..., None] * places).sum(dim=2)
    best = similarity.argmax(dim=-1)
    return places.gather(2, best[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)


def window_position(
    queries: Tensor,
    unit_map: Tensor,
    centre: Tensor,
    image_size: Size,
    config: DescriptorLossConfig,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """Mean (B, N, 2) in pixels, and spread (B, N), of the match within the windows around `centre` (B, N, 2)."""
    offsets = window_offsets(image_size, (unit_map.shape[-1], unit_map.shape[-2]), config).to(centre)
    places = centre[:, :, None] + offsets
    similarity = _similarity(queries, unit_map, places, image_size, sampling, padding="zeros")
    probability = (config.temperature * similarity).softmax(dim=-1)
    mean_offset = probability @ offsets
    with torch.no_grad():
        # About the mean: the difference of two squares would lose its digits where the match is sharp.
        deviation = (offsets - mean_offset[:, :, None]) / _half_size(image_size, offsets)
        variance = (probability[..., None] * deviation.square()).sum(dim=2)
        spread = variance.clamp_min(_SMALLEST_VARIANCE).sqrt().sum(dim=-1)
    return centre + mean_offset, spread


def window_offsets(image_size: Size, map_size: Size, config: DescriptorLossConfig) -> Tensor:
    """(K, 2) float64 pixels: the places of a window about its centre, row by row, about one per cell of the map.

    Per axis int(window * cells) places spanning +- window in normalised units. Raises ConfigError below 2 per axis.
    """
    counts = [int(config.window * cells) for cells in map_size]
    if min(counts) < 2:
        raise ConfigError(
            f"posfeat.descriptor_loss.window: expected at least 2 cells along each side of a window, got "
            f"{counts[0]} x {counts[1]} of a map of {map_size[0]} x {map_size[1]} cells; widen the window, or train "
            f"on larger images"
        )
    half = _half_window(image_size, config, torch.empty(0, dtype=torch.float64)).tolist()
    x, y = (torch.linspace(-h, h, n, dtype=torch.float64) for h, n in zip(half, counts, strict=True))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(-1, 2)


def _similarity(
    queries: Tensor,
    unit_map: Tensor,
    places: Tensor,
    image_size: Size,
    sampling: Sampling,
    *,
    padding: Padding,
) -> Tensor:
    """(B, N, K) dot products of the queries with the map at places (B, N, K, 2) in pixels."""
    map_size = (unit_map.shape[-1], unit_map.shape[-2])
    cells = map_positions(places, image_size, map_size, sampling)
    similarity: Tensor = sampled_similarity(queries, unit_map, cells, padding=padding)
    return similarity


def _half_size(image_size: Size, like: Tensor) -> Tensor:
    """What 1 in normalised units is in pixels, (2,)."""
    return (like.new_tensor(image_size) - 1) / 2


def _half_window(image_size: Size, config: DescriptorLossConfig, like: Tensor) -> Tensor:
    return config.window * _half_size(image_size, like)
