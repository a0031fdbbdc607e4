"""The loss of stage `desc`: how far from its epipolar line each query is found, in pixels.

Source: Li et al., CVPR 2022, section 3.2, and the public implementation. B pairs, N queries per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.errors import check_shape
from matchlib.geometry.epipolar import epipolar_lines, point_line_distance
from matchlib.methods.posfeat import epipolar_search
from matchlib.methods.posfeat.config import DescriptorLossConfig, Sampling
from matchlib.methods.posfeat.network import descriptors_at
from matchlib.ops.reduce import all_reduce_sum

_SMALLEST_WEIGHT = 1e-8  # what the release adds to the mean of weights before it divides by it


@dataclass(frozen=True, slots=True)
class DescriptorLoss:
    """The loss and what it consists of, scalars; only `loss` has a gradient.

    loss:        loss_0to1 + loss_1to0
    loss_0to1, loss_1to0: weighted mean distance of the queries of image 0, or 1, to their lines, in pixels
    used_share:  share of the queries that count, mean of both directions
    distance_px: mean distance of the queries that count, without weights; 0 if there is none
    """

    loss: Tensor
    loss_0to1: Tensor
    loss_1to0: Tensor
    used_share: Tensor
    distance_px: Tensor


@dataclass(frozen=True, slots=True)
class _Direction:
    """distance (B, N) in pixels, 0 where a query does not count; certainty (B, N) 1 / spread; used (B, N) bool."""

    distance: Tensor
    certainty: Tensor
    used: Tensor


def descriptor_loss(
    fine0: Tensor,
    fine1: Tensor,
    F_0to1: Tensor,
    image_size: tuple[int, int],
    seeds: tuple[int, ...],
    config: DescriptorLossConfig,
    sampling: Sampling,
) -> DescriptorLoss:
    """Search the queries of each image in the other, and weigh their distances to the epipolar lines.

    fine0, fine1: (B, D, h, w) descriptor maps of any length; half precision is raised to float32
    F_0to1:       (B, 3, 3) float64, pixels of image 0 to lines of image 1
    image_size:   (width, height) of both images; seeds: one per pair, all draws come from them
    Weights are 1 / spread, constant for the gradient, scaled to a mean of 1 over each pair or, with `weights` "batch",
    over all pairs of all processes, which must then call this together. Either way the loss does not depend on among
    how many processes a batch is divided evenly. A pair without any query
    that counts, such as one whose F is 0, adds a zero that is tied to the graph. Raises ShapeError, ConfigError.
    """
    sizes = check_shape("fine0", fine0, "B D h w")
    check_shape("fine1", fine1, f"{sizes['B']} {sizes['D']} {sizes['h']} {sizes['w']}")
    check_shape("F_0to1", F_0to1, f"{sizes['B']} 3 3")
    check_shape("seeds", torch.tensor(seeds), f"{sizes['B']}")
    with torch.autocast(fine0.device.type, enabled=False):
        maps = (_precise(fine0), _precise(fine1))
        # Each is read twice, by the line and by the window search, which want a cell's descriptor in one piece.
        unit = [F.normalize(fine, dim=1).contiguous(memory_format=torch.channels_last) for fine in maps]
        directions = [
            _one_direction(maps[i], unit[1 - i], lines_of, f"image {i}", image_size, seeds, config, sampling)
            for i, lines_of in enumerate((F_0to1, F_0to1.mT))
        ]
        if config.weights == "batch":
            loss_0to1, loss_1to0 = _means_of_batch(directions)
        else:
            loss_0to1, loss_1to0 = (_mean_of_pairs(direction) for direction in directions)
        used = torch.stack([direction.used for direction in directions])
        distance = torch.stack([direction.distance.detach() for direction in directions])
        return DescriptorLoss(
            loss=loss_0to1 + loss_1to0,
            loss_0to1=loss_0to1.detach(),
            loss_1to0=loss_1to0.detach(),
            used_share=used.to(distance).mean(),
            distance_px=distance.sum() / used.sum().clamp_min(1),
        )


def _one_direction(
    own_map: Tensor,
    other_unit_map: Tensor,
    F_own_to_other: Tensor,
    own: str,
    image_size: tuple[int, int],
    seeds: tuple[int, ...],
    config: DescriptorLossConfig,
    sampling: Sampling,
) -> _Direction:
    """Queries of one image, searched in the other. own: which image, a part of the address of its draws."""
    device, dtype = own_map.device, own_map.dtype
    points = epipolar_search.draw_queries(image_size, config.cell_px, seeds, f"queries of {own}", device)
    jitter = None
    if config.jitter:
        drawn = epipolar_search.draw_jitter(image_size, points.shape[1], config, seeds, f"jitter of {own}")
        jitter = drawn.to(device, dtype)
    lines = epipolar_lines(points.double(), F_own_to_other.double()).to(dtype)
    # Nan times a weight of zero would be nan again, in the loss or in its gradient.
    lines = torch.where(torch.isfinite(lines).all(-1, keepdim=True), lines, 0)
    queries = descriptors_at(own_map, points, image_size, sampling)
    found = epipolar_search.search(queries, other_unit_map, lines, jitter, image_size, config, sampling)
    distance = point_line_distance(found.points, lines)
    used = found.valid & (distance.detach() < config.max_distance * min(image_size))
    return _Direction(torch.where(used, distance, 0), 1 / found.spread, used)


def _mean_of_pairs(direction: _Direction) -> Tensor:
    """Mean distance of one direction, weighted by certainty within each pair, then the mean over pairs.

    With w = certainty / mean(certainty), zero where a query does not count: mean(w d) / (mean(w) + 1e-8).
    """
    weight = direction.used * direction.certainty
    scale = weight.mean(1) + _SMALLEST_WEIGHT * direction.certainty.mean(1)
    return ((weight * direction.distance).mean(1) / scale).mean()


def _means_of_batch(directions: list[_Direction]) -> list[Tensor]:
    """As `_mean_of_pairs`, but with mean weights over all queries of all processes: the published form."""
    parts = [[(d.used * d.certainty).mean(), d.certainty.mean()] for d in directions]
    # In one exchange: how many processes there are, and each one's mean weights.
    sums = all_reduce_sum(torch.stack([torch.ones_like(parts[0][0]), *parts[0], *parts[1]]))
    used_means, all_means = (sums[1:] / sums[0]).reshape(2, 2).unbind(dim=1)
    return [
        (d.used * d.certainty * d.distance).mean() / (used + _SMALLEST_WEIGHT * everything)
        for d, used, everything in zip(directions, used_means, all_means, strict=True)
    ]


def _precise(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
