"""Settings of PoSFeat. Readable without torch; checked when made.

Where the released code differs from the paper or has a known fault, the setting that decides it says so: the
default is the corrected behaviour, the value named "legacy" restores the release. Image size, steps and optimiser
belong to the trainer (`StageConfig`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement

Encoder = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2"]
Sampling = Literal["exact", "legacy"]
Detector = Literal["auto", "network", "sift"]

_require = requirement("posfeat.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The description net and the keypoint head. Weights belong to the values that they were trained with."""

    encoder: Encoder = "resnet50"
    """Residual network whose first three stages encode the image; published: resnet50."""
    decoder_channels: tuple[int, int] = (512, 256)
    """Channels of the decoder at resolutions 1/8 and 1/4. Smaller ones are for demonstrations on a CPU."""
    head_channels: tuple[int, int] = (64, 128)
    """Channels of the keypoint head: of its image branch, and of its layer before the last."""
    sampling: Sampling = "exact"
    """How the descriptor map is read at a pixel. "exact": cell centres at 4 x + 1.5. "legacy": as released, off
    by up to half a pixel towards the borders, depending on the size of the image; for foreign weights."""
    batch_norm_momentum: float = 0.1
    """Weight of the newest batch in the running statistics."""
    batch_statistics: Literal["per_image", "shared"] = "per_image"
    """Batch statistics of the two images of a pair in training: each its own (published), or of both together."""
    synchronise_statistics: bool = False
    """With several processes: batch statistics over all of them, as one process would have, at about a hundred
    exchanges per step; or of each process's own share."""
    encoder_weights: str | None = None
    """A file of ImageNet weights with torchvision's key names (safetensors, or a state dict saved by torch) to
    start from; null: random, which needs far more steps."""

    def __post_init__(self) -> None:
        for name in ("decoder_channels", "head_channels"):
            _require(min(getattr(self, name)) >= 1, f"network.{name}", "two values >= 1", getattr(self, name))
        momentum = self.batch_norm_momentum
        _require(0 < momentum <= 1, "network.batch_norm_momentum", "a value in (0, 1]", momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorLossConfig:
    """Stage `desc`: search along the epipolar line, then in a window around the best place."""

    cell_px: int = 16
    """One query is drawn in every cell of this many pixels on a side."""
    line_samples: int = 100
    """Places looked at along the part of the epipolar line that lies in the image."""
    line_ends: Literal["clipped", "legacy"] = "clipped"
    """Which lines are usable. "clipped": all that cross the image. "legacy": only those that meet exactly two of
    its four sides, so that a line through a corner is lost."""
    line_position: Literal["best", "expected"] = "best"
    """Centre of the window: the most similar place of the line (published), or the mean by probability."""
    jitter: bool = True
    """Move the window by up to 0.707 of its half-width, so that its centre does not give the line away."""
    window: float = 0.1
    """Half-width of the window as a share of half the image's width and height."""
    temperature: float = 60.0
    """Factor on similarities before the softmax."""
    max_distance: float = 0.1
    """Queries whose expected match lies farther from the line than this share of the shorter side do not count."""
    weights: Literal["pair", "batch"] = "pair"
    """Over what the weights of queries, one over the spread of their match, are scaled to a mean of 1: each pair of
    images, so that all pairs count alike and processes need not know each other's; or the whole batch (published),
    which takes one exchange of five numbers a step between processes."""
    colour_jitter: bool = True
    """Change brightness, contrast, saturation (factors 0 to 2) and hue (+-0.4 turns) of each training image."""

    def __post_init__(self) -> None:
        _require(self.cell_px >= 4, "descriptor_loss.cell_px", "at least 4", self.cell_px)
        _require(self.line_samples >= 2, "descriptor_loss.line_samples", "at least 2", self.line_samples)
        _require(0 < self.window <= 1, "descriptor_loss.window", "a value in (0, 1]", self.window)
        _require(self.temperature > 0, "descriptor_loss.temperature", "a value above 0", self.temperature)
        _require(self.max_distance > 0, "descriptor_loss.max_distance", "a value above 0", self.max_distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointLossConfig:
    """Stage `kp`: keypoints are drawn, matched by the frozen descriptors, and rewarded by epipolar geometry."""

    cell_px: int = 8
    """One keypoint is proposed in every cell of this many pixels on a side."""
    temperature: float = 60.0
    """Factor on similarities in the distribution of matches."""
    reward: Literal["constant", "dynamic"] = "constant"
    """"constant" (published): `good` within `reward_threshold_px` of both epipolar lines, else `bad`. "dynamic":
    max(exp(-d/2) + exp(-d'/2) - 2/e, bad) for the two distances d, d'."""
    reward_threshold_px: float = 2.0
    """Distance from the epipolar line, in both images, up to which a match is good."""
    rescale_threshold: bool = False
    """Multiply each direction's threshold by its mean distance over the smaller of the two means."""
    good: float = 1.0
    """Reward of a good match."""
    bad: float = -0.25
    """Reward of any other match."""
    keypoint_penalty: float = 0.001
    """Cost of each keypoint."""
    block: int = 256
    """Keypoints of image 0 that are compared with all of image 1 at a time; bounds memory, not the result."""

    def __post_init__(self) -> None:
        _require(self.cell_px >= 2, "keypoint_loss.cell_px", "at least 2", self.cell_px)
        _require(self.temperature > 0, "keypoint_loss.temperature", "a value above 0", self.temperature)
        threshold = self.reward_threshold_px
        _require(threshold > 0, "keypoint_loss.reward_threshold_px", "a value above 0", threshold)
        _require(self.good > self.bad, "keypoint_loss.good", f"a value above {self.bad}", self.good)
        _require(self.keypoint_penalty >= 0, "keypoint_loss.keypoint_penalty", ">= 0", self.keypoint_penalty)
        _require(self.block >= 1, "keypoint_loss.block", "at least 1", self.block)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig:
    """From an image to keypoints and descriptors. Published: 8192, 1, 0.9 for HPatches; 20480, 3, 0.5 for Aachen;
    20480, 3, 0.9 for ETH (keypoints, radius, threshold).
    """

    detector: Detector = "auto"
    """Where keypoints come from: the network's head or SIFT; auto: the head if the weights have a trained one."""
    max_keypoints: int = 8192
    """Best keypoints kept per image."""
    nms_radius: int = 1
    """A keypoint is the maximum of the window of this radius around it, in pixels."""
    score_threshold: float = 0.9
    """Keypoints score above this times the reference."""
    score_reference: Literal["abs", "max", "mean"] = "abs"
    """The reference: 1, or the image's largest or mean score."""
    min_keypoints: int = 0
    """At least this many are returned, if need be places that are no maxima, with score 0. Released: 128."""
    subpixel: bool = True
    """Refine by the centroid of the scores of the 3 x 3 neighbourhood."""
    max_image_side: int | None = None
    """Larger images are made smaller first; keypoints are in pixels of the original all the same. null: never."""
    tile_px: int | None = None
    """Images larger than this on a side are described in overlapping tiles of this many pixels, to bound memory.
    Scores are normalised over the whole image all the same. null: never."""
    tile_overlap_px: int = 112
    """Overlap of neighbouring tiles; descriptors near a seam do not see what lies beyond it."""
    max_memory_gb: float = 16.0
    """Images that would need more memory than this are refused, with an error that names `max_image_side` and
    `tile_px`."""

    def __post_init__(self) -> None:
        _require(self.max_keypoints >= 1, "inference.max_keypoints", "at least 1", self.max_keypoints)
        _require(self.nms_radius >= 0, "inference.nms_radius", "at least 0", self.nms_radius)
        _require(self.min_keypoints >= 0, "inference.min_keypoints", "at least 0", self.min_keypoints)
        for name in ("max_image_side", "tile_px"):
            side = getattr(self, name)
            _require(side is None or side >= 64, f"inference.{name}", "at least 64, or null", side)
        overlap, tile = self.tile_overlap_px, self.tile_px
        fits = overlap >= 0 and (tile is None or 2 * overlap < tile)
        _require(fits, "inference.tile_overlap_px", "at least 0 and below half of tile_px", overlap)
        _require(self.max_memory_gb > 0, "inference.max_memory_gb", "a value above 0", self.max_memory_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Figures of validation, in pixels of the training size."""

    max_keypoints: int = 512
    """Best keypoints per image that enter a figure; stage `desc` takes SIFT's."""
    threshold_px: float = 3.0
    """A match is right within this distance of both epipolar lines."""
    picture_matches: int = 50
    """Best matches drawn into the picture of few matches."""
    picture_error_px: float = 5.0
    """Epipolar distance that is drawn fully red."""

    def __post_init__(self) -> None:
        _require(self.max_keypoints >= 1, "validation.max_keypoints", "at least 1", self.max_keypoints)
        _require(self.threshold_px > 0, "validation.threshold_px", "a value above 0", self.threshold_px)
        _require(self.picture_matches >= 1, "validation.picture_matches", "at least 1", self.picture_matches)
        above = self.picture_error_px > 0
        _require(above, "validation.picture_error_px", "a value above 0", self.picture_error_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoSFeatConfig:
    """All settings of PoSFeat."""

    max_rotation_deg: float = 80.0
    """Pairs whose cameras are rotated further against each other are left out of training; 180: no limit."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    descriptor_loss: DescriptorLossConfig = field(default_factory=DescriptorLossConfig)
    keypoint_loss: KeypointLossConfig = field(default_factory=KeypointLossConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        usable = 0 < self.max_rotation_deg <= 180
        _require(usable, "max_rotation_deg", "a value above 0, at most 180", self.max_rotation_deg)
