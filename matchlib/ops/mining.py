"""Hardest negatives: for each query the most similar cells of a descriptor map outside of a disc around its match.

Which cell wins is a rule, not an accident of rounding: the largest dot product, added up in float64 in one fixed
order (`mining_reference.exact_scores`), and the lowest index among equals. Float32 products only preselect: what
comes within their proven rounding error of the best is compared exactly. So the reference, the C++ and the CUDA
kernel give the same cells whatever library, processor or number of threads computes the products.

The rule is the dot product's. For descriptors of unit length it is also the nearest by Euclidean distance; maps
of other lengths are searched for the largest dot product as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from matchlib.errors import BuildError, ShapeError, check_shape
from matchlib.ops.extension import load_extension
from matchlib.ops.mining_native import hardest_cells_op
from matchlib.ops.mining_reference import hardest_cells_reference

Backend = Literal["auto", "reference", "native"]
Search = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_LARGEST = 1e15  # a descriptor's element; products of larger ones may overflow float32


@dataclass(frozen=True, slots=True)
class MinedNegatives:
    """The cells found for each query, hardest first.

    index:      (B, N, k) int64, linear index y * W + x into the query's own map, -1 where nothing is left
    similarity: (B, N, k) float32, or float64 for float64 descriptors: the exact rule's dot product, rounded;
                -inf where index is -1
    """

    index: Tensor
    similarity: Tensor


@torch.no_grad()
def hardest_negatives(
    queries: Tensor,
    candidates: Tensor,
    centres: Tensor,
    radius: float,
    *,
    interval: int = 1,
    phase: tuple[int, int] = (0, 0),
    k: int = 1,
    suppression_radius: float | None = None,
    valid: Tensor | None = None,
    backend: Backend = "auto",
) -> MinedNegatives:
    """Find for each query the k most similar cells of its image's map that are no correct match.

    queries:    (B, N, D) float32 or float64, any device.
    candidates: (B, D, H, W), same dtype and device, channels first or last in memory; not copied if its rows
                follow each other.
    centres:    (B, N, 2) floating point, (x, y) in cells of the map, may lie outside of it: cells with
                (x - cx)^2 + (y - cy)^2 < radius^2 are excluded. Computed in float64; a cell at exactly this
                distance stays.
    interval, phase: only cells with x = phase[0] and y = phase[1] modulo `interval` are candidates. The caller
                draws the phase, from its own addressed generator.
    k:          how many; each costs one search.
    suppression_radius: cells nearer than this to an earlier pick of the query are excluded too, in cells; None
                keeps just the k best.
    valid:      (B, H, W) bool; cells that are False are no candidates. None: all are.
    backend:    "auto" takes the extension where it has a kernel for these tensors, else "reference", which is
                plain PyTorch; "native" insists and raises BuildError with the reason.
    Ties go to the lowest index. Float64 descriptors are always searched by the reference. Memory beside the
    result: a few tiles; the N x H W scores are never stored. No gradient.
    Raises ShapeError for shapes, dtypes or devices that do not fit, and for values that are not finite.
    """
    _check(queries, candidates, centres, valid)
    _check_choice(radius, interval, phase, k, suppression_radius)
    search = choose_search(backend, queries)
    cells, first_cell = _candidate_cells(candidates, interval, phase, valid)
    width = candidates.shape[3]
    discs, radii_sq = centres.double()[:, :, None], [radius * radius]
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(k):
        radii = torch.tensor(radii_sq, dtype=torch.float64, device=queries.device)
        index, similarity = search(queries, candidates, cells, first_cell, discs, radii)
        found.append((index, similarity.to(queries.dtype)))
        # Half a cell excludes the picked cell and no other.
        radii_sq.append(max(0.5, suppression_radius or 0.0) ** 2)
        pick = torch.stack([index % width, index // width], dim=-1).double()
        discs = torch.cat([discs, pick.masked_fill(index[..., None] < 0, math.inf)[:, :, None]], dim=2)
    return MinedNegatives(*(torch.stack(part, dim=-1) for part in zip(*found, strict=True)))


def _candidate_cells(
    candidates: Tensor, interval: int, phase: tuple[int, int], valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Linear indices of all images' candidates, ascending in each, and (B + 1) where each image's begin."""
    batch, _, height, width = candidates.shape
    on_grid = torch.zeros(height, width, dtype=torch.bool, device=candidates.device)
    on_grid[phase[1] :: interval, phase[0] :: interval] = True
    chosen = on_grid.expand(batch, -1, -1) if valid is None else on_grid & valid
    cells = chosen.flatten(1).nonzero()[:, 1]
    first_cell = cells.new_zeros(batch + 1)
    first_cell[1:] = chosen.sum((1, 2)).cumsum(0)
    return cells, first_cell


