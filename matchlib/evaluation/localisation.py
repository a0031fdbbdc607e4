"""What a localisation gives: errors per query of known pose, shares within thresholds, the file to submit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from matchlib.datasets.aachen import HELD_OUT, AachenDataset, write_pose_list
from matchlib.errors import DataError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.localisation_config import LocalisationProtocol
from matchlib.evaluation.metrics import Float, bootstrap_interval
from matchlib.evaluation.result_files import incomplete, read_layout, write_layout
from matchlib.evaluation.table import write_table
from matchlib.sfm.poses import Registered
from matchlib.sfm.registration import read_registered
from matchlib.sfm.statistics import angle_deg, centres_of

LAYOUT = "matchlib-localisation-1"
RESULT, TABLE = "result.json", "table"
_SUBMISSIONS = {"aachen": "Aachen_eval", "aachen_v1_1": "Aachen_v1_1_eval"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """One query.

    inliers:      2D-3D matches that agree with its pose; None: not localised
    position:     distance of the camera centre to the true one, in scene units; inf: not localised; None: truth unknown
    rotation_deg: angle to the true rotation, likewise
    """

    name: str
    condition: str
    inliers: int | None
    position: float | None
    rotation_deg: float | None

    @property
    def is_localised(self) -> bool:
        """It has a pose, right or wrong."""
        return self.inliers is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalisationResult:
    """All queries of one method on one dataset.

    label:           name in tables
    way:             the protocol in a few words, see `LocalisationProtocol.description`
    pixel_offset:    what was added to keypoints on the way to COLMAP
    features_digest: of the features file that these numbers come from
    """

    label: str
    dataset: str
    way: str
    pixel_offset: float
    thresholds: tuple[tuple[float, float], ...]
    bootstrap: BootstrapConfig
    features_digest: str
    queries: tuple[QueryResult, ...]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditions in order of first query."""
        return tuple(dict.fromkeys(query.condition for query in self.queries))

    def queries_of(self, condition: str) -> tuple[QueryResult, ...]:
        """Queries of one condition."""
        return tuple(query for query in self.queries if query.condition == condition)

    def errors(self, condition: str) -> tuple[Float, Float] | None:
        """Distances (Q,) and angles in degrees (Q,), inf for queries without a pose; None if a truth is unknown."""
        queries = self.queries_of(condition)
        position = [query.position for query in queries if query.position is not None]
        rotation = [query.rotation_deg for query in queries if query.rotation_deg is not None]
        if not queries or len(position) < len(queries):
            return None
        return np.array(position), np.array(rotation)

    def shares(self, condition: str) -> Float | None:
        """Share of queries within each threshold, (T,), both errors at most; queries without a pose count as failed."""
        errors = self.errors(condition)
        return None if errors is None else within(*errors, self.thresholds).mean(axis=0)

    def interval(self, condition: str) -> Float | None:
        """Bootstrap interval of `shares` over queries, (2, T); nan for a single query."""
        errors = self.errors(condition)
        if errors is None:
            return None
        hits = within(*errors, self.thresholds)
        return bootstrap_interval(
            lambda drawn: hits[drawn].mean(axis=0),
            len(hits),
            self.bootstrap,
            purpose=f"localisation/{self.dataset}/{condition}",
        )

    def summary(self) -> list[dict[str, Any]]:
        """One row per condition: `condition`, `queries`, `localised`, `inliers` (median of the localised; missing if
        there is none), and where the truth is known `within@D/A` with `_low` and `_high`, `median_position`,
        `median_rotation_deg` (over all queries; missing if fewer than half have a pose)."""
        rows = []
        for condition in self.conditions:
            queries = self.queries_of(condition)
            inliers = [query.inliers for query in queries if query.inliers is not None]
            row: dict[str, Any] = {
                "condition": condition,
                "queries": len(queries),
                "localised": len(inliers),
                "inliers": float(np.median(inliers)) if inliers else None,
            }
            rows.append(row | self._accuracy(condition))
        return rows

    def _accuracy(self, condition: str) -> dict[str, float | None]:
        errors, shares, interval = self.errors(condition), self.shares(condition), self.interval(condition)
        if errors is None or shares is None or interval is None:
            return {}
        figures: dict[str, float | None] = {}
        for (distance, angle), share, low, high in zip(self.thresholds, shares, *interval, strict=True):
            key = f"within@{distance:g}/{angle:g}"
            figures |= {key: float(share), f"{key}_low": _finite(low), f"{key}_high": _finite(high)}
        medians = (float(np.median(error)) for error in errors)
        return figures | dict(
            zip(("median_position", "median_rotation_deg"), map(_finite, medians), strict=True)
        )


def within(
    position_Q: Float, rotation_deg_Q: Float, thresholds: Sequence[tuple[float, float]]
) -> npt.NDArray[np.bool_]:
    """(Q, T): whether both errors of a query are at most those of a threshold."""
    limits = np.asarray(thresholds, dtype=np.float64)
    return (position_Q[:, None] <= limits[:, 0]) & (rotation_deg_Q[:, None] <= limits[:, 1])


