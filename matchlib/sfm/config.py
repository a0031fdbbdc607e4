"""Settings of everything that COLMAP does. Imports nothing heavy.

The seed of each step is fixed. Verification gives the same bits on any number of threads; triangulation, registration
and mapping do so on one thread, their default. On more, bundle adjustment sums in another order and the last digits
move.
"""

from __future__ import annotations

from dataclasses import dataclass

from matchlib.errors import requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    """How features become rows of a COLMAP database."""

    pixel_offset: float = 0.5
    """Added to x and y of every keypoint on the way to COLMAP, which counts pixels from the corner of the image. 0.5 is
    right for keypoints whose first pixel has its centre at (0, 0), as ours have; published challenge scripts used 0."""
    shared_camera: bool = False
    """All images were taken by one camera: one row, refined together. Their intrinsics must be equal."""

    def __post_init__(self) -> None:
        require = requirement("database.")
        require(
            -1 <= self.pixel_offset <= 1,
            "pixel_offset",
            "0.5, or 0 as published challenges",
            self.pixel_offset,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationConfig:
    """RANSAC for the relative geometry of two images; COLMAP's choice between essential matrix (both focal lengths
    known), fundamental matrix and homography."""

    min_inliers: int = 15
    """A pair with fewer inliers is dropped."""
    max_error_px: float = 4.0
    """Largest distance of an inlier to its epipolar line (or of its homography's transfer)."""
    confidence: float = 0.999
    """RANSAC stops when a better model is less likely than 1 minus this."""
    max_trials: int = 10_000
    """Upper bound of RANSAC trials."""
    min_inlier_ratio: float = 0.25
    """Share of inliers that RANSAC assumes at least: bounds the trials, drops no pair."""
    seed: int = 0
    """Of RANSAC."""

    def __post_init__(self) -> None:
        require = requirement("verification.")
        require(self.min_inliers >= 5, "min_inliers", "at least 5", self.min_inliers)
        require(self.max_error_px > 0, "max_error_px", "a value above 0", self.max_error_px)
        require(0 < self.confidence < 1, "confidence", "a probability between 0 and 1", self.confidence)
        require(self.max_trials >= 1, "max_trials", "at least 1", self.max_trials)
        require(0 < self.min_inlier_ratio <= 1, "min_inlier_ratio", "in (0, 1]", self.min_inlier_ratio)
        require(self.seed >= 0, "seed", "at least 0", self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriangulationConfig:
    """Points from images of known pose. Poses and intrinsics stay as they are; only points are refined."""

    min_matches: int = 15
    """Pairs with fewer verified matches are not used."""
    min_angle_deg: float = 1.5
    """Smallest angle between two rays of a point."""
    max_angle_error_deg: float = 2.0
    """Largest angle between the ray of an observation and the point that it makes or joins."""
    max_reprojection_error_px: float = 4.0
    """Observations farther from their point are removed, and tracks merged and completed up to this."""
    ignore_two_view_tracks: bool = True
    """Make no point of two observations that match nothing else."""
    seed: int = 0
    """Of RANSAC."""

    def __post_init__(self) -> None:
        require = requirement("triangulation.")
        require(self.min_matches >= 1, "min_matches", "at least 1", self.min_matches)
        require(self.min_angle_deg > 0, "min_angle_deg", "a value above 0", self.min_angle_deg)
        require(
            self.max_angle_error_deg > 0, "max_angle_error_deg", "a value above 0", self.max_angle_error_deg
        )
        require(
            self.max_reprojection_error_px > 0,
            "max_reprojection_error_px",
            "a value above 0",
            self.max_reprojection_error_px,
        )
        require(self.seed >= 0, "seed", "at least 0", self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationConfig:
    """Pose of an image against a finished model from all its verified matches; COLMAP's `image_registrator`."""

    max_error_px: float = 12.0
    """Largest reprojection error of an inlier."""
    min_inliers: int = 30
    """An image with fewer stays without a pose."""
    min_inlier_ratio: float = 0.25
    """An image with a smaller share of inliers stays without a pose."""
    min_matches: int = 15
    """Pairs with fewer verified matches are not used."""
    seed: int = 0
    """Of RANSAC."""

    def __post_init__(self) -> None:
        require = requirement("registration.")
        require(self.max_error_px > 0, "max_error_px", "a value above 0", self.max_error_px)
        require(self.min_inliers >= 3, "min_inliers", "at least 3", self.min_inliers)
        require(0 <= self.min_inlier_ratio <= 1, "min_inlier_ratio", "in [0, 1]", self.min_inlier_ratio)
        require(self.min_matches >= 1, "min_matches", "at least 1", self.min_matches)
        require(self.seed >= 0, "seed", "at least 0", self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalisationConfig:
    """Pose of a query from its matches with retrieved images, without a database; the way of retrieval-based
    localisation."""

    max_error_px: float = 12.0
    """Largest reprojection error of an inlier."""
    min_inliers: int = 4
    """A query with fewer is not localised. The usual pipeline keeps every pose that RANSAC gives."""
    covisibility_clustering: bool = False
    """Split the retrieved images into groups that see common points, solve each, keep the most inliers."""
    seed: int = 0
    """Of RANSAC."""

    def __post_init__(self) -> None:
        require = requirement("localisation.")
        require(self.max_error_px > 0, "max_error_px", "a value above 0", self.max_error_px)
        require(self.min_inliers >= 3, "min_inliers", "at least 3", self.min_inliers)
        require(self.seed >= 0, "seed", "at least 0", self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingConfig:
    """Incremental mapping from nothing but verified matches."""

    min_matches: int = 15
    """Pairs with fewer verified matches are not used."""
    min_model_size: int = 10
    """Models of fewer images are dropped, except the first."""
    multiple_models: bool = True
    """Start again with the images that the first model left over; the one of most images is reported."""
    init_min_inliers: int = 100
    """Inliers that the first pair needs; halved step by step where no pair has them."""
    init_min_angle_deg: float = 16.0
    """Median angle between the rays of the first pair; halved likewise."""
    max_reprojection_error_px: float = 4.0
    """Observations farther from their point are removed."""
    min_angle_deg: float = 1.5
    """Points whose largest angle between rays is smaller are removed."""
    refine_focal_length: bool = True
    """Refine focal lengths."""
    refine_distortion: bool = True
    """Refine distortion parameters."""
    refine_principal_point: bool = False
    """Refine principal points."""
    structure_less_fallback: bool = False
    """Register images that see no point from relative poses alone. COLMAP before 3.12 could not: false compares with
    published tables, true registers more."""
    seed: int = 0
    """Of RANSAC, in all its uses. It can decide the first pair, and with it a small scene: of ten photographs of a
    church, four of six seeds registered all and two seeds only two. Report several."""

    def __post_init__(self) -> None:
        require = requirement("mapping.")
        require(self.min_matches >= 1, "min_matches", "at least 1", self.min_matches)
        require(self.min_model_size >= 2, "min_model_size", "at least 2", self.min_model_size)
        require(self.init_min_inliers >= 1, "init_min_inliers", "at least 1", self.init_min_inliers)
        require(self.init_min_angle_deg > 0, "init_min_angle_deg", "a value above 0", self.init_min_angle_deg)
        require(
            self.max_reprojection_error_px > 0,
            "max_reprojection_error_px",
            "a value above 0",
            self.max_reprojection_error_px,
        )
        require(self.min_angle_deg > 0, "min_angle_deg", "a value above 0", self.min_angle_deg)
        require(self.seed >= 0, "seed", "at least 0", self.seed)
