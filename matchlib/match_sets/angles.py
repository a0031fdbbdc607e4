"""The two angles that pairs are filtered by: between the cameras, and between keypoint orientations."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from matchlib.geometry.pose import rotation_angle_deg

Float64 = npt.NDArray[np.float64]
AngleRule = Literal["exact", "tfmatch"]
_TFMATCH_DEGREES = 180 / 3.14


def camera_angles_deg(T_0to1: Float64, rule: AngleRule) -> Float64:
    """Rotation angles (P,) of relative poses (P, 4, 4), in degrees; "tfmatch": whole degrees by its 180 /
    3.14.
    """
    exact = rotation_angle_deg(torch.from_numpy(np.ascontiguousarray(T_0to1[:, :3, :3]))).numpy()
    return exact if rule == "exact" else np.floor(np.deg2rad(exact) * _TFMATCH_DEGREES)


def orientation_difference_deg(
    angles0: npt.NDArray[np.floating], angles1: npt.NDArray[np.floating], rule: AngleRule
) -> float:
    """Mean absolute difference of orientations (n,) in radians, as degrees; 0 for n = 0.

    "exact" takes the short way round; "tfmatch" the plain difference of angles in [-pi, pi], in whole
    degrees.
    """
    if len(angles0) == 0:
        return 0.0
    difference = np.abs(angles0 - angles1)
    if rule == "tfmatch":
        return float(int(difference.mean() * _TFMATCH_DEGREES))
    # Both are in [-pi, pi], so the difference is in [0, 2 pi] and needs no modulo, which costs ten times
    # more.
    return float(np.rad2deg(np.minimum(difference, 2 * np.pi - difference).mean()))