def pose_errors(T_found: Float, T_true: Float) -> tuple[float, float]:
    """Distance of the camera centres in scene units, and angle between the rotations in degrees, of (4, 4) poses."""
    distance = np.linalg.norm(centres_of(T_found) - centres_of(T_true))
    return float(distance), float(angle_deg(T_found[:3, :3], T_true[:3, :3]))


# ---------------------------------------------------------------- scoring
def score_localisation(
    dataset: AachenDataset,
    poses: Mapping[str, Registered | None],
    protocol: LocalisationProtocol,
    *,
    label: str,
    features_digest: str = "",
) -> LocalisationResult:
    """Errors of the queries in `poses`. Raises DataError for images that are no queries of the (prepared) task."""
    conditions = {name: key for key, cameras in dataset.queries.items() for name in cameras}
    if foreign := sorted(set(poses) - set(conditions)):
        raise DataError(f"{dataset.name}: poses of images that are no queries: {', '.join(foreign[:5])}")
    rows = []
    for name in sorted(poses, key=lambda name: (list(dataset.queries).index(conditions[name]), name)):
        pose, truth = poses[name], dataset.truth.get(name)
        position = rotation = None if truth is None else math.inf
        if pose is not None and truth is not None:
            position, rotation = pose_errors(pose.T_world_to_cam, truth)
        rows.append(
            QueryResult(
                name=name,
                condition=conditions[name],
                inliers=None if pose is None else pose.inliers,
                position=position,
                rotation_deg=rotation,
            )
        )
    return LocalisationResult(
        label=label,
        dataset=dataset.name,
        way=protocol.description,
        pixel_offset=protocol.pixel_offset,
        thresholds=protocol.thresholds,
        bootstrap=protocol.bootstrap,
        features_digest=features_digest,
        queries=tuple(rows),
    )


def score_job(
    dataset: AachenDataset,
    poses: Path,
    out: Path,
    protocol: LocalisationProtocol,
    *,
    label: str,
    features_digest: str = "",
) -> LocalisationResult:
    """Score what `register_job` left in the folder `poses`; write `result.json`, `table.csv`, `table.json` and, for
    queries that were not held out, the file to submit."""
    registered = read_registered(poses)
    result = score_localisation(dataset, registered, protocol, label=label, features_digest=features_digest)
    if HELD_OUT not in result.conditions:
        write_submission(out / submission_name(dataset.name, label), registered)
    write_table(localisation_table([result]), out / TABLE)
    write_localisation(out / RESULT, result)
    return result


def submission_name(dataset: str, label: str) -> str:
    """File name as the benchmark's scripts give it, e.g. `Aachen_eval_[sift].txt`."""
    safe = "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in label)
    return f"{_SUBMISSIONS.get(dataset, f'{dataset}_eval')}_[{safe}].txt"


def write_submission(path: Path, poses: Mapping[str, Registered | None]) -> int:
    """Write one line `basename qw qx qy qz tx ty tz` (world to camera) per localised query, sorted by name.

    Queries without a pose have no line and count as failed. Returns the number of lines. Raises DataError if two
    queries have the same name in different folders: the format cannot tell them apart.
    """
    lines: dict[str, Float] = {}
    for name, pose in sorted(poses.items()):
        if pose is None:
            continue
        basename = PurePosixPath(name).name
        if basename in lines:
            raise DataError(f"{path}: several queries are named '{basename}'; submit each folder by itself")
        lines[basename] = pose.T_world_to_cam
    write_pose_list(path, lines)
    return len(lines)


# ---------------------------------------------------------------- files
def localisation_table(results: Sequence[LocalisationResult]) -> pd.DataFrame:
    """One row per result and condition: `method`, `dataset`, `way`, what `LocalisationResult.summary` gives,
    `features_digest`. Rows with different `way` do not compare."""
    rows = [
        {"method": result.label, "dataset": result.dataset, "way": result.way}
        | row
        | {"features_digest": result.features_digest}
        for result in results
        for row in result.summary()
    ]
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    return pd.DataFrame(rows, columns=columns)


def write_localisation(path: Path, result: LocalisationResult) -> None:
    """Write a result as JSON, atomically; infinite errors become null, an unknown truth is said by `has_truth`."""
    body = asdict(result)
    for row in body["queries"]:
        row["has_truth"] = row["position"] is not None
        for key in ("position", "rotation_deg"):
            row[key] = None if row[key] is None else _finite(row[key])
    write_layout(path, LAYOUT, body)


def read_localisation(path: Path) -> LocalisationResult:
    """What `write_localisation` wrote. Raises DataError."""
    body = read_layout(path, LAYOUT)
    try:
        queries = []
        for row in body["queries"]:
            if row.pop("has_truth"):
                row |= {key: math.inf for key in ("position", "rotation_deg") if row[key] is None}
            queries.append(QueryResult(**row))
        fields = body | {
            "queries": tuple(queries),
            "bootstrap": BootstrapConfig(**body["bootstrap"]),
            "thresholds": tuple((distance, angle) for distance, angle in body["thresholds"]),
        }
        return LocalisationResult(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise incomplete(path, error) from error


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
