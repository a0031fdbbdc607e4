"""Lists of image pairs: text files of two names per line, as the Aachen challenge and hloc have them. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matchlib.completion import atomic_write
from matchlib.errors import DataError

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PairList:
    """The pairs of a file, each undirected pair once, and what was dropped on the way.

    pairs:      in the order of the file, names in the order of their first line
    lines:      lines that name a pair, so `lines == len(pairs) + duplicates + selves`
    duplicates: lines dropped because an earlier one names the same two images, in either order
    selves:     lines dropped because they pair an image with itself
    """

    pairs: tuple[Pair, ...]
    lines: int
    duplicates: int
    selves: int


def read_pair_list(path: Path) -> PairList:
    """Read a pair list: two image names per line, separated by white space; blank lines are skipped.

    Raises DataError naming file and line for a line of another form, and for a file that is absent, not UTF-8,
    or left without any pair.
    """
    found: dict[Pair, Pair] = {}
    lines = selves = 0
    for number, line in enumerate(_lines(path), start=1):
        names = line.split()
        if not names:
            continue
        if len(names) != 2:
            raise DataError(
                f"{path}:{number}: expected two image names, got {len(names)} words: {line.strip()[:80]!r}; names "
                f"with spaces cannot stand in a pair list"
            )
        lines += 1
        if names[0] == names[1]:
            selves += 1
        else:
            found.setdefault(_undirected((names[0], names[1])), (names[0], names[1]))
    if not found:
        raise DataError(f"{path}: expected at least one pair of two images, got {lines} lines without any")
    pairs = tuple(found.values())
    return PairList(pairs=pairs, lines=lines, duplicates=lines - selves - len(pairs), selves=selves)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such pair list; give a text file of two image names per line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable pair list ({error}); expected UTF-8 text") from error


def _undirected(pair: Pair) -> Pair:
    return pair if pair[0] <= pair[1] else (pair[1], pair[0])


def write_pair_list(path: Path, pairs: Iterable[Pair]) -> None:
    """Write one pair per line, atomically. Raises DataError for a name that a pair list cannot hold."""
    lines = []
    for pair in pairs:
        for name in pair:
            if name.split() != [name]:
                raise DataError(
                    f"{path}: image name {name!r}: expected one word without white space; rename the image"
                )
        lines.append(f"{pair[0]} {pair[1]}\n")
    atomic_write(path, "".join(lines))


def exhaustive_pairs(names: Sequence[str]) -> tuple[Pair, ...]:
    """Every two of the images once, in the order of `names`; a name given twice counts once."""
    return tuple(itertools.combinations(dict.fromkeys(names), 2))


def check_pairs(pairs: Iterable[Pair], names: Iterable[str]) -> tuple[str, ...]:
    """The images that occur in `pairs` but not among `names`, sorted; empty if all is well."""
    return tuple(sorted({name for pair in pairs for name in pair}.difference(names)))
