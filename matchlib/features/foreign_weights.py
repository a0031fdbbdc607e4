"""Weights that others published: read from a file of the user's, checked against the network, never downloaded."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matchlib.completion import digest_file
from matchlib.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# Keys under which training programs put the state dict beside other things (DISK: extractor; Key.Net: state_dict).
_WRAPPERS = ("extractor", "state_dict", "model_state_dict", "model", "net")
_WRAPPED_BY_DATA_PARALLEL = "module."
# What torch.load raises for files that are no checkpoints, damaged ones, and ones that hold more than tensors.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OSError,
)


def need_path(given: Path | str | None, *, what: str, option: str) -> Path:
    """The path of a file that the user has to bring. Raises ConfigError if there is none."""
    if given is None:
        raise ConfigError(
            f"{option}: expected a file with the published weights of {what}, got none; name it"
        )
    return Path(given)


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    what: str,
    computed: tuple[str, ...] = (),
    ignore_unexpected: bool = False,
) -> str:
    """Fill `module` with the weights of a file and return the digest of the file.

    path:              what `torch.save` or safetensors wrote: a state dict, alone or under a usual key
    what:              the network's name, for messages
    computed:          names of buffers that the constructor computes: a file's, if it has them, are not read
    ignore_unexpected: tensors that the network does not have are named in the log instead of refused
    Nothing is executed from the file (`weights_only`). Raises DataError for a file that is absent, unreadable, or
    of another network; the message names the first tensor, in the network's order, that differs.
    """
    fill_module(
        module,
        read_state_dict(path),
        path=path,
        what=what,
        computed=computed,
        ignore_unexpected=ignore_unexpected,
    )
    return digest_file(path)


def fill_module(
    module: nn.Module,
    found: Mapping[str, Tensor],
    *,
    path: Path,
    what: str,
    computed: tuple[str, ...] = (),
    ignore_unexpected: bool = False,
) -> None:
    """As `load_weights`, with tensors by name that were read from `path` before."""
    state = {name: tensor for name, tensor in found.items() if name not in computed}
    wanted = {name: tensor for name, tensor in module.state_dict().items() if name not in computed}
    optional = {name for name in wanted if name.endswith(".num_batches_tracked")}
    missing = [name for name in wanted if name not in state and name not in optional]
    unexpected = [name for name in state if name not in wanted]
    for name, tensor in wanted.items():
        if name in missing:
            raise _misfit(path, what, f"'{name}' is missing", missing, unexpected)
        if name in state and state[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, got {tuple(state[name].shape)}"
            raise _misfit(path, what, f"'{name}': expected shape {shapes}", missing, unexpected)
    if unexpected and not ignore_unexpected:
        raise _misfit(path, what, f"'{unexpected[0]}' is not part of it", missing, unexpected)
    if unexpected:
        logger.warning(
            "%s: %d tensors that %s does not have: %s", path, len(unexpected), what, unexpected[:5]
        )
    module.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: weights not found; download the published file and name it")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: expected weights that torch.load reads without running code; {first_line}"
        ) from error
    return _without_prefix(_unwrapped(loaded, path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _without_prefix(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: expected a safetensors file; {error}") from error


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return {str(name): value for name, value in loaded.items()}
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            keys = ", ".join(sorted(str(key) for key in loaded)[:8]) or "none"
            raise DataError(
                f"{path}: expected a state dict, alone or under one of {', '.join(_WRAPPERS)}; got keys {keys}"
            )
        loaded = inner[0]
    raise DataError(f"{path}: expected a state dict, got {type(loaded).__name__}")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith(_WRAPPED_BY_DATA_PARALLEL) for name in state):
        return {name.removeprefix(_WRAPPED_BY_DATA_PARALLEL): value for name, value in state.items()}
    return state


def _misfit(path: Path, what: str, first: str, missing: list[str], unexpected: list[str]) -> DataError:
    return DataError(
        f"{path}: expected weights of {what}; first difference: {first} "
        f"({len(missing)} tensors missing, {len(unexpected)} unexpected); name the right file or variant"
    )
