from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from matchlib.evaluation.reconstruction import ReconstructionResult, ReconstructionRun
from matchlib.evaluation.reconstruction_config import ReconstructionProtocol
from matchlib.sfm.statistics import ModelStatistics
from matchlib.visualization.model_view import ModelPicture
from matchlib.visualization.page import render_page
from matchlib.visualization.reconstruction_section import ReconstructionEntry, reconstruction_section
from matchlib.visualization.report import Cell, Report, Table, number_of
from matchlib.visualization.sfm_entries import reconstruction_entry


def make_entry(label: str, **changes) -> ReconstructionEntry:
    entry = ReconstructionEntry(
        label=label,
        scene="Fountain",
        images=11,
        registered_images=11,
        points=14722,
        observations=70631,
        mean_track_length=4.79765,
        mean_observations_per_image=6421.0,
        mean_reprojection_error_px=0.392893,
        verified_pairs=55,
        inlier_matches=127734,
    )
    return replace(entry, **changes)


def result_of(*runs: ReconstructionRun) -> ReconstructionResult:
    return ReconstructionResult(
        label="sift",
        scene="Fountain",
        protocol=ReconstructionProtocol(),
        features_digest="f" * 64,
        images=11,
        pairs=55,
        matched_pairs=50,
        matches=1000,
        runs=runs,
    )


def cell_of(table: Table, row: int, column: str, group: str = "") -> object:
    place = next(i for i, c in enumerate(table.columns) if c.name == column and c.group == group)
    return table.rows[row].cells[place]


def test_scenes_are_groups_and_truth_adds_columns():
    entries = [make_entry("a"), make_entry("b", scene="Herzjesu"), make_entry("c", dense_points=292609.0)]
    (table,) = reconstruction_section(entries).tables
    assert [(row.cells[0], row.group) for row in table.rows] == [
        ("a", "Fountain"),
        ("c", "Fountain"),
        ("b", "Herzjesu"),
    ]
    assert cell_of(table, 0, "points", "sparse") == 14722
    assert (
        cell_of(table, 0, "points", "dense") == "not computed"
        and cell_of(table, 1, "points", "dense") == 292609
    )
    assert "median pose error" not in [column.group for column in table.columns]
    (table,) = reconstruction_section(
        [*entries, make_entry("d", centre_error=0.01, rotation_error_deg=0.2)]
    ).tables
    assert cell_of(table, 2, "centre", "median pose error") == 0.01
    assert cell_of(table, 0, "centre", "median pose error") is None


def test_a_failed_reconstruction_does_not_win_by_its_zero_error():
    empty = ModelStatistics(
        images=11,
        registered_images=0,
        points=0,
        observations=0,
        mean_track_length=None,
        mean_observations_per_image=None,
        mean_reprojection_error_px=None,
        verified_pairs=0,
        inlier_matches=0,
        models=0,
    )
    failed = replace(
        reconstruction_entry(result_of(ReconstructionRun(seed=0, statistics=empty))), scene="Fountain"
    )
    page = render_page(Report(title="t", sections=[reconstruction_section([failed, make_entry("b")])]))
    (table,) = reconstruction_section([failed, make_entry("b")]).tables
    for name, group in (("track length", "sparse"), ("per image", "sparse"), ("error (px)", "reprojection")):
        assert number_of(cell_of(table, 0, name, group)) is None
    assert [number_of(cell_of(table, 0, "registered", "images")), cell_of(table, 0, "all", "images")] == [
        0,
        11,
    ]
    assert '<strong title="best of its group">0.393</strong>' not in page, (
        "one alone is not better than anything"
    )
    assert '<strong title="best of its group">11</strong>' in page


def test_models_are_drawn_and_origins_stated():
    picture = ModelPicture(title="m", points=np.eye(3), colours=np.zeros((3, 3), np.uint8), cameras=[])
    section = reconstruction_section([make_entry("a", origins=[("features", "d" * 64)])], [picture])
    models, origin = section.sections
    assert models.figures[0].kind == "model" and origin.tables[0].rows[0].group == "Fountain"
    assert not reconstruction_section([]).tables


def test_the_entry_of_a_result_has_means_and_spreads():
    def run(seed: int, registered: int) -> ReconstructionRun:
        statistics = ModelStatistics(
            images=11,
            registered_images=registered,
            points=100,
            observations=400,
            mean_track_length=4.0,
            mean_observations_per_image=40.0,
            mean_reprojection_error_px=0.5,
            verified_pairs=55,
            inlier_matches=900,
        )
        return ReconstructionRun(seed=seed, statistics=statistics, dense_note="no CUDA")

    result = result_of(run(0, 9), run(1, 11))
    entry = reconstruction_entry(result)
    assert entry.registered_images == Cell(value=10.0, low=10 - math.sqrt(2), high=10 + math.sqrt(2))
    assert entry.dense_points == "no CUDA" and entry.repeats == 2 and entry.centre_error is None
    alone = reconstruction_entry(replace(result, runs=result.runs[:1]))
    assert alone.registered_images == Cell(value=9.0)
    assert reconstruction_section([entry]).tables[0].rows[0].group.startswith("Fountain, ")
