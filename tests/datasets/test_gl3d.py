from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.datasets.gl3d import (
    CorrRecord,
    affine_radius_angle,
    affine_to_pixel,
    list_scenes,
    pixel_to_affine,
    read_blended_or_plain_scene,
    read_blended_scene,
    read_cameras,
    read_corr,
    read_keypoints,
    read_scene,
    scan_corr,
    write_cameras,
    write_corr,
    write_keypoints,
    write_lists,
)
from matchlib.datasets.types import FORMATS, Camera
from matchlib.errors import ConfigError, DataError

# Column by column as GL3D documents: id, fx fy, px py, skew, t, R, k1 k2 k3, W H (with a double space).
CAMERA_LINE = "7 1200.5 1199.5 640 480 0.25 1 2 3  0 -1 0 1 0 0 0 0 1 0.01 -0.02 0.003 1280 960\n"


def a_camera() -> Camera:
    T = np.eye(4)
    T[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T[:3, 3] = [1, 2, 3]
    K = np.array([[1200.5, 0.25, 640], [0, 1199.5, 480], [0, 0, 1]])
    return Camera(K=K, T_world_to_cam=T, size=(1280, 960), distortion=(0.01, -0.02, 0.003))


def make_scene(
    root: Path, scene: str = "abc", images: int = 2, folders: tuple[str, ...] = ("undist_images",)
) -> Path:
    folder = root / "data" / scene
    write_cameras(folder / "geolabel" / "cameras.txt", dict.fromkeys(range(images), a_camera()))
    for name in folders:
        (folder / name).mkdir()
    return folder


def test_a_documented_camera_line_is_understood(tmp_path):
    path = tmp_path / "cameras.txt"
    path.write_text(CAMERA_LINE)
    ((index, camera),) = read_cameras(path).items()
    assert index == 7 and camera.size == (1280, 960) and camera.distortion == (0.01, -0.02, 0.003)
    np.testing.assert_array_equal(camera.K, a_camera().K)
    np.testing.assert_array_equal(camera.T_world_to_cam, a_camera().T_world_to_cam)


def test_cameras_read_back_to_the_last_bit(tmp_path):
    camera = a_camera()
    camera.T_world_to_cam[:3, 3] = [1 / 3, 1e-17, 1e9 / 7]
    write_cameras(tmp_path / "cameras.txt", {3: camera, 1: a_camera()})
    back = read_cameras(tmp_path / "cameras.txt")
    assert list(back) == [1, 3]
    np.testing.assert_array_equal(back[3].T_world_to_cam, camera.T_world_to_cam)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (CAMERA_LINE.rsplit(" ", 1)[0], r"cameras.txt:2: expected 23 numbers, got 22"),
        (CAMERA_LINE.replace("1200.5", "fx"), r"cameras.txt:2: expected numbers"),
        (CAMERA_LINE.replace("1200.5", "nan"), r"cameras.txt:2: expected finite"),
        (CAMERA_LINE.replace(" 0 -1 0 ", " 0 -2 0 "), r"cameras.txt:2: columns 9-17: expected a rotation"),
        (CAMERA_LINE.replace("7 ", "1.5 ", 1), r"cameras.txt:2: image id: expected a whole number"),
        (CAMERA_LINE.replace("7 ", "0 ", 1), r"cameras.txt:2: image 0 has a camera already"),
    ],
)
def test_camera_faults_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "cameras.txt"
    path.write_text(CAMERA_LINE.replace("7 ", "0 ", 1) + line)
    with pytest.raises(DataError, match=message):
        read_cameras(path)


