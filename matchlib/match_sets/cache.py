"""A cache with a limit in bytes, so that memory does not grow with the scene."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Values by key, made by `load` when absent; the least recently used leave when `size_of` them exceeds
    `limit`.
    """

    def __init__(self, load: Callable[[int], T], size_of: Callable[[T], int], *, limit: int) -> None:
        self._load, self._size_of, self._limit = load, size_of, limit
        self._values: OrderedDict[int, T] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, key: int) -> T:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
            return value
        value = self._load(key)
        self._values[key] = value
        self._bytes += self._size_of(value)
        while self._bytes > self._limit and len(self._values) > 1:
            self._bytes -= self._size_of(self._values.popitem(last=False)[1])
        return value
