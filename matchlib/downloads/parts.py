"""Several files read as one, without writing the joined file."""

from __future__ import annotations

import bisect
import errno
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `end` of a file, or a buffer in memory."""

    source: Path | bytes
    start: int
    end: int

    @classmethod
    def of_file(cls, path: Path) -> Piece:
        """A whole file. Raises FileNotFoundError."""
        return cls(path, 0, path.stat().st_size)

    @classmethod
    def of_bytes(cls, data: bytes) -> Piece:
        """A buffer."""
        return cls(data, 0, len(data))


class JoinedFile(io.RawIOBase):
    """A read-only, seekable file made of pieces; only the piece that is being read is open."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._pieces = tuple(piece for piece in pieces if piece.end > piece.start)
        self._starts = [0]
        for piece in self._pieces:
            self._starts.append(self._starts[-1] + piece.end - piece.start)
        self._position = 0
        self._open_index = -1
        self._open: BinaryIO | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self)}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if self._position >= len(self) or not len(view):
            return 0
        index = bisect.bisect_right(self._starts, self._position) - 1
        inside = self._position - self._starts[index]
        piece = self._pieces[index]
        wanted = min(len(view), piece.end - piece.start - inside)
        stream = self._stream(index)
        stream.seek(piece.start + inside)
        data = stream.read(wanted)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _stream(self, index: int) -> BinaryIO:
        if self._open is None or index != self._open_index:
            if self._open is not None:
                self._open.close()
            source = self._pieces[index].source
            self._open = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
            self._open_index = index
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
        super().close()


def join_files(paths: Sequence[Path]) -> JoinedFile:
    """The files one after the other. Raises FileNotFoundError."""
    return JoinedFile([Piece.of_file(path) for path in paths])
