"""Weights of PoSFeat that the public implementation trained: `backbone.pth` and `localheader.pth`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from matchlib.errors import ConfigError, DataError
from matchlib.features.foreign_weights import fill_module, read_state_dict
from matchlib.methods.posfeat.config import PoSFeatConfig
from matchlib.methods.posfeat.head import KeypointHead
from matchlib.methods.posfeat.network import DescriptionNet

BACKBONE_FILE = "backbone.pth"
HEAD_FILE = "localheader.pth"
_BACKBONE_SIGN, _HEAD_SIGN = "firstconv.weight", "convimg.weight"
_COUNTER = ".num_batches_tracked"  # nn.BatchNorm2d counts its batches; nothing here reads that


def import_weights(config: PoSFeatConfig, path: Path) -> dict[str, Tensor]:
    """The release's weights as the state of `PoSFeat`: names with `backbone.` and `head.`, float32, on the CPU.

    path: a checkpoint folder with `backbone.pth` and, after stage `kp`, `localheader.pth`; or `backbone.pth` alone,
    which gives the weights of stage `desc`. The prefix `module.` is dropped. Files are read without running code in
    them. Raises DataError that names the first tensor that differs, or the file that is missing; ConfigError where
    `network.sampling` is not "legacy": these weights were trained with that.
    """
    backbone_path = path / BACKBONE_FILE if path.is_dir() else path
    head_path = path / HEAD_FILE if path.is_dir() else None
    if path.is_dir() and not backbone_path.is_file():
        raise DataError(f"{path}: expected {BACKBONE_FILE} in this folder; name a checkpoint of the release")
    backbone = _read(backbone_path)
    if _HEAD_SIGN in backbone and _BACKBONE_SIGN not in backbone:
        raise DataError(
            f"{path}: expected the description net, got a keypoint head; name the folder that has {BACKBONE_FILE}, too"
        )
    if config.network.sampling != "legacy":
        raise ConfigError(
            f"posfeat.network.sampling: expected 'legacy' for {path}, got '{config.network.sampling}'"
        )
    state = _filled(DescriptionNet(config.network), backbone, backbone_path, "backbone")
    if head_path is not None and head_path.is_file():
        state |= _filled(KeypointHead(config.network), _read(head_path), head_path, "head")
    return state


def _read(path: Path) -> dict[str, Tensor]:
    state = read_state_dict(path)
    return {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTER)}


def _filled(module: nn.Module, state: dict[str, Tensor], path: Path, part: str) -> dict[str, Tensor]:
    fill_module(module, state, path=path, what=f"PoSFeat's {part}")
    return {f"{part}.{name}": tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
