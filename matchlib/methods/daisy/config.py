"""Settings of DAISY. Readable without torch; checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import ConfigError
from matchlib.features.config import DetectorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DaisyConfig:
    """The descriptor as scikit-image computes it; the defaults give the 200 numbers of the paper."""

    radius: int = 15
    """Distance of the outermost ring of histograms from the centre, in pixels."""
    rings: int = 3
    """Rings of histograms around the central one."""
    histograms: int = 8
    """Histograms on a ring."""
    orientations: int = 8
    """Gradient directions of a histogram."""
    normalization: Literal["l2", "l1", "daisy", "raw"] = "l2"
    """What is normalised at each pixel before reading between pixels: the whole vector ("l2", "l1"), each
    histogram ("daisy", the paper's), or nothing ("raw", what the public descriptor-space code does). The
    descriptor that is read is brought to unit L2 length in every case."""
    swap_red_blue: bool = False
    """Exchange the weights of red and blue in the conversion to grey, as the public descriptor-space code does
    by mistake."""
    max_image_side: int = 1600
    """Shrink larger images to this long side before describing them, in pixels."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """Where descriptors are taken when features are extracted; DAISY itself detects nothing."""

    def __post_init__(self) -> None:
        for name in ("radius", "rings", "histograms", "orientations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"daisy.{name}: expected at least 1, got {getattr(self, name)}")
        if self.radius < self.rings:
            raise ConfigError(
                f"daisy.radius: expected at least one pixel for each of {self.rings} rings, got {self.radius}"
            )
        if self.max_image_side < 16:
            raise ConfigError(f"daisy.max_image_side: expected at least 16, got {self.max_image_side}")
