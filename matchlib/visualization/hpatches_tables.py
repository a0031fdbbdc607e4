"""Results on HPatches as parts of the report: tables and curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeGuard

import numpy as np

from matchlib.evaluation.config import SPLITS, Split
from matchlib.evaluation.homography_result import HomographyResult
from matchlib.evaluation.hpatches import HPatchesResult
from matchlib.evaluation.published import PublishedResult
from matchlib.visualization.curves import Curve, accuracy_figure
from matchlib.visualization.report import Cell, CellValue, Column, Figure, Row, Table

HEADLINE_PX = (1, 3, 5, 10)
CURVE_PX = 10
HOMOGRAPHY_PX = (1, 3, 5)
_PUBLISHED_108_PAIRS = 540

AnyResult = HPatchesResult | PublishedResult


def hpatches_tables(
    results: Sequence[HPatchesResult], published: Sequence[PublishedResult]
) -> tuple[Table, Table]:
    """The headline table over all pairs, and the table by split. Rows that can be compared form a group."""
    groups = _comparable_groups(results, published)
    order = list(dict.fromkeys(groups.values()))
    both: list[AnyResult] = [*results, *published]
    ordered = sorted(both, key=lambda result: order.index(groups[id(result)]))
    whole = [Row(cells=_whole_cells(result), group=groups[id(result)]) for result in ordered]
    parts = [Row(cells=_split_cells(result), group=groups[id(result)]) for result in ordered]
    return (
        Table(columns=_whole_columns(), rows=whole, caption=_caption(results)),
        Table(
            columns=[Column(name="method"), *_split_columns("illumination"), *_split_columns("viewpoint")],
            rows=parts,
            caption="The same by kind of sequence: illumination (same view, other light) and viewpoint.",
        ),
    )


def homography_table(results: Sequence[HomographyResult]) -> Table:
    """Corner errors under each protocol; rows of one protocol form a group and share its thresholds."""
    rows = [
        Row(
            cells=_homography_cells(result), group=f"{result.protocol.name}: {result.protocol.estimator_name}"
        )
        for result in results
    ]
    correct = [Column(name=f"≤ {t} px", group="share of pairs", best="highest") for t in HOMOGRAPHY_PX]
    area = [Column(name=f"@{t} px", group="AUC of corner error", best="highest") for t in HEADLINE_PX]
    counts = [
        Column(name="matches", decimals=0),
        Column(name="failed", help="pairs without a homography", decimals=0),
    ]
    return Table(
        columns=[Column(name="method"), *correct, *area, *counts],
        rows=rows,
        caption="Homographies by protocol, all pairs. A protocol fixes estimator, threshold and frame; figures of "
        "different protocols do not compare. A dash: not part of the protocol.",
    )


def _homography_cells(result: HomographyResult) -> list[CellValue]:
    found = result.summary().get("all", {})
    interval = found.get("interval", {})
    cells: list[CellValue] = [result.label]
    for name in (*(f"correct@{t}" for t in HOMOGRAPHY_PX), *(f"auc@{t}" for t in HEADLINE_PX)):
        low, high = interval.get(name, (None, None))
        cells.append(Cell(value=found[name], low=low, high=high) if name in found else None)
    return [*cells, found.get("matches"), found.get("failed")]


def hpatches_curves(results: Sequence[HPatchesResult], published: Sequence[PublishedResult]) -> Figure:
    """Mean matching accuracy at 1 to 10 px, ours solid with intervals, published ones dashed."""
    both: list[AnyResult] = [*results, *published]
    panels: dict[str, list[Curve]] = {split: [_curve(result, split) for result in both] for split in SPLITS}
    caption = (
        "Mean matching accuracy over the error threshold; bands are the bootstrap intervals over sequences."
    )
    if published:
        caption += " Dashed: published results on the 108 sequences"
        same_set = all(result.protocol.sequences == "108" for result in results)
        caption += (
            "."
            if same_set
            else ", other images than those of this run: not to be compared with solid curves."
        )
    ours = ", ".join(f"{result.label} {result.mma('all')[2]:.3f}" for result in results)
    return Figure(
        kind="svg",
        data=accuracy_figure(panels),
        caption=caption,
        alt=f"Curves of mean matching accuracy at thresholds of 1 to {CURVE_PX} pixels. At 3 pixels: {ours}.",
    )


def _whole_columns() -> list[Column]:
    mma = [_mma_column(threshold, "MMA, all pairs") for threshold in HEADLINE_PX]
    homography = [
        Column(
            name=f"≤ {threshold} px",
            group="Homography",
            help="share of pairs whose estimated homography moves the image corners by at most this much",
            best="highest",
        )
        for threshold in HOMOGRAPHY_PX
    ]
    return [
        Column(name="method"),
        *mma,
        Column(
            name="MMAscore",
            help="weighted mean of MMA at 1 to 10 px; small thresholds weigh more",
            best="highest",
        ),
        Column(name="features", help="mean number of keypoints per image", decimals=0),
        Column(name="matches", help="mean number of mutual nearest neighbours per pair", decimals=0),
        *homography,
    ]


def _split_columns(split: str) -> list[Column]:
    mma = [_mma_column(threshold, f"MMA, {split}") for threshold in HEADLINE_PX]
    return [*mma, Column(name="MMAscore", group=f"MMA, {split}", best="highest")]


def _mma_column(threshold: int, group: str) -> Column:
    return Column(
        name=f"@{threshold} px",
        group=group,
        help=f"mean over pairs of the share of matches within {threshold} px of the truth",
        best="highest",
    )


def _whole_cells(result: AnyResult) -> list[CellValue]:
    correct: list[CellValue] = [None] * len(HOMOGRAPHY_PX)
    if isinstance(result, HPatchesResult):
        errors = result.corner_errors_px()
        correct = [
            float(np.mean(errors <= threshold)) if len(errors) else None for threshold in HOMOGRAPHY_PX
        ]
    counts = [result.mean_features(), result.mean_matches()]
    return [_name(result), *_accuracy_cells(result, "all"), *counts, *correct]


def _split_cells(result: AnyResult) -> list[CellValue]:
    return [_name(result), *_accuracy_cells(result, "illumination"), *_accuracy_cells(result, "viewpoint")]


def _accuracy_cells(result: AnyResult, split: Split) -> list[CellValue]:
    """MMA at the headline thresholds and MMAscore, with intervals where we have the pairs to draw from."""
    mma, score = result.mma(split), result.score(split)
    if not _has_interval(result, split):
        return [*(float(mma[threshold - 1]) for threshold in HEADLINE_PX), score]
    low, high = result.mma_interval(split)
    cells = [
        Cell(value=float(mma[t - 1]), low=float(low[t - 1]), high=float(high[t - 1])) for t in HEADLINE_PX
    ]
    score_low, score_high = result.score_interval(split)
    return [*cells, Cell(value=score, low=score_low, high=score_high)]


def _has_interval(result: AnyResult, split: Split) -> TypeGuard[HPatchesResult]:
    """Whether there are sequences to draw from: one, drawn again and again, would look like certainty."""
    return isinstance(result, HPatchesResult) and len(result.sequences_of(split)) > 1


def _name(result: AnyResult) -> str:
    return f"{result.label} (published)" if isinstance(result, PublishedResult) else result.label


def _caption(results: Sequence[HPatchesResult]) -> str:
    estimators = sorted({result.protocol.homography.estimator_name for result in results})
    confidences = sorted({f"{100 * result.protocol.bootstrap.confidence:g} %" for result in results})
    text = "Mean matching accuracy (MMA) of mutual nearest neighbours, D2-Net protocol."
    if results:
        text += f" Small numbers: {' and '.join(confidences)} bootstrap interval over sequences."
        text += f" Homographies by {'; '.join(estimators)}."
    return text + " The best of each group is highlighted; groups were measured on different images."


def _curve(result: AnyResult, split: Split) -> Curve:
    thresholds = np.arange(1, CURVE_PX + 1, dtype=np.float64)
    low = high = None
    if _has_interval(result, split):
        low, high = result.mma_interval(split)[:, :CURVE_PX]
    return Curve(
        label=_name(result),
        thresholds_px=thresholds,
        accuracy=result.mma(split)[:CURVE_PX],
        low=low,
        high=high,
        published=isinstance(result, PublishedResult),
    )


def _comparable_groups(
    results: Iterable[HPatchesResult], published: Iterable[PublishedResult]
) -> dict[int, str]:
    """id of each result -> title of the group of results that were measured on the same pairs, ours first."""
    titles: dict[tuple[tuple[str, int], ...], str] = {}
    groups: dict[int, str] = {}
    for result in results:
        pairs = tuple((pair.sequence, pair.k) for pair in result.pairs)
        title = _set_title(result)
        while pairs not in titles and title in titles.values():
            title += " (another set)"
        groups[id(result)] = titles.setdefault(pairs, title)
    for other in published:
        count = len(other.pair_matches)
        is_108 = count == _PUBLISHED_108_PAIRS
        groups[id(other)] = "The 108 sequences, 540 pairs" if is_108 else f"Published, {count} pairs"
    return groups


def _set_title(result: HPatchesResult) -> str:
    if result.protocol.sequences == "108":
        return "The 108 sequences, 540 pairs"
    count = len(result.sequences_of("all"))
    return f"{count} {'sequence' if count == 1 else 'sequences'} of this run, {len(result.pairs)} pairs"
