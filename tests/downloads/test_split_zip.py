"""Split zips: our reader against Info-ZIP's own tool, and against a splitter that cuts anywhere."""

from __future__ import annotations

import io
import random
import shutil
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matchlib.downloads.parts import JoinedFile, Piece
from matchlib.downloads.split_zip import last_disk_number, open_split_zip
from matchlib.errors import DataError

contents = st.dictionaries(
    st.text("abcdefgh/", min_size=1, max_size=8).filter(
        lambda name: not name.strip("/") == "" and name[-1] != "/"
    ),
    st.binary(max_size=300) | st.integers(1, 3).map(lambda n: bytes(400 * n)),
    max_size=6,
)


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def split(data: bytes, cuts: list[int], folder: Path, *, wide: bool = False) -> list[Path]:
    """Cut an ordinary zip at any bytes and make its records speak of parts, as the format demands.

    wide: put all positions into zip64 fields, as archives beyond 4 GiB have them
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, table_start = archive.infolist(), archive.start_dir
    cuts = sorted({cut for cut in cuts if 0 < cut <= table_start})
    bounds = [0, *cuts]

    def place(position: int) -> tuple[int, int]:
        disk = max(index for index, start in enumerate(bounds) if start <= position)
        return disk, position - bounds[disk]

    table, at = b"", table_start
    for info in infos:
        fields = list(struct.unpack_from("<4s6H3L5H2L", data, at))
        name_length, extra_length, comment_length = fields[10:13]
        rest = data[at + 46 : at + 46 + name_length + extra_length + comment_length]
        name, extra = rest[:name_length], rest[name_length : name_length + extra_length]
        at += 46 + len(rest)
        disk, offset = place(info.header_offset)
        if wide:
            extra += struct.pack("<2H3QL", 1, 28, info.file_size, info.compress_size, offset, disk)
            fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
            fields[13], fields[11] = 0xFFFF, len(extra)
        else:
            fields[13], fields[16] = disk, offset
        table += struct.pack("<4s6H3L5H2L", *fields) + name + extra
    last = len(bounds) - 1
    disk, offset = place(table_start)
    count = len(infos)
    end = struct.pack("<4s4H2LH", b"PK\5\6", last, disk, count, count, len(table), offset, 0)
    if wide:
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, last, disk, count, count, len(table), offset)
        at64 = table_start - bounds[-1] + len(table)
        end = struct.pack("<4s4H2LH", b"PK\5\6", *[0xFFFF] * 4, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        end = end64 + struct.pack("<4sLQL", b"PK\6\7", last, at64, last + 1) + end
    body = data[:table_start] + table + end
    bounds.append(len(body))
    names = [f"x.z{number:02d}" for number in range(1, last + 1)] + ["x.zip"]
    for name, start, stop in zip(names, bounds, bounds[1:], strict=False):
        (folder / name).write_bytes(body[start:stop])
    return [folder / name for name in names]


def read_all(paths: list[Path]) -> dict[str, bytes]:
    with open_split_zip(paths) as joined, zipfile.ZipFile(io.BufferedReader(joined)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    files=contents, cuts=st.lists(st.integers(1, 3000), max_size=6), wide=st.booleans(), stored=st.booleans()
)
def test_any_cuts_give_the_files_back(tmp_path, files, cuts, wide, stored):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    compression = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    paths = split(zip_of(files, compression), cuts, folder, wide=wide)
    assert last_disk_number(paths[-1]) == len(paths) - 1
    assert read_all(paths) == files


@pytest.mark.skipif(shutil.which("zip") is None, reason="the zip tool is not installed")
def test_parts_made_by_the_zip_tool_are_read(tmp_path):
    generator = random.Random(5)
    files = {f"d/{n}/f{n}.bin": generator.randbytes(generator.randrange(90_000)) for n in range(12)}
    files |= {"d/empty": b"", "d/text": b"words " * 9000}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    subprocess.run(["zip", "-q", "-r", "-s", "64k", "x.zip", "d"], cwd=tmp_path, check=True)
    paths = [*sorted(tmp_path.glob("x.z[0-9]*")), tmp_path / "x.zip"]
    assert len(paths) > 5
    found = read_all(paths)
    assert {name: data for name, data in found.items() if not name.endswith("/")} == files


def test_positions_beyond_four_gibibytes_are_found(tmp_path):
    small = split(zip_of({"a": b"first", "b": b"second"}), [38], tmp_path, wide=True)
    with zipfile.ZipFile(io.BytesIO(zip_of({"a": b"first", "b": b"second"}))) as archive:
        assert archive.infolist()[1].header_offset == 38  # so "b" begins on the second part
    with open(small[0], "r+b") as stream:  # a hole of 5 GiB that no entry speaks of; takes no disk
        stream.truncate(5 << 30)
    assert read_all(small) == {"a": b"first", "b": b"second"}


def test_a_missing_part_is_named_as_such(tmp_path):
    paths = split(zip_of({"a": bytes(500), "b": b"x"}, zipfile.ZIP_STORED), [100, 200], tmp_path)
    with pytest.raises(DataError, match="expected 3 parts of the archive, got 2"):
        open_split_zip([paths[0], paths[2]])


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: d[:50], lambda d: b"x" * 999])
def test_a_damaged_end_is_a_data_error(tmp_path, damage):
    paths = split(zip_of({"a": bytes(500)}, zipfile.ZIP_STORED), [100], tmp_path)
    paths[-1].write_bytes(damage(paths[-1].read_bytes()))
    with pytest.raises(DataError):
        open_split_zip(paths)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), wide=st.booleans())
def test_a_damaged_table_never_gives_other_files(tmp_path, position, value, wide):
    """Either an error we know, or exactly the names and bytes that were packed."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    files = {"a": bytes(range(200)), "b/c": b"x" * 50}
    paths = split(zip_of(files, zipfile.ZIP_STORED), [100, 150], folder, wide=wide)
    data = bytearray(paths[-1].read_bytes())
    data[position % len(data)] = value
    paths[-1].write_bytes(data)
    known = (DataError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, AssertionError)
    try:
        found = read_all(paths)
    except known:
        return
    assert set(found.values()) <= set(files.values())


@given(
    pieces=st.lists(st.binary(max_size=20), max_size=6), start=st.integers(0, 150), count=st.integers(0, 150)
)
def test_joined_pieces_read_as_one(pieces, start, count):
    with JoinedFile([Piece.of_bytes(piece) for piece in pieces]) as raw:
        joined = io.BufferedReader(raw)
        joined.seek(start)
        assert joined.read(count) == b"".join(pieces)[start : start + count]
