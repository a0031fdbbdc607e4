"""Local features of one image, the unit that extraction writes and evaluation reads. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from matchlib.errors import ShapeError, check_shape

Float32 = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Local features of one image.

    keypoints:   (N, 2) float32, x then y, pixels of the original image, centre of the first pixel at (0, 0)
    scores:      (N,) float32, higher is better, comparable within one image only
    descriptors: (N, D) float32, unit L2 length
    image_size:  (width, height) of the original image
    N may be 0. Raises ShapeError for shapes or dtypes other than these.
    """

    keypoints: Float32
    scores: Float32
    descriptors: Float32
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        n = check_shape("keypoints", self.keypoints, "N 2")["N"]
        check_shape("scores", self.scores, str(n))
        check_shape("descriptors", self.descriptors, f"{n} D")
        for name in ("keypoints", "scores", "descriptors"):
            dtype = getattr(self, name).dtype
            if dtype != np.float32:
                raise ShapeError(f"{name}: expected float32, got {dtype}")

    def __len__(self) -> int:
        return int(self.keypoints.shape[0])

    def top(self, k: int) -> Features:
        """The `k` best by score (all, if fewer), best first; equal scores keep their order."""
        best = np.argsort(-self.scores, kind="stable")[:k]
        return replace(
            self, keypoints=self.keypoints[best], scores=self.scores[best], descriptors=self.descriptors[best]
        )


class Extractor(Protocol):
    """Anything that turns an image into features.

    `name` stands in tables. `fingerprint` is a digest of method, settings and weights: results are cached and
    compared by it, never by name. `descriptor_dim` is known before the first image (empty images need it).
    """

    name: str
    fingerprint: str
    descriptor_dim: int

    def extract(self, image: Image) -> Features:
        """Features of one (H, W, 3) uint8 RGB image, best score first; an empty result for a featureless
        image.
        """
        ...
