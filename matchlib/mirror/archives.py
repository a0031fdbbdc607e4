"""Archives as public datasets come (tar, split tar, tar.gz, split zip); equal input gives equal bytes."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

_TIME = 1_577_836_800  # 2020-01-01, for every member
_ZIP_TIME = (2020, 1, 1, 0, 0, 0)
_LOCAL = struct.Struct("<4s5H3L2H")  # local file header, APPNOTE.TXT 4.3.7
_SPLIT_SIGNATURE = b"PK\x07\x08"  # first bytes of the first part, APPNOTE.TXT 8.5.3
_LOCAL_SIZE, _CENTRAL_SIZE, _END_SIZE = 30, 46, 22


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted by their path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- tar
def write_tar_chunks(stem: Path, root: Path, files: Sequence[Path], chunk_bytes: int) -> list[Path]:
    """Write one tar of `files` (below `root`), cut every `chunk_bytes` bytes: `<stem>.tar.000`, `.001`, ...

    Joined in numeric order, the chunks are the tar. Returns their paths.
    """
    chunks = _ChunkWriter(stem.with_name(stem.name + ".tar"), chunk_bytes)
    stream = cast(IO[bytes], chunks)  # a tar that is only streamed out calls nothing but `write`
    with tarfile.open(fileobj=stream, mode="w|", bufsize=1 << 20, format=tarfile.USTAR_FORMAT) as tar:
        _add_members(tar, root, files, "")
    return chunks.paths


def write_tar_gz(path: Path, root: Path, files: Sequence[Path], prefix: str) -> None:
    """Write `files` (below `root`) as a gzipped tar whose member names begin with `prefix`."""
    with (
        open(path, "wb") as stream,
        gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=6, mtime=_TIME) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        _add_members(tar, root, files, prefix)


def write_tar(path: Path, root: Path, files: Sequence[Path], prefix: str = "") -> None:
    """Write `files` (below `root`) as a plain tar whose member names begin with `prefix`."""
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add_members(tar, root, files, prefix)


def _add_members(tar: tarfile.TarFile, root: Path, files: Sequence[Path], prefix: str) -> None:
    for path in files:
        data = path.read_bytes()
        member = tarfile.TarInfo(prefix + path.relative_to(root).as_posix())
        member.size, member.mtime, member.mode = len(data), _TIME, 0o644
        tar.addfile(member, io.BytesIO(data))


class _ChunkWriter:
    """A write-only stream that starts a new numbered file after every `chunk_bytes` bytes."""

    def __init__(self, stem: Path, chunk_bytes: int) -> None:
        self.paths: list[Path] = []
        self._stem, self._chunk_bytes = stem, chunk_bytes

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while len(view):
            room = self._chunk_bytes - self.paths[-1].stat().st_size if self.paths else 0
            if room == 0:
                self.paths.append(self._stem.with_name(f"{self._stem.name}.{len(self.paths):03d}"))
                self.paths[-1].write_bytes(b"")
                room = self._chunk_bytes
            with open(self.paths[-1], "ab") as stream:
                view = view[stream.write(view[:room]) :]
        return len(data)


# ---------------------------------------------------------------- zip, whole and split
def write_zip(path: Path, root: Path, files: Sequence[Path]) -> None:
    """Write `files` (below `root`) as an ordinary zip."""
    path.write_bytes(_zipped(root, files))


def write_split_zip(stem: Path, root: Path, files: Sequence[Path], part_bytes: int) -> list[Path]:
    """Write `files` (below `root`) as `<stem>.z01`, `.z02`, ..., `<stem>.zip`; returns these paths.

    Headers are never cut; file data is. 7-Zip and `zip -s 0` join such parts (zip 3.0 spoils files that reach
    over three parts, also in splits of its own making). What fits into one part becomes an ordinary zip.
    """
    data = _zipped(root, files)
    parts = [bytearray(data)] if len(data) <= part_bytes else _split(data, part_bytes)
    names = [f"{stem.name}.z{number:02d}" for number in range(1, len(parts))] + [f"{stem.name}.zip"]
    paths = [stem.with_name(name) for name in names]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    return paths


def _zipped(root: Path, files: Sequence[Path]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in files:
            info = zipfile.ZipInfo(path.relative_to(root).as_posix(), _ZIP_TIME)
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(info, path.read_bytes())
    return whole.getvalue()


class _Parts:
    """Bytes laid out over parts of at most `size` bytes."""

    def __init__(self, size: int) -> None:
        self.parts = [bytearray(_SPLIT_SIGNATURE)]
        self._size = size

    def whole(self, record: bytes) -> tuple[int, int]:
        """Append a record that must not be cut; returns its part and its offset there."""
        if len(self.parts[-1]) + len(record) > self._size:
            self.parts.append(bytearray())
        position = len(self.parts) - 1, len(self.parts[-1])
        self.parts[-1] += record
        return position

    def stream(self, data: memoryview) -> None:
        """Append bytes that may be cut anywhere."""
        while len(data):
            if len(self.parts[-1]) == self._size:
                self.parts.append(bytearray())
            room = self._size - len(self.parts[-1])
            self.parts[-1] += data[:room]
            data = data[room:]


def _split(data: bytes, part_bytes: int) -> list[bytearray]:
    """Lay an ordinary zip (no zip64, no data descriptors) out over parts and correct every position in it."""
    layout, view = _Parts(part_bytes), memoryview(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, directory_start = archive.infolist(), archive.start_dir
    positions = []
    for info in infos:
        fields = _LOCAL.unpack_from(data, info.header_offset)
        body = info.header_offset + _LOCAL_SIZE + fields[9] + fields[10]
        positions.append(layout.whole(data[info.header_offset : body]))
        layout.stream(view[body : body + info.compress_size])
    central = [layout.whole(record) for record in _central_records(data, directory_start, positions)]
    end = bytearray(data[-_END_SIZE:])
    # Opening a part for the end record itself would change the counts in it, so the place is made first.
    if len(layout.parts[-1]) + _END_SIZE > part_bytes:
        layout.parts.append(bytearray())
    last = len(layout.parts) - 1
    on_last = sum(part == last for part, _ in central)
    struct.pack_into("<HHH", end, 4, last, central[0][0], on_last)
    struct.pack_into("<L", end, 16, central[0][1])
    layout.parts[-1] += end
    return layout.parts


def _central_records(data: bytes, start: int, positions: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The central directory's records with the part and offset of their local header filled in."""
    for part, offset in positions:
        name, extra, comment = struct.unpack_from("<HHH", data, start + 28)
        length = _CENTRAL_SIZE + name + extra + comment
        record = bytearray(data[start : start + length])
        struct.pack_into("<H", record, 34, part)
        struct.pack_into("<L", record, 42, offset)
        start += length
        yield bytes(record)
