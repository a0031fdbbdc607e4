"""The demo world in the layout of CAPS' MegaDepth: the unpacked archive against exact geometry."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from matchlib.datasets.caps_megadepth import list_scenes, read_scene
from matchlib.datasets.images import read_image
from matchlib.datasets.types import Scene
from matchlib.downloads.config import Archive, read_source
from matchlib.downloads.unpack import unpack_archive
from matchlib.errors import ConfigError
from matchlib.geometry.epipolar import fundamental_from_pose, symmetric_epipolar_distance
from matchlib.geometry.pose import relative_pose, rotation_angle_deg
from matchlib.mirror.build import CAPS_ARCHIVE, draw_scene, scene_names
from matchlib.mirror.caps_writer import _squeezed, covisible_pairs
from matchlib.mirror.config import CapsMirrorConfig, MirrorConfig
from matchlib.mirror.scene import look_at
from matchlib.mirror.visibility import covisible_shares, warp_points

DESCRIPTION = Path(__file__).parents[2] / "config" / "datasets" / "demo_caps_megadepth.yaml"


@pytest.fixture(scope="module")
def root(mirror, tmp_path_factory) -> Path:
    """The archive unpacked as the demo's description says."""
    (archive,) = read_source(DESCRIPTION).archives
    out = tmp_path_factory.mktemp("caps")
    assert isinstance(archive, Archive)
    unpack_archive(archive, [mirror.archives / archive.file_names()[0]], out, fingerprint="x")
    return out


def pose(scene: Scene, i: int, j: int) -> torch.Tensor:
    return relative_pose(*(torch.from_numpy(scene.images[k].camera.T_world_to_cam) for k in (i, j)))


def test_phases_hold_the_scenes_and_their_images(root: Path, tiny_config: MirrorConfig) -> None:
    train, validation = scene_names(tiny_config, "caps_megadepth")
    assert list_scenes(root, "train") == train == ("0000",)
    assert list_scenes(root, "val") == validation == ("0001",)
    for name in (*train, *validation):
        scene = read_scene(root, name)
        assert len(scene.images) == 5
        models = [image.image_path.parts[-4] for image in scene.images.values()]
        assert models == ["dense0"] * 3 + ["dense1"] * 2
        for image in scene.images.values():
            assert read_image(image.image_path).shape == (96, 128, 3)
            assert image.camera.size == (128, 96)


def test_epipolar_lines_of_the_files_run_through_true_correspondences(
    root: Path, tiny_config: MirrorConfig
) -> None:
    """Exact warps come from the renderer's own world; the files speak of another world, turned, moved and scaled."""
    world = draw_scene(tiny_config, "caps_megadepth", 0)
    cameras = _squeezed(world, tiny_config.seed)
    scene = read_scene(root, "0000")
    order = [0, 2, 4, 1, 3]  # scene-local index -> camera of the world
    grid = np.stack(np.meshgrid(np.linspace(5, 120, 12), np.linspace(5, 90, 9)), axis=-1).reshape(-1, 2)
    checked = 0
    for i, j in scene.candidate_pairs or ():
        points1, visible = warp_points(world.world, cameras[order[i]], cameras[order[j]], grid)
        K0, K1 = (torch.from_numpy(scene.images[k].camera.K) for k in (i, j))
        F = fundamental_from_pose(pose(scene, i, j), K0, K1)
        pairs = torch.from_numpy(grid[visible]), torch.from_numpy(points1[visible])
        assert symmetric_epipolar_distance(*pairs, F).max() < 1e-12
        swapped = fundamental_from_pose(pose(scene, j, i), K0, K1)
        assert symmetric_epipolar_distance(*pairs, swapped).median() > 1
        checked += int(visible.sum())
    assert checked > 100


def test_pairs_are_those_that_see_the_same_and_stay_within_sub_models(
    root: Path, tiny_config: MirrorConfig
) -> None:
    settings = tiny_config.caps_megadepth
    for number, name in enumerate(list_scenes(root, "all")):
        scene = read_scene(root, name)
        world = draw_scene(tiny_config, "caps_megadepth", number)
        shares = covisible_shares(world.world, _squeezed(world, tiny_config.seed))
        order = [0, 2, 4, 1, 3]
        expected = {
            (i, j)
            for i in range(5)
            for j in range(i + 1, 5)
            if (i < 3) == (j < 3)
            and min(shares[order[i], order[j]], shares[order[j], order[i]]) >= settings.min_covisible_share
        }
        assert set(scene.candidate_pairs or ()) == expected
        assert expected
        for i, j in expected:
            assert rotation_angle_deg(pose(scene, i, j)[:3, :3]) <= 80


def test_pairs_turned_by_more_than_80_degrees_are_left_out(tiny_config: MirrorConfig) -> None:
    camera = draw_scene(tiny_config, "caps_megadepth", 0).cameras[0]
    centre, target = np.array([0.0, 0, -6]), np.zeros(3)
    cameras = [
        replace(camera, T_world_to_cam=look_at(centre, target, np.radians(roll))) for roll in (0, 79.9, 81)
    ]
    assert covisible_pairs(np.ones((3, 3)), cameras, 0.1) == [(0, 1), (1, 2)]


def test_images_are_squeezed_to_their_size(root: Path) -> None:
    ratios = {
        round(image.camera.K[1, 1] / image.camera.K[0, 0], 6)
        for name in list_scenes(root, "all")
        for image in read_scene(root, name).images.values()
    }
    assert ratios == {1.0, 1.125}  # photographs of 4:3 and 3:2 at 4:3


def test_the_archive_has_upstreams_names(mirror) -> None:
    with tarfile.open(mirror.archives / f"{CAPS_ARCHIVE}.tar") as tar:
        names = tar.getnames()
    assert f"{CAPS_ARCHIVE}/train/0000/dense0/aligned/img_cam.txt" in names
    assert f"{CAPS_ARCHIVE}/val/0001/dense1/aligned/pairs.txt" in names
    assert f"{CAPS_ARCHIVE}/train/0000/dense1/aligned/images/00000001.jpg" in names
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"train_scenes": 0}, "train_scenes"),
        ({"sub_models": 3, "images_per_scene": 5}, "images_per_scene"),
        ({"image_size": (20, 20)}, "image_size"),
        ({"min_covisible_share": 0.0}, "min_covisible_share"),
    ],
)
def test_settings_are_checked(settings: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"mirror\.caps_megadepth\.{key}: expected"):
        CapsMirrorConfig(**settings)
