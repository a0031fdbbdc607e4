"""DeDoDe: one network that detects, another that describes (detector L, descriptor B).

Edstedt et al., "DeDoDe: Detect, don't describe; describe, don't detect for local feature matching", 3DV 2024.
Published files: `dedode_detector_L.pth` (or `_L_v2`), `dedode_descriptor_B.pth` (github.com/Parskatt/DeDoDe, MIT).
Descriptor G is left out: kornia's constructor of it downloads DINOv2.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from kornia.enhance import Normalize
from kornia.feature import DeDoDe
from torch import Tensor, nn
from torch.nn import functional as F

from matchlib.features.foreign import (
    Detected,
    ForeignDescriber,
    ForeignExtractor,
    ReadAt,
    fingerprint,
)
from matchlib.features.foreign_weights import load_weights, need_path
from matchlib.methods.kornia_features.config import DeDoDeConfig
from matchlib.methods.kornia_features.library import CODE

_DESCRIPTOR_DIM = 256
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def build(config: DeDoDeConfig, weights: Path | None, device: str) -> ForeignExtractor:
    """The `dedode` extractor. Raises ConfigError without both files, DataError for one that does not fit."""
    model, digests = _load(config, weights, device)
    return ForeignExtractor(
        partial(_detect, model, config),
        name="dedode",
        fingerprint=fingerprint("dedode", code=CODE, weights=digests, settings=asdict(config)),
        descriptor_dim=_DESCRIPTOR_DIM,
        max_keypoints=config.max_keypoints,
        device=device,
    )


def build_dense(config: DeDoDeConfig, weights: Path | None, device: str) -> ForeignDescriber:
    """DeDoDe's descriptor map at full resolution, read bilinearly. Raises as `build`."""
    model, digests = _load(config, weights, device)
    return ForeignDescriber(
        partial(_prepare, model),
        name="dedode-dense",
        fingerprint=fingerprint("dedode-dense", code=CODE, weights=digests[1:], settings={}),
        descriptor_dim=_DESCRIPTOR_DIM,
        device=device,
    )


def _load(config: DeDoDeConfig, weights: Path | None, device: str) -> tuple[DeDoDe, list[str]]:
    detector = need_path(weights, what="DeDoDe's detector L", option="weights")
    descriptor = need_path(
        config.descriptor_weights, what="DeDoDe's descriptor B", option="dedode.descriptor_weights"
    )
    # On no device: the constructor would fill half a gigabyte, most of it classifiers that it throws away.
    with torch.device("meta"):
        model = DeDoDe(detector_model="L", descriptor_model="B", amp_dtype=torch.float32)
    model.to_empty(device="cpu")
    model.normalizer = Normalize(torch.tensor(_IMAGENET_MEAN), torch.tensor(_IMAGENET_STD))
    digests = []
    for part, path, what in (
        (model.detector, detector, "DeDoDe's detector L"),
        (model.descriptor, descriptor, "DeDoDe's descriptor B"),
    ):
        _zero_counters(part)
        digests.append(load_weights(part, path, what=what))
    return model.to(device).eval(), digests


def _zero_counters(module: nn.Module) -> None:
    """The only buffers that a file may leave out must not stay undefined."""
    for name, buffer in module.named_buffers():
        if name.endswith(".num_batches_tracked"):
            buffer.zero_()


def _detect(model: DeDoDe, config: DeDoDeConfig, image: Tensor) -> Detected:
    points, scores, descriptors = model(image, n=config.max_keypoints)
    return Detected(
        points[0] - 0.5, scores[0], descriptors[0]
    )  # kornia reports the centre of pixel i at i + 1/2


def _prepare(model: DeDoDe, image: Tensor) -> ReadAt:
    map_1DHW = model.describe(image)
    size = image.new_tensor([image.shape[-1], image.shape[-2]])

    def read_at(points_N2: Tensor) -> Tensor:
        grid = ((points_N2 + 0.5) / size * 2 - 1)[None, None]
        # The border: beyond the outermost centres the map is constant, as everywhere in matchlib.
        return F.grid_sample(map_1DHW.float(), grid, padding_mode="border", align_corners=False)[0, :, 0].T

    return read_at
