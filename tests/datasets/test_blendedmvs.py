from __future__ import annotations

import numpy as np
import pytest

from matchlib.datasets.blendedmvs import list_scenes, read_cam, read_pairs, read_scene, write_cam, write_pairs
from matchlib.datasets.images import write_image
from matchlib.errors import ConfigError, DataError

CAM = """extrinsic
1 0 0 0.5
0 0 -1 0
0 1 0 2
0 0 0 1

intrinsic
500 0 384
0 501 288
0 0 1

0.6 0.01 128 1.9
"""


def test_mvsnets_camera_text_is_understood_and_read_back(tmp_path):
    path = tmp_path / "00000000_cam.txt"
    path.write_text(CAM)
    K, T, depth_range = read_cam(path)
    np.testing.assert_array_equal(K, [[500, 0, 384], [0, 501, 288], [0, 0, 1]])
    np.testing.assert_array_equal(T[:3, 3], [0.5, 0, 2])
    assert depth_range == (0.6, 0.01, 128, 1.9)
    write_cam(tmp_path / "again.txt", K / 3, T, depth_range[:2])
    K_again, T_again, range_again = read_cam(tmp_path / "again.txt")
    np.testing.assert_array_equal(K_again, K / 3)
    np.testing.assert_array_equal(T_again, T)
    assert range_again == (0.6, 0.01)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("intrinsic\n", "", "expected 'extrinsic'"),
        ("0 1 0 2\n", "0 1 0\n", r":4: expected 4 numbers, got 3"),
        ("500 0 384", "500 x 384", r":8: expected numbers"),
        ("0.6 0.01 128 1.9", "0.6", "expected 2 to 4 numbers"),
        ("500 0 384", "nan 0 384", "finite"),
    ],
)
def test_camera_faults_are_named(tmp_path, old, new, message):
    path = tmp_path / "cam.txt"
    path.write_text(CAM.replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        read_cam(path)
    assert str(path) in str(caught.value)


def test_pairs_read_back_and_faults_name_the_line(tmp_path):
    path = tmp_path / "pair.txt"
    pairs = {0: ((1, 3.5), (2, 1.25)), 1: (), 2: ((0, 0.5),)}
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs
    path.write_text("1\n0\n2 1 3.5 2\n")
    with pytest.raises(DataError, match=r"pair.txt:3: expected 2 times 'id score', got 3"):
        read_pairs(path)
    path.write_text("2\n0\n0\n")
    with pytest.raises(DataError, match="2 lines for each of 2 images"):
        read_pairs(path)


def make_scene(root, name="5abc", size=(40, 30)):
    for index in range(3):
        path = root / name / "cams" / f"{index:08d}_cam.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CAM)
        write_image(
            root / name / "blended_images" / f"{index:08d}.jpg", np.zeros((size[1], size[0], 3), np.uint8)
        )
    write_image(root / name / "blended_images" / "00000000_masked.jpg", np.zeros((9, 9, 3), np.uint8))
    write_pairs(root / name / "cams" / "pair.txt", {0: ((1, 1.0),), 1: ((0, 1.0), (2, 0.5)), 2: ()})


def test_a_scene_knows_its_files_its_size_and_each_pair_once(tmp_path):
    make_scene(tmp_path)
    scene = read_scene(tmp_path, "5abc")
    assert list(scene.images) == [0, 1, 2]
    assert scene.images[2].depth_path == tmp_path / "5abc" / "rendered_depth_maps" / "00000002.pfm"
    assert scene.images[0].camera.size == (40, 30)
    assert scene.candidate_pairs == ((0, 1), (1, 2))
    assert scene.corr_path is None


def test_splits(tmp_path):
    make_scene(tmp_path)
    assert list_scenes(tmp_path, "all") == ("5abc",)
    with pytest.raises(DataError, match="no BlendedMVS_training.txt"):
        list_scenes(tmp_path, "train")
    (tmp_path / "validation_list.txt").write_text("5abc\n")
    assert list_scenes(tmp_path, "validation") == ("5abc",)
    with pytest.raises(ConfigError, match="unknown split"):
        list_scenes(tmp_path, "val")
    with pytest.raises(DataError, match="found none"):
        list_scenes(tmp_path / "nothing", "all")
