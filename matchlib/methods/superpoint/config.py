"""Settings of SuperPoint. Readable without torch; checked when made.

Where published programs disagree, the setting that decides it names each of them; the default is the
corrected behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement
from matchlib.methods.superpoint.training_config import TrainingConfig
from matchlib.photo_pairs.config import AdaptationWarpConfig

Layout = Literal["vgg", "vgg_bn"]
Softmax = Literal["exact", "legacy_epsilon"]
Nms = Literal["max_pool", "greedy", "box_iou"]
Sampling = Literal["exact", "legacy_corner_aligned", "legacy_half_pixel", "superglue"]
Interpolation = Literal["bilinear", "bicubic"]


_require = requirement("superpoint.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The network. Weights belong to the `layout` and `variant` that they were trained with."""

    layout: Layout = "vgg_bn"
    """"vgg_bn": batch norm after each activation, the layout of the MIT-licensed weights. "vgg": no batch
    norm, the layout of `superpoint_v1.pth`."""
    variant: Literal["full", "small"] = "full"
    """"full": the published channels, descriptors of 256 values. "small": half as many, descriptors of 128,
    about a quarter of the work, for demonstrations on a CPU."""
    batch_norm_momentum: float = 0.01
    """Weight of the newest batch in the running statistics (TensorFlow's 0.99). Runs of a few hundred steps
    need a larger value, or the statistics still remember their start."""

    def __post_init__(self) -> None:
        momentum = self.batch_norm_momentum
        _require(0 < momentum <= 1, "network.batch_norm_momentum", "a value in (0, 1]", momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionConfig:
    """From detector logits to keypoints."""

    threshold: float = 0.005
    """Keypoints have a probability above this. Published: 0.005 (MIT model, SuperGlue), 0.015 (Magic Leap's
    demo, about one point per cell at chance), 0.001 (training and HPatches figures)."""
    softmax: Softmax = "exact"
    """"legacy_epsilon" adds 1e-5 to the sum of exponentials, as Magic Leap's demo does: all probabilities of
    a cell shrink where its logits are very negative."""
    nms: Nms = "max_pool"
    """Non-maximum suppression. "max_pool": local maxima, with two rounds that recover points beside
    suppressed ones (SuperGlue, MIT model). "greedy": best first, each suppresses the square around it (Magic
    Leap's demo). "box_iou": best first, each suppresses points whose box overlaps its own by more than
    `nms_iou` (rpautrat's training)."""
    nms_radius: int = 4
    """Points are suppressed in the square of (2 nms_radius + 1)^2 pixels around a better one; with "box_iou"
    this is the side of the boxes. 0 switches suppression off."""
    nms_iou: float = 0.1
    """box_iou: largest intersection over union of two kept boxes."""
    border: int = 4
    """Keypoints keep this distance from the border: x, y >= border, x < W - border, y < H - border."""
    max_keypoints: int = 4096
    """Best keypoints kept per image."""
    refine: Literal["none", "centroid"] = "none"
    """"centroid" moves each keypoint to the centroid of the probabilities in the 5 x 5 pixels around it;
    published programs keep whole pixels."""

    def __post_init__(self) -> None:
        _require(0 <= self.threshold < 1, "detection.threshold", "a value in [0, 1)", self.threshold)
        _require(self.nms_radius >= 0, "detection.nms_radius", "0 (off) or more", self.nms_radius)
        _require(0 <= self.nms_iou < 1, "detection.nms_iou", "a value in [0, 1)", self.nms_iou)
        _require(self.border >= 0, "detection.border", "0 or more", self.border)
        _require(self.max_keypoints >= 1, "detection.max_keypoints", "at least 1", self.max_keypoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorConfig:
    """How descriptors are read between the cells of their map."""

    sampling: Sampling = "exact"
    """Where pixel x is read in a map of w cells: "exact": (x - 3.5) / 8, the centres of cells (hloc's
    `fix_sampling`, MIT model). Published programs that err, by up to 0.56 cells:
    "legacy_corner_aligned": x (w - 1) / (8 w) (Magic Leap's demo before torch 1.3); "legacy_half_pixel":
    x / 8 - 0.5 (the same text since); "superglue": (x - 3.5) (w - 1) / (8 w - 4.5) (SuperGlue, LightGlue)."""
    interpolation: Interpolation = "bilinear"
    """"bicubic" is the paper's, "bilinear" that of all published programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig:
    """From an image to keypoints and descriptors."""

    max_image_side: int = 1600
    """Larger images are made smaller first; keypoints are in pixels of the original all the same."""

    def __post_init__(self) -> None:
        _require(self.max_image_side >= 16, "inference.max_image_side", "at least 16", self.max_image_side)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationConfig:
    """Homographic adaptation: points of a photograph from detections in many warps of it."""

    views: int = 100
    """Views per photograph; the first is the photograph itself, the others are warped at random."""
    warps: AdaptationWarpConfig = field(default_factory=AdaptationWarpConfig)
    """How the views are warped."""
    frame: Literal["crop", "whole"] = "whole"
    """What a photograph is reduced to before. "crop": its centre, of `size`, as published; the rest of the
    photograph gets no points. "whole": all of it, shape kept to the nearest multiples of 8, as many pixels as
    `size` has."""
    size: tuple[int, int] = (320, 240)
    """Width and height of the frame, multiples of 8. Points are labelled as densely as this frame allows, so
    it should be near the size of the training views."""
    aggregate: Literal["sum", "max"] = "sum"
    """"sum": mean probability over the views that show a pixel. "max": the largest."""
    min_views: int = 0
    """Pixels that fewer views show get no point."""
    border_erosion: int = 3
    """Detections this near (pixels of the view) to the edge that a warp makes of the frame's border do not
    count: the edge is not in the photograph."""
    detection: DetectionConfig = field(
        default_factory=lambda: DetectionConfig(threshold=0.015, nms="box_iou", max_keypoints=1000)
    )
    """How the aggregated map becomes points; distances in pixels of the frame."""
    batch_size: int = 4
    """Views that run through the network at once; bounds memory, changes results by rounding at most."""

    def __post_init__(self) -> None:
        _require(self.views >= 1, "adaptation.views", "at least 1", self.views)
        sides_fit = all(side >= 8 and side % 8 == 0 for side in self.size)
        _require(sides_fit, "adaptation.size", "two multiples of 8", self.size)
        _require(
            0 <= self.min_views <= self.views, "adaptation.min_views", f"0 to {self.views}", self.min_views
        )
        _require(self.border_erosion >= 0, "adaptation.border_erosion", "0 or more", self.border_erosion)
        _require(self.batch_size >= 1, "adaptation.batch_size", "at least 1", self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperPointConfig:
    """All settings of SuperPoint. Image size and optimiser of training belong to the trainer."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    descriptor: DescriptorConfig = field(default_factory=DescriptorConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
