"""Metrics as pure functions on arrays; no file, no method, no protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from matchlib.errors import ShapeError, check_shape
from matchlib.evaluation.config import BootstrapConfig
from matchlib.randomness import generator_for

Float = npt.NDArray[np.float64]


def warp_points(points: npt.ArrayLike, H_0to1: npt.ArrayLike) -> Float:
    """Map pixel positions of image 0 to image 1 by a homography, in float64.

    points: (N, 2), (x, y); N may be 0. H_0to1: (3, 3), any scale.
    Returns (N, 2) float64; points on or near the horizon come back as inf or nan. Raises ShapeError.
    """
    xy = np.asarray(points, dtype=np.float64)
    H = np.asarray(H_0to1, dtype=np.float64)
    check_shape("points", xy, "N 2")
    check_shape("H_0to1", H, "3 3")
    with np.errstate(divide="ignore", invalid="ignore"):
        xyw = xy @ H[:, :2].T + H[:, 2]
        return np.asarray(xyw[:, :2] / xyw[:, 2:])


def reprojection_errors(points0: npt.ArrayLike, points1: npt.ArrayLike, H_0to1: npt.ArrayLike) -> Float:
    """Distance in pixels of image 1 between each point of image 0, warped, and its match.

    points0, points1: (N, 2). Returns (N,) float64; inf where the warp is not finite. One direction only, no
    visibility mask, as in the D2-Net evaluation.
    """
    distance = np.linalg.norm(warp_points(points0, H_0to1) - np.asarray(points1, dtype=np.float64), axis=1)
    return np.where(np.isfinite(distance), distance, np.inf)


def matching_accuracy(errors_px: npt.ArrayLike, thresholds_px: Sequence[float]) -> Float:
    """Share of matches with error <= threshold (inclusive), per threshold; all zero when there is no match.

    errors_px: (N,). Returns (T,) float64. The zero for an empty pair is part of the published definition:
    such a pair still counts in the mean.
    """
    errors = np.asarray(errors_px, dtype=np.float64)
    check_shape("errors_px", errors, "N")
    thresholds = np.asarray(thresholds_px, dtype=np.float64)
    if errors.size == 0:
        return np.zeros(len(thresholds))
    return np.asarray((errors[:, None] <= thresholds).mean(axis=0))


def mma_score(mma: npt.ArrayLike) -> float:
    """One number for a curve: sum of (2 - k/10) MMA@k over k = 1..10, divided by 14.5.

    mma: (T,), T >= 10, at 1, 2, ... px. Source: PoSFeat (Li et al. 2022), supplementary; SCFeat.
    """
    curve = np.asarray(mma, dtype=np.float64)
    if curve.ndim != 1 or curve.size < 10:
        raise ShapeError(f"mma: expected shape (T,) with T >= 10, got {curve.shape}")
    weights = 2.0 - np.arange(1, 11) / 10
    return float(weights @ curve[:10] / weights.sum())


def auc(errors: npt.ArrayLike, thresholds: Sequence[float]) -> tuple[float, ...]:
    """Area under the recall curve of the error, up to each threshold, as a share of the perfect area.

    errors: (N,), inf for failures (nan counts as inf). Recall rises linearly between the sorted errors,
    starts at (0, 0) and stays at its last value from the last error below the threshold to the threshold.
    Returns one value in [0, 1] per threshold; 0 for no errors at all.
    Source: SuperGlue (Sarlin et al. 2020); LoFTR, XFeat and glue-factory compute the same.
    """
    values = np.sort(np.nan_to_num(np.asarray(errors, dtype=np.float64), nan=np.inf, posinf=np.inf))
    recall = np.arange(1, values.size + 1) / max(values.size, 1)
    values, recall = np.concatenate([[0.0], values]), np.concatenate([[0.0], recall])
    areas = []
    for threshold in thresholds:
        # The point (0, 0) is kept whatever the threshold: it is the start of the curve, not an error.
        last = max(int(np.searchsorted(values, threshold, side="left")), 1)
        x = np.concatenate([values[:last], [threshold]])
        y = np.concatenate([recall[:last], [recall[last - 1]]])
        areas.append(float(np.trapezoid(y, x) / threshold))
    return tuple(areas)


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], Float], groups: int, config: BootstrapConfig, *, purpose: str
) -> Float:
    """Percentile interval of a statistic when whole groups (here: sequences) are drawn with replacement.

    statistic: takes (groups,) indices of the drawn groups, returns (T,). Pairs of one sequence share an image
    and a scene, so they are not independent: the sequence is the unit that is drawn.
    purpose: address of the draws, so that no two figures share them by accident.
    Returns (2, T) float64: lower and upper end; nan for a single group, which says nothing about spread.
    """
    if groups < 2:
        return np.full((2, len(statistic(np.arange(groups)))), np.nan)
    draws = generator_for(config.seed, "bootstrap", purpose).integers(
        0, groups, size=(config.resamples, groups)
    )
    values = np.stack([statistic(draw) for draw in draws])
    tail = (1 - config.confidence) / 2
    return np.asarray(np.quantile(values, [tail, 1 - tail], axis=0))


def intervals_by_name(names: Sequence[str], interval: Float) -> dict[str, list[float]]:
    """Name -> [low, high] for the columns of a (2, T) interval; undefined (nan) ones are left out."""
    columns = zip(names, interval.T.tolist(), strict=True)
    return {name: bounds for name, bounds in columns if not np.isnan(bounds).any()}
