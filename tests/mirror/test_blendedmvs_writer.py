"""The written BlendedMVS files, read back, against each other."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from matchlib.datasets.blendedmvs import list_scenes, read_cam, read_pairs, read_scene
from matchlib.datasets.images import read_image
from matchlib.datasets.pfm import read_pfm
from matchlib.mirror.blendedmvs_writer import write_blendedmvs_lists, write_blendedmvs_scene
from matchlib.mirror.build import draw_scene, scene_names


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_config):
    root = tmp_path_factory.mktemp("blendedmvs")
    for index in range(2):
        scene = draw_scene(tiny_config, "blendedmvs", index)
        write_blendedmvs_scene(root, scene, tiny_config.blendedmvs, seed=tiny_config.seed, supersampling=2)
    write_blendedmvs_lists(root, *scene_names(tiny_config, "blendedmvs"))
    return root


def test_lists_name_the_written_scenes(root, tiny_config):
    train, validation = scene_names(tiny_config, "blendedmvs")
    assert list_scenes(root, "train") == train
    assert list_scenes(root, "validation") == validation
    assert set(list_scenes(root, "all")) == {*train, *validation}


def test_pictures_depths_and_cameras_fit(root):
    for name in list_scenes(root, "all"):
        scene = read_scene(root, name)
        assert len(scene.images) == 3
        for image in scene.images.values():
            picture, depth = read_image(image.image_path), read_pfm(image.depth_path)
            assert picture.shape[:2] == depth.shape == (96, 128)
            masked = read_image(image.image_path.with_name(f"{image.index:08d}_masked.jpg"))
            assert masked[depth == 0].mean() < 12 if (depth == 0).any() else True
            _, _, (low, interval, count, high) = read_cam(root / name / "cams" / f"{image.index:08d}_cam.txt")
            assert low == pytest.approx(depth[depth > 0].min())
            assert high == pytest.approx(depth.max())
            assert low + interval * (count - 1) == pytest.approx(high)


def test_depth_and_pose_lead_from_picture_to_picture(root):
    scene = read_scene(root, list_scenes(root, "train")[0])
    best = read_pairs(root / scene.name / "cams" / "pair.txt")[1][0][0]
    first, second = scene.images[1], scene.images[best]
    depth0, depth1 = read_pfm(first.depth_path), read_pfm(second.depth_path)
    T = second.camera.T_world_to_cam @ np.linalg.inv(first.camera.T_world_to_cam)
    x, y = np.meshgrid(np.arange(128), np.arange(96))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(first.camera.K).T
    in1 = (rays * depth0[..., None]) @ T[:3, :3].T + T[:3, 3]
    uv = ((in1 @ second.camera.K.T)[..., :2] / np.maximum(in1[..., 2:], 1e-6)).astype(np.float32)
    seen = cv2.remap(depth1, uv, None, cv2.INTER_NEAREST)
    error = np.abs(seen - in1[..., 2]) / np.maximum(in1[..., 2], 1e-6)
    covisible = (depth0 > 0) & (in1[..., 2] > 0) & (error < 0.02)
    assert covisible.mean() > 0.2
    assert np.median(error[covisible]) < 0.01
    greys = [
        cv2.GaussianBlur(cv2.cvtColor(read_image(image.image_path), cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
        for image in (first, second)
    ]
    moved = cv2.remap(greys[1], uv, None, cv2.INTER_LINEAR)
    # Lower than in test_render: 128 px pictures, jpeg, and another sun on every facet.
    assert np.corrcoef(greys[0][covisible], moved[covisible])[0, 1] > 0.8


def test_pairs_are_best_first_and_never_with_oneself(root):
    for name in list_scenes(root, "all"):
        for index, others in read_pairs(root / name / "cams" / "pair.txt").items():
            scores = [score for _, score in others]
            assert scores == sorted(scores, reverse=True)
            assert index not in [other for other, _ in others]
            assert all(0 < score <= 100 for score in scores)
