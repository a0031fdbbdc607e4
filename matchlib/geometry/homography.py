"""Planar homographies in pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.errors import check_shape


def warp_points(points_N2: Tensor, H_0to1: Tensor) -> Tensor:
    """Map pixels of image 0 to image 1 by a homography.

    points_N2: (..., N, 2), N may be 0; H_0to1: (..., 3, 3) of the same dtype, any scale. Returns (..., N, 2).
    Points on the horizon come back as inf or nan, points beyond it mirrored: mask with `points_in_front`.
    Source: Hartley & Zisserman, 2nd ed., eq. 2.5.
    """
    xyw = _homogeneous(points_N2) @ H_0to1.transpose(-1, -2)
    return xyw[..., :2] / xyw[..., 2:]


def points_in_front(points_N2: Tensor, H_0to1: Tensor) -> Tensor:
    """(..., N) bool: on the same side of the horizon as the pixel (0, 0), which must not lie on it."""
    w = (_homogeneous(points_N2) @ H_0to1.transpose(-1, -2))[..., 2]
    return w * H_0to1[..., None, 2, 2] > 0


def local_scale(H_0to1: Tensor, points_N2: Tensor) -> Tensor:
    """By how much a homography enlarges lengths around points, sqrt |det J|; J is its Jacobian there.

    H_0to1: (3, 3) or (B, 3, 3), any scale; points_N2: (..., 2), with a leading B where H_0to1 has one, e.g.
    (B, N, 2) or (B, H, W, 2). Returns (...) = sqrt(|det H| / |h31 x + h32 y + h33|^3), inf on the horizon.
    Raises ShapeError.
    """
    check_shape("H_0to1", H_0to1, "3 3" if H_0to1.ndim == 2 else f"{points_N2.shape[0]} 3 3")
    spread = (*H_0to1.shape[:-2], *(1,) * (points_N2.ndim - H_0to1.ndim + 1))
    h31, h32, h33 = (entry.reshape(spread) for entry in H_0to1[..., 2, :].unbind(-1))
    w = h31 * points_N2[..., 0] + h32 * points_N2[..., 1] + h33
    determinant: Tensor = torch.linalg.det(H_0to1)
    return (determinant.reshape(spread).abs() / w.abs() ** 3).sqrt()


def homography_from_points(points0_42: Tensor, points1_42: Tensor) -> Tensor:
    """The homography (..., 3, 3) with H[2, 2] = 1 that maps four points (..., 4, 2) to four others.

    Points are centred and scaled before the 8x8 solve. No four points of which three lie on a line determine
    a
    homography: the result is then meaningless, or torch.linalg.LinAlgError. Raises ShapeError.
    Source: Hartley & Zisserman, 2nd ed., section 4.1.
    """
    check_shape("points0", points0_42[(0,) * (points0_42.ndim - 2)], "4 2")
    N0, N1 = _normalization(points0_42), _normalization(points1_42)
    x, y = warp_points(points0_42, N0).unbind(-1)
    u, v = warp_points(points1_42, N1).unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    h: Tensor = torch.linalg.solve(torch.cat([rows_u, rows_v], dim=-2), torch.cat([u, v], dim=-1))
    H = torch.cat([h, torch.ones_like(h[..., :1])], dim=-1).reshape(*h.shape[:-1], 3, 3)
    H = _inverse(N1) @ H @ N0
    return H / H[..., 2:, 2:]


def image_corners(size: tuple[int, int], *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Centres (4, 2) of the corner pixels of an image of `size` = (W, H), clockwise from the top left."""
    right, bottom = size[0] - 1, size[1] - 1
    return torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=dtype)


def corner_error_px(H_estimated: Tensor, H_true: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean distance (...) in pixels between the four image-0 corners mapped by both homographies.

    `size`: (W, H) of image 0. Not finite where a corner maps to the horizon. Source: DeTone et al. 2018,
    section 6.
    """
    corners = image_corners(size, dtype=H_true.dtype).to(H_true.device)
    difference = warp_points(corners, H_estimated) - warp_points(corners, H_true)
    distance: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return distance.mean(-1)


def _homogeneous(points_N2: Tensor) -> Tensor:
    return torch.cat([points_N2, torch.ones_like(points_N2[..., :1])], dim=-1)


def _inverse(M: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.inv(M)
    return inverse


def _normalization(points: Tensor) -> Tensor:
    """Similarity (..., 3, 3) that centres points and scales their mean distance to sqrt 2."""
    centre = points.mean(-2)
    distance: Tensor = torch.linalg.vector_norm(points - centre[..., None, :], dim=-1)
    scale = 2**0.5 / distance.mean(-1).clamp_min(torch.finfo(points.dtype).tiny)
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rows = [scale, zero, -scale * centre[..., 0], zero, scale, -scale * centre[..., 1], zero, zero, one]
    return torch.stack(rows, dim=-1).reshape(*scale.shape, 3, 3)
