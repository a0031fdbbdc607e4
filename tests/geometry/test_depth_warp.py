from __future__ import annotations

import math

import pytest
import torch

from matchlib.geometry.camera import unproject
from matchlib.geometry.depth_warp import TFMATCH_ABSOLUTE_THRESHOLD, warp_points_by_depth
from matchlib.geometry.homography import warp_points
from matchlib.geometry.pose import invert_pose
from matchlib.geometry.sampling import pixel_grid

HEIGHT, WIDTH = 48, 64
K = torch.tensor([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]], dtype=torch.float64)
NORMAL = torch.tensor([0.1, -0.2, 1.0], dtype=torch.float64)  # the plane NORMAL . X = 5 in camera 0


def side_step(angle_deg: float = 4.0) -> torch.Tensor:
    a = math.radians(angle_deg)
    T = torch.eye(4, dtype=torch.float64)
    T[0, 0] = T[2, 2] = math.cos(a)
    T[0, 2], T[2, 0] = math.sin(a), -math.sin(a)
    T[:3, 3] = torch.tensor([-0.3, 0.1, 0.05])
    return T


def plane_depth(T_0_to_cam: torch.Tensor) -> torch.Tensor:
    """Exact depth map of the plane, seen by the camera with that pose."""
    T = invert_pose(T_0_to_cam)
    rays = unproject(pixel_grid(HEIGHT, WIDTH).double(), torch.ones(HEIGHT * WIDTH, dtype=torch.float64), K)
    directions = rays @ T[:3, :3].T
    depth = (5 - NORMAL @ T[:3, 3]) / (directions @ NORMAL)
    return depth.reshape(HEIGHT, WIDTH)


@pytest.fixture
def world():
    T = side_step()
    return plane_depth(torch.eye(4, dtype=torch.float64)), plane_depth(T), T


def test_a_plane_warps_by_its_homography(world):
    depth0, depth1, T = world
    points = pixel_grid(HEIGHT, WIDTH).double()
    warped, valid = warp_points_by_depth(points, depth0, depth1, K, K, T)
    H = K @ (T[:3, :3] + T[:3, 3:] @ NORMAL[None] / 5) @ torch.linalg.inv(K)
    assert valid.float().mean() > 0.7
    torch.testing.assert_close(warped[valid], warp_points(points, H)[valid], rtol=0, atol=1e-9)


def test_there_and_back_returns_the_points(world):
    depth0, depth1, T = world
    points = pixel_grid(HEIGHT, WIDTH).double()
    warped, valid = warp_points_by_depth(points, depth0, depth1, K, K, T)
    back, valid_back = warp_points_by_depth(warped[valid], depth1, depth0, K, K, invert_pose(T))
    assert valid_back.float().mean() > 0.95
    error = (back - points[valid])[valid_back].abs().max()
    assert error < 0.01  # bilinear depth of a plane is not exactly the plane's depth


def test_batches_give_what_single_pairs_give(world):
    depth0, depth1, T = world
    points = pixel_grid(HEIGHT, WIDTH).double()[::7]
    one = warp_points_by_depth(points, depth0, depth1, K, K, T)
    both = warp_points_by_depth(
        points.expand(2, -1, -1),
        torch.stack([depth0, 2 * depth0]),
        torch.stack([depth1, depth1]),
        K.expand(2, 3, 3),
        K.expand(2, 3, 3),
        T.expand(2, 4, 4),
    )
    torch.testing.assert_close(both[0][0], one[0])
    assert torch.equal(both[1][0], one[1])
    assert not both[1][1].any()  # depths that disagree by a factor of two


@pytest.mark.parametrize("side", ["depth0", "depth1"])
def test_unknown_depth_makes_neighbours_invalid_and_nothing_nan(world, side):
    depth0, depth1, T = (value.clone() for value in world)
    (depth0 if side == "depth0" else depth1)[20:24, 20:24] = 0
    points = pixel_grid(HEIGHT, WIDTH).double().requires_grad_()
    warped, valid = warp_points_by_depth(points, depth0, depth1, K, K, T)
    _, before = warp_points_by_depth(points, world[0], world[1], K, K, T)
    assert 10 < int(before.sum() - valid.sum()) < 60
    assert torch.isfinite(warped).all()
    warped[valid].sum().backward()
    assert torch.isfinite(points.grad).all()


def test_points_behind_the_other_camera_are_invalid(world):
    depth0, depth1, _ = world
    T = torch.eye(4, dtype=torch.float64)
    T[2, 3] = -20
    warped, valid = warp_points_by_depth(pixel_grid(HEIGHT, WIDTH).double(), depth0, depth1, K, K, T)
    assert not valid.any()
    assert torch.isfinite(warped).all()


def test_the_relative_check_does_not_depend_on_the_unit_and_the_absolute_one_does(world):
    depth0, depth1, T = world
    depth1 = depth1 * 1.02
    points = pixel_grid(HEIGHT, WIDTH).double()
    far = T.clone()
    far[:3, 3] *= 100
    near_valid = warp_points_by_depth(points, depth0, depth1, K, K, T)[1]
    far_valid = warp_points_by_depth(points, 100 * depth0, 100 * depth1, K, K, far)[1]
    assert near_valid.any() and torch.equal(near_valid, far_valid)
    absolute = {"absolute_threshold": TFMATCH_ABSOLUTE_THRESHOLD}
    exact = (depth0 / 100, world[1] / 100)
    small = T.clone()
    small[:3, 3] /= 100
    # One hundredth of the size: even a depth that is wrong by half passes the absolute check.
    assert warp_points_by_depth(points, exact[0], 1.5 * exact[1], K, K, small, **absolute)[1].any()
    assert not warp_points_by_depth(points, depth0, depth1, K, K, T, **absolute)[1].any()
    assert not warp_points_by_depth(points, depth0, depth1, K, K, T, relative_threshold=0.01)[1].any()


def test_maps_of_two_sizes_and_empty_input(world):
    depth0, depth1, T = world
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)) @ K
    points = pixel_grid(HEIGHT, WIDTH).double()[::5]
    full, valid_full = warp_points_by_depth(points, depth0, depth1, K, K, T)
    small, valid_small = warp_points_by_depth(points, depth0, depth1[::2, ::2], K, half, T)
    both = valid_full & valid_small
    assert both.float().mean() > 0.6
    torch.testing.assert_close(small[both] * 2, full[both], rtol=0, atol=1e-9)
    empty, valid = warp_points_by_depth(points[:0], depth0, depth1, K, K, T)
    assert empty.shape == (0, 2) and valid.shape == (0,)


def test_gradients_are_exact(world):
    depth0, depth1, T = world
    points = torch.tensor([[30.3, 20.6], [25.2, 17.9]], dtype=torch.float64, requires_grad=True)
    patch = depth0[16:24, 22:34].clone().requires_grad_()
    pose = T.clone().requires_grad_()

    def warp(p, d, t):
        depth = depth0.clone()
        depth[16:24, 22:34] = d
        warped, valid = warp_points_by_depth(p, depth, depth1, K, K, t)
        assert valid.all()
        return warped

    assert torch.autograd.gradcheck(warp, (points, patch, pose))
