from __future__ import annotations

import kornia.geometry.epipolar as ke
import numpy as np
import pytest
import torch

from matchlib.geometry.camera import normalize_points, project
from matchlib.geometry.epipolar import (
    cross_matrix,
    essential_from_pose,
    fundamental_from_pose,
    sampson_distance_gl3d,
    symmetric_epipolar_distance,
)
from matchlib.geometry.pose import transform_points

K0 = torch.tensor([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]], dtype=torch.float64)
K1 = torch.tensor([[600.0, 1, 300], [0, 590, 200], [0, 0, 1]], dtype=torch.float64)


@pytest.fixture
def views():
    angle = 0.2
    T = torch.eye(4, dtype=torch.float64)
    T[0, 0] = T[2, 2] = np.cos(angle)
    T[0, 2], T[2, 0] = np.sin(angle), -np.sin(angle)
    T[:3, 3] = torch.tensor([-1.0, 0.1, 0.3])
    points = torch.rand(
        40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ) * 2 + torch.tensor([-1.0, -1, 4])
    pixels0, _ = project(points, K0)
    pixels1, _ = project(transform_points(points, T), K1)
    return T, pixels0, pixels1


def test_cross_matrix_is_the_cross_product():
    a, b = torch.tensor([1.0, 2, 3]), torch.tensor([-4.0, 5, 0.5])
    torch.testing.assert_close(cross_matrix(a) @ b, torch.linalg.cross(a, b))


def test_true_pairs_fulfil_the_constraint_on_rays_and_on_pixels(views):
    T, pixels0, pixels1 = views
    E, F = essential_from_pose(T), fundamental_from_pose(T, K0, K1)
    assert torch.linalg.matrix_norm(E).item() == pytest.approx(1)
    rays0, rays1 = normalize_points(pixels0, K0), normalize_points(pixels1, K1)
    assert symmetric_epipolar_distance(rays0, rays1, E).max() < 1e-20
    assert symmetric_epipolar_distance(pixels0, pixels1, F).max() < 1e-18
    assert sampson_distance_gl3d(rays0, rays1, E).max() < 1e-12


def test_distance_agrees_with_kornia(views):
    T, pixels0, pixels1 = views
    F = fundamental_from_pose(T, K0, K1)
    moved = pixels1 + torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5
    ours = symmetric_epipolar_distance(pixels0, moved, F)
    torch.testing.assert_close(ours, ke.symmetrical_epipolar_distance(pixels0[None], moved[None], F[None])[0])


def test_gl3d_distance_is_the_root_of_sampsons(views):
    T, pixels0, pixels1 = views
    E = essential_from_pose(T)
    rays0, rays1 = normalize_points(pixels0, K0), normalize_points(pixels1, K1) + 0.05
    ours = sampson_distance_gl3d(rays0, rays1, E)
    theirs = ke.sampson_epipolar_distance(rays0[None], rays1[None], E[None])[0].sqrt()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)  # theirs lacks the 1e-6 under the root


def test_a_shift_across_the_line_is_measured_in_pixels():
    """For a sideways camera the lines are rows: two rows off is 2 px in each image."""
    T = torch.eye(4, dtype=torch.float64)
    T[0, 3] = 1
    F = fundamental_from_pose(T, K0, K0)
    point = torch.tensor([[100.0, 50.0]], dtype=torch.float64)
    distance = symmetric_epipolar_distance(point, point + torch.tensor([[30.0, 2.0]]), F)
    assert distance.item() == pytest.approx(2 * 2**2)


def test_a_pose_without_translation_gives_zero_and_not_nan():
    assert essential_from_pose(torch.eye(4)).tolist() == torch.zeros(3, 3).tolist()
    point = torch.zeros(1, 2)
    assert torch.isfinite(symmetric_epipolar_distance(point, point, torch.zeros(3, 3))).all()


def test_gradients_are_exact(views):
    T, pixels0, pixels1 = views
    rays0 = normalize_points(pixels0[:3], K0).requires_grad_()
    rays1 = (normalize_points(pixels1[:3], K1) + 0.1).requires_grad_()
    E = essential_from_pose(T).requires_grad_()
    assert torch.autograd.gradcheck(symmetric_epipolar_distance, (rays0, rays1, E))
    assert torch.autograd.gradcheck(sampson_distance_gl3d, (rays0, rays1, E))
    assert torch.autograd.gradcheck(essential_from_pose, (T.clone().requires_grad_(),))
