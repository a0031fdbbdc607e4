"""Unpacking: hostile and damaged archives leave no trace, crashes leave nothing that looks finished."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matchlib.downloads import unpack
from matchlib.downloads.config import Archive, Parts, UnpackLimits
from matchlib.downloads.unpack import read_list, remove_unpacked, unpack_archive
from matchlib.errors import DataError

FILES = {"d/a.txt": b"hello", "d/e/b.bin": bytes(range(256)) * 40, "c": b""}
KINDS = ["tar", "tar.gz", "tar.xz", "zip"]


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_of(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def zip_of(entries: list[tuple[zipfile.ZipInfo | str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in entries:
            archive.writestr(info, data)
    return packed.getvalue()


def pack(kind: str, files: dict[str, bytes]) -> bytes:
    if kind == "zip":
        return zip_of(list(files.items()))
    data = tar_of([entry(name, content) for name, content in files.items()])
    return {"tar": lambda d: d, "tar.gz": gzip.compress, "tar.xz": lzma.compress}[kind](data)


def archive_of(kind: str, **more: object) -> Archive:
    family = "zip" if kind == "zip" else "tar"
    return Archive(name="a", kind=family, urls=(f"mirror:a.{kind}",), **more)  # type: ignore[arg-type]


def unpack_bytes(data: bytes, kind: str, tmp_path: Path, mark: str = "1", **more: object) -> Path:
    packed, out = tmp_path / f"a.{kind}", tmp_path / "out"
    packed.write_bytes(data)
    limits = more.pop("limits", None)
    unpack_archive(archive_of(kind, **more), [packed], out, fingerprint=mark, limits=limits, terminal=False)  # type: ignore[arg-type]
    return out


def tree(folder: Path) -> dict[str, bytes]:
    """All files that a reader of the dataset could see."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith((".unpacked/", "work/"))}


def assert_untouched(tmp_path: Path) -> None:
    """Nothing but the archive itself and empty folders."""
    seen = [p for p in tmp_path.rglob("*") if not p.is_dir() or p.is_symlink()]
    assert [p.name for p in seen if p.parent != tmp_path] == []
    assert {p.name for p in tmp_path.iterdir()} <= {"a.tar", "a.zip", "a.tar.gz", "a.tar.xz", "out"}


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_out_as_they_went_in(tmp_path, kind):
    out = unpack_bytes(pack(kind, FILES), kind, tmp_path)
    assert tree(out) == FILES
    listed = read_list(out, "a")
    assert listed is not None
    assert listed.files == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert not (out / "work" / "unpack-a").exists()


