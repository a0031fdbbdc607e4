"""DISK: keypoints and 128-D descriptors from one U-Net at full resolution.

Tyszkiewicz, Fua & Trulls, "DISK: Learning local features with policy gradient", NeurIPS 2020. Published files:
`depth-save.pth`, `epipolar-save.pth` (github.com/cvlab-epfl/disk, Apache 2.0), state dict under 'extractor'.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from kornia.feature import DISK
from torch import Tensor

from matchlib.features.foreign import (
    Detected,
    ForeignDescriber,
    ForeignExtractor,
    ReadAt,
    fingerprint,
    pad_to_multiple,
)
from matchlib.features.foreign_weights import load_weights, need_path
from matchlib.geometry.sampling import sample_bilinear
from matchlib.methods.kornia_features.config import DiskConfig
from matchlib.methods.kornia_features.library import CODE

_DESCRIPTOR_DIM = 128
_STRIDE = 16  # of the deepest level of the U-Net


def build(config: DiskConfig, weights: Path | None, device: str) -> ForeignExtractor:
    """The `disk` extractor. Raises ConfigError without weights, DataError for a file that does not fit."""
    model, digest = _load(weights, device)
    return ForeignExtractor(
        partial(_detect, model, config),
        name="disk",
        fingerprint=fingerprint("disk", code=CODE, weights=[digest], settings=asdict(config)),
        descriptor_dim=_DESCRIPTOR_DIM,
        max_keypoints=config.max_keypoints,
        device=device,
    )


def build_dense(config: DiskConfig, weights: Path | None, device: str) -> ForeignDescriber:
    """DISK's descriptor map, read bilinearly. Raises as `build`."""
    model, digest = _load(weights, device)
    return ForeignDescriber(
        partial(_prepare, model),
        name="disk-dense",
        fingerprint=fingerprint("disk-dense", code=CODE, weights=[digest], settings={}),
        descriptor_dim=_DESCRIPTOR_DIM,
        device=device,
    )


def _load(weights: Path | None, device: str) -> tuple[DISK, str]:
    path = need_path(weights, what="DISK", option="weights")
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten
        model = DISK(desc_dim=_DESCRIPTOR_DIM)
    digest = load_weights(model, path, what="DISK")
    return model.to(device).eval(), digest


def _detect(model: DISK, config: DiskConfig, image: Tensor) -> Detected:
    # Keypoints are the integer pixels of the heat map: no shift.
    (found,) = model(
        image,
        n=config.max_keypoints,
        window_size=config.window_size,
        score_threshold=config.score_threshold,
        pad_if_not_divisible=True,
    )
    return Detected(found.keypoints, found.detection_scores, found.descriptors)


def _prepare(model: DISK, image: Tensor) -> ReadAt:
    height, width = image.shape[-2:]
    _, padded_map = model.heatmap_and_dense_descriptors(pad_to_multiple(image, _STRIDE))
    map_DHW = padded_map[0, :, :height, :width]
    return lambda points_N2: sample_bilinear(map_DHW, points_N2).T
