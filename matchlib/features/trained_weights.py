"""Weights that a training stage wrote: safetensors, the state dict as it is."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from matchlib.errors import DataError


def read_trained(path: Path, *, method: str) -> dict[str, Tensor]:
    """The tensors of a stage's weights file by name, on the CPU. Raises DataError, naming file and method."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: weights not found; train {method} first, or name the right file") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: expected a safetensors file; {error}") from error
