"""Reading small text files of numbers, with errors that name file and line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.errors import DataError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without line ends. Raises DataError if it is missing, or not text."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file, got {error}") from error


def filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of every line that is not blank."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield number, line.strip()


def numbers(path: Path, line: int, text: str, count: int | None = None) -> list[float]:
    """The numbers of one line; `count` of them if given. nan and inf are numbers here. Raises DataError."""
    try:
        values = [float(word) for word in text.split()]
    except ValueError as error:
        raise DataError(f"{path}:{line}: expected numbers, got {error}") from None
    if count is not None and len(values) != count:
        raise DataError(
            f"{path}:{line}: expected {count} numbers, got {len(values)}; fetch or write the file anew"
        )
    return values


def whole_number(path: Path, line: int, value: float, name: str) -> int:
    """`value` as an integer of at least 0. Raises DataError naming what it should be."""
    if not math.isfinite(value) or value != int(value) or value < 0:
        raise DataError(f"{path}:{line}: {name}: expected a whole number of at least 0, got {value:g}")
    return int(value)


def read_matrix(path: Path, rows: int, columns: int) -> npt.NDArray[np.float64]:
    """A (rows, columns) float64 matrix, one row per line, blank lines ignored; entries may be nan or inf.

    Raises DataError for a missing file or any other count of lines or numbers.
    """
    lines = list(filled_lines(path))
    if len(lines) != rows:
        raise DataError(f"{path}: expected {rows} lines of {columns} numbers, got {len(lines)} lines")
    return np.array([numbers(path, line, text, columns) for line, text in lines], dtype=np.float64)


def format_row(values: npt.NDArray[np.float64] | list[float]) -> str:
    """Numbers in the shortest form that reads back to the same float64."""
    return " ".join(repr(float(value)) for value in values)
