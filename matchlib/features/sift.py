"""SIFT and RootSIFT by OpenCV, the baseline of every table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from matchlib.completion import digest_json
from matchlib.errors import ConfigError, DataError, ShapeError, check_shape
from matchlib.features.config import SiftConfig
from matchlib.features.dense import MemberPairs
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
            {"method": self.name, "config": _detection(config), "opencv": cv2.__version__, "revision": 1}
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

        A place with two dominant orientations gives two keypoints; an image of no pixels has none. Raises
        ShapeError.
        """
        sizes = check_shape("image", image, "H W 3")
        if image.dtype != np.uint8:
            raise ShapeError(f"image: expected uint8, got {image.dtype}")
        keypoints, raw = (
            self._sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
            if image.size
            else ((), None)
        )
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


class SiftDescriber:
    """See `matchlib.features.dense.DenseDescriber`: upright SIFT (or RootSIFT) of one size at any place.

    The image is blurred once, to the scale of the keypoint size. OpenCV centres the patch on the nearest pixel:
    positions between pixels are rounded.
    """

    descriptor_dim = 128
    members: tuple[str, ...] = ("patch",)
    member_pairs: MemberPairs = "all"
    uses_true_scale = False

    def __init__(self, config: SiftConfig, *, is_root: bool) -> None:
        self.name = "rootsift-dense" if is_root else "sift-dense"
        self.fingerprint = digest_json(
            {"method": self.name, "size": config.dense_size_px, "opencv": cv2.__version__, "revision": 1}
        )
        self._size_px = config.dense_size_px
        self._is_root = is_root

    def describe(self, image: Image, *, scale: Float32 | None = None) -> SiftDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image; `scale` is ignored. Raises ShapeError."""
        check_shape("image", image, "H W 3")
        if image.dtype != np.uint8 or image.size == 0:
            raise ShapeError(f"image: expected uint8 and at least one pixel, got {image.dtype} {image.shape}")
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
        return SiftDescriptors(grey, self._size_px, is_root=self._is_root)


class SiftDescriptors:
    """See `matchlib.features.dense.DenseDescriptors`; on the CPU."""

    def __init__(self, grey: Image, size_px: float, *, is_root: bool) -> None:
        self._grey = grey
        self._size_px = size_px
        self._is_root = is_root
        # A keypoint of octave 0, layer 0 is described in the first image of the pyramid, whose blur is `sigma`.
        # With sigma at the keypoint's own scale this is SIFT at full resolution, without the steps of the octaves.
        self._sift = cv2.SIFT.create(sigma=size_px / 2)

    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, 1, 128) float32 of unit length at (x, y) in pixels; zeros where the image is flat.
        Raises ShapeError.
        """
        check_shape("points", points_N2, "N 2")
        if len(points_N2) == 0:
            return torch.zeros(0, 1, SiftDescriber.descriptor_dim)
        keypoints = [cv2.KeyPoint(x, y, self._size_px, 0.0) for x, y in points_N2.detach().cpu().tolist()]
        described, raw = self._sift.compute(self._grey, keypoints)
        if len(described) != len(keypoints):
            raise DataError(
                f"sift: expected OpenCV to describe {len(keypoints)} positions, got {len(described)}; "
                f"use positions within the image"
            )
        descriptors = _normalised(np.asarray(raw, np.float32), is_root=self._is_root)
        return torch.from_numpy(descriptors)[:, None]


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


def build_sift_dense(config: SiftConfig, weights: Path | None, device: str) -> SiftDescriber:
    """Upright `sift` at any place (see `SiftDescriber`); as `build_sift` otherwise."""
    _refuse_weights("sift", weights)
    return SiftDescriber(config, is_root=False)


def build_rootsift_dense(config: SiftConfig, weights: Path | None, device: str) -> SiftDescriber:
    """Upright `rootsift` at any place (see `SiftDescriber`); as `build_rootsift` otherwise."""
    _refuse_weights("rootsift", weights)
    return SiftDescriber(config, is_root=True)


def _build(config: SiftConfig, weights: Path | None, *, is_root: bool) -> SiftExtractor:
    _refuse_weights("rootsift" if is_root else "sift", weights)
    return SiftExtractor(config, is_root=is_root)


def _refuse_weights(name: str, weights: Path | None) -> None:
    if weights is not None:
        raise ConfigError(f"{name} has no weights, got {weights}; leave the option out")


def _detection(config: SiftConfig) -> dict[str, object]:
    """The settings that extraction depends on."""
    settings = asdict(config)
    del settings["dense_size_px"]
    return settings


def _normalised(descriptors: Float32, *, is_root: bool) -> Float32:
    if is_root:  # already of unit L2 length: the squares of the roots sum to the L1 norm
        scaled = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), _EPSILON))
    else:
        scaled = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), _EPSILON)
    return np.asarray(scaled, dtype=np.float32)
