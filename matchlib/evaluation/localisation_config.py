"""Every knob of visual localisation that changes a number. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement
from matchlib.evaluation.config import BootstrapConfig
from matchlib.matching.config import MatcherConfig
from matchlib.sfm.config import (
    LocalisationConfig,
    RegistrationConfig,
    TriangulationConfig,
    VerificationConfig,
)

Variant = Literal["challenge", "retrieval", "exhaustive"]
MAX_EXHAUSTIVE = 300  # images: 45,000 pairs
RETRIEVED = 50  # reference images of a query, as in the published runs of hierarchical localisation


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalisationProtocol:
    """Pose of queries against a model that is triangulated from images of known pose.

    Figures of different variants must not stand in one table: the pairs differ.
    """

    variant: Variant = "challenge"
    """`challenge`: the published pair list, RANSAC verification, COLMAP's registration: the local feature challenge.
    `retrieval`: mapping pairs by covisibility in the model that comes with the data, verified against the known poses;
    query pairs from `query_pairs`, or by the `retrieval` of the evaluation; PnP from 2D-3D matches: the way of
    hierarchical localisation.
    `exhaustive`: as `challenge`, but all pairs of reference images and of queries with them; for small sets."""
    conditions: tuple[str, ...] | None = None
    """Queries to localise, e.g. [night]; null: those that the pairs name. `held_out` where `hold_out` is set."""
    hold_out: int | None = None
    """Localise every n-th reference image instead of the queries; its pose is known. Null: the queries themselves."""
    query_pairs: tuple[str, ...] = ()
    """Files of retrieved pairs, one `query reference` a line as hloc writes them, for `retrieval`."""
    retrieved: int | None = None
    """At most this many pairs of each query are used, first ones first; null: all of the files."""
    covisible: int = 20
    """Mapping pairs per reference image, those with most common points first, for `retrieval`."""
    pixel_offset: float = 0.5
    """Added to keypoints on the way to COLMAP. 0.5 is right for keypoints whose first pixel has its centre at (0, 0),
    as ours have; the published scripts of the challenge add 0."""
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    """How descriptors are matched; the challenge allows any matcher, but a result must say which."""
    verification: VerificationConfig = field(default_factory=VerificationConfig)
    """Geometric verification by RANSAC, for `challenge` and `exhaustive`."""
    mapping_error_px: float = 4.0
    """Largest distance to the epipolar line of the known poses, in both images, for `retrieval`."""
    triangulation: TriangulationConfig = field(default_factory=TriangulationConfig)
    """Points from the images of known pose."""
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    """Poses of the queries, for `challenge` and `exhaustive`."""
    localisation: LocalisationConfig = field(default_factory=LocalisationConfig)
    """Poses of the queries, for `retrieval`."""
    thresholds: tuple[tuple[float, float], ...] = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
    """(scene units, degrees): a query counts where both its errors are within. Aachen's units are metres. Night figures
    from before mid-2020 used (0.5, 2), (1, 5), (5, 10) and poorer poses."""
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    """Interval beside each share: percentiles over resampled queries."""

    def __post_init__(self) -> None:
        require = requirement("localisation.")
        require(self.hold_out is None or self.hold_out >= 2, "hold_out", "at least 2 or null", self.hold_out)
        require(
            self.retrieved is None or self.retrieved >= 1, "retrieved", "at least 1 or null", self.retrieved
        )
        require(self.covisible >= 1, "covisible", "at least 1", self.covisible)
        require(-1 <= self.pixel_offset <= 1, "pixel_offset", "0.5, or 0 as the scripts", self.pixel_offset)
        require(self.mapping_error_px > 0, "mapping_error_px", "a value above 0", self.mapping_error_px)
        require(bool(self.thresholds), "thresholds", "at least one (distance, degrees)", self.thresholds)
        for pair in self.thresholds:
            require(min(pair) > 0, "thresholds", "distances and angles above 0", pair)
        require(
            self.conditions is None or len(self.conditions) > 0,
            "conditions",
            "names or null",
            self.conditions,
        )
        require(
            self.variant == "retrieval" or not self.query_pairs,
            "query_pairs",
            "none unless variant is retrieval",
            self.query_pairs,
        )

    @property
    def description(self) -> str:
        """What a table row says of the way, e.g. `challenge, mutual, +0.5 px, registration 12 px`."""
        if self.variant == "retrieval":
            last = f"PnP {self.localisation.max_error_px:g} px"
        else:
            last = f"registration {self.registration.max_error_px:g} px"
        held = "" if self.hold_out is None else f", every {self.hold_out}th held out"
        ratio = "" if self.matcher.ratio is None else f" {self.matcher.ratio:g}"
        return f"{self.variant}, {self.matcher.kind}{ratio}, {self.pixel_offset:+g} px, {last}{held}"
