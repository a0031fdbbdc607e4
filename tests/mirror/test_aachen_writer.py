"""The demo world in Aachen's layout: the unpacked archives against exact geometry, and against the published habits."""

from __future__ import annotations

import sqlite3
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from matchlib.datasets.aachen import AachenDataset, read_aachen, skeleton_images
from matchlib.datasets.images import read_image
from matchlib.datasets.nvm import read_nvm, read_nvm_points
from matchlib.downloads.config import Archive, read_source
from matchlib.downloads.unpack import unpack_archive
from matchlib.errors import ConfigError
from matchlib.matching.pair_lists import read_pair_list
from matchlib.mirror.aachen_views import View, aachen_images, aachen_views, night_lighting, take_picture
from matchlib.mirror.aachen_writer import AACHEN_FILES
from matchlib.mirror.config import AachenMirrorConfig, MirrorConfig
from matchlib.mirror.render import cast_depth, render_image
from matchlib.mirror.scene import MirrorScene, build_scene
from matchlib.mirror.visibility import transfer
from matchlib.randomness import generator_for

DESCRIPTION = Path(__file__).parents[2] / "config" / "datasets" / "demo_aachen.yaml"


@pytest.fixture(scope="module")
def root(mirror, tmp_path_factory) -> Path:
    """The archives unpacked as the demo's description says."""
    out = tmp_path_factory.mktemp("aachen")
    for archive in read_source(DESCRIPTION).archives:
        assert isinstance(archive, Archive)
        unpack_archive(archive, [mirror.archives / archive.file_names()[0]], out, fingerprint="x")
    return out


@pytest.fixture(scope="module")
def v1(root: Path) -> AachenDataset:
    return read_aachen(root, "v1")


@pytest.fixture(scope="module")
def v1_1(root: Path) -> AachenDataset:
    return read_aachen(root, "v1_1")


@pytest.fixture(scope="module")
def scene(tiny_config: MirrorConfig) -> MirrorScene:
    return build_scene(
        seed=tiny_config.seed,
        dataset="aachen",
        index=0,
        pool="validation",
        images=aachen_images(tiny_config.aachen),
        image_size=tiny_config.aachen.image_size,
        texture_px=tiny_config.texture_px,
        lighting_conditions=tiny_config.lighting_conditions,
    )


@pytest.fixture(scope="module")
def views(scene: MirrorScene, tiny_config: MirrorConfig) -> dict[str, View]:
    return {view.name: view for view in aachen_views(scene, tiny_config.aachen, seed=tiny_config.seed)}


def test_both_versions_are_read_from_one_folder(v1: AachenDataset, v1_1: AachenDataset) -> None:
    assert list(v1.reference) == [f"db/{number}.jpg" for number in range(1, 6)]
    assert list(v1_1.reference) == [*v1.reference, "sequences/gopro3_undistorted/image00001.png"]
    assert {key: len(cameras) for key, cameras in v1.queries.items()} == {"day": 1, "night": 2}
    assert {key: len(cameras) for key, cameras in v1_1.queries.items()} == {"day": 1, "night": 3}
    assert set(v1_1.truth) == set(v1_1.query_cameras())
    for dataset in (v1, v1_1):
        for name, camera in dataset.cameras().items():
            assert read_image(dataset.path_of(name)).shape == (72, 96, 3)
            assert (camera.model, camera.width, camera.height) == ("SIMPLE_RADIAL", 96, 72)
            assert camera.params[1:3] == (48, 36)
            assert camera.params[3] != 0


def test_the_lists_say_what_the_renderer_knows(v1_1: AachenDataset, views: dict[str, View]) -> None:
    for name, image in v1_1.reference.items():
        np.testing.assert_allclose(image.T_world_to_cam, views[name].camera.T_world_to_cam, atol=1e-12)
        assert image.camera == views[name].intrinsics
    for name, T in v1_1.truth.items():
        np.testing.assert_allclose(T, views[name].camera.T_world_to_cam, atol=1e-12)


def test_the_nvm_file_and_the_binary_model_agree(root: Path, v1_1: AachenDataset, scene: MirrorScene) -> None:
    folder = root / "3D-models" / "aachen_v_1_1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "aachen_v_1_1.nvm",
        "cameras.bin",
        "database_intrinsics_v1_1.txt",
        "images.bin",
        "points3D.bin",
    ]
    model = pycolmap.Reconstruction(str(folder))
    poses = read_nvm(folder / "aachen_v_1_1.nvm")
    assert {image.name for image in model.images.values()} == set(poses)
    for image in model.images.values():
        np.testing.assert_allclose(image.cam_from_world().matrix(), poses[image.name][:3], atol=1e-6)
        assert tuple(image.camera.params) == v1_1.reference[image.name].camera.params
    # Points are where the images see them, and lie on surfaces.
    assert model.num_points3D() == len(list(read_nvm_points(folder / "aachen_v_1_1.nvm"))) > 50
    assert model.compute_mean_track_length() >= 2
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 1e-6


