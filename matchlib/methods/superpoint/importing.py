"""Weights of SuperPoint from files: those of its stages, and those that other programs wrote."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from matchlib.errors import ConfigError, DataError
from matchlib.features.trained_weights import read_trained
from matchlib.methods.superpoint.config import Layout, NetworkConfig, SuperPointConfig
from matchlib.methods.superpoint.network import SuperPointNetwork
from matchlib.randomness import torch_generator_for

PREFIX = "network."
"""What the names of the network's tensors begin with in the state of a stage."""

_BLOCK_OF_TABLE = {
    **{f"conv{stage + 1}{'ab'[i]}": f"backbone.{stage}.{i}" for stage in range(4) for i in range(2)},
    **{f"convP{'ab'[i]}": f"detector.{i}" for i in range(2)},
    **{f"convD{'ab'[i]}": f"descriptor.{i}" for i in range(2)},
}
"""Names of the published table, as in `superpoint_v1.pth`, and of the blocks of `SuperPointNetwork`."""

_SIGN_OF_LAYOUT: Mapping[str, Layout] = {"conv1a.weight": "vgg", "backbone.0.0.conv.weight": "vgg_bn"}


def load_network(config: SuperPointConfig, weights: Path | None) -> SuperPointNetwork:
    """The network in evaluation mode with the weights of a stage; None gives the untrained one of seed 0.

    weights: safetensors whose names begin with `network.`; other tensors in it are an error, too. Raises
    DataError that names the first differing tensor.
    """
    network = SuperPointNetwork(config.network)
    if weights is None:
        network.initialise(torch_generator_for(0, "superpoint", "initialise"))
        return _for_inference(network)
    state = read_trained(weights, method="superpoint")
    _check_state(weights, state, config.network)
    network.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    return _for_inference(network)


def import_weights(config: SuperPointConfig, path: Path) -> dict[str, Tensor]:
    """A published file as the state of a stage: names with the prefix `network.`, float32, on the CPU.

    Two layouts are told apart by their names: that of `superpoint_v1.pth` (conv1a.weight, ...; layout "vgg")
    and that of the MIT-licensed `superpoint_v6_from_tf.pth` (backbone.0.0.conv.weight, ...; "vgg_bn"). Files
    are PyTorch's, read without running code in them, or safetensors. Raises DataError for other content,
    ConfigError where `network.layout` is not that of the file.
    """
    state = read_trained(path, method="superpoint") if path.suffix == ".safetensors" else _read_pickle(path)
    layout = next((layout for sign, layout in _SIGN_OF_LAYOUT.items() if sign in state), None)
    if layout is None:
        raise DataError(
            f"{path}: expected weights of SuperPoint with {' or '.join(_SIGN_OF_LAYOUT)}, got "
            f"{len(state)} tensors, first {next(iter(state), 'none')}"
        )
    if layout != config.network.layout:
        raise ConfigError(
            f"superpoint.network.layout: expected '{layout}' for {path}, got '{config.network.layout}'"
        )
    named = {PREFIX + _own_name(name): tensor for name, tensor in state.items() if not _is_counter(name)}
    _check_state(path, named, config.network)
    return {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in named.items()}


def _for_inference(network: SuperPointNetwork) -> SuperPointNetwork:
    """In evaluation mode, channels innermost: on a CPU a third less time."""
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    return network.eval()


def _own_name(name: str) -> str:
    """`conv3a.weight` is `backbone.2.0.conv.weight`; names of the other layout are our own."""
    block, _, parameter = name.partition(".")
    return f"{_BLOCK_OF_TABLE[block]}.conv.{parameter}" if block in _BLOCK_OF_TABLE else name


def _is_counter(name: str) -> bool:
    """nn.BatchNorm2d counts its batches; nothing here reads that."""
    return name.endswith(".num_batches_tracked")


def _check_state(path: Path, found: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Raise DataError for the first tensor, in the network's order, that is missing or of another shape, or
    else for the first that the network does not have."""
    with torch.device("meta"):
        expected = {PREFIX + name: t for name, t in SuperPointNetwork(config).state_dict().items()}
    fault = None
    for name, tensor in expected.items():
        if name not in found:
            fault = f"expected {name} of shape {tuple(tensor.shape)}, got no such tensor"
        elif found[name].shape != tensor.shape:
            fault = f"{name}: expected shape {tuple(tensor.shape)}, got {tuple(found[name].shape)}"
        if fault:
            break
    unknown = next((name for name in found if name not in expected), None)
    if fault is None and unknown is not None:
        fault = f"unexpected {unknown} of shape {tuple(found[unknown].shape)}"
    if fault:
        raise DataError(
            f"{path}: {fault}; the settings ask for superpoint.network.layout '{config.layout}', variant "
            f"'{config.variant}': correct them, or name the right file"
        )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: weights not found; name the right file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{path}: expected PyTorch weights (.pth); {reason}") from error
    is_state = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    if not is_state:
        raise DataError(
            f"{path}: expected a flat dictionary of tensors, got {_describe(state)}; save the model's state_dict"
        )
    return dict(state)


def _describe(value: object) -> str:
    if not isinstance(value, Mapping):
        return type(value).__name__
    first = next((name for name, item in value.items() if not isinstance(item, Tensor)), None)
    return f"a dictionary whose '{first}' is of type {type(value[first]).__name__}"