def choose_search(backend: Backend, queries: Tensor) -> Search:
    """The implementation that `backend` means for such queries. Raises BuildError if there is none."""
    if backend == "native":
        extension = load_extension()
        if not (extension.serves(queries.device.type) and queries.dtype == torch.float32):
            raise BuildError(
                f"mining: no native kernel for {queries.dtype} on {queries.device}: "
                f"{extension.reason or 'float32 is needed'}; choose backend 'auto'"
            )
    return hardest_cells_reference if backend == "reference" else hardest_cells_op


def _check(queries: Tensor, candidates: Tensor, centres: Tensor, valid: Tensor | None) -> None:
    sizes = check_shape("queries", queries, "B N D")
    batch, count, depth = sizes["B"], sizes["N"], sizes["D"]
    sizes = check_shape("candidates", candidates, f"{batch} {depth} H W")
    check_shape("centres", centres, f"{batch} {count} 2")
    if queries.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"queries: expected float32 or float64, got {queries.dtype}; convert them first")
    if not centres.is_floating_point():
        raise ShapeError(f"centres: expected floating point, got {centres.dtype}")
    wanted = {"candidates": (candidates, queries.dtype), "centres": (centres, centres.dtype)}
    if valid is not None:
        check_shape("valid", valid, f"{batch} {sizes['H']} {sizes['W']}")
        wanted["valid"] = (valid, torch.bool)
    for name, (tensor, dtype) in wanted.items():
        if (tensor.dtype, tensor.device) != (dtype, queries.device):
            raise ShapeError(
                f"{name}: expected {dtype} on {queries.device}, got {tensor.dtype} on {tensor.device}"
            )
    _check_values("centres", centres, largest=math.inf)
    for name, tensor in (("queries", queries), ("candidates", candidates)):
        check_descriptors(name, tensor)


def check_descriptors(name: str, tensor: Tensor) -> None:
    """Raise ShapeError for values that are not finite, or so large that products might not be."""
    _check_values(name, tensor, largest=_LARGEST)


def _check_values(name: str, tensor: Tensor, *, largest: float) -> None:
    if tensor.numel() == 0:
        return
    # The extremes are not finite if any value is not, and cost a third of testing every value.
    low, high = (float(extreme) for extreme in tensor.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ShapeError(
            f"{name}: expected finite values, got NaN or infinity; was the network's output checked?"
        )
    if max(-low, high) > largest:
        raise ShapeError(
            f"{name}: expected values up to {largest:g}, got {max(-low, high):g}; normalise them"
        )


def _check_choice(
    radius: float, interval: int, phase: tuple[int, int], k: int, suppression_radius: float | None
) -> None:
    if not (math.isfinite(radius) and radius >= 0):
        raise ShapeError(f"radius: expected a finite number of cells, 0 or more, got {radius}")
    if suppression_radius is not None and not (math.isfinite(suppression_radius) and suppression_radius >= 0):
        raise ShapeError(
            f"suppression_radius: expected a finite number of cells, 0 or more, or None, got {suppression_radius}"
        )
    if k < 1:
        raise ShapeError(f"k: expected at least 1, got {k}")
    if interval < 1:
        raise ShapeError(f"interval: expected at least 1 cell, got {interval}")
    if not all(0 <= start < interval for start in phase):
        raise ShapeError(f"phase: expected (x, y), each from 0 to interval - 1 = {interval - 1}, got {phase}")
