from __future__ import annotations

import dataclasses
import html
from pathlib import Path

import numpy as np
import pytest

from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.hpatches import read_published_cache, read_result, write_result
from matchlib.visualization.build import build_report
from matchlib.visualization.hpatches_pictures import hpatches_pictures
from matchlib.visualization.hpatches_tables import hpatches_curves, hpatches_tables
from matchlib.visualization.report import Cell, Table, number_of
from matchlib.visualization.training_section import stage_names, training_section

ABOUT = {
    "title": "Two sets of dots",
    "summary": "A test.",
    "datasets/dots": "2 sequences",
    "machine": "any",
    "licences/dots": "none needed",
    "datasets/more dots": "0 sequences",
    "provenance/numpy": np.__version__,
}


def build(run, out: Path, **changes) -> str:
    arguments = {
        "results": run.results,
        "training": run.training,
        "features": run.features,
        "hpatches_root": run.root,
        "published": [],
        "about": ABOUT,
    }
    build_report(out, **(arguments | changes))
    return out.read_text(encoding="utf-8")


def column(table: Table, name: str, group: str = "") -> list[float | None]:
    place = next(i for i, c in enumerate(table.columns) if (c.name, c.group) == (name, group))
    return [number_of(row.cells[place]) for row in table.rows]


def test_the_page_holds_all_parts_of_the_run(run, tmp_path: Path):
    text = build(run, tmp_path / "report.html")
    for title in ("What ran", "HPatches", "Training", "Matches", "Provenance"):
        assert f">{title}</h2>" in text
    assert text.count("data:image/jpeg") == 3 * 2, "three pairs, two methods"
    assert text.count("data:image/png") == 2, "one picture of each stage"
    for line in (*ABOUT.values(), "dots/base", "dots/dcn", "exact", "two_off"):
        assert html.escape(line) in text


def test_equal_runs_give_equal_bytes(run, tmp_path: Path):
    assert build(run, tmp_path / "a.html") == build(run, tmp_path / "b.html")


def test_provenance_names_the_digests_of_what_was_read(run, tmp_path: Path):
    from matchlib.completion import digest_file

    text = build(run, tmp_path / "report.html")
    for path in (*run.results, *(folder / "weights.safetensors" for folder in run.training)):
        assert digest_file(path) in text
    for path in run.results:
        assert read_result(path).features_digest in text


def test_the_tables_state_the_results(run):
    results = [read_result(path) for path in run.results]
    whole, splits = hpatches_tables(results, [])
    group = "MMA, all pairs"
    assert column(whole, "@1 px", group) == [1.0, 0.0]
    assert column(whole, "@3 px", group) == [1.0, 1.0]
    assert column(whole, "features") == [5.0, 5.0] and column(whole, "matches") == [5.0, 5.0]
    # Of five pairs of a sequence the fifth has no homography.
    assert column(whole, "≤ 1 px", "Homography") == [0.8, 0.0]
    assert column(whole, "≤ 3 px", "Homography") == [0.8, 0.8]
    assert column(splits, "@1 px", "MMA, viewpoint") == [1.0, 0.0]
    cell = whole.rows[0].cells[1]
    assert isinstance(cell, Cell) and cell.low == cell.high == 1.0, "no spread, so an interval of no width"
    single = splits.rows[0].cells[1]
    assert not isinstance(single, Cell), "one illumination sequence gives no interval"


def test_results_on_other_images_are_not_compared(run):
    first, second = (read_result(path) for path in run.results)
    fewer = dataclasses.replace(second, pairs=second.pairs[:5])
    groups = [row.group for row in hpatches_tables([first, fewer], [])[0].rows]
    assert groups == ["2 sequences of this run, 10 pairs", "1 sequence of this run, 5 pairs"]
    renamed = [dataclasses.replace(pair, sequence=f"{pair.sequence}2") for pair in second.pairs]
    others = dataclasses.replace(second, pairs=tuple(renamed))
    groups = [row.group for row in hpatches_tables([first, others], [])[0].rows]
    assert len(set(groups)) == 2


def test_published_curves_stand_in_a_group_of_their_own(run, shared_cache: Path):
    results = [read_result(path) for path in run.results]
    published = [read_published_cache(path) for path in sorted(shared_cache.glob("*.npy"))]
    whole, _ = hpatches_tables(results, published)
    by_name = {str(row.cells[0]): row for row in whole.rows}
    aslfeat = by_name["aslfeat (published)"]
    assert aslfeat.group == "The 108 sequences, 540 pairs" != by_name["exact"].group
    # Published table of the ASLFeat repository's result file.
    assert [number_of(cell) for cell in aslfeat.cells[1:5]] == pytest.approx(
        [0.3979, 0.7226, 0.8213, 0.8689], abs=1e-4
    )
    figure = hpatches_curves(results, published)
    assert "stroke-dasharray" in figure.data and "not to be compared" in figure.caption


