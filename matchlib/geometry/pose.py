"""Rigid poses: 4x4 matrices that map points of one frame to another."""

from __future__ import annotations

import torch
from torch import Tensor


def invert_pose(T: Tensor) -> Tensor:
    """Inverse (..., 4, 4) of rigid poses (..., 4, 4), from the transposed rotation."""
    R_t = T[..., :3, :3].transpose(-1, -2)
    return _assemble(R_t, -(R_t @ T[..., :3, 3:]))


def relative_pose(T_world_to_cam0: Tensor, T_world_to_cam1: Tensor) -> Tensor:
    """`T_0to1` (..., 4, 4) that maps camera-0 to camera-1 coordinates, from two world-to-camera poses.

    Rotation R1 R0^T, translation t1 - R t0.
    """
    R0, t0 = T_world_to_cam0[..., :3, :3], T_world_to_cam0[..., :3, 3:]
    R1, t1 = T_world_to_cam1[..., :3, :3], T_world_to_cam1[..., :3, 3:]
    R = R1 @ R0.transpose(-1, -2)
    return _assemble(R, t1 - R @ t0)


def transform_points(points_N3: Tensor, T: Tensor) -> Tensor:
    """Points (..., N, 3) mapped by rigid poses (..., 4, 4)."""
    return points_N3 @ T[..., :3, :3].transpose(-1, -2) + T[..., None, :3, 3]


def rotation_angle_deg(R: Tensor) -> Tensor:
    """Angle (...) in degrees, 0 to 180, of rotations (..., 3, 3).

    atan2 of sine and cosine: exact near 0 and near 180 degrees, where arccos of the trace loses half the
    digits. The gradient is undefined at exactly 0 and 180.
    """
    axis_sine = torch.stack(
        [
            R[..., 2, 1] - R[..., 1, 2],
            R[..., 0, 2] - R[..., 2, 0],
            R[..., 1, 0] - R[..., 0, 1],
        ],
        dim=-1,
    )
    twice_cosine = R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.rad2deg(torch.atan2(torch.linalg.vector_norm(axis_sine, dim=-1), twice_cosine))


def direction_angle_deg(t0: Tensor, t1: Tensor) -> Tensor:
    """Angle (...) in degrees, 0 to 180, between directions (..., 3) of any length; nan-free for zero vectors
    (0).
    """
    sine = torch.linalg.vector_norm(torch.linalg.cross(t0, t1), dim=-1)
    return torch.rad2deg(torch.atan2(sine, (t0 * t1).sum(-1)))


def _assemble(R: Tensor, t: Tensor) -> Tensor:
    top = torch.cat([R, t], dim=-1)
    last = torch.zeros_like(top[..., :1, :])
    last[..., 0, 3] = 1
    return torch.cat([top, last], dim=-2)
