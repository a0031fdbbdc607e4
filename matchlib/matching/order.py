"""The order in which pairs are matched, so that few features are read more than once.

Reading and converting 10,000 descriptors takes a tenth of the time of matching them on a processor, and several
times as long as matching them on a GPU. Both ends of the problem are known in advance: which pairs there are, and
hence when each image will be needed again.

- `plan_order` is greedy on the graph of images and pairs: of all images, load the one that has the most open pairs
  with images in memory, match those pairs, and make room by dropping the image with the fewest pairs left.
- Eviction afterwards drops what is needed again last (Belady 1966), which no order can be served better by. Least
  recently used needs 20 times as many loads for exhaustive pairs.

The order is planned for a fixed number of images, not for the memory at hand: so shards are the same on every
machine. A larger cache still helps; a smaller one costs loads, never results.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from matchlib.errors import ConfigError

Int64 = npt.NDArray[np.int64]
Item = TypeVar("Item")

# 64 images of 10,000 descriptors of 128 numbers are 330 MB. Planning for more than the cache holds costs many loads
# (a hundredfold for exhaustive pairs), planning for a third of it few (1.1 to 2.4 times the least).
PLAN_IMAGES = 64
NEVER = np.iinfo(np.int64).max


def number_images(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], Int64]:
    """The images in order of first appearance, and the pairs (P, 2) as positions in that tuple."""
    numbers: dict[str, int] = {}
    ends = [numbers.setdefault(name, len(numbers)) for pair in pairs for name in pair]
    return tuple(numbers), np.array(ends, np.int64).reshape(-1, 2)


def plan_shard(pairs_P2: Int64, shard: int, shards: int) -> Int64:
    """Positions of the pairs of one shard, in the order in which to match them.

    The shards are runs of one order of all pairs, nearly equal in length. Each pair is in exactly one. Raises
    ConfigError for a shard that does not exist.
    """
    if not 0 <= shard < shards:
        raise ConfigError(f"shard: expected 0 to {shards - 1} of {shards} shards, got {shard}")
    count = len(pairs_P2)
    return plan_order(pairs_P2)[count * shard // shards : count * (shard + 1) // shards]


def plan_order(pairs_P2: Int64, *, images_in_memory: int = PLAN_IMAGES) -> Int64:
    """An order (P,) of the pairs that loads few images, for a memory of so many images (at least 2).

    pairs_P2: images 0, 1, 2, ... of each pair; no image with itself
    Deterministic: of equal choices the image with the fewest open pairs, then the lowest number.
    """
    if images_in_memory < 2:
        raise ConfigError(f"images_in_memory: expected at least 2, got {images_in_memory}")
    state = _Plan.of(pairs_P2)
    order: list[Int64] = []
    placed = 0
    while placed < len(pairs_P2):
        image = state.next_image()
        done = state.load(image, images_in_memory)
        order.append(done)
        placed += len(done)
    return np.concatenate(order) if order else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Open pairs of a plan under way; I images, P pairs. The arrays are updated in place.

    The pairs of image i are `pair[start[i] : start[i + 1]]`, ascending, and their other images `other[...]`.
    left_I: open pairs of each image; shared_I: those of them whose other image is in memory.
    loaded_I: number of the load that brought an image into memory, 0 if it is not there.
    """

    start: Int64
    pair: Int64
    other: Int64
    is_open_P: npt.NDArray[np.bool_]
    left_I: Int64
    shared_I: Int64
    loaded_I: Int64

    @classmethod
    def of(cls, pairs_P2: Int64) -> _Plan:
        count = len(pairs_P2)
        images = int(pairs_P2.max(initial=-1)) + 1
        ends = pairs_P2.T.ravel()
        by_image = np.lexsort((np.tile(np.arange(count), 2), ends))
        return cls(
            start=np.searchsorted(ends[by_image], np.arange(images + 1)).astype(np.int64),
            pair=by_image % max(count, 1),
            other=pairs_P2[:, ::-1].T.ravel()[by_image],
            is_open_P=np.ones(count, np.bool_),
            left_I=np.bincount(ends, minlength=images).astype(np.int64),
            shared_I=np.zeros(images, np.int64),
            loaded_I=np.zeros(images, np.int64),
        )

    def next_image(self) -> int:
        """Most open pairs with images in memory, then fewest open pairs, so that lonely ones are done with."""
        scale = len(self.is_open_P) + 1
        gain_I = np.where(self.left_I > 0, self.shared_I * scale + (scale - self.left_I), -1)
        gain_I[self.loaded_I > 0] = -1
        return int(gain_I.argmax())

    def load(self, image: int, images_in_memory: int) -> Int64:
        """Take an image into memory, dropping another if it is full; the pairs that are thereby done."""
        pairs, others = self._open_pairs(image)
        if np.count_nonzero(self.loaded_I) >= images_in_memory:
            self._drop_one(others)
        is_done = self.loaded_I[others] > 0
        self.is_open_P[pairs[is_done]] = False
        self.left_I[others[is_done]] -= 1
        self.shared_I[others[~is_done]] += 1
        self.left_I[image] -= np.count_nonzero(is_done)
        self.shared_I[image] = 0
        self.loaded_I[image] = self.loaded_I.max() + 1
        return pairs[is_done]

    def _drop_one(self, wanted: Int64) -> None:
        """Fewest open pairs, then longest in memory; those `wanted` now come last: so every second load at the
        latest finishes a pair."""
        resident = np.flatnonzero(self.loaded_I)
        is_wanted = np.isin(resident, wanted)
        dropped = resident[np.lexsort((self.loaded_I[resident], self.left_I[resident], is_wanted))[0]]
        self.loaded_I[dropped] = 0
        # Pairs of two images in memory are done, so all that is open here leads to images outside.
        _, others = self._open_pairs(int(dropped))
        self.shared_I[others] -= 1
        self.shared_I[dropped] = 0

    def _open_pairs(self, image: int) -> tuple[Int64, Int64]:
        part = slice(self.start[image], self.start[image + 1])
        is_open = self.is_open_P[self.pair[part]]
        return self.pair[part][is_open], self.other[part][is_open]


