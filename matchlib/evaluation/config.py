"""Every knob of the HPatches protocols that changes a number. Two published variants are two values, not two
files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matchlib.errors import ConfigError

THRESHOLDS_PX: tuple[int, ...] = tuple(range(1, 16))
"""Matching accuracy is always kept at these thresholds: the published result files hold exactly them."""

SequenceSet = Literal["108", "116", "all_present"]
Split = Literal["all", "illumination", "viewpoint"]
SPLITS: tuple[Split, ...] = ("all", "illumination", "viewpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapConfig:
    """The interval that stands beside a figure: percentiles over resampled sequences."""

    resamples: int = 1000
    """Resamples over sequences behind each interval."""
    confidence: float = 0.95
    """Share of the resampled figures that lies inside the interval."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ConfigError(f"bootstrap.resamples: expected at least 1, got {self.resamples}")
        if not 0 < self.confidence < 1:
            raise ConfigError(
                f"bootstrap.confidence: expected a value between 0 and 1, got {self.confidence}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HomographyProtocol:
    """How a homography is estimated from matches and how its error is measured.

    The error is the mean distance, over the four corners of image 1, between the corner moved by the
    estimated and by the true homography. A pair whose estimation fails (fewer than 4 matches included) has
    error infinity.
    """

    name: str = "original"
    """Name of this protocol in tables."""
    estimator: Literal["opencv", "poselib"] = "opencv"
    """`opencv`: cv2.findHomography with RANSAC. `poselib`: LO-RANSAC with non-linear refinement."""
    threshold_px: float = 3.0
    """Inlier threshold of the estimator, in pixels of the frame below; it can move AUC@3 by 10 points."""
    confidence: float = 0.995
    """Success probability at which sampling stops (OpenCV's default)."""
    max_iterations: int = 2000
    """Upper limit of RANSAC iterations (OpenCV's default)."""
    short_side: int | None = None
    """Frame of threshold and error: both images scaled to this short side, in pixels; null: original pixels.
    Keypoints are scaled, nothing is extracted again: extract with `resize_short_side` to match a published
                                                      number."""
    max_keypoints: int | None = None
    """Only the best keypoints of each image by score are matched; null: all of them."""
    max_matches: int | None = None
    """Only the best matches by score are used; null: all of them."""
    covisible_only: bool = False
    """Match only keypoints whose true position lies inside the other image (SuperPoint's evaluation)."""
    corners: Literal["pixel_centres", "image_border"] = "pixel_centres"
    """`pixel_centres`: (0, 0), (W-1, 0), ... as SuperPoint.
    `image_border`: half a pixel further out, as glue-factory."""
    correct_px: tuple[float, ...] = (1.0, 3.0, 5.0)
    """Thresholds of the share of pairs that count as correct (error <= threshold)."""
    auc_px: tuple[float, ...] = (1.0, 3.0, 5.0, 10.0)
    """Thresholds of the area under the recall curve of the error."""

    def __post_init__(self) -> None:
        where = f"homography protocol '{self.name}'"
        if self.threshold_px <= 0:
            raise ConfigError(f"{where}: threshold_px: expected a value above 0, got {self.threshold_px}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"{where}: confidence: expected a value between 0 and 1, got {self.confidence}")
        if self.max_iterations < 1:
            raise ConfigError(f"{where}: max_iterations: expected at least 1, got {self.max_iterations}")
        if self.short_side is not None and self.short_side < 2:
            raise ConfigError(f"{where}: short_side: expected at least 2 or null, got {self.short_side}")
        for key, limit in (("max_keypoints", self.max_keypoints), ("max_matches", self.max_matches)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{where}: {key}: expected at least 1 or null, got {limit}")
        if any(threshold <= 0 for threshold in (*self.correct_px, *self.auc_px)):
            raise ConfigError(f"{where}: correct_px, auc_px: expected values above 0")

    @property
    def estimator_name(self) -> str:
        """Estimator, threshold and frame as they stand in every table row, e.g. `opencv 3 px @ short side
        480`.
        """
        frame = "original size" if self.short_side is None else f"short side {self.short_side}"
        return f"{self.estimator} {self.threshold_px:g} px @ {frame}"


HOMOGRAPHY_PROTOCOLS: tuple[HomographyProtocol, ...] = (
    HomographyProtocol(),
    HomographyProtocol(
        name="superpoint-style",
        short_side=480,
        max_keypoints=1000,
        covisible_only=True,
        auc_px=(3.0, 5.0, 10.0),
    ),
    HomographyProtocol(
        name="loftr", short_side=480, max_keypoints=1000, max_matches=1000, auc_px=(3.0, 5.0, 10.0)
    ),
    HomographyProtocol(
        name="glue-factory-poselib",
        estimator="poselib",
        threshold_px=1.0,
        confidence=0.99999,
        max_iterations=100_000,
        short_side=480,
        max_keypoints=1024,
        corners="image_border",
        auc_px=(1.0, 3.0, 5.0),
    ),
)
"""`original`: ASLFeat's check, all matches in original pixels. The others are named after their source.

differs from rpautrat/SuperPoint: `superpoint-style` scales to a short side of 480 but does not crop to 480 x
640.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HPatchesProtocol:
    """The D2-Net protocol on HPatches: pairs (1, k), k = 2..6, mutual nearest neighbours, original pixels."""

    sequences: SequenceSet = "108"
    """`108`: without the 8 sequences of large images, as almost every published curve. `116`: the full set.
    `all_present`: whatever the folder holds, for subsets and other data; its numbers compare to nothing
    published. The first two refuse to run unless every sequence is there."""
    max_keypoints: int | None = None
    """Match only the best keypoints of each image by score; null: all, as published."""
    ratio: float | None = None
    """Largest allowed ratio of best to second-best descriptor distance; null: no ratio test, as published."""
    covisible_threshold_px: float = 3.0
    """Distance within which, for repeatability and matching score, a keypoint counts as repeated and a
    match as correct."""
    homography: HomographyProtocol = HomographyProtocol()
    """Estimator behind the corner error of each pair. It reuses the pair's matches, so `short_side` may scale
    the frame, but `max_keypoints` and `covisible_only` belong to the separate homography evaluation."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """Interval beside each headline figure."""

    def __post_init__(self) -> None:
        if self.max_keypoints is not None and self.max_keypoints < 1:
            raise ConfigError(
                f"hpatches.max_keypoints: expected at least 1 or null, got {self.max_keypoints}"
            )
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ConfigError(f"hpatches.ratio: expected a value in (0, 1] or null, got {self.ratio}")
        if self.covisible_threshold_px <= 0:
            raise ConfigError(
                f"hpatches.covisible_threshold_px: expected a value above 0, got "
                f"{self.covisible_threshold_px}"
            )
        if self.homography.max_keypoints is not None or self.homography.covisible_only:
            raise ConfigError(
                f"hpatches.homography: protocol '{self.homography.name}' limits the keypoints that are "
                f"matched, which would change MMA too; list it under the homography evaluation instead"
            )
