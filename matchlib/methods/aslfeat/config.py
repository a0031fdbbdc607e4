"""Settings of ASLFeat. Readable without torch; checked when made.

Where the public implementation (tfmatch) has a known fault, the setting that decides it says so: the default
is the corrected behaviour, the value named as tfmatch's restores the original.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement

Variant = Literal["full", "small"]
Stride2Padding = Literal["bottom_right", "centred"]


_require = requirement("aslfeat.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The network. Weights belong to the `variant` and `stride2_padding` that they were trained with."""

    variant: Variant = "full"
    """"full": 32, 64, 128 channels at resolutions 1, 1/2, 1/4 (the published network). "small": half as many,
    about a quarter of the work, for demonstrations on a CPU."""
    stride2_padding: Stride2Padding = "bottom_right"
    """Padding of the two stride-2 layers. "bottom_right" is TensorFlow's SAME, as published: cell o of the
    1/4 map then sees the pixels around 4o+3 but is read as if it stood at 4o. "centred" pads one pixel on
    every side and removes that bias of 3 px; use it for training from scratch only."""
    batch_norm_momentum: float = 0.01
    """Weight of the newest batch in the running statistics (TensorFlow's 0.99). Runs of a few hundred steps
    need a larger value, or the statistics still remember their start."""

    def __post_init__(self) -> None:
        momentum = self.batch_norm_momentum
        _require(0 < momentum <= 1, "network.batch_norm_momentum", "a value in (0, 1]", momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionConfig:
    """How feature maps become a score map."""

    use_peakiness: bool = True
    """True: ASLFeat's peakiness. False: the score of D2-Net (spatial softmax times ratio to the channel
    maximum); `inference.score_threshold` then needs another value."""
    level_weights: tuple[float, float, float] = (1.0, 2.0, 3.0)
    """Weights of the levels conv1, conv3, conv6; divided by their sum."""
    dilations: tuple[int, int, int] = (3, 2, 1)
    """Dilation of the 3x3 neighbourhood at the levels conv1, conv3, conv6."""
    running_max_momentum: float = 0.99
    """Share of the old value in the running maximum that normalises each level's map."""

    def __post_init__(self) -> None:
        weights, momentum = self.level_weights, self.running_max_momentum
        weights_are_usable = all(w >= 0 for w in weights) and sum(weights) > 0
        _require(weights_are_usable, "detection.level_weights", "three values >= 0, not all 0", weights)
        _require(
            all(d >= 1 for d in self.dilations), "detection.dilations", "three values >= 1", self.dilations
        )
        _require(0 <= momentum < 1, "detection.running_max_momentum", "a value in [0, 1)", momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Correspondences and loss."""

    descriptor: Literal["circle", "hard_contrastive"] = "circle"
    """"circle" is what the authors recommend since their post-conference update; "hard_contrastive" is the
    paper's."""
    positive_margin: float = 0.2
    """hard_contrastive: distance below which a correct pair costs nothing."""
    negative_margin: float = 1.0
    """hard_contrastive: distance above which a wrong pair costs nothing."""
    circle_scale: float = 512.0
    """circle: the factor g."""
    circle_margin: float = 0.1
    """circle: the relaxation m."""
    circle_excluded: Literal["masked", "shifted"] = "masked"
    """circle: what happens to pairs that are no negatives (the correct pair, near duplicates, neighbours).
    "masked": they are left out. "shifted": tfmatch's fault, similarity minus 128, which still adds exp(0) = 1
    to the sum."""
    correspondences: int = 512
    """Correspondences drawn per pair."""
    min_correspondences: int = 32
    """A pair with fewer has loss 0."""
    safe_radius_px: float = 12.0
    """Points nearer than this to the true position are not negatives. 12 px are 3 cells of the 1/4 map."""
    depth_check: Literal["relative", "absolute"] = "relative"
    """What `depth_threshold` bounds: |z - depth1| / z for the depth z in camera 1, or (tfmatch) |z - depth1|
    in scene units, which means something else in every scene."""
    depth_threshold: float = 0.05
    """Largest depth disagreement of a correspondence."""
    photometric_augmentation: bool = True
    """Random brightness, contrast and motion blur of each training image (tfmatch, all methods)."""

    def __post_init__(self) -> None:
        _require(self.positive_margin >= 0, "loss.positive_margin", "a value >= 0", self.positive_margin)
        above = self.negative_margin > self.positive_margin
        _require(above, "loss.negative_margin", f"a value above {self.positive_margin}", self.negative_margin)
        _require(self.circle_scale > 0, "loss.circle_scale", "a value above 0", self.circle_scale)
        _require(0 <= self.circle_margin < 1, "loss.circle_margin", "a value in [0, 1)", self.circle_margin)
        _require(
            self.min_correspondences >= 2, "loss.min_correspondences", "at least 2", self.min_correspondences
        )
        enough = self.correspondences >= self.min_correspondences
        _require(enough, "loss.correspondences", f"at least {self.min_correspondences}", self.correspondences)
        _require(self.safe_radius_px >= 0, "loss.safe_radius_px", "a value >= 0", self.safe_radius_px)
        _require(self.depth_threshold > 0, "loss.depth_threshold", "a value above 0", self.depth_threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class DcnConfig:
    """The second stage: deformable convolutions in conv6_0, conv6_1, conv6; the layers before are frozen."""

    update_bn_statistics: bool = True
    """False (tfmatch's fault): running statistics stay at their values of stage `base`, although the layers
    change."""
    rescale_statistics: bool = True
    """Deformable layers start at half the plain response. True: running statistics taken over from `base` are
    halved with it, so that the stage starts as exactly the function that `base` ended as. False: tfmatch."""
    weight_decay: bool = True
    """False (tfmatch's fault): no weight decay in this stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig:
    """From an image to keypoints and descriptors."""

    max_keypoints: int = 5000
    """Best keypoints kept per image."""
    score_threshold: float = 0.5
    """Keypoints score above this. A flat response scores softplus(0)^2 = 0.48."""
    nms_size: int = 3
    """A keypoint is the maximum of a window of this many pixels on a side (odd)."""
    edge_threshold: float = 10.0
    """Largest ratio of principal curvatures of the score; 0 switches the edge filter off."""
    border: int = 5
    """Keypoints keep this distance from the border, pixels of the image that the network sees."""
    subpixel: bool = True
    """Refine by one Newton step of at most half a pixel."""
    multi_scale: bool = False
    """Also search images smaller by 1/sqrt(2), 1/2, …"""
    max_image_side: int = 2000
    """Larger images are made smaller first; keypoints are in pixels of the original all the same."""

    def __post_init__(self) -> None:
        _require(self.max_keypoints >= 1, "inference.max_keypoints", "at least 1", self.max_keypoints)
        finite = math.isfinite(self.score_threshold)
        _require(finite, "inference.score_threshold", "a finite number", self.score_threshold)
        odd = self.nms_size >= 1 and self.nms_size % 2 == 1
        _require(odd, "inference.nms_size", "an odd number >= 1", self.nms_size)
        edge_is_usable = self.edge_threshold == 0 or self.edge_threshold >= 1
        _require(edge_is_usable, "inference.edge_threshold", "0 or a value >= 1", self.edge_threshold)
        _require(self.border >= 1, "inference.border", "at least 1", self.border)
        _require(self.max_image_side >= 16, "inference.max_image_side", "at least 16", self.max_image_side)


@dataclass(frozen=True, slots=True, kw_only=True)
class ASLFeatConfig:
    """All settings of ASLFeat. Image size and optimiser of training belong to the trainer."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dcn: DcnConfig = field(default_factory=DcnConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    validation_keypoints: int = 512
    """Best keypoints per image in the validation figure, whatever their score."""
    validation_threshold_px: float = 3.0
    """A match is correct within this distance of the true position."""

    def __post_init__(self) -> None:
        _require(
            self.validation_keypoints >= 1, "validation_keypoints", "at least 1", self.validation_keypoints
        )
        above = self.validation_threshold_px > 0
        _require(above, "validation_threshold_px", "a value above 0", self.validation_threshold_px)
