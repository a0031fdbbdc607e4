"""Every knob of the reconstruction protocols that changes a number. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from matchlib.errors import requirement
from matchlib.matching.config import MatcherConfig
from matchlib.sfm.config import DatabaseConfig, MappingConfig, VerificationConfig

EXHAUSTIVE_BELOW = 2000
RETRIEVED = 100  # images, as the benchmark's vocabulary trees give
MIN_MATCHES = 15


def _mutual() -> MatcherConfig:
    return MatcherConfig(min_matches=MIN_MATCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionProtocol:
    """From the features of a scene to the statistics of its reconstruction, after Schönberger et al. 2017."""

    name: str = "mutual"
    """Name in tables."""
    matcher: MatcherConfig = field(default_factory=_mutual)
    """Which keypoints are matched. Pairs of fewer than `min_matches` (15) are stored empty."""
    pairs: Literal["auto", "exhaustive", "list", "retrieval"] = "auto"
    """`list`: those of the scene's `image-pairs.txt`; `exhaustive`: all; `retrieval`: images that look alike, by the
    `retrieval` of the evaluation; `auto`: all below `exhaustive_below` images, from there on those of the scene's list
    if it has one, else by retrieval if that is configured."""
    exhaustive_below: int = EXHAUSTIVE_BELOW
    """Scenes of this many images and more need a list of pairs, or retrieval."""
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    """How features become rows of COLMAP's database."""
    verification: VerificationConfig = field(default_factory=VerificationConfig)
    """Geometric verification; done once, the same for all repeats."""
    mapping: MappingConfig = field(default_factory=MappingConfig)
    """Incremental mapping."""
    repeats: int = 1
    """Mapping is run with this many seeds: mapping.seed, mapping.seed + 1, ...; tables give mean and spread."""
    dense: bool = False
    """Also count dense points, where COLMAP has CUDA; elsewhere the column says so."""

    def __post_init__(self) -> None:
        require = requirement()
        require(bool(self.name), "name", "a name", self.name)
        require(self.exhaustive_below >= 2, "exhaustive_below", "at least 2", self.exhaustive_below)
        require(self.repeats >= 1, "repeats", "at least 1", self.repeats)

    @property
    def matcher_name(self) -> str:
        """The matcher in a few words, for tables, e.g. `mutual, ratio 0.75 both ways`."""
        if self.matcher.ratio is None:
            return "mutual"
        return f"mutual, ratio {self.matcher.ratio:g}" + (
            " both ways" if self.matcher.both_directions else ""
        )


def _ratio(ratio: float, *, both_directions: bool) -> MatcherConfig:
    return MatcherConfig(
        kind="mutual_ratio", ratio=ratio, both_directions=both_directions, min_matches=MIN_MATCHES
    )


RECONSTRUCTION_PROTOCOLS: Mapping[str, ReconstructionProtocol] = {
    protocol.name: protocol
    for protocol in (
        ReconstructionProtocol(),
        # The benchmark's scripts take COLMAP's half pixel off at export, and do not put it on again at import.
        ReconstructionProtocol(
            name="official",
            matcher=_ratio(0.8, both_directions=False),
            database=DatabaseConfig(pixel_offset=0.0),
        ),
        ReconstructionProtocol(name="posfeat", matcher=_ratio(0.75, both_directions=True)),
    )
}
"""As published: the benchmark's own scripts, PoSFeat's matcher, and plain mutual nearest neighbours."""
