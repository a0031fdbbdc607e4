"""Settings of feature extraction, of the classical extractors and of the keypoint detectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matchlib.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionConfig:
    """How a set of images is run through an extractor."""

    resize_short_side: int | None = None
    """Shrink each image to this short side in pixels before extraction (never enlarge); null: original size.
    Keypoints are mapped back to the original image. Published homography protocols use 480."""
    resize_long_side: int | None = None
    """Resize each image to this long side in pixels before extraction, smaller or larger; null: original size.
    Keypoints are mapped back. Published relative-pose protocols use 640 to 1600, and enlarge too (LoFTR,
    glue-factory). Not together with `resize_short_side`."""
    threads: int = 2
    """Threads that read and decode images ahead of the extractor."""
    prefetch: int = 8
    """Decoded images that may wait for the extractor; bounds memory."""
    max_unreadable_share: float = 0.01
    """Stop when more than this share of the images cannot be read; fewer are named, counted and left out."""

    def __post_init__(self) -> None:
        for key in ("resize_short_side", "resize_long_side"):
            side = getattr(self, key)
            if side is not None and side < 16:
                raise ConfigError(f"extraction.{key}: expected at least 16 or null, got {side}")
        if self.resize_short_side is not None and self.resize_long_side is not None:
            raise ConfigError(
                f"extraction.resize_long_side: expected null beside resize_short_side = {self.resize_short_side}, got "
                f"{self.resize_long_side}; set one of them"
            )
        if self.threads < 1:
            raise ConfigError(f"extraction.threads: expected at least 1, got {self.threads}")
        if self.prefetch < 1:
            raise ConfigError(f"extraction.prefetch: expected at least 1, got {self.prefetch}")
        if not 0 <= self.max_unreadable_share <= 1:
            raise ConfigError(
                f"extraction.max_unreadable_share: expected a share in [0, 1], got "
                f"{self.max_unreadable_share}"
            )

    def extraction_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height at which an image of `size` = (width, height) is extracted."""
        factor = 1.0
        if self.resize_short_side is not None:
            factor = min(self.resize_short_side / min(size), 1.0)
        elif self.resize_long_side is not None:
            factor = self.resize_long_side / max(size)
        return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiftConfig:
    """OpenCV's SIFT (Lowe 2004)."""

    max_keypoints: int = 5000
    """Keep the strongest keypoints; 0 keeps all."""
    octave_layers: int = 3
    """Scale layers per octave."""
    contrast_threshold: float = 0.04
    """Reject extrema of weak contrast; lower gives more keypoints. OpenCV divides it by `octave_layers`."""
    edge_threshold: float = 10.0
    """Reject extrema whose ratio of principal curvatures is larger; higher gives more keypoints."""
    sigma: float = 1.6
    """Blur of the first layer, in pixels."""
    precise_upscale: bool = False
    """Align the doubled first octave with the original grid. OpenCV's default (false) moves keypoints of all
    octaves by a quarter of a pixel; it is the default here because every published OpenCV SIFT row has it."""
    dense_size_px: float = 12.0
    """Diameter of the keypoints (twice their scale) at which descriptors at given places are taken, upright; a
    descriptor sees six diameters. Of no effect on extraction, where each keypoint has its own."""

    def __post_init__(self) -> None:
        if self.max_keypoints < 0:
            raise ConfigError(f"sift.max_keypoints: expected 0 (all) or more, got {self.max_keypoints}")
        if self.octave_layers < 1:
            raise ConfigError(f"sift.octave_layers: expected at least 1, got {self.octave_layers}")
        if self.contrast_threshold < 0:
            raise ConfigError(f"sift.contrast_threshold: expected 0 or more, got {self.contrast_threshold}")
        if self.edge_threshold <= 0:
            raise ConfigError(f"sift.edge_threshold: expected a value above 0, got {self.edge_threshold}")
        if self.sigma <= 0:
            raise ConfigError(f"sift.sigma: expected a value above 0, got {self.sigma}")
        if self.dense_size_px < 2:
            raise ConfigError(f"sift.dense_size_px: expected at least 2, got {self.dense_size_px}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """Where descriptors are taken, for methods that describe any place and detect none."""

    kind: Literal["sift", "harris"] = "sift"
    """"sift": extrema of the difference of Gaussians, to a fraction of a pixel. "harris": local maxima of
    OpenCV's Harris response, whole pixels; its block of two pixels puts them half a pixel to the lower right."""
    max_keypoints: int = 2000
    """Keep the strongest keypoints; 0 keeps all."""
    border: int = 4
    """Drop keypoints nearer than this to the edge of the image, in pixels."""
    contrast_threshold: float = 0.02
    """sift: reject extrema of weak contrast; lower gives more keypoints (OpenCV's default is 0.04)."""
    edge_threshold: float = 10.0
    """sift: reject extrema whose ratio of principal curvatures is larger."""
    suppression_radius: int = 3
    """harris: a keypoint is the best of the square of this half side around it, in pixels."""
    quality: float = 0.0
    """harris: reject responses up to this share of the strongest one; 0 keeps every positive one."""

    def __post_init__(self) -> None:
        for name in ("max_keypoints", "border", "contrast_threshold"):
            if getattr(self, name) < 0:
                raise ConfigError(f"detector.{name}: expected 0 or more, got {getattr(self, name)}")
        if self.edge_threshold <= 0:
            raise ConfigError(f"detector.edge_threshold: expected a value above 0, got {self.edge_threshold}")
        if self.suppression_radius < 1:
            raise ConfigError(
                f"detector.suppression_radius: expected at least 1, got {self.suppression_radius}"
            )
        if not 0 <= self.quality < 1:
            raise ConfigError(f"detector.quality: expected a share in [0, 1), got {self.quality}")
