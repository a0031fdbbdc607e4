"""What a relative-pose evaluation gives: a row per pair and protocol, figures from them, one JSON file. NumPy only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matchlib.errors import ConfigError, ShapeError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.metrics import Float, auc, bootstrap_interval, intervals_by_name
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.evaluation.result_files import incomplete, read_layout, write_layout

LAYOUT = "matchlib-pose-1"
MIN_SCENES = 10
"""Scenes that `bootstrap_over: auto` needs to draw scenes: two scenes have three resamples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPose:
    """One pair under one protocol.

    matches:   matches given to the estimator; they are counted even if they are too few for it
    precision: share of them whose epipolar distance is below the list's threshold; 0 without matches, None where the
               cameras share a centre, which leaves no epipolar geometry
    inliers, rotation_errors_deg, translation_errors_deg: one per repeat; errors are infinite where no pose was found
    """

    name0: str
    name1: str
    scene: str
    matches: int
    precision: float | None
    inliers: tuple[int, ...]
    rotation_errors_deg: tuple[float, ...]
    translation_errors_deg: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = {len(self.inliers), len(self.rotation_errors_deg), len(self.translation_errors_deg)}
        if len(counts) != 1 or 0 in counts:
            raise ShapeError(
                f"{self.name0} {self.name1}: expected one value per repeat, got {sorted(counts)} values"
            )

    @property
    def pose_errors_deg(self) -> tuple[float, ...]:
        """The larger of both errors, per repeat."""
        return tuple(map(max, self.rotation_errors_deg, self.translation_errors_deg))

    @property
    def pose_error_deg(self) -> float:
        """The median of the repeats, to order pairs by; infinite if half of them failed."""
        return float(np.quantile(self.pose_errors_deg, 0.5, method="higher"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseRun:
    """All pairs of a list under one protocol, in order."""

    protocol: PoseProtocol
    pairs: tuple[PairPose, ...]

    def errors_deg(self) -> Float:
        """Pose errors (P, repeats) float64; failures are what the protocol counts them as."""
        errors = np.array([pair.pose_errors_deg for pair in self.pairs], dtype=np.float64)
        failure = math.inf if self.protocol.failure_deg is None else self.protocol.failure_deg
        return np.where(np.isfinite(errors), errors, failure)

    def auc(self) -> tuple[float, ...]:
        """Area under the recall curve at each of the protocol's thresholds, as a share (0 to 1), over all repeats."""
        return auc(self.errors_deg().ravel(), self.protocol.auc_deg)

    def auc_spread(self) -> tuple[float, ...]:
        """Standard deviation of the areas of single repeats: what chance in sampling does. nan for one repeat."""
        errors = self.errors_deg()
        if errors.shape[1] < 2:
            return (math.nan,) * len(self.protocol.auc_deg)
        areas = np.array([auc(repeat, self.protocol.auc_deg) for repeat in errors.T])
        return tuple(areas.std(axis=0, ddof=1).tolist())

    @property
    def interval_over(self) -> str:
        """What is drawn for intervals: `pairs` or `scenes`."""
        over = self.protocol.bootstrap_over
        if over != "auto":
            return over
        return "scenes" if len({pair.scene for pair in self.pairs}) >= MIN_SCENES else "pairs"

    def summary(self) -> dict[str, Any]:
        """Figures by name, for tables and JSON.

        `pairs`, `matches`, `inliers` (means), `precision` (mean), `auc@N` and, with repeats, `auc@N_spread`,
        `median_deg`, `median_rotation_deg`, `median_translation_deg` (nan if half of the pairs fail), `failed` (pairs
        without a pose in at least one repeat), `interval_over`, and `interval` (figure name -> [low, high]).
        """
        names = ["precision", *(f"auc@{t:g}" for t in self.protocol.auc_deg)]
        spread = {
            f"auc@{t:g}_spread": s for t, s in zip(self.protocol.auc_deg, self.auc_spread(), strict=True)
        }
        rotation = np.array([pair.rotation_errors_deg for pair in self.pairs])
        translation = np.array([pair.translation_errors_deg for pair in self.pairs])
        return {
            "pairs": len(self.pairs),
            "matches": float(np.mean([pair.matches for pair in self.pairs])),
            "inliers": float(np.mean([pair.inliers for pair in self.pairs])),
            **dict(zip(names, (_mean(self._precision()), *self.auc()), strict=True)),
            **(spread if self.protocol.repeats > 1 else {}),
            "median_deg": _median(np.maximum(rotation, translation)),
            "median_rotation_deg": _median(rotation),
            "median_translation_deg": _median(translation),
            "failed": int((~np.isfinite(rotation)).any(axis=1).sum()),
            "interval_over": self.interval_over,
            "interval": intervals_by_name(names, self._interval()),
        }

    def _precision(self) -> Float:
        """(P,), nan where it is not defined."""
        return np.array([math.nan if pair.precision is None else pair.precision for pair in self.pairs])

    def _interval(self) -> Float:
        """(2, 1 + T): intervals of the mean precision and of the areas, from the same resamples."""
        errors, precision = self.errors_deg(), self._precision()
        over_scenes = self.interval_over == "scenes"
        units = [pair.scene for pair in self.pairs] if over_scenes else list(range(len(self.pairs)))
        unit_of = np.unique(units, return_inverse=True)[1]
        rows_of = np.split(np.argsort(unit_of, kind="stable"), np.cumsum(np.bincount(unit_of))[:-1])

        def figures(drawn: npt.NDArray[np.int64]) -> Float:
            rows = np.concatenate([rows_of[unit] for unit in drawn])
            return np.array([_mean(precision[rows]), *auc(errors[rows].ravel(), self.protocol.auc_deg)])

        # Addressed by what is drawn alone: methods and protocols are compared over the same draws.
        return bootstrap_interval(
            figures, len(rows_of), self.protocol.bootstrap, purpose=f"pose/{self.interval_over}"
        )


def _mean(values: Float) -> float:
    """Mean of what is not nan; nan for nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _median(errors: Float) -> float:
    value = float(np.quantile(errors, 0.5, method="higher"))
    return value if math.isfinite(value) else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseResult:
    """One features file on one list of pairs, under one or more protocols.

    label:           name in tables
    dataset:         name of the list of pairs; pairs_digest: of its pairs and conventions
    pixel_offset, epipolar_threshold: as in `PosePairSet`
    features_digest: of the features file; features_resize: what its images were resized to, as far as it says
    matcher, matches_digest: of the matches that were given; None: mutual nearest neighbours, made in the evaluation
    missing_images:  images of the list without features; their pairs count as failed
    """

    label: str
    dataset: str
    pairs_digest: str
    pixel_offset: float
    epipolar_threshold: float
    features_digest: str
    features_resize: str
    matcher: str | None
    matches_digest: str | None
    missing_images: tuple[str, ...]
    runs: tuple[PoseRun, ...]

    def matcher_name(self, protocol: PoseProtocol) -> str:
        """The matcher behind one of the runs as it stands in tables, e.g. `mutual nearest, ratio 0.8`."""
        if self.matcher is not None:
            return self.matcher
        return "mutual nearest" if protocol.ratio is None else f"mutual nearest, ratio {protocol.ratio:g}"

    def run(self, protocol: str) -> PoseRun:
        """The run of a protocol by name. Raises ConfigError listing those there are."""
        for run in self.runs:
            if run.protocol.name == protocol:
                return run
        known = ", ".join(run.protocol.name for run in self.runs)
        raise ConfigError(f"no run of protocol '{protocol}' (there are: {known})")


# ---------------------------------------------------------------- files
_ERRORS = ("rotation_errors_deg", "translation_errors_deg")


def write_pose_result(result: PoseResult, path: Path) -> None:
    """Write a result as JSON, atomically. Equal results give equal bytes. Infinite errors become null."""
    body = dataclasses.asdict(result)
    for run in body["runs"]:
        for row in run["pairs"]:
            row |= {key: [_finite_or_none(error) for error in row[key]] for key in _ERRORS}
    write_layout(path, LAYOUT, body)


def read_pose_result(path: Path) -> PoseResult:
    """Read what `write_pose_result` wrote. Raises DataError naming the file."""
    body = read_layout(path, LAYOUT)
    try:
        runs = tuple(
            PoseRun(
                protocol=_protocol_from(run["protocol"]),
                pairs=tuple(_pair_from(row) for row in run["pairs"]),
            )
            for run in body["runs"]
        )
        return PoseResult(**(body | {"missing_images": tuple(body["missing_images"]), "runs": runs}))
    except (KeyError, TypeError, ShapeError, ConfigError) as error:
        raise incomplete(path, error) from error


def _protocol_from(body: Mapping[str, Any]) -> PoseProtocol:
    values = {"auc_deg": tuple(body["auc_deg"]), "bootstrap": BootstrapConfig(**body["bootstrap"])}
    return PoseProtocol(**(dict(body) | values))


def _pair_from(row: Mapping[str, Any]) -> PairPose:
    errors = {key: tuple(math.inf if e is None else e for e in row[key]) for key in _ERRORS}
    return PairPose(**(dict(row) | errors | {"inliers": tuple(row["inliers"])}))


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
