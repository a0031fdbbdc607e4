"""Pinhole cameras with radial distortion. Pixels have the centre of the first pixel at (0, 0)."""

from __future__ import annotations

import torch
from torch import Tensor

_NEWTON_STEPS = 20  # 3 or 4 do for real lenses, the rest is for strong distortion


def normalize_points(points_N2: Tensor, K: Tensor) -> Tensor:
    """Pixels (..., N, 2) to the plane z = 1 of the camera, (..., N, 2). K: (..., 3, 3), skew allowed."""
    y = (points_N2[..., 1] - K[..., None, 1, 2]) / K[..., None, 1, 1]
    x = (points_N2[..., 0] - K[..., None, 0, 2] - K[..., None, 0, 1] * y) / K[..., None, 0, 0]
    return torch.stack([x, y], dim=-1)


def denormalize_points(points_N2: Tensor, K: Tensor) -> Tensor:
    """Points (..., N, 2) of the plane z = 1 to pixels (..., N, 2)."""
    x, y = points_N2[..., 0], points_N2[..., 1]
    column = K[..., None, 0, 0] * x + K[..., None, 0, 1] * y + K[..., None, 0, 2]
    return torch.stack([column, K[..., None, 1, 1] * y + K[..., None, 1, 2]], dim=-1)


def project(points_N3: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (..., N, 2) and depth (..., N) of camera-frame points (..., N, 3).

    Where depth <= 0 (behind the camera) the pixel is meaningless, possibly inf or nan: mask with depth > 0.
    """
    depth = points_N3[..., 2]
    return denormalize_points(points_N3[..., :2] / depth[..., None], K), depth


def unproject(points_N2: Tensor, depth_N: Tensor, K: Tensor) -> Tensor:
    """Camera-frame points (..., N, 3) of pixels (..., N, 2) at z-depth (..., N)."""
    plane = normalize_points(points_N2, K)
    return torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1) * depth_N[..., None]


def distort(points_N2: Tensor, k: Tensor) -> Tensor:
    """Apply radial distortion to points (..., N, 2) of the plane z = 1. k: (..., 3) = k1, k2, k3.

    r -> r (1 + k1 r^2 + k2 r^4 + k3 r^6), OpenCV's model with the coefficients (k1, k2, 0, 0, k3).
    """
    r2 = points_N2.square().sum(-1, keepdim=True)
    return points_N2 * _factor(r2, k[..., None, :])


def undistort(points_N2: Tensor, k: Tensor) -> Tensor:
    """Undo `distort`, (..., N, 2). Points that no undistorted point maps to (beyond the fold) come back as
    nan.

    Newton's method on the radius. Differentiable in both arguments: the last step carries the gradient of the
    implicit function. Accuracy: that of the dtype.
    """
    k_N3 = k[..., None, :]
    radius = torch.linalg.vector_norm(points_N2, dim=-1, keepdim=True)
    with torch.no_grad():
        solution = _solve_radius(radius, k_N3)
    r2 = solution.square()
    solution = solution - (solution * _factor(r2, k_N3) - radius) / _slope(r2, k_N3).detach()
    tiny = torch.finfo(radius.dtype).tiny
    scale = torch.where(radius > tiny, solution / radius.clamp_min(tiny), 1.0)
    return points_N2 * scale


def _solve_radius(distorted: Tensor, k: Tensor) -> Tensor:
    """Smallest r >= 0 with r * factor(r^2) = distorted, to half the dtype's digits or better; nan if none."""
    r = distorted.clone()
    # Every step squares the error, so one that moves by less than half the digits was the last one needed.
    settled = torch.finfo(r.dtype).eps ** 0.5
    for _ in range(_NEWTON_STEPS):
        r2 = r.square()
        slope = _slope(r2, k)
        newton = (r - (r * _factor(r2, k) - distorted) / slope).clamp_min(0)
        # Half the way towards 0 where Newton left the increasing part of the curve.
        moved = torch.where(slope > 0, newton, r / 2)
        is_settled = bool(((moved - r).abs() <= settled * r).all())
        r = moved
        if is_settled:
            break
    r2 = r.square()
    error = (r * _factor(r2, k) - distorted).abs()
    found = (error <= 1e-4 * distorted.clamp_min(1e-3)) & (_slope(r2, k) > 0)
    return torch.where(found, r, torch.nan)


def _factor(r2: Tensor, k: Tensor) -> Tensor:
    return 1 + r2 * (k[..., 0:1] + r2 * (k[..., 1:2] + r2 * k[..., 2:3]))


def _slope(r2: Tensor, k: Tensor) -> Tensor:
    """d/dr of r * factor(r^2)."""
    return 1 + r2 * (3 * k[..., 0:1] + r2 * (5 * k[..., 1:2] + r2 * 7 * k[..., 2:3]))
