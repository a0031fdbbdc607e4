"""Exact nearest neighbours between sets of descriptors: a place described at several scales is near another if
any allowed pair of their members is.

The similarity of two sets is the largest dot product of an allowed pair of members, decided by the rule of
`matchlib.ops.mining`: added up in float64, ties to the lowest index, the same on all back ends. The products of
all members are taken in blocks and never stored as a whole.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from matchlib.errors import ShapeError, check_shape
from matchlib.ops.mining import Backend, Search, check_descriptors, choose_search

MemberPairs = Literal["all", "not_coarse_coarse"]


@torch.no_grad()
def nearest_in_sets(
    sets0: Tensor, sets1: Tensor, *, member_pairs: MemberPairs = "all", backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Find for each set of sets0 its nearest of sets1.

    sets0:        (N, S, D) float32 or float64, any device; unit length if the dot product is to order by
                  distance. N, M or S may be 0.
    sets1:        (M, S, D), same dtype and device.
    member_pairs: which members are compared: "all" with all, or all but the last (coarsest) with the last
                  ("not_coarse_coarse": at most one of the two images changes scale).
    backend:      as in `hardest_negatives`.
    Returns `index` (N,) int64 into sets1 and `similarity` (N,) of the sets' dtype; where nothing may be compared,
    -1 and -inf. Ties go to the lowest index. Memory beside the result: O(N S) and a few tiles. No gradient.
    Raises ShapeError for shapes, dtypes or devices that do not fit and for values that are not finite.
    """
    _check(sets0, sets1, member_pairs)
    index, similarity = _nearest(sets0, sets1, member_pairs, choose_search(backend, sets0))
    return index, similarity.to(sets0.dtype)


@torch.no_grad()
def mutual_nearest_in_sets(
    sets0: Tensor, sets1: Tensor, *, member_pairs: MemberPairs = "all", backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Find the pairs in which each set is the other's nearest.

    Arguments as in `nearest_in_sets`. Returns `index` (K, 2) int64, columns into sets0 and sets1, ascending in
    the first, and `similarity` (K,). On the way back only those are searched for that are some set's nearest.
    """
    _check(sets0, sets1, member_pairs)
    search = choose_search(backend, sets0)
    index, similarity = _nearest(sets0, sets1, member_pairs, search)
    rows = (index >= 0).nonzero()[:, 0]
    chosen, position = torch.unique(index[rows], return_inverse=True)
    back, _ = _nearest(sets1[chosen], sets0, member_pairs, search)
    rows = rows[back[position] == rows]
    return torch.stack([rows, index[rows]], dim=1), similarity[rows].to(sets0.dtype)


def _nearest(
    sets0: Tensor, sets1: Tensor, member_pairs: MemberPairs, search: Search
) -> tuple[Tensor, Tensor]:
    """`nearest_in_sets` without checks, with the similarity still in float64."""
    if member_pairs == "all":
        return _lowest_best(*_nearest_members(sets0, sets1, search))
    fine = _nearest_members(sets0[:, :-1], sets1, search)
    coarse = _nearest_members(sets0[:, -1:], sets1[:, :-1], search)
    index, similarity = (torch.cat(parts, dim=1) for parts in zip(fine, coarse, strict=True))
    return _lowest_best(index, similarity)


def _nearest_members(sets0: Tensor, sets1: Tensor, search: Search) -> tuple[Tensor, Tensor]:
    """For each member (N, S0) of sets0: the set of sets1 with the most similar member, and the similarity.

    The members of sets1 are the cells of a map one cell wide, set by set: the lowest cell among equals is in the
    lowest set.
    """
    count, members, depth = sets1.shape
    queries = sets0.flatten(0, 1)[None]
    candidates = sets1.reshape(1, count * members, 1, depth).permute(0, 3, 1, 2)
    cells = torch.arange(count * members, device=sets1.device)
    first_cell = torch.tensor([0, len(cells)], device=sets1.device)
    no_discs = queries.new_empty((*queries.shape[:2], 0, 2), dtype=torch.float64)
    index, similarity = search(queries, candidates, cells, first_cell, no_discs, no_discs.new_empty(0))
    index = index.div(max(members, 1), rounding_mode="floor")  # -1 stays -1
    return index.view(sets0.shape[:2]), similarity.view(sets0.shape[:2])


def _lowest_best(index_NS: Tensor, similarity_NS: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar over the members of each set, the lowest index among equals."""
    if index_NS.shape[1] == 0:
        return index_NS.new_full((len(index_NS),), -1), similarity_NS.new_full((len(index_NS),), -torch.inf)
    best = similarity_NS.amax(dim=1)
    worse = similarity_NS < best[:, None]
    return index_NS.masked_fill(worse, torch.iinfo(torch.int64).max).amin(dim=1), best


def _check(sets0: Tensor, sets1: Tensor, member_pairs: str) -> None:
    sizes = check_shape("sets0", sets0, "N S D")
    check_shape("sets1", sets1, f"M {sizes['S']} {sizes['D']}")
    if member_pairs not in ("all", "not_coarse_coarse"):
        raise ShapeError(f"member_pairs: expected 'all' or 'not_coarse_coarse', got {member_pairs!r}")
    if sets0.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"sets0: expected float32 or float64, got {sets0.dtype}; convert them first")
    if (sets1.dtype, sets1.device) != (sets0.dtype, sets0.device):
        raise ShapeError(
            f"sets1: expected {sets0.dtype} on {sets0.device} like sets0, got {sets1.dtype} on {sets1.device}"
        )
    check_descriptors("sets0", sets0)
    check_descriptors("sets1", sets1)
