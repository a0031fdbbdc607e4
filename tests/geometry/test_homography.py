from __future__ import annotations

import cv2
import kornia.geometry as kg
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.geometry.homography import (
    corner_error_px,
    homography_from_points,
    image_corners,
    points_in_front,
    warp_points,
)

H = torch.tensor([[1.1, 0.02, 5], [-0.03, 0.95, -2], [1e-4, 2e-4, 1]], dtype=torch.float64)


def test_warping_there_and_back_returns_the_points():
    points = 100 * torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        warp_points(warp_points(points, H), torch.linalg.inv(H)), points, rtol=0, atol=1e-9
    )


def test_warping_agrees_with_kornia_and_scale_does_not_matter():
    points = 100 * torch.rand(2, 30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = torch.stack([H, torch.linalg.inv(H)])
    torch.testing.assert_close(warp_points(points, both), kg.transform_points(both, points))
    torch.testing.assert_close(warp_points(points, -7 * both), warp_points(points, both))
    assert warp_points(torch.zeros(0, 2, dtype=torch.float64), H).shape == (0, 2)


def test_points_behind_the_horizon_are_told_apart():
    tilted = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]])
    assert points_in_front(torch.tensor([[99.0, 0], [101.0, 0]]), tilted).tolist() == [True, False]


corner = st.tuples(st.floats(-40, 40), st.floats(-40, 40))


@settings(max_examples=60, deadline=None)
@given(st.tuples(corner, corner, corner, corner))
def test_the_homography_of_four_points_maps_them_exactly_and_agrees_with_opencv(moves):
    source = image_corners((640, 480))
    target = source + torch.tensor(moves, dtype=torch.float64)
    estimated = homography_from_points(source, target)
    torch.testing.assert_close(warp_points(source, estimated), target, rtol=0, atol=1e-7)
    theirs = cv2.getPerspectiveTransform(source.numpy().astype(np.float32), target.numpy().astype(np.float32))
    inside = torch.tensor([[300.0, 200.0], [10.0, 400.0]], dtype=torch.float64)
    torch.testing.assert_close(
        warp_points(inside, estimated), warp_points(inside, torch.from_numpy(theirs)), rtol=0, atol=1e-3
    )


def test_three_points_are_too_few():
    with pytest.raises(ShapeError, match="expected shape"):
        homography_from_points(image_corners((10, 10))[:3], image_corners((10, 10))[:3])


def test_corner_error_of_a_shift_is_its_length():
    shift = torch.eye(3, dtype=torch.float64)
    shift[0, 2], shift[1, 2] = 3, 4
    assert corner_error_px(shift, torch.eye(3, dtype=torch.float64), (640, 480)).item() == pytest.approx(5)


def test_gradients_are_exact():
    points = torch.tensor([[3.0, 4.0], [50.0, 7.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(warp_points, (points, H.clone().requires_grad_()))
    target = (image_corners((64, 48)) + 2.5).requires_grad_()
    assert torch.autograd.gradcheck(homography_from_points, (image_corners((64, 48)), target))
