"""A file that is not all there yet: `name.part` and, beside it, what is known of its bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from matchlib.completion import atomic_write_json

_SYNC_BYTES = 64 << 20
_SYNC_S = 2.0
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PartState:
    """The side file `name.part.json`.

    urls:   addresses that the bytes came from, the latest last
    etag:   the latest host's tag of the whole file
    length: length of the whole file as that host says
    bytes:  how many bytes are safely on the disk
    sha256: digest of those bytes, so that a part damaged by a crash is noticed before anything is added to it
    """

    urls: tuple[str, ...] = ()
    etag: str | None = None
    length: int | None = None
    bytes: int = 0
    sha256: str = hashlib.sha256(b"").hexdigest()


class PartialFile:
    """Append bytes to `<target>.part` while hashing them; survives being killed at any moment.

    target:     the path that the finished file will have
    algorithms: names for hashlib, beside sha256
    """

    def __init__(self, target: Path, algorithms: Iterable[str] = ()) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self._side = target.with_name(target.name + ".part.json")
        self._algorithms = tuple(dict.fromkeys(("sha256", *algorithms)))
        self._hashers = self._new_hashers()
        self._stream: BinaryIO | None = None
        self._synced = (0, 0.0)
        self.state = PartState()
        self.size = 0

    def __enter__(self) -> PartialFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._resume():
            self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # e.g. the disk is full: the error on its way out says so
            self.sync()
        self._close()

    def _new_hashers(self) -> dict[str, Any]:
        return {name: hashlib.new(name, usedforsecurity=False) for name in self._algorithms}

    def _resume(self) -> bool:
        """Take up the bytes of an earlier run; False if there are none or not those of the side file."""
        try:
            values = json.loads(self._side.read_text(encoding="utf-8"))
            state = PartState(**{**values, "urls": tuple(values["urls"])})
            stream = open(self.path, "r+b")
        except (OSError, ValueError, TypeError, KeyError):
            return False
        hashers, left = self._new_hashers(), state.bytes
        while left > 0 and (piece := stream.read(min(left, _PIECE))):
            left -= len(piece)
            for hasher in hashers.values():
                hasher.update(piece)
        if left or hashers["sha256"].hexdigest() != state.sha256:
            stream.close()
            return False
        stream.truncate(state.bytes)
        stream.seek(state.bytes)
        self._stream, self._hashers, self.state, self.size = stream, hashers, state, state.bytes
        self._synced = (self.size, time.monotonic())
        return True

    def restart(self) -> None:
        """Throw away what is there and begin with an empty file."""
        self._close()
        self._side.unlink(missing_ok=True)
        self._stream = open(self.path, "wb")
        self._hashers, self.state, self.size = self._new_hashers(), PartState(), 0
        self._synced = (0, time.monotonic())

    def describe(self, url: str, *, etag: str | None, length: int | None) -> None:
        """Note what the host says about the whole file, before its bytes are added."""
        urls = self.state.urls if self.state.urls[-1:] == (url,) else (*self.state.urls, url)
        self.state = replace(self.state, urls=urls, etag=etag, length=length)
        self.sync()

    def write(self, data: bytes) -> None:
        """Add bytes at the end. Raises OSError, e.g. on a full disk."""
        self._open_stream().write(data)
        for hasher in self._hashers.values():
            hasher.update(data)
        self.size += len(data)
        synced_size, synced_at = self._synced
        if self.size - synced_size > _SYNC_BYTES or time.monotonic() - synced_at > _SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Bring everything to the disk, then say so in the side file."""
        if self._stream is None:
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.state = replace(self.state, bytes=self.size, sha256=self._hashers["sha256"].hexdigest())
        atomic_write_json(self._side, asdict(self.state))
        self._synced = (self.size, time.monotonic())

    def digests(self) -> dict[str, str]:
        """Digest of all bytes so far, by algorithm."""
        return {name: hasher.hexdigest() for name, hasher in self._hashers.items()}

    def head(self, count: int) -> bytes:
        """The first bytes of the file."""
        self._open_stream().flush()
        with open(self.path, "rb") as stream:
            return stream.read(count)

    def finish(self) -> None:
        """Give the file its final name."""
        self.sync()
        self._close()
        os.replace(self.path, self.target)
        self._side.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the part and its side file."""
        self._close()
        self.path.unlink(missing_ok=True)
        self._side.unlink(missing_ok=True)

    def _open_stream(self) -> BinaryIO:
        if self._stream is None:
            self.restart()
        if self._stream is None:
            raise ValueError(f"{self.path}: not open")
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with contextlib.suppress(OSError):  # bytes that no longer fit on the disk; `sync` reported it
                stream.close()
