from __future__ import annotations

import cv2
import numpy as np
import pytest

from matchlib.datasets.depth import close_gaps, read_depth, write_depth_millimetres
from matchlib.datasets.images import read_image, write_image
from matchlib.datasets.pfm import write_pfm
from matchlib.datasets.rgbd import list_scenes, read_scene
from matchlib.errors import ConfigError, DataError


def test_unknown_is_zero_whatever_the_file_says(tmp_path):
    write_pfm(tmp_path / "d.pfm", np.array([[1.5, 0, -3], [np.nan, np.inf, 2]], np.float32))
    np.testing.assert_array_equal(read_depth(tmp_path / "d.pfm"), [[1.5, 0, 0], [0, 0, 2]])
    cv2.imwrite(str(tmp_path / "d.png"), np.array([[1500, 0, 0], [65535, 0, 9000]], np.uint16))
    np.testing.assert_array_equal(read_depth(tmp_path / "d.png"), np.float32([[1.5, 0, 0], [0, 0, 9]]))


def test_millimetres_read_back(tmp_path):
    depth = np.float32([[0.001, 1.2346], [0, 70.0]])
    write_depth_millimetres(tmp_path / "d.png", depth)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), [[0.001, 1.235], [0, 0]])


def test_gaps_close_within_a_surface_and_not_across_an_edge():
    one = np.float32([[2, 0, 2.02, 0, 3, 0, 0, 3]])
    np.testing.assert_allclose(close_gaps(one), [[2, 2.01, 2.02, 0, 3, 0, 0, 3]], rtol=1e-6)
    np.testing.assert_allclose(close_gaps(one.T), close_gaps(one).T)
    assert one[0, 1] == 0  # the input is left alone


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.png", b"", "not a readable PNG"),
        ("d.png", b"<html>", "not a readable PNG"),
        ("d.exr", b"x", "expected a depth map"),
    ],
)
def test_foreign_depth_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_depth(tmp_path / name)


def test_eight_bit_and_cut_pngs_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "d.png"), np.full((40, 40), 7, np.uint8))
    with pytest.raises(DataError, match="one channel of 16 bits"):
        read_depth(tmp_path / "d.png")
    write_depth_millimetres(
        tmp_path / "d.png", np.random.default_rng(0).uniform(1, 9, (40, 40)).astype(np.float32)
    )
    data = (tmp_path / "d.png").read_bytes()
    (tmp_path / "d.png").write_bytes(data[:-50])
    with pytest.raises(DataError, match="not a readable PNG"):
        read_depth(tmp_path / "d.png")


def make_frames(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "camera-intrinsics.txt").write_text("500 0 20\n0 500 15\n0 0 1\n")
    for k in range(count):
        write_image(folder / f"frame-{k:06d}.color.png", np.zeros((30, 40, 3), np.uint8))
        write_depth_millimetres(folder / f"frame-{k:06d}.depth.png", np.ones((30, 40), np.float32))
        (folder / f"frame-{k:06d}.pose.txt").write_text(f"1 0 0 {k}\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")


def test_poses_on_disk_are_camera_to_world(tmp_path):
    make_frames(tmp_path / "box")
    assert list_scenes(tmp_path, "all") == ("box",) and list_scenes(tmp_path / "box", "all") == (".",)
    scene = read_scene(tmp_path, "box")
    assert scene.images[2].camera.T_world_to_cam[0, 3] == -2
    assert scene.images[0].camera.size == (40, 30)
    with pytest.raises(ConfigError, match="unknown split"):
        list_scenes(tmp_path, "train")


def test_frames_without_a_pose_are_left_out_and_named(tmp_path, caplog):
    make_frames(tmp_path)
    (tmp_path / "frame-000000.pose.txt").unlink()
    (tmp_path / "frame-000001.pose.txt").write_text("-inf 0 0 0\n" * 4)
    assert list(read_scene(tmp_path, ".").images) == [2]
    assert "frame-000000 frame-000001" in caplog.text and "2 of 3 frames" in caplog.text
    (tmp_path / "frame-000002.pose.txt").unlink()
    with pytest.raises(DataError, match="none of 3 frames"):
        read_scene(tmp_path, ".")


def test_faults_of_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="found none"):
        list_scenes(tmp_path, "all")
    make_frames(tmp_path)
    (tmp_path / "frame-000001.pose.txt").write_text("1 0 0 0\n0 1 0 0\n")
    with pytest.raises(DataError, match=r"frame-000001.pose.txt: expected 4 lines"):
        read_scene(tmp_path, ".")
    (tmp_path / "camera-intrinsics.txt").unlink()
    with pytest.raises(DataError, match=r"camera-intrinsics.txt: not found"):
        read_scene(tmp_path, ".")


def test_real_frames_agree_with_their_published_relative_pose(shared_data):
    folder = shared_data("rgbd_box")
    scene = read_scene(folder.parent, folder.name)
    line = (folder / "pairs_with_gt.txt").read_text().splitlines()[0].split()
    expected = np.array(line[-16:], dtype=np.float64).reshape(4, 4)
    first, second = (scene.images[int(name[6:12])].camera.T_world_to_cam for name in line[:2])
    np.testing.assert_allclose(second @ np.linalg.inv(first), expected, atol=1e-6)
    assert read_image(scene.images[0].image_path).shape == (480, 640, 3)
    assert 0.6 < (read_depth(scene.images[0].depth_path) > 0).mean() < 0.75
