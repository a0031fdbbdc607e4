from __future__ import annotations

import kornia.geometry.epipolar as ke
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matchlib.geometry.camera import normalize_points, project
from matchlib.geometry.epipolar import (
    clip_lines,
    cross_matrix,
    epipolar_lines,
    essential_from_pose,
    fundamental_from_pose,
    point_line_distance,
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


def test_lines_agree_with_kornia_and_hold_the_true_partners(views):
    T, pixels0, pixels1 = views
    F = fundamental_from_pose(T, K0, K1)
    ours = epipolar_lines(pixels0, F)
    torch.testing.assert_close(ours, ke.compute_correspond_epilines(pixels0[None], F[None])[0])
    assert point_line_distance(pixels1, ours).max() < 1e-9
    assert point_line_distance(pixels0, epipolar_lines(pixels1, F.mT)).max() < 1e-9


def test_both_one_way_distances_make_the_symmetric_one(views):
    T, pixels0, pixels1 = views
    F = fundamental_from_pose(T, K0, K1)
    moved = pixels1 + 7
    parts = (
        point_line_distance(moved, epipolar_lines(pixels0, F)),
        point_line_distance(pixels0, epipolar_lines(moved, F.mT)),
    )
    whole = symmetric_epipolar_distance(pixels0, moved, F)
    torch.testing.assert_close(parts[0].square() + parts[1].square(), whole)


def test_lines_as_float32_lose_less_than_a_thousandth_of_a_pixel(views):
    T, pixels0, pixels1 = views
    lines = epipolar_lines(pixels0, fundamental_from_pose(T, K0, K1)).float()
    assert point_line_distance(pixels1.float(), lines).max() < 1e-3


def test_the_epipole_and_a_zero_matrix_have_no_line(views):
    T, _, _ = views
    F = fundamental_from_pose(T, K0, K1)
    centre1_in_0 = -T[:3, :3].T @ T[:3, 3]
    epipole = (K0 @ centre1_in_0)[:2] / centre1_in_0[2]
    assert epipolar_lines(epipole[None], F).tolist() == [[0, 0, 0]]
    assert epipolar_lines(torch.ones(1, 2).double(), torch.zeros_like(F)).tolist() == [[0, 0, 0]]


def test_distance_to_a_line_in_closed_form_and_its_gradient():
    points = torch.tensor([[0.0, 0.0], [5.0, 1.0]], dtype=torch.float64, requires_grad=True)
    lines = torch.tensor([[3.0, 4.0, 10.0], [0.0, 2.0, -6.0]], dtype=torch.float64, requires_grad=True)
    assert point_line_distance(points, lines).tolist() == [2.0, 2.0]
    assert torch.autograd.gradcheck(point_line_distance, (points, lines))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ((0, 1, -10), [(0, 10), (63, 10)]),
        ((1, 0, -20), [(20, 0), (20, 47)]),
        ((0, 5, 0), [(0, 0), (63, 0)]),  # along the upper side
        ((1, -1, 0), [(0, 0), (47, 47)]),  # through a corner
        ((47, -63, 0), [(0, 0), (63, 47)]),  # through two corners
        ((1, 1, -5), [(5, 0), (0, 5)]),
    ],
)
def test_clipped_lines_in_closed_form(line, expected):
    ends, valid = clip_lines(torch.tensor([line], dtype=torch.float64), (64, 48))
    assert valid.item()
    np.testing.assert_allclose(sorted(ends[0].tolist()), sorted(expected), atol=1e-9)


@pytest.mark.parametrize(
    "line", [(0, 1, 1), (1, 0, -64), (1, 1, 0), (0, 0, 0), (0, 0, 1), (np.nan, 1, 0), (1, np.inf, 0)]
)
def test_lines_beside_the_image_and_no_lines_are_invalid_and_finite(line):
    """(1, 1, 0) touches the first corner and crosses nothing."""
    ends, valid = clip_lines(torch.tensor([[line]], dtype=torch.float64), (64, 48))
    assert not valid.any()
    assert ends.tolist() == [[[[0, 0], [0, 0]]]]


@given(
    angle=st.floats(0, 2 * np.pi),
    offset=st.floats(-60, 60),
    scale=st.floats(1e-6, 1e6),
    width=st.integers(2, 100),
    height=st.integers(2, 100),
)
def test_clipped_lines_end_where_the_sides_of_the_image_change_sign(angle, offset, scale, width, height):
    """Independent truth: a side of the image is crossed where its corners are on different sides of the line."""
    a, b = np.cos(angle), np.sin(angle)
    c = -(a * (width - 1) + b * (height - 1)) / 2 - offset
    ends, valid = clip_lines(
        torch.tensor([a * scale, b * scale, c * scale], dtype=torch.float64)[None], (width, height)
    )
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    sides = corners @ [a, b] + c
    if abs(sides).min() < 1e-6:
        return  # through a corner: covered in closed form
    assert valid.item() == (sides.min() < 0 < sides.max())
    if valid.item():
        crossings = [
            corners[i] + (corners[(i + 1) % 4] - corners[i]) * sides[i] / (sides[i] - sides[(i + 1) % 4])
            for i in range(4)
            if sides[i] * sides[(i + 1) % 4] < 0
        ]
        found = ends[0].numpy()
        distances = np.linalg.norm(found[:, None] - np.array(crossings), axis=-1)
        assert distances.min(axis=1).max() < 1e-6 and distances.min(axis=0).max() < 1e-6
