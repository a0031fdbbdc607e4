"""PCK results as a part of the report: a table and curves for each protocol, and what the search costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from matchlib.evaluation.config import SPLITS, Split
from matchlib.evaluation.pck_config import PCKProtocol
from matchlib.evaluation.pck_result import HEADLINE_PX, PCKAblation, PCKResult
from matchlib.visualization.curves import Curve, accuracy_figure
from matchlib.visualization.report import Cell, CellValue, Column, Figure, Row, Section, Table

_NAME = "share of correct keypoints"


def pck_section(results: Sequence[PCKResult], ablations: Sequence[PCKAblation] = ()) -> Section:
    """The section on PCK: one part per protocol, in the order of first occurrence, then the ablation, then digests."""
    names = list(dict.fromkeys(result.protocol.name for result in results))
    by_protocol = [[result for result in results if result.protocol.name == name] for name in names]
    parts = [_protocol_part(name, group) for name, group in zip(names, by_protocol, strict=True)]
    if ablations:
        parts.append(_ablation_part(ablations))
    if results:
        parts.append(Section(title="Origin of the PCK figures", tables=[_provenance_table(results)]))
    return Section(
        title="Descriptors at given points (PCK)",
        text=[
            "No detector is involved: all methods are asked for the same points of image 1, drawn once. A point is "
            "correct if the place of its nearest descriptor in image k lies within the threshold of where the "
            "homography says. PCK is the mean over image pairs of the share of correct points."
        ],
        sections=parts,
    )


# ---------------------------------------------------------------- one protocol
def _protocol_part(name: str, results: Sequence[PCKResult]) -> Section:
    protocols = list(dict.fromkeys(_without_matcher(result) for result in results))
    return Section(
        title=f"Protocol {name}",
        text=[protocol_text(protocol) for protocol in protocols],
        tables=[_table(name, results)],
        figures=[_curves(name, results)],
    )


def protocol_text(protocol: PCKProtocol) -> str:
    """What a protocol fixes, in sentences."""
    strongest = f"the strongest {100 - protocol.harris.percentile:g} % of Harris responses"
    source = strongest if protocol.points_from == "harris" else "all pixels"
    frame = "original size" if protocol.longer_side is None else f"a longer side of {protocol.longer_side} px"
    text = f"Images at {frame}; up to {protocol.points} points per pair from {source} (seed {protocol.seed})."
    if protocol.candidates == "partners":
        text += " Each is compared with the true positions of all points of its pair and with nothing else."
    else:
        step = protocol.grid_step
        text += (
            f" Each is compared with a grid of {step} px over image k, whose nearest point is up to "
            f"{step / 2**0.5:.1f} px off, more at the border: thresholds below that measure the grid too."
        )
    if protocol.truncate:
        text += " True positions are cut to whole pixels, toward zero."
    if protocol.resize_origin == "corner":
        text += " Homographies are scaled about the first pixel, up to half a pixel off the scaled pictures."
    return f"{text} Correct: within {protocol.threshold_px:g} px."


def _table(name: str, results: Sequence[PCKResult]) -> Table:
    groups = _comparable_groups(results)
    order = list(dict.fromkeys(groups))
    rows = [
        Row(cells=_cells(result), group=group)
        for group, result in sorted(zip(groups, results, strict=True), key=lambda pair: order.index(pair[0]))
    ]
    headline = [
        Column(name=split, group="PCK at the protocol's threshold", best="highest") for split in SPLITS
    ]
    confidences = sorted({f"{100 * result.protocol.bootstrap.confidence:g} %" for result in results})
    thresholds = [Column(name=f"@{t:g} px", group="PCK, all pairs", best="highest") for t in HEADLINE_PX]
    columns = [
        Column(name="method"),
        *headline,
        *thresholds,
        Column(name="members", help="descriptors per point; sets are as near as their nearest members"),
        Column(name="search"),
        Column(name="points", help="mean number of query points per pair", decimals=0),
    ]
    return Table(
        columns=columns,
        rows=rows,
        caption=f"PCK, protocol {name}. Small numbers: {' and '.join(confidences)} bootstrap interval over "
        "sequences. The best of each group is highlighted; groups were measured on different pairs or points, "
        "or are oracles.",
    )


def _cells(result: PCKResult) -> list[CellValue]:
    cells: list[CellValue] = [_label(result)]
    summary = result.summary()
    cells += [_cell(summary.get(split, {}), "pck") for split in SPLITS]
    whole = summary.get("all", {})
    cells += [_cell(whole, f"pck@{t:g}") for t in HEADLINE_PX]
    return [*cells, " + ".join(result.members), result.protocol.matcher, whole.get("points")]


def _cell(figures: dict[str, object], name: str) -> CellValue:
    value, intervals = figures.get(name), figures.get("interval")
    if not isinstance(value, float):
        return None
    low, high = intervals.get(name, (None, None)) if isinstance(intervals, dict) else (None, None)
    return Cell(value=value, low=low, high=high)


def _comparable_groups(results: Sequence[PCKResult]) -> list[str]:
    """Title of each result's group: same settings but for the search, same points, oracles apart."""
    titles: dict[tuple[PCKProtocol, str, bool], str] = {}
    for result in results:
        key = (_without_matcher(result), result.points_digest, result.uses_truth)
        sequences = len({pair.sequence for pair in result.pairs})
        title = f"{sequences} {'sequence' if sequences == 1 else 'sequences'}, {len(result.pairs)} pairs"
        title += "; oracles, given the true scale" if result.uses_truth else ""
        while key not in titles and title in titles.values():
            title += " (other points)"
        titles.setdefault(key, title)
    return [titles[_without_matcher(result), result.points_digest, result.uses_truth] for result in results]


