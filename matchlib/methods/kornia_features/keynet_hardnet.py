"""Key.Net's keypoints at several scales, described by HardNet on patches; optionally AffNet and OriNet between.

Barroso-Laguna et al., "Key.Net: Keypoint detection by handcrafted and learned CNN filters", ICCV 2019; Mishchuk et
al., "Working hard to know your neighbor's margins", NeurIPS 2017; Mishkin et al., "Repeatability is not enough",
ECCV 2018 (AffNet, OriNet). Published files: `keynet_pytorch.pth` (github.com/axelBarroso/Key.Net-Pytorch; see there
for the licence), `checkpoint_liberty_with_aug.pth` (github.com/DagnyT/hardnet, MIT), `AffNet.pth`, `OriNet.pth`
(github.com/ducha-aiki/affnet, MIT).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import torch
from kornia.color import rgb_to_grayscale
from kornia.feature import (
    HardNet,
    KeyNetDetector,
    LAFAffNetShapeEstimator,
    LAFDescriptor,
    LAFOrienter,
    OriNet,
    get_laf_center,
    get_laf_scale,
    laf_is_filled,
)
from torch import Tensor, nn

from matchlib.features.foreign import Detected, ForeignExtractor, fingerprint
from matchlib.features.foreign_weights import load_weights, need_path
from matchlib.methods.kornia_features.config import KeyNetHardNetConfig
from matchlib.methods.kornia_features.library import CODE

_DESCRIPTOR_DIM = 128


def build(config: KeyNetHardNetConfig, weights: Path | None, device: str) -> ForeignExtractor:
    """The `keynet_hardnet` extractor. Raises ConfigError without both files, DataError for one that does not fit."""
    keynet = need_path(weights, what="Key.Net", option="weights")
    hardnet = need_path(config.hardnet_weights, what="HardNet", option="keynet_hardnet.hardnet_weights")
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are overwritten
        descriptor = HardNet(pretrained=False)
        detector = KeyNetDetector(
            pretrained=False, num_features=config.max_keypoints, score_threshold=config.score_threshold
        )
        shape, orientation = LAFAffNetShapeEstimator(pretrained=False), OriNet(pretrained=False)
    digests = [
        load_weights(cast(nn.Module, detector.model), keynet, what="Key.Net"),
        load_weights(descriptor, hardnet, what="HardNet"),
    ]
    if config.affnet_weights is not None:
        # kornia itself takes these two files as they come, with whatever else is in them.
        digests.append(_load_optional(shape, config.affnet_weights, "AffNet"))
        detector.aff = shape
    if config.orinet_weights is not None:
        digests.append(_load_optional(orientation, config.orinet_weights, "OriNet"))
        detector.ori = LAFOrienter(angle_detector=orientation)
    used = {"affnet": config.affnet_weights is not None, "orinet": config.orinet_weights is not None}
    return ForeignExtractor(
        partial(_detect, detector.to(device).eval(), LAFDescriptor(descriptor).to(device).eval(), config),
        name="keynet_hardnet",
        fingerprint=fingerprint(
            "keynet_hardnet", code=CODE, weights=digests, settings=asdict(config) | {"affnet_orinet": used}
        ),
        descriptor_dim=_DESCRIPTOR_DIM,
        max_keypoints=config.max_keypoints,
        device=device,
    )


def _load_optional(module: nn.Module, path: str, what: str) -> str:
    return load_weights(module, Path(path), what=what, ignore_unexpected=True)


def _detect(
    detector: KeyNetDetector, descriptor: LAFDescriptor, config: KeyNetHardNetConfig, image: Tensor
) -> Detected:
    grey = rgb_to_grayscale(image)
    responses, frames = detector.detect(grey)
    is_found = laf_is_filled(frames)[0]
    frames, responses = frames[:, is_found], responses[0, is_found]
    if not len(responses):
        return Detected(grey.new_zeros(0, 2), responses, grey.new_zeros(0, _DESCRIPTOR_DIM))
    if config.level_origin == "centre":
        frames = centred(frames, detector.mr_size)
    frames = detector.ori(detector.aff(frames, grey), grey)
    return Detected(get_laf_center(frames)[0], responses, descriptor(grey, frames)[0])


def centred(frames: Tensor, scale_of_level_0: float) -> Tensor:
    """Frames (1, N, 2, 3) as `MultiResolutionDetector.detect` gives them, moved to where their pixels are.

    A pixel u of a level that is smaller by s was put at u s; its centre is at (u + 1/2) s - 1/2. The scale of a
    frame tells s, as the mean over both axes, which differ by the rounding of the level's size only.
    """
    factor = get_laf_scale(frames)[..., 0] / scale_of_level_0
    moved = frames.clone()
    moved[..., 2] += (factor - 1) / 2
    return moved
