"""SuperPoint on whole images: an extractor, descriptors at any place, and the labeller of photographs.

Pixel coordinates: every resize here keeps the corners of the image area fixed (OpenCV's convention), so
position x in an image of width w is (x + 0.5) * W / w - 0.5 in the original of width W; the centre of the
first pixel is 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from matchlib.completion import digest_file, digest_json
from matchlib.errors import ConfigError, ShapeError, check_shape
from matchlib.features.dense import MemberPairs
from matchlib.features.types import Features, Float32, Image
from matchlib.methods.superpoint.adaptation import AdaptationLabeller
from matchlib.methods.superpoint.config import DescriptorConfig, SuperPointConfig
from matchlib.methods.superpoint.importing import load_network
from matchlib.methods.superpoint.network import (
    SuperPointMaps,
    SuperPointNetwork,
    check_image,
    grey_from_image,
    pad_to_cells,
)
from matchlib.methods.superpoint.postprocess import heatmap, select_keypoints
from matchlib.methods.superpoint.sampling import sample_descriptors

REVISION = 1


def build(config: SuperPointConfig, weights: Path | None, device: str) -> SuperPointExtractor:
    """An extractor with the weights of a stage; None gives the untrained network of seed 0. Raises
    DataError."""
    return SuperPointExtractor(load_network(config, weights).to(device), config, _digest(weights))


def build_dense(config: SuperPointConfig, weights: Path | None, device: str) -> SuperPointDescriber:
    """As `build`, for descriptors at any place."""
    return SuperPointDescriber(load_network(config, weights).to(device), config, _digest(weights))


def build_labeller(config: SuperPointConfig, weights: Path | None, device: str) -> AdaptationLabeller:
    """Homographic adaptation with the weights of a stage. Raises DataError, and ConfigError without
    weights."""
    if weights is None:
        raise ConfigError(
            "superpoint: labelling photographs needs trained weights, got none; name their file"
        )
    network = load_network(config, weights).to(device)
    fingerprint = _fingerprint(config, _digest(weights), ("network", "adaptation"))
    return AdaptationLabeller(network, config.adaptation, fingerprint=fingerprint)


class SuperPointExtractor:
    """See `matchlib.features.types.Extractor`."""

    name = "superpoint"

    def __init__(self, network: SuperPointNetwork, config: SuperPointConfig, weights_digest: str) -> None:
        parts = ("network", "detection", "descriptor", "inference")
        self.fingerprint = _fingerprint(config, weights_digest, parts)
        self.descriptor_dim = network.descriptor_dim
        self._network = network
        self._config = config

    @torch.inference_mode()
    def extract(self, image: Image) -> Features:
        """Features of an (H, W, 3) uint8 RGB image, best first; none for an image of no pixels. Raises
        ShapeError.

        Images whose sides are no multiples of 8 are padded by their last row and column; no keypoint lies in
        the padding.
        """
        image_size = check_image(image)
        if not image.size:
            empty = np.zeros((0, self.descriptor_dim), np.float32)
            return Features(
                keypoints=np.zeros((0, 2), np.float32),
                scores=np.zeros(0, np.float32),
                descriptors=empty,
                image_size=image_size,
            )
        maps, (width, height) = _run(self._network, image, self._config)
        heat_HW = heatmap(maps.logits, softmax=self._config.detection.softmax)[0, :height, :width]
        points_N2, scores_N = select_keypoints(heat_HW, self._config.detection)
        descriptors_ND = sample_descriptors(maps.descriptors[0], points_N2, self._config.descriptor)
        factor = points_N2.new_tensor([image_size[0] / width, image_size[1] / height])
        return Features(
            keypoints=((points_N2 + 0.5) * factor - 0.5).cpu().numpy(),
            scores=scores_N.cpu().numpy(),
            descriptors=descriptors_ND.cpu().numpy(),
            image_size=image_size,
        )


class SuperPointDescriber:
    """See `matchlib.features.dense.DenseDescriber`: one descriptor per place."""

    name = "superpoint"
    members = ("descriptor",)
    member_pairs: MemberPairs = "all"
    uses_true_scale = False

    def __init__(self, network: SuperPointNetwork, config: SuperPointConfig, weights_digest: str) -> None:
        self.fingerprint = _fingerprint(config, weights_digest, ("network", "descriptor", "inference"))
        self.descriptor_dim = network.descriptor_dim
        self._network = network
        self._config = config

    @torch.no_grad()
    def describe(self, image: Image, *, scale: Float32 | None = None) -> SuperPointDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image of at least one pixel; `scale` is ignored. Raises
        ShapeError."""
        image_size = check_image(image)
        if not image.size:
            raise ShapeError(f"image: expected at least one pixel, got shape {image.shape}")
        maps, (width, height) = _run(self._network, image, self._config)
        ratio = (width / image_size[0], height / image_size[1])
        return SuperPointDescriptors(maps.descriptors[0], ratio, self._config.descriptor)


@dataclass(frozen=True, slots=True)
class SuperPointDescriptors:
    """See `matchlib.features.dense.DenseDescriptors`.

    descriptor_map: (D, h, w), not of unit length
    ratio:          size (width, height) of what the network saw, padding excluded, over that of the image
    """

    descriptor_map: Tensor
    ratio: tuple[float, float]
    config: DescriptorConfig

    @torch.no_grad()
    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, 1, D) float32 of unit length at positions (N, 2) in pixels of the image; N may be
        0."""
        check_shape("points", points_N2, "N 2")
        points_N2 = points_N2.to(self.descriptor_map.device, torch.float32)
        seen_N2 = (points_N2 + 0.5) * points_N2.new_tensor(self.ratio) - 0.5
        return sample_descriptors(self.descriptor_map, seen_N2, self.config)[:, None]


def _run(
    network: SuperPointNetwork, image: Image, config: SuperPointConfig
) -> tuple[SuperPointMaps, tuple[int, int]]:
    """Maps of an image of at least one pixel, and the size (width, height) that the network saw, padding
    excluded."""
    height, width = image.shape[:2]
    reduction = min(1.0, config.inference.max_image_side / max(height, width))
    if reduction < 1:
        width, height = max(1, round(width * reduction)), max(1, round(height * reduction))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    device = next(network.parameters()).device
    return network(pad_to_cells(grey_from_image(image, device))), (width, height)


def _digest(weights: Path | None) -> str:
    return "untrained" if weights is None else digest_file(weights)


def _fingerprint(config: SuperPointConfig, weights_digest: str, parts: tuple[str, ...]) -> str:
    used = {part: asdict(getattr(config, part)) for part in parts}
    return digest_json(
        {"method": "superpoint", "revision": REVISION, "weights": weights_digest, "settings": used}
    )
