"""Localisation as a part of the report: recall at the thresholds, curves of errors, and the map with its queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from matchlib.errors import ShapeError, check_shape
from matchlib.visualization.model_view import ModelPicture, model_figure
from matchlib.visualization.origins import origins_section
from matchlib.visualization.recall_curves import ErrorPanel, ErrorSample, recall_figure
from matchlib.visualization.report import Cell, CellValue, Column, Figure, Row, Section, Table

Float64 = npt.NDArray[np.float64]
Thresholds = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalisationEntry:
    """One method on the queries of one condition.

    label:      name in the table
    benchmark:  with its protocol, such as "Aachen v1.1, local feature challenge"; protocols do not compare
    condition:  such as "night"
    pixel_offset: what was added to keypoints for COLMAP: 0.5, or the 0 of published challenges
    queries, registered: how many there are, and how many got a pose
    recalls:    (distance, degrees) -> percent of all queries within both, with its interval; empty without truth
    position:   (Q,) distance to the true centre, inf where there is no pose; None without truth
    rotation_deg: (Q,) likewise
    unit:       of distances: "m" for metric scenes
    origins:    digests by name
    """

    label: str
    benchmark: str
    condition: str
    pixel_offset: float
    queries: int
    registered: int
    recalls: Sequence[tuple[float, float, Cell]] = ()
    position: Float64 | None = None
    rotation_deg: Float64 | None = None
    unit: str = "m"
    origins: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        if (self.position is None) != (self.rotation_deg is None):
            raise ShapeError(
                f"{self.label}: expected errors of centre and rotation, or none, got one of them"
            )
        for name, errors in (("position", self.position), ("rotation_deg", self.rotation_deg)):
            if errors is not None:
                check_shape(f"{self.label}: {name}", errors, str(self.queries))
        if not 0 <= self.registered <= self.queries:
            raise ShapeError(f"{self.label}: registered: expected 0 to {self.queries}, got {self.registered}")

    @property
    def group(self) -> str:
        """What the rows of one group share."""
        return f"{self.benchmark}, {self.condition}, {self.queries} queries, pixel offset {self.pixel_offset:g} px"


def localisation_section(entries: Sequence[LocalisationEntry], maps: Sequence[ModelPicture] = ()) -> Section:
    """The section on localisation. Raises ShapeError for entries of one group with other thresholds."""
    groups = list(dict.fromkeys(entry.group for entry in entries))
    by_group = [[entry for entry in entries if entry.group == group] for group in groups]
    tables: dict[tuple[str, Thresholds], list[LocalisationEntry]] = {}
    for group in by_group:
        thresholds = {_thresholds(entry) for entry in group}
        if len(thresholds) > 1:
            raise ShapeError(
                f"{group[0].group}: expected equal thresholds in one group, got {sorted(thresholds)}"
            )
        tables.setdefault((group[0].unit, thresholds.pop()), []).extend(group)
    parts = (
        [Section(title="Maps and queries", figures=[model_figure(picture) for picture in maps])]
        if maps
        else []
    )
    return Section(
        title="Localisation",
        text=[
            "A map is made from images with known poses; queries get their pose from matches with it. A query counts "
            "at a threshold if its centre and its direction both are that close to the truth; one without a pose "
            "counts as wrong. Fixed pairs of a challenge and retrieved pairs are different tasks, and so are pixel "
            "offsets: only rows of one group compare. With 100 queries, one is a whole point."
        ],
        tables=[_table(unit, thresholds, group) for (unit, thresholds), group in tables.items()],
        figures=[_recall(group) for group in by_group if any(entry.position is not None for entry in group)],
        sections=[*parts, *origins_section(entries)],
    )


# ---------------------------------------------------------------- tables
def _thresholds(entry: LocalisationEntry) -> Thresholds:
    return tuple((distance, degrees) for distance, degrees, _ in entry.recalls)


def _table(unit: str, thresholds: Thresholds, entries: Sequence[LocalisationEntry]) -> Table:
    columns = [
        Column(name="method"),
        *(
            Column(name=f"{m:g} {unit}, {d:g}°", group="queries within (%)", decimals=1, best="highest")
            for m, d in thresholds
        ),
        Column(name="registered", decimals=0, best="highest", help="queries that got a pose"),
        Column(name=f"centre ({unit})", group="median error of all queries", best="lowest"),
        Column(name="rotation (°)", group="median error of all queries", decimals=2, best="lowest"),
    ]
    return Table(
        columns=columns,
        rows=[Row(cells=_cells(entry), group=entry.group) for entry in entries],
        caption="Localised queries. Small numbers: intervals. Dashes: no true poses are known here, or the median "
        "query has no pose. The best of each group is highlighted.",
    )


def _cells(entry: LocalisationEntry) -> list[CellValue]:
    medians = [
        float(np.median(errors)) if errors is not None and len(errors) else math.nan
        for errors in (entry.position, entry.rotation_deg)
    ]
    return [entry.label, *(cell for *_, cell in entry.recalls), entry.registered, *medians]


# ---------------------------------------------------------------- figures
def _recall(entries: Sequence[LocalisationEntry]) -> Figure:
    """Each error alone; the table has both together. The axes end at the widest threshold, or at the worst error."""
    known = [entry for entry in entries if entry.position is not None]
    thresholds = _thresholds(entries[0])
    panels = []
    for title, axis, place in (
        ("centre", f"distance ({entries[0].unit})", 0),
        ("direction", "angle (degrees)", 1),
    ):
        samples = [ErrorSample(label=entry.label, errors=_errors(entry, place)) for entry in known]
        marks = [threshold[place] for threshold in thresholds]
        panels.append(
            ErrorPanel(
                title=title, axis=axis, limit=_limit(samples, marks), samples=samples, marks=marks[:-1]
            )
        )
    figures = "; ".join(
        f"{entry.label} "
        + ", ".join(
            f"{cell.value:.1f} % within {m:g} {entry.unit} and {d:g}°" for m, d, cell in entry.recalls
        )
        for entry in known
    )
    return Figure(
        kind="svg",
        data=recall_figure(panels, name="share of queries"),
        caption=f"Share of queries with an error up to the threshold: {entries[0].group}.",
        alt=f"Curves of recall over errors of the camera centre and its direction. {figures}.",
    )


def _errors(entry: LocalisationEntry, place: int) -> Float64:
    errors = (entry.position, entry.rotation_deg)[place]
    return np.zeros(0) if errors is None else errors


def _limit(samples: Sequence[ErrorSample], marks: Sequence[float]) -> float:
    """Where 95 % of the errors of all are drawn, if that is nearer than the widest threshold."""
    finite = np.concatenate([sample.errors[np.isfinite(sample.errors)] for sample in samples])
    reached = float(np.quantile(finite, 0.95)) if len(finite) else 1.0
    return min(max(reached, min(marks, default=0.0), 1e-6), max(marks, default=math.inf))
