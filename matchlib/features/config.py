"""Settings of feature extraction and of the classical extractors."""

from __future__ import annotations

from dataclasses import dataclass

from matchlib.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionConfig:
    """How a set of images is run through an extractor."""

    resize_short_side: int | None = None
    """Shrink each image to this short side in pixels before extraction (never enlarge); null: original size.
    Keypoints are mapped back to the original image. Published homography protocols use 480."""
    threads: int = 2
    """Threads that read and decode images ahead of the extractor."""
    prefetch: int = 8
    """Decoded images that may wait for the extractor; bounds memory."""
    max_unreadable_share: float = 0.01
    """Stop when more than this share of the images cannot be read; fewer are named, counted and left out."""

    def __post_init__(self) -> None:
        if self.resize_short_side is not None and self.resize_short_side < 16:
            raise ConfigError(
                f"extraction.resize_short_side: expected at least 16 or null, got {self.resize_short_side}"
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
