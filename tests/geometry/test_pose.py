from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.geometry.pose import (
    direction_angle_deg,
    invert_pose,
    relative_pose,
    rotation_angle_deg,
    transform_points,
)


def rotation(axis: tuple[float, float, float], angle_deg: float) -> torch.Tensor:
    direction = np.asarray(axis, dtype=np.float64)
    direction /= np.linalg.norm(direction)
    return torch.from_numpy(cv2.Rodrigues(direction * math.radians(angle_deg))[0])


def pose(axis: tuple[float, float, float], angle_deg: float, t: tuple[float, float, float]) -> torch.Tensor:
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = rotation(axis, angle_deg)
    T[:3, 3] = torch.tensor(t)
    return T


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 0.1, 3.0, 90.0, 179.9, 180 - 1e-5, 180 - 1e-9, 180.0])
def test_rotation_angle_keeps_its_digits_near_0_and_180(angle):
    assert rotation_angle_deg(rotation((1, -2, 0.5), angle)).item() == pytest.approx(
        angle, rel=1e-6, abs=1e-12
    )


axes = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: sum(x * x for x in a) > 0.01)
vectors = st.tuples(*[st.floats(-50, 50)] * 3)


@settings(max_examples=50, deadline=None)
@given(axes, st.floats(0, 180), vectors, axes, st.floats(0, 180), vectors)
def test_relative_pose_carries_a_world_point_from_camera_to_camera(axis0, angle0, t0, axis1, angle1, t1):
    T0, T1 = pose(axis0, angle0, t0), pose(axis1, angle1, t1)
    world = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.5, 9.0]], dtype=torch.float64)
    in0, in1 = transform_points(world, T0), transform_points(world, T1)
    torch.testing.assert_close(transform_points(in0, relative_pose(T0, T1)), in1, rtol=0, atol=1e-10)
    torch.testing.assert_close(invert_pose(T0) @ T0, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(relative_pose(T0, T1), T1 @ torch.linalg.inv(T0), rtol=0, atol=1e-9)


def test_direction_angle_ignores_length_and_survives_zero():
    x = torch.tensor([3.0, 0, 0])
    assert direction_angle_deg(x, torch.tensor([0, 0.1, 0])).item() == pytest.approx(90)
    assert direction_angle_deg(x, -x).item() == pytest.approx(180)
    assert direction_angle_deg(x, torch.zeros(3)).item() == 0