names = st.text("abcdeXYZ012 _-.éß", min_size=1, max_size=12).filter(
    lambda name: name.strip(".") == name and name
)
trees = st.dictionaries(
    st.lists(names, min_size=2, max_size=3).map("/".join), st.binary(max_size=3000), min_size=1
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(files=trees, step=st.integers(500, 9000), kind=st.sampled_from(KINDS[:3]))
def test_a_tar_cut_into_bytes_is_read_in_the_order_of_numbers(tmp_path, files, step, kind):
    leaves = [name for name in files if not any(other.startswith(name + "/") for other in files)]
    files = {name: files[name] for name in leaves}
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    data = pack(kind, files)
    paths = []
    for number, start in enumerate(range(0, len(data), step)):
        paths.append(folder / f"a.tar.{number:03d}")
        paths[-1].write_bytes(data[start : start + step])
    parts = Parts(pattern="a.tar.{number:03d}", last=len(paths) - 1)
    archive = Archive(name="a", kind="tar-split", urls=("mirror:{file}",), parts=parts)
    unpack_archive(archive, paths, folder / "out", fingerprint="1", terminal=False)
    assert tree(folder / "out") == files


def test_prefixes_are_dropped_and_a_subfolder_is_used(tmp_path):
    data = pack("tar", {"set-1/s/1.ppm": b"1", "s/2.ppm": b"2"})
    out = unpack_bytes(data, "tar", tmp_path, drop_prefixes=("set-1",), into="images")
    assert tree(out) == {"images/s/1.ppm": b"1", "images/s/2.ppm": b"2"}


def test_a_plain_file_is_put_into_its_place(tmp_path):
    (tmp_path / "list.txt").write_text("x\n")
    archive = Archive(name="a", kind="file", urls=("mirror:list.txt",), into="list")
    unpack_archive(archive, [tmp_path / "list.txt"], tmp_path / "out", fingerprint="1", terminal=False)
    assert tree(tmp_path / "out") == {"list/list.txt": b"x\n"}


# ---------------------------------------------------------------- hostile
def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


GOOD = entry("good.txt", b"good")
HOSTILE_TARS = {
    "parent": [GOOD, entry("../evil", b"x")],
    "parent inside": [GOOD, entry("a/../../evil", b"x")],
    "absolute": [GOOD, entry("/matchlib-evil", b"x")],
    "parent folder": [GOOD, entry("../evil/", type=tarfile.DIRTYPE)],
    "symbolic link": [GOOD, entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
    "link, then a file through it": [
        entry("d", type=tarfile.SYMTYPE, linkname=".."),
        entry("d/evil", b"x"),
    ],
    "hard link": [GOOD, entry("hard", type=tarfile.LNKTYPE, linkname="good.txt")],
    "device": [GOOD, entry("dev", type=tarfile.CHRTYPE)],
    "block device": [GOOD, entry("dev", type=tarfile.BLKTYPE)],
    "pipe": [GOOD, entry("pipe", type=tarfile.FIFOTYPE)],
    "twice": [GOOD, GOOD],
    "marker": [GOOD, entry(".complete", b"{}")],
    "work folder": [GOOD, entry("work/x", b"x")],
    "list folder": [GOOD, entry(".unpacked/b.jsonl", b"x")],
    "line break": [GOOD, entry("a\nb", b"x")],
    "backslash": [GOOD, entry("..\\evil", b"x")],
    "drive": [GOOD, entry("C:evil", b"x")],
    "long name": [GOOD, entry("a" * 300, b"x")],
    "file and folder": [entry("a", b"x"), entry("a/b", b"x")],
}  # fmt: skip
HOSTILE_ZIPS = {
    "parent": [("good", b"g"), ("../evil", b"x")],
    "absolute": [("good", b"g"), ("/evil", b"x")],
    "symbolic link": [("good", b"g"), (zip_entry("link", stat.S_IFLNK | 0o777), b"/etc/passwd")],
    "device": [("good", b"g"), (zip_entry("dev", stat.S_IFCHR | 0o666), b"")],
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_a_hostile_tar_is_refused_as_a_whole(tmp_path, case):
    with pytest.raises(DataError, match="refused"):
        unpack_bytes(tar_of(HOSTILE_TARS[case]), "tar", tmp_path)
    assert_untouched(tmp_path)
    assert not Path("/matchlib-evil").exists()


@pytest.mark.parametrize("case", HOSTILE_ZIPS)
def test_a_hostile_zip_is_refused_as_a_whole(tmp_path, case):
    with pytest.raises(DataError, match="refused"):
        unpack_bytes(zip_of(HOSTILE_ZIPS[case]), "zip", tmp_path)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, kind):
    limits = UnpackLimits(free_bytes=100_000, max_ratio=20)
    with pytest.raises(DataError, match="out of proportion"):
        unpack_bytes(pack(kind, {"zeros": bytes(5_000_000)}), kind, tmp_path, limits=limits)
    assert_untouched(tmp_path)


def test_too_many_entries_are_refused(tmp_path):
    files = {f"{n}": b"" for n in range(11)}
    with pytest.raises(DataError, match="10 entries"):
        unpack_bytes(pack("tar", files), "tar", tmp_path, limits=UnpackLimits(max_entries=10))
    assert_untouched(tmp_path)


# ---------------------------------------------------------------- damaged
@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(keep=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_leaves_nothing(tmp_path, kind, keep):
    data = pack(kind, FILES)
    if kind == "tar":  # zeros after the end mark may go
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.getmembers()
            data = data[: tar.offset + 512]
    with pytest.raises(DataError):
        unpack_bytes(data[: int(keep * len(data))], kind, tmp_path)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("content", [b"x" * 512, bytes(2048)])
def test_a_tar_cut_exactly_between_two_members_is_noticed(tmp_path, content):
    data = tar_of([entry("a", content), entry("b", b"y" * 512)])
    with pytest.raises(DataError, match="end mark"):
        unpack_bytes(data[: 512 + len(content)], "tar", tmp_path)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_damaged_header_in_the_middle_of_a_tar_is_noticed(tmp_path, kind):
    data = bytearray(tar_of([entry("a", b"x" * 512), entry("b", b"y" * 512)]))
    data[1024 + 3] ^= 1
    with pytest.raises(DataError, match="end mark"):
        unpack_bytes(gzip.compress(data) if kind == "tar.gz" else bytes(data), kind, tmp_path)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_a_flipped_bit_in_the_content_is_noticed(tmp_path, kind):
    data = bytearray(pack(kind, {"a": random.Random(1).randbytes(50_000)}))
    data[25_000] ^= 1
    with pytest.raises(DataError):
        unpack_bytes(bytes(data), kind, tmp_path)
    assert_untouched(tmp_path)


def test_an_archive_without_files_is_an_error(tmp_path):
    with pytest.raises(DataError, match="got none"):
        unpack_bytes(tar_of([]), "tar", tmp_path)


# ---------------------------------------------------------------- crashes and changes
def test_moving_goes_on_after_a_crash(tmp_path, monkeypatch):
    replace, moved = os.replace, []

    def crash(source: Path, target: Path) -> None:
        if "unpack-a" in str(source):
            if len(moved) == 1:
                raise KeyboardInterrupt
            moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            unpack_bytes(pack("tar", FILES), "tar", tmp_path)
    assert len(tree(tmp_path / "out")) == 1
    assert tree(unpack_bytes(b"not read again", "tar", tmp_path)) == FILES


def test_an_interrupted_extraction_is_begun_again(tmp_path, monkeypatch):
    def crash(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_extract", crash)
        with pytest.raises(KeyboardInterrupt):
            unpack_bytes(pack("zip", FILES), "zip", tmp_path)
    assert tree(tmp_path / "out") == {}
    assert tree(unpack_bytes(pack("zip", FILES), "zip", tmp_path)) == FILES


def test_files_of_an_older_archive_disappear(tmp_path):
    unpack_bytes(pack("tar", FILES | {"old/x": b"old"}), "tar", tmp_path)
    out = unpack_bytes(pack("tar", FILES), "tar", tmp_path, mark="2")
    assert tree(out) == FILES
    assert not (out / "old").exists()


def test_a_file_that_somebody_deleted_comes_back(tmp_path):
    out = unpack_bytes(pack("tar", FILES), "tar", tmp_path)
    (out / "d" / "a.txt").unlink()
    assert tree(unpack_bytes(pack("tar", FILES), "tar", tmp_path)) == FILES


def test_files_that_were_there_before_are_not_overwritten(tmp_path):
    (tmp_path / "out" / "d").mkdir(parents=True)
    (tmp_path / "out" / "d" / "a.txt").write_text("mine")
    with pytest.raises(DataError, match="matchlib did not unpack it"):
        unpack_bytes(pack("tar", FILES), "tar", tmp_path)
    assert tree(tmp_path / "out") == {"d/a.txt": b"mine"}


def test_two_archives_that_disagree_about_a_file_are_an_error(tmp_path):
    out = unpack_bytes(pack("tar", FILES), "tar", tmp_path)
    other = Archive(name="b", kind="tar", urls=("mirror:b.tar",))
    (tmp_path / "b.tar").write_bytes(pack("tar", {"c": b"different"}))
    with pytest.raises(DataError, match="archives a and b disagree"):
        unpack_archive(other, [tmp_path / "b.tar"], out, fingerprint="1", terminal=False)
    assert tree(out) == FILES


def test_removing_an_archive_leaves_what_others_own(tmp_path):
    out = unpack_bytes(pack("tar", FILES), "tar", tmp_path)
    other = Archive(name="b", kind="tar", urls=("mirror:b.tar",))
    (tmp_path / "b.tar").write_bytes(pack("tar", {"c": b"", "d/new": b"n"}))
    unpack_archive(other, [tmp_path / "b.tar"], out, fingerprint="1", terminal=False)
    remove_unpacked(out, "a")
    assert tree(out) == {"c": b"", "d/new": b"n"}
