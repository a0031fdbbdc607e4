"""Keypoints and descriptors of whole images with published weights."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
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
from matchlib.methods.alike.config import AlikeConfig
from matchlib.methods.alike.detection import select_keypoints
from matchlib.methods.alike.network import STRIDE, WIDTHS, AlikeNetwork

CODE = "matchlib alike 1"


def build(config: AlikeConfig, weights: Path | None, device: str) -> ForeignExtractor:
    """The `alike` extractor; its name in tables is the variant's. Raises ConfigError without weights, DataError
    for a file that does not fit the variant.
    """
    network, digest = _load(config, weights, device)
    return ForeignExtractor(
        partial(_detect, network, config),
        name=config.variant,
        fingerprint=fingerprint("alike", code=CODE, weights=[digest], settings=asdict(config)),
        descriptor_dim=WIDTHS[config.variant][3],
        max_keypoints=config.max_keypoints,
        device=device,
    )


def build_dense(config: AlikeConfig, weights: Path | None, device: str) -> ForeignDescriber:
    """ALIKE's descriptor map, read bilinearly. Raises as `build`."""
    network, digest = _load(config, weights, device)
    settings = {"variant": config.variant}
    return ForeignDescriber(
        partial(_prepare, network),
        name=f"{config.variant}-dense",
        fingerprint=fingerprint("alike-dense", code=CODE, weights=[digest], settings=settings),
        descriptor_dim=WIDTHS[config.variant][3],
        device=device,
    )


def dense_maps(network: AlikeNetwork, image: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (H, W) and unit descriptors (D, H, W) of an image (1, 3, H, W) in [0, 1] of any size."""
    height, width = image.shape[-2:]
    scores, descriptors = network(pad_to_multiple(image, STRIDE))
    return scores[0, :height, :width], descriptors[0, :, :height, :width]


def _load(config: AlikeConfig, weights: Path | None, device: str) -> tuple[AlikeNetwork, str]:
    path = need_path(weights, what=config.variant, option="weights")
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten
        network = AlikeNetwork(WIDTHS[config.variant])
    digest = load_weights(network, path, what=config.variant)
    return network.to(device).eval(), digest


def _detect(network: AlikeNetwork, config: AlikeConfig, image: Tensor) -> Detected:
    scores_HW, map_DHW = dense_maps(network, image)
    points = select_keypoints(scores_HW, config)
    scores = sample_bilinear(scores_HW[None], points)[0]
    # differs from the published code without sub-pixel step: it cuts positions such as 4.9999 to whole pixels, and
    # so describes the pixel beside for one keypoint in four.
    return Detected(points, scores, sample_bilinear(map_DHW, points).T)


def _prepare(network: AlikeNetwork, image: Tensor) -> ReadAt:
    _, map_DHW = dense_maps(network, image)
    return lambda points_N2: sample_bilinear(map_DHW, points_N2).T
