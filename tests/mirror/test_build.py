"""The whole mirror: deterministic, complete, resumable."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

import matchlib.mirror.build as build
from matchlib.completion import digest_file, read_marker, verify_folder
from matchlib.downloads.split_zip import open_split_zip
from matchlib.errors import ConfigError
from matchlib.mirror.build import build_mirror
from matchlib.mirror.config import (
    BlendedMVSMirrorConfig,
    CocoMirrorConfig,
    GL3DMirrorConfig,
    HPatchesMirrorConfig,
    MirrorConfig,
)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def smaller(tiny_config):
    """Three scenes and two sequences, as small as they get."""
    return replace(
        tiny_config,
        texture_px=64,
        supersampling=1,
        gl3d=replace(tiny_config.gl3d, validation_scenes=0, images_per_scene=2, original_size=(120, 90)),
        blendedmvs=replace(tiny_config.blendedmvs, validation_scenes=0, images_per_scene=2),
        hpatches=replace(tiny_config.hpatches, image_size=(64, 48)),
        coco=CocoMirrorConfig(train_images=2, validation_images=1, longer_side=(64, 64)),
        caps_megadepth=replace(tiny_config.caps_megadepth, validation_scenes=0, image_size=(64, 48)),
        aachen=replace(tiny_config.aachen, image_size=(48, 36)),
    )


@pytest.fixture(scope="module")
def undisturbed(smaller, tmp_path_factory):
    """The folder of one build without incident."""
    folder = tmp_path_factory.mktemp("undisturbed")
    build_mirror(smaller, folder, workers=1)
    return folder


def test_archives_are_named_and_cut_as_upstream(mirror):
    names = {path.name for path in mirror.archives.iterdir()}
    kinds = ("imgs", "cams", "kpts", "depths", "rendered_depths", "corr", "ct", "mo", "list")
    assert {f"gl3d_{kind}.tar.000" for kind in kinds} <= names
    assert {
        "gl3d_imgs.tar.001",
        "BlendedMVS.z01",
        "BlendedMVS.zip",
        "hpatches-sequences-release.tar.gz",
        "train2017.zip",
        "val2017.zip",
        "CAPS-MegaDepth-release-light.tar",
        "database_and_query_images.zip",
        "aachen_v1_1.zip",
        "database.db",
    } <= names
    assert "work" not in names
    assert "lease.json" not in names


def test_checksums_and_marker_tell_the_truth(mirror):
    checksums = json.loads((mirror.archives / "checksums.json").read_text())
    files = {path.name for path in mirror.archives.iterdir()} - {"checksums.json", ".complete"}
    assert set(checksums) == files
    for name, entry in checksums.items():
        path = mirror.archives / name
        assert entry == {"sha256": digest_file(path), "bytes": path.stat().st_size}
    assert verify_folder(mirror.archives) == []
    assert set(read_marker(mirror.archives).files) == files | {"checksums.json"}


def test_the_downloader_reads_the_split_zip(mirror):
    import zipfile

    parts = sorted(mirror.archives.glob("BlendedMVS.z[0-9]*")) + [mirror.archives / "BlendedMVS.zip"]
    with open_split_zip(parts) as joined, zipfile.ZipFile(joined) as archive:
        assert archive.testzip() is None
        assert "BlendedMVS_training.txt" in archive.namelist()


def test_same_settings_give_the_same_bytes_whatever_the_workers(smaller, undisturbed, tmp_path):
    build_mirror(smaller, tmp_path / "three", workers=3)
    assert contents(undisturbed) == contents(tmp_path / "three")
    build_mirror(replace(smaller, seed=9), tmp_path / "other")
    one, other = contents(undisturbed), contents(tmp_path / "other")
    assert one["gl3d_imgs.tar.000"] != other["gl3d_imgs.tar.000"]
    assert one["hpatches-sequences-release.tar.gz"] != other["hpatches-sequences-release.tar.gz"]
    assert one["train2017.zip"] != other["train2017.zip"]
    assert one["CAPS-MegaDepth-release-light.tar"] != other["CAPS-MegaDepth-release-light.tar"]


def test_a_finished_mirror_is_left_alone_and_a_changed_one_is_replaced(smaller, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    build_mirror(smaller, tmp_path)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / ".complete").unlink()  # as Snakemake does before it runs a job again
    (tmp_path / "notes.txt").write_text("mine")
    large_chunks = replace(smaller, gl3d=replace(smaller.gl3d, chunk_bytes=10**9))
    build_mirror(large_chunks, tmp_path)
    assert not list(tmp_path.glob("gl3d_*.tar.001"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert verify_folder(tmp_path) == []


def test_an_interrupted_build_goes_on_where_it_was(smaller, undisturbed, tmp_path, monkeypatch):
    calls = []
    write = build.write_hpatches_sequence

    def power_cut(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "write_hpatches_sequence", power_cut)
    with pytest.raises(KeyboardInterrupt):
        build_mirror(smaller, tmp_path / "cut")
    assert read_marker(tmp_path / "cut") is None
    assert not list((tmp_path / "cut").glob("*.tar*"))
    monkeypatch.setattr(build, "write_hpatches_sequence", write)
    draw = build.draw_scene
    monkeypatch.setattr(build, "draw_scene", lambda *args: calls.append(args) or draw(*args))
    build_mirror(smaller, tmp_path / "cut")
    assert not calls  # all scenes had been finished
    assert contents(tmp_path / "cut") == contents(undisturbed)


def test_settings_are_checked_and_read_from_plain_values():
    adapter = TypeAdapter(MirrorConfig)
    config = adapter.validate_python({"seed": 4, "gl3d": {"train_scenes": 2, "stored_size": [64, 64]}})
    assert config.gl3d.stored_size == (64, 64)
    assert config == adapter.validate_python(adapter.dump_python(config))
    with pytest.raises(ConfigError, match=r"mirror\.gl3d\.train_scenes: expected at least 1, got 0"):
        GL3DMirrorConfig(train_scenes=0)
    with pytest.raises(ConfigError, match=r"mirror\.gl3d\.depth_size"):
        GL3DMirrorConfig(depth_size=(8, 8))
    with pytest.raises(ConfigError, match=r"mirror\.gl3d\.match_threshold_px"):
        GL3DMirrorConfig(match_threshold_px=0)
    with pytest.raises(ConfigError, match=r"mirror\.blendedmvs\.part_bytes: expected at least 65536"):
        BlendedMVSMirrorConfig(part_bytes=1000)
    with pytest.raises(ConfigError, match="at least one sequence"):
        HPatchesMirrorConfig(illumination_sequences=0, viewpoint_sequences=0)
    with pytest.raises(ConfigError, match=r"mirror\.coco\.validation_images: expected at least 1, got 0"):
        CocoMirrorConfig(validation_images=0)
    with pytest.raises(ConfigError, match=r"mirror\.coco\.longer_side: .* got \(480, 320\)"):
        CocoMirrorConfig(longer_side=(480, 320))
    with pytest.raises(ConfigError, match=r"mirror\.coco\.jpeg_quality: expected 1 to 100, got 0"):
        CocoMirrorConfig(jpeg_quality=0)
    with pytest.raises(ConfigError, match=r"mirror\.texture_px"):
        MirrorConfig(texture_px=5)
