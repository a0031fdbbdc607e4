"""Matches of the best and the worst pairs of relative poses for the report: the same few pairs for every method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from matchlib.datasets.pose_pairs import PosePair, PosePairSet
from matchlib.errors import DataError
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.evaluation.pose_errors import epipolar_errors_px
from matchlib.evaluation.pose_estimators import calibrate
from matchlib.evaluation.pose_matches import Matching, match_pair
from matchlib.evaluation.pose_result import PairPose, PoseResult
from matchlib.features.store import FeatureReader
from matchlib.visualization.draw import Image
from matchlib.visualization.match_picture import image_of_features
from matchlib.visualization.pose_section import PoseEntry, PosePicture, choose_pairs

logger = logging.getLogger(__name__)

MAX_METHODS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """One method whose matches are drawn: its result, the entry of its first protocol, its features."""

    result: PoseResult
    entry: PoseEntry
    reader: FeatureReader

    @property
    def protocol(self) -> PoseProtocol:
        return self.result.runs[0].protocol


def pose_pictures(
    entries: Sequence[tuple[PoseResult, PoseEntry]],
    features: Mapping[str, Path],
    pairs: PosePairSet,
    *,
    count: int = 2,
) -> tuple[list[PosePicture], list[PosePicture]]:
    """Pictures of the `count` best and worst pairs, pair by pair, each with the matches of every method.

    entries:  results with their entry for the first protocol, under which the matches are made again
    features: label of a result -> its features file. Methods without one, or whose matches were given to the
              evaluation, are left out, and of more than `MAX_METHODS` those of the lowest AUC; the log says so.
    pairs:    the list that the results were measured on, with the folder of its images
    Raises DataError for another list or file than the evaluated one, and for an image that cannot be read.
    """
    with ExitStack() as stack:
        drawn = [
            _Drawn(
                result=result, entry=entry, reader=stack.enter_context(FeatureReader(features[result.label]))
            )
            for result, entry in _chosen_methods(entries, features)
        ]
        for method in drawn:
            _check_inputs(method, pairs)
        best, worst = _chosen_pairs(drawn, pairs, count)
        return (
            [picture for place in best for picture in _pictures_of_pair(place, drawn, pairs)],
            [picture for place in worst for picture in _pictures_of_pair(place, drawn, pairs)],
        )


def _chosen_methods(
    entries: Sequence[tuple[PoseResult, PoseEntry]], features: Mapping[str, Path]
) -> list[tuple[PoseResult, PoseEntry]]:
    able = [
        (result, entry) for result, entry in entries if result.label in features and result.matcher is None
    ]
    best_first = sorted(able, key=lambda item: -item[1].auc[0][1].value)
    kept = {result.label for result, _ in best_first[:MAX_METHODS]}
    if left_out := [result.label for result, _ in entries if result.label not in kept]:
        logger.info("no pictures of relative poses by %s", ", ".join(left_out))
    return [(result, entry) for result, entry in able if result.label in kept]


def _check_inputs(method: _Drawn, pairs: PosePairSet) -> None:
    result, reader = method.result, method.reader
    if result.pairs_digest != pairs.digest:
        raise DataError(
            f"{pairs.name}: expected the pairs that '{result.label}' was evaluated on ({result.pairs_digest[:12]}), "
            f"got {pairs.digest[:12]}; evaluate again"
        )
    if result.features_digest != reader.digest:
        raise DataError(
            f"{reader.path}: expected the features that '{result.label}' was evaluated with "
            f"({result.features_digest[:12]}), got {reader.digest[:12]}; evaluate again"
        )


def _chosen_pairs(
    drawn: Sequence[_Drawn], pairs: PosePairSet, count: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places of the best and the worst pairs in the list. A pair that lacks an image is not drawn: nothing is seen."""
    missing = {name for method in drawn for name in method.result.missing_images}
    places = [i for i, pair in enumerate(pairs.pairs) if not {pair.name0, pair.name1} & missing]
    best, worst = choose_pairs(
        [
            replace(
                method.entry,
                errors_deg=method.entry.errors_deg[places],
                pair_names=[method.entry.pair_names[place] for place in places],
            )
            for method in drawn
        ],
        count,
    )
    return tuple(places[i] for i in best), tuple(places[i] for i in worst)


def _pictures_of_pair(place: int, drawn: Sequence[_Drawn], pairs: PosePairSet) -> list[PosePicture]:
    pair, first = pairs.pairs[place], drawn[0].reader
    images = (
        image_of_features(pairs.root / pair.name0, first.read(pair.name0)),
        image_of_features(pairs.root / pair.name1, first.read(pair.name1)),
    )
    return [
        _picture(method, pair, method.result.runs[0].pairs[place], images, pairs.pixel_offset)
        for method in drawn
    ]


def _picture(
    method: _Drawn, pair: PosePair, row: PairPose, images: tuple[Image, Image], pixel_offset: float
) -> PosePicture:
    """The matches of one method, made again by the function and the protocol that the result comes from."""
    views = method.reader.read(pair.name0), method.reader.read(pair.name1)
    used = match_pair(pair, views, Matching.of(method.protocol)).limited(method.protocol)
    if len(used.matches) != row.matches:  # rounding, where another device compared the descriptors
        logger.warning(
            "%s, %s and %s: %d matches are drawn, %d were evaluated",
            method.result.label,
            *(pair.name0, pair.name1),
            *(len(used.matches), row.matches),
        )
    calibrated = calibrate(
        used.keypoints,
        (views[0].image_size, views[1].image_size),
        pair,
        pixel_offset=pixel_offset,
        # The truth does not depend on what the protocol makes of pixels.
        protocol=replace(method.protocol, threshold_frame="original", apply_pixel_offset=True),
    )
    return PosePicture(
        label=method.result.label,
        estimator=method.protocol.estimator_name,
        pair=(pair.name0, pair.name1),
        image0=images[0],
        image1=images[1],
        keypoints0=used.keypoints[0],
        keypoints1=used.keypoints[1],
        errors_px=epipolar_errors_px(calibrated, pair.T_0to1),
        error_deg=row.pose_error_deg,
    )
