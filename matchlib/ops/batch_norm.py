"""Batch normalisation whose statistics span all training processes, on any back end (gloo included)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.ops.reduce import all_reduce_sum, is_distributed


class BatchNorm(nn.Module):
    """Batch normalisation over (B, H, W) of all processes.

    affine:      scale and shift (`weight`, `bias`), as nn.BatchNorm2d names them
    momentum:    weight of the newest batch in the running statistics
    synchronise: False: each process normalises by its own share of the batch, and keeps its own running
                 statistics; nothing is exchanged

    Call it once per tower (the batch of first images, then the batch of second images): each normalises with
    its own statistics, and both enter the running ones, in this order. One call with `towers=2` does the same for
    the two batches joined along B, so that the layers around it can take them in one go.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        *,
        momentum: float,
        eps: float = 1e-5,
        affine: bool = True,
        synchronise: bool = True,
    ) -> None:
        super().__init__()
        self.momentum, self.eps, self.synchronise = momentum, eps, synchronise
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, towers: int = 1) -> Tensor:
        """Normalise (B, C, H, W); in training, each of the `towers` equal parts of B by itself. Raises ShapeError."""
        if towers > 1 and len(x) % towers:
            raise ShapeError(f"batch norm: expected a batch that {towers} towers share evenly, got {len(x)}")
        if towers == 1 or not self.training:
            return self._normalise(x)
        return torch.cat([self._normalise(part) for part in x.chunk(towers)])

    def _normalise(self, x: Tensor) -> Tensor:
        if self.training and self.synchronise and is_distributed():
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
