"""The files inside an archive, in a stream, each one judged before a byte of it is written.

Datasets consist of plain files and folders. Whatever else an archive may hold (links, devices, names that
lead elsewhere, sizes out of proportion) is either an accident or an attack, and the whole archive is refused.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from matchlib.completion import MANIFEST, MARKER, WORK
from matchlib.downloads.config import ArchiveKind, UnpackLimits
from matchlib.downloads.parts import join_files
from matchlib.downloads.split_zip import open_split_zip
from matchlib.errors import DataError

_BUFFER = 1 << 20
_BLOCK = 512
# Names that a finished folder uses itself.
_RESERVED = frozenset({MARKER, MANIFEST, WORK, "lease.json", ".unpacked"})
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,  # a compression method that zipfile lacks
)


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file inside an archive. `open` is valid until the next member is asked for."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


@contextlib.contextmanager
def open_members(
    kind: ArchiveKind,
    files: Sequence[Path],
    *,
    prefixes: Sequence[str] = (),
    limits: UnpackLimits | None = None,
) -> Iterator[Iterator[Member]]:
    """Iterate over the files of an archive given by its parts in order.

    prefixes: leading folders that are removed from the names where present
    Raises DataError (here or while iterating) for damaged, truncated or refused archives.
    """
    checker = _Checker(files, tuple(prefixes), limits or UnpackLimits())
    try:
        if kind.startswith("tar"):
            with join_files(files) as joined, _decompressed(io.BufferedReader(joined, _BUFFER)) as stream:
                yield _guarded(_tar_members(stream, checker), checker)
        elif kind == "file":
            yield iter([checker.accept(p.name, p.stat().st_size, _file_opener(p)) for p in files])
        else:
            raw = open_split_zip(files) if kind == "zip-split" else join_files(files)
            with raw, zipfile.ZipFile(io.BufferedReader(raw, _BUFFER)) as archive:
                yield _guarded(_zip_members(archive, checker), checker)
    except _DAMAGED as error:
        raise checker.damaged(error) from error


def _guarded(members: Iterator[Member], checker: _Checker) -> Iterator[Member]:
    try:
        yield from members
    except _DAMAGED as error:
        raise checker.damaged(error) from error


# ---------------------------------------------------------------- judging
class _Checker:
    """What has been seen of one archive, and the rules for the next member."""

    def __init__(self, files: Sequence[Path], prefixes: tuple[str, ...], limits: UnpackLimits) -> None:
        self.where = files[-1]
        self._prefixes = prefixes
        self._limits = limits
        self._allowed = limits.free_bytes + limits.max_ratio * sum(path.stat().st_size for path in files)
        self._bytes = self._entries = 0
        self._names: set[str] = set()

    def refuse(self, name: str, why: str) -> DataError:
        return DataError(
            f"{self.where}: refused, nothing of it was unpacked: member {name[:200]!r} {why}; "
            f"delete the archive and fetch it again from a host that you trust"
        )

    def damaged(self, error: BaseException) -> DataError:
        return DataError(
            f"{self.where}: the archive is damaged or cut short ({type(error).__name__}: {error}); delete "
            f"it and run the download again"
        )

    def count(self, name: str) -> None:
        """One more entry of any kind."""
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise self.refuse(
                name, f"is one more than the {self._limits.max_entries} entries that are allowed"
            )

    def accept(self, name: str, size: int, opener: Callable[[], IO[bytes]]) -> Member:
        """A regular file: check name, uniqueness and size."""
        clean = self.clean_name(name)
        if not clean:
            raise self.refuse(name, "has no name")
        if clean in self._names:
            raise self.refuse(name, "occurs twice")
        self._names.add(clean)
        self._bytes += size
        if size < 0 or self._bytes > self._allowed:
            raise self.refuse(name, f"brings the unpacked size to {self._bytes} bytes, out of proportion")
        return Member(clean, size, opener)

    def clean_name(self, name: str) -> str:
        """The name relative to the target, without prefixes; "" for the top folder itself."""
        if name.startswith(("/", "\\")) or name[1:2] == ":":
            raise self.refuse(name, "has an absolute path")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self.refuse(name, "leads out of the folder ('..')")
        if any("\\" in part or len(part.encode(errors="surrogateescape")) > 255 for part in parts):
            raise self.refuse(name, "has a name that is not portable")
        if any(unicodedata.category(letter) in ("Cc", "Cs") for part in parts for letter in part):
            raise self.refuse(name, "has control or undecodable characters in its name")
        clean = "/".join(parts)
        for prefix in self._prefixes:
            if (clean + "/").startswith(prefix.strip("/") + "/"):
                clean = clean[len(prefix.strip("/")) + 1 :]
                break
        if clean.partition("/")[0] in _RESERVED:
            raise self.refuse(name, "has a name that matchlib uses itself")
        return clean


# ---------------------------------------------------------------- tar
class _Watched(io.RawIOBase):
    """Passes a stream on and notes its length and where its last byte that is not zero ended.

    `tarfile` takes an archive that was cut between two members, or whose next header is damaged, for one that
    is over. A tar that really is over has zeros after its last member, at least one block of them.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self.length = self.zeros_from = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        content = len(data.rstrip(b"\0"))
        if content:
            self.zeros_from = self.length + content
        self.length += len(data)
        return data


