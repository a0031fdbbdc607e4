"""Settings of match sets. Imports nothing heavy: the graph reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement

_require = requirement("match_sets.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthSourceConfig:
    """How correspondences are made where a dataset brings none: SIFT keypoints, carried over by depth and
    pose.
    """

    max_keypoints: int = 8192
    """SIFT keypoints per image, strongest first."""
    contrast_threshold: float = 0.0067
    """SIFT contrast threshold (GeoDesc's; OpenCV's own default is 0.04)."""
    edge_threshold: float = 10.0
    """SIFT edge threshold."""
    frame_radius_sigmas: float = 3 * math.sqrt(2) * 2.5
    """Half-width of a keypoint's frame in units of its scale sigma; 10.6 is the reach of the SIFT descriptor.
    """
    match_radius_px: float = 2.0
    """Largest distance between a carried-over keypoint and the keypoint it corresponds to, in stored pixels.
    """
    max_scale_ratio: float = 1.5
    """Largest ratio between the carried-over and the found keypoint scale."""
    max_angle_difference_deg: float = 25.0
    """Largest difference between the carried-over and the found keypoint orientation."""
    depth_check: Literal["relative", "absolute"] = "relative"
    """What depth_threshold refers to: depth itself, or scene units (tfmatch and D2-Net: absolute, 0.05)."""
    depth_threshold: float = 0.05
    """Largest disagreement between the carried-over depth and the other image's depth map."""
    candidates: Literal["auto", "dataset", "overlap"] = "auto"
    """Pairs to look at: the dataset's own list (BlendedMVS pair.txt), or all pairs that overlap by depth;
    auto takes the dataset's list where there is one."""
    min_overlap: float = 0.1
    """Smallest share of an image's known depth that must be visible in the other, in the worse direction."""
    overlap_grid: int = 24
    """Overlap is measured on a grid of this many samples along each image side."""

    def __post_init__(self) -> None:
        _require(self.max_keypoints >= 1, "depth.max_keypoints", "at least 1", self.max_keypoints)
        _require(self.match_radius_px > 0, "depth.match_radius_px", "a value above 0", self.match_radius_px)
        _require(self.max_scale_ratio >= 1, "depth.max_scale_ratio", "at least 1", self.max_scale_ratio)
        _require(
            self.frame_radius_sigmas > 0, "depth.frame_radius_sigmas", "above 0", self.frame_radius_sigmas
        )
        _require(self.depth_threshold > 0, "depth.depth_threshold", "a value above 0", self.depth_threshold)
        _require(0 <= self.min_overlap <= 1, "depth.min_overlap", "a share from 0 to 1", self.min_overlap)
        _require(2 <= self.overlap_grid <= 256, "depth.overlap_grid", "2 to 256", self.overlap_grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSetConfig:
    """Which image pairs of a scene are kept, and what is stored of them. Defaults follow tfmatch where
    nothing is said.
    """

    source: Literal["auto", "corr", "depth", "list"] = "auto"
    """Where correspondences come from: the dataset's `corr.bin`, or depth and poses; list: the pairs that the
    dataset proposes, without correspondences, for stages that learn from poses alone. auto takes the first of
    these that there is."""
    slots: int = 1024
    """Keypoint rows per image of a pair (tfmatch: num_corr). Only 1024 can be exported as `.match_set` files.
    Pairs of source list have none."""
    min_rotation_deg: float = 3.0
    """Smallest rotation between the two cameras."""
    max_rotation_deg: float = 180.0
    """Largest rotation between the two cameras (tfmatch: no limit)."""
    max_rot_diff_deg: float = 60.0
    """Largest mean difference of keypoint orientations; pairs above it stay stored and are left out of
    training.
    """
    angles: Literal["exact", "tfmatch"] = "exact"
    """exact: degrees, orientation differences wrapped at 180. tfmatch: whole degrees from 180/3.14, not
    wrapped, so that pairs with orientations near +-180 degrees look far more rotated than they are."""
    min_inlier_ratio: float = 0.01
    """Smallest number of correspondences, as a share of slots."""
    min_keypoints: int | None = None
    """Smallest number of keypoints in either image. null: as many as slots for `corr.bin` (tfmatch's rule),
    no limit for depth."""
    noise: bool = True
    """Fill slots without correspondence with unmatched keypoints (negatives for GeoDesc and ContextDesc)."""
    max_pairs: int | None = None
    """At most this many pairs of a scene are looked at, drawn at random; null: all."""
    max_unreadable_share: float = 0.1
    """Stop if more than this share of a scene's images lacks a camera, a readable image, keypoints or depth.
    """
    depth: DepthSourceConfig = field(default_factory=DepthSourceConfig)
    """Settings of the depth source; unused for `corr.bin`."""

    def __post_init__(self) -> None:
        _require(1 <= self.slots <= 65536, "slots", "1 to 65536", self.slots)
        _require(
            0 <= self.min_rotation_deg <= self.max_rotation_deg <= 180,
            "min_rotation_deg",
            "0 <= min_rotation_deg <= max_rotation_deg <= 180",
            f"{self.min_rotation_deg} and {self.max_rotation_deg}",
        )
        _require(self.max_rot_diff_deg >= 0, "max_rot_diff_deg", "at least 0", self.max_rot_diff_deg)
        _require(0 <= self.min_inlier_ratio <= 1, "min_inlier_ratio", "a share 0 to 1", self.min_inlier_ratio)
        _require(
            self.min_keypoints is None or self.min_keypoints >= 0, "min_keypoints", ">= 0", self.min_keypoints
        )
        _require(self.max_pairs is None or self.max_pairs >= 1, "max_pairs", "at least 1", self.max_pairs)
        _require(
            0 <= self.max_unreadable_share <= 1, "max_unreadable_share", "0 to 1", self.max_unreadable_share
        )

    @property
    def min_inliers(self) -> int:
        """Smallest number of correspondences of a pair (11 for tfmatch's 1024 slots and ratio 0.01); at least
        1.
        """
        return max(1, math.ceil(self.min_inlier_ratio * self.slots - 1e-9))
