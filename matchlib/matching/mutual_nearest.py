"""Mutual nearest neighbours: the matcher of the HPatches protocol."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.errors import ConfigError, ShapeError
from matchlib.features.types import Features
from matchlib.matching.types import Matches
from matchlib.ops.nearest import mutual_nearest

_BLOCK = 1024


def match_mutual_nearest(
    features0: Features, features1: Features, device: str = "cpu", *, ratio: float | None = None
) -> Matches:
    """Match keypoints whose descriptors are each other's nearest by dot product (descriptors have unit
    length).

    ratio: if given, keep a match only if the distance to it is at most `ratio` times the distance to the
           second nearest descriptor of image 1 (Lowe 2004); where image 1 has a single keypoint there is no
    second. Returns matches sorted by keypoint of image 0; none if an image has no keypoints. Scores are
    similarities. Ties go to the lowest index. Raises ShapeError for descriptors of different dimension,
    ConfigError for a bad ratio.
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ConfigError(f"ratio: expected a value in (0, 1] or none, got {ratio}")
    if features0.descriptors.shape[1] != features1.descriptors.shape[1]:
        raise ShapeError(
            f"descriptors: expected equal dimensions, got {features0.descriptors.shape[1]} and "
            f"{features1.descriptors.shape[1]}; the images were extracted by different methods"
        )
    descriptors0 = torch.from_numpy(features0.descriptors).to(device)
    descriptors1 = torch.from_numpy(features1.descriptors).to(device)
    index, similarity = mutual_nearest(descriptors0, descriptors1)
    if ratio is not None and len(index) and len(descriptors1) > 1:
        keep = _passes_ratio(descriptors0[index[:, 0]], descriptors1, ratio)
        index, similarity = index[keep], similarity[keep]
    index_K2: npt.NDArray[np.int64] = index.cpu().numpy()
    scores_K: npt.NDArray[np.float32] = similarity.float().cpu().numpy()
    order = np.argsort(index_K2[:, 0], kind="stable")
    return Matches(index=index_K2[order], scores=scores_K[order])


def _passes_ratio(query_KD: Tensor, descriptors_MD: Tensor, ratio: float) -> Tensor:
    """(K,) bool: distance to the nearest of M <= ratio times distance to the second nearest; unit vectors."""
    passes = []
    for start in range(0, len(query_KD), _BLOCK):
        best_b2 = (query_KD[start : start + _BLOCK] @ descriptors_MD.T).topk(2, dim=1).values
        squared_b2 = (2 - 2 * best_b2).clamp_min(0)
        passes.append(squared_b2[:, 0] <= ratio**2 * squared_b2[:, 1])
    return torch.cat(passes)
