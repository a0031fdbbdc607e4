"""PCK results side by side: data frames for `table.write_table`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from matchlib.evaluation.config import SPLITS
from matchlib.evaluation.pck_result import HEADLINE_PX, PCKAblation, PCKResult

_FIGURES = ["pck", *(f"pck@{t:g}" for t in HEADLINE_PX)]
_RESULT_COLUMNS = [
    *("method", "protocol", "candidates", "matcher", "members", "member_pairs", "uses_truth", "threshold_px"),
    *("split", "pairs", "left_out", "points"),
    *(column for name in _FIGURES for column in (name, f"{name}_low", f"{name}_high")),
    *("points_digest", "fingerprint"),
]
_ABLATION_COLUMNS = [
    *("method", "protocol", "candidates", "threshold_px", "uses_truth", "split", "pairs", "matcher"),
    *("pck", "pck_low", "pck_high", "same_index", "points_digest", "fingerprint"),
]


def pck_table(results: Sequence[PCKResult]) -> pd.DataFrame:
    """One row per result and split, in the given order.

    Columns: `method`, `protocol`, `candidates`, `matcher`, `members` ("fine + coarse"), `member_pairs`,
    `uses_truth` ("oracle" or "no"), `threshold_px`, `split`, `pairs`, `left_out` (pairs of the whole set that
    have no query points), `points` (mean per pair), `pck` at the protocol's threshold and `pck@1`, `pck@3`,
    `pck@5`, `pck@10`, each with `_low` and `_high` beside it, `points_digest`, `fingerprint`. Missing (NaN):
    thresholds outside the curve, intervals of a single sequence.
    """
    rows = [
        _head(result)
        | {"members": " + ".join(result.members), "member_pairs": result.member_pairs}
        | {"split": split, "left_out": len(result.left_out)}
        | _with_intervals(figures)
        for result in results
        for split, figures in result.summary().items()
    ]
    return pd.DataFrame(rows, columns=_RESULT_COLUMNS)


def pck_ablation_table(ablations: Sequence[PCKAblation]) -> pd.DataFrame:
    """Two rows per ablation and split, exact and FLANN (sets: exact only): same descriptors, same points.

    `same_index` is the share of queries for which the search finds the exact nearest candidate (1 for exact);
    the other columns are as in `pck_table`.
    """
    rows = []
    for ablation in ablations:
        summaries = [(result, result.summary()) for result in ablation.results]
        for split in SPLITS:
            for result, summary in summaries:
                if split in summary:
                    agreement = ablation.agreement(split) if result is ablation.flann else 1.0
                    row = _head(result) | {"split": split, "same_index": agreement}
                    rows.append(row | _with_intervals(summary[split]))
    return pd.DataFrame(rows, columns=_ABLATION_COLUMNS)


def _head(result: PCKResult) -> dict[str, Any]:
    protocol = result.protocol
    return {
        "method": result.label,
        "protocol": protocol.name,
        "candidates": protocol.candidates_name,
        "matcher": protocol.matcher,
        "uses_truth": "oracle" if result.uses_truth else "no",
        "threshold_px": protocol.threshold_px,
        "points_digest": result.points_digest,
        "fingerprint": result.fingerprint,
    }


def _with_intervals(figures: dict[str, Any]) -> dict[str, Any]:
    """The nested `interval` as columns `<figure>_low` and `<figure>_high`."""
    flat = {name: value for name, value in figures.items() if name != "interval"}
    for name, (low, high) in figures["interval"].items():
        flat |= {f"{name}_low": low, f"{name}_high": high}
    return flat
