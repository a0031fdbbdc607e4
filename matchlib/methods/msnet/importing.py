"""Weights that other programs wrote: checkpoints of the published code, and ImageNet weights of ResNet-18."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from matchlib.errors import ConfigError, DataError
from matchlib.methods.msnet.config import MSNetConfig
from matchlib.methods.msnet.model import MSNet
from matchlib.methods.msnet.network import Backbone
from matchlib.methods.msnet.states import first_difference, read_pickled_state

# The published backbone is a Sequential of ResNet's parts; 2 and 3 are ReLU and pooling.
_PUBLISHED_PARTS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5"}
_BACKBONE = "network.backbone."
_HEAD = "network.head."


def import_weights(config: MSNetConfig, path: Path) -> dict[str, Tensor]:
    """The state of `MSNet(config)` from a checkpoint of lin-zju/my-descriptor-space (`model_*.pth`).

    MSNetV0, V1 and V2 have the same weights; whether they were trained with `network.dilation` 1 or 2 the
    file does not say. Raises DataError that names the first differing key and shape, ConfigError for a
    variant with a head that the published networks do not have.
    """
    model = MSNet(config)
    if model.scale_head is not None or model.attention_head is not None:
        raise ConfigError(
            "variant: published weights have no head for scale or attention; "
            "expected v0, v1, sum, or v2 with scale oracle"
        )
    names = {published_name(name): name for name in model.state_dict()}
    expected = {published: model.state_dict()[name] for published, name in names.items()}
    found = read_pickled_state(path)
    difference = first_difference(expected, found)
    if difference is not None:
        raise DataError(f"{path}: not weights of MSNet: {difference}")
    return {name: found[published].clone() for published, name in names.items()}


def published_name(name: str) -> str:
    """The published key of ours: `network.backbone.bn1.bias` is `desc_extractor.backbone.model.1.bias`."""
    if name.startswith(_HEAD):
        return f"desc_extractor.regress.{name.removeprefix(_HEAD)}"
    part, _, rest = name.removeprefix(_BACKBONE).partition(".")
    return f"desc_extractor.backbone.model.{_PUBLISHED_PARTS[part]}.{rest}"


def load_backbone(backbone: Backbone, path: Path) -> None:
    """Put ImageNet weights of ResNet-18 (torchvision's names) into the backbone; later stages are left aside.

    Raises DataError that names the first differing key and shape.
    """
    own = backbone.state_dict()
    wanted = tuple(f"{part}." for part in _PUBLISHED_PARTS)
    found = {name: t for name, t in read_pickled_state(path).items() if name.startswith(wanted)}
    difference = first_difference(own, found)
    if difference is not None:
        raise DataError(f"{path}: not weights of ResNet-18: {difference}")
    backbone.load_state_dict(found)
