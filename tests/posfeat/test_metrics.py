"""Precision by epipolar lines: against triangulated truth, closed forms and OpenCV."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.datasets.batch import PairBatch
from matchlib.errors import ShapeError
from matchlib.methods.posfeat.metrics import (
    CheckedMatches,
    Keypoints,
    chance_precision,
    check_matches,
    depth_figures,
    epipolar_errors,
    fundamental_matrices,
    precision,
)

K = torch.tensor([[600.0, 0, 319.5], [0, 580.0, 239.5], [0, 0, 1]])


def pose(angle: float, translation: tuple[float, float, float]) -> torch.Tensor:
    T = torch.eye(4)
    T[:3, :3] = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    T[:3, 3] = torch.tensor(translation)
    return T


def projected(points: torch.Tensor, T: torch.Tensor) -> torch.Tensor:
    in_camera = points @ T[:3, :3].T.double() + T[:3, 3].double()
    return ((in_camera / in_camera[:, 2:]) @ K.double().T)[:, :2]


def world_points(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return random * torch.tensor([2.0, 2.0, 3.0]) + torch.tensor([-1.0, -1.0, 3.0])


@given(
    angle=st.floats(-0.4, 0.4),
    x=st.floats(-1, 1),
    z=st.floats(-0.5, 0.5),
    shift=st.floats(0, 30),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_true_matches_have_no_error_and_moved_ones_that_of_opencvs_lines(
    angle: float, x: float, z: float, shift: float, seed: int
) -> None:
    T = pose(angle, (x + (0.2 if x >= 0 else -0.2), 0.1, z))
    points0 = projected(world_points(20, seed), torch.eye(4))
    points1 = projected(world_points(20, seed), T)
    F = fundamental_matrices(T, K, K)
    assert epipolar_errors(points0, points1, F).max() < 1e-3
    moved = points1 + torch.tensor([0.3 * shift, shift], dtype=torch.float64)
    expected = np.zeros(20)
    for own, other, which in ((points0, moved, 1), (moved, points0, 2)):
        lines = cv2.computeCorrespondEpilines(own.numpy()[:, None], which, F.numpy())[:, 0]
        distance = np.abs((lines[:, :2] * other.numpy()).sum(1) + lines[:, 2])
        expected = np.maximum(expected, distance)
    np.testing.assert_allclose(epipolar_errors(points0, moved, F).numpy(), expected, rtol=1e-4, atol=1e-3)


def test_without_baseline_or_at_the_epipole_no_match_is_right() -> None:
    points = torch.rand(7, 2) * 100
    still = fundamental_matrices(pose(0.2, (0, 0, 0)), K, K)
    assert torch.isinf(epipolar_errors(points, points, still)).all()
    assert precision(epipolar_errors(points, points, still), 3.0) == 0.0
    assert chance_precision(points, points, still, 3.0) == 0.0
    forward = fundamental_matrices(pose(0.0, (0, 0, 1.0)), K, K)
    epipole = K[:2, 2][None]
    assert torch.isinf(epipolar_errors(epipole, points[:1], forward)).all()


def test_precision_counts_the_threshold_in_and_is_0_without_matches() -> None:
    assert precision(torch.tensor([0.5, 3.0, 3.1, math.inf]), 3.0) == 0.5
    assert precision(torch.empty(0), 3.0) == 0.0


def test_chance_is_the_mean_over_all_pairings() -> None:
    T = pose(0.1, (0.5, 0.1, 0.2))
    F = fundamental_matrices(T, K, K)
    random = torch.Generator().manual_seed(3)
    points0, points1 = torch.rand(700, 2, generator=random) * 400, torch.rand(30, 2, generator=random) * 400
    single = [precision(epipolar_errors(points0, one.expand(700, 2), F), 4.0) for one in points1]
    assert chance_precision(points0, points1, F, 4.0) == pytest.approx(np.mean(single), abs=1e-12)
    assert 0.005 < chance_precision(points0, points1, F, 4.0) < 0.05
    assert chance_precision(points0[:0], points1, F, 4.0) == 0.0
    assert chance_precision(points0, points1[:0], F, 4.0) == 0.0


def keypoints(points: torch.Tensor, scores: torch.Tensor, order: torch.Tensor | None = None) -> Keypoints:
    """Descriptors that are the rows of a unit matrix: keypoint i of both images is the same."""
    descriptors = torch.eye(len(points)) if order is None else torch.eye(len(points))[order]
    return Keypoints(points=points, scores=scores, descriptors=descriptors)


def test_matches_are_the_mutual_ones_best_first() -> None:
    T = pose(0.1, (0.5, 0.0, 0.0))
    world = world_points(6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    points0, points1 = projected(world, torch.eye(4)).float(), projected(world, T).float()[order]
    scores = torch.tensor([0.1, 0.9, 0.3, 0.7, 0.2, 0.5])
    F = fundamental_matrices(T, K, K)
    first, second = keypoints(points0, scores), keypoints(points1, scores[order], order)
    found = check_matches(first, second, F, rank_by="scores")
    assert len(found) == 6 and found.error_px.max() < 1e-2
    best = scores.argsort(descending=True)
    torch.testing.assert_close(found.points0, points0[best])
    torch.testing.assert_close(found.quality, 2 * scores[best])
    dimmed = Keypoints(
        points=points0, scores=scores, descriptors=torch.diag(torch.tensor([0.3, 0.2, 0.9, 0.8, 0.7, 0.6]))
    )
    by_similarity = check_matches(dimmed, second, F, rank_by="similarity")
    torch.testing.assert_close(by_similarity.points0, points0[[2, 3, 4, 5, 0, 1]])
    nothing = Keypoints(points=points0[:0], scores=scores[:0], descriptors=torch.empty(0, 6))
    assert len(check_matches(nothing, second, F, rank_by="scores")) == 0


def test_depth_tells_matches_along_the_line_from_true_ones(posed_pair: Callable[..., PairBatch]) -> None:
    batch = posed_pair(seed=1)
    y, x = torch.meshgrid(torch.arange(30.0, 60, 9), torch.arange(40.0, 90, 9), indexing="ij")
    points0 = torch.stack([x, y], dim=-1).reshape(-1, 2)
    truth = on_plane(batch, points0)
    F = fundamental_matrices(batch.T_0to1[0], batch.K0[0], batch.K1[0])
    homogeneous = torch.cat([points0, torch.ones_like(points0[:, :1])], dim=1).double()
    normals = (homogeneous @ F.mT)[:, :2]
    along = torch.stack([-normals[:, 1], normals[:, 0]], dim=1)
    slid = (truth + 6 * along / along.norm(dim=1, keepdim=True)).float()
    for points1, accuracy in ((truth.float(), 1.0), (slid, 0.0)):
        # Of both directions: the point of image 0 stays near the line of the slid one as well.
        error_px = epipolar_errors(points0, points1, F)
        assert precision(error_px, 0.5) == 1.0
        matches = CheckedMatches(
            points0=points0, points1=points1, quality=torch.ones(len(points0)), error_px=error_px
        )
        figures = depth_figures(batch, 0, matches, points0[9:10], points1[9:10], 3.0)
        assert figures == {"matching_accuracy": accuracy, "repeatability": accuracy}
    blind = replace(batch, depth0=torch.zeros_like(batch.depth0))
    assert all(math.isnan(f) for f in depth_figures(blind, 0, matches, points0, points1, 3.0).values())


def on_plane(batch: PairBatch, points0: torch.Tensor) -> torch.Tensor:
    """Where points of the plane z = 2 of camera 0 lie in image 1, by the homography that it induces."""
    K0, K1, T = (values[0].double() for values in (batch.K0, batch.K1, batch.T_0to1))
    H = (
        K1
        @ (T[:3, :3] + T[:3, 3:] @ torch.tensor([[0.0, 0.0, 0.5]], dtype=torch.float64))
        @ torch.linalg.inv(K0)
    )
    warped = torch.cat([points0, torch.ones_like(points0[:, :1])], dim=1).double() @ H.T
    return warped[:, :2] / warped[:, 2:]


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="points1"):
        epipolar_errors(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(3, 3))
