"""ALIKED: sub-pixel keypoints, descriptors gathered at deformable positions around them.

Zhao et al., "ALIKED: A lighter keypoint and descriptor extraction network via deformable transformation", IEEE
Transactions on Instrumentation and Measurement 2023. Published files: `aliked-{t16,n16,n16rot,n32}.pth`
(github.com/Shiaoming/ALIKED, BSD 3-Clause).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from kornia.feature import ALIKED
from torch import Tensor

from matchlib.features.foreign import (
    Detected,
    ForeignDescriber,
    ForeignExtractor,
    ReadAt,
    fingerprint,
)
from matchlib.features.foreign_weights import load_weights, need_path
from matchlib.methods.kornia_features.config import AlikedConfig
from matchlib.methods.kornia_features.library import CODE

_DESCRIPTOR_DIMS = {"aliked-t16": 64, "aliked-n16": 128, "aliked-n16rot": 128, "aliked-n32": 128}


def build(config: AlikedConfig, weights: Path | None, device: str) -> ForeignExtractor:
    """The `aliked` extractor; its name in tables is the variant's. Raises ConfigError without weights, DataError
    for a file that does not fit the variant.
    """
    model, digest = _load(config, weights, device)
    return ForeignExtractor(
        partial(_detect, model),
        name=config.variant,
        fingerprint=fingerprint("aliked", code=CODE, weights=[digest], settings=asdict(config)),
        descriptor_dim=_DESCRIPTOR_DIMS[config.variant],
        max_keypoints=config.max_keypoints,
        device=device,
    )


def build_dense(config: AlikedConfig, weights: Path | None, device: str) -> ForeignDescriber:
    """ALIKED's descriptor head at any place. Raises as `build`."""
    model, digest = _load(config, weights, device)
    return ForeignDescriber(
        partial(_prepare, model),
        name=f"{config.variant}-dense",
        fingerprint=fingerprint(
            "aliked-dense", code=CODE, weights=[digest], settings={"variant": config.variant}
        ),
        descriptor_dim=_DESCRIPTOR_DIMS[config.variant],
        device=device,
    )


def _load(config: AlikedConfig, weights: Path | None, device: str) -> tuple[ALIKED, str]:
    path = need_path(weights, what=config.variant, option="weights")
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten
        model = ALIKED(
            model_name=config.variant,
            max_num_keypoints=config.max_keypoints,
            detection_threshold=config.detection_threshold,
            nms_radius=config.nms_radius,
        )
    # The grid of the soft maximum is kornia's own buffer; the authors' files do not have it.
    digest = load_weights(model, path, what=config.variant, computed=("dkd.hw_grid",))
    return model.to(device).eval(), digest


def _detect(model: ALIKED, image: Tensor) -> Detected:
    # kornia pads around the centre and crops again; keypoints are in pixels of the image, centre at 0: no shift.
    (found,) = model(image)
    return Detected(found.keypoints, found.keypoint_scores, found.descriptors)


def _prepare(model: ALIKED, image: Tensor) -> ReadAt:
    feature_map, _ = model.extract_dense_map(image)
    largest = image.new_tensor([image.shape[-1] - 1, image.shape[-2] - 1])

    def read_at(points_N2: Tensor) -> Tensor:
        descriptors, _ = model.desc_head(feature_map, [points_N2 / largest * 2 - 1])
        found: Tensor = descriptors[0]
        return found

    return read_at
