"""What the trainer asks of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn


class TrainableModel(Protocol):
    """An `nn.Module` that one trainer can train, whatever the method. Not a base class: only these are
    called.

    `state_dict()` must hold everything inference needs (weights and buffers). Frozen parts have
    `requires_grad=False` when `trainable(config, stage, seed)` returns.
    """

    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        """Scalar losses by name, each a mean over the pairs of the batch; the trainer minimises their sum.

        Names that start with "figure/" are logged and not minimised. Random draws come from `batch.seeds`.
        The model is in training mode. At every step every trainable parameter must get a gradient (of zero, if
        there is nothing to learn), and the names must be the same.

        With several ranks the batch is this rank's share. Statistics that span the batch (batch norm, running
        maxima) either span all ranks, so that the result does not depend on their number (`training.distributed`
        has the reductions; each is an exchange that all wait for), or are each rank's own; then validation and
        weights files have the mean over the ranks of the float buffers.
        """
        ...

    def validation_step(self, batch: Any) -> Mapping[str, float]:
        """Figures of one validation batch (evaluation mode, no gradient); the trainer takes means over pairs."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: dicts with "params" and optional "weight_decay", "lr_scale"; trainable ones only."""
        ...

    def pictures(self, batch: Any) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Pictures of the first pair by name, (H, W, 3) uint8 RGB, for TensorBoard and the report."""
        ...

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of the stage named by `StageSpec.init_from`."""
        ...


def as_module(model: TrainableModel) -> nn.Module:
    """The same object, seen as the `nn.Module` that it is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}")
    return model
