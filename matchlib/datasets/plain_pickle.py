"""Pickles of arrays, numbers, strings, lists and dicts, read without running anything that is in them.

Benchmarks publish their lists as pickles. `pickle.load` and `np.load(allow_pickle=True)` run whatever code a
stranger put into such a file, and even a reader that lets through NumPy's own constructors is open:
`numpy.ndarray(shape, "O", some_bytes)` makes Python objects of arbitrary addresses. So nothing of NumPy is handed
to the pickle here. The few names that arrays need stand for small recorders of this module, and arrays are made
from what they recorded, after checks.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from matchlib.errors import DataError

_MAX_BYTES = 256 * 2**20
_KINDS = "biufUS"  # besides objects, which come as lists
_NUMPY = ("numpy.core", "numpy._core")  # renamed in NumPy 2; files of both ages are about


def read_plain_pickle(path: Path, *, max_bytes: int = _MAX_BYTES) -> Any:
    """The content of a pickle of plain values; arrays are NumPy arrays, in C order.

    Raises DataError naming the file: if it is missing, larger than `max_bytes`, damaged, or if it asks for anything
    but plain values (the message names what it asks for).
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= max_bytes else b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    if size > max_bytes:
        raise DataError(f"{path}: expected at most {max_bytes} bytes, got {size}; this is not such a file")
    try:
        return loads_plain_pickle(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def loads_plain_pickle(data: bytes) -> Any:
    """As `read_plain_pickle`, from bytes; messages name no file."""
    try:
        return _finished(_PlainUnpickler(io.BytesIO(data)).load(), {})
    except DataError:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything; it all means the same to the user
        raise DataError(
            f"damaged, or not a pickle ({type(error).__name__}: {error}); fetch it again"
        ) from error


class _DType:
    """Stands for `numpy.dtype`: records the code and the byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    @property
    def is_object(self) -> bool:
        return self.code in ("O", "O8")

    def resolved(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code) if self.code.isalnum() and self.code.isascii() else None
        if dtype is None or dtype.kind not in _KINDS or dtype.names is not None:
            raise DataError(f"refused: the pickle asks for dtype {self.code!r}, expected numbers")
        return dtype.newbyteorder(">") if self.order == ">" else dtype


class _NDArray:
    """Stands for `numpy.ndarray`: only a name, and the record of an array's state."""

    def __init__(self, *arguments: object) -> None:
        if arguments:
            raise DataError("refused: the pickle calls numpy.ndarray with arguments of its own")
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def shape_and_values(self) -> tuple[tuple[int, ...], _DType, bool, Any]:
        if self.state is None or len(self.state) != 5 or not isinstance(self.state[2], _DType):
            raise DataError("damaged pickle: an array without its content")
        _, shape, dtype, is_fortran, values = self.state
        return tuple(int(side) for side in shape), dtype, bool(is_fortran), values


def _reconstruct(*_: object) -> _NDArray:
    return _NDArray()


def _frombuffer(data: bytes | bytearray, dtype: _DType, shape: tuple[int, ...], order: str) -> _NDArray:
    """How pickle protocol 5 spells arrays of numbers."""
    array = _NDArray()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return array


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype=dtype.resolved(), count=1)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 spells bytes; any other codec (decompressors are codecs too) is refused."""
    if encoding != "latin1":
        raise DataError(f"refused: the pickle asks for codec {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How pickle protocol 2 spells empty bytes."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
}
_ALLOWED |= {("__builtin__", "bytes"): _no_bytes}
_ALLOWED |= {(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _NUMPY}
_ALLOWED |= {(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY}
_ALLOWED |= {(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _NUMPY}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise DataError(
                f"refused: the pickle asks for {module}.{name}, which plain values do not need; it may be hostile"
            )
        return found


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """`value` with every record replaced by its array. `done`: by identity, for values that occur twice."""
    if not isinstance(value, (_NDArray, _DType, list, tuple, dict)):
        return value
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = None  # what contains itself gets None there: no list of pairs does
    if isinstance(value, _NDArray):
        finished = _array(value, done)
    elif isinstance(value, dict):
        finished = {key: _finished(item, done) for key, item in value.items()}
    elif isinstance(value, _DType):
        finished = value.resolved()
    else:
        finished = type(value)(_finished(item, done) for item in value)
    done[id(value)] = finished
    return finished


def _array(record: _NDArray, done: dict[int, Any]) -> Any:
    shape, dtype, is_fortran, values = record.shape_and_values()
    if dtype.is_object:
        if not isinstance(values, list) or len(values) != math.prod(shape):
            raise DataError(f"damaged pickle: expected {math.prod(shape)} objects for shape {shape}")
        flat = np.empty(len(values), dtype=object)
        for row, item in enumerate(values):
            flat[row] = _finished(item, done)
    else:
        if not isinstance(values, bytes):
            raise DataError(f"damaged pickle: expected the bytes of an array, got {type(values).__name__}")
        flat = np.frombuffer(values, dtype=dtype.resolved()).copy()
    if min(shape, default=0) < 0 or flat.size != math.prod(shape):
        raise DataError(f"damaged pickle: {flat.size} values do not fill an array of shape {shape}")
    return flat.reshape(shape[::-1]).T.copy() if is_fortran else flat.reshape(shape)
