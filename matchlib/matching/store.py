"""Matches of many pairs on disk: a folder per shard, of one HDF5 file and the marker that says it is finished.

`matches.h5` holds long columns instead of a group per pair: 60,000 groups would take longer to open than to read.
With I images, P pairs and T matches in all, pair p has rows `offsets[p]` to `offsets[p + 1]` of the two last:

    names      (bytes,) uint8   the I image names, UTF-8, a line feed between them
    keypoints  (I,) int32       keypoints of each image, so that features of another extraction are noticed
    pairs      (P, 2) int32     images of a pair
    offsets    (P + 1,) int64
    digests    (P, 32) uint8    sha256 of a pair's matches, checked when they are read
    index      (T, 2) int32     keypoint of the first and of the second image, ascending in the first
    scores     (T,) float32

File attributes: `layout`, `features` (digest of the features), `settings` (JSON of the matcher's), `shard`, `shards`.
Equal pairs, features and settings give equal bytes. Written by `matching.writer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from matchlib.completion import read_marker
from matchlib.errors import DataError
from matchlib.matching.pair_lists import Pair
from matchlib.matching.types import Matches

STAGE = "matches"
FILE = "matches.h5"
LAYOUT = "matchlib-matches-1"
_BLOCK_MATCHES = 1 << 20  # matches read at a time by `items`: 12 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchHeader:
    """What the matches are of.

    features: digest of the features file
    settings: the matcher's, JSON values
    shard:    which of `shards` runs of the pairs this is
    """

    features: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMatches:
    """Matches of one pair, and the numbers of keypoints that they index into."""

    matches: Matches
    count0: int
    count1: int


def pair_digest(matches: Matches) -> bytes:
    """sha256 of the values, the same on every machine."""
    digest = hashlib.sha256(str(len(matches)).encode())
    digest.update(np.ascontiguousarray(matches.index, dtype="<i4").data)
    digest.update(np.ascontiguousarray(matches.scores, dtype="<f4").data)
    return digest.digest()


# ---------------------------------------------------------------- reading
class MatchReader:
    """Reads the matches of one finished folder, or of all shards of a list of pairs; a context manager.

    Raises DataError for a folder that is not finished, for shards of different features or settings, for shards that
    are missing (unless `partial`), and for a pair that occurs twice.

    features, settings: what the matches are of (see `MatchHeader`)
    keypoint_counts:    number of keypoints of every image that occurs, to compare with the features at hand
    """

    def __init__(self, folders: Path | Sequence[Path], *, partial: bool = False) -> None:
        self.folders = (folders,) if isinstance(folders, Path) else tuple(folders)
        if not self.folders:
            raise DataError("matches: expected at least one folder, got none")
        self._lookup: dict[Pair, tuple[int, int]] | None = None
        with contextlib.ExitStack() as stack:
            self._shards = [stack.enter_context(_Shard(folder)) for folder in self.folders]
            self._check_shards(partial)
            self.features = self._shards[0].header.features
            self.settings = self._shards[0].header.settings
            self.keypoint_counts = self._collect_counts()
            self._check_unique()
            self._stack = stack.pop_all()

    def __enter__(self) -> MatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __len__(self) -> int:
        return sum(len(shard.pairs_P2) for shard in self._shards)

    def __contains__(self, pair: object) -> bool:
        return pair in self._positions() or (
            isinstance(pair, tuple) and tuple(reversed(pair)) in self._positions()
        )

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs, shard by shard, in the order in which they were matched."""
        return tuple(pair for shard in self._shards for pair in shard.named_pairs())

    @property
    def digest(self) -> str:
        """Digest of pairs and matches, whatever their order and however they were cut into shards."""
        lines = sorted(
            f"{name0}\n{name1}\n{stated.tobytes().hex()}\n"
            for shard in self._shards
            for (name0, name1), stated in zip(shard.named_pairs(), shard.digests, strict=True)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, name0: str, name1: str) -> Matches:
        """Matches of one pair, columns in the asked order whatever the stored one; sorted by the first.

        Raises DataError for a pair that was not matched, and if the file is damaged.
        """
        positions = self._positions()
        if (name0, name1) in positions:
            shard, pair = positions[name0, name1]
            return self._shards[shard].read(pair)
        if (name1, name0) in positions:
            shard, pair = positions[name1, name0]
            return swapped(self._shards[shard].read(pair))
        raise DataError(
            f"{self.folders[0]}: no pair '{name0}', '{name1}' among {len(self)}; add it to the list and match again"
        )

    def require_features(self, digest: str, source: Path) -> None:
        """Raise DataError unless the matches index into the features of that digest, which lie in the file `source`."""
        if self.features != digest:
            raise DataError(f"{self.folders[0]}: matches of other features than {source} holds; match again")

    def items(self) -> Iterator[tuple[str, str, Matches]]:
        """All pairs with their matches in the order of `pairs`, a block of the file in memory at a time."""
        for shard in self._shards:
            yield from shard.items()

    def _positions(self) -> dict[Pair, tuple[int, int]]:
        """Built when first asked for: reading in order needs none."""
        if self._lookup is None:
            self._lookup = {
                pair: (number, position)
                for number, shard in enumerate(self._shards)
                for position, pair in enumerate(shard.named_pairs())
            }
        return self._lookup

    def _check_shards(self, partial: bool) -> None:
        first = self._shards[0]
        for shard in self._shards[1:]:
            theirs, ours = shard.header, first.header
            if (theirs.features, theirs.settings) != (ours.features, ours.settings):
                raise DataError(
                    f"{shard.folder}: matches of other features or settings than {first.folder}; match both again"
                )
        found = [shard.header.shard for shard in self._shards]
        missing = sorted(set(range(first.header.shards)).difference(found))
        if missing and not partial:
            raise DataError(
                f"{first.folder}: expected all {first.header.shards} shards, but {missing} are missing; give them all"
            )

    def _collect_counts(self) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for shard in self._shards:
            for name, count in zip(shard.names, shard.keypoints.tolist(), strict=True):
                if counts.setdefault(name, count) != count:
                    raise DataError(
                        f"{shard.folder}: image '{name}' has {count} keypoints here and {counts[name]} in another "
                        f"shard; match all shards again"
                    )
        return counts

    def _check_unique(self) -> None:
        numbers = {name: number for number, name in enumerate(self.keypoint_counts)}
        ends = np.concatenate(
            [np.array([numbers[name] for name in s.names], np.int64)[s.pairs_P2] for s in self._shards]
        )
        ends.sort(axis=1)
        unique, count = np.unique(ends, axis=0, return_counts=True)
        if len(unique) < len(ends):
            names = list(self.keypoint_counts)
            name0, name1 = (names[number] for number in unique[count > 1][0])
            raise DataError(
                f"{self.folders[0]}: pair '{name0}', '{name1}' occurs {count.max()} times; are shards given twice?"
            )


