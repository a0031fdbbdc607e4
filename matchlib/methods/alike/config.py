"""Settings of ALIKE. Readable without torch; checked when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matchlib.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikeConfig:
    """How ALIKE's score map becomes keypoints."""

    variant: Literal["alike-t", "alike-s", "alike-n"] = "alike-t"
    """The network that the weights belong to."""
    max_keypoints: int = 5000
    """Keep the strongest keypoints."""
    score_threshold: float = 0.2
    """Keep maxima whose score, a probability, is above this."""
    nms_radius: int = 2
    """A keypoint is the best of the square of this half side around it, in pixels."""
    sub_pixel: bool = True
    """Move keypoints to the soft maximum of that square; false: whole pixels, as the public demonstration."""

    def __post_init__(self) -> None:
        if self.max_keypoints < 1:
            raise ConfigError(f"alike.max_keypoints: expected at least 1, got {self.max_keypoints}")
        if not 0 <= self.score_threshold < 1:
            raise ConfigError(
                f"alike.score_threshold: expected a value in [0, 1), got {self.score_threshold}"
            )
        if self.nms_radius < 1:
            raise ConfigError(f"alike.nms_radius: expected at least 1, got {self.nms_radius}")