@contextlib.contextmanager
def _decompressed(stream: io.BufferedReader) -> Iterator[IO[bytes]]:
    """The tar inside gzip, bzip2 or xz (found by the first bytes), or the stream itself."""
    head = stream.peek(6)[:6]
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(stream) as inner:
            yield cast(IO[bytes], inner)
    elif head.startswith(b"BZh"):
        with bz2.open(stream) as inner:
            yield inner
    elif head.startswith(b"\xfd7zXZ\x00"):
        with lzma.open(stream) as inner:
            yield inner
    else:
        yield stream


def _tar_members(stream: IO[bytes], checker: _Checker) -> Iterator[Member]:
    watched = _Watched(stream)
    with tarfile.open(fileobj=watched, mode="r|", bufsize=_BUFFER) as archive:
        for entry in archive:
            checker.count(entry.name)
            if entry.isdir():
                checker.clean_name(entry.name)
            elif entry.issym() or entry.islnk():
                raise checker.refuse(entry.name, f"is a link to {entry.linkname[:100]!r}")
            elif not entry.isreg() or entry.issparse():
                raise checker.refuse(entry.name, "is neither a file nor a folder")
            else:
                yield checker.accept(entry.name, entry.size, _tar_opener(archive, entry))
        end = archive.offset
    while watched.read(_BUFFER):  # to the end, so that the checksum of the compressed stream is compared
        pass
    if watched.zeros_from > end or watched.length < end + _BLOCK:
        raise EOFError(f"expected the end mark of the tar at byte {end}")


def _tar_opener(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_entry() -> IO[bytes]:
        stream = archive.extractfile(entry)
        if stream is None:
            raise tarfile.ReadError(f"{entry.name}: no content")
        return stream

    return open_entry


# ---------------------------------------------------------------- zip
def _zip_members(archive: zipfile.ZipFile, checker: _Checker) -> Iterator[Member]:
    """Everything is judged by the table of contents before the first file is given out."""
    members = []
    for entry in archive.infolist():
        checker.count(entry.filename)
        mode = entry.external_attr >> 16
        is_unix_special = entry.create_system == 3 and stat.S_IFMT(mode) not in (
            0,
            stat.S_IFREG,
            stat.S_IFDIR,
        )
        if is_unix_special:
            raise checker.refuse(entry.filename, "is a link" if stat.S_ISLNK(mode) else "is not a file")
        if entry.flag_bits & 0x1:
            raise checker.refuse(entry.filename, "is encrypted")
        if entry.is_dir():
            checker.clean_name(entry.filename)
        else:
            # zipfile cuts names at a NUL; the untouched name must be judged.
            opener = _zip_opener(archive, entry)
            members.append(checker.accept(entry.orig_filename, entry.file_size, opener))
    yield from members


def _zip_opener(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(entry)


def _file_opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: open(path, "rb")
