from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.geometry.camera import (
    denormalize_points,
    distort,
    normalize_points,
    project,
    undistort,
    unproject,
)

K = torch.tensor([[500.0, 3.0, 320.0], [0.0, 480.0, 240.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_a_known_point_projects_where_the_textbook_says():
    pixels, depth = project(torch.tensor([[0.2, -0.1, 2.0]], dtype=torch.float64), K)
    x, y = 0.1, -0.05
    torch.testing.assert_close(pixels, torch.tensor([[500 * x + 3 * y + 320, 480 * y + 240]]).double())
    assert depth.tolist() == [2.0]


@given(x=st.floats(-1000, 2000), y=st.floats(-1000, 2000), z=st.floats(0.01, 1000), skew=st.floats(-20, 20))
def test_unproject_is_the_inverse_of_project(x, y, z, skew):
    camera = K.clone()
    camera[0, 1] = skew
    points = torch.tensor([[x, y]], dtype=torch.float64)
    pixels, depth = project(unproject(points, torch.tensor([z], dtype=torch.float64), camera), camera)
    torch.testing.assert_close(pixels, points, rtol=0, atol=1e-8)
    assert depth.item() == pytest.approx(z)


def test_batches_give_what_single_cameras_give():
    generator = torch.Generator().manual_seed(0)
    points = 100 * torch.rand(4, 7, 2, generator=generator, dtype=torch.float64)
    cameras = K + torch.rand(4, 1, 1, generator=generator, dtype=torch.float64) * torch.tensor(
        [[1.0, 0, 1], [0, 1, 1], [0, 0, 0]]
    )
    together = normalize_points(points, cameras)
    for k in range(4):
        torch.testing.assert_close(together[k], normalize_points(points[k], cameras[k]))


COEFFICIENTS = [(-0.2, 0.05, 0.0), (0.1, -0.02, 0.003), (-0.05, 0.0, 0.0), (0.0, 0.0, 0.0), (0.3, 0.1, 0.05)]


@pytest.mark.parametrize("k", COEFFICIENTS)
def test_distort_agrees_with_opencv(k):
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 2))
    lens = np.array([k[0], k[1], 0, 0, k[2]])
    rays = np.concatenate([points, np.ones((50, 1))], axis=1)
    expected, _ = cv2.projectPoints(
        rays, np.zeros(3), np.zeros(3), K.numpy() * [[1, 0, 1], [1, 1, 1], [1, 1, 1]], lens
    )
    camera = K.clone()
    camera[0, 1] = 0
    ours = denormalize_points(distort(torch.from_numpy(points), torch.tensor(k, dtype=torch.float64)), camera)
    np.testing.assert_allclose(ours.numpy(), expected[:, 0], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-0.7, 0.7),
    y=st.floats(-0.7, 0.7),
    k=st.tuples(st.floats(-0.15, 0.3), st.floats(-0.02, 0.1), st.floats(-0.01, 0.05)),
)
def test_undistort_is_the_inverse_of_distort(x, y, k):
    points = torch.tensor([[x, y]], dtype=torch.float64)
    coefficients = torch.tensor(k, dtype=torch.float64)
    torch.testing.assert_close(
        undistort(distort(points, coefficients), coefficients), points, rtol=0, atol=1e-12
    )


def test_undistort_agrees_with_opencv_run_to_convergence():
    k = (-0.12, 0.03, 0.0)
    pixels = np.random.default_rng(1).uniform((0, 0), (640, 480), (200, 2))
    camera = np.array([[500.0, 0, 320], [0, 480, 240], [0, 0, 1]])
    lens = np.array([k[0], k[1], 0, 0, k[2]])
    plane = (pixels - [320, 240]) / [500, 480]
    ours = undistort(torch.from_numpy(plane), torch.tensor(k, dtype=torch.float64)).numpy()
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    theirs = cv2.undistortPoints(pixels[:, None], camera, lens, criteria=criteria)[:, 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_points_beyond_the_fold_are_nan_and_the_centre_is_kept():
    k = torch.tensor([-0.3, 0.0, 0.0], dtype=torch.float64)  # r (1 - 0.3 r^2) never exceeds 0.703
    result = undistort(torch.tensor([[0.0, 0.0], [0.69, 0.0], [0.9, 0.0]], dtype=torch.float64), k)
    assert result[0].tolist() == [0, 0]
    assert torch.isfinite(result[1]).all()
    torch.testing.assert_close(distort(result[1:2], k), torch.tensor([[0.69, 0.0]], dtype=torch.float64))
    assert torch.isnan(result[2]).all()


def test_gradients_are_exact():
    points = torch.tensor([[0.3, -0.2], [0.05, 0.4]], dtype=torch.float64, requires_grad=True)
    k = torch.tensor([-0.1, 0.05, 0.01], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(undistort, (points, k))
    assert torch.autograd.gradcheck(distort, (points, k))
    z = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    camera = K.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, d, c: project(unproject(p, d, c) + 1, c)[0], (points, z, camera)
    )
