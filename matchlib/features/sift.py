"""SIFT and RootSIFT by OpenCV, the baseline of every table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from matchlib.completion import digest_json
from matchlib.errors import ConfigError, check_shape
from matchlib.features.config import SiftConfig
from matchlib.features.types import Features, Float32, Image

_EPSILON = np.float32(1e-12)


class SiftExtractor:
    """An `Extractor`: OpenCV's SIFT, descriptors of unit length, optionally as RootSIFT.

    RootSIFT (Arandjelovic & Zisserman 2012): divide by the L1 norm, take the square root. The dot product of
    two such descriptors is the Hellinger kernel of the histograms.
    """

    descriptor_dim = 128

    def __init__(self, config: SiftConfig, *, is_root: bool) -> None:
        self.name = "rootsift" if is_root else "sift"
        self.config = config
        self.fingerprint = digest_json(
            {"method": self.name, "config": asdict(config), "opencv": cv2.__version__, "revision": 1}
        )
        self._is_root = is_root
        self._sift = cv2.SIFT.create(
            nfeatures=config.max_keypoints,
            nOctaveLayers=config.octave_layers,
            contrastThreshold=config.contrast_threshold,
            edgeThreshold=config.edge_threshold,
            sigma=config.sigma,
            enable_precise_upscale=config.precise_upscale,
        )

    def extract(self, image: Image) -> Features:
        """Features of one (H, W, 3) uint8 RGB image, strongest response first.

        A place with two dominant orientations gives two keypoints. Raises ShapeError.
        """
        sizes = check_shape("image", image, "H W 3")
        keypoints, raw = self._sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        found = np.empty((0, self.descriptor_dim)) if raw is None else raw
        descriptors = np.asarray(found, dtype=np.float32)
        position = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float32).reshape(-1, 2)
        response = np.array([keypoint.response for keypoint in keypoints], dtype=np.float32)
        # OpenCV keeps all keypoints that tie with the last one; the limit here is exact.
        limit = self.config.max_keypoints or len(response)
        order = np.argsort(-response, kind="stable")[:limit]
        return Features(
            keypoints=position[order],
            scores=response[order],
            descriptors=_normalised(descriptors[order], is_root=self._is_root),
            image_size=(sizes["W"], sizes["H"]),
        )


def build_sift(config: SiftConfig, weights: Path | None, device: str) -> SiftExtractor:
    """The `sift` extractor; it has no weights and runs on the CPU whatever `device` says. Raises
    ConfigError.
    """
    return _build(config, weights, is_root=False)


def build_rootsift(config: SiftConfig, weights: Path | None, device: str) -> SiftExtractor:
    """The `rootsift` extractor; it has no weights and runs on the CPU whatever `device` says. Raises
    ConfigError.
    """
    return _build(config, weights, is_root=True)


def _build(config: SiftConfig, weights: Path | None, *, is_root: bool) -> SiftExtractor:
    extractor = SiftExtractor(config, is_root=is_root)
    if weights is not None:
        raise ConfigError(f"{extractor.name} has no weights, got {weights}; leave the option out")
    return extractor


def _normalised(descriptors: Float32, *, is_root: bool) -> Float32:
    if is_root:  # already of unit L2 length: the squares of the roots sum to the L1 norm
        scaled = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), _EPSILON))
    else:
        scaled = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), _EPSILON)
    return np.asarray(scaled, dtype=np.float32)
