"""Nearest candidates of query descriptors, exact for every method; FLANN to show what approximation costs."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from matchlib.errors import ConfigError, check_shape
from matchlib.evaluation.pck_config import Matcher
from matchlib.features.dense import MemberPairs
from matchlib.ops.nearest import nearest
from matchlib.ops.sets import nearest_in_sets

Index = npt.NDArray[np.int64]


def check_matcher(matcher: Matcher, members: tuple[str, ...], *, where: str) -> None:
    """Refuse to search sets approximately: a k-d tree knows single vectors. Raises ConfigError."""
    if matcher == "flann" and len(members) > 1:
        raise ConfigError(
            f"{where}: matcher: flann is not defined for sets of {len(members)} descriptors "
            f"({', '.join(members)}); use exact, or a method that gives one of them"
        )


def nearest_candidates(
    queries: Tensor, candidates: Tensor, *, matcher: Matcher, member_pairs: MemberPairs, seed: int
) -> Index:
    """Index of each query's nearest candidate, (N,) int64.

    queries: (N, S, D) float32 of unit length; candidates: (M, S, D), same device, M > 0. Sets are as near as
    their nearest allowed pair of members. `exact` compares all and gives ties to the lowest index. `flann` is
    the same on every run with the same seed and OpenCV version, and raises ConfigError for S > 1.
    """
    sizes = check_shape("queries", queries, "N S D")
    check_shape("candidates", candidates, f"M {sizes['S']} {sizes['D']}")
    if matcher == "flann":
        check_matcher(matcher, tuple(str(member) for member in range(sizes["S"])), where="nearest_candidates")
        return _flann(queries[:, 0].cpu().numpy(), candidates[:, 0].cpu().numpy(), seed)
    if sizes["S"] == 1:
        index, _ = nearest(queries[:, 0], candidates[:, 0])
    else:
        index, _ = nearest_in_sets(queries, candidates, member_pairs=member_pairs)
    return np.asarray(index.cpu().numpy(), dtype=np.int64)


def _flann(queries: npt.NDArray[np.float32], candidates: npt.NDArray[np.float32], seed: int) -> Index:
    """OpenCV's defaults: 4 randomised k-d trees, 32 checks, Euclidean distance."""
    cv2.setRNGSeed(seed % 2**31)  # the trees draw from OpenCV's own generator and take no other
    matches = cv2.FlannBasedMatcher().match(np.ascontiguousarray(queries), np.ascontiguousarray(candidates))
    index = np.full(len(queries), -1, dtype=np.int64)
    for match in matches:
        index[match.queryIdx] = match.trainIdx
    return index
