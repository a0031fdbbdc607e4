"""Settings of the published networks. Readable without torch; checked when made. Defaults are their authors'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matchlib.errors import ConfigError


def _require_at_least(method: str, config: object, smallest: dict[str, float]) -> None:
    for key, least in smallest.items():
        got = getattr(config, key)
        if got < least:
            raise ConfigError(f"{method}.{key}: expected at least {least:g}, got {got}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskConfig:
    """DISK (Tyszkiewicz, Fua & Trulls, NeurIPS 2020)."""

    max_keypoints: int = 2048
    """Keep the strongest keypoints."""
    window_size: int = 5
    """A keypoint is the best of the square of this side around it, in pixels; odd."""
    score_threshold: float = 0.0
    """Keep maxima whose score, a logit, is above this."""

    def __post_init__(self) -> None:
        _require_at_least("disk", self, {"max_keypoints": 1, "window_size": 1})
        if self.window_size % 2 == 0:
            raise ConfigError(f"disk.window_size: expected an odd number, got {self.window_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikedConfig:
    """ALIKED (Zhao et al., IEEE TIM 2023)."""

    variant: Literal["aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32"] = "aliked-n16"
    """The network that the weights belong to."""
    max_keypoints: int = 5000
    """Keep the strongest keypoints."""
    detection_threshold: float = 0.2
    """Keep maxima whose score is above this; where there are none, those above the mean score of the image.
    0: no threshold, the strongest maxima."""
    nms_radius: int = 2
    """A keypoint is the best of the square of this half side around it, in pixels."""

    def __post_init__(self) -> None:
        _require_at_least("aliked", self, {"max_keypoints": 1, "detection_threshold": 0, "nms_radius": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class XFeatConfig:
    """XFeat (Potje et al., CVPR 2024), the sparse variant."""

    max_keypoints: int = 4096
    """Keep the strongest keypoints."""
    detection_threshold: float = 0.05
    """Keep maxima of the keypoint map above this probability."""

    def __post_init__(self) -> None:
        _require_at_least("xfeat", self, {"max_keypoints": 1, "detection_threshold": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeDoDeConfig:
    """DeDoDe (Edstedt et al., 3DV 2024): detector L, descriptor B. The method's weights are the detector's."""

    descriptor_weights: str | None = None
    """File with the weights of the descriptor B; needed."""
    max_keypoints: int = 10000
    """Keep the strongest keypoints."""

    def __post_init__(self) -> None:
        _require_at_least("dedode", self, {"max_keypoints": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyNetHardNetConfig:
    """Key.Net (Barroso-Laguna et al., ICCV 2019) with HardNet (Mishchuk et al., NeurIPS 2017).

    The method's weights are Key.Net's.
    """

    hardnet_weights: str | None = None
    """File with the weights of HardNet; needed."""
    orinet_weights: str | None = None
    """File with the weights of OriNet, which turns patches upright; null: they stay as they are in the image."""
    affnet_weights: str | None = None
    """File with the weights of AffNet, which finds their affine shape; null: they are circles."""
    max_keypoints: int = 8000
    """Keep the strongest keypoints."""
    score_threshold: float = 0.0
    """Keep maxima whose response is above this."""
    level_origin: Literal["centre", "corner"] = "centre"
    """Where pixel u of an image level shrunk by s stands in the image: "centre" is right, at (u + 1/2) s - 1/2;
    "corner" is u s, as in kornia and in the authors' code, off by up to 1.5 pixels."""

    def __post_init__(self) -> None:
        _require_at_least("keynet_hardnet", self, {"max_keypoints": 1, "score_threshold": 0})
