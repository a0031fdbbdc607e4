"""XFeat, sparse: keypoints from 8x8 cells, 64-D descriptors from a map of 1/8 resolution.

Potje et al., "XFeat: Accelerated features for lightweight image matching", CVPR 2024. Published file: `xfeat.pt`
(github.com/verlab/accelerated_features, Apache 2.0).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from kornia.feature import XFeat
from torch import Tensor
from torch.nn import functional as F

from matchlib.features.foreign import (
    Detected,
    ForeignDescriber,
    ForeignExtractor,
    ReadAt,
    fingerprint,
)
from matchlib.features.foreign_weights import load_weights, need_path
from matchlib.methods.kornia_features.config import XFeatConfig
from matchlib.methods.kornia_features.library import CODE

_DESCRIPTOR_DIM = 64
_MULTIPLE = 32


def build(config: XFeatConfig, weights: Path | None, device: str) -> ForeignExtractor:
    """The `xfeat` extractor. Raises ConfigError without weights, DataError for a file that does not fit."""
    model, digest = _load(config, weights, device)
    return ForeignExtractor(
        partial(_detect, model),
        name="xfeat",
        fingerprint=fingerprint("xfeat", code=CODE, weights=[digest], settings=asdict(config)),
        descriptor_dim=_DESCRIPTOR_DIM,
        max_keypoints=config.max_keypoints,
        device=device,
    )


def build_dense(config: XFeatConfig, weights: Path | None, device: str) -> ForeignDescriber:
    """XFeat's descriptor map, read bicubically as for its own keypoints. Raises as `build`."""
    model, digest = _load(config, weights, device)
    return ForeignDescriber(
        partial(_prepare, model),
        name="xfeat-dense",
        fingerprint=fingerprint("xfeat-dense", code=CODE, weights=[digest], settings={}),
        descriptor_dim=_DESCRIPTOR_DIM,
        device=device,
    )


def _load(config: XFeatConfig, weights: Path | None, device: str) -> tuple[XFeat, str]:
    path = need_path(weights, what="XFeat", option="weights")
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten
        model = XFeat(top_k=config.max_keypoints, detection_threshold=config.detection_threshold)
    digest = load_weights(model.net, path, what="XFeat")
    return model.to(device).eval(), digest


def _detect(model: XFeat, image: Tensor) -> Detected:
    (found,) = model.detectAndCompute(image)
    # kornia shrinks to multiples of 32 and reports pixel i of the small image at i * ratio, not where its centre
    # is in the original: (i + 1/2) * ratio - 1/2.
    points = found["keypoints"] + (_ratio(image) - 1) / 2
    return Detected(points, found["scores"], found["descriptors"])


def _prepare(model: XFeat, image: Tensor) -> ReadAt:
    ratio = _ratio(image)
    width, height = (_shrunk(side) for side in (image.shape[-1], image.shape[-2]))
    small = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
    map_1DHW = F.normalize(model.net(small)[0], dim=1)

    def read_at(points_N2: Tensor) -> Tensor:
        # The weights were trained with this reading, which is half a cell off: differs from an exact one on purpose.
        small_points = (points_N2 + 0.5) / ratio - 0.5
        found: Tensor = model.interpolator(map_1DHW, small_points[None], H=height, W=width)[0]
        return found

    return read_at


def _ratio(image: Tensor) -> Tensor:
    """Size of the image over the size that the network sees, (x, y)."""
    height, width = image.shape[-2:]
    return image.new_tensor([width / _shrunk(width), height / _shrunk(height)])


def _shrunk(side: int) -> int:
    return side // _MULTIPLE * _MULTIPLE
