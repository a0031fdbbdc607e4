"""Results side by side: data frames, and the CSV and JSON files that reports and papers quote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from matchlib.completion import atomic_write
from matchlib.evaluation.config import SPLITS
from matchlib.evaluation.homography_result import HomographyResult
from matchlib.evaluation.hpatches import HPatchesResult, PublishedResult

FRACTION_DECIMALS = 4
"""Shares are written as 0.7643: two decimals of a percentage."""
COUNT_DECIMALS = 2
_COUNTS = ("features", "matches")


def hpatches_table(results: Sequence[HPatchesResult | PublishedResult]) -> pd.DataFrame:
    """One row per method and split, in the given order of methods.

    Columns: `method`, `source` (evaluated or published), `split`, `pairs`, `features`, `matches`, `mma@1` ..
    `mma@10`, `score`, each headline figure with `_low` and `_high` beside it, `repeatability`,
    `matching_score`, `homography@N`, `homography_auc@N`, `estimator`, `features_digest`. What a result cannot
    say is missing (NaN).
    """
    rows = []
    for result in results:
        source = "published" if isinstance(result, PublishedResult) else "evaluated"
        summary = result.summary()
        head = {"method": result.label, "source": source}
        tail = {key: summary.get(key) for key in ("estimator", "features_digest")}
        for split in SPLITS:
            if split in summary:
                row = head | {"split": split, "features": summary["features"]} | summary[split]
                rows.append(_with_intervals(row) | tail)
    return _frame(rows, ["method", "source", "split", "pairs", "features", "matches"])


def homography_table(results: Sequence[HomographyResult]) -> pd.DataFrame:
    """One row per method, protocol and split; every row names estimator, threshold and frame.

    Columns: `method`, `protocol`, `estimator`, `split`, `pairs`, `matches`, `failed`, `correct@N`, `auc@N`
    (each with `_low`, `_high`), `features_digest`.
    """
    rows = []
    for result in results:
        summary = result.summary()
        head = {"method": result.label, "protocol": summary["protocol"], "estimator": summary["estimator"]}
        for split in SPLITS:
            if split in summary:
                row = head | {"split": split} | summary[split]
                rows.append(_with_intervals(row) | {"features_digest": summary["features_digest"]})
    return _frame(rows, ["method", "protocol", "estimator", "split", "pairs", "matches", "failed"])


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write `<path>.csv` and `<path>.json` (a list of rows, missing values null).

    Shares are rounded to FRACTION_DECIMALS, counts to COUNT_DECIMALS.
    """
    rounded = table.copy()
    for column in rounded.select_dtypes("float").columns:
        rounded[column] = rounded[column].round(COUNT_DECIMALS if column in _COUNTS else FRACTION_DECIMALS)
    rows = [
        {key: None if pd.isna(value) else value for key, value in row.items()}
        for row in rounded.astype(object).to_dict(orient="records")
    ]
    atomic_write(path.with_name(path.name + ".csv"), rounded.to_csv(index=False, lineterminator="\n"))
    atomic_write(path.with_name(path.name + ".json"), json.dumps(rows, indent=1) + "\n")


def _with_intervals(row: dict[str, Any]) -> dict[str, Any]:
    """Replace the nested `interval` by columns right after the figure each belongs to."""
    interval = row.pop("interval", {})
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat[key] = value
        if key in interval:
            flat[f"{key}_low"], flat[f"{key}_high"] = interval[key]
    return flat


def _frame(rows: list[dict[str, Any]], leading: list[str]) -> pd.DataFrame:
    # The order of columns must not depend on which method comes first: published results lack some of them.
    longest = max(rows, key=len, default={})
    columns = leading + [key for key in longest if key not in leading]
    columns += [key for row in rows for key in row if key not in columns]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))
