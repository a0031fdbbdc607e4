"""Settings of SuperPoint's training. Readable without torch; checked when made.

Where the paper (DeTone et al. 2018) and the public re-implementation (rpautrat/SuperPoint) differ, the setting
that decides it says so. Image size, steps and optimiser belong to the trainer (`StageConfig`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement
from matchlib.photo_pairs.config import AdaptationWarpConfig, SuperPointPhotometricConfig

_require = requirement("superpoint.training.")


def _shapes_photometric() -> SuperPointPhotometricConfig:
    """What rpautrat publishes for Synthetic Shapes: stronger than for photographs."""
    return SuperPointPhotometricConfig(
        brightness_max_change=75.0,
        contrast_range=(0.3, 1.8),
        gaussian_deviation=(0.0, 15.0),
        shade_transparency=(-0.5, 0.8),
        shade_kernel=(50, 100),
        motion_blur_max_length=7,
    )


def _shapes_warp() -> AdaptationWarpConfig:
    return AdaptationWarpConfig(patch_ratio=0.8, translation_overflow=0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesConfig:
    """Synthetic Shapes: pictures of simple shapes whose corners are known."""

    seed: int = 0
    """Decides the pictures themselves; how they are warped and changed follows the seed of the run."""
    draw_size: tuple[int, int] = (1280, 960)
    """Width and height at which shapes are drawn before they are made smaller. All other sizes scale with it,
    so half of it gives much the same pictures sooner."""
    blur: int = 21
    """Side of the Gaussian window that smooths the drawing before it is made smaller, in pixels of a drawing
    1280 wide; 1 for none."""
    train_pictures: int = 10_000
    """Pictures of each kind to train on."""
    validation_pictures: int = 200
    """Pictures of each kind to validate on."""
    ellipses_share: float = 0.3
    """Share of the pictures of ellipses that is used: they have no corners, and few teach that."""
    stripes_share: float = 0.2
    """The same for stripes."""
    noise_share: float = 0.1
    """The same for pictures of nothing but noise."""
    warped: bool = True
    """Warp training pictures by random homographies."""
    warp: AdaptationWarpConfig = field(default_factory=_shapes_warp)
    """Which homographies."""
    border_px: int = 2
    """Pixels this near to the border that a warp brings in do not count as showing the drawing."""
    photometric_changes: bool = True
    """Change brightness, contrast, noise and sharpness of training pictures."""
    photometric: SuperPointPhotometricConfig = field(default_factory=_shapes_photometric)
    """By how much."""

    def __post_init__(self) -> None:
        large_enough = min(self.draw_size) >= 60
        _require(large_enough, "shapes.draw_size", "at least 60 pixels on each side", self.draw_size)
        _require(self.blur >= 1, "shapes.blur", "at least 1", self.blur)
        for name in ("train_pictures", "validation_pictures"):
            _require(getattr(self, name) >= 1, f"shapes.{name}", "at least 1", getattr(self, name))
        _require(self.border_px >= 0, "shapes.border_px", "at least 0", self.border_px)
        for name in ("ellipses_share", "stripes_share", "noise_share"):
            share = getattr(self, name)
            _require(0 <= share <= 1, f"shapes.{name}", "a share from 0 to 1", share)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Losses of detector and descriptor."""

    descriptor: Literal["normalised", "paper", "dual_softmax"] = "normalised"
    """"paper": hinge on the dot products of unit descriptors. "normalised": rpautrat's current form, where the
    similarities of each cell are first clamped at 0 and scaled to unit length, over the cells of view 1 and
    then over those of view 0; it is the one that is known to train. "dual_softmax": each cell must tell the exact
    spot that it is warped to from those of all other cells, and the other way round; it needs far fewer steps."""
    positive_weight: float | None = None
    """Weight (lambda_d) of corresponding cells, of which there are few; null for the form's published value:
    0.05 (normalised), 250 (paper). Unused by "dual_softmax"."""
    descriptor_weight: float | None = None
    """Weight (lambda) of the descriptor loss beside the detector losses; null for the form's published value:
    10,000 (normalised), 0.0001 (paper); 1 (dual_softmax)."""
    scale_with_cells: bool = True
    """The published weights hold for views of 240 x 320 pixels, 1,200 cells. In views of fewer cells a larger share
    of the pairs corresponds, and "paper" would make all descriptors alike. True: `positive_weight` (paper) or the
    whole loss (normalised) is multiplied by cells / 1,200, which keeps the published balance. False: as given."""
    softmax_scale: float = 20.0
    """dual_softmax: factor on similarities before the softmax."""
    positive_margin: float = 1.0
    """Similarity above which corresponding cells cost nothing."""
    negative_margin: float = 0.2
    """Similarity below which other cells cost nothing."""
    correspondence_radius_px: float = 8.0
    """Cells correspond if the centre of one, warped, lies within this distance of the other's. rpautrat: 7.5."""
    cell_centres: Literal["exact", "legacy"] = "exact"
    """"exact": the centre of a cell of 8 x 8 pixels is at 8 i + 3.5. "legacy": 8 i + 4, as in rpautrat."""

    def __post_init__(self) -> None:
        for name in ("positive_weight", "descriptor_weight"):
            weight = getattr(self, name)
            usable = weight is None or (weight >= 0 and math.isfinite(weight))
            _require(usable, f"loss.{name}", "a value >= 0 or null", weight)
        above = self.positive_margin > self.negative_margin
        _require(above, "loss.positive_margin", f"a value above {self.negative_margin}", self.positive_margin)
        radius = self.correspondence_radius_px
        _require(self.softmax_scale > 0, "loss.softmax_scale", "a value above 0", self.softmax_scale)
        _require(radius > 0, "loss.correspondence_radius_px", "a value above 0", radius)

    @property
    def lambda_d(self) -> float:
        """`positive_weight`, or what was published with the form."""
        published = {"normalised": 0.05, "paper": 250.0, "dual_softmax": 1.0}[self.descriptor]
        return published if self.positive_weight is None else self.positive_weight

    @property
    def lambda_descriptor(self) -> float:
        """`descriptor_weight`, or what was published with the form."""
        published = {"normalised": 10_000.0, "paper": 1e-4, "dual_softmax": 1.0}[self.descriptor]
        return published if self.descriptor_weight is None else self.descriptor_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Figures of validation, in pixels of the training size."""

    max_points: int = 300
    """Best detections per view that enter a figure."""
    threshold_px: float = 3.0
    """A detection or match is right within this distance of the truth."""
    nms_radius: int = 4
    """Of detections nearer than this to each other, in both x and y, only the best counts."""
    border: int = 4
    """Detections keep this distance from the border. Labels are not asked for there either."""
    min_score: float = 0.001
    """Detections score more than this."""

    def __post_init__(self) -> None:
        _require(self.max_points >= 1, "validation.max_points", "at least 1", self.max_points)
        _require(self.threshold_px > 0, "validation.threshold_px", "a value above 0", self.threshold_px)
        _require(self.nms_radius >= 0, "validation.nms_radius", "at least 0", self.nms_radius)
        _require(self.border >= 0, "validation.border", "at least 0", self.border)
        _require(0 <= self.min_score < 1, "validation.min_score", "a value in [0, 1)", self.min_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What the three stages (shapes, magicpoint, superpoint) train on and against."""

    empty_cells: float | None = 0.9
    """Share of cells that the fresh detector takes to be without a point, in (0, 1); null for none in particular,
    as published. Most cells are empty, and a detector that starts as if all 65 classes were equally likely spends
    its first thousands of steps on learning that one bias."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        is_share = self.empty_cells is None or 0 < self.empty_cells < 1
        _require(is_share, "empty_cells", "a share in (0, 1) or null", self.empty_cells)
