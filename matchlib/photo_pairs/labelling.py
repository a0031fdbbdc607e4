"""Interest points for photographs from a trained detector, kept in shards that are labelled independently."""

from __future__ import annotations

from typing import Protocol

from matchlib.features.types import Float32, Image


class Labeller(Protocol):
    """A detector that labels photographs.

    fingerprint: digest of method, settings and weights
    """

    fingerprint: str

    def label(self, image: Image, seed: int) -> Float32:
        """Interest points (K, 3) float32 of an (H, W, 3) uint8 RGB image: x, y in pixels of that image, and
        a score, best first. Random draws come from `seed`."""
        ...
