"""The HPatches protocol on worlds with a known answer, and SIFT on real sequences."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from matchlib.datasets.hpatches import EXCLUDED_SEQUENCES, image_set
from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.evaluation.config import HomographyProtocol, HPatchesProtocol
from matchlib.evaluation.hpatches import HPatchesResult, PairResult, read_result, write_result
from matchlib.evaluation.hpatches_data import FULL_SEQUENCES, select_sequences
from matchlib.evaluation.hpatches_run import evaluate_hpatches
from matchlib.evaluation.metrics import warp_points
from matchlib.features.config import SiftConfig
from matchlib.features.extract import extract_features
from matchlib.features.sift import build_sift
from matchlib.features.types import Features

from .conftest import SIZE, Homographies, features_at

World = Callable[[Homographies, dict[str, list[Features]]], tuple[Path, Path]]
PRESENT = HPatchesProtocol(sequences="all_present")
SHIFT = np.array([[1.0, 0, 3], [0, 1, 0], [0, 0, 1]])


def grid(count: int = 40, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform([60, 60], [SIZE[0] - 60, SIZE[1] - 60], (count, 2)).round()


def test_an_exact_shift_of_three_pixels_counts_from_three_pixels_on(world: World) -> None:
    """The keypoints stay, the truth says that they moved by exactly 3 px: 0 below 3 px, 1 from 3 px on."""
    points = grid()
    features, root = world({"v_shift": SHIFT}, {"v_shift": [features_at(points)] * 6})
    result = evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)
    np.testing.assert_array_equal(result.mma(), [0, 0] + [1] * 13)
    assert result.mean_matches() == 40 and result.mean_features() == 40
    assert [pair.corner_error_px for pair in result.pairs] == pytest.approx([3.0] * 5, abs=1e-3)


def test_keypoints_that_move_with_the_homography_are_all_correct(world: World) -> None:
    H = np.array([[1.02, 0.05, -4], [-0.03, 0.97, 6], [1e-4, 5e-5, 1]])
    points = grid()
    moved = features_at(warp_points(points, H))
    features, root = world({"v_move": H}, {"v_move": [features_at(points)] + [moved] * 5})
    result = evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)
    np.testing.assert_array_equal(result.mma("viewpoint"), np.ones(15))
    for pair in result.pairs:
        assert pair.corner_error_px < 1e-3
        assert pair.repeatability == 1 and pair.matching_score == 1
    assert np.isnan(result.mma("illumination")).all() and math.isnan(result.mean_matches("illumination"))
    assert "illumination" not in result.summary()


def test_a_pair_without_matches_counts_as_zero(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """MMA is the mean of per-pair means: one pair of 5 with 40 good matches, four without any, gives 1/5."""
    points, empty = grid(), features_at(np.empty((0, 2)))
    images = [features_at(points), features_at(points)] + [empty] * 4
    features, root = world({"i_dark": np.eye(3)}, {"i_dark": images})
    with caplog.at_level(logging.WARNING, logger="matchlib"):
        result = evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)
    assert result.mma()[0] == pytest.approx(0.2)
    assert [pair.corner_error_px for pair in result.pairs[1:]] == [math.inf] * 4
    assert result.image_features == (40, 40, 0, 0, 0, 0)
    assert result.mean_features() == pytest.approx(80 / 6) and result.mean_matches() == 8
    assert "4 pairs without matches" in caplog.text and "i_dark 1-3" in caplog.text


def test_means_are_over_pairs_not_over_matches(world: World) -> None:
    """A pair of 5 exact matches weighs as much as a pair of 40 matches that are 3 px off."""
    many, few = grid(), grid(5)
    features, root = world(
        {"i_a": np.eye(3), "v_b": SHIFT}, {"i_a": [features_at(few)] * 6, "v_b": [features_at(many)] * 6}
    )
    result = evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)
    assert result.mma()[1] == 0.5 and result.mma("illumination")[1] == 1 and result.mma("viewpoint")[1] == 0
    summary = result.summary()
    assert summary["all"]["mma@3"] == 1 and summary["viewpoint"]["mma@2"] == 0
    assert summary["all"]["interval"]["mma@1"] == [0, 1], "two sequences, one all right and one all wrong"
    assert summary["viewpoint"]["interval"] == {}, "one sequence tells nothing about the spread"


def test_repeatability_counts_covisible_keypoints_only(world: World) -> None:
    """Truth: shift by half the width. 10 keypoints leave the image, 10 have a counterpart, 10 have none."""
    H = np.array([[1.0, 0, 160], [0, 1, 0], [0, 0, 1]])
    rows = np.arange(10) * 20.0 + 20
    leaving = np.stack([np.full(10, 300.0), rows], axis=1)
    found = np.stack([np.full(10, 20.0), rows], axis=1)
    lost = np.stack([np.full(10, 100.0), rows], axis=1)
    image0 = features_at(np.concatenate([leaving, found, lost]))
    counterparts = features_at(np.concatenate([leaving - [250, 0], warp_points(found, H)]))
    features, root = world({"v_half": H}, {"v_half": [image0] + [counterparts] * 5})
    result = evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)
    # Covisible: 20 of image 1 (found, lost), 10 of image k (`leaving - 250` maps back outside). Mean 15.
    assert result.pairs[0].repeatability == pytest.approx(10 / 15)
    assert result.pairs[0].matching_score == pytest.approx(10 / 15)


def test_keypoint_limit_takes_the_best(world: World) -> None:
    features, root = world({"i_a": np.eye(3)}, {"i_a": [features_at(grid())] * 6})
    protocol = dataclasses.replace(PRESENT, max_keypoints=7)
    result = evaluate_hpatches(features, root, protocol=protocol, show_progress=False)
    assert result.image_features == (7,) * 6 and {pair.matches for pair in result.pairs} == {7}


# ---------------------------------------------------------------- sequence sets and bad input
def test_the_named_sets_have_their_published_sizes(tmp_path: Path) -> None:
    assert len(FULL_SEQUENCES) == len(set(FULL_SEQUENCES)) == 116
    assert sum(name.startswith("i_") for name in FULL_SEQUENCES) == 57
    assert set(EXCLUDED_SEQUENCES) <= set(FULL_SEQUENCES)
    for name in (*FULL_SEQUENCES, "v_mine"):
        (tmp_path / name).mkdir()
    assert len(select_sequences(tmp_path, "116")) == 116
    chosen = select_sequences(tmp_path, "108")
    assert len(chosen) == 108 and chosen == tuple(sorted(chosen)) and "v_mine" not in chosen
    assert sum(name.startswith("i_") for name in chosen) == 52
    assert len(select_sequences(tmp_path, "all_present")) == 117
    (tmp_path / "v_boat").rmdir()
    (tmp_path / "i_dome").rmdir()
    with pytest.raises(DataError, match="the set '108' lacks 2 of 108 sequences: i_dome, v_boat;"):
        select_sequences(tmp_path, "108")


def test_incomplete_data_is_refused_by_default(world: World) -> None:
    features, root = world({"i_dome": np.eye(3)}, {"i_dome": [features_at(grid())] * 6})
    with pytest.raises(DataError, match="the set '108' lacks 107 of 108 sequences"):
        evaluate_hpatches(features, root, show_progress=False)


@pytest.mark.parametrize("missing", ["H_1_4", "3.ppm"])
def test_a_sequence_that_lacks_a_file_is_named(world: World, missing: str) -> None:
    features, root = world({"v_a": np.eye(3)}, {"v_a": [features_at(grid())] * 6})
    (root / "v_a" / missing).unlink()
    with pytest.raises(DataError, match=rf"v_a/{missing}"):
        evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)


def test_an_image_without_features_is_named(world: World) -> None:
    features, root = world({"v_a": np.eye(3)}, {"v_a": [features_at(grid())] * 5})
    with pytest.raises(DataError, match=r"toy\.h5: no features of image 'v_a/6.ppm'"):
        evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)


def test_stale_features_are_refused(world: World) -> None:
    features, root = world({"v_a": np.eye(3)}, {"v_a": [features_at(grid())] * 6})
    (root / "v_a" / "2.ppm").write_bytes((root / "v_a" / "3.ppm").read_bytes())
    with pytest.raises(DataError, match=r"features of 'v_a/2.ppm' come from another version"):
        evaluate_hpatches(features, root, protocol=PRESENT, show_progress=False)


def test_impossible_protocols_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hpatches.ratio: expected a value in \(0, 1\] or null, got 2"):
        HPatchesProtocol(ratio=2)
    with pytest.raises(ConfigError, match="would change MMA too"):
        HPatchesProtocol(homography=HomographyProtocol(name="top", max_keypoints=100))


# ---------------------------------------------------------------- files
def some_result() -> HPatchesResult:
    pair = PairResult(
        sequence="i_a",
        k=2,
        features0=3,
        features1=4,
        matches=2,
        accuracy=tuple(np.linspace(1 / 3, 1, 15)),
        corner_error_px=math.inf,
    )
    other = dataclasses.replace(pair, sequence="v_b", corner_error_px=0.1 + 0.2)
    return HPatchesResult(
        label="toy",
        protocol=HPatchesProtocol(sequences="all_present", ratio=0.9),
        features_digest="abc",
        image_features=(3, 4) * 6,
        pairs=(pair, other),
    )


def test_a_result_reads_back_exactly(tmp_path: Path) -> None:
    result = some_result()
    write_result(result, tmp_path / "r.json")
    assert read_result(tmp_path / "r.json") == result
    before = (tmp_path / "r.json").read_bytes()
    write_result(read_result(tmp_path / "r.json"), tmp_path / "r.json")
    assert (tmp_path / "r.json").read_bytes() == before
    json.loads(before, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_summary_is_json() -> None:
    json.dumps(some_result().summary(), allow_nan=False)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("<html>", "not JSON"),
        ("[]", "expected layout matchlib-hpatches-1, got None"),
        ('{"layout": "matchlib-hpatches-0"}', "got matchlib-hpatches-0"),
        ('{"layout": "matchlib-hpatches-1", "pairs": []}', "incomplete or foreign result"),
        ('{"layout": "matchlib-hpatches-1", "pairs": [{"k": 1}]}', "incomplete or foreign result"),
    ],
)
def test_foreign_result_files_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=rf"r\.json: .*{complaint}"):
        read_result(tmp_path / "r.json")
    with pytest.raises(DataError, match="not found"):
        read_result(tmp_path / "absent.json")


def test_accuracy_must_have_all_thresholds() -> None:
    with pytest.raises(ShapeError, match="accuracy: expected 15 values, got 3"):
        dataclasses.replace(some_result().pairs[0], accuracy=(0.0, 0.5, 1.0))


# ---------------------------------------------------------------- real sequences
# SIFT with 2000 features, mutual nearest neighbours: matches, MMA@1, MMA@3, MMA@5, measured independently.
BASELINE = {
    "i_leuven": (296, 0.726, 0.813, 0.832),
    "v_bark": (543, 0.244, 0.361, 0.362),
    "v_boat": (806, 0.391, 0.499, 0.511),
    "v_wormhole": (882, 0.245, 0.578, 0.621),
}


def test_sift_on_real_sequences_agrees_with_the_baseline(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    root = shared_data("hpatches")
    extractor = build_sift(SiftConfig(max_keypoints=2000), None, "cpu")
    out = tmp_path / "sift.h5"
    extract_features(root, image_set(root), extractor=extractor, out=out, show_progress=False)
    result = evaluate_hpatches(out, root, protocol=PRESENT, show_progress=False)
    assert result.label == "sift" and result.sequences_of("all") == tuple(BASELINE)
    for name, (matches, *accuracy) in BASELINE.items():
        pairs = [pair for pair in result.pairs if pair.sequence == name]
        assert np.mean([pair.matches for pair in pairs]) == pytest.approx(matches, rel=0.02)
        found = np.mean([pair.accuracy for pair in pairs], axis=0)[[0, 2, 4]]
        np.testing.assert_allclose(found, accuracy, rtol=0, atol=0.02)
    assert (
        sum(pair.corner_error_px < 3 for pair in result.pairs if pair.sequence in ("i_leuven", "v_bark"))
        == 10
    )
