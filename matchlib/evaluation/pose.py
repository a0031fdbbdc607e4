"""The relative-pose evaluation: from a features file and a list of pairs to a `PoseResult`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from matchlib.datasets.pose_pairs import PosePair, PosePairSet
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.pose_config import POSE_PROTOCOLS, PoseProtocol
from matchlib.evaluation.pose_errors import epipolar_precision, pose_error_deg
from matchlib.evaluation.pose_estimators import (
    MIN_MATCHES,
    EstimatedPose,
    calibrate,
    estimate_pose,
)
from matchlib.evaluation.pose_features import FeatureCache, MissingImages, missing_images, resize_of
from matchlib.evaluation.pose_matches import MatchedPair, Matching, MatchSource, match_pair
from matchlib.evaluation.pose_result import PairPose, PoseResult, PoseRun
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features
from matchlib.randomness import address_seed

logger = logging.getLogger(__name__)

CACHE_BYTES = 512 * 2**20


def evaluate_pose(
    features: FeatureReader,
    pairs: PosePairSet,
    protocols: Sequence[PoseProtocol] = POSE_PROTOCOLS,
    *,
    matches: MatchSource | None = None,
    missing: MissingImages = "stop",
    label: str | None = None,
    device: str = "cpu",
    cache_bytes: int = CACHE_BYTES,
    show_progress: bool = True,
) -> PoseResult:
    """Evaluate features on a list of pairs under each protocol; matching is shared where protocols agree about it.

    features: with the names of the list; keypoints in pixels of the images as they are on disk.
    matches:  use these instead of matching here; protocols must then leave `max_keypoints` and `ratio` open.
    missing:  an image without features stops the evaluation, or is counted: its pairs fail, the result names it.
    label:    name in tables; by default the method that the features file states, or the file's name.
    device:   where descriptors are compared. cache_bytes: features kept for the next pairs of an image.
    Nothing is extracted. Images that are there are not opened, but compared with what the features were taken from.
    Raises ConfigError for protocols that do not fit, DataError for missing features, for features of another version
    of an image, and for intrinsics of another image size.
    """
    _check_protocols(protocols, matches)
    if matches is not None:
        _check_matches(matches, features)
    lacking = missing_images(features, pairs, missing)
    cache = FeatureCache(features, pairs, cache_bytes)
    rows = []
    progress = tqdm(pairs.pairs, f"pose {pairs.name}", unit="pair", disable=None if show_progress else True)
    for pair in progress:
        is_lacking = bool({pair.name0, pair.name1} & lacking)
        views = None if is_lacking else (cache.read(pair.name0), cache.read(pair.name1))
        rows.append(_evaluate_pair(pair, views, pairs, protocols, matches, device))
    runs = zip(protocols, zip(*rows, strict=True), strict=True)
    result = PoseResult(
        **_origin(features, pairs, matches, label),
        missing_images=tuple(sorted(lacking)),
        runs=tuple(PoseRun(protocol=protocol, pairs=column) for protocol, column in runs),
    )
    _log(result, pairs)
    return result


def _origin(
    features: FeatureReader, pairs: PosePairSet, matches: MatchSource | None, label: str | None
) -> dict[str, Any]:
    """What the result says about where it comes from."""
    header = features.header
    return {
        "label": label or (header.method if header is not None else features.path.stem),
        "dataset": pairs.name,
        "pairs_digest": pairs.digest,
        "pixel_offset": pairs.pixel_offset,
        "epipolar_threshold": pairs.epipolar_threshold,
        "features_digest": features.digest,
        "features_resize": resize_of(features),
        "matcher": None if matches is None else _named(matches.settings),
        "matches_digest": None if matches is None else matches.digest,
    }


# ---------------------------------------------------------------- one pair
def _evaluate_pair(
    pair: PosePair,
    views: tuple[Features, Features] | None,
    pairs: PosePairSet,
    protocols: Sequence[PoseProtocol],
    source: MatchSource | None,
    device: str,
) -> list[PairPose]:
    """One row per protocol; `views` is None where features are missing."""
    matched: dict[Matching, MatchedPair] = {}
    rows = []
    for protocol in protocols:
        matching = Matching.of(protocol)
        if views is not None and matching not in matched:
            matched[matching] = match_pair(pair, views, matching, source=source, device=device)
        rows.append(_evaluate_matches(pair, matched.get(matching), pairs, protocol))
    return rows


def _evaluate_matches(
    pair: PosePair, matched: MatchedPair | None, pairs: PosePairSet, protocol: PoseProtocol
) -> PairPose:
    """One row; `matched` is None where features are missing, which counts as no matches."""
    if matched is None:
        return _row(pair, 0, 0.0 if np.any(pair.T_0to1[:3, 3]) else None, [None] * protocol.repeats, protocol)
    used = matched.limited(protocol)
    calibrated = calibrate(
        used.keypoints,
        (used.features0.image_size, used.features1.image_size),
        pair,
        pixel_offset=pairs.pixel_offset,
        protocol=protocol,
    )
    poses = [
        # Addressed by the images, not by the place in the list: a pair has the same error in every list.
        estimate_pose(
            calibrated, protocol, seed=address_seed(protocol.seed, "pose", pair.name0, pair.name1, repeat)
        )
        for repeat in range(protocol.repeats)
    ]
    precision = epipolar_precision(calibrated, pair.T_0to1, pairs.epipolar_threshold)
    return _row(pair, len(used.matches), precision, poses, protocol)


def _row(
    pair: PosePair,
    matches: int,
    precision: float | None,
    poses: Sequence[EstimatedPose | None],
    protocol: PoseProtocol,
) -> PairPose:
    failed = (math.inf, math.inf)
    errors = [
        failed if p is None else pose_error_deg(p.R, p.t, pair.T_0to1, min_baseline=protocol.min_baseline)
        for p in poses
    ]
    return PairPose(
        name0=pair.name0,
        name1=pair.name1,
        scene=pair.scene,
        matches=matches,
        precision=precision,
        inliers=tuple(0 if pose is None else int(pose.inlier.sum()) for pose in poses),
        rotation_errors_deg=tuple(rotation for rotation, _ in errors),
        translation_errors_deg=tuple(translation for _, translation in errors),
    )


# ---------------------------------------------------------------- checks and messages
def _check_protocols(protocols: Sequence[PoseProtocol], matches: MatchSource | None) -> None:
    names = [protocol.name for protocol in protocols]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ConfigError(f"protocols: expected at least one, each name once, got {names}")
    for protocol in protocols:
        if matches is not None and (protocol.max_keypoints is not None or protocol.ratio is not None):
            raise ConfigError(
                f"protocol '{protocol.name}': max_keypoints and ratio are decided by the given matches; set both to "
                f"null here and match with them"
            )


def _check_matches(matches: MatchSource, features: FeatureReader) -> None:
    if matches.features and matches.features != features.digest:
        raise DataError(
            f"{features.path}: expected the features that were matched ({matches.features[:12]}), got "
            f"{features.digest[:12]}; match these features"
        )


def _named(settings: Mapping[str, Any]) -> str:
    """Settings of a matcher as they stand in tables, e.g. `given: kind mutual_ratio, ratio 0.85`."""
    stated = ", ".join(f"{key} {value}" for key, value in sorted(settings.items()) if value is not None)
    return f"given: {stated}" if stated else "given"


def _log(result: PoseResult, pairs: PosePairSet) -> None:
    turned = sum(1 for pair in pairs.pairs if pair.rot0 or pair.rot1)
    if turned:
        logger.warning(
            "%s: %d pairs ask for images turned upright; features are evaluated as they are",
            pairs.name,
            turned,
        )
    for run in result.runs:
        is_resized = run.protocol.long_side is not None
        if is_resized and result.features_resize not in ("unknown", run.protocol.resize_name):
            logger.warning(
                "%s: %s resizes to %s, but features were extracted at %s; extract at that size to compare with "
                "published figures",
                result.label,
                run.protocol.name,
                run.protocol.resize_name,
                result.features_resize,
            )
        logger.info(
            "%s on %s, %s: %d pairs, %s, %.1f matches per pair",
            result.label,
            result.dataset,
            run.protocol.estimator_name,
            len(run.pairs),
            ", ".join(f"AUC@{t:g} {a:.3f}" for t, a in zip(run.protocol.auc_deg, run.auc(), strict=True)),
            np.mean([pair.matches for pair in run.pairs]),
        )
        few = [f"{p.name0} {p.name1}" for p in run.pairs if p.matches < MIN_MATCHES]
        if few:
            shown = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
            logger.warning(
                "%s: %d pairs with fewer than 5 matches fail: %s", run.protocol.name, len(few), shown
            )
