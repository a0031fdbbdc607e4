"""The functions behind the rules, the plan, and the descriptions that come with the project."""

from __future__ import annotations

import io
import os
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from matchlib.completion import read_marker, verify_folder, write_marker
from matchlib.datasets.types import FORMATS
from matchlib.downloads.config import Archive, DatasetSource, FileFacts, Parts, read_source
from matchlib.downloads.dataset import check_in_place, download_archive, require_available, unpack_dataset
from matchlib.downloads.plan import plan, render_plan
from matchlib.errors import ConfigError, DataError

DESCRIPTIONS = Path(__file__).parents[2] / "config" / "datasets"
REAL = (
    "gl3d",
    "blendedmvs",
    "blendedmvs_plus",
    "blendedmvs_plusplus",
    "hpatches",
    "coco2017",
    "coco2017_test",
)


def tar_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def mirror_of(root: Path, archives: dict[str, dict[str, bytes]], step: int = 4000) -> None:
    """A mirror of byte-split tars with a completion marker, as the demo world writes it."""
    root.mkdir(exist_ok=True)
    for old in root.glob("*.tar.*"):
        old.unlink()
    for name, files in archives.items():
        data = tar_of(files)
        for number, start in enumerate(range(0, len(data), step)):
            (root / f"{name}.tar.{number:03d}").write_bytes(data[start : start + step])
    write_marker(root, stage="mirror", fingerprint="x", files=sorted(root.glob("*.tar.*")))


def source_of(*names: str) -> DatasetSource:
    archives = tuple(
        Archive(
            name=name,
            kind="tar-split",
            urls=("mirror:{file}",),
            parts=Parts(pattern=name + ".tar.{number:03d}"),
        )
        for name in names
    )
    return DatasetSource(
        name="toy", format="gl3d", licence="CC0", homepage="none", status="available", archives=archives
    )


WORLD = {
    "imgs": {"data/s/undist_images/0.jpg": random.Random(0).randbytes(30_000)},
    "cams": {"data/s/geolabel/cameras.txt": b"0 1 2\n"},
}


def make(source: DatasetSource, tmp_path: Path) -> Path:
    for archive in source.archives:
        download_archive(
            source,
            archive.name,
            tmp_path / "archives" / archive.name,
            mirror_root=tmp_path / "mirror",
            terminal=False,
        )
    unpack_dataset(source, tmp_path / "archives", tmp_path / "data", terminal=False)
    return tmp_path / "data"


def seen(root: Path) -> dict[str, bytes]:
    found = {
        p.relative_to(root).as_posix(): p.read_bytes() for p in (root / "data").rglob("*") if p.is_file()
    }
    return found


def test_from_mirror_to_a_finished_dataset(tmp_path):
    mirror_of(tmp_path / "mirror", WORLD)
    out = make(source_of("imgs", "cams"), tmp_path)
    assert seen(out) == WORLD["imgs"] | WORLD["cams"]
    marker = read_marker(out)
    assert marker is not None and set(marker.files) == set(seen(out))
    assert verify_folder(out) == []
    assert verify_folder(tmp_path / "archives" / "imgs") == []


def test_a_second_run_gives_equal_markers(tmp_path):
    mirror_of(tmp_path / "mirror", WORLD)
    source = source_of("imgs", "cams")
    out = make(source, tmp_path)
    markers = [out / ".complete", tmp_path / "archives" / "cams" / ".complete"]
    before = [marker.read_bytes() for marker in markers]
    for marker in markers:
        marker.unlink()  # as Snakemake does before it runs a job again
    make(source, tmp_path)
    assert [marker.read_bytes() for marker in markers] == before


def test_a_mirror_that_was_made_again_replaces_files_and_removes_old_ones(tmp_path):
    mirror_of(tmp_path / "mirror", WORLD | {"cams": {"data/s/x": b"1", "data/t/y": b"2"}})
    source = source_of("imgs", "cams")
    make(source, tmp_path)
    mirror_of(tmp_path / "mirror", WORLD)
    out = make(source, tmp_path)
    assert seen(out) == WORLD["imgs"] | WORLD["cams"]
    assert not (out / "data" / "t").exists()


