"""One shape for networks that others published: an image in, matchlib's features or descriptors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from matchlib.completion import digest_json
from matchlib.errors import ShapeError, check_shape
from matchlib.features.dense import MemberPairs
from matchlib.features.types import Features, Float32, Image

REVISION = 1
SMALLEST_SIDE_PX = 32
"""Below it the coarsest maps of such networks have no room; smaller images have no features."""


@dataclass(frozen=True, slots=True)
class Detected:
    """Features of one image as a network gives them, in any order.

    points:      (N, 2) (x, y) in pixels of the image, centre of the first pixel at (0, 0)
    scores:      (N,) higher is better
    descriptors: (N, D) of any length but zero
    """

    points: Tensor
    scores: Tensor
    descriptors: Tensor


Detect = Callable[[Tensor], Detected]
ReadAt = Callable[[Tensor], Tensor]
Prepare = Callable[[Tensor], ReadAt]


def fingerprint(method: str, *, code: str, weights: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Digest of what features depend on.

    code:     the library that computes them, with its version
    weights:  digests of the weights files
    settings: the method's settings; names of further weights files (`*_weights`) do not count, their content does
    """
    used = {key: value for key, value in settings.items() if not key.endswith("_weights")}
    return digest_json(
        {
            "method": method,
            "revision": REVISION,
            "code": code,
            "weights": list(weights),
            "settings": used,
        }
    )


class ForeignExtractor:
    """See `matchlib.features.types.Extractor`.

    detect: features of a (1, 3, H, W) float32 RGB image in [0, 1] on `device`, H and W at least SMALLEST_SIDE_PX
    """

    def __init__(
        self,
        detect: Detect,
        *,
        name: str,
        fingerprint: str,
        descriptor_dim: int,
        max_keypoints: int,
        device: str,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.descriptor_dim = descriptor_dim
        self._detect = detect
        self._max_keypoints = max_keypoints
        self._device = device

    @torch.inference_mode()
    def extract(self, image: Image) -> Features:
        """Features of an (H, W, 3) uint8 RGB image, best first; none for images of one colour, or with a side
        below SMALLEST_SIDE_PX. Raises ShapeError.
        """
        height, width = _checked_size(image)
        if min(height, width) < SMALLEST_SIDE_PX or (image == image[:1, :1]).all():
            return Features(
                keypoints=np.zeros((0, 2), np.float32),
                scores=np.zeros(0, np.float32),
                descriptors=np.zeros((0, self.descriptor_dim), np.float32),
                image_size=(width, height),
            )
        found = self._detect(to_tensor(image, self._device))
        return Features(
            keypoints=found.points.float().cpu().numpy(),
            scores=found.scores.float().cpu().numpy(),
            descriptors=F.normalize(found.descriptors.float(), dim=1).cpu().numpy(),
            image_size=(width, height),
        ).top(self._max_keypoints)


class ForeignDescriber:
    """See `matchlib.features.dense.DenseDescriber`.

    prepare: runs the network on an image (as of `ForeignExtractor`) and returns the function that reads
             descriptors (N, D) at (N, 2) positions in pixels of that image
    """

    members: tuple[str, ...] = ("descriptor",)
    member_pairs: MemberPairs = "all"
    uses_true_scale = False

    def __init__(
        self, prepare: Prepare, *, name: str, fingerprint: str, descriptor_dim: int, device: str
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.descriptor_dim = descriptor_dim
        self._prepare = prepare
        self._device = device

    @torch.inference_mode()
    def describe(self, image: Image, *, scale: Float32 | None = None) -> ForeignDescriptors:
        """Descriptors of an (H, W, 3) uint8 RGB image with sides of at least SMALLEST_SIDE_PX; `scale` is
        ignored. Raises ShapeError.
        """
        if min(_checked_size(image)) < SMALLEST_SIDE_PX:
            raise ShapeError(
                f"image: {self.name} expected sides of at least {SMALLEST_SIDE_PX} pixels, got {image.shape[:2]}"
            )
        return ForeignDescriptors(
            self._prepare(to_tensor(image, self._device)), self.descriptor_dim, self._device
        )


class ForeignDescriptors:
    """See `matchlib.features.dense.DenseDescriptors`."""

    def __init__(self, read_at: ReadAt, descriptor_dim: int, device: str) -> None:
        self._read_at = read_at
        self._descriptor_dim = descriptor_dim
        self._device = device

    @torch.inference_mode()
    def at(self, points_N2: Tensor) -> Tensor:
        """Descriptors (N, 1, D) float32 of unit length at (x, y) in pixels of the image. Raises ShapeError."""
        check_shape("points", points_N2, "N 2")
        points = points_N2.to(self._device, torch.float32)
        if len(points) == 0:
            return points.new_zeros(0, 1, self._descriptor_dim)
        return F.normalize(self._read_at(points).float(), dim=1)[:, None]


def to_tensor(image: Image, device: str) -> Tensor:
    """(1, 3, H, W) float32 in [0, 1] on `device`."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float() / 255


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and at the bottom until both sides of (1, C, H, W) are multiples."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple))


def _checked_size(image: Image) -> tuple[int, int]:
    sizes = check_shape("image", image, "H W 3")
    if image.dtype != np.uint8:
        raise ShapeError(f"image: expected uint8, got {image.dtype}")
    return sizes["H"], sizes["W"]
