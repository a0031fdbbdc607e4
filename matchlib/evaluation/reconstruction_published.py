"""Published figures of the ETH local-feature benchmark, to stand beside our own rows; each with its source."""

from __future__ import annotations

from dataclasses import dataclass

_README = "README of ahojnnes/local-feature-evaluation (SiftGPU)"
_INSTRUCTIONS = "INSTRUCTIONS of ahojnnes/local-feature-evaluation"
_INDEX = "second-hand, from a public index of results; not checked against the paper"
_MEMORY = "ASLFeat's paper, quoted from memory; not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReconstruction:
    """One published row; None where the source does not say.

    images:      of the scene: what tells the real scene from another of that name
    is_verified: the figures were read from the source itself
    """

    method: str
    scene: str
    images: int
    source: str
    is_verified: bool
    registered_images: int
    points: int | None = None
    observations: int | None = None
    mean_track_length: float | None = None
    mean_observations_per_image: float | None = None
    mean_reprojection_error_px: float | None = None
    dense_points: int | None = None
    verified_pairs: int | None = None
    inlier_matches: int | None = None


def published_rows(scene: str, images: int) -> tuple[PublishedReconstruction, ...]:
    """What was published on a scene, told by its name and its number of images, so that the demo's scenes get none."""
    return tuple(row for row in PUBLISHED if row.scene == scene and row.images == images)


def _sift(
    scene: str,
    images: int,
    registered: int,
    points: int,
    observations: int,
    track: float,
    per_image: float,
    error: float,
    dense: int,
    pairs: int,
    matches: int,
    *,
    source: str = _README,
) -> PublishedReconstruction:
    return PublishedReconstruction(
        method="SIFT",
        scene=scene,
        images=images,
        source=source,
        is_verified=True,
        registered_images=registered,
        points=points,
        observations=observations,
        mean_track_length=track,
        mean_observations_per_image=per_image,
        mean_reprojection_error_px=error,
        dense_points=dense,
        verified_pairs=pairs,
        inlier_matches=matches,
    )


def _learned(
    method: str, scene: str, registered: int, points: int, track: float, error: float
) -> PublishedReconstruction:
    return PublishedReconstruction(
        method=method,
        scene=scene,
        images=_IMAGES[scene],
        source=_MEMORY,
        is_verified=False,
        registered_images=registered,
        points=points,
        mean_track_length=track,
        mean_reprojection_error_px=error,
    )


def _registered(method: str, scene: str, registered: int) -> PublishedReconstruction:
    return PublishedReconstruction(
        method=method,
        scene=scene,
        images=_IMAGES[scene],
        source=_INDEX,
        is_verified=False,
        registered_images=registered,
    )


MADRID, GENDARMENMARKT, TOWER = "Madrid_Metropolis", "Gendarmenmarkt", "Tower_of_London"
_IMAGES = {MADRID: 1344, GENDARMENMARKT: 1463, TOWER: 1576}

# fmt: off
PUBLISHED: tuple[PublishedReconstruction, ...] = (
    _sift("Fountain", 11, 11, 14722, 70631, 4.79765, 6421.00, 0.392893, 292609, 55, 127734),
    _sift("Fountain", 11, 11, 14472, 68838, 4.756633, 6258.0, 0.384562, 298634, 55, 120944, source=_INSTRUCTIONS),
    _sift("Herzjesu", 8, 8, 7502, 31670, 4.22154, 3958.75, 0.431632, 241347, 28, 48965),
    _sift("South-Building", 128, 128, 108124, 653975, 6.04838, 5109.18, 0.545747, 2141964, 3822, 2036024),
    _sift(MADRID, 1344, 500, 116088, 733745, 6.32053, 1467.49, 0.605330, 1822434, 227092, 6969437),
    _sift(GENDARMENMARKT, 1463, 1035, 338972, 1872308, 5.52348, 1809.00, 0.699118, 4225031, 321854, 12625310),
    _sift(TOWER, 1576, 804, 239951, 1863301, 7.76534, 2317.53, 0.615406, 3050252, 165097, 11249925),
    _sift("Alamo", 2915, 963, 198433, 2437084, 12.28164, 2530.72, 0.647271, 3737516, 64068, 21263831),
    _learned("SuperPoint", MADRID, 438, 29_000, 9.03, 1.02),
    _learned("SuperPoint", GENDARMENMARKT, 967, 93_000, 7.22, 1.03),
    _learned("SuperPoint", TOWER, 681, 52_000, 8.67, 0.96),
    _learned("D2-Net MS", MADRID, 495, 144_000, 6.39, 1.35),
    _learned("D2-Net MS", GENDARMENMARKT, 965, 310_000, 5.55, 1.28),
    _learned("D2-Net MS", TOWER, 708, 287_000, 5.20, 1.34),
    _learned("ASLFeat", MADRID, 613, 96_000, 8.76, 0.90),
    _learned("ASLFeat", GENDARMENMARKT, 1040, 221_000, 8.72, 1.00),
    _learned("ASLFeat", TOWER, 821, 222_000, 12.52, 0.92),
    _learned("ASLFeat MS", MADRID, 649, 129_000, 9.56, 0.95),
    _learned("ASLFeat MS", GENDARMENMARKT, 1061, 320_000, 8.98, 1.05),
    _registered("CAPS", MADRID, 851), _registered("CAPS", GENDARMENMARKT, 1179), _registered("CAPS", TOWER, 1104),
    _registered("PoSFeat", MADRID, 419), _registered("PoSFeat", GENDARMENMARKT, 956),
    _registered("PoSFeat", TOWER, 778),
)
"""All rows that we know of. Those that nobody checked say so in `is_verified` and in `source`."""
# fmt: on
