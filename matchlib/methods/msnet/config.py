"""Settings of MSNet. Readable without torch; checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import ConfigError, requirement
from matchlib.features.config import DetectorConfig

Variant = Literal["v0", "v1", "v2", "attention", "sum"]
ScaleSource = Literal["oracle", "predicted"]
Members = Literal[
    "fine", "coarse", "set2", "set2_3pairs", "oracle_blend", "predicted_blend", "attention", "sum"
]
BlendRule = Literal["clamped", "legacy"]
Sampling = Literal["exact", "legacy_corner_aligned", "legacy_half_pixel"]


_require = requirement()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The network. Weights belong to the `dilation` they were trained with, although no file says which."""

    dilation: Literal[1, 2] = 1
    """Of the second stage (layer2). 1: a plain stage of stride 1, as in the first publication. 2: all but its
    first convolution are dilated, so that ImageNet weights compute at every second cell exactly what they did
    with stride 2, and the receptive field is kept."""
    batch_norm_momentum: float = 0.1
    """Weight of the newest batch in the running statistics."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue in [0, 1] (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Red, green and blue are divided by it afterwards (ImageNet's)."""
    backbone_weights: str | None = None
    """File of ImageNet weights of ResNet-18 (torchvision's `resnet18-*.pth`) that you have: training starts
    from its first layers. null: from random ones."""

    def __post_init__(self) -> None:
        _require(
            0 < self.batch_norm_momentum <= 1,
            "batch_norm_momentum",
            "a value in (0, 1]",
            self.batch_norm_momentum,
        )
        _require(min(self.std) > 0, "std", "three values above 0", self.std)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Correspondences, mined negatives, and the loss."""

    correspondences: int = 3000
    """Pixels of view 0 drawn per pair, uniformly among those whose true position in view 1 is known; all of
    them, if there are fewer."""
    min_correspondences: int = 32
    """A pair with fewer has loss 0."""
    margin: float = 0.5
    """Negatives farther than this cost nothing: Euclidean distance of unit vectors; 0.5 is cosine 0.875."""
    mining_radius_cells: float = 4.0
    """Negatives lie at least this far from the true position, in cells of 4 pixels."""
    mining_interval: int = 4
    """Negatives are searched on a grid of every n-th cell whose phase is drawn per pair; 1: all cells."""
    scale_weight: float = 1.0
    """Variant v2, scale predicted: weight of the loss that teaches the scale."""
    scale_transition_octaves: float = 0.5
    """The same: smooth L1 turns from square to linear here."""

    def __post_init__(self) -> None:
        _require(self.min_correspondences >= 1, "min_correspondences", "at least 1", self.min_correspondences)
        enough = self.correspondences >= self.min_correspondences
        _require(enough, "correspondences", f"at least {self.min_correspondences}", self.correspondences)
        _require(0 < self.margin <= 2, "margin", "a distance of unit vectors in (0, 2]", self.margin)
        _require(self.mining_radius_cells >= 0, "mining_radius_cells", "0 or more", self.mining_radius_cells)
        _require(self.mining_interval >= 1, "mining_interval", "at least 1", self.mining_interval)
        _require(self.scale_weight >= 0, "scale_weight", "0 or more", self.scale_weight)
        _require(
            self.scale_transition_octaves > 0,
            "scale_transition_octaves",
            "a value above 0",
            self.scale_transition_octaves,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Figures of a validation during training."""

    points: int = 500
    """Points drawn per pair."""
    threshold_px: float = 3.0
    """A match is correct within this distance of the true position."""

    def __post_init__(self) -> None:
        _require(self.points >= 1, "points", "at least 1", self.points)
        _require(self.threshold_px > 0, "threshold_px", "a value above 0", self.threshold_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class MSNetConfig:
    """All settings of MSNet. Image size and optimiser of training belong to the trainer."""

    variant: Variant = "v0"
    """What is trained. v0: the fine map. v1: the same (its weights are v0's), read as a set of two scales.
    v2: a fine and a coarse map blended by a scale. sum: the sum over three scales. attention: the mean over
    four scales with learned weights."""
    scale: ScaleSource = "oracle"
    """Variant v2: where the scale comes from. oracle: from the true homography, in training and in
    evaluation; such results are no method's, only a bound. predicted: from each image alone, by a small
    head."""
    members: Members | None = None
    """What an image is described by; null: what the variant implies (fine, set2, oracle_blend or
    predicted_blend, sum, attention). One file of weights may be read in several ways. set2: fine and coarse,
    all four pairs are compared; set2_3pairs: all but coarse with coarse."""
    blend: BlendRule = "clamped"
    """Rule of the oracle's blend. clamped: weight in [0, 1], unit vectors before and after. legacy: as
    published, a negative weight where the scale is below 1, a raw coarse map, and no renormalisation."""
    sampling: Sampling = "exact"
    """How keypoints are read from the map in evaluation: exact (cell i is pixel 4 i), or with the published
    code's misplacement under PyTorch 0.4 (up to 4 px at the right edge) or since PyTorch 1.3 (2 px)."""
    weight_decay: float | None = 5e-4
    """L2 penalty on all parameters, batch norm included, as published; null: the stage's."""
    max_image_side: int = 2000
    """Larger images are made smaller before they are described; points stay in pixels of the original."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Correspondences, mined negatives, and the loss."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Figures of a validation during training."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """Where keypoints come from when features are extracted: MSNet has no detector of its own."""

    def __post_init__(self) -> None:
        _require(self.max_image_side >= 16, "max_image_side", "at least 16", self.max_image_side)
        decay = self.weight_decay
        _require(decay is None or decay >= 0, "weight_decay", "0 or more, or null", decay)
        if self.members == "predicted_blend" and not self.predicts_scale:
            raise ConfigError(
                "members: predicted_blend needs a network that predicts scales: "
                "variant v2 with scale predicted"
            )
        if self.members == "attention" and self.variant != "attention":
            raise ConfigError(
                f"members: attention needs a network with that head: variant attention, got {self.variant}"
            )

    @property
    def predicts_scale(self) -> bool:
        """Whether the network has a head for the scale."""
        return self.variant == "v2" and self.scale == "predicted"

    @property
    def trained_members(self) -> Members:
        """What the loss is computed on."""
        if self.variant == "v2":
            return "predicted_blend" if self.predicts_scale else "oracle_blend"
        if self.variant in ("v0", "v1"):
            return "fine"
        return "attention" if self.variant == "attention" else "sum"

    @property
    def used_members(self) -> Members:
        """`members`, or what the variant implies."""
        if self.members is not None:
            return self.members
        return "set2" if self.variant == "v1" else self.trained_members

    @property
    def member_pairs(self) -> Literal["all", "not_coarse_coarse"]:
        """Which pairs of members are compared when two descriptor sets are."""
        return "not_coarse_coarse" if self.used_members == "set2_3pairs" else "all"

    @property
    def uses_truth(self) -> bool:
        """Whether descriptors need the true homography, so that only an evaluation that knows it can make them."""
        return self.used_members == "oracle_blend"
