"""Homography accuracy: exact answers, both estimators, frames and corner conventions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError, DataError
from matchlib.evaluation.config import HOMOGRAPHY_PROTOCOLS, HomographyProtocol
from matchlib.evaluation.homography import (
    corner_error_px,
    estimate_homography,
    evaluate_homography,
    frame_of,
    limit_features,
    pair_corner_error,
)
from matchlib.evaluation.homography_result import read_homography_result, write_homography_result
from matchlib.evaluation.metrics import warp_points
from matchlib.features.types import Features
from matchlib.matching.types import Matches

from .conftest import SIZE, Homographies, features_at

World = Callable[[Homographies, dict[str, list[Features]]], tuple[Path, Path]]
TRUE_H = np.array([[1.05, 0.08, -12], [-0.06, 0.96, 9], [2e-4, -1e-4, 1]])
BOTH = [HomographyProtocol(estimator="opencv"), HomographyProtocol(estimator="poselib", threshold_px=1.0)]


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform([0, 0], [SIZE[0] - 1, SIZE[1] - 1], (count, 2))


@pytest.mark.parametrize("protocol", BOTH, ids=lambda p: p.estimator)
def test_exact_matches_give_the_exact_homography(protocol: HomographyProtocol) -> None:
    source = points(60)
    estimated = estimate_homography(source, warp_points(source, TRUE_H), protocol)
    assert corner_error_px(estimated, TRUE_H, SIZE, corners="image_border") < 1e-4


@pytest.mark.parametrize("protocol", BOTH, ids=lambda p: p.estimator)
def test_half_of_the_matches_may_be_wrong(protocol: HomographyProtocol) -> None:
    source = points(200)
    target = np.concatenate([warp_points(source[:100], TRUE_H), points(100, seed=1)])
    estimated = estimate_homography(source, target, protocol)
    assert corner_error_px(estimated, TRUE_H, SIZE, corners="pixel_centres") < 0.3
    again = estimate_homography(source, target, protocol)
    np.testing.assert_array_equal(estimated, again)


@pytest.mark.parametrize("protocol", BOTH, ids=lambda p: p.estimator)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_matches_are_a_failure(protocol: HomographyProtocol, count: int) -> None:
    assert estimate_homography(points(count), points(count), protocol) is None
    assert corner_error_px(None, TRUE_H, SIZE, corners="pixel_centres") == math.inf


def test_corner_error_closed_forms() -> None:
    identity = np.eye(3)
    shift = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])
    assert corner_error_px(shift, identity, (100, 50), corners="pixel_centres") == pytest.approx(5)
    assert corner_error_px(-2 * shift, identity, (100, 50), corners="image_border") == pytest.approx(5)
    double = np.diag([2.0, 2.0, 1.0])
    w, h = 99.0, 49.0
    expected = (0 + w + math.hypot(w, h) + h) / 4
    assert corner_error_px(double, identity, (100, 50), corners="pixel_centres") == pytest.approx(expected)
    far = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert corner_error_px(far, identity, (100, 50), corners="pixel_centres") == math.inf


@settings(max_examples=40, deadline=None)
@given(width=st.integers(30, 3000), height=st.integers(30, 3000), side=st.integers(16, 800))
def test_frames_map_image_borders_to_image_borders(width: int, height: int, side: int) -> None:
    S, (w, h) = frame_of((width, height), side)
    assert min(w, h) == side
    borders = warp_points([[-0.5, -0.5], [width - 0.5, height - 0.5]], S)
    np.testing.assert_allclose(borders, [[-0.5, -0.5], [w - 0.5, h - 0.5]], atol=1e-9)
    S, size = frame_of((width, height), None)
    assert size == (width, height) and (S == np.eye(3)).all()


def test_error_is_measured_in_the_frame_of_the_protocol() -> None:
    """A shift that is 8 px off in original pixels is 4 px off when the short side is halved."""
    source = points(50)
    wrong = features_at(source + [8, 0])
    matches = Matches(index=np.stack([np.arange(50)] * 2, axis=1), scores=np.ones(50, np.float32))
    for short_side, expected in ((None, 8), (120, 4)):
        protocol = HomographyProtocol(short_side=short_side)
        error = pair_corner_error(features_at(source), wrong, matches, np.eye(3), protocol)
        assert error == pytest.approx(expected, abs=1e-3)


def test_only_the_best_matches_are_used_when_limited() -> None:
    source = points(40)
    target = np.concatenate([source[:20] + [2, 0], source[20:] + [9, 0]])
    scores = np.concatenate([np.full(20, 0.5), np.full(20, 0.9)]).astype(np.float32)
    matches = Matches(index=np.stack([np.arange(40)] * 2, axis=1), scores=scores)
    error = pair_corner_error(
        features_at(source), features_at(target), matches, np.eye(3), HomographyProtocol(max_matches=20)
    )
    assert error == pytest.approx(9, abs=1e-3)


def test_covisible_only_drops_what_the_other_image_cannot_see() -> None:
    H = np.array([[1.0, 0, 160], [0, 1, 0], [0, 0, 1]])
    image0 = features_at(np.array([[10.0, 10], [200, 10], [159, 239], [159.5, 0]]))
    image1 = features_at(np.array([[170.0, 10], [100, 10]]))
    protocol = HomographyProtocol(covisible_only=True, max_keypoints=5)
    kept0, kept1 = limit_features(image0, image1, H, protocol)
    assert kept0.keypoints.tolist() == [[10, 10], [159, 239]]
    assert kept1.keypoints.tolist() == [[170, 10]]


@pytest.mark.parametrize("protocol", HOMOGRAPHY_PROTOCOLS, ids=lambda p: p.name)
def test_every_protocol_finds_a_perfect_method_perfect(
    world: World, protocol: HomographyProtocol, tmp_path: Path
) -> None:
    source = points(80)
    exact = [features_at(source)] + [features_at(warp_points(source, TRUE_H))] * 5
    none = [features_at(np.empty((0, 2)))] * 6
    features, root = world({"v_exact": TRUE_H, "i_none": TRUE_H}, {"v_exact": exact, "i_none": none})
    result = evaluate_homography(
        features, root, protocol=protocol, sequences="all_present", show_progress=False
    )
    summary = result.summary()
    smallest = f"{min(protocol.auc_px):g}"
    assert summary["viewpoint"]["correct@1"] == 1 and summary["viewpoint"]["failed"] == 0
    assert summary["viewpoint"][f"auc@{smallest}"] > 0.99
    assert summary["illumination"]["failed"] == 5 and summary["illumination"][f"auc@{smallest}"] == 0
    assert summary["all"]["correct@3"] == 0.5 and summary["all"]["interval"]["correct@3"] == [0, 1]
    assert (
        protocol.estimator in summary["estimator"] and f"{protocol.threshold_px:g} px" in summary["estimator"]
    )
    write_homography_result(result, tmp_path / "h.json")
    assert read_homography_result(tmp_path / "h.json") == result


def test_broken_result_files_and_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text('{"layout": "matchlib-homography-1", "pairs": []}')
    with pytest.raises(DataError, match=r"h\.json: incomplete"):
        read_homography_result(tmp_path / "h.json")
    with pytest.raises(ConfigError, match="homography protocol 'x': threshold_px"):
        HomographyProtocol(name="x", threshold_px=0)
