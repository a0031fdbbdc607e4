"""The steps of the ETH local-feature benchmark, each from files to files: database, verification, mapping, statistics.

    choose_pairs -> (matches of these pairs) -> database_step -> verification_step -> mapping_step, once per repeat
    -> dense points, where asked for -> statistics_step

Every step leaves its result whole or not at all; the memory that it needs does not grow with the number of pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.datasets.colmap_camera import ColmapCamera, guessed_camera
from matchlib.datasets.eth_benchmark import PAIRS, EthScene, read_truth
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.reconstruction import (
    DenseNote,
    PoseErrors,
    ReconstructionResult,
    ReconstructionRun,
)
from matchlib.evaluation.reconstruction_config import RETRIEVED, ReconstructionProtocol
from matchlib.matching.pair_lists import Pair, check_pairs, exhaustive_pairs, read_pair_list
from matchlib.sfm.colmap import read_only
from matchlib.sfm.database import VerificationSummary, build_database, verify_database
from matchlib.sfm.database_rows import FeatureSource, MatchCounts, MatchSource
from matchlib.sfm.dense import dense_points, finished_points, has_cuda
from matchlib.sfm.mapping import reconstruct
from matchlib.sfm.statistics import ModelStatistics, compare_with_truth, read_statistics

logger = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
_FEWEST_ALIGNED = 3  # camera centres that a similarity needs


def choose_pairs(
    scene: EthScene,
    protocol: ReconstructionProtocol,
    retrieve: Callable[[], tuple[Pair, ...]] | None = None,
) -> tuple[Pair, ...]:
    """The pairs of a scene that are matched: all, of its list, or retrieved; see `ReconstructionProtocol.pairs`.

    retrieve: makes pairs by retrieval; None where none is configured. Called only if its pairs are wanted
    Raises DataError if a list is needed and there is none, and for a list with images that the scene lacks; ConfigError
    if the protocol asks for retrieval and there is none.
    """
    is_small = len(scene.names) < protocol.exhaustive_below
    if protocol.pairs == "exhaustive" or (protocol.pairs == "auto" and is_small):
        return exhaustive_pairs(scene.names)
    wants_default = protocol.pairs == "auto" and scene.pairs is None and retrieve is not None
    if protocol.pairs == "retrieval" or wants_default:
        if retrieve is None:
            raise ConfigError(
                "reconstruction.pairs: retrieval needs features to compare images by; in a configuration, give "
                "`retrieval: {features: LABEL}` beside `protocol`; else write a list with `matchlib retrieve-pairs`"
            )
        return retrieve()
    if scene.pairs is None:
        raise DataError(
            f"{scene.folder / PAIRS}: not found; a scene of {len(scene.names)} images (exhaustive_below is "
            f"{protocol.exhaustive_below}, pairs is {protocol.pairs}) needs a list of pairs to match, two names per "
            f"line; or `retrieval: {{features: LABEL}}` beside `protocol` in the configuration, which makes one of the "
            f"{RETRIEVED} most similar images of each; or set pairs to exhaustive"
        )
    listed = read_pair_list(scene.pairs)
    if missing := check_pairs(listed.pairs, scene.names):
        raise DataError(
            f"{scene.pairs}: {len(missing)} images that {scene.images} lacks: {', '.join(missing[:5])}; use names "
            f"relative to that folder"
        )
    return listed.pairs


def scene_cameras(scene: EthScene) -> dict[str, ColmapCamera]:
    """Intrinsics of all images, guessed from their size; none for a scene whose shipped database has them.

    One SIMPLE_RADIAL camera per image, as the benchmark's databases have; its focal length is refined in mapping.
    """
    if scene.database is not None:
        return {}
    cameras = {}
    for name in scene.names:
        height, width = read_image(scene.images / name).shape[:2]
        cameras[name] = guessed_camera(width, height)
    return cameras


def database_step(
    scene: EthScene,
    features: FeatureSource,
    matches: MatchSource,
    out: Path,
    protocol: ReconstructionProtocol,
) -> MatchCounts:
    """Write the database of a scene: its shipped tables of images and cameras, or guessed ones, keypoints, matches.

    Both sources are streamed. Raises DataError for features of none of the scene's images, and as `build_database`.
    """
    if not any(name in features for name in scene.names):
        raise DataError(
            f"{scene.images}: none of its {len(scene.names)} images has features, e.g. not '{scene.names[0]}'; extract "
            f"them with names relative to that folder"
        )
    return build_database(
        out,
        images=scene_cameras(scene),
        features=features,
        matches=matches,
        pixel_offset=protocol.database.pixel_offset,
        shared_camera=protocol.database.shared_camera,
        skeleton=scene.database,
    )


def verification_step(
    database: Path, out: Path, pairs: Iterable[Pair], protocol: ReconstructionProtocol
) -> VerificationSummary:
    """Verify `pairs` geometrically, into a new database.

    No verified pair at all is a result, an empty model in the end. Raises DataError, see `verify_database`.
    """
    return verify_database(database, out, pairs, protocol.verification)


def mapping_step(
    scene: EthScene, verified: Path, out: Path, protocol: ReconstructionProtocol, *, repeat: int = 0
) -> ModelStatistics:
    """Reconstruct a scene from its verified database; repeat k uses the seed k after the protocol's.

    `out` gets the model of most images, coloured, and `statistics.json`. A reconstruction that fails is an empty model.
    Raises ConfigError for a repeat that the protocol does not have.
    """
    if not 0 <= repeat < protocol.repeats:
        raise ConfigError(f"repeat: expected 0 to {protocol.repeats - 1}, got {repeat}")
    config = replace(protocol.mapping, seed=protocol.mapping.seed + repeat)
    return reconstruct(verified, scene.images, out, config)


def statistics_step(
    scene: EthScene,
    verified: Path,
    models: Sequence[Path],
    protocol: ReconstructionProtocol,
    *,
    label: str,
    features_digest: str,
) -> ReconstructionResult:
    """Put the repeats of a scene together: `models` are what `mapping_step` wrote, in the order of repeats.

    With `protocol.dense`, dense points are made here, into `<model>.dense`, if COLMAP has CUDA; without, they count if
    they are there already. Pose errors are given where the scene has true poses. Raises ConfigError for another number
    of models than the protocol's repeats.
    """
    if len(models) != protocol.repeats:
        raise ConfigError(f"repeats: expected {protocol.repeats} models, got {len(models)}")
    truth = read_truth(scene)
    runs = []
    for repeat, model in enumerate(models):
        statistics, note = _with_dense(scene, model, protocol)
        runs.append(
            ReconstructionRun(
                seed=protocol.mapping.seed + repeat,
                statistics=statistics,
                dense_note=note,
                poses=None if truth is None else pose_errors(model, truth, statistics),
            )
        )
    pairs, matched, matches = _match_counts(verified)
    return ReconstructionResult(
        label=label,
        scene=scene.name,
        protocol=protocol,
        features_digest=features_digest,
        images=runs[0].statistics.images,
        pairs=pairs,
        matched_pairs=matched,
        matches=matches,
        runs=tuple(runs),
    )


def evaluate_scene(
    scene: EthScene,
    features: FeatureSource,
    matches: MatchSource,
    work: Path,
    protocol: ReconstructionProtocol,
    *,
    label: str,
    features_digest: str,
) -> ReconstructionResult:
    """All steps in one go, in `work`: `database.db`, `verified.db`, `model-0`, `model-1`, ...

    The graph runs them as jobs of their own instead.
    """
    database, verified = work / "database.db", work / "verified.db"
    database_step(scene, features, matches, database, protocol)
    verification_step(database, verified, choose_pairs(scene, protocol), protocol)
    models = [work / f"model-{repeat}" for repeat in range(protocol.repeats)]
    for repeat, model in enumerate(models):
        mapping_step(scene, verified, model, protocol, repeat=repeat)
    return statistics_step(scene, verified, models, protocol, label=label, features_digest=features_digest)


def pose_errors(model: Path, truth: Mapping[str, Float64], statistics: ModelStatistics) -> PoseErrors | None:
    """Pose errors of a model; None, with a warning that says why, where no similarity can be fitted."""
    if statistics.registered_images < _FEWEST_ALIGNED:
        logger.warning(
            "%s: %d images registered; pose errors need %d",
            model,
            statistics.registered_images,
            _FEWEST_ALIGNED,
        )
        return None
    try:
        found = compare_with_truth(model, truth)
    except DataError as error:  # too few of the images have a true pose, or their centres lie on one line
        logger.warning("no pose errors: %s", error)
        return None
    return PoseErrors(
        names=found.names,
        missing=found.missing,
        centre=tuple((found.centre / found.extent).tolist()),
        rotation_deg=tuple(found.rotation_deg.tolist()),
        pairwise_rotation_median_deg=float(np.median(found.pairwise_rotation_deg)),
        pairwise_rotation_max_deg=float(found.pairwise_rotation_deg.max()),
    )


def _with_dense(
    scene: EthScene, model: Path, protocol: ReconstructionProtocol
) -> tuple[ModelStatistics, DenseNote]:
    statistics = replace(read_statistics(model), dense_points=None)
    if not protocol.dense:
        return statistics, "not asked"
    if statistics.registered_images == 0:
        return statistics, "no model"
    out = model.with_name(model.name + ".dense")
    if not has_cuda() and finished_points(model, out) is None:
        return statistics, "no CUDA"
    dense = dense_points(model, scene.images, out)
    return replace(statistics, dense_points=dense), ""


def _match_counts(database: Path) -> tuple[int, int, int]:
    """Pairs, pairs with matches, matches in all."""
    with read_only(database) as opened:
        row = opened.execute(
            "select count(*), coalesce(sum(rows > 0), 0), coalesce(sum(rows), 0) from matches"
        )
        pairs, matched, matches = row.fetchone()
    return int(pairs), int(matched), int(matches)
