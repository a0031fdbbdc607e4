"""Relative-pose results side by side: a data frame for `table.write_table`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from matchlib.evaluation.pose_result import PoseResult

_LEADING = [
    *("method", "dataset", "protocol", "estimator", "resize", "features_resize", "matcher", "repeats"),
    *("pairs", "matches", "inliers", "precision", "precision_low", "precision_high"),
]
_TRAILING = [
    *("median_deg", "median_rotation_deg", "median_translation_deg", "failed", "missing_images"),
    *(
        "interval_over",
        "pixel_offset",
        "epipolar_threshold",
        "pairs_digest",
        "features_digest",
        "matches_digest",
    ),
]


def pose_table(results: Sequence[PoseResult]) -> pd.DataFrame:
    """One row per result and protocol, in the given order; every row names estimator, threshold and resize.

    Columns: `method`, `dataset`, `protocol`, `estimator` (with threshold and its frame), `resize` (of the protocol),
    `features_resize` (of the features), `matcher`, `repeats`, `pairs`, `matches`, `inliers`, `precision`, `auc@N`,
    each headline figure with `_low` and `_high`, `auc@N_spread` (over repeats), medians in degrees, `failed`,
    `missing_images` (their number), `interval_over`, `pixel_offset` (what was applied to keypoints), and digests. What
    a result cannot say is missing (NaN). Two methods compare where `pairs_digest` and `protocol` are equal.
    """
    rows = [row for result in results for row in _rows(result)]
    areas = list(dict.fromkeys(key for row in rows for key in row if key.startswith("auc@")))
    return pd.DataFrame(rows, columns=[*_LEADING, *areas, *_TRAILING])


def _rows(result: PoseResult) -> list[dict[str, Any]]:
    rows = []
    for run in result.runs:
        protocol, summary = run.protocol, run.summary()
        interval = summary.pop("interval")
        row: dict[str, Any] = {
            "method": result.label,
            "dataset": result.dataset,
            "protocol": protocol.name,
            "estimator": protocol.estimator_name,
            "resize": protocol.resize_name,
            "features_resize": result.features_resize,
            "matcher": result.matcher_name(protocol),
            "repeats": protocol.repeats,
        }
        for key, value in summary.items():
            row[key] = value
            if key in interval:
                row[f"{key}_low"], row[f"{key}_high"] = interval[key]
        rows.append(
            row
            | {"missing_images": len(result.missing_images), "epipolar_threshold": result.epipolar_threshold}
            | {"pixel_offset": result.pixel_offset if protocol.apply_pixel_offset else 0.0}
            | {"pairs_digest": result.pairs_digest, "features_digest": result.features_digest}
            | {"matches_digest": result.matches_digest}
        )
    return rows
