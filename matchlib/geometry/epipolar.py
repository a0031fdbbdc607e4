"""Essential and fundamental matrices, epipolar lines and distances to them."""

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


def epipolar_lines(points_N2: Tensor, F_0to1: Tensor) -> Tensor:
    """Lines (a, b, c), (..., N, 3), a x + b y + c = 0 in image 1, of points (..., N, 2) of image 0.

    F_0to1: (..., 3, 3) of the same dtype; its entries span six decades and more, so let both be float64. (a, b) has
    unit length, so that what follows may go on in float32. A point at the epipole, or a zero F, has no line: it gives
    (0, 0, 0). For lines in image 0 of points of image 1 pass `F_0to1.mT`.
    """
    homogeneous = torch.cat([points_N2, torch.ones_like(points_N2[..., :1])], dim=-1)
    lines = homogeneous @ F_0to1.mT
    length = torch.linalg.vector_norm(lines[..., :2], dim=-1, keepdim=True)
    # What the sums above would leave behind by rounding if they cancelled.
    terms = torch.linalg.vector_norm((homogeneous.abs() @ F_0to1.mT.abs())[..., :2], dim=-1, keepdim=True)
    is_line = length > 8 * torch.finfo(lines.dtype).eps * terms
    return torch.where(is_line, lines / torch.where(is_line, length, 1), 0)


def point_line_distance(points_N2: Tensor, lines_N3: Tensor) -> Tensor:
    """Distances (..., N), each >= 0, of points (..., N, 2) to lines (..., N, 3) of any scale, in the points' unit.

    A line (0, 0, 0) is at distance 0 of everything; mask it. Differentiable.
    """
    normal = lines_N3[..., :2]
    length = torch.linalg.vector_norm(normal, dim=-1)
    residual = (points_N2 * normal).sum(-1) + lines_N3[..., 2]
    distance: Tensor = residual.abs() / length.clamp_min(1e-8)
    return distance


def clip_lines(lines_N3: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The part of each line that lies in an image of `size` = (width, height): ends (..., N, 2, 2) and validity.

    lines: (..., N, 3). The image is [0, width - 1] x [0, height - 1], between the centres of its outermost pixels;
    ends lie on its border. valid (..., N) bool: the line crosses it; where not, or where the line is (0, 0, 0) or not
    finite, both ends are (0, 0). A line through a corner counts if it crosses the image, and one that only touches a
    corner does not. Source: the slab method, as of Kay & Kajiya 1986.
    """
    a, b, c = lines_N3.unbind(-1)
    length = torch.linalg.vector_norm(lines_N3[..., :2], dim=-1)
    scale = 1 / torch.where(length > 0, length, 1)
    far = lines_N3.new_tensor([size[0] - 1.0, size[1] - 1.0])
    # The point of the line that is nearest to the image's centre, and from there along the line.
    offset = ((a * far[0] + b * far[1]) / 2 + c) * scale
    nearest = far / 2 - offset[..., None] * lines_N3[..., :2] * scale[..., None]
    direction = torch.stack([-b, a], dim=-1) * scale[..., None]
    parallel = direction.abs() < torch.finfo(lines_N3.dtype).tiny
    steps = torch.where(parallel, 1, direction)
    at_low, at_far = -nearest / steps, (far - nearest) / steps
    begin = torch.where(parallel, -torch.inf, torch.minimum(at_low, at_far)).amax(-1)
    end = torch.where(parallel, torch.inf, torch.maximum(at_low, at_far)).amin(-1)
    within = (~parallel | ((nearest >= 0) & (nearest <= far))).all(-1)
    rounding = 8 * torch.finfo(lines_N3.dtype).eps * max(size)
    valid = (length > 0) & torch.isfinite(lines_N3).all(-1) & within & (end - begin > rounding)
    along = torch.stack([begin, end], dim=-1)[..., None]
    ends = (nearest[..., None, :] + along * direction[..., None, :]).clamp_min(0).minimum(far)
    return torch.where(valid[..., None, None], ends, 0), valid


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
