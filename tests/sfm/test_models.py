"""Triangulation, registration, localisation and mapping of scenes whose truth is known."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchlib.completion import MARKER, digest_file, verify_folder
from matchlib.datasets.colmap_camera import guessed_camera
from matchlib.errors import DataError
from matchlib.matching.types import Matches
from matchlib.sfm.colmap import copy_database, from_colmap_camera, read_model
from matchlib.sfm.config import (
    LocalisationConfig,
    MappingConfig,
    RegistrationConfig,
    TriangulationConfig,
    VerificationConfig,
)
from matchlib.sfm.database import build_database, verify_database
from matchlib.sfm.localisation import PointLookup, localise
from matchlib.sfm.mapping import reconstruct
from matchlib.sfm.registration import read_registered, register_images
from matchlib.sfm.statistics import (
    angle_deg,
    centres_of,
    compare_with_truth,
    read_statistics,
    registered_poses,
)
from matchlib.sfm.triangulation import triangulate
from matchlib.sfm.work import finished_folder

POINTS = 150


@pytest.fixture
def verified(scene: Any, tmp_path: Path) -> Path:
    build_database(tmp_path / "raw.db", images=scene.cameras, features=scene.features, matches=scene.matches)
    verify_database(tmp_path / "raw.db", tmp_path / "verified.db", scene.pairs, VerificationConfig())
    return tmp_path / "verified.db"


def pose_error(T: Any, truth: Any) -> tuple[float, float]:
    return float(np.linalg.norm(centres_of(T) - centres_of(truth))), float(
        angle_deg(T[:3, :3], truth[:3, :3])
    )


# ---------------------------------------------------------------- triangulation
def test_points_of_exact_matches_are_the_true_ones_and_cameras_stay(
    scene: Any, verified: Path, tmp_path: Path
) -> None:
    before = digest_file(verified)
    statistics = triangulate(verified, scene.known(), tmp_path / "model", TriangulationConfig())
    assert digest_file(verified) == before
    assert (statistics.images, statistics.registered_images, statistics.points) == (6, 6, POINTS)
    assert statistics.observations == 6 * POINTS
    assert statistics.mean_track_length == pytest.approx(6)
    assert statistics.mean_observations_per_image == pytest.approx(POINTS)
    assert statistics.mean_reprojection_error_px < 1e-3
    assert statistics == read_statistics(tmp_path / "model")
    assert verify_folder(tmp_path / "model") == []
    model = read_model(tmp_path / "model")
    found = np.array(sorted(point.xyz.tolist() for point in model.points3D.values()))
    np.testing.assert_allclose(found, np.array(sorted(scene.points.tolist())), atol=1e-4)
    for name, T in registered_poses(model).items():
        np.testing.assert_allclose(T, scene.poses[name], atol=1e-12)
    for camera in model.cameras.values():
        # A model does not say whether a focal length was known.
        assert replace(from_colmap_camera(camera), is_calibrated=True) == scene.cameras[scene.names[0]]


def test_the_given_intrinsics_count_not_those_of_the_database(scene: Any, tmp_path: Path) -> None:
    placeholders = dict.fromkeys(scene.names, guessed_camera(1024, 768))
    build_database(tmp_path / "raw.db", images=placeholders, features=scene.features, matches=scene.matches)
    verify_database(tmp_path / "raw.db", tmp_path / "v.db", scene.pairs, VerificationConfig())
    statistics = triangulate(tmp_path / "v.db", scene.known(), tmp_path / "model", TriangulationConfig())
    assert statistics.points == POINTS
    assert statistics.mean_reprojection_error_px < 1e-3


def test_the_same_bits_again_and_a_finished_model_is_replaced(
    scene: Any, verified: Path, tmp_path: Path
) -> None:
    triangulate(verified, scene.known(), tmp_path / "a", TriangulationConfig())
    marker = (tmp_path / "a" / MARKER).read_bytes()
    triangulate(verified, scene.known(), tmp_path / "a", TriangulationConfig())
    assert (tmp_path / "a" / MARKER).read_bytes() == marker
    assert not (tmp_path / "a.work").exists()


def test_a_result_whose_marker_snakemake_removed_is_made_again(
    scene: Any, verified: Path, tmp_path: Path
) -> None:
    triangulate(verified, scene.known(), tmp_path / "a", TriangulationConfig())
    marker = (tmp_path / "a" / MARKER).read_bytes()
    (tmp_path / "a" / MARKER).unlink()
    triangulate(verified, scene.known(), tmp_path / "a", TriangulationConfig())
    assert (tmp_path / "a" / MARKER).read_bytes() == marker


def test_the_result_of_another_step_is_not_overwritten(scene: Any, verified: Path, tmp_path: Path) -> None:
    with finished_folder(tmp_path / "a", stage="another", settings={}, inputs=[]) as folder:
        (folder / "result.txt").write_text("theirs")
    (tmp_path / "a" / MARKER).unlink()
    with pytest.raises(DataError, match="no finished result"):
        triangulate(verified, scene.known(), tmp_path / "a", TriangulationConfig())


def test_what_is_no_finished_model_is_not_overwritten(scene: Any, verified: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="no finished result"):
        triangulate(verified, scene.known(), tmp_path / "a", TriangulationConfig())
    assert (tmp_path / "a" / "thesis.tex").read_text() == "mine"


def test_no_point_at_all_is_a_model_of_poses_that_registers_nothing(
    scene: Any, verified: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, query = tmp_path / "model", scene.names[5]
    wrong = {name: (scene.cameras[name], np.eye(4)) for name in scene.names[:5]}  # one centre: no angles
    statistics = triangulate(verified, wrong, out, TriangulationConfig())
    assert (statistics.registered_images, statistics.points, statistics.verified_pairs) == (5, 0, 15)
    assert (statistics.mean_track_length, statistics.mean_reprojection_error_px) == (None, None)
    assert statistics.mean_observations_per_image == 0
    assert read_statistics(out) == statistics
    said = "no point came out of 15 verified pairs and 5 known poses"
    assert said in caplog.text and "original image" in caplog.text and "world to camera" in caplog.text
    assert list(registered_poses(read_model(out))) == scene.names[:5]
    poses = register_images(verified, out, [query], tmp_path / "r", RegistrationConfig())
    assert poses == read_registered(tmp_path / "r") == {query: None}
    lookup = PointLookup(out)
    assert lookup.points_P3.shape == (0, 3)
    assert caplog.text.count("has no 3D points") == 2


def test_what_was_never_verified_is_refused_by_every_step(scene: Any, verified: Path, tmp_path: Path) -> None:
    raw, out, model = tmp_path / "raw.db", tmp_path / "out", tmp_path / "model"
    triangulate(verified, scene.known(scene.names[:4]), model, TriangulationConfig())
    for step in (
        lambda: triangulate(raw, scene.known(), out, TriangulationConfig()),
        lambda: register_images(raw, model, scene.names[4:], out, RegistrationConfig()),
        lambda: reconstruct(raw, None, out, MappingConfig()),
    ):
        with pytest.raises(DataError, match=r"^\S*/raw\.db: expected a verified database"):
            step()
    assert not out.exists()


def test_statistics_count_what_lies_in_a_log_beside_the_database(
    scene: Any, verified: Path, tmp_path: Path
) -> None:
    """As a killed program leaves it: the model is made with the log, so the numbers beside it must be."""
    live, found = tmp_path / "live", tmp_path / "found"
    live.mkdir()
    source = copy_database(verified, live / "a.db")
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("delete from two_view_geometries where pair_id = 2147483649")
        connection.commit()
        shutil.copytree(live, found)
    statistics = triangulate(found / "a.db", scene.known(), tmp_path / "t", TriangulationConfig())
    assert (statistics.verified_pairs, statistics.inlier_matches) == (14, 14 * POINTS)
    assert reconstruct(found / "a.db", None, tmp_path / "m", MappingConfig()).verified_pairs == 14


def test_triangulation_without_a_chance_says_why_and_leaves_nothing(
    scene: Any, verified: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "model", TriangulationConfig()
    with pytest.raises(DataError, match=r"lacks 1 of 1 images with a known pose: db/1\.jpg"):
        triangulate(verified, {"db/1.jpg": scene.known()[scene.names[0]]}, out, config)
    with pytest.raises(DataError, match="there is none"):
        triangulate(verified, {}, out, config)
    mirrored = {name: (camera, T @ np.diag([1, 1, -1, 1])) for name, (camera, T) in scene.known().items()}
    with pytest.raises(DataError, match="expected a rotation"):
        triangulate(verified, mirrored, out, config)
    assert not out.exists()


def test_a_shared_camera_has_one_set_of_intrinsics(scene: Any, tmp_path: Path) -> None:
    build_database(
        tmp_path / "raw.db",
        images=scene.cameras,
        features=scene.features,
        matches=scene.matches,
        shared_camera=True,
    )
    verify_database(tmp_path / "raw.db", tmp_path / "v.db", scene.pairs, VerificationConfig())
    assert (
        triangulate(tmp_path / "v.db", scene.known(), tmp_path / "m", TriangulationConfig()).points == POINTS
    )
    known = scene.known()
    known[scene.names[1]] = (guessed_camera(1024, 768), known[scene.names[1]][1])
    with pytest.raises(DataError, match="share camera 1"):
        triangulate(tmp_path / "v.db", known, tmp_path / "n", TriangulationConfig())


# ---------------------------------------------------------------- registration
def test_held_out_images_get_their_true_pose(scene: Any, verified: Path, tmp_path: Path) -> None:
    queries = scene.names[4:]
    triangulate(verified, scene.known(scene.names[:4]), tmp_path / "model", TriangulationConfig())
    poses = register_images(
        verified, tmp_path / "model", queries, tmp_path / "registered", RegistrationConfig()
    )
    assert list(poses) == queries
    for name in queries:
        centre, rotation = pose_error(poses[name].T_world_to_cam, scene.poses[name])
        assert centre < 1e-4
        assert rotation < 1e-3
        assert poses[name].inliers == POINTS
    again = read_registered(tmp_path / "registered")
    for name in queries:
        np.testing.assert_array_equal(again[name].T_world_to_cam, poses[name].T_world_to_cam)
    whole = read_model(tmp_path / "registered")
    assert whole.num_reg_images() == 6
    assert whole.num_points3D() == POINTS
    for name, T in registered_poses(read_model(tmp_path / "model")).items():
        np.testing.assert_array_equal(T, registered_poses(whole)[name])


def verified_without(alone: str, scene: Any, folder: Path, make_matches: Callable[..., Any]) -> None:
    """The verified database `v.db` of a scene, in which one image has no match."""
    matches = [
        (a, b, make_matches([]) if alone in (a, b) else found) for a, b, found in scene.matches.matches
    ]
    build_database(
        folder / "raw.db",
        images=scene.cameras,
        features=scene.features,
        matches=type(scene.matches)(matches),
    )
    verify_database(folder / "raw.db", folder / "v.db", scene.pairs, VerificationConfig())


def test_an_image_without_matches_fails_alone(
    scene: Any, tmp_path: Path, make_matches: Callable[..., Any]
) -> None:
    alone, fine = scene.names[4:]
    verified_without(alone, scene, tmp_path, make_matches)
    triangulate(tmp_path / "v.db", scene.known(scene.names[:4]), tmp_path / "m", TriangulationConfig())
    poses = register_images(
        tmp_path / "v.db", tmp_path / "m", [alone, fine], tmp_path / "r", RegistrationConfig()
    )
    assert poses[alone] is None
    assert poses[fine] is not None
    assert read_registered(tmp_path / "r")[alone] is None
    strict = RegistrationConfig(min_inliers=POINTS + 1)
    assert register_images(tmp_path / "v.db", tmp_path / "m", [fine], tmp_path / "s", strict)[fine] is None


def test_an_image_of_the_model_without_matches_does_not_stop_the_others(
    scene: Any, tmp_path: Path, make_matches: Callable[..., Any]
) -> None:
    """COLMAP leaves such images out of its cache, and then misses them."""
    alone, query = scene.names[0], scene.names[5]
    verified_without(alone, scene, tmp_path, make_matches)
    triangulate(tmp_path / "v.db", scene.known(scene.names[:5]), tmp_path / "m", TriangulationConfig())
    found = register_images(tmp_path / "v.db", tmp_path / "m", [query], tmp_path / "r", RegistrationConfig())[
        query
    ]
    assert found is not None and found.inliers == POINTS
    assert pose_error(found.T_world_to_cam, scene.poses[query]) < (1e-4, 1e-3)
    assert set(registered_poses(read_model(tmp_path / "r"))) == set(scene.names)


def test_poses_of_another_shape_name_their_file(tmp_path: Path) -> None:
    (tmp_path / "poses.json").write_text('{"poses": {"a.jpg": {"T_world_to_cam": [[1, 0]], "inliers": 9}}}')
    with pytest.raises(DataError, match=r"poses\.json: expected poses as JSON, got ShapeError"):
        read_registered(tmp_path)


def test_names_that_cannot_be_registered_are_refused(scene: Any, verified: Path, tmp_path: Path) -> None:
    triangulate(verified, scene.known(scene.names[:4]), tmp_path / "m", TriangulationConfig())
    for names, said in (
        (["query/1.jpg"], r"query/1\.jpg"),
        ([scene.names[0]], "has a pose already"),
        ([scene.names[5]] * 2, "twice"),
    ):
        with pytest.raises(DataError, match=said):
            register_images(verified, tmp_path / "m", names, tmp_path / "r", RegistrationConfig())
    assert not (tmp_path / "r").exists()


# ---------------------------------------------------------------- localisation
def matches_from(scene: Any, query: str) -> dict[str, Matches]:
    found = {}
    for a, b, matches in scene.matches.matches:
        if query == b:
            found[a] = Matches(index=np.ascontiguousarray(matches.index[:, ::-1]), scores=matches.scores)
        elif query == a:
            found[b] = matches
    return found


@pytest.mark.parametrize("clustering", [False, True])
def test_without_a_database_the_pose_is_the_same(
    scene: Any, verified: Path, tmp_path: Path, clustering: bool
) -> None:
    triangulate(verified, scene.known(scene.names[:5]), tmp_path / "m", TriangulationConfig())
    query = scene.names[5]
    pose = localise(
        PointLookup(tmp_path / "m"),
        query=query,
        keypoints_N2=scene.features[query].keypoints,
        camera=scene.cameras[query],
        matches=matches_from(scene, query),
        config=LocalisationConfig(covisibility_clustering=clustering),
    )
    centre, rotation = pose_error(pose.T_world_to_cam, scene.poses[query])
    assert centre < 1e-4
    assert rotation < 1e-3
    assert pose.inliers == POINTS


def test_the_half_pixel_is_a_bias_of_the_rotation_without_the_offset(
    scene: Any, verified: Path, tmp_path: Path
) -> None:
    """Keypoints off by (0.5, 0.5) px turn a camera of long focal length by about 0.5 sqrt(2) / f radians."""
    triangulate(verified, scene.known(scene.names[:5]), tmp_path / "m", TriangulationConfig())
    query = scene.names[5]
    camera = scene.cameras[query]
    expected_deg = np.rad2deg(0.5 * np.sqrt(2) / camera.params[0])
    errors = {}
    for offset in (0.5, 0.0):
        pose = localise(
            PointLookup(tmp_path / "m"),
            query=query,
            keypoints_N2=scene.features[query].keypoints,
            camera=camera,
            matches=matches_from(scene, query),
            config=LocalisationConfig(),
            pixel_offset=offset,
        )
        # What turns the rays, with the translation that goes with it: the mean shift of the projected points.
        rays = scene.points @ pose.T_world_to_cam[:3, :3].T + pose.T_world_to_cam[:3, 3]
        truth = scene.points @ scene.poses[query][:3, :3].T + scene.poses[query][:3, 3]
        errors[offset] = np.rad2deg(
            np.linalg.norm((rays[:, :2] / rays[:, 2:] - truth[:, :2] / truth[:, 2:]).mean(0))
        )
    assert errors[0.5] < 0.01 * expected_deg
    assert errors[0.0] == pytest.approx(expected_deg, rel=0.2)


def test_localisation_without_a_chance_and_of_another_run(
    scene: Any, verified: Path, tmp_path: Path, make_matches: Callable[..., Any]
) -> None:
    triangulate(verified, scene.known(scene.names[:5]), tmp_path / "m", TriangulationConfig())
    lookup = PointLookup(tmp_path / "m")

    def attempt(matches: dict[str, Any], **changes: Any) -> Any:
        return localise(
            lookup,
            query="q",
            keypoints_N2=scene.features[scene.names[5]].keypoints,
            camera=scene.cameras[scene.names[5]],
            matches=matches,
            config=LocalisationConfig(**changes),
        )

    assert attempt({}) is None
    assert attempt({scene.names[0]: make_matches([])}, covisibility_clustering=True) is None
    assert attempt(matches_from(scene, scene.names[5]), min_inliers=POINTS + 1) is None
    with pytest.raises(DataError, match="different runs"):
        attempt({scene.names[0]: make_matches([[0, 10_000]])})
    with pytest.raises(DataError, match="no registered image 'db/1.jpg'"):
        attempt({"db/1.jpg": make_matches([[0, 0]])})


# ---------------------------------------------------------------- mapping
def test_a_scene_is_reconstructed_up_to_a_similarity_with_the_same_bits_again(
    scene: Any, verified: Path, tmp_path: Path
) -> None:
    statistics = reconstruct(verified, None, tmp_path / "a", MappingConfig())
    assert (statistics.registered_images, statistics.models, statistics.verified_pairs) == (6, 1, 15)
    assert statistics.points >= 0.98 * POINTS
    assert statistics.dense_points is None
    errors = compare_with_truth(tmp_path / "a", scene.poses)
    assert errors.names == tuple(scene.names)
    assert errors.centre.max() < 1e-3 * errors.extent
    assert errors.rotation_deg.max() < 0.05
    assert errors.pairwise_rotation_deg.max() < 0.05
    reconstruct(verified, None, tmp_path / "b", MappingConfig())
    assert (tmp_path / "a" / MARKER).read_bytes() == (tmp_path / "b" / MARKER).read_bytes()


def test_the_errors_know_no_similarity_but_a_wrong_camera(scene: Any, verified: Path, tmp_path: Path) -> None:
    reconstruct(verified, None, tmp_path / "a", MappingConfig())
    poses = {name: T.copy() for name, T in scene.poses.items()}
    turn = np.deg2rad(3)
    R = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    poses[scene.names[0]][:3] = R @ poses[scene.names[0]][:3]  # the centre stays
    errors = compare_with_truth(tmp_path / "a", poses)
    np.testing.assert_allclose(errors.rotation_deg, [3, 0, 0, 0, 0, 0], atol=0.05)
    assert sorted(np.round(errors.pairwise_rotation_deg).tolist()) == [0] * 10 + [3] * 5
    assert errors.centre.max() < 1e-3 * errors.extent
    errors = compare_with_truth(tmp_path / "a", {**scene.poses, "z.jpg": np.eye(4)})
    assert errors.missing == ("z.jpg",)
    with pytest.raises(DataError, match="at least 3"):
        compare_with_truth(tmp_path / "a", {name: scene.poses[name] for name in scene.names[:2]})


def test_nothing_to_map_is_an_empty_model(scene: Any, tmp_path: Path) -> None:
    build_database(
        tmp_path / "raw.db",
        images=scene.cameras,
        features=scene.features,
        matches=type(scene.matches)([]),
    )
    verify_database(tmp_path / "raw.db", tmp_path / "v.db", scene.pairs, VerificationConfig())
    statistics = reconstruct(tmp_path / "v.db", None, tmp_path / "a", MappingConfig())
    assert (statistics.models, statistics.registered_images, statistics.points) == (0, 0, 0)
    assert (statistics.mean_track_length, statistics.mean_observations_per_image) == (None, None)
    assert statistics.mean_reprojection_error_px is None
    assert read_statistics(tmp_path / "a") == statistics
    assert statistics.images == 6
    assert read_model(tmp_path / "a").num_images() == 0
    assert verify_folder(tmp_path / "a") == []


def test_of_disconnected_images_the_larger_model_is_reported(
    make_scene: Callable[..., Any], tmp_path: Path
) -> None:
    small, large = make_scene(images=5, points=200, seed=1), make_scene(images=7, points=200, seed=2)
    store, reader = type(small.features), type(small.matches)
    cameras, features, matches = {}, store(), []
    for prefix, part in (("a/", small), ("b/", large)):
        cameras |= {prefix + name: camera for name, camera in part.cameras.items()}
        features.update({prefix + name: found for name, found in part.features.items()})
        matches += [(prefix + a, prefix + b, found) for a, b, found in part.matches.matches]
    build_database(tmp_path / "raw.db", images=cameras, features=features, matches=reader(matches))
    pairs = [(a, b) for a, b, _ in matches]
    verify_database(tmp_path / "raw.db", tmp_path / "v.db", pairs, VerificationConfig())
    statistics = reconstruct(tmp_path / "v.db", None, tmp_path / "m", MappingConfig(min_model_size=3))
    assert (statistics.models, statistics.registered_images, statistics.images) == (2, 7, 12)
    assert all(name.startswith("b/") for name in registered_poses(read_model(tmp_path / "m")))