def swapped(matches: Matches) -> Matches:
    """The same matches seen from image 1, sorted by its keypoints."""
    order = np.argsort(matches.index[:, 1], kind="stable")
    return Matches(index=matches.index[order, ::-1].copy(), scores=matches.scores[order])


class _Shard:
    """One finished folder, open; everything but the matches themselves is in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / FILE
        marker = read_marker(folder)
        if marker is None or marker.stage != STAGE:
            raise DataError(
                f"{folder}: expected finished matches, got {_state(folder)}; run the matching (again)"
            )
        try:
            self._file = h5py.File(self._path, "r")
        except OSError as error:
            raise DataError(
                f"{self._path}: not readable ({error}); delete the folder and match again"
            ) from error
        try:
            self._read_columns()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def named_pairs(self) -> Iterator[Pair]:
        for first, second in self.pairs_P2.tolist():
            yield self.names[first], self.names[second]

    def read(self, pair: int) -> Matches:
        return self._block(pair, pair + 1)[0]

    def items(self) -> Iterator[tuple[str, str, Matches]]:
        pairs, start = list(self.named_pairs()), 0
        while start < len(pairs):
            limit = self.offsets[start] + _BLOCK_MATCHES
            stop = max(start + 1, int(np.searchsorted(self.offsets, limit, side="right")) - 1)
            for (name0, name1), matches in zip(pairs[start:stop], self._block(start, stop), strict=True):
                yield name0, name1, matches
            start = stop

    def _block(self, start: int, stop: int) -> list[Matches]:
        rows = slice(int(self.offsets[start]), int(self.offsets[stop]))
        try:
            index = self._file["index"][rows].astype(np.int64)
            scores = self._file["scores"][rows].astype(np.float32, copy=False)
        except OSError as error:
            raise DataError(
                f"{self._path}: not readable ({error}); delete the folder and match again"
            ) from error
        blocks = []
        for pair in range(start, stop):
            part = slice(int(self.offsets[pair]) - rows.start, int(self.offsets[pair + 1]) - rows.start)
            # Copies: a view would keep the block in memory as long as one pair of it.
            matches = Matches(index=index[part].copy(), scores=scores[part].copy())
            if pair_digest(matches) != self.digests[pair].tobytes():
                name0, name1 = (self.names[end] for end in self.pairs_P2[pair])
                raise DataError(
                    f"{self._path}: matches of '{name0}', '{name1}' are damaged; delete the folder and match again"
                )
            blocks.append(matches)
        return blocks

    def _read_columns(self) -> None:
        file = self._file
        if file.attrs.get("layout") != LAYOUT:
            raise DataError(
                f"{self._path}: expected layout {LAYOUT}, got {file.attrs.get('layout')}; match again with this version"
            )
        try:
            self.header = MatchHeader(
                features=str(file.attrs["features"]),
                settings=json.loads(file.attrs["settings"]),
                shard=int(file.attrs["shard"]),
                shards=int(file.attrs["shards"]),
            )
            text = file["names"][()].tobytes().decode()
            self.names: tuple[str, ...] = tuple(text.split("\n")) if text else ()
            self.keypoints: npt.NDArray[np.int32] = file["keypoints"][()]
            self.pairs_P2: npt.NDArray[np.int32] = file["pairs"][()]
            self.offsets: npt.NDArray[np.int64] = file["offsets"][()]
            self.digests: npt.NDArray[np.uint8] = file["digests"][()]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{self._path}: damaged ({error}); delete the folder and match again") from error


def _state(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    return "an unfinished run" if (folder / "work").is_dir() else "no marker of that stage"
