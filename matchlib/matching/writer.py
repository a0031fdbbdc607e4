"""Writing matches: sealed parts while work goes on, one file in the end (layout: `matching.store`).

`work/` holds the parts, each written in one go, fsynced and renamed, as in `features.store`: a kill costs the pairs
since the last one. `finish` joins them, a part in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import numpy.typing as npt

from matchlib.completion import (
    MARKER,
    Lease,
    atomic_path,
    close_work,
    digest_json,
    fingerprint,
    open_work,
    read_marker,
    write_marker,
)
from matchlib.errors import DataError
from matchlib.matching.order import number_images
from matchlib.matching.pair_lists import Pair
from matchlib.matching.store import FILE, LAYOUT, STAGE, MatchHeader, PairMatches, pair_digest
from matchlib.revisions import REVISIONS

_log = logging.getLogger(__name__)

PART_BYTES = 64 << 20
PART_SECONDS = 30.0
_LIBVER = ("v108", "latest")  # headers with checksums, as in `features.store`
_COLUMNS = ("counts", "lengths", "digests", "index", "scores")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Matches of consecutive pairs: counts (n, 2), lengths (n,), digests (n, 32), and index and scores of all."""

    counts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]
    index: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def of(cls, pairs: Sequence[PairMatches]) -> _Columns:
        digests = b"".join(pair_digest(pair.matches) for pair in pairs)
        none = np.empty((0, 2), np.int32)
        return cls(
            counts=np.array([(pair.count0, pair.count1) for pair in pairs], np.int32).reshape(-1, 2),
            lengths=np.array([len(pair.matches) for pair in pairs], np.int64),
            digests=np.frombuffer(digests, np.uint8).reshape(-1, 32),
            index=np.concatenate([none, *(pair.matches.index.astype(np.int32) for pair in pairs)]),
            scores=np.concatenate([none[:, 0].astype(np.float32), *(pair.matches.scores for pair in pairs)]),
        )

    def digest(self) -> str:
        digest = hashlib.sha256()
        for name in _COLUMNS:
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return digest.hexdigest()


