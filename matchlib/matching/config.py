"""Settings of matching. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class MatcherConfig:
    """Which keypoints of two images are matched. All tests are made with descriptors of unit length."""

    kind: Literal["mutual", "mutual_ratio"] = "mutual"
    """`mutual`: each descriptor is the other's nearest; `mutual_ratio`: and it is clearly nearer than the second."""
    ratio: float | None = None
    """Of mutual_ratio, which needs it: the distance sqrt(2 - 2 cos) to the nearest descriptor of the other image is
    at most this share of the distance to the second nearest. Lowe 2004: 0.8; PoSFeat on the ETH benchmark: 0.75."""
    both_directions: bool = False
    """Of mutual_ratio: ask the ratio of the keypoints of image 1 too, not only of those of image 0. PoSFeat: true."""
    max_keypoints: int | None = None
    """Match only this many keypoints of each image, those of the highest score; null: all."""
    min_similarity: float | None = None
    """Keep only matches of at least this cosine similarity; null: all."""
    min_matches: int = 0
    """Store a pair of fewer matches as a pair without any. The ETH benchmark: 15."""

    def __post_init__(self) -> None:
        require = requirement()
        if self.kind == "mutual_ratio":
            require(self.ratio is not None, "ratio", "a value in (0, 1] with kind mutual_ratio", self.ratio)
        else:
            require(self.ratio is None, "ratio", f"null with kind {self.kind}", self.ratio)
            require(
                not self.both_directions,
                "both_directions",
                f"false with kind {self.kind}",
                self.both_directions,
            )
        if self.ratio is not None:
            require(0 < self.ratio <= 1, "ratio", "a value in (0, 1]", self.ratio)
        if self.max_keypoints is not None:
            require(self.max_keypoints >= 1, "max_keypoints", "at least 1, or null", self.max_keypoints)
        if self.min_similarity is not None:
            require(
                -1 <= self.min_similarity <= 1,
                "min_similarity",
                "a value in [-1, 1], or null",
                self.min_similarity,
            )
        require(self.min_matches >= 0, "min_matches", "0 or more", self.min_matches)


@dataclass(frozen=True, slots=True, kw_only=True)
class VladConfig:
    """One vector per image from its local features, to tell images of one place from others."""

    clusters: int = 64
    """Words of the codebook. A vector has `clusters` times the length of a descriptor."""
    sample: int = 100_000
    """The codebook is learned from about this many descriptors, as many of each reference image."""
    iterations: int = 20
    """At most this many rounds of k-means."""
    max_keypoints: int | None = 2000
    """Only this many keypoints of each image, those of the highest score; null: all."""
    seed: int = 0
    """Of the sample and of the first centres."""

    def __post_init__(self) -> None:
        require = requirement("vlad.")
        require(self.clusters >= 1, "clusters", "at least 1", self.clusters)
        require(self.sample >= self.clusters, "sample", f"at least `clusters` ({self.clusters})", self.sample)
        require(self.iterations >= 1, "iterations", "at least 1", self.iterations)
        if self.max_keypoints is not None:
            require(self.max_keypoints >= 1, "max_keypoints", "at least 1, or null", self.max_keypoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalConfig:
    """Pairs of images that look alike, by VLAD over local features; the same pairs for all methods."""

    features: str
    """Label (a baseline or <run>-<stage>) whose features are compared, e.g. rootsift; evaluated itself or not."""
    per_image: int | None = None
    """Most similar images of each; null: 100 for reconstruction, as the ETH benchmark, and 50 for localisation."""
    vlad: VladConfig = field(default_factory=VladConfig)
    """How images are described."""

    def __post_init__(self) -> None:
        if self.per_image is not None:
            requirement()(self.per_image >= 1, "per_image", "at least 1, or null", self.per_image)
