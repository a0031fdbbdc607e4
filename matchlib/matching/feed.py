"""Descriptors of one pair after the other, read ahead by a thread and kept while they will be needed again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matchlib.features.types import Features
from matchlib.matching.order import FarthestUseCache, next_uses

# Pairs read ahead of the one being matched. They may hold images that the cache has dropped already.
_AHEAD = 3


class FeatureSource(Protocol):
    """Features by image name: a `FeatureReader`, or anything of that form."""

    @property
    def names(self) -> tuple[str, ...]:
        """The images there are."""
        ...

    @property
    def digest(self) -> str:
        """Digest of the content."""
        ...

    def read(self, name: str) -> Features:
        """Features of one image."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """Descriptors of one image, ready to be matched.

    descriptors: (N, D) float32 on the device
    rows:        (N,) int64, keypoints of the file that they belong to, ascending; None: all of them
    count:       keypoints in the file
    """

    descriptors: Tensor
    rows: npt.NDArray[np.int64] | None
    count: int


class FeatureFeed:
    """Loads the images of pairs in a given order.

    names:       the images by number
    pairs_P2:    (P, 2) int64, the pairs in order, by number
    cache_bytes: descriptors kept in the memory of `device`. On top come those of up to five pairs that are being
                 read, waiting or matched.
    `loads` counts the images read.
    """

    def __init__(
        self,
        source: FeatureSource,
        names: tuple[str, ...],
        pairs_P2: npt.NDArray[np.int64],
        *,
        device: str,
        cache_bytes: int,
        max_keypoints: int | None,
    ) -> None:
        self.loads = 0
        self._source = source
        self._names = names
        self._accesses = pairs_P2.ravel()
        self._next_uses = next_uses(self._accesses)
        self._device = torch.device(device)
        self._max_keypoints = max_keypoints
        self._cache = FarthestUseCache[LoadedImage](cache_bytes)

    def __iter__(self) -> Iterator[tuple[LoadedImage, LoadedImage]]:
        """The pairs in order. A single thread reads, so it alone touches the cache, and in the order planned."""
        with ThreadPoolExecutor(1, thread_name_prefix="read-descriptors") as pool:
            waiting: deque[Future[tuple[LoadedImage, LoadedImage]]] = deque()
            try:
                for pair in range(len(self._accesses) // 2):
                    waiting.append(pool.submit(self._pair, pair))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _pair(self, pair: int) -> tuple[LoadedImage, LoadedImage]:
        return self._image(2 * pair), self._image(2 * pair + 1)

    def _image(self, access: int) -> LoadedImage:
        number = int(self._accesses[access])
        image = self._cache.get(number)
        if image is None:
            image = self._load(self._names[number])
            self.loads += 1
        self._cache.put(number, image, image.descriptors.nbytes, int(self._next_uses[access]))
        return image

    def _load(self, name: str) -> LoadedImage:
        features = self._source.read(name)
        rows = _best_rows(features, self._max_keypoints)
        chosen = features.descriptors if rows is None else features.descriptors[rows]
        # Memory of torch's own is aligned to 64 bytes, NumPy's to 16: libraries may add up in another order, and
        # results would depend on where an array happened to lie.
        descriptors = torch.empty(chosen.shape, dtype=torch.float32, device=self._device)
        descriptors.copy_(torch.from_numpy(chosen))
        return LoadedImage(descriptors=descriptors, rows=rows, count=len(features))


def _best_rows(features: Features, limit: int | None) -> npt.NDArray[np.int64] | None:
    """The `limit` keypoints of highest score, ascending; None for all. Equal scores: the earlier first."""
    if limit is None or len(features) <= limit:
        return None
    return np.sort(np.argsort(-features.scores, kind="stable")[:limit])
