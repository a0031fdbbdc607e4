"""One pair of images under `MatcherConfig`: tensors in, tensors out.

The product of the descriptors is made once for the mutual search and, with a ratio, once more for the rows of the
matches alone, and of those for as long as no tile of the product holds a second that is too near.
"""

from __future__ import annotations

import torch
from torch import Tensor

from matchlib.matching.config import MatcherConfig
from matchlib.ops.matmul import matmul_nt
from matchlib.ops.nearest import mutual_nearest

# CPU: as in `ops.nearest`, a tile stays in the caches.
_TILE = {"cpu": (512, 1024)}
_DEFAULT_TILE = (8192, 8192)


@torch.no_grad()
def match_descriptors(
    descriptors0: Tensor, descriptors1: Tensor, config: MatcherConfig
) -> tuple[Tensor, Tensor]:
    """Match two sets of unit descriptors (N, D) and (M, D), float32 or float64, on one device; N, M may be 0.

    Returns `index` (K, 2) int64, ascending in the first column, and `similarity` (K,) of the descriptors' dtype.
    Without a second descriptor to compare with, the ratio is met. `max_keypoints` needs scores and is the caller's.
    Raises ShapeError for shapes, dtypes or devices that do not fit and for values that are not finite.
    """
    index_K2, similarity_K = mutual_nearest(descriptors0, descriptors1)
    if config.min_similarity is not None:
        is_kept = similarity_K >= config.min_similarity
        index_K2, similarity_K = index_K2[is_kept], similarity_K[is_kept]
    if config.ratio is not None:
        is_kept = _passes_ratio(descriptors0, descriptors1, index_K2, similarity_K, config.ratio)
        index_K2, similarity_K = index_K2[is_kept], similarity_K[is_kept]
        if config.both_directions:
            is_kept = _passes_ratio(descriptors1, descriptors0, index_K2.flip(1), similarity_K, config.ratio)
            index_K2, similarity_K = index_K2[is_kept], similarity_K[is_kept]
    if len(index_K2) < config.min_matches:
        return index_K2[:0], similarity_K[:0]
    return index_K2, similarity_K


def _passes_ratio(
    queries_ND: Tensor, others_MD: Tensor, index_K2: Tensor, similarity_K: Tensor, ratio: float
) -> Tensor:
    """(K,) bool: distance to the match at most `ratio` times the distance to the nearest of all others.

    index_K2: columns into queries and others. Unit vectors a, b are sqrt(2 - 2 a.b) apart.
    """
    passing = torch.arange(len(index_K2), device=index_K2.device)
    squared_K = (2 - 2 * similarity_K).clamp_min(0)
    tile_rows, tile_columns = _TILE.get(queries_ND.device.type, _DEFAULT_TILE)
    for left in range(0, len(others_MD), tile_columns):
        columns_TD = others_MD[left : left + tile_columns]
        still = [passing[:0]]
        for top in range(0, len(passing), tile_rows):
            part = passing[top : top + tile_rows]
            best_k = index_K2[part, 1] - left
            nearest_k = _largest_but(matmul_nt(queries_ND[index_K2[part, 0]], columns_TD), best_k)
            is_met = squared_K[part] <= ratio**2 * (2 - 2 * nearest_k).clamp_min(0)
            still.append(part[is_met])
        passing = torch.cat(still)  # most wrong matches fail in the first tile, so the later ones are short
    is_passing = torch.zeros(len(index_K2), dtype=torch.bool, device=index_K2.device)
    is_passing[passing] = True
    return is_passing


def _largest_but(tile_KT: Tensor, column_K: Tensor) -> Tensor:
    """(K,) largest value of each row beside the one in `column_K`, which may lie outside; -inf if there is none.

    Overwrites the tile.
    """
    is_inside = (column_K >= 0) & (column_K < tile_KT.shape[1])
    # A scatter of fixed size: a boolean index would wait for the GPU. Rows whose column lies outside write back
    # what is there.
    at_K1 = torch.where(is_inside, column_K, 0)[:, None]
    tile_KT.scatter_(1, at_K1, torch.where(is_inside[:, None], -torch.inf, tile_KT.gather(1, at_K1)))
    return tile_KT.amax(dim=1)