def test_an_archive_that_left_the_dataset_takes_its_files_along(tmp_path):
    mirror_of(tmp_path / "mirror", WORLD)
    make(source_of("imgs", "cams"), tmp_path)
    out = make(source_of("imgs"), tmp_path)
    assert seen(out) == WORLD["imgs"]


def test_unpacking_needs_finished_downloads(tmp_path):
    mirror_of(tmp_path / "mirror", WORLD)
    source = source_of("imgs")
    with pytest.raises(DataError, match="download archive imgs first"):
        unpack_dataset(source, tmp_path / "archives", tmp_path / "data", terminal=False)
    make(source, tmp_path)
    (tmp_path / "archives" / "imgs" / "imgs.tar.001").unlink()
    with pytest.raises(DataError, match=r"imgs\.tar\.001: missing"):
        unpack_dataset(source, tmp_path / "archives", tmp_path / "data", terminal=False)


def test_a_dataset_whose_hosts_are_gone_names_the_ways_out(tmp_path):
    source = read_source(DESCRIPTIONS / "gl3d.yaml")
    with pytest.raises(DataError) as caught:
        download_archive(source, "gl3d_imgs", tmp_path)
    text = str(caught.value)
    assert "BlendedMVS" in text and "`root`" in text and "gl3d" in text
    assert list(tmp_path.iterdir()) == []
    require_available(replace(source, status="available"))


def test_an_unknown_archive_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown archive 'x' \(known: imgs\)"):
        download_archive(source_of("imgs"), "x", tmp_path)


