"""Comparing and reading weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from matchlib.errors import DataError

_COUNTER = (
    "num_batches_tracked"  # newer PyTorch counts batches in its batch norm; nothing is computed from it
)


def first_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first key, in the order of `expected`, that `found` lacks or has in another shape, as a phrase.

    Then keys that `found` has besides; None if both have the same keys and shapes.
    """
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name not in found:
            return f"{name}: expected shape {shape}, got nothing"
        if found[name].shape != tensor.shape:
            return f"{name}: expected shape {shape}, got {tuple(found[name].shape)}"
    for name, tensor in found.items():
        if name not in expected:
            return f"{name}: expected nothing, got shape {tuple(tensor.shape)}"
    return None


def read_pickled_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file (`.pth`) by name, on the CPU: a state dict, or one under "model".

    The prefix `module.` of parallel training and the batch counters of batch norm are dropped. Code in the
    file is not run. Raises DataError.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: weights not found") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: expected weights saved by PyTorch; {str(error).splitlines()[0]}") from error
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f'{path}: expected tensors by name, or such a mapping under "model"')
    return {
        str(name).removeprefix("module."): tensor
        for name, tensor in state.items()
        if not str(name).endswith(_COUNTER)
    }