def test_distorted_pictures_show_points_where_the_intrinsics_say(
    scene: MirrorScene, views: dict[str, View]
) -> None:
    """OpenCV's own lens model takes the distortion out again: what is left is the pinhole picture."""
    view = views["db/3.jpg"]
    f, width, height = 3 * view.intrinsics.params[0], 288, 216
    K = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]])
    params = (f, width / 2, height / 2, -0.2)
    strong = replace(
        view,
        camera=replace(view.camera, K=K, size=(width, height)),
        intrinsics=replace(view.intrinsics, width=width, height=height, params=params),
        lighting=replace(view.lighting, noise=0.0),
    )
    stored = take_picture(scene.world, strong, generator_for(8, "noise"), 2)
    undistorted = cv2.undistort(stored, K, np.array([-0.2, 0.0, 0.0, 0.0]))
    noise = generator_for(8, "noise")
    pinhole = render_image(scene.world, strong.camera, strong.lighting, noise, supersampling=2)

    def difference(picture: np.ndarray) -> float:
        inner = np.s_[20:-20, 20:-20]
        return float(np.abs(picture[inner].astype(int) - pinhole[inner].astype(int)).mean())

    assert difference(undistorted) < 0.5 * difference(stored)
    assert difference(undistorted) < 0.5 * difference(np.roll(undistorted, 1, axis=1))


def test_night_is_dark_and_day_is_not(v1_1: AachenDataset) -> None:
    means = {name: float(read_image(v1_1.path_of(name)).mean()) for name in v1_1.cameras()}
    night = [means[name] for name in v1_1.queries["night"]]
    day = [mean for name, mean in means.items() if name not in v1_1.queries["night"]]
    assert max(night) < 0.7 * min(day)
    assert min(night) > 5


def test_night_has_another_light_and_more_noise(scene: MirrorScene) -> None:
    light = night_lighting(generator_for(1, "night"))
    assert light.noise > 3.9
    assert light.brightness < 0.6
    assert light.warmth > 1


def test_pairs_are_those_of_the_lists(v1: AachenDataset, v1_1: AachenDataset, root: Path) -> None:
    listed = read_pair_list(v1.pairs)
    night = set(v1.queries["night"])
    queries = [pair for pair in listed.pairs if pair[0] in night]
    assert len(queries) == 2 * 3
    assert listed.duplicates == 0
    assert {name for pair in listed.pairs for name in pair} <= set(v1.reference) | night
    again = read_pair_list(v1_1.pairs)
    mapping = [pair for pair in again.pairs if pair[0] in v1_1.reference]
    assert again.duplicates == len(mapping) > 3  # in both orders, as published
    retrieved = read_pair_list(root / "queries" / "pairs-query-covisible_v1_1.txt")
    assert {query for query, _ in retrieved.pairs} == set(v1_1.query_cameras())


def test_query_pairs_are_the_most_covisible(
    v1: AachenDataset, scene: MirrorScene, views: dict[str, View]
) -> None:
    """By exact depth: of the listed images the first shows at least as much of the query as the last."""
    grid = np.stack(np.meshgrid(np.linspace(2, 93, 16), np.linspace(2, 69, 12)), axis=-1).reshape(-1, 2)
    for query in v1.queries["night"]:
        camera = views[query].camera
        depth = cast_depth(scene.world, camera, grid)
        shares = []
        for _, name in (pair for pair in read_pair_list(v1.pairs).pairs if pair[0] == query):
            positions, in_front = transfer(camera, views[name].camera, grid[depth > 0], depth[depth > 0])
            inside = ((positions >= 0) & (positions <= [95, 71])).all(axis=1) & (in_front > 0)
            shares.append(inside.mean())
        assert shares[0] >= shares[-1] - 0.1
        assert min(shares) > 0.1


def test_skeletons_have_the_habits_of_the_published_ones(v1: AachenDataset, v1_1: AachenDataset) -> None:
    assert list(skeleton_images(v1.skeleton)) == list(v1.cameras())
    ids = skeleton_images(v1_1.skeleton)
    assert set(ids) == set(v1_1.reference) | set(v1_1.queries["night"])  # no day queries
    assert all((number >= 10_000) == name.startswith("query/") for name, number in ids.items())
    for dataset, cameras, prior in ((v1, 8, 0), (v1_1, 7, 1)):
        with closing(sqlite3.connect(f"{dataset.skeleton.as_uri()}?immutable=1", uri=True)) as connection:
            rows = connection.execute("select model, prior_focal_length, params from cameras").fetchall()
        assert len(rows) == cameras
        assert {(row[0], row[1]) for row in rows} == {(2, prior)}
        placeholders = [np.frombuffer(row[2])[0] == 1.2 * 96 for row in rows]
        assert sum(placeholders) == (5 if dataset is v1 else 0)


def test_archives_have_upstreams_names(mirror) -> None:
    names = {path.name for path in mirror.archives.iterdir()}
    assert set(AACHEN_FILES) <= names
    with zipfile.ZipFile(mirror.archives / "database_and_query_images.zip") as archive:
        members = archive.namelist()
    assert "images_upright/db/1.jpg" in members
    assert not any("sequences" in name or "additional" in name for name in members)
    with zipfile.ZipFile(mirror.archives / "aachen_v1_1.zip") as archive:
        members = archive.namelist()
    assert "images/images_upright/sequences/gopro3_undistorted/image00001.png" in members
    assert "3D-models/aachen_v_1_1/aachen_v_1_1.nvm" in members


def test_noise_is_the_only_difference_between_two_pictures(
    scene: MirrorScene, views: dict[str, View]
) -> None:
    view = views["db/1.jpg"]
    first, second, other = (
        take_picture(scene.world, view, generator_for(seed, "noise"), 1) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert 0 < np.abs(first.astype(int) - other.astype(int)).mean() < 8


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"reference_images": 0}, "reference_images"),
        ({"night_queries": 0}, "night_queries"),
        ({"day_queries": -1}, "day_queries"),
        ({"image_size": (20, 20)}, "image_size"),
        ({"min_covisible_share": 0.0}, "min_covisible_share"),
    ],
)
def test_settings_are_checked(settings: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"mirror\.aachen\.{key}: expected"):
        AachenMirrorConfig(**settings)
