"""Pairs of points within a radius, by a grid of cells: exact, and linear in the number of points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def pairs_within(points0: Float64, points1: Float64, radius: float) -> tuple[Int64, Int64, Float64]:
    """All (i, j) with |points0[i] - points1[j]| <= radius, and these distances; (N, 2) and (M, 2) finite
    points.

    Returns i (P,), j (P,), distance (P,), sorted by i, then j.
    """
    if len(points0) == 0 or len(points1) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    low = np.minimum(points0.min(axis=0), points1.min(axis=0))
    cell0 = np.floor((points0 - low) / radius).astype(np.int64) + 1
    cell1 = np.floor((points1 - low) / radius).astype(np.int64) + 1
    columns = int(max(cell0[:, 0].max(), cell1[:, 0].max())) + 2
    key1 = cell1[:, 1] * columns + cell1[:, 0]
    order = np.argsort(key1, kind="stable")
    sorted_keys = key1[order]
    found0, found1 = [], []
    for step_y in (-1, 0, 1):
        # Three cells side by side have consecutive keys, so one search finds them all.
        key = (cell0[:, 1] + step_y) * columns + cell0[:, 0]
        first = np.searchsorted(sorted_keys, key - 1, side="left")
        count = np.searchsorted(sorted_keys, key + 1, side="right") - first
        i = np.repeat(np.arange(len(points0)), count)
        within = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
        found0.append(i)
        found1.append(order[np.repeat(first, count) + within])
    i, j = np.concatenate(found0), np.concatenate(found1)
    distance = np.linalg.norm(points0[i] - points1[j], axis=1)
    close = distance <= radius
    i, j, distance = i[close], j[close], distance[close]
    order = np.lexsort((j, i))
    return i[order], j[order], distance[order]


def mutual_best(i: Int64, j: Int64, cost: Float64) -> npt.NDArray[np.bool_]:
    """Which of the pairs (i, j) are the cheapest of both their i and their j; ties go to the lowest other
    index.
    """
    best_of_i = _first_of_group(i, cost, j)
    best_of_j = _first_of_group(j, cost, i)
    return best_of_i & best_of_j


def _first_of_group(group: Int64, cost: Float64, tie: Int64) -> npt.NDArray[np.bool_]:
    order = np.lexsort((tie, cost, group))
    ordered = group[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    best = np.zeros(len(order), dtype=bool)
    best[order[first]] = True
    return best
