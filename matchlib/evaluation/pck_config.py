"""Every knob of the PCK protocols (percentage of correct keypoints) that changes a number. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from matchlib.errors import ConfigError
from matchlib.evaluation.config import THRESHOLDS_PX, BootstrapConfig, SequenceSet

Matcher = Literal["exact", "flann"]

_SMALLEST_SIDE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class HarrisQueries:
    """Which pixels count as textured enough to be asked for."""

    block_size: int = 2
    """Side of the window over which gradients are summed, in pixels."""
    sobel_size: int = 3
    """Side of the Sobel kernel: 1, 3, 5 or 7."""
    k: float = 0.04
    """Weight of the squared trace in Harris' response."""
    percentile: float = 90.0
    """Pixels whose response is strictly above this percentile of the image's responses are strong."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ConfigError(f"block_size: expected at least 1, got {self.block_size}")
        if self.sobel_size not in (1, 3, 5, 7):
            raise ConfigError(f"sobel_size: expected 1, 3, 5 or 7, got {self.sobel_size}")
        if not 0 < self.k < 0.25:
            raise ConfigError(f"k: expected a value between 0 and 0.25, got {self.k}")
        if not 0 <= self.percentile < 100:
            raise ConfigError(f"percentile: expected a value in [0, 100), got {self.percentile}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKProtocol:
    """The share of query points of image 1 whose nearest descriptor in image k lies where the homography says.

    Pairs (1, k), k = 2..6, of HPatches. Every method is asked for the same query points, which are drawn once.
    The figure of a pair is the share of its queries that err by at most `threshold_px`; the figure of a split
    is the mean over its pairs. Source: lin-zju/my-descriptor-space, `as coded` and `as described`.
    """

    name: str = "as-described"
    """Name of this protocol in tables."""
    longer_side: int | None = 640
    """Both images are scaled, each for itself, to this longer side in pixels; null: original size. All lengths
    of this protocol are pixels of the scaled images."""
    resize_origin: Literal["centre", "corner"] = "centre"
    """Point that scaling the homography keeps: `centre`: that of the image area, as the scaling of the image
    does; `corner`: the centre of the first pixel, as upstream (up to half a pixel off)."""
    sequences: SequenceSet = "116"
    """`116`: the full set, as published; `108`: without the 8 sequences of large images; `all_present`:
    whatever the folder holds, whose numbers compare to nothing published."""
    points: int = 1000
    """Query points per pair; a pair that offers fewer gives what it has."""
    points_from: Literal["harris", "uniform"] = "harris"
    """`harris`: drawn from strong Harris responses; `uniform`: from all pixels."""
    harris: HarrisQueries = HarrisQueries()
    """What a strong response is."""
    truncate: bool = False
    """Cut the true positions in image k toward zero, before asking whether they lie inside the image
    (upstream)."""
    seed: int = 0
    """Seed of the draw of query points."""
    candidates: Literal["partners", "grid"] = "grid"
    """What a query is compared with: `partners`: the true positions of all queries of the pair and nothing
    else (upstream); `grid`: every `grid_step`-th pixel of image k."""
    grid_step: int = 4
    """Distance of grid points in pixels. The nearest one is up to 0.71 of it away from the truth, at the right
    and lower border up to 1.41 of it."""
    matcher: Matcher = "exact"
    """`exact`: every candidate is compared. `flann`: OpenCV's approximate search with its defaults (4 k-d
    trees, 32 checks), for the ablation only; not defined for sets of descriptors."""
    threshold_px: float = 5.0
    """Largest error of a correct query."""
    curve_px: tuple[float, ...] = tuple(float(t) for t in THRESHOLDS_PX)
    """Thresholds of the curve, increasing."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """Interval beside each figure."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("name: expected a name, got an empty string")
        if self.longer_side is not None and self.longer_side < _SMALLEST_SIDE:
            raise ConfigError(
                f"longer_side: expected at least {_SMALLEST_SIDE} or null, got {self.longer_side}"
            )
        for key, count in (("points", self.points), ("grid_step", self.grid_step)):
            if count < 1:
                raise ConfigError(f"{key}: expected at least 1, got {count}")
        if self.threshold_px <= 0:
            raise ConfigError(f"threshold_px: expected a value above 0, got {self.threshold_px}")
        rises = all(lower < upper for lower, upper in pairwise((0.0, *self.curve_px)))
        if not self.curve_px or not rises:
            raise ConfigError(
                f"curve_px: expected increasing values above 0, at least one, got {list(self.curve_px)}"
            )

    @property
    def candidates_name(self) -> str:
        """What queries are compared with, as it stands in tables."""
        if self.candidates == "partners":
            return "partner points"
        return f"grid of {self.grid_step} px"


PCK_PROTOCOLS: tuple[PCKProtocol, ...] = (
    PCKProtocol(
        name="as-coded", resize_origin="corner", truncate=True, candidates="partners", threshold_px=3.0
    ),
    PCKProtocol(
        name="as-described", resize_origin="centre", truncate=False, candidates="grid", threshold_px=5.0
    ),
)
"""`as-coded`: what the public code of MSNet computes. `as-described`: what its README says.

differs from lin-zju/my-descriptor-space in both: the draw is seeded; search is exact for all methods (upstream:
exact for one of them, approximate for the others); and maps are read where a describer's own settings say, by
default exactly (upstream: up to a cell off).
"""

_POINT_KEYS = (
    "longer_side",
    "resize_origin",
    "sequences",
    "points",
    "points_from",
    "harris",
    "truncate",
    "seed",
)


def point_settings(protocol: PCKProtocol) -> dict[str, Any]:
    """The settings that decide which points are asked for; protocols that agree in them share a points file."""
    values = asdict(protocol)
    settings = {key: values[key] for key in _POINT_KEYS}
    return settings if protocol.points_from == "harris" else settings | {"harris": None}
