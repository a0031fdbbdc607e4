"""DAISY by scikit-image, read at any position without holding the map of a whole image.

The map of a 640x480 image takes 246 MB. Descriptors are therefore computed in strips of rows, only where points
are, each strip with as many rows around it as reach into it: the result is that of the whole map.

differs from OpenCV's DAISY: scikit-image smooths the histograms from scratch for each ring and weighs
orientations by a von Mises distribution; tables name the provider for that reason.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage.feature import daisy
from torch import Tensor
from torch.nn import functional as F

from matchlib.completion import digest_json
from matchlib.errors import ConfigError, ShapeError, check_shape
from matchlib.features.dense import MemberPairs
from matchlib.features.described import DescribedKeypoints
from matchlib.features.types import Float32, Image
from matchlib.geometry.sampling import sample_bilinear
from matchlib.methods.daisy.config import DaisyConfig

REVISION = 1
_STRIP_BYTES = 64 * 2**20
_SMALLEST_STRIP_ROWS = 32
_GAUSSIAN_REACH = 4.0  # where skimage.filters.gaussian cuts its kernel, in sigmas


def build(config: DaisyConfig, weights: Path | None, device: str) -> DescribedKeypoints:
    """The `daisy` extractor: keypoints of the configured detector, described by DAISY. Raises ConfigError."""
    return DescribedKeypoints(build_dense(config, weights, device), config.detector)


def build_dense(config: DaisyConfig, weights: Path | None, device: str) -> DaisyDescriber:
    """The `daisy` describer; it has no weights and computes on the CPU whatever `device` says. Raises
    ConfigError.
    """
    if weights is not None:
        raise ConfigError(f"daisy has no weights, got {weights}; leave the option out")
    return DaisyDescriber(config)


class DaisyDescriber:
    """See `matchlib.features.dense.DenseDescriber`."""

    members: tuple[str, ...] = ("daisy",)
    member_pairs: MemberPairs = "all"
    uses_true_scale = False

    def __init__(self, config: DaisyConfig) -> None:
        self.name = "daisy-skimage"
        self.descriptor_dim = (config.rings * config.histograms + 1) * config.orientations
        settings = asdict(config)
        del settings["detector"]
        self.fingerprint = digest_json(
            {
                "method": self.name,
                "revision": REVISION,
                "config": settings,
                "skimage": version("scikit-image"),
            }
        )
        self._config = config

    def describe(self, image: Image, *, scale: Float32 | None = None) -> DaisyDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image of at least one pixel; `scale` is ignored. Raises
        ShapeError.
        """
        sizes = check_shape("image", image, "H W 3")
        if image.dtype != np.uint8 or image.size == 0:
            raise ShapeError(f"image: expected uint8 and at least one pixel, got {image.dtype} {image.shape}")
        conversion = cv2.COLOR_BGR2GRAY if self._config.swap_red_blue else cv2.COLOR_RGB2GRAY
        grey = cv2.cvtColor(image, conversion)
        reduction = self._config.max_image_side / max(sizes.values())
        if reduction < 1:
            size = (max(1, round(sizes["W"] * reduction)), max(1, round(sizes["H"] * reduction)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        return DaisyDescriptors(
            np.asarray(grey, np.float32) / np.float32(255), (sizes["W"], sizes["H"]), self._config
        )


class DaisyDescriptors:
    """See `matchlib.features.dense.DenseDescriptors`. Computes when asked; on the CPU."""

    def __init__(self, grey: Float32, original_size: tuple[int, int], config: DaisyConfig) -> None:
        self._height, self._width = grey.shape
        self._padded = np.pad(grey, config.radius, mode="reflect")
        self._factor = torch.tensor([self._width / original_size[0], self._height / original_size[1]])
        self._config = config
        self._dim = (config.rings * config.histograms + 1) * config.orientations
        self._halo = halo_rows(config)
        self._strip_rows = max(_SMALLEST_STRIP_ROWS, _STRIP_BYTES // (4 * self._dim * self._width))

    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, 1, D) float32 of unit length at (x, y) in pixels of the original image.

        Where the image is flat, "raw" gives zeros, which match nothing. Raises ShapeError.
        """
        check_shape("points", points_N2, "N 2")
        points = (points_N2.detach().cpu().float() + 0.5) * self._factor - 0.5
        descriptors = torch.zeros(len(points), self._dim)
        strip_of_point = points[:, 1].clamp(0, self._height - 1).floor().long() // self._strip_rows
        for strip in strip_of_point.unique().tolist():
            chosen = strip_of_point == strip
            first = strip * self._strip_rows
            # One row more than the strip's own: points between its last row and the next one read both.
            rows_HWD = self.rows(first, min(first + self._strip_rows + 1, self._height))
            local = points[chosen] - points.new_tensor([0.0, first])
            sampled_DN = sample_bilinear(torch.from_numpy(rows_HWD).permute(2, 0, 1), local)
            descriptors[chosen] = F.normalize(sampled_DN.T, dim=1)
        return descriptors[:, None]

    def rows(self, first: int, last: int) -> Float32:
        """The map of rows `first` to `last` (exclusive): (last - first, W, D) float32, as scikit-image
        normalises it.
        """
        radius = self._config.radius
        top = max(0, first - self._halo)
        bottom = min(len(self._padded), last + 2 * radius + self._halo)
        normalization = "off" if self._config.normalization == "raw" else self._config.normalization
        strip = daisy(  # type: ignore[no-untyped-call]
            self._padded[top:bottom],
            step=1,
            radius=radius,
            rings=self._config.rings,
            histograms=self._config.histograms,
            orientations=self._config.orientations,
            normalization=normalization,
        )
        return np.asarray(strip[first - top : last - top], np.float32)


def halo_rows(config: DaisyConfig) -> int:
    """How many padded rows beyond the ring's reach enter a descriptor: the widest Gaussian, and the gradient."""
    return int(_GAUSSIAN_REACH * config.radius / 2 + 0.5) + 1
