"""Batch normalisation whose statistics span all training processes, on any back end (gloo included)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.ops.reduce import all_reduce_sum, is_distributed


class BatchNorm(nn.Module):
    """Batch normalisation over (B, H, W) of all processes.

    affine:   scale and shift (`weight`, `bias`), as nn.BatchNorm2d names them
    momentum: weight of the newest batch in the running statistics

    Call it once per tower (the batch of first images, then the batch of second images): each normalises with
    its own statistics, and both enter the running ones, in this order.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, momentum: float, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and is_distributed():
            return self._normalise_over_processes(x)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _normalise_over_processes(self, x: Tensor) -> Tensor:
        wide = x.float()
        count = all_reduce_sum(wide.new_tensor(float(wide[:, 0].numel())))
        mean = all_reduce_sum(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        var = all_reduce_sum(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            unbiased = var * (count / (count - 1))  # as F.batch_norm stores it
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        normalised = centred * torch.rsqrt(var + self.eps)[:, None, None]
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return normalised.to(x.dtype)
