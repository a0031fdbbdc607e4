from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from matchlib.errors import ShapeError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.localisation import LocalisationResult, QueryResult
from matchlib.visualization.localisation_section import LocalisationEntry, localisation_section
from matchlib.visualization.model_view import ModelPicture, ViewCamera
from matchlib.visualization.page import render_page
from matchlib.visualization.report import Cell, Report, Table
from matchlib.visualization.sfm_entries import localisation_entries

THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))


def make_entry(label: str, **changes) -> LocalisationEntry:
    entry = LocalisationEntry(
        label=label,
        benchmark="Aachen v1.1, challenge",
        condition="night",
        pixel_offset=0.5,
        queries=4,
        registered=3,
        recalls=[(*threshold, Cell(value=25.0 * (i + 1))) for i, threshold in enumerate(THRESHOLDS)],
        position=np.array([0.1, 0.4, 4.0, math.inf]),
        rotation_deg=np.array([0.5, 1.0, 8.0, math.inf]),
    )
    return replace(entry, **changes)


def cell_of(table: Table, row: int, column: str) -> object:
    place = next(i for i, c in enumerate(table.columns) if c.name == column)
    return table.rows[row].cells[place]


def test_one_table_for_equal_thresholds_and_groups_for_what_compares():
    entries = [
        make_entry("a"),
        make_entry("b", condition="day"),
        make_entry("c"),
        make_entry("d", pixel_offset=0.0),
    ]
    section = localisation_section(entries)
    (table,) = section.tables
    assert [row.cells[0] for row in table.rows] == ["a", "c", "b", "d"]
    assert len({row.group for row in table.rows}) == 3
    assert cell_of(table, 0, "0.5 m, 5°") == Cell(value=50.0)
    assert cell_of(table, 0, "registered") == 3
    assert cell_of(table, 0, "centre (m)") == pytest.approx(2.2)
    assert len(section.figures) == 3
    assert (
        "50.0 % within 0.5 m and 5°" in section.figures[0].alt and "distance (m)" in section.figures[0].data
    )


def test_other_units_and_thresholds_get_their_own_table():
    units = make_entry("b", benchmark="door", unit="units", recalls=[(0.1, 1.0, Cell(value=10.0))])
    first, second = localisation_section([make_entry("a"), units]).tables
    assert "5 m, 10°" in [c.name for c in first.columns] and "0.1 units, 1°" in [
        c.name for c in second.columns
    ]
    with pytest.raises(ShapeError, match="equal thresholds in one group"):
        localisation_section([make_entry("a"), make_entry("b", recalls=[(1.0, 1.0, Cell(value=1.0))])])


def test_without_truth_only_the_registered_are_counted():
    hidden = make_entry("a", recalls=(), position=None, rotation_deg=None)
    section = localisation_section([hidden])
    assert not section.figures
    assert section.tables[0].rows[0].cells[:2] == ["a", 3] and math.isnan(section.tables[0].rows[0].cells[2])
    with pytest.raises(ShapeError, match="or none, got one"):
        make_entry("a", position=None)
    with pytest.raises(ShapeError, match="a: position: expected shape"):
        make_entry("a", queries=5)
    with pytest.raises(ShapeError, match="expected 0 to 4, got 5"):
        make_entry("a", registered=5)


def test_a_method_that_localises_nothing_is_drawn_and_tabulated():
    nothing = np.full(4, math.inf)
    section = localisation_section([make_entry("a", registered=0, position=nothing, rotation_deg=nothing)])
    page = render_page(Report(title="t", sections=[section]))
    assert "inf" not in section.tables[0].caption and "–" in page


def test_the_map_shows_estimated_and_true_poses():
    def camera(name: str, kind: str) -> ViewCamera:
        K = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
        return ViewCamera(name=name, K=K, size=(100, 100), T_world_to_cam=np.eye(4), kind=kind)

    picture = ModelPicture(
        title="sift, door",
        points=np.random.default_rng(0).normal(size=(30, 3)),
        colours=np.zeros((30, 3), np.uint8),
        cameras=[camera("m", "mapped"), camera("q", "registered"), camera("q", "truth")],
    )
    section = localisation_section([make_entry("a", origins=[("features", "d" * 64)])], [picture])
    maps, origin = section.sections
    (figure,) = maps.figures
    assert figure.kind == "model"
    assert figure.alt == "sift, door: 1 images of the map, 1 registered queries, 1 true poses"
    assert figure.caption == "sift, door. 30 points. Lines join registered queries with their true poses."
    assert origin.tables[0].rows[0].cells == ["a", "features", "d" * 64]
    page = render_page(Report(title="t", sections=[section]))
    assert page.count('class="model-view"') == 1 and "registered queries" in page


def test_entries_of_a_result_carry_its_own_figures():
    def query(name: str, condition: str, position: float | None, angle: float | None, inliers: int | None):
        return QueryResult(
            name=name, condition=condition, inliers=inliers, position=position, rotation_deg=angle
        )

    result = LocalisationResult(
        label="sift",
        dataset="aachen",
        way="challenge",
        pixel_offset=0.5,
        thresholds=THRESHOLDS,
        bootstrap=BootstrapConfig(resamples=50),
        features_digest="f" * 64,
        queries=(
            query("1", "day", None, None, 50),
            query("2", "night", 0.3, 1.0, 40),
            query("3", "night", math.inf, math.inf, None),
        ),
    )
    day, night = localisation_entries(result)
    assert (day.condition, day.queries, day.registered, list(day.recalls), day.position) == (
        "day",
        1,
        1,
        [],
        None,
    )
    assert (night.queries, night.registered) == (2, 1)
    assert [cell.value for *_, cell in night.recalls] == [0.0, 50.0, 50.0]
    shown = localisation_section([day, night])
    assert len(shown.tables) == 2 and len(shown.figures) == 1
