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
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.completion import digest_file, digest_json
from matchlib.errors import DataError, ShapeError, check_shape
from matchlib.features.types import Features, Float32, Image
from matchlib.methods.aslfeat.config import ASLFeatConfig
from matchlib.methods.aslfeat.detection import smallest_image
from matchlib.methods.aslfeat.keypoints import select_keypoints
from matchlib.methods.aslfeat.model import ASLFeat
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
    of this network.
    """
    if weights is None:
        model = ASLFeat(config, deformable=False)
        model.network.initialise(torch_generator_for(0, "aslfeat", "initialise"))
        return ASLFeatExtractor(model.to(device).eval(), weights_digest="untrained")
    state = _read_weights(weights)
    model = ASLFeat(config, deformable=any("deform_param" in name for name in state))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first_fault = str(error).strip().splitlines()[-1].strip()
        raise DataError(
            f"{weights}: expected weights of aslfeat, variant '{config.network.variant}'; {first_fault}"
        ) from error
    return ASLFeatExtractor(model.to(device).eval(), weights_digest=digest_file(weights))


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: weights not found; train aslfeat first, or name the right file") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: expected a safetensors file; {error}") from error


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
        self._smallest_image = smallest_image(config.detection.dilations)

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
        height, width = image.shape[:2]
        if height == 0 or width == 0:
            return
        reduction = min(1.0, self._config.max_image_side / max(height, width))
        if reduction < 1:
            image = np.asarray(
                _resize(image, width * reduction, height * reduction, cv2.INTER_AREA), np.uint8
            )
        grey = np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY), np.float32)
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
        device = self._model.running_maxima.maxima.device
        standardised = standardise(torch.from_numpy(grey).to(device)[None, None])
        dense = self._model(pad_for_network(standardised, self._smallest_image))
        points, scores = select_keypoints(dense.score_map()[0, :height, :width], self._config)
        descriptors = dense.descriptors_at(0, points)
        factor = points.new_tensor([original_size[0] / width, original_size[1] / height])
        original = (points + 0.5) * factor - 0.5
        return original.cpu().numpy(), scores.cpu().numpy(), descriptors.cpu().numpy()


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
