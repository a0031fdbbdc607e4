"""One pair of images under `MatcherConfig`: tensors in, tensors out.

The product of the descriptors is made once, for the mutual search and for the ratio in both directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.matching.config import MatcherConfig
from matchlib.ops.nearest import mutual_nearest, mutual_nearest_with_second


@torch.no_grad()
def match_descriptors(
    descriptors0: Tensor, descriptors1: Tensor, config: MatcherConfig
) -> tuple[Tensor, Tensor]:
    """Match two sets of unit descriptors (N, D) and (M, D), float32 or float64, on one device; N, M may be 0.

    Returns `index` (K, 2) int64, ascending in the first column, and `similarity` (K,) of the descriptors' dtype.
    Without a second descriptor to compare with, the ratio is met. `max_keypoints` needs scores and is the caller's.
    Raises ShapeError for shapes, dtypes or devices that do not fit and for values that are not finite.
    """
    if config.ratio is None:
        index_K2, similarity_K = mutual_nearest(descriptors0, descriptors1)
    else:
        index_K2, similarity_K, second_KC = mutual_nearest_with_second(
            descriptors0, descriptors1, both_directions=config.both_directions
        )
        is_kept = _passes_ratio(similarity_K, second_KC, config.ratio)
        index_K2, similarity_K = index_K2[is_kept], similarity_K[is_kept]
    if config.min_similarity is not None:
        is_kept = similarity_K >= config.min_similarity
        index_K2, similarity_K = index_K2[is_kept], similarity_K[is_kept]
    if len(index_K2) < config.min_matches:
        return index_K2[:0], similarity_K[:0]
    return index_K2, similarity_K


def _passes_ratio(similarity_K: Tensor, second_KC: Tensor, ratio: float) -> Tensor:
    """(K,) bool: distance to the match at most `ratio` times the distance to the nearest of all others, in all C
    directions. Unit vectors a, b are sqrt(2 - 2 a.b) apart; one that does not exist, at -inf, is infinitely far.
    """
    squared_K1 = (2 - 2 * similarity_K[:, None]).clamp_min(0)
    squared_KC = (2 - 2 * second_KC).clamp_min(0)
    return (squared_K1 <= ratio**2 * squared_KC).all(dim=1)
