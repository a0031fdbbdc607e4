"""Mutual nearest neighbours: the matcher of the HPatches protocol."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from matchlib.errors import ShapeError
from matchlib.features.types import Features
from matchlib.matching.config import MatcherConfig
from matchlib.matching.matcher import match_descriptors
from matchlib.matching.types import Matches


def match_mutual_nearest(
    features0: Features, features1: Features, device: str = "cpu", *, ratio: float | None = None
) -> Matches:
    """Match keypoints whose descriptors are each other's nearest by dot product (descriptors have unit
    length).

    ratio: if given, keep a match only if the distance to it is at most `ratio` times the distance to the
           second nearest descriptor of image 1 (Lowe 2004); a single keypoint of image 1 is kept.
    Returns matches sorted by keypoint of image 0; none if an image has no keypoints. Scores are
    similarities. Ties go to the lowest index. Raises ShapeError for descriptors of different dimension,
    ConfigError for a bad ratio.
    """
    config = MatcherConfig(kind="mutual" if ratio is None else "mutual_ratio", ratio=ratio)
    if features0.descriptors.shape[1] != features1.descriptors.shape[1]:
        raise ShapeError(
            f"descriptors: expected equal dimensions, got {features0.descriptors.shape[1]} and "
            f"{features1.descriptors.shape[1]}; the images were extracted by different methods"
        )
    index, similarity = match_descriptors(
        torch.from_numpy(features0.descriptors).to(device),
        torch.from_numpy(features1.descriptors).to(device),
        config,
    )
    index_K2: npt.NDArray[np.int64] = index.cpu().numpy()
    scores_K: npt.NDArray[np.float32] = similarity.float().cpu().numpy()
    return Matches(index=index_K2, scores=scores_K)
