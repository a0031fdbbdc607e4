"""The errors a user may meet, and the shape checks that raise them.

Every error is one message: where, what was expected, what was found, what to do next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MatchlibError(Exception):
    """Base of all errors that matchlib raises on purpose."""


class ConfigError(MatchlibError, ValueError):
    """A setting is unknown, of the wrong type, or impossible together with another.

    Also a ValueError, so that pydantic catches it in a `__post_init__` and adds where in the file it happened.
    """


class DataError(MatchlibError):
    """A file is missing, truncated, corrupt, or not what its name says."""


class ShapeError(MatchlibError):
    """A caller's array or tensor has the wrong shape, dtype or values."""


class BuildError(MatchlibError):
    """The native extension could not be built or disagrees with its reference."""


class TrainingError(MatchlibError):
    """Training cannot go on: non-finite values, no usable samples, or a foreign checkpoint."""


def check_shape(name: str, array: Any, spec: str) -> dict[str, int]:
    """Check the shape of an array or tensor against a spec such as `"N 2"` or `"B 3 H W"`.

    Numbers must match exactly; a letter stands for any size and, where it occurs twice, for the same size.
    Returns the size of each letter. Raises ShapeError, e.g.
    `descriptors: expected shape (3, D), got (2, 8)`.
    """
    wanted = spec.split()
    shape = tuple(int(size) for size in array.shape)
    sizes: dict[str, int] = {}
    matches = len(wanted) == len(shape)
    if matches:
        for symbol, size in zip(wanted, shape, strict=True):
            if symbol.isdigit():
                matches &= int(symbol) == size
            else:
                matches &= sizes.setdefault(symbol, size) == size
    if not matches:
        raise ShapeError(f"{name}: expected shape ({', '.join(wanted)}), got {shape}")
    return sizes


def requirement(prefix: str = "") -> Callable[[bool, str, str, object], None]:
    """A check for settings: `require(holds, key, expected, got)` raises ConfigError that begins with prefix and key."""

    def require(holds: bool, key: str, expected: str, got: object) -> None:
        if not holds:
            raise ConfigError(f"{prefix}{key}: expected {expected}, got {got!r}")

    return require