def test_pictures_show_the_evaluated_matches_in_the_colour_of_their_error(run):
    from matchlib.visualization.draw import GOOD, MIDDLE, decode_image

    results = [read_result(path) for path in run.results]
    sections = hpatches_pictures(results, run.features, run.root)
    assert [section.title.partition(":")[0] for section in sections] == [
        "Easiest pair",
        "Median pair",
        "Hardest pair",
    ]
    for section in sections:
        exact, two_off = (decode_image(figure.data, where=figure.caption) for figure in section.figures)
        # JPEG blurs colours, so the test is which of the two colours is nearer at the first keypoint.
        scale = 360 / 64
        x, y = round(10.5 * scale - 0.5), round(5.5 * scale - 0.5)
        nearer = [np.abs(exact[y, x] - np.array(c, dtype=int)).sum() for c in (GOOD, MIDDLE)]
        assert nearer[0] < nearer[1]
        nearer = [np.abs(two_off[y, x] - (np.array(c, dtype=int))).sum() for c in (GOOD, MIDDLE)]
        halfway = (np.array(GOOD, dtype=int) + MIDDLE) // 2
        assert np.abs(two_off[y, x] - halfway).sum() < min(nearer), "2 px lies between 1 px and 3 px"


def test_features_other_than_the_evaluated_ones_are_refused(run):
    results = [read_result(path) for path in run.results]
    swapped = {"exact": run.features["two_off"]}
    with pytest.raises(
        DataError, match=r"two_off\.h5: expected the features that 'exact' was evaluated with"
    ):
        hpatches_pictures(results, swapped, run.root)


def test_features_of_an_unknown_method_are_refused(run):
    results = [read_result(path) for path in run.results]
    with pytest.raises(ConfigError, match=r"expected labels of results \(exact, two_off\), got 'third'"):
        hpatches_pictures(results, {"third": run.features["exact"]}, run.root)


def test_methods_without_features_file_are_left_out_of_the_pictures(run, tmp_path: Path):
    text = build(run, tmp_path / "report.html", features={"exact": run.features["exact"]})
    assert text.count("data:image/jpeg") == 3


@pytest.mark.parametrize("key", ["results", "training"])
def test_a_missing_file_is_named_and_nothing_is_written(run, tmp_path: Path, key: str):
    out = tmp_path / "report.html"
    with pytest.raises(DataError, match="nowhere"):
        build(run, out, **{key: [tmp_path / "nowhere"]})
    assert not out.exists()


def test_a_broken_training_picture_is_named(run, tmp_path: Path):
    (run.training[0] / "pictures" / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"torn\.png: expected a PNG"):
        build(run, tmp_path / "report.html")


def test_a_page_of_nothing_but_words(run, tmp_path: Path):
    text = build(run, tmp_path / "report.html", results=[], training=[], features={})
    assert ">What ran</h2>" in text and ">HPatches</h2>" not in text


def test_a_label_full_of_markup_stays_text(run, tmp_path: Path):
    label = "<script>alert(1)</script>"
    hostile = dataclasses.replace(read_result(run.results[0]), label=label)
    write_result(hostile, tmp_path / "hostile.json")
    text = build(
        run,
        tmp_path / "report.html",
        results=[tmp_path / "hostile.json"],
        features={label: run.features["exact"]},
    )
    assert "<script>alert" not in text and html.escape(label) in text


def test_training_table_states_first_and_last_validation(run):
    table = training_section(run.training).tables[0]
    assert [list(row.cells) for row in table.rows] == [
        [name, "accuracy", 0, 0.25, 40, 0.75, 0.25, 0.75] for name in ("dots/base", "dots/dcn")
    ]


def test_stage_names_are_as_short_as_they_may_be():
    assert stage_names([Path("/r/a/base"), Path("/r/a/dcn")]) == ["a/base", "a/dcn"]
    assert stage_names([Path("/r/x/a/base"), Path("/r/y/a/base")]) == ["x/a/base", "y/a/base"]
    assert stage_names([Path("base")]) == ["base"]
    assert stage_names([]) == []


def test_large_training_pictures_become_small_jpegs(run, tmp_path: Path):
    from matchlib.datasets.images import write_image

    noise = np.random.default_rng(0).integers(0, 256, (600, 1600, 3), dtype=np.uint8)
    write_image(run.training[0] / "pictures" / "matches.png", noise)
    figures = training_section(run.training).sections[0].figures
    kinds = {figure.caption: figure.kind for figure in figures}
    assert kinds["matches"] == "jpeg" and kinds["score map"] == "png"


@pytest.fixture
def shared_cache(shared_data) -> Path:
    return shared_data("hpatches_cache")