def _without_matcher(result: PCKResult) -> PCKProtocol:
    return replace(result.protocol, matcher="exact")


def _label(result: PCKResult) -> str:
    marks = ["oracle"] if result.uses_truth else []
    marks += ["FLANN"] if result.protocol.matcher == "flann" else []
    return f"{result.label} ({', '.join(marks)})" if marks else result.label


# ---------------------------------------------------------------- curves
def _curves(name: str, results: Sequence[PCKResult]) -> Figure:
    panels: dict[str, list[Curve]] = {
        split: [_curve(result, split) for result in results if result.pairs_of(split)] for split in SPLITS
    }
    figures = ", ".join(f"{_label(result)} {result.pck():.3f}" for result in results)
    return Figure(
        kind="svg",
        data=accuracy_figure(panels, name=_NAME),
        caption=f"PCK over the error threshold, protocol {name}; bands are the bootstrap intervals over sequences.",
        alt=f"Curves of the {_NAME} over thresholds. At the protocol's threshold, all pairs: {figures}.",
    )


def _curve(result: PCKResult, split: Split) -> Curve:
    low, high = result.interval(split)[:, 1:]
    has_interval = bool(np.isfinite(low).all())
    return Curve(
        label=_label(result),
        thresholds_px=np.array(result.protocol.curve_px, dtype=np.float64),
        accuracy=result.curve(split),
        low=low if has_interval else None,
        high=high if has_interval else None,
    )


# ---------------------------------------------------------------- ablation and provenance
def _ablation_part(ablations: Sequence[PCKAblation]) -> Section:
    columns = [Column(name="method")]
    for split in SPLITS:
        columns += [
            Column(name="exact", group=split),
            Column(name="FLANN", group=split),
            Column(name="lost", group=split, help="PCK, exact minus FLANN"),
            Column(name="same", group=split, help="share of points whose exact nearest FLANN finds"),
        ]
    rows = [
        Row(cells=_ablation_cells(ablation), group=f"Protocol {ablation.exact.protocol.name}")
        for ablation in sorted(ablations, key=lambda ablation: ablation.exact.protocol.name)
    ]
    return Section(
        title="Descriptor or search?",
        text=[
            "The same descriptors at the same points, searched exactly and by OpenCV's FLANN with its defaults (4 "
            "k-d trees, 32 checks); sets of descriptors have no such search. What is lost here is lost by the "
            "search; figures found with FLANN do not compare to figures found exactly."
        ],
        tables=[Table(columns=columns, rows=rows, caption="PCK by exact and by approximate search")],
    )


def _ablation_cells(ablation: PCKAblation) -> list[CellValue]:
    cells: list[CellValue] = [_label(ablation.exact)]
    for split in SPLITS:
        exact = ablation.exact.pck(split)
        flann = math.nan if ablation.flann is None else ablation.flann.pck(split)
        cells += [exact, flann, exact - flann, ablation.agreement(split)]
    return cells


def _provenance_table(results: Sequence[PCKResult]) -> Table:
    rows = [
        Row(cells=[_label(result), result.protocol.name, result.points_digest, result.fingerprint])
        for result in results
    ]
    columns = [
        Column(name="method"),
        Column(name="protocol"),
        Column(name="points digest", code=True),
        Column(name="fingerprint of the method", code=True),
    ]
    return Table(columns=columns, rows=rows, caption="What the PCK figures come from", sortable=False)
