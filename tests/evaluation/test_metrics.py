"""Metrics against closed forms and independent computations."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.evaluation.config import BootstrapConfig
from matchlib.evaluation.metrics import (
    auc,
    bootstrap_interval,
    intervals_by_name,
    matching_accuracy,
    mma_score,
    reprojection_errors,
    warp_points,
)

errors_lists = st.lists(st.floats(0, 20) | st.just(float("inf")), min_size=1, max_size=30)


def test_auc_of_the_three_published_examples() -> None:
    assert auc([0, 0, 0], (1, 5, 10)) == (1, 1, 1)
    assert auc([np.inf], (5,)) == (0,)
    assert auc([2.5], (5,)) == pytest.approx((0.75,))


def test_auc_edges() -> None:
    assert auc([], (5,)) == (0,)
    assert auc([5.0], (5,)) == (0,), "an error at the threshold is not below it"
    assert auc([np.nan, 0.0], (5,)) == pytest.approx(auc([np.inf, 0.0], (5,)))


@settings(max_examples=60, deadline=None)
@given(errors=errors_lists, threshold=st.floats(0.5, 15))
def test_auc_is_the_integral_of_the_recall_curve(errors: list[float], threshold: float) -> None:
    """Against a fine Riemann sum over the piecewise linear curve, built from its corner points."""
    below = sorted(error for error in errors if error < threshold)
    corners = [(0.0, 0.0)] + [(error, (rank + 1) / len(errors)) for rank, error in enumerate(below)]
    corners.append((threshold, corners[-1][1]))
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False))
    assert auc(errors, (threshold,))[0] == pytest.approx(area / threshold, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(errors=errors_lists, factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]))  # exact in binary
def test_auc_is_bounded_scale_free_and_order_free(errors: list[float], factor: float) -> None:
    values = auc(errors, (1, 5, 10))
    assert all(0 <= value <= 1 for value in values)
    assert auc(errors[::-1], (1, 5, 10)) == values
    scaled = auc([error * factor for error in errors], (5 * factor,))[0]
    assert scaled == pytest.approx(auc(errors, (5,))[0], abs=1e-12)


def test_accuracy_is_inclusive_and_zero_for_no_matches() -> None:
    assert matching_accuracy([3.0], (2, 3, 4)).tolist() == [0, 1, 1]
    assert matching_accuracy([], (1, 2)).tolist() == [0, 0]
    assert matching_accuracy([0, 1.5, np.inf, 9], (1, 2, 10)).tolist() == [0.25, 0.5, 0.75]


def test_mma_score_weights() -> None:
    assert mma_score(np.ones(10)) == pytest.approx(1)
    curve = np.zeros(15)
    curve[0] = 1
    assert mma_score(curve) == pytest.approx(1.9 / 14.5)
    curve[10:] = 1
    assert mma_score(curve) == pytest.approx(1.9 / 14.5), "only 1..10 px count"
    with pytest.raises(ShapeError):
        mma_score(np.ones(9))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_warp_agrees_with_opencv_and_inverts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    H = np.eye(3) + draw.normal(scale=[[0.1, 0.1, 20], [0.1, 0.1, 20], [1e-4, 1e-4, 0]])
    points = draw.uniform(0, 600, (20, 2))
    warped = warp_points(points, H)
    np.testing.assert_allclose(warped, cv2.perspectiveTransform(points[None], H)[0], atol=1e-8)
    np.testing.assert_allclose(warp_points(warped, np.linalg.inv(3 * H)), points, atol=1e-6)


def test_points_on_the_horizon_have_infinite_error() -> None:
    H = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    errors = reprojection_errors([[0.0, 0.0], [0.0, 5.0], [1.0, 1.0]], np.ones((3, 2)), H)
    assert np.isinf(errors[:2]).all() and errors[2] == 0
    assert reprojection_errors(np.empty((0, 2)), np.empty((0, 2)), np.eye(3)).shape == (0,)
    with pytest.raises(ShapeError, match=r"H_0to1: expected shape \(3, 3\)"):
        warp_points([[0, 0]], np.eye(2))


def test_bootstrap_is_seeded_and_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))

    def statistic(drawn: np.ndarray) -> np.ndarray:
        return values[drawn].mean(axis=0)

    config = BootstrapConfig(resamples=2000)
    interval = bootstrap_interval(statistic, 400, config, purpose="a")
    assert interval.shape == (2, 1)
    half_width = 1.96 * values.std() / 20
    assert interval[:, 0] == pytest.approx([values.mean() - half_width, values.mean() + half_width], abs=0.01)
    np.testing.assert_array_equal(interval, bootstrap_interval(statistic, 400, config, purpose="a"))
    other = bootstrap_interval(statistic, 400, BootstrapConfig(resamples=2000, seed=1), purpose="a")
    assert (other != interval).any()


def test_one_group_has_no_interval() -> None:
    interval = bootstrap_interval(lambda drawn: np.array([1.0, 2.0]), 1, BootstrapConfig(), purpose="a")
    assert np.isnan(interval).all() and interval.shape == (2, 2)
    assert intervals_by_name(["a", "b"], interval) == {}
    assert intervals_by_name(["a"], np.array([[0.1], [0.2]])) == {"a": [0.1, 0.2]}
