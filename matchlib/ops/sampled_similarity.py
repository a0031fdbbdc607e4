"""Similarity of queries with a descriptor map at given places, without sampling a descriptor at any of them.

A search along a line or in a window compares each of N queries with the map at K places. Sampled the usual way,
that is N x K descriptors, a gigabyte for a batch of eight; but bilinear reading is linear, so products with cells
can be interpolated instead of cells. Here a query is multiplied once with each cell that its places touch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from matchlib.errors import BuildError, ShapeError, check_shape
from matchlib.ops.extension import load_extension
from matchlib.ops.sampled_similarity_native import sampled_similarity_op
from matchlib.ops.sampled_similarity_reference import sampled_similarity_reference

Backend = Literal["auto", "reference", "native"]
Padding = Literal["border", "zeros"]
Compare = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def sampled_similarity(
    queries: Tensor,
    maps: Tensor,
    positions: Tensor,
    *,
    padding: Padding = "border",
    backend: Backend = "auto",
) -> Tensor:
    """Dot product of each query with its image's map at each of the query's positions.

    queries:   (B, N, D) floating point.
    maps:      (B, D, H, W), channels first or last in memory; channels first are copied once. At least one cell.
    positions: (B, N, K, 2), (x, y) in cells, whole numbers are cell centres; may lie anywhere.
    padding:   "border" moves positions outside of the map to its nearest point (as `grid_sample`); "zeros" reads
               zero vectors outside of it, so that what is read fades over one cell.
    backend:   "auto" takes the extension where it has a kernel for these tensors, else "reference", which is
               plain PyTorch; "native" insists and raises BuildError with the reason.
    Returns (B, N, K), float64 if queries or maps are, else float32: half precision is computed, and returned, in
    float32, because a soft-argmax over what is rounded to bfloat16 finds other places. What is read is not
    normalised. A NaN position gives NaN there, and no gradient.

    Differentiable (once) in queries and maps, not in positions. On the CPU the result and both gradients are
    bitwise the same for any number of threads, in the native form; see `sampled_similarity_native` for CUDA.
    Memory beside the result: O(B N K + B N D) and gradients. Raises ShapeError for shapes, dtypes or devices that
    do not fit, and for positions that want a gradient.
    """
    _check(queries, maps, positions, padding)
    dtype = torch.float64 if torch.float64 in (queries.dtype, maps.dtype) else torch.float32
    compare = _choose(backend, queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        cells_last = maps.to(dtype).permute(0, 2, 3, 1).contiguous()
        return compare(queries.to(dtype), cells_last, positions.detach().to(dtype), padding == "zeros")


def _choose(backend: Backend, device: torch.device) -> Compare:
    if backend not in ("auto", "native", "reference"):
        raise ShapeError(f"backend: expected 'auto', 'reference' or 'native', got {backend!r}")
    if backend == "reference":
        return sampled_similarity_reference
    extension = load_extension()
    if extension.serves(device.type):
        return sampled_similarity_op
    if backend == "native":
        raise BuildError(
            f"sampled_similarity: no native kernel for {device.type} tensors: {extension.reason}; "
            "choose backend 'auto'"
        )
    return sampled_similarity_reference


def _check(queries: Tensor, maps: Tensor, positions: Tensor, padding: Padding) -> None:
    if padding not in ("border", "zeros"):
        raise ShapeError(f"padding: expected 'border' or 'zeros', got {padding!r}")
    sizes = check_shape("queries", queries, "B N D")
    cells = check_shape("maps", maps, f"{sizes['B']} {sizes['D']} H W")
    check_shape("positions", positions, f"{sizes['B']} {sizes['N']} K 2")
    if cells["H"] < 1 or cells["W"] < 1:
        raise ShapeError(f"maps: expected at least one cell, got {cells['H']}x{cells['W']}")
    for name, tensor in {"queries": queries, "maps": maps, "positions": positions}.items():
        if tensor.device != queries.device or not tensor.is_floating_point():
            raise ShapeError(
                f"{name}: expected floating point on {queries.device}, got {tensor.dtype} on {tensor.device}"
            )
    if positions.requires_grad and torch.is_grad_enabled():
        raise ShapeError("positions: expected no gradient, none is computed for them; detach them")