@settings(max_examples=50)
@given(
    st.floats(0, 4000),
    st.floats(0, 3000),
    st.floats(0.1, 500),
    st.floats(-3.14, 3.14),
    st.integers(10, 4000),
    st.integers(10, 4000),
)
def test_affine_frames_are_invertible(x, y, radius, angle, width, height):
    size = (width, height)
    affine = pixel_to_affine([(x, y)], size, [radius], [angle])
    np.testing.assert_allclose(affine_to_pixel(affine, size), [(x, y)], atol=1e-3)
    found_radius, found_angle = affine_radius_angle(affine, size)
    assert found_radius[0] == pytest.approx(radius, rel=1e-5)
    assert np.cos(found_angle[0] - angle) == pytest.approx(1, abs=1e-9)


def test_affine_frame_written_out():
    """W = 200, H = 100, centre (150, 25), r = 10, th = 30 degrees: rows in units of 100 and 50 px."""
    c, s = 10 * np.cos(np.pi / 6), 10 * np.sin(np.pi / 6)
    expected = [c / 100, s / 100, 0.5, -s / 50, c / 50, -0.5]
    np.testing.assert_allclose(
        pixel_to_affine([(150, 25)], (200, 100), [10], [np.pi / 6])[0], expected, rtol=1e-6
    )


def test_keypoints_read_back_and_are_24_bytes_each(tmp_path):
    frames = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    write_keypoints(tmp_path / "k.bin", frames)
    assert (tmp_path / "k.bin").stat().st_size == 120
    np.testing.assert_array_equal(read_keypoints(tmp_path / "k.bin"), frames)
    write_keypoints(tmp_path / "none.bin", frames[:0])
    assert read_keypoints(tmp_path / "none.bin").shape == (0, 6)


def test_a_keypoint_file_of_odd_length_names_the_byte(tmp_path):
    (tmp_path / "k.bin").write_bytes(bytes(24 * 3 + 10))
    with pytest.raises(DataError, match=r"k.bin: .* got 82 bytes: the last keypoint, at byte 72, is cut"):
        read_keypoints(tmp_path / "k.bin")


def some_records() -> list[CorrRecord]:
    rng = np.random.default_rng(0)
    return [
        CorrRecord(i, i + 1, rng.normal(size=(n, 15)).astype(np.float32)) for i, n in enumerate((3, 0, 20))
    ]


def test_corr_bytes_are_three_uint64_and_fifteen_floats(tmp_path):
    """The expected bytes are packed by hand, not by our writer."""
    rows = np.arange(30, dtype=np.float32).reshape(2, 15)
    by_hand = struct.pack("<QQQ", 4, 9, 2) + struct.pack("<30f", *range(30))
    write_corr(tmp_path / "corr.bin", [CorrRecord(4, 9, rows)])
    assert (tmp_path / "corr.bin").read_bytes() == by_hand
    (record,) = read_corr(tmp_path / "corr.bin")
    assert (record.index0, record.index1) == (4, 9)
    np.testing.assert_array_equal(record.rows, rows)


def test_corr_reads_back_and_may_be_empty(tmp_path):
    write_corr(tmp_path / "corr.bin", some_records())
    for ours, theirs in zip(read_corr(tmp_path / "corr.bin"), some_records(), strict=True):
        assert (ours.index0, ours.index1) == (theirs.index0, theirs.index1)
        np.testing.assert_array_equal(ours.rows, theirs.rows)
    write_corr(tmp_path / "empty.bin", [])
    assert list(read_corr(tmp_path / "empty.bin")) == []


