"""Carrying points from one image to another by depth and pose."""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.geometry.camera import project, unproject
from matchlib.geometry.pose import transform_points
from matchlib.geometry.sampling import sample_depth

TFMATCH_ABSOLUTE_THRESHOLD = 0.05
"""Scene units; the check of D2-Net and tfmatch, which means something else in every scene."""


def warp_points_by_depth(
    points_N2: Tensor,
    depth0: Tensor,
    depth1: Tensor,
    K0: Tensor,
    K1: Tensor,
    T_0to1: Tensor,
    *,
    relative_threshold: float = 0.05,
    absolute_threshold: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Where points of image 0 lie in image 1, and for which of them that is certain.

    points_N2:      (..., N, 2) pixels of depth0
    depth0, depth1: (..., H, W) z-depth in scene units, 0 = unknown; the two sizes may differ
    K0, K1:         (..., 3, 3), pixels of these maps
    T_0to1:         (..., 4, 4), camera-0 to camera-1 coordinates
    Returns positions (..., N, 2) in pixels of depth1 (finite everywhere, meaningless where invalid) and (...,
    N) bool: valid where the four depths around the point are known in both images, the point lies before
    camera 1 and inside its image, and |z - depth1| <= relative_threshold * z for the point's depth z in
    camera 1; or < absolute_threshold scene units where that is given (`TFMATCH_ABSOLUTE_THRESHOLD`), instead.
    Source: the rule of D2-Net and tfmatch; differs from tfmatch: the check is relative by default.
    """
    z0, known0 = sample_depth(depth0, points_N2)
    # A stand-in depth keeps unknown points finite, so that masked gradients are 0 and not nan.
    z0 = torch.where(known0, z0, 1)
    in_camera1 = transform_points(unproject(points_N2, z0, K0), T_0to1)
    z = in_camera1[..., 2]
    in_front = z > 1e-6 * z0
    safe = torch.where(in_front[..., None], in_camera1, torch.ones_like(in_camera1))
    points1, _ = project(safe, K1)
    z1, known1 = sample_depth(depth1, points1)
    if absolute_threshold is None:
        consistent = (z - z1).abs() <= relative_threshold * z
    else:
        consistent = (z - z1).abs() < absolute_threshold
    return points1, known0 & in_front & known1 & consistent
