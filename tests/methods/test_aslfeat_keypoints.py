"""Keypoint selection on hand-made score maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.methods.aslfeat.config import InferenceConfig
from matchlib.methods.aslfeat.keypoints import edge_mask, newton_step, select_keypoints


def blobs(size: tuple[int, int], centres: list[tuple[float, float]], sigma: float = 2.0, height: float = 1.0):
    """A score map of Gaussian blobs at (x, y) with decreasing heights."""
    y, x = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    score = torch.zeros(size, dtype=torch.float64)
    for rank, (cx, cy) in enumerate(centres):
        score += (height - 0.05 * rank) * torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    return score.float()


def test_blobs_are_found_best_first_and_to_a_fraction_of_a_pixel():
    centres = [(20.3, 15.6), (44.0, 30.25), (30.7, 50.1)]
    points, scores = select_keypoints(blobs((64, 60), centres), InferenceConfig())
    torch.testing.assert_close(points, torch.tensor(centres), rtol=0, atol=0.03)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


@settings(max_examples=40, deadline=None)
@given(st.floats(10, 30), st.floats(10, 30), st.floats(1.2, 3.0))
def test_any_blob_is_found_at_its_true_position(x, y, sigma):
    points, _ = select_keypoints(blobs((41, 41), [(x, y)], sigma), InferenceConfig())
    # A blob half-way between pixels may be equally high on both and is then found once for each.
    assert 1 <= len(points) <= 4
    assert (points - torch.tensor([x, y])).abs().max() < 0.1


def test_newton_step_is_exact_on_a_paraboloid():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    u, v = x - 4.3, y - 3.8
    score = 5 - (1.5 * u**2 + 0.8 * u * v + v**2)
    step = newton_step(score, torch.tensor([4]), torch.tensor([4]))
    torch.testing.assert_close(step, torch.tensor([[0.3, -0.2]]), rtol=0, atol=1e-5)


def test_newton_step_is_bounded_and_zero_where_singular():
    flat = torch.zeros(5, 5)
    assert newton_step(flat, torch.tensor([2]), torch.tensor([2])).tolist() == [[0.0, 0.0]]
    slope = (
        torch.arange(5.0).expand(5, 5) * 10 - torch.arange(5.0)[:, None] ** 2 - torch.arange(5.0) ** 2 * 0.01
    )
    assert newton_step(slope, torch.tensor([2]), torch.tensor([2])).abs().max() <= 0.5


def test_settings_filter_what_they_say():
    score = blobs((48, 48), [(24, 24), (3, 24), (24, 40)])
    n = lambda **s: len(select_keypoints(score, InferenceConfig(**s))[0])  # noqa: E731
    assert n() == 2
    assert n(border=2) == 3
    assert n(max_keypoints=1) == 1
    assert n(score_threshold=0.93) == 1
    assert n(score_threshold=2.0) == 0


def test_ridges_are_no_keypoints_unless_asked_for():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    ridge = torch.exp(-((x - 20) ** 2) / 8) * torch.exp(-((y - 20) ** 2) / 3000)
    assert len(select_keypoints(ridge, InferenceConfig())[0]) == 0
    assert len(select_keypoints(ridge, InferenceConfig(edge_threshold=0))[0]) == 1


@pytest.mark.parametrize(("ratio", "is_edge"), [(9.0, False), (11.0, True)])
def test_edge_filter_is_the_ratio_of_curvatures(ratio, is_edge):
    y, x = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij")
    score = 1 - 0.001 * (ratio * x**2 + y**2)
    assert bool(edge_mask(score, 10.0)[10, 10]) is is_edge
    assert bool(edge_mask(-score, 10.0)[10, 10]) is is_edge, "a pit has the same ratio"
    assert bool(edge_mask(0.001 * (x**2 - y**2), 10.0)[10, 10]), "a saddle counts as an edge"


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (10, 10), (11, 11)])
def test_small_maps_give_what_fits_inside_the_border(size):
    score = torch.zeros(size)
    score[size[0] // 2, size[1] // 2] = 1.0
    points, scores = select_keypoints(score, InferenceConfig(edge_threshold=0))
    assert len(points) == len(scores) == (1 if size == (11, 11) else 0)
    assert points.shape[1] == 2 and points.dtype == torch.float32


def test_the_window_suppresses_lower_neighbours():
    score = torch.zeros(30, 30)
    score[15, 15], score[15, 17], score[15, 19] = 1.0, 0.9, 0.8
    found = {
        nms: len(select_keypoints(score, InferenceConfig(nms_size=nms, edge_threshold=0))[0])
        for nms in (1, 3, 5)
    }
    assert found == {1: 3, 3: 3, 5: 1}


def test_equal_scores_are_ordered_by_row_then_column():
    score = torch.zeros(30, 30)
    for y, x in ((20, 8), (10, 20), (10, 9)):
        score[y, x] = 1.0
    points, _ = select_keypoints(score, InferenceConfig(subpixel=False, edge_threshold=0))
    np.testing.assert_array_equal(points.numpy(), [[9, 10], [20, 10], [8, 20]])
