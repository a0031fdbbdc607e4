"""Read an Info-ZIP split archive (`x.z01`, `x.z02`, ..., `x.zip`) without joining it on the disk.

In a split archive every offset is relative to the part ("disk") it lies on, which `zipfile` cannot read. The
parts are left as they are; only the table of contents at the end is rewritten in memory with offsets into the
joined bytes, and the joined bytes are shown to `zipfile` as one seekable file. (`zip -s 0` of Info-ZIP 3.0
would join them, but it loses bytes of every member that lies on three parts or more.)
Source of the layout: PKWARE APPNOTE 6.3.10, sections 4.3.12 to 4.3.16, 4.5.3 and 8.5.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matchlib.downloads.parts import JoinedFile, Piece
from matchlib.errors import DataError

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_MAX_COMMENT = 0xFFFF
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_EXTRA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """The end record: number of its own disk, and where the table of contents lies."""

    disk: int
    table_disk: int
    table_offset: int
    table_size: int
    entries: int


def last_disk_number(path: Path) -> int:
    """Number of parts before `x.zip`, as its end record says (0: it is not split). Raises DataError."""
    return _read_end((path,)).disk


def open_split_zip(paths: Sequence[Path]) -> JoinedFile:
    """The joined archive as `zipfile.ZipFile` can read it.

    paths: all parts in order, the `.zip` last
    Raises DataError if their number is not what the archive says, or its table of contents is damaged.
    """
    end = _read_end(paths)
    if end.disk != len(paths) - 1:
        raise DataError(
            f"{paths[-1]}: expected {end.disk + 1} parts of the archive, got {len(paths)}; fetch all of them"
        )
    lengths = [path.stat().st_size for path in paths]
    starts = list(itertools.accumulate(lengths, initial=0))
    if (
        end.table_disk >= len(paths)
        or starts[end.table_disk] + end.table_offset + end.table_size > starts[-1]
    ):
        raise DataError(f"{paths[-1]}: its table of contents lies outside the archive; the file is damaged")
    table_start = starts[end.table_disk] + end.table_offset
    with JoinedFile([Piece(path, 0, length) for path, length in zip(paths, lengths, strict=True)]) as joined:
        joined.seek(table_start)
        table = io.BufferedReader(joined).read(end.table_size)
    try:
        entries = list(_joined_entries(table, starts))
    except (struct.error, IndexError, ValueError) as error:
        raise DataError(f"{paths[-1]}: its table of contents is damaged ({error})") from error
    if len(entries) != end.entries:
        raise DataError(
            f"{paths[-1]}: expected {end.entries} entries in its table of contents, got {len(entries)}"
        )
    pieces = [Piece(p, 0, n) for p, n in zip(paths[: end.table_disk], lengths, strict=False)]
    pieces.append(Piece(paths[end.table_disk], 0, end.table_offset))
    new_table = b"".join(entries)
    pieces.append(Piece.of_bytes(new_table + _new_end(len(entries), table_start, len(new_table))))
    return JoinedFile(pieces)


# ---------------------------------------------------------------- reading
def _read_end(paths: Sequence[Path]) -> _End:
    path = paths[-1]
    size = path.stat().st_size
    with open(path, "rb") as stream:
        stream.seek(max(0, size - _END.size - _MAX_COMMENT))
        tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0 and at + _END.size <= len(tail):
        _, disk, table_disk, _, entries, table_size, table_offset, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment == len(tail):
            break
        at = tail.rfind(b"PK\x05\x06", 0, at)  # these four bytes stood inside a comment
    else:
        raise DataError(
            f"{path}: no end record; expected the .zip file of a zip archive, or the file is truncated"
        )
    locator_at = at - _LOCATOR64.size
    if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\x06\x07":
        return _read_end64(paths, tail[locator_at : locator_at + _LOCATOR64.size])
    return _End(
        disk=disk, table_disk=table_disk, table_offset=table_offset, table_size=table_size, entries=entries
    )


def _read_end64(paths: Sequence[Path], locator: bytes) -> _End:
    _, disk, offset, _ = _LOCATOR64.unpack(locator)
    # The record stands directly before the locator, hence on the last part, also where only that one is here.
    path = paths[disk] if disk < len(paths) else paths[-1]
    with open(path, "rb") as stream:
        stream.seek(min(offset, path.stat().st_size))  # a damaged offset may be more than a file can have
        data = stream.read(_END64.size)
    if len(data) < _END64.size or data[:4] != b"PK\x06\x06":
        raise DataError(f"{path}: expected a zip64 end record at byte {offset}; the file is damaged")
    _, _, _, _, own_disk, table_disk, _, entries, table_size, table_offset = _END64.unpack(data)
    return _End(
        disk=own_disk,
        table_disk=table_disk,
        table_offset=table_offset,
        table_size=table_size,
        entries=entries,
    )


# ---------------------------------------------------------------- rewriting
def _joined_entries(table: bytes, starts: Sequence[int]) -> Iterator[bytes]:
    """The entries of the table of contents with offsets into the joined bytes."""
    at = 0
    while at < len(table):
        fields = list(_ENTRY.unpack_from(table, at))
        if fields[0] != b"PK\x01\x02":
            raise ValueError(f"no entry at byte {at}")
        name_length, extra_length, comment_length = fields[10:13]
        name_at = at + _ENTRY.size
        extra_at = name_at + name_length
        comment_at = extra_at + extra_length
        at = comment_at + comment_length
        if at > len(table):
            raise ValueError("the last entry is cut")
        fields, extra = _with_joined_offset(fields, table[extra_at:comment_at], starts)
        yield _ENTRY.pack(*fields) + table[name_at:extra_at] + extra + table[comment_at:at]


def _with_joined_offset(fields: list[int], extra: bytes, starts: Sequence[int]) -> tuple[list[int], bytes]:
    """Move one entry's offset and disk number, wherever they stand: in the header or in its zip64 field."""
    compressed, size, disk, offset = fields[8], fields[9], fields[13], fields[16]
    wide, others = _split_extra(extra)
    large = []  # the values that stand in the zip64 field, in its prescribed order
    if size == _FULL32:
        large.append(wide.pop_quad())
    if compressed == _FULL32:
        large.append(wide.pop_quad())
    if offset == _FULL32:
        offset = wide.pop_quad()
    if disk == _FULL16:
        disk = wide.pop_long()
    if disk >= len(starts) - 1:
        raise ValueError(f"an entry begins on part {disk + 1} of {len(starts) - 1}")
    joined = starts[disk] + offset
    fields[13] = 0
    fields[16] = joined if joined < _FULL32 else _FULL32
    if joined >= _FULL32:
        large.append(joined)
    if large:
        others = struct.pack(f"<2H{len(large)}Q", _ZIP64_EXTRA, 8 * len(large), *large) + others
    fields[11] = len(others)
    return fields, others


@dataclass(slots=True)
class _Wide:
    data: bytes

    def pop_quad(self) -> int:
        value, self.data = struct.unpack_from("<Q", self.data)[0], self.data[8:]
        return int(value)

    def pop_long(self) -> int:
        value, self.data = struct.unpack_from("<L", self.data)[0], self.data[4:]
        return int(value)


def _split_extra(extra: bytes) -> tuple[_Wide, bytes]:
    """(content of the zip64 field, all other extra fields as they are)."""
    wide, others, at = b"", b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64_EXTRA:
            wide = extra[at + 4 : at + 4 + length]
        else:
            others += extra[at : at + 4 + length]
        at += 4 + length
    return _Wide(wide), others


def _new_end(entries: int, table_start: int, table_size: int) -> bytes:
    """End records of an archive in one piece; always with the zip64 ones, which are valid at any size."""
    end64 = _END64.pack(
        b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, entries, entries, table_size, table_start
    )
    locator = _LOCATOR64.pack(b"PK\x06\x07", 0, table_start + table_size, 1)
    return end64 + locator + _END.pack(b"PK\x05\x06", 0, 0, _FULL16, _FULL16, _FULL32, _FULL32, 0)
