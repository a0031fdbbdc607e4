"""Sums and maxima over all training processes, and over one process when there is only one.

Batch statistics that span the ranks (batch norm, running maxima) use these, so that a global batch gives the
same result however many processes share it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def is_distributed() -> bool:
    """True inside an initialised process group of more than one process."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of `tensor` over all processes; every process gets the same result.

    tensor: any shape, same shape and dtype in every process. Every process must call it, in the same order.
    Differentiable: with L the sum of all processes' losses, the gradient is dL/dtensor, so the incoming
    gradients are summed over the processes too (data-parallel averaging then divides by the world size).
    Returns `tensor` itself when there is one process.
    """
    if not is_distributed():
        return tensor
    total: Tensor = _AllReduceSum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Elementwise maximum of `tensor` over all processes, without gradient. Shapes and calls as
    `all_reduce_sum`."""
    result = tensor.detach()
    if is_distributed():
        result = result.clone()
        torch.distributed.all_reduce(result, op=torch.distributed.ReduceOp.MAX)
    return result


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, op=torch.distributed.ReduceOp.SUM)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, op=torch.distributed.ReduceOp.SUM)
        return total
