"""Ray intersections against points that lie on the surface by construction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.mirror.surfaces import Ball, Column, Quad, TextureWindow, box

unit = st.floats(0.01, 0.99)
coordinate = st.floats(-3, 3)
EYE = np.array([0.3, -0.4, -9.0])


def shoot(surface, target):
    """Depth, u, v, normal of the ray from EYE with z = 1 towards `target`."""
    direction = (target - EYE) / (target - EYE)[2]
    hits = surface.intersect(EYE, direction[None])
    return hits.depth[0], hits.u[0], hits.v[0], np.atleast_2d(hits.normal)[0]


@settings(max_examples=60, deadline=None)
@given(a=unit, b=unit, x=coordinate, y=coordinate, yaw=st.floats(-1.2, 1.2), width=st.floats(0.2, 4))
def test_quad_returns_depth_and_texture_position_of_a_point_on_it(a, b, x, y, yaw, width):
    edge_u = width * np.array([np.cos(yaw), 0, np.sin(yaw)])
    quad = Quad(
        corner=np.array([x, y, 1.0]),
        edge_u=edge_u,
        edge_v=np.array([0.0, 2.0, 0.0]),
        texture=0,
        window=TextureWindow(u=0.1, v=0.2, side=0.5),
    )
    point = quad.corner + a * quad.edge_u + b * quad.edge_v
    normal_dot_view = abs(np.dot(np.cross(quad.edge_u, quad.edge_v), point - EYE))
    if normal_dot_view < 1e-3:  # seen from the side
        return
    depth, u, v, normal = shoot(quad, point)
    longer = max(width, 2.0)
    assert depth == pytest.approx(point[2] - EYE[2], rel=1e-9)
    assert u == pytest.approx(0.1 + 0.5 * a * width / longer, abs=1e-7)
    assert v == pytest.approx(0.2 + 0.5 * b * 2.0 / longer, abs=1e-7)
    assert np.linalg.norm(normal) == pytest.approx(1)
    assert abs(normal @ quad.edge_u) < 1e-9
    assert abs(normal @ quad.edge_v) < 1e-9


@settings(max_examples=60, deadline=None)
@given(azimuth=st.floats(-1.1, 1.1), height=st.floats(-0.9, 0.9), x=coordinate, radius=st.floats(0.2, 1.5))
def test_column_returns_its_near_side(azimuth, height, x, radius):
    column = Column(x=x, z=2.0, radius=radius, top=-1.0, bottom=1.0, texture=0)
    outward = np.array([np.sin(azimuth), 0, -np.cos(azimuth)])
    point = np.array([x, height, 2.0]) + radius * outward
    if outward @ (EYE - point) <= 0.05:  # on the far side
        return
    depth, u, v, normal = shoot(column, point)
    assert depth == pytest.approx(point[2] - EYE[2], rel=1e-7)
    assert u == pytest.approx(azimuth / (2 * np.pi) + 0.5, abs=1e-6)
    assert v == pytest.approx((height + 1) / 2, abs=1e-6)
    assert normal == pytest.approx(outward, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-0.7, 0.7), y=st.floats(-0.7, 0.7), radius=st.floats(0.2, 1.5))
def test_ball_returns_its_near_side(x, y, radius):
    outward = np.array([x, y, -np.sqrt(max(1 - x * x - y * y, 0.02))])
    outward /= np.linalg.norm(outward)
    ball = Ball(centre=np.array([0.5, 0.2, 1.0]), radius=radius, texture=0)
    point = ball.centre + radius * outward
    if outward @ (EYE - point) <= 0.05:
        return
    depth, u, v, normal = shoot(ball, point)
    assert depth == pytest.approx(point[2] - EYE[2], rel=1e-7)
    assert normal == pytest.approx(outward, abs=1e-6)
    assert 0 <= u <= 1
    assert 0 <= v <= 1


def test_ball_texture_keeps_areas():
    """Equal solid angles take equal texture areas (Lambert): compare the Jacobian at two places."""
    ball = Ball(centre=np.zeros(3), radius=1.0, texture=0)

    def texture_area(normal):
        tangent = np.cross(normal, [0.3, 1.0, 0.2])
        tangent /= np.linalg.norm(tangent)
        step = 1e-4
        positions = []
        for offset in (np.zeros(3), step * tangent, step * np.cross(normal, tangent)):
            point = normal + offset
            point /= np.linalg.norm(point)
            hits = ball.intersect(2 * point, -point[None])  # from straight above the point
            positions.append([hits.u[0], hits.v[0]])
        first, second = np.array(positions[1:]) - positions[0]
        return abs(first[0] * second[1] - first[1] * second[0]) / step**2

    front = texture_area(np.array([0.0, 0.0, -1.0]))
    side = texture_area(np.array([0.8, 0.3, -np.sqrt(1 - 0.73)]))
    assert side == pytest.approx(front, rel=1e-3)


@pytest.mark.parametrize(
    "surface",
    [
        Quad(corner=np.zeros(3), edge_u=np.array([1.0, 0, 0]), edge_v=np.array([0, 1.0, 0]), texture=0),
        Column(x=0, z=0, radius=1, top=0, bottom=1, texture=0),
        Ball(centre=np.zeros(3), radius=1, texture=0),
    ],
)
def test_rays_that_miss_or_look_away_have_infinite_depth(surface):
    past = np.array([[5.0, 5.0, 1.0], [0.0, 5.0, 1.0]])
    assert np.isinf(surface.intersect(EYE, past).depth).all()
    behind = np.array([0.4, 0.4, 9.0])
    assert np.isinf(surface.intersect(behind, np.array([[0.0, 0.0, 1.0]])).depth).all()


def test_every_point_of_a_surface_is_within_its_bounds():
    rng = np.random.default_rng(0)
    for surface in (
        Column(x=1, z=2, radius=0.7, top=-1, bottom=1, texture=0),
        Ball(centre=np.array([1.0, 0.0, 2.0]), radius=0.7, texture=0),
    ):
        directions = np.column_stack([rng.uniform(-0.3, 0.3, (4000, 2)), np.ones(4000)])
        depth = surface.intersect(EYE, directions).depth
        hit = np.isfinite(depth)
        points = EYE + depth[hit, None] * directions[hit]
        bounds = surface.bounds()
        assert hit.sum() > 20
        assert (points >= bounds.min(axis=0) - 1e-9).all()
        assert (points <= bounds.max(axis=0) + 1e-9).all()


def test_box_has_five_faces_of_the_given_size():
    faces = box(np.zeros(3), np.array([1.0, 2.0, 3.0]), 0.4, (0,) * 5, (TextureWindow(),) * 5)
    areas = sorted(np.linalg.norm(face.edge_u) * np.linalg.norm(face.edge_v) for face in faces)
    assert areas == pytest.approx([2.0, 2.0, 3.0, 6.0, 6.0])
    corners = np.concatenate([face.bounds() for face in faces])
    assert np.unique(corners.round(9), axis=0).shape == (8, 3)
