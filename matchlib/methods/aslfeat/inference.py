"""Keypoints and descriptors of whole images with trained weights.

Pixel coordinates: every resize here keeps the corners of the image area fixed (OpenCV's convention), so
position x in an image of width w is (x + 0.5) * W / w - 0.5 in the original of width W; the centre of the
first pixel is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.completion import digest_file, digest_json
from matchlib.errors import ShapeError, check_shape
from matchlib.features.dense import MemberPairs
from matchlib.features.foreign_weights import fill_module
from matchlib.features.trained_weights import read_trained
from matchlib.features.types import Features, Float32, Image
from matchlib.methods.aslfeat.config import ASLFeatConfig
from matchlib.methods.aslfeat.detection import smallest_image
from matchlib.methods.aslfeat.keypoints import select_keypoints
from matchlib.methods.aslfeat.model import ASLFeat, DenseFeatures
from matchlib.methods.aslfeat.network import DESCRIPTOR_STRIDE, standardise
from matchlib.randomness import torch_generator_for

REVISION = 1
_SCALE_FACTOR = 1 / math.sqrt(2)
_SMALLEST_SCALE = 0.3
_SMALLEST_SIDE_PX = 128
_PYRAMID_SIGMA = 0.8 / _SCALE_FACTOR


def build(config: ASLFeatConfig, weights: Path | None, device: str) -> ASLFeatExtractor:
    """An extractor with the weights of a safetensors file; None gives the untrained network of seed 0.

    Whether the network is deformable is read from the file. Raises DataError for a file that is not weights
    of this network; it names the first tensor that differs.
    """
    model, weights_digest = _load_model(config, weights, device)
    return ASLFeatExtractor(model, weights_digest=weights_digest)


def build_dense(config: ASLFeatConfig, weights: Path | None, device: str) -> ASLFeatDescriber:
    """The descriptors of the same network at any place, at one scale whatever `inference.multi_scale` says.

    As `build` otherwise.
    """
    model, weights_digest = _load_model(config, weights, device)
    return ASLFeatDescriber(model, weights_digest=weights_digest)


def _load_model(config: ASLFeatConfig, weights: Path | None, device: str) -> tuple[ASLFeat, str]:
    """The network ready for inference, and the digest of its weights."""
    if weights is None:
        model = ASLFeat(config, deformable=False)
        model.network.initialise(torch_generator_for(0, "aslfeat", "initialise"))
        return model.to(device).eval(), "untrained"
    state = read_trained(weights, method="aslfeat")
    model = ASLFeat(config, deformable=any("deform_param" in name for name in state))
    fill_module(model, state, path=weights, what=f"aslfeat, variant '{config.network.variant}'")
    return model.to(device).eval(), digest_file(weights)


class ASLFeatExtractor:
    """See `matchlib.features.types.Extractor`."""

    def __init__(self, model: ASLFeat, *, weights_digest: str) -> None:
        config = model.config
        self.name = "aslfeat-ms" if config.inference.multi_scale else "aslfeat"
        self.descriptor_dim = model.network.descriptor_dim
        used = {part: asdict(getattr(config, part)) for part in ("network", "detection", "inference")}
        self.fingerprint = digest_json(
            {"method": "aslfeat", "revision": REVISION, "weights": weights_digest, "settings": used}
        )
        self._model = model
        self._config = config.inference

    def extract(self, image: Image) -> Features:
        """Features of an (H, W, 3) uint8 RGB image, best first; none for an image of no pixels or no texture.

        With `multi_scale`, the keypoints of all scales are put together and the best `max_keypoints` kept;
        the same place may be found at two scales. Scores of different scales are compared as they are. Raises
        ShapeError.
        """
        check_shape("image", image, "H W 3")
        if image.dtype != np.uint8:
            raise ShapeError(f"image: expected uint8, got {image.dtype}")
        height, width = image.shape[:2]
        parts = [self._features_of(level, (width, height)) for level in self._scales(image)]
        empty = np.zeros((0, self.descriptor_dim), np.float32)
        return Features(
            keypoints=np.concatenate([np.zeros((0, 2), np.float32), *(part[0] for part in parts)]),
            scores=np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)]),
            descriptors=np.concatenate([empty, *(part[2] for part in parts)]),
            image_size=(width, height),
        ).top(self._config.max_keypoints)

    def _scales(self, image: Image) -> Iterator[Float32]:
        """Grey images (h, w) float32 in [0, 255], largest first."""
        if image.size == 0:
            return
        grey = grey_image(image, self._config.max_image_side)
        yield grey
        height, width = grey.shape
        for level in range(1, number_of_scales(height, width) if self._config.multi_scale else 1):
            blurred = cv2.GaussianBlur(grey, (0, 0), _PYRAMID_SIGMA)
            scale = _SCALE_FACTOR**level
            grey = np.asarray(_resize(blurred, width * scale, height * scale, cv2.INTER_LINEAR), np.float32)
            yield grey

    @torch.inference_mode()
    def _features_of(self, grey: Float32, original_size: tuple[int, int]) -> tuple[Float32, Float32, Float32]:
        """Keypoints in pixels of the original, scores and descriptors of one grey image."""
        height, width = grey.shape
        dense = dense_features(self._model, grey)
        points, scores = select_keypoints(dense.score_map()[0, :height, :width], self._config)
        descriptors = dense.descriptors_at(0, points)
        factor = points.new_tensor([original_size[0] / width, original_size[1] / height])
        original = (points + 0.5) * factor - 0.5
        return original.cpu().numpy(), scores.cpu().numpy(), descriptors.cpu().numpy()


class ASLFeatDescriber:
    """See `matchlib.features.dense.DenseDescriber`."""

    members: tuple[str, ...] = ("descriptor",)
    member_pairs: MemberPairs = "all"
    uses_true_scale = False

    def __init__(self, model: ASLFeat, *, weights_digest: str) -> None:
        config = model.config
        self.name = "aslfeat-dense"
        self.descriptor_dim = model.network.descriptor_dim
        used = {"network": asdict(config.network), "max_image_side": config.inference.max_image_side}
        self.fingerprint = digest_json(
            {"method": self.name, "revision": REVISION, "weights": weights_digest, "settings": used}
        )
        self._model = model
        self._max_image_side = config.inference.max_image_side

    @torch.inference_mode()
    def describe(self, image: Image, *, scale: Float32 | None = None) -> ASLFeatDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image of at least one pixel; `scale` is ignored. Raises
        ShapeError.
        """
        check_shape("image", image, "H W 3")
        if image.dtype != np.uint8 or image.size == 0:
            raise ShapeError(f"image: expected uint8 and at least one pixel, got {image.dtype} {image.shape}")
        grey = grey_image(image, self._max_image_side)
        factor = (grey.shape[1] / image.shape[1], grey.shape[0] / image.shape[0])
        return ASLFeatDescriptors(dense_features(self._model, grey), factor)