class MatchWriter:
    """Writes the matches of `pairs`, in that order, into a folder; a context manager.

    Entering takes the folder's lease (DataError if another process is writing) and sees what is there:
    `is_finished` if the folder holds just these matches already, else `done`, the number of pairs that an
    interrupted run of the same header and pairs has sealed. Go on with `add` for the pairs from `done` on, then
    `finish`. Not thread-safe: one thread writes.

    part_bytes, part_seconds: a part is sealed when it holds this much, or when the last one was so long ago.
    """

    def __init__(
        self,
        folder: Path,
        header: MatchHeader,
        pairs: Sequence[Pair],
        *,
        part_bytes: int = PART_BYTES,
        part_seconds: float = PART_SECONDS,
    ) -> None:
        self.folder = folder
        self.header = header
        self.pairs = tuple(pairs)
        self.is_finished = False
        self.done = 0
        self._part_bytes, self._part_seconds = part_bytes, part_seconds
        self._parts: list[Path] = []
        self._waiting: list[PairMatches] = []
        self._waiting_bytes = 0
        self._lease = Lease(folder)
        broken = next((name for pair in self.pairs for name in pair if not name or "\n" in name), None)
        if broken is not None:
            raise DataError(f"{folder}: image name {broken!r}: expected a name of one line; rename the image")

    def __enter__(self) -> MatchWriter:
        self._lease.__enter__()
        try:
            self._open()
        except BaseException:
            self._lease.__exit__(None, None, None)
            raise
        self._last_seal = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.is_finished:
                self._seal()  # also after an error: what was matched so far is kept for the next run
        except (OSError, RuntimeError) as fault:  # a full disk; the first error must not be hidden by it
            if error is None:
                raise
            _log.warning("%s: %d pairs could not be kept: %s", self.folder, len(self._waiting), fault)
        finally:
            self._lease.__exit__(kind, error, trace)

    def add(self, found: PairMatches) -> None:
        """Store the matches of the next pair. Raises DataError beyond the last, and for indices out of range."""
        if self.is_finished or self.done >= len(self.pairs):
            raise DataError(f"{self.folder}: all {len(self.pairs)} pairs are written already")
        limits = (found.count0, found.count1)
        index = found.matches.index
        if len(index) and (index.min() < 0 or (index.max(axis=0) >= limits).any()):
            raise DataError(
                f"{self.folder}: pair {self.pairs[self.done]}: matches up to keypoint {index.max(axis=0).tolist()} of "
                f"images with {limits} keypoints; are the features of another extraction?"
            )
        self._waiting.append(found)
        self._waiting_bytes += found.matches.index.nbytes + found.matches.scores.nbytes
        self.done += 1
        is_due = time.monotonic() - self._last_seal >= self._part_seconds
        if is_due or self._waiting_bytes >= self._part_bytes:
            self._seal()

    def finish(self) -> None:
        """Join the parts and declare the folder finished. Raises DataError if pairs are missing."""
        if self.is_finished:
            return
        if self.done != len(self.pairs):
            raise DataError(f"{self.folder}: expected {len(self.pairs)} pairs, got {self.done}")
        self._seal()
        with atomic_path(self.folder / FILE) as temporary:
            self._join(temporary)
        write_marker(self.folder, stage=STAGE, fingerprint=self._fingerprint(), files=[self.folder / FILE])
        close_work(self.folder)
        self.is_finished = True

    def _fingerprint(self) -> str:
        settings = {"header": asdict(self.header), "pairs": digest_json(self.pairs)}
        return fingerprint(stage=STAGE, revision=REVISIONS["matches"], settings=settings)

    def _open(self) -> None:
        identity = self._fingerprint()
        marker = read_marker(self.folder)
        if marker is not None and marker.fingerprint == identity and (self.folder / FILE).is_file():
            close_work(self.folder)  # a kill right after the marker leaves it
            self.is_finished, self.done = True, len(self.pairs)
            return
        (self.folder / MARKER).unlink(missing_ok=True)
        self._work = open_work(self.folder, identity)
        for leftover in (*self._work.glob(".tmp-*"), *self.folder.glob(".tmp-*")):
            leftover.unlink()
        for path in sorted(self._work.glob("part-*.h5")):
            columns = _read_part(path, first=self.done)
            if columns is None:
                path.unlink()  # and with it every later one: parts follow each other without a gap
                continue
            self._parts.append(path)
            self.done += len(columns.lengths)
        if self.done:
            _log.info("%s: resuming with %d of %d pairs", self.folder, self.done, len(self.pairs))

    def _seal(self) -> None:
        """Write the waiting pairs as a part and make it permanent."""
        if self._waiting:
            first = self.done - len(self._waiting)
            columns = _Columns.of(self._waiting)
            path = self._work / f"part-{first:09d}.h5"
            with atomic_path(path) as temporary, h5py.File(temporary, "w", libver=_LIBVER) as file:
                file.attrs["first"] = first
                file.attrs["complete"] = columns.digest()
                for name in _COLUMNS:
                    file.create_dataset(name, data=getattr(columns, name))
            self._parts.append(path)
            self._waiting, self._waiting_bytes = [], 0
        self._last_seal = time.monotonic()

    def _join(self, path: Path) -> None:
        names, pairs_P2 = number_images(self.pairs)
        keypoints = np.zeros(len(names), np.int32)
        with h5py.File(path, "w", libver=_LIBVER) as file:
            _write_head(file, self.header, names, pairs_P2)
            offsets = np.zeros(len(self.pairs) + 1, np.int64)
            digests = np.zeros((len(self.pairs), 32), np.uint8)
            total = sum(_stored_matches(part) for part in self._parts)
            index = file.create_dataset("index", (total, 2), np.int32)
            scores = file.create_dataset("scores", (total,), np.float32)
            pair = row = 0
            for part in self._parts:
                columns = _read_part(part, first=pair)
                if columns is None:
                    raise DataError(
                        f"{part}: damaged since it was written; run again, it goes on before this part"
                    )
                ends = slice(pair, pair + len(columns.lengths))
                offsets[pair + 1 : ends.stop + 1] = row + np.cumsum(columns.lengths)
                digests[ends] = columns.digests
                keypoints[pairs_P2[ends]] = columns.counts
                index[row : row + len(columns.index)] = columns.index
                scores[row : row + len(columns.index)] = columns.scores
                pair, row = ends.stop, row + len(columns.index)
            for name, column in (("offsets", offsets), ("digests", digests), ("keypoints", keypoints)):
                file.create_dataset(name, data=column)


def _write_head(
    file: h5py.File, header: MatchHeader, names: Sequence[str], pairs_P2: npt.NDArray[np.int64]
) -> None:
    file.attrs["layout"] = LAYOUT
    file.attrs["features"] = header.features
    file.attrs["settings"] = json.dumps(dict(header.settings), sort_keys=True)
    file.attrs["shard"] = header.shard
    file.attrs["shards"] = header.shards
    file.create_dataset("names", data=np.frombuffer("\n".join(names).encode(), np.uint8))
    file.create_dataset("pairs", data=pairs_P2.astype(np.int32))


def _stored_matches(part: Path) -> int:
    with h5py.File(part, "r") as file:
        return int(file["scores"].shape[0])


def _read_part(path: Path, *, first: int) -> _Columns | None:
    """An intact part that begins at pair `first`, else None."""
    try:
        with h5py.File(path, "r") as file:
            columns = _Columns(**{name: file[name][()] for name in _COLUMNS})
            stated, begins = str(file.attrs["complete"]), int(file.attrs["first"])
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py's ways to say "damaged"
        _log.warning("%s: damaged (%s); its pairs are matched again", path, error)
        return None
    if columns.digest() != stated:
        _log.warning("%s: damaged; its pairs are matched again", path)
        return None
    return columns if begins == first else None


def write_matches(
    folder: Path, found: Iterable[tuple[str, str, PairMatches]], *, header: MatchHeader
) -> None:
    """Write matches that are already in memory, or come from another program, as a finished folder."""
    items = list(found)
    pairs = [(name0, name1) for name0, name1, _ in items]
    with MatchWriter(folder, header, pairs) as writer:
        for _, _, pair in items[writer.done :]:
            writer.add(pair)
        writer.finish()
