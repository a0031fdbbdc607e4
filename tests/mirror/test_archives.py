"""Archives: what goes in comes out, by readers that are not ours where there are any."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.mirror.archives import files_below, write_split_zip, write_tar_chunks, write_tar_gz

PART = 1 << 16


def make_tree(root: Path, sizes: list[int]) -> dict[str, bytes]:
    """Files of incompressible bytes; name -> content."""
    contents = {}
    for index, size in enumerate(sizes):
        name = f"scene{index % 3}/file{index:04d}.bin"
        contents[name] = np.random.default_rng(index).bytes(size)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(contents[name])
    return contents


def join_split_zip(paths: list[Path]) -> dict[str, bytes]:
    """A second reader of split zips, written from the format's description: name -> content."""
    parts = [path.read_bytes() for path in paths]
    starts = np.cumsum([0, *map(len, parts)])
    joined = b"".join(parts)
    end = parts[-1][-22:]
    assert end[:4] == b"PK\5\6"
    disk, directory_disk, on_disk, total, size, offset, comment = struct.unpack("<4H2LH", end[4:])
    assert disk == len(parts) - 1
    assert comment == 0
    at, contents, on_last = int(starts[directory_disk]) + offset, {}, 0
    for _ in range(total):
        assert joined[at : at + 4] == b"PK\1\2"
        on_last += at >= starts[disk]
        compressed, _, name_length, extra, remark, part = struct.unpack("<2L4H", joined[at + 20 : at + 36])
        (local,) = struct.unpack("<L", joined[at + 42 : at + 46])
        name = joined[at + 46 : at + 46 + name_length].decode()
        header = parts[part][local : local + 30 + name_length]
        assert header[:4] == b"PK\3\4"
        assert header[30:].decode() == name  # not cut by the end of the part
        body = int(starts[part]) + local + 30 + name_length + struct.unpack("<H", header[28:30])[0]
        contents[name] = _inflate(joined[body : body + compressed])
        at += 46 + name_length + extra + remark
    assert at == int(starts[directory_disk]) + offset + size
    assert on_last == on_disk
    return contents


def _inflate(data: bytes) -> bytes:
    import zlib

    return zlib.decompress(data, wbits=-15)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=30),
    part_bytes=st.integers(PART, 2 * PART),
)
def test_split_zip_holds_what_was_put_in(sizes, part_bytes):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        contents = make_tree(root, sizes)
        paths = write_split_zip(Path(folder) / "set", root, files_below(root), part_bytes)
        assert all(path.stat().st_size <= part_bytes for path in paths)
        assert paths[-1].name == "set.zip"
        if len(paths) == 1:
            with zipfile.ZipFile(paths[0]) as archive:
                assert {name: archive.read(name) for name in archive.namelist()} == contents
        else:
            assert [path.name for path in paths[:-1]] == [f"set.z{k:02d}" for k in range(1, len(paths))]
            assert paths[0].read_bytes()[:4] == b"PK\7\x08"
            assert join_split_zip(paths) == contents


def test_directory_that_spans_parts_is_counted_right(tmp_path):
    """Thousands of tiny files: the table of contents alone is larger than a part."""
    contents = make_tree(tmp_path / "tree", [3] * 1500)
    paths = write_split_zip(tmp_path / "set", tmp_path / "tree", files_below(tmp_path / "tree"), PART)
    assert len(paths) >= 3
    assert join_split_zip(paths) == contents


@pytest.mark.skipif(shutil.which("zip") is None, reason="Info-ZIP's zip is not installed")
def test_info_zip_joins_the_parts(tmp_path):
    # No file reaches over three parts: `zip -s 0` (3.0) spoils such files, also in splits of its own making.
    contents = make_tree(tmp_path / "tree", [30_000, 0, 90_000, 5, 60_000, 60_000])
    write_split_zip(tmp_path / "set", tmp_path / "tree", files_below(tmp_path / "tree"), PART)
    command = ["zip", "-q", "-s", "0", "set.zip", "--out", "joined.zip"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(tmp_path / "joined.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents


def test_joined_chunks_are_one_plain_tar(tmp_path):
    contents = make_tree(tmp_path / "tree", [10_000, 0, 70_000, 513])
    root = tmp_path / "tree"
    chunks = write_tar_chunks(tmp_path / "gl3d_imgs", root, files_below(root), 30_000)
    assert [path.name for path in chunks] == [f"gl3d_imgs.tar.{k:03d}" for k in range(len(chunks))]
    assert [path.stat().st_size for path in chunks[:-1]] == [30_000] * (len(chunks) - 1)
    with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in chunks))) as tar:
        members = tar.getmembers()
        assert {m.name: tar.extractfile(m).read() for m in members} == contents
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(1577836800, 0, 0, "", 0o644)}


def test_packed_tar_has_its_prefix_and_no_time(tmp_path):
    contents = make_tree(tmp_path / "tree", [100, 2000])
    for name in ("first", "second"):
        write_tar_gz(
            tmp_path / f"{name}.tar.gz", tmp_path / "tree", files_below(tmp_path / "tree"), "release/"
        )
    assert (tmp_path / "first.tar.gz").read_bytes() == (tmp_path / "second.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "first.tar.gz") as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == {
            f"release/{k}": v for k, v in contents.items()
        }
