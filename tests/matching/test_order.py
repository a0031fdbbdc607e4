"""The order of matching: a permutation, cut into shards, with few loads; and the best possible eviction."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError
from matchlib.matching.order import (
    NEVER,
    FarthestUseCache,
    Int64,
    count_loads,
    next_uses,
    number_images,
    plan_order,
    plan_shard,
)
from matchlib.matching.pair_lists import read_pair_list

PAIRS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] < pair[1]),
    max_size=30,
    unique=True,
)


def pairs_of(listed: list[tuple[int, int]]) -> Int64:
    return np.array(listed, np.int64).reshape(-1, 2)


@settings(max_examples=150, deadline=None)
@given(listed=PAIRS, memory=st.integers(2, 6), shards=st.integers(1, 5))
def test_every_pair_is_in_exactly_one_shard(listed: list[tuple[int, int]], memory: int, shards: int) -> None:
    pairs = pairs_of(listed)
    assert sorted(plan_order(pairs, images_in_memory=memory).tolist()) == list(range(len(pairs)))
    parts = [plan_shard(pairs, shard, shards) for shard in range(shards)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(pairs)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def fewest_loads(accesses: tuple[int, ...], capacity: int) -> int:
    """By trying every image that could be dropped at every load."""

    @cache
    def after(position: int, kept: frozenset[int]) -> int:
        if position == len(accesses):
            return 0
        image = accesses[position]
        if image in kept:
            return after(position + 1, kept)
        full = kept | {image}
        if len(full) <= capacity:
            return 1 + after(position + 1, full)
        return 1 + min(after(position + 1, full - {dropped}) for dropped in full)

    return after(0, frozenset())


@settings(max_examples=100, deadline=None)
@given(listed=PAIRS.map(lambda pairs: pairs[:8]), capacity=st.integers(1, 4))
def test_no_eviction_needs_fewer_loads(listed: list[tuple[int, int]], capacity: int) -> None:
    pairs = pairs_of(listed)
    assert count_loads(pairs, capacity) == fewest_loads(tuple(pairs.ravel().tolist()), capacity)


def test_next_uses_are_those_a_search_finds() -> None:
    accesses = np.random.default_rng(0).integers(0, 12, 200)
    expected = [
        next((later for later in range(at + 1, 200) if accesses[later] == accesses[at]), NEVER)
        for at in range(200)
    ]
    assert next_uses(accesses).tolist() == expected


def test_the_cache_counts_sizes_and_lets_go_of_what_is_never_used_again() -> None:
    cached = FarthestUseCache[str](10)
    cached.put(1, "one", 4, 7)
    cached.put(2, "two", 4, 3)
    cached.put(3, "three", 4, 5)
    assert [cached.get(key) for key in (1, 2, 3)] == [None, "two", "three"] and cached.size == 8
    cached.put(2, "two", 4, NEVER)
    assert cached.get(2) is None and cached.size == 4
    cached.put(4, "too large", 11, 1)
    assert cached.get(4) is None and cached.size <= 10


def test_the_published_aachen_list_reads_every_image_once(shared_data: Callable[[str], Path]) -> None:
    names, pairs = number_images(
        read_pair_list(shared_data("aachen_lists") / "image_pairs_to_match.txt").pairs
    )
    planned = pairs[plan_order(pairs)]
    assert count_loads(planned, 64) <= 1.001 * len(names)
    assert count_loads(pairs, 64) > 3 * len(names), "the order of the list itself"
    shuffled = pairs[np.random.default_rng(0).permutation(len(pairs))]
    assert count_loads(shuffled, 64) > 15 * len(names)
    shards = [pairs[plan_shard(pairs, shard, 8)] for shard in range(8)]
    assert sum(count_loads(shard, 64) for shard in shards) < 1.6 * len(names)


def test_exhaustive_pairs_come_near_the_bound_of_one_load_per_full_memory() -> None:
    pairs = pairs_of(list(itertools.combinations(range(300), 2)))
    bound = len(pairs) / 63  # a load can finish at most one pair with each other image in memory
    assert bound <= count_loads(pairs[plan_order(pairs)], 64) < 1.6 * bound
    assert count_loads(pairs, 64) > 30 * bound, "the order in which such pairs are listed"


def test_the_plan_is_the_same_every_time_and_handles_stars_and_islands() -> None:
    star = [(0, leaf) for leaf in range(1, 40)]
    islands = [(40 + 2 * k, 41 + 2 * k) for k in range(20)]
    pairs = pairs_of(star + islands)
    assert plan_order(pairs).tolist() == plan_order(pairs).tolist()
    assert count_loads(pairs[plan_order(pairs, images_in_memory=2)], 2) == 80


@pytest.mark.parametrize(("shard", "shards"), [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(shard: int, shards: int) -> None:
    with pytest.raises(ConfigError, match="shard"):
        plan_shard(pairs_of([(0, 1)]), shard, shards)
    with pytest.raises(ConfigError, match="images_in_memory"):
        plan_order(pairs_of([(0, 1)]), images_in_memory=1)
