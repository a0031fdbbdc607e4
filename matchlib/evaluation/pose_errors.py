"""Errors of an estimated relative pose, and of matches against the true one: pure functions on arrays."""

from __future__ import annotations

import numpy as np
import torch

from matchlib.evaluation.metrics import Float
from matchlib.evaluation.pose_estimators import CalibratedMatches
from matchlib.geometry.epipolar import (
    epipolar_lines,
    essential_from_pose,
    fundamental_from_pose,
    point_line_distance,
    symmetric_epipolar_distance,
)
from matchlib.geometry.pose import direction_angle_deg, rotation_angle_deg


def pose_error_deg(R: Float, t: Float, T_0to1: Float, *, min_baseline: float = 0.0) -> tuple[float, float]:
    """Angles in degrees of rotation and of translation between an estimate and the true pose.

    R (3, 3), t (3,) of any length and sign: the translation's angle is min(angle, 180 - angle), because matches say
    nothing about which end of the line is meant without a choice that evaluations leave open. A true translation of
    at most `min_baseline` has no direction; its angle counts as 0.
    Source: SuperGlue (Sarlin et al. 2020); LoFTR and glue-factory compute the same. differs from them: angles by
    atan2, exact near 0, where their arccos loses half of the digits.
    """
    R_true, t_true = torch.tensor(T_0to1[:3, :3]), torch.tensor(T_0to1[:3, 3])
    rotation = rotation_angle_deg(torch.tensor(R).T @ R_true)
    if float(torch.linalg.vector_norm(t_true)) <= min_baseline:
        return float(rotation), 0.0
    angle = float(direction_angle_deg(torch.tensor(t), t_true))
    return float(rotation), min(angle, 180.0 - angle)


def epipolar_precision(matches: CalibratedMatches, T_0to1: Float, threshold: float) -> float | None:
    """Share of matches whose symmetric squared epipolar distance on the plane z = 1 is below `threshold`.

    0 without matches; None for a pose without translation. Source: SuperGlue (5e-4); LoFTR (1e-4 on MegaDepth).
    """
    if not np.any(T_0to1[:3, 3]):
        return None
    if len(matches) == 0:
        return 0.0
    points0, points1 = (torch.from_numpy(points) for points in matches.normalized())
    E = essential_from_pose(torch.tensor(T_0to1))
    return float((symmetric_epipolar_distance(points0, points1, E) < threshold).double().mean())


def epipolar_errors_px(matches: CalibratedMatches, T_0to1: Float) -> Float:
    """Distance of each match from its true epipolar line, (M,) in pixels of the frames, the larger of both images.

    nan where there is no line: at both epipoles, and for a pose without translation.
    """
    points0, points1 = torch.from_numpy(matches.points0), torch.from_numpy(matches.points1)
    F = fundamental_from_pose(torch.tensor(T_0to1), torch.tensor(matches.K0), torch.tensor(matches.K1))
    in_image1 = _line_distance(points1, epipolar_lines(points0, F))
    in_image0 = _line_distance(points0, epipolar_lines(points1, F.mT))
    return np.asarray(torch.fmax(in_image0, in_image1).numpy())


def _line_distance(points_N2: torch.Tensor, lines_N3: torch.Tensor) -> torch.Tensor:
    """Distances (N,) of points to lines; nan to the line (0, 0, 0)."""
    return torch.where(
        lines_N3.any(dim=-1), point_line_distance(points_N2, lines_N3), points_N2.new_tensor(torch.nan)
    )