# ---------------------------------------------------------------- eviction
def next_uses(images_A: Int64) -> Int64:
    """For every access (A,) to an image the position of the next access to the same, NEVER after the last."""
    following = np.full(len(images_A), NEVER, np.int64)
    by_image = np.argsort(images_A, kind="stable")
    is_same = images_A[by_image][:-1] == images_A[by_image][1:]
    following[by_image[:-1][is_same]] = by_image[1:][is_same]
    return following


class FarthestUseCache(Generic[Item]):
    """Keeps items while they fit, and drops first what is needed again last. Not thread-safe.

    capacity: sum of the sizes that may be kept, in any unit
    """

    def __init__(self, capacity: int) -> None:
        self.size = 0
        self._capacity = capacity
        self._items: dict[int, tuple[Item, int, int]] = {}
        self._by_use: list[tuple[int, int]] = []

    def get(self, key: int) -> Item | None:
        """The item, if it was kept."""
        entry = self._items.get(key)
        return None if entry is None else entry[0]

    def put(self, key: int, item: Item, size: int, next_use: int) -> None:
        """Keep an item, or note its new next use; NEVER lets it go at once."""
        self._forget(key)
        if next_use == NEVER:
            return
        self._items[key] = (item, size, next_use)
        self.size += size
        heapq.heappush(self._by_use, (-next_use, key))
        while self.size > self._capacity:
            use, farthest = heapq.heappop(self._by_use)
            if farthest in self._items and self._items[farthest][2] == -use:  # else an outdated note
                self._forget(farthest)

    def _forget(self, key: int) -> None:
        if key in self._items:
            self.size -= self._items.pop(key)[1]


def count_loads(pairs_P2: Int64, capacity: int) -> int:
    """Loads that matching the pairs in this order takes with a cache of `capacity` images of equal size."""
    accesses = pairs_P2.ravel()
    cache = FarthestUseCache[Any](capacity)
    loads = 0
    for image, next_use in zip(accesses.tolist(), next_uses(accesses).tolist(), strict=True):
        loads += cache.get(image) is None
        cache.put(image, True, 1, next_use)
    return loads
