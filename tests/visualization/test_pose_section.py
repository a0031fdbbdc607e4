from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from matchlib.errors import DataError, ShapeError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.pose_config import PoseProtocol
from matchlib.evaluation.pose_result import PairPose, PoseResult, PoseRun
from matchlib.visualization.page import render_page
from matchlib.visualization.pose_section import PoseEntry, PosePicture, choose_pairs, pose_section
from matchlib.visualization.report import Cell, Report, Table
from matchlib.visualization.sfm_entries import pose_entries

NAMES = [(f"{i}.jpg", f"{i + 1}.jpg") for i in range(5)]


def make_entry(label: str, errors=(1.0, 8.0, 3.0, math.inf, 2.0), **changes) -> PoseEntry:
    entry = PoseEntry(
        label=label,
        pair_set="MegaDepth-1500",
        estimator="OpenCV RANSAC, 0.5 px",
        resize="long side 1600",
        matcher="mutual nearest",
        auc=[
            (5.0, Cell(value=30.0, low=25.0, high=35.0)),
            (10.0, Cell(value=50.0)),
            (20.0, Cell(value=60.0)),
        ],
        precision=Cell(value=0.8),
        errors_deg=np.array(errors),
        pair_names=NAMES[: len(errors)],
        mean_matches=500.0,
        mean_inliers=300.0,
    )
    return replace(entry, **changes)


def cell_of(table: Table, row: int, column: str, group: str = "") -> object:
    place = next(i for i, c in enumerate(table.columns) if c.name == column and group in c.group)
    return table.rows[row].cells[place]


def test_the_table_says_what_was_measured_and_groups_what_compares():
    other = make_entry("b", estimator="PoseLib, 1 px")
    section = pose_section([make_entry("a"), other, make_entry("c")])
    (table,) = section.tables
    assert [row.cells[0] for row in table.rows] == ["a", "c", "b"]
    assert table.rows[0].group == table.rows[1].group != table.rows[2].group
    assert "OpenCV RANSAC, 0.5 px" in table.rows[0].group and "5 pairs" in table.rows[0].group
    assert cell_of(table, 0, "@5°") == Cell(value=30.0, low=25.0, high=35.0)
    assert cell_of(table, 0, "median") == 3.0 and cell_of(table, 0, "failed") == 1
    recall, histogram = section.figures
    assert "30.0 at 5°" in recall.alt and "OpenCV RANSAC" in recall.data and "PoseLib" in histogram.data


def test_more_failures_than_half_have_no_median():
    (table,) = pose_section([make_entry("a", errors=(1.0, math.inf, math.inf))]).tables
    assert cell_of(table, 0, "median") == math.inf  # shown as a dash
    assert cell_of(table, 0, "failed") == 2


def test_entries_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="thresholds"):
        pose_section([make_entry("a"), make_entry("b", auc=[(3.0, Cell(value=1.0))])])
    with pytest.raises(ShapeError, match="a: errors_deg"):
        make_entry("a", errors_deg=np.zeros(3))
    with pytest.raises(DataError, match="'b' on the pairs of 'a'"):
        choose_pairs([make_entry("a"), make_entry("b", pair_names=NAMES[::-1])])


def test_pairs_are_chosen_by_all_methods_together():
    first = make_entry("a", errors=(1.0, 8.0, 3.0, math.inf, 2.0))
    second = make_entry("b", errors=(5.0, 8.0, 0.0, 19.0, 2.0))  # means 3, 8, 1.5, 19.5 (inf counts 20), 2
    assert choose_pairs([first, second]) == ((2, 4), (3, 1))
    assert choose_pairs([first, second], 9) == ((2, 4, 0), (3, 1))
    assert choose_pairs([make_entry("a", errors=(1.0,))]) == ((0,), ())
    assert choose_pairs([]) == ((), ())