def snapshot(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


def test_a_folder_that_the_user_has_is_checked_and_not_written_to(tmp_path):
    for sequence in ("i_a", "v_b"):
        (tmp_path / sequence).mkdir()
        for k in range(1, 7):
            (tmp_path / sequence / f"{k}.ppm").write_bytes(b"P6 1 1 255\n000")
        for k in range(2, 7):
            (tmp_path / sequence / f"H_1_{k}").write_text("1 0 0\n0 1 0\n0 0 1\n")
    before = snapshot(tmp_path)
    os.chmod(tmp_path, 0o555)
    assert set(check_in_place("hpatches", tmp_path)) == {"i_a", "v_b"}
    os.chmod(tmp_path, 0o755)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["gl3d", "blendedmvs", "hpatches"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=str(tmp_path)):
        check_in_place(name, tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        check_in_place(name, tmp_path / "absent")


# ---------------------------------------------------------------- plan
def test_the_plan_says_what_how_large_from_where_and_under_which_licence(tmp_path):
    sources = [read_source(DESCRIPTIONS / f"{name}.yaml") for name in ("blendedmvs", "hpatches")]
    folder = tmp_path / "blendedmvs" / "BlendedMVS"
    folder.mkdir(parents=True)
    (folder / "BlendedMVS.z01").write_bytes(bytes(5_000_000))
    text = render_plan(sources, plan(sources, tmp_path))
    for words in (
        "CC BY 4.0",
        "27.5 GB",
        "16 files",
        "github.com",
        "5.0 MB there",
        "1.3 GB",
        "huggingface.co",
    ):
        assert words in text
    assert text.endswith("still to fetch: 28.8 GB\n")


def test_the_plan_knows_what_lies_in_a_mirror(tmp_path):
    mirror_of(tmp_path / "mirror", WORLD)
    rows = plan([source_of("imgs", "cams")], tmp_path, mirror_root=tmp_path / "mirror")
    sizes = [sum(p.stat().st_size for p in (tmp_path / "mirror").glob(f"{n}.*")) for n in ("imgs", "cams")]
    assert [row.total_bytes for row in rows] == sizes
    assert rows[0].files == len(list((tmp_path / "mirror").glob("imgs.*")))


def test_the_plan_says_what_is_gone_and_what_to_do(tmp_path):
    source = read_source(DESCRIPTIONS / "gl3d.yaml")
    text = render_plan([source], plan([source], tmp_path))
    assert "instead: use BlendedMVS" in text
    assert text.endswith(f"still to fetch: 0 B; {len(source.archives)} archives are gone from their hosts\n")


def test_the_plan_counts_nothing_for_what_is_there(tmp_path):
    source = read_source(DESCRIPTIONS / "hpatches.yaml")
    (row,) = plan([source], tmp_path, roots={"hpatches": tmp_path})
    assert (row.present, row.missing_bytes()) == ("in place", 0)
    folder = tmp_path / "hpatches" / "hpatches-sequences-release"
    folder.mkdir(parents=True)
    write_marker(folder, stage="download", fingerprint="1", files=[])
    (row,) = plan([source], tmp_path)
    assert (row.present, row.missing_bytes()) == ("complete", 0)


# ---------------------------------------------------------------- descriptions
@pytest.mark.parametrize("name", REAL)
def test_each_description_is_readable_and_complete(name):
    source = read_source(DESCRIPTIONS / f"{name}.yaml")
    assert source.name == name
    assert source.format in FORMATS.names()
    for archive in source.archives:
        assert archive.file_names() and archive.total_bytes() or archive.name == "gl3d_lists"
        assert all("{" not in url for name in archive.file_names() for url in archive.urls_of(name))


@pytest.mark.parametrize("name", ["gl3d", "blendedmvs", "blendedmvs_plus", "blendedmvs_plusplus"])
def test_the_forty_test_scenes_of_gl3d_are_kept_out(name, shared_data):
    excluded = read_source(DESCRIPTIONS / f"{name}.yaml").exclude_scenes
    assert len(set(excluded)) == 40
    assert set(excluded) == set((shared_data("gl3d_lists") / "imageset_test.txt").read_text().split())


def test_names_and_sizes_of_split_archives():
    archive = read_source(DESCRIPTIONS / "blendedmvs.yaml").archive("BlendedMVS")
    names = archive.file_names()
    assert (names[0], names[-2], names[-1], len(names)) == (
        "BlendedMVS.z01",
        "BlendedMVS.z15",
        "BlendedMVS.zip",
        16,
    )
    assert archive.urls_of(names[0])[0].endswith("/v1.0.0/BlendedMVS.z01")
    imgs = read_source(DESCRIPTIONS / "gl3d.yaml").archive("gl3d_imgs")
    assert (imgs.file_names()[0], imgs.file_names()[-1]) == ("gl3d_imgs.tar.000", "gl3d_imgs.tar.125")
    sized = replace(
        imgs, parts=Parts(pattern="a.{number}", last=1), files={f"a.{n}": FileFacts(bytes=7) for n in (0, 1)}
    )
    assert sized.total_bytes() == 14


GOOD = """
name: a
format: hpatches
licence: CC0
homepage: none
status: available
archives:
  - name: b
    kind: tar
    urls: [https://example.org/b.tar]
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("licence", "license", r"source.yaml:4: license: unknown key; did you mean licence\?"),
        ("kind: tar", "kind: rar", r":9: archives.0.kind: expected one of tar, tar-split, .*got 'rar'"),
        ("[https://example.org/b.tar]", "[]", "archives.0.urls: expected at least one address"),
        ("https://example.org", "gopher://x", "archives.0.urls: expected http://"),
        ("name: b", "name: ../b", "archives.0.name: expected letters"),
        ("kind: tar", "kind: tar-split", "archives.0.urls: expected {file}"),
        ("kind: tar", "kind: tar\n    sha256: 12", "archives.0.sha256: expected a string, got 12"),
        ("kind: tar", "kind: tar\n    sha256: abc", "archives.0.sha256: expected 64 hex digits"),
        ("kind: tar", "kind: tar\n    into: ../x", "archives.0.into: expected a folder below"),
        ("kind: tar", "kind: tar\n    bytes: yes", "archives.0.bytes: expected an integer, got true"),
        (
            "kind: tar",
            "kind: tar\n    parts: {pattern: x, last: 2}",
            "archives.0.parts.pattern: expected a plain",
        ),
        ("name: a", "name: a\nexclude_scenes_from: no.yaml", "no.yaml: cannot be read"),
    ],
)
def test_faults_of_a_description_are_one_line_with_place_and_remedy(tmp_path, old, new, expected):
    path = tmp_path / "source.yaml"
    path.write_text(GOOD)
    assert read_source(path).archives[0].file_names() == ("b.tar",)
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=expected) as caught:
        read_source(path)
    assert "\n" not in str(caught.value)
