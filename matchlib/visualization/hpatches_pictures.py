"""Pictures of matches on HPatches for the report: the same few pairs for every method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matchlib.datasets.hpatches import read_sequence
from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.hpatches import HPatchesResult, PairResult
from matchlib.evaluation.metrics import reprojection_errors
from matchlib.features.store import FeatureReader
from matchlib.matching.mutual_nearest import match_mutual_nearest
from matchlib.visualization.draw import encode_jpeg
from matchlib.visualization.match_picture import compose_matches
from matchlib.visualization.report import Figure, Section

logger = logging.getLogger(__name__)

_PICTURE_PX = 3  # the threshold by which easy and hard pairs are told apart
_PICTURE_HEIGHT_PX = 360


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    """A pair that all drawn methods were measured on, and its place among the others in words."""

    title: str
    sequence: str
    k: int


def hpatches_pictures(
    results: Sequence[HPatchesResult], features: Mapping[str, Path], hpatches_root: Path
) -> tuple[Section, ...]:
    """Pictures of an easy, a middling and a hard pair, the same for all methods, one section for each pair.

    features: label of a result -> its features file. Methods without one are left out, and a line in the log
    says so. Raises ConfigError for a label without result, DataError for another file than the evaluated one.
    """
    labels = [result.label for result in results]
    if unknown := sorted(set(features) - set(labels)):
        raise ConfigError(
            f"report: features: expected labels of results ({', '.join(labels)}), got '{unknown[0]}'; "
            "name each features file by the label of its result"
        )
    drawn = [result for result in results if result.label in features]
    if missing := [label for label in labels if label not in features]:
        logger.info("no pictures of %s: no features file given", ", ".join(missing))
    return tuple(_pair_section(pair, drawn, features, hpatches_root) for pair in _selected_pairs(drawn))


def _selected_pairs(results: Sequence[HPatchesResult]) -> list[_Ranked]:
    """Easiest, median and hardest pair by the mean accuracy of all methods; fewer of fewer pairs."""
    accuracies: dict[tuple[str, int], list[float]] = {}
    for result in results:
        for pair in result.pairs:
            accuracies.setdefault((pair.sequence, pair.k), []).append(pair.accuracy[_PICTURE_PX - 1])
    common = {place: values for place, values in accuracies.items() if len(values) == len(results)}
    ranked = sorted(common, key=lambda place: (-float(np.mean(common[place])), place))
    if not ranked:
        return []
    picks = {0: "Easiest pair", len(ranked) // 2: "Median pair", len(ranked) - 1: "Hardest pair"}
    return [
        _Ranked(
            title=f"{title}: {ranked[rank][0]}, images 1 and {ranked[rank][1]}",
            sequence=ranked[rank][0],
            k=ranked[rank][1],
        )
        for rank, title in sorted(picks.items())
    ]


def _pair_section(
    pair: _Ranked, results: Sequence[HPatchesResult], features: Mapping[str, Path], root: Path
) -> Section:
    figures = [_pair_figure(result, pair, features[result.label], root) for result in results]
    return Section(title=pair.title, figures=figures)


def _pair_figure(result: HPatchesResult, pair: _Ranked, features_path: Path, root: Path) -> Figure:
    """The matches of one method, made again by the protocol that the result states."""
    row = next(row for row in result.pairs if (row.sequence, row.k) == (pair.sequence, pair.k))
    sequence = read_sequence(root, pair.sequence)
    path0, path1 = sequence.image_paths[0], sequence.image_paths[pair.k - 1]
    with FeatureReader(features_path) as reader:
        if reader.digest != result.features_digest:
            raise DataError(
                f"{features_path}: expected the features that '{result.label}' was evaluated with "
                f"({result.features_digest[:12]}), got {reader.digest[:12]}; evaluate again"
            )
        features0 = reader.read(f"{pair.sequence}/{path0.name}")
        features1 = reader.read(f"{pair.sequence}/{path1.name}")
    if (limit := result.protocol.max_keypoints) is not None:
        features0, features1 = features0.top(limit), features1.top(limit)
    matches = match_mutual_nearest(features0, features1, ratio=result.protocol.ratio)
    errors = reprojection_errors(
        features0.keypoints[matches.index[:, 0]],
        features1.keypoints[matches.index[:, 1]],
        sequence.homographies[pair.k - 2],
    )
    picture = compose_matches(
        path0, path1, features0, features1, matches, errors, height_px=_PICTURE_HEIGHT_PX
    )
    return Figure(
        kind="jpeg",
        data=encode_jpeg(picture),
        caption=f"{result.label}: {_in_words(row)}",
        alt=_alt(result, row),
    )


def _in_words(row: PairResult) -> str:
    shares = ", ".join(
        f"{100 * row.accuracy[threshold - 1]:.0f} % within {threshold} px" for threshold in (1, 3, 5)
    )
    return f"{row.matches} matches, {shares}"


def _alt(result: HPatchesResult, row: PairResult) -> str:
    return (
        f"Images 1 and {row.k} of {row.sequence} side by side, matches of {result.label} as lines from green "
        f"(error up to 1 pixel) to orange (5 pixels or more): {_in_words(row)}."
    )