def make_picture(label: str, error_deg: float, matches: int = 4) -> PosePicture:
    random = np.random.default_rng(0)
    return PosePicture(
        label=label,
        estimator="poselib 1 px",
        pair=("x.jpg", "y.jpg"),
        image0=np.zeros((60, 80, 3), np.uint8),
        image1=np.zeros((50, 90, 3), np.uint8),
        keypoints0=random.uniform(0, 49, (matches, 2)).astype(np.float32),
        keypoints1=random.uniform(0, 49, (matches, 2)).astype(np.float32),
        errors_px=np.linspace(0, 9, matches),
        error_deg=error_deg,
    )


def test_pictures_name_the_pair_and_its_error():
    section = pose_section(
        [make_entry("a")], best=[make_picture("a", 0.44)], worst=[make_picture("a", math.inf, 0)]
    )
    (pictures,) = section.sections
    best, worst = (part.figures[0] for part in pictures.sections)
    assert best.caption == "a: 4 matches, pose error 0.4° (x.jpg and y.jpg)" and best.data.startswith(
        b"\xff\xd8\xff"
    )
    assert "0 matches, no pose found" in worst.caption
    assert "poselib 1 px" in pictures.text[0]


def test_many_detailed_pictures_keep_the_page_small():
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    detailed = replace(make_picture("a", 1.0, 40), image0=noise, image1=noise)
    entries = [make_entry("a")]
    one = pose_section(entries, best=[detailed])
    many = pose_section(entries, best=[detailed] * 12, worst=[detailed] * 12)
    pages = [len(render_page(Report(title="t", sections=[s]))) for s in (pose_section(entries), many)]
    assert pages[1] - pages[0] < 1_500_000
    best_of_one, best_of_many = (s.sections[0].sections[0].figures[0].data for s in (one, many))
    assert len(best_of_many) < len(best_of_one)  # few pictures keep their quality


def test_the_section_is_part_of_a_page_and_states_its_origins():
    entries = [make_entry("<b>", origins=[("features", "d" * 64)]), make_entry("c")]
    page = render_page(Report(title="t", sections=[pose_section(entries)]))
    assert "&lt;b&gt;" in page and "d" * 64 in page
    assert page == render_page(Report(title="t", sections=[pose_section(entries)]))
    assert not pose_section([]).tables


def make_result(**changes) -> PoseResult:
    pairs = tuple(
        PairPose(
            name0=a,
            name1=b,
            scene="s",
            matches=10,
            precision=0.5,
            inliers=(7,),
            rotation_errors_deg=(error,),
            translation_errors_deg=(error / 2,),
        )
        for (a, b), error in zip(NAMES, (1.0, 2.0, 4.0, 30.0, math.inf), strict=True)
    )
    run = PoseRun(protocol=PoseProtocol(bootstrap=BootstrapConfig(resamples=50), repeats=1), pairs=pairs)
    result = PoseResult(
        label="sift",
        dataset="set",
        pairs_digest="p" * 64,
        pixel_offset=0.5,
        epipolar_threshold=1e-4,
        features_digest="f" * 64,
        features_resize="none",
        matcher=None,
        matches_digest=None,
        missing_images=(),
        runs=(run,),
    )
    return replace(result, **changes)


def test_the_group_says_where_features_were_extracted_at_another_size():
    (same,) = pose_entries(make_result(features_resize="original size"))
    (other,) = pose_entries(make_result(features_resize="long side 840"))
    assert same.resize == "original size" and other.resize == "original size (features: long side 840)"
    assert same.group != other.group


def test_entries_of_a_result_carry_its_own_figures():
    result = make_result()
    (run,) = result.runs
    (entry,) = pose_entries(result)
    assert [t for t, _ in entry.auc] == list(run.protocol.auc_deg)
    np.testing.assert_allclose([cell.value for _, cell in entry.auc], 100 * np.array(run.auc()))
    assert all(cell.low <= cell.value <= cell.high for _, cell in entry.auc)
    np.testing.assert_array_equal(entry.errors_deg, [1, 2, 4, 30, math.inf])
    assert (
        "mutual nearest" in entry.group
        and run.protocol.estimator_name in entry.group
        and entry.mean_inliers == 7
        and len(entry.origins) == 2
    )
    (table,) = pose_section([entry]).tables
    assert cell_of(table, 0, "failed") == 1 and cell_of(table, 0, "median") == 4.0
