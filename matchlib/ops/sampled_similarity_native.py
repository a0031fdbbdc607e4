"""Sampled similarity as the operator `matchlib::sampled_similarity`.

Its kernels are in the extension (`csrc/sampled_similarity.cpp`, `.cu`); `matchlib.ops.sampled_similarity` checks the
arguments and takes the reference where there are none.

Sums have one order everywhere, so results repeat bit by bit. On the CPU each thread owns some channels of some
cells of a map's gradient and adds the queries in their order. On CUDA the corners of all positions are sorted by cell
(stably), and one warp adds up those of one cell: no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SCHEMA = "(Tensor queries, Tensor maps, Tensor positions, bool zeros) -> Tensor"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor queries, Tensor maps, Tensor positions, bool zeros) -> (Tensor, Tensor)"
)


def _forward(queries: Tensor, maps: Tensor, positions: Tensor, zeros: bool) -> Tensor:
    """queries (B, N, D), maps (B, H, W, D), positions (B, N, K, 2), one dtype: float32 or float64."""
    similarity = queries.new_empty(positions.shape[:3])
    torch.ops.matchlib_native.sampled_similarity(
        *(queries.contiguous(), maps.contiguous(), positions.contiguous()),
        *(zeros, _stream(queries), similarity),
    )
    return similarity


def _backward(
    grad: Tensor, queries: Tensor, maps: Tensor, positions: Tensor, zeros: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and maps."""
    tensors = [tensor.contiguous() for tensor in (grad, queries, maps, positions)]
    grad_queries = queries.new_empty(queries.shape)
    if queries.device.type == "cuda":
        return grad_queries, _backward_by_sorting(tensors, zeros, grad_queries)
    grad_maps = maps.new_zeros(maps.shape)
    torch.ops.matchlib_native.sampled_similarity_backward(*tensors, zeros, grad_queries, grad_maps)
    return grad_queries, grad_maps


def _backward_by_sorting(tensors: list[Tensor], zeros: bool, grad_queries: Tensor) -> Tensor:
    """Gradient of the maps, for CUDA; writes that of the queries. tensors: grad, queries, maps, positions."""
    grad, queries, maps, _ = tensors
    cells = grad.new_empty(4 * grad.numel(), dtype=torch.int32)
    weights = grad.new_empty(4 * grad.numel())
    torch.ops.matchlib_native.sampled_similarity_shares(
        *(*tensors, zeros, _stream(queries)), *(grad_queries, cells, weights)
    )
    cells, order = cells.sort(stable=True)
    # Corners outside of all maps have a number beyond the last cell's: they are sorted to the end and left there.
    borders = torch.arange(maps.shape[:3].numel() + 1, dtype=torch.int32, device=cells.device)
    first_corner = torch.searchsorted(cells, borders)
    grad_maps = maps.new_empty(maps.shape)
    torch.ops.matchlib_native.sampled_similarity_gather(
        *(queries, weights, order, first_corner), *(_stream(queries), grad_maps)
    )
    return grad_maps


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.device.type == "cuda" else 0


# ---------------------------------------------------------------- registration
sampled_similarity_op = torch.library.custom_op(
    "matchlib::sampled_similarity", _forward, mutates_args=(), schema=_SCHEMA
)
sampled_similarity_backward_op = torch.library.custom_op(
    "matchlib::sampled_similarity_backward", _backward, mutates_args=(), schema=_BACKWARD_SCHEMA
)


@sampled_similarity_op.register_fake
def _fake_forward(queries: Tensor, maps: Tensor, positions: Tensor, zeros: bool) -> Tensor:
    return queries.new_empty(positions.shape[:3])


@sampled_similarity_backward_op.register_fake
def _fake_backward(
    grad: Tensor, queries: Tensor, maps: Tensor, positions: Tensor, zeros: bool
) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), maps.new_empty(maps.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.zeros = inputs[3]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *sampled_similarity_backward_op(grad, *ctx.saved_tensors, ctx.zeros), None, None


sampled_similarity_op.register_autograd(_differentiate, setup_context=_setup_context)