class ASLFeatDescriptors:
    """See `matchlib.features.dense.DenseDescriptors`; reads the map where extraction reads it.

    factor: size of the image that the network saw over the size of the original, (x, y)
    """

    def __init__(self, features: DenseFeatures, factor: tuple[float, float]) -> None:
        self._features = features
        self._factor = factor

    @torch.inference_mode()
    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, 1, D) float32 of unit length at (x, y) in pixels of the original. Raises ShapeError."""
        check_shape("points", points_N2, "N 2")
        points = points_N2.to(self._features.descriptor_map.device, torch.float32)
        seen = (points + 0.5) * points.new_tensor(self._factor) - 0.5
        return self._features.descriptors_at(0, seen)[:, None]


def grey_image(image: Image, max_side: int) -> Float32:
    """Grey (h, w) float32 in [0, 255] of an (H, W, 3) uint8 RGB image, shrunk to a long side of `max_side`."""
    height, width = image.shape[:2]
    reduction = min(1.0, max_side / max(height, width))
    if reduction < 1:
        image = np.asarray(_resize(image, width * reduction, height * reduction, cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY), np.float32)


def dense_features(model: ASLFeat, grey: Float32) -> DenseFeatures:
    """What the network sees in a grey image (h, w) float32: standardised, then padded for it."""
    device = model.running_maxima.maxima.device
    standardised = standardise(torch.from_numpy(grey).to(device)[None, None])
    return cast(
        DenseFeatures, model(pad_for_network(standardised, smallest_image(model.config.detection.dilations)))
    )


def number_of_scales(height: int, width: int) -> int:
    """How many sizes multi-scale extraction looks at: down to 0.3 of the image or a long side of 128 px; at
    least 1."""
    smallest = max(_SMALLEST_SCALE, _SMALLEST_SIDE_PX / max(height, width))
    return max(1, math.floor(math.log(smallest) / math.log(_SCALE_FACTOR) + 1e-9))


def pad_for_network(image_11HW: Tensor, smallest: int) -> Tensor:
    """Repeat the last row and column until both sizes are multiples of 4 and at least `smallest`.

    So every image has the alignment of the training images, in which cell o of the 1/4 map belongs to pixel 4
    o. differs from the public implementation, which runs on any size and then shifts by up to a pixel.
    """
    height, width = image_11HW.shape[2:]
    padded = [max(smallest, math.ceil(s / DESCRIPTOR_STRIDE) * DESCRIPTOR_STRIDE) for s in (height, width)]
    return F.pad(image_11HW, (0, padded[1] - width, 0, padded[0] - height), mode="replicate")


def _resize(image: npt.NDArray[Any], width: float, height: float, interpolation: int) -> npt.NDArray[Any]:
    size = (max(1, round(width)), max(1, round(height)))
    return cv2.resize(image, size, interpolation=interpolation)
