"""COLMAP databases: built from features and matches, verified by RANSAC; each step from file to file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.errors import DataError
from matchlib.sfm.colmap import (
    colmap_step,
    copy_database,
    fold_log,
    open_database,
    read_only,
    verified_counts,
)
from matchlib.sfm.config import VerificationConfig
from matchlib.sfm.database_rows import (
    FeatureSource,
    MatchCounts,
    MatchSource,
    Rows,
    read_rows,
    update_cameras,
    write_images,
    write_keypoints,
    write_matches,
)
from matchlib.sfm.work import finished_file

logger = logging.getLogger(__name__)

_NO_MATCHES = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationSummary:
    """pairs: asked for, each once; without_matches: of them; verified: pairs kept; inlier_matches: theirs in all."""

    pairs: int
    without_matches: int
    verified: int
    inlier_matches: int


def build_database(
    out: Path,
    *,
    images: Mapping[str, ColmapCamera],
    features: FeatureSource,
    matches: MatchSource,
    pixel_offset: float = 0.5,
    shared_camera: bool = False,
    skeleton: Path | None = None,
) -> MatchCounts:
    """Write a COLMAP database of images, keypoints and matches to `out`: whole, or not at all.

    images:        intrinsics by name; images without features get no keypoints, and stay
    pixel_offset:  added to keypoints, which count from the centre of the first pixel (see `DatabaseConfig`)
    shared_camera: one camera for all images; not with a skeleton, which says itself who shares
    skeleton:      a shipped database, of any older schema, whose images, cameras and ids are kept (features and
                   matches that it may hold are not). It is copied and never touched. `images` then needs to name only
                   images whose intrinsics it has wrong, and those that it lacks.
    Equal arguments give equal bytes. Memory is bounded by one image, or one pair. Raises DataError, see
    `database_rows`.
    """
    with finished_file(out) as draft:
        with _new_or_copied(draft, skeleton) as database:
            rows = _write_images(database, images, shared_camera=shared_camera, skeleton=skeleton)
            write_keypoints(database, features, rows, pixel_offset=pixel_offset)
            counts = write_matches(database, matches, rows)
        fold_log(draft)
    logger.info(
        "%s: %d images (%d without keypoints), %d pairs with %d matches, %d pairs empty, %d repeated pairs left out",
        out,
        len(rows.image_ids),
        sum(count == 0 for count in rows.keypoints.values()),
        counts.pairs,
        counts.matches,
        counts.empty,
        counts.repeated,
    )
    return counts


def verify_database(
    database: Path, out: Path, pairs: Iterable[tuple[str, str]], config: VerificationConfig
) -> VerificationSummary:
    """Geometric verification of the matches of `pairs`, into a new database `out`; `database` stays as it is.

    Pairs without matches are counted and stay unverified, pairs that come twice (in either order) count once. Every
    pair leaves a row, failed ones without inliers. No verified pair at all is a result, and a warning says what usually
    causes it. Runs on all cores, with the same bits on any number. Raises DataError for an empty list of pairs, and for
    images that the database lacks.
    """
    with finished_file(out) as draft:
        copy_database(database, draft)
        with open_database(draft) as opened:
            opened.clear_two_view_geometries()
            wanted = unique_pairs(pairs, read_rows(opened).image_ids, database)
            filled = []
            for pair in wanted:
                if has_matches(opened, *pair.ids):
                    filled.append(pair)
                else:  # COLMAP would try to match by descriptors, which are not there
                    write_inliers(opened, pair, _NO_MATCHES)
        _run_verification(draft, filled, config)
        fold_log(draft)
        _require_tried(draft, len(wanted))
        verified, inliers = verified_counts(draft)
        summary = VerificationSummary(
            pairs=len(wanted),
            without_matches=len(wanted) - len(filled),
            verified=verified,
            inlier_matches=inliers,
        )
    log_summary(out, summary)
    return summary


@dataclass(frozen=True, slots=True)
class NamedPair:
    """Two images of a database, by name and by id."""

    names: tuple[str, str]
    ids: tuple[int, int]


def unique_pairs(
    pairs: Iterable[tuple[str, str]], image_ids: Mapping[str, int], database: Path
) -> list[NamedPair]:
    """Each undirected pair once, in order; pairs of an image with itself left out.

    Raises DataError for a name that the database lacks, and if no pair is left.
    """
    unique: dict[frozenset[str], NamedPair] = {}
    for name0, name1 in pairs:
        for name in (name0, name1):
            if name not in image_ids:
                raise DataError(
                    f"{database}: no image '{name}', which the pair {name0} {name1} asks for; build the database with "
                    f"all images of the pair list"
                )
        if name0 != name1:
            pair = NamedPair((name0, name1), (image_ids[name0], image_ids[name1]))
            unique.setdefault(frozenset((name0, name1)), pair)
    if not unique:
        raise DataError(
            f"{database}: expected at least one pair of images to verify, got none; check the pair list"
        )
    return list(unique.values())


def has_matches(database: Any, id0: int, id1: int) -> bool:
    """Whether a pair has at least one match."""
    return bool(database.exists_matches(id0, id1)) and len(database.read_matches(id0, id1)) > 0


def write_inliers(database: Any, pair: NamedPair, inliers_M2: npt.NDArray[np.int64]) -> None:
    """The row of a pair that somebody else than COLMAP has verified: (M, 2) rows of keypoints, (0, 2) if it failed."""
    import pycolmap

    geometry = pycolmap.TwoViewGeometry()
    if len(inliers_M2):
        geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
        geometry.inlier_matches = inliers_M2.astype(np.uint32)
    database.write_two_view_geometry(*pair.ids, geometry)


def log_summary(out: Path, summary: VerificationSummary) -> None:
    """One line of counts, and a warning with the usual causes if no pair was verified."""
    logger.info(
        "%s: %d of %d pairs verified with %d inliers, %d pairs without matches",
        out,
        summary.verified,
        summary.pairs,
        summary.inlier_matches,
        summary.without_matches,
    )
    if summary.verified:
        return
    if summary.without_matches == summary.pairs:
        logger.warning(
            "%s: none of the %d pairs has a match; the features are of little use here, or the matcher is too strict",
            out,
            summary.pairs,
        )
        return
    logger.warning(
        "%s: none of the %d pairs with matches was verified (of %d pairs); the matches are wrong, or keypoints are not "
        "in pixels of the original image, intrinsics not of this size, verification.min_inliers too high",
        out,
        summary.pairs - summary.without_matches,
        summary.pairs,
    )


@contextmanager
def _new_or_copied(draft: Path, skeleton: Path | None) -> Iterator[Any]:
    import pycolmap

    if skeleton is None:
        with colmap_step(draft, "new database", check="that the disk is writable"):
            pycolmap.Database.open(str(draft)).close()
    else:
        copy_database(skeleton, draft)
    with open_database(draft, check="that images and names are unique") as database:
        if skeleton is not None:
            database.clear_two_view_geometries()
            database.clear_matches()
            database.clear_descriptors()
            database.clear_keypoints()
        yield database


def _write_images(
    database: Any, images: Mapping[str, ColmapCamera], *, shared_camera: bool, skeleton: Path | None
) -> Rows:
    rows = read_rows(database)
    if skeleton is None:
        write_images(database, images, rows, shared_camera=shared_camera)
        return rows
    if shared_camera:
        raise DataError(f"{skeleton}: says itself which images share a camera; leave shared_camera out")
    known = {name: camera for name, camera in images.items() if name in rows.image_ids}
    added = {name: camera for name, camera in images.items() if name not in rows.image_ids}
    if images and rows.image_ids and not known:
        logger.warning(
            "%s: has none of the %d images, which are all added; it has '%s', added is '%s': are the names relative to "
            "the same folder?",
            skeleton,
            len(images),
            next(iter(rows.image_ids)),
            next(iter(images)),
        )
    kept, changed = len(rows.image_ids), update_cameras(database, known, rows)
    write_images(database, added, rows, shared_camera=False)
    logger.info(
        "%s: %d images kept, %d cameras corrected, %d images added", skeleton, kept, changed, len(added)
    )
    return rows


def _run_verification(draft: Path, pairs: list[NamedPair], config: VerificationConfig) -> None:
    import pycolmap

    if not pairs:
        return
    names = [name for pair in pairs for name in pair.names]
    if unlisted := [name for name in names if name.split() != [name] or name.startswith("#")]:
        raise DataError(
            f"'{unlisted[0]}': COLMAP's list of pairs has no way to name a file with spaces or a leading #; rename it"
        )
    listed = draft.with_name("pairs.txt")
    lines = (f"{name0} {name1}\n" for name0, name1 in (pair.names for pair in pairs))
    listed.write_text("".join(lines), encoding="utf-8")  # as COLMAP reads it, whatever the locale
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = config.min_inliers
    options.ransac.max_error = config.max_error_px
    options.ransac.confidence = config.confidence
    options.ransac.max_num_trials = config.max_trials
    options.ransac.min_inlier_ratio = config.min_inlier_ratio
    options.ransac.random_seed = config.seed
    with colmap_step(draft, "verification", check="that matches index the keypoints of their images"):
        pycolmap.verify_matches(str(draft), str(listed), options)


def _require_tried(draft: Path, expected: int) -> None:
    """COLMAP logs what goes wrong with a pair and goes on; a pair that merely failed has a row without inliers."""
    with read_only(draft) as connection:
        tried = int(connection.execute("select count(*) from two_view_geometries").fetchone()[0])
    if tried != expected:
        raise DataError(
            f"{draft.name}: COLMAP tried {tried} of {expected} pairs; see its messages above, and check that memory "
            f"suffices"
        )
