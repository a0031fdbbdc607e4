"""What an HPatches evaluation gives: one row per image pair, curves and a summary from them, one JSON file.

The evaluation itself is `matchlib.evaluation.hpatches_run`; results of other people's runs are read by
`matchlib.evaluation.published`. This module needs NumPy only.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.errors import ShapeError
from matchlib.evaluation.config import (
    SPLITS,
    THRESHOLDS_PX,
    BootstrapConfig,
    HomographyProtocol,
    HPatchesProtocol,
    Split,
)
from matchlib.evaluation.metrics import Float, auc, bootstrap_interval, intervals_by_name, mma_score
from matchlib.evaluation.published import PublishedResult, read_published_cache, write_published_cache
from matchlib.evaluation.result_files import (
    homography_protocol_from,
    incomplete,
    read_result_file,
    write_result_file,
)

__all__ = [
    "HPatchesProtocol",
    "HPatchesResult",
    "HomographyProtocol",
    "PairResult",
    "PublishedResult",
    "read_published_cache",
    "read_result",
    "write_published_cache",
    "write_result",
]

LAYOUT = "matchlib-hpatches-1"
HEADLINE_PX = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """Figures of the pair (1, k) of one sequence.

    features0, features1: number of keypoints of image 1 and image k
    matches:              number of mutual nearest neighbours
    accuracy:             share of matches within 1, 2, ..., 15 px (inclusive); all 0 without matches
    corner_error_px:      mean corner error under the protocol's homography estimator; inf if estimation
                          failed
    repeatability:        share of covisible keypoints with a counterpart within 3 px; 0 if none is covisible
    matching_score:       correct matches between covisible keypoints per covisible keypoint
    """

    sequence: str
    k: int
    features0: int
    features1: int
    matches: int
    accuracy: tuple[float, ...]
    corner_error_px: float
    repeatability: float = 0.0
    matching_score: float = 0.0

    def __post_init__(self) -> None:
        if len(self.accuracy) != len(THRESHOLDS_PX):
            raise ShapeError(f"accuracy: expected {len(THRESHOLDS_PX)} values, got {len(self.accuracy)}")

    @property
    def split(self) -> Split:
        """`illumination` for sequences named i_*, else `viewpoint`."""
        return "illumination" if self.sequence.startswith("i_") else "viewpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class HPatchesResult:
    """All pairs of one method; sequences in sorted order, k = 2..6 within a sequence.

    label:           name in tables
    features_digest: digest of the features file that these numbers come from
    image_features:  number of keypoints per image: image 1..6 of the first sequence, then of the next
    """

    label: str
    protocol: HPatchesProtocol
    features_digest: str
    image_features: tuple[int, ...]
    pairs: tuple[PairResult, ...]

    def pairs_of(self, split: Split) -> tuple[PairResult, ...]:
        """The pairs of one split, in order."""
        return tuple(pair for pair in self.pairs if split in ("all", pair.split))

    def sequences_of(self, split: Split) -> tuple[str, ...]:
        """Names of the sequences of one split, in order."""
        return tuple(dict.fromkeys(pair.sequence for pair in self.pairs_of(split)))

    def mma(self, split: Split = "all") -> Float:
        """Mean matching accuracy at 1..15 px, (15,) float64.

        It is a mean of per-pair means, not pooled over matches; nan for an empty split.
        """
        pairs = self.pairs_of(split)
        if not pairs:
            return np.full(len(THRESHOLDS_PX), np.nan)
        return np.asarray(np.mean([pair.accuracy for pair in pairs], axis=0, dtype=np.float64))

    def mma_interval(self, split: Split = "all") -> Float:
        """Bootstrap interval of `mma` over sequences, (2, 15) float64: lower, upper.

        nan for fewer than two sequences.
        """
        interval = self._interval(split)
        return interval[:, : len(THRESHOLDS_PX)]

    def score(self, split: Split = "all") -> float:
        """MMAscore of one split; nan for an empty split."""
        return mma_score(self.mma(split))

    def score_interval(self, split: Split = "all") -> tuple[float, float]:
        """Bootstrap interval of `score` over sequences."""
        low, high = self._interval(split)[:, len(THRESHOLDS_PX)]
        return float(low), float(high)

    def mean_features(self) -> float:
        """Mean number of keypoints over all images (not over pairs); nan without images."""
        return float(np.mean(self.image_features)) if self.image_features else math.nan

    def mean_matches(self, split: Split = "all") -> float:
        """Mean number of matches over the pairs of one split; nan for an empty split."""
        return _mean([pair.matches for pair in self.pairs_of(split)])

    def corner_errors_px(self, split: Split = "all") -> Float:
        """Corner error of each pair of one split, (P,) float64, inf where estimation failed."""
        return np.array([pair.corner_error_px for pair in self.pairs_of(split)], dtype=np.float64)

    def summary(self) -> dict[str, Any]:
        """Figures by name, for tables and JSON.

        `label`, `features` (mean per image), `features_digest`, `sequences`, `pairs`, `estimator`, and per
        split that has pairs a dict `all`, `illumination`, `viewpoint` with `pairs`, `matches`, `mma@1` ..
        `mma@10`, `score`, `interval` (figure name -> [low, high], for mma@1, 3, 5, 10 and score; empty for a
        single sequence),
        `homography@N` (share of pairs with corner error <= N px), `homography_auc@N`, `repeatability`,
        `matching_score`.
        """
        head: dict[str, Any] = {
            "label": self.label,
            "features": self.mean_features(),
            "features_digest": self.features_digest,
            "sequences": len(self.sequences_of("all")),
            "pairs": len(self.pairs),
            "estimator": self.protocol.homography.estimator_name,
        }
        return head | {split: self._split_summary(split) for split in SPLITS if self.pairs_of(split)}

    def _split_summary(self, split: Split) -> dict[str, Any]:
        pairs, mma, interval = self.pairs_of(split), self.mma(split), self._interval(split)
        errors, homography = self.corner_errors_px(split), self.protocol.homography
        areas = auc(errors, homography.auc_px)
        columns = [t - 1 for t in HEADLINE_PX] + [len(THRESHOLDS_PX)]
        headline = [f"mma@{t}" for t in HEADLINE_PX] + ["score"]
        return {
            "pairs": len(pairs),
            "matches": self.mean_matches(split),
            **{f"mma@{t}": float(mma[t - 1]) for t in range(1, 11)},
            "score": self.score(split),
            "interval": intervals_by_name(headline, interval[:, columns]),
            **{f"homography@{t:g}": float(np.mean(errors <= t)) for t in homography.correct_px},
            **{f"homography_auc@{t:g}": area for t, area in zip(homography.auc_px, areas, strict=True)},
            "repeatability": _mean([pair.repeatability for pair in pairs]),
            "matching_score": _mean([pair.matching_score for pair in pairs]),
        }

    def _interval(self, split: Split) -> Float:
        """(2, 16): intervals of the 15 accuracies and of the score, from the same resamples."""
        pairs = self.pairs_of(split)
        if not pairs:
            return np.full((2, len(THRESHOLDS_PX) + 1), np.nan)
        row_of = {name: row for row, name in enumerate(self.sequences_of(split))}
        sums = np.zeros((len(row_of), len(THRESHOLDS_PX)))
        counts = np.zeros(len(row_of))
        for pair in pairs:
            sums[row_of[pair.sequence]] += pair.accuracy
            counts[row_of[pair.sequence]] += 1

        def statistic(drawn: npt.NDArray[np.int64]) -> Float:
            curve = sums[drawn].sum(axis=0) / counts[drawn].sum()
            return np.append(curve, mma_score(curve))

        return bootstrap_interval(
            statistic, len(row_of), self.protocol.bootstrap, purpose=f"hpatches/{split}"
        )


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values)) if values else math.nan


def write_result(result: HPatchesResult, path: Path) -> None:
    """Write a result as JSON, atomically."""
    write_result_file(path, LAYOUT, dataclasses.asdict(result))


def read_result(path: Path) -> HPatchesResult:
    """Read what `write_result` wrote.

    Raises DataError naming the file when it is absent or something else.
    """
    body = read_result_file(path, LAYOUT)
    try:
        homography = homography_protocol_from(body["protocol"]["homography"])
        bootstrap = BootstrapConfig(**body["protocol"]["bootstrap"])
        return HPatchesResult(
            label=body["label"],
            protocol=HPatchesProtocol(
                **(body["protocol"] | {"homography": homography, "bootstrap": bootstrap})
            ),
            features_digest=body["features_digest"],
            image_features=tuple(body["image_features"]),
            pairs=tuple(PairResult(**(row | {"accuracy": tuple(row["accuracy"])})) for row in body["pairs"]),
        )
    except (KeyError, TypeError, ShapeError) as error:
        raise incomplete(path, error) from error
