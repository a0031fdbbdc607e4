"""Essential and fundamental matrices, and distances to epipolar lines."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_matrix(t: Tensor) -> Tensor:
    """(..., 3, 3) matrix [t]x with [t]x v = t x v, of vectors (..., 3)."""
    x, y, z = t.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*x.shape, 3, 3)


def essential_from_pose(T_0to1: Tensor) -> Tensor:
    """E (..., 3, 3) of unit Frobenius norm with x1^T E x0 = 0 on points of the planes z = 1.

    E = [t]x R / |[t]x R|; zero for a pose without translation. Source: Hartley & Zisserman, eq. 9.12.
    """
    E = cross_matrix(T_0to1[..., :3, 3]) @ T_0to1[..., :3, :3]
    norm: Tensor = torch.linalg.matrix_norm(E, keepdim=True)
    return E / norm.clamp_min(torch.finfo(E.dtype).tiny)


def fundamental_from_pose(T_0to1: Tensor, K0: Tensor, K1: Tensor) -> Tensor:
    """F (..., 3, 3) = K1^-T E K0^-1, with p1^T F p0 = 0 on pixels. Source: Hartley & Zisserman, eq. 9.12."""
    E = essential_from_pose(T_0to1)
    F: Tensor = torch.linalg.inv(K1).transpose(-1, -2) @ E @ torch.linalg.inv(K0)
    return F


def symmetric_epipolar_distance(points0_N2: Tensor, points1_N2: Tensor, F_0to1: Tensor) -> Tensor:
    """Squared distance to the epipolar line in image 1 plus that in image 0, (..., N), in squared units.

    points0, points1: (..., N, 2), row i of both is a pair; F_0to1 (..., 3, 3) fits their unit (pixels, or E
    for points of z = 1). Pairs at an epipole give large finite values. Source: Hartley & Zisserman, eq.
    11.10.
    """
    residual, line0, line1 = _residual_and_lines(points0_N2, points1_N2, F_0to1)
    tiny = torch.finfo(residual.dtype).tiny
    inverse = 1 / line0.clamp_min(tiny) + 1 / line1.clamp_min(tiny)
    return residual.square() * inverse


def sampson_distance_gl3d(points0_N2: Tensor, points1_N2: Tensor, E_0to1: Tensor) -> Tensor:
    """GL3D's "symmetric epipolar distance" (..., N): |x1^T E x0| over the root of the sum of both squared
    line norms.

    It is the root of Sampson's first-order error, with 1e-6 under the root. Source: `tfmatch` tools/geom.
    """
    residual, line0, line1 = _residual_and_lines(points0_N2, points1_N2, E_0to1)
    return residual.abs() / (line0 + line1 + 1e-6).sqrt()


def _residual_and_lines(points0: Tensor, points1: Tensor, F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x1^T F x0 and the squared norms of the lines in image 0 and image 1, each (..., N)."""
    x0 = torch.cat([points0, torch.ones_like(points0[..., :1])], dim=-1)
    x1 = torch.cat([points1, torch.ones_like(points1[..., :1])], dim=-1)
    line1 = x0 @ F.transpose(-1, -2)
    line0 = x1 @ F
    residual = (x1 * line1).sum(-1)
    return residual, line0[..., :2].square().sum(-1), line1[..., :2].square().sum(-1)