@settings(max_examples=60)
@given(cut=st.integers(1, 24 * 3 + 60 * 23 - 1))
def test_a_corr_file_cut_anywhere_is_refused_or_ends_at_a_record(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("corr") / "corr.bin"
    write_corr(path, some_records())
    whole = path.stat().st_size
    os.truncate(path, whole - cut)
    boundaries = {24 + 180: 1, 24 + 180 + 24: 2, 0: 0}
    if whole - cut in boundaries:
        assert len(scan_corr(path)) == boundaries[whole - cut]
    else:
        with pytest.raises(DataError, match=r"corr.bin: byte \d+: .*cut"):
            read_corr(path).__next__()


def test_a_header_of_rubbish_names_the_record_and_byte(tmp_path):
    write_corr(tmp_path / "corr.bin", some_records()[:1])
    with open(tmp_path / "corr.bin", "ab") as stream:
        stream.write(struct.pack("<QQQ", 1, 2, 1 << 60))
    with pytest.raises(DataError, match=r"byte 228: record 1 \(images 1 and 2\) announces"):
        scan_corr(tmp_path / "corr.bin")


def test_scenes_name_their_files(tmp_path):
    folder = make_scene(tmp_path, folders=("undist_images", "depths", "img_kpts"))
    write_corr(folder / "geolabel" / "corr.bin", [])
    write_lists(tmp_path, "gl3d", {"other": 5, "abc": 2}, ["other"], ["abc"])
    scene = read_scene(tmp_path, "abc")
    assert scene.first_global_index == 5 and scene.corr_path == folder / "geolabel" / "corr.bin"
    assert scene.images[1].image_path == folder / "undist_images" / "00000001.jpg"
    assert scene.images[1].depth_path == folder / "depths" / "00000001.pfm"
    assert scene.images[1].keypoints_path == folder / "img_kpts" / "00000001.bin"


def test_plain_images_stand_in_for_blended_ones_only_where_asked(tmp_path):
    make_scene(tmp_path, folders=("undist_images", "depths"))
    with pytest.raises(DataError, match="expected a folder blended_images"):
        read_blended_scene(tmp_path, "abc")
    mixed = read_blended_or_plain_scene(tmp_path, "abc").images[0]
    assert mixed.image_path.parent.name == "undist_images" and mixed.depth_path.parent.name == "depths"
    assert {"gl3d", "gl3d_blended", "gl3d_blended_or_plain"} <= set(FORMATS.names())


def test_missing_scene_and_camera_file(tmp_path):
    with pytest.raises(DataError, match="no such scene"):
        read_scene(tmp_path, "abc")
    (tmp_path / "data" / "abc").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cameras.txt: not found"):
        read_scene(tmp_path, "abc")


def test_lists_are_upstreams_and_splits_are_checked(tmp_path):
    write_lists(tmp_path, "gl3d", {"aa": 2, "bb": 1}, ["aa"], ["bb"])
    folder = tmp_path / "list" / "gl3d"
    assert (folder / "image_index_offset.txt").read_text() == "aa 0 2\nbb 2 3\n"
    assert (folder / "image_list.txt").read_text().splitlines()[2] == "data/bb/undist_images/00000000.jpg"
    assert (folder / "depth_list.txt").read_text().splitlines()[1] == "data/aa/depths/00000001.pfm"
    assert list_scenes(tmp_path, "gl3d/train") == ("aa",)
    assert list_scenes(tmp_path, "test") == ("bb",)
    assert list_scenes(tmp_path, "gl3d") == list_scenes(tmp_path, "all") == ("aa", "bb")
    write_lists(tmp_path, "comb", {"aa": 2}, ["aa"], [])
    with pytest.raises(ConfigError, match="unknown split 'all'; .*comb, gl3d"):
        list_scenes(tmp_path, "all")
    with pytest.raises(ConfigError, match="unknown split 'gl3d/val'"):
        list_scenes(tmp_path, "gl3d/val")
    with pytest.raises(DataError, match="empty file"):
        list_scenes(tmp_path, "comb/test")


def test_the_real_lists_hold_the_published_counts(shared_data):
    """543 scenes, 125,623 images, 336 for training and 40 for testing (GL3D's README)."""
    folder = shared_data("gl3d_lists")
    offsets = [line.split() for line in (folder / "image_index_offset.txt").read_text().splitlines()]
    assert len(offsets) == 543 and int(offsets[-1][2]) == 125_623
    assert len((folder / "imageset_train.txt").read_text().split()) == 336
    assert len((folder / "imageset_test.txt").read_text().split()) == 40
