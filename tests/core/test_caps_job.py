"""CAPS-like scenes from COLMAP models and from scenes with depth: the written files against the models themselves."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from matchlib.cli import main
from matchlib.completion import MARKER, verify_folder
from matchlib.datasets.blendedmvs import read_scene as read_blendedmvs
from matchlib.datasets.caps_megadepth import list_scenes, read_scene
from matchlib.datasets.colmap_model import ColmapImage, read_colmap
from matchlib.datasets.images import read_image, write_image
from matchlib.datasets.types import Camera, Scene, SceneImage
from matchlib.errors import ConfigError, DataError
from matchlib.geometry.epipolar import fundamental_from_pose
from matchlib.geometry.pose import relative_pose
from matchlib.jobs import caps
from matchlib.jobs.caps import CapsBuildConfig, build_from_colmap, build_from_dataset, resized
from matchlib.jobs.caps_pairs import covisible_counts, from_different_views
from matchlib.mirror.blendedmvs_writer import write_blendedmvs_scene
from matchlib.mirror.config import BlendedMVSMirrorConfig
from matchlib.mirror.scene import build_scene
from matchlib.mirror.visibility import warp_points

SMALL = CapsBuildConfig(size=(320, 240))


def line_distances(scene: Scene, i: int, j: int, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Distance in px of points of image j to the epipolar lines of their partners in image i."""
    one, other = scene.images[i].camera, scene.images[j].camera
    T = relative_pose(torch.from_numpy(one.T_world_to_cam), torch.from_numpy(other.T_world_to_cam))
    F = fundamental_from_pose(T, torch.from_numpy(one.K), torch.from_numpy(other.K)).numpy()
    lines = np.column_stack([points0, np.ones(len(points0))]) @ F.T
    residual = (lines * np.column_stack([points1, np.ones(len(points1))])).sum(1)
    return np.abs(residual) / np.linalg.norm(lines[:, :2], axis=1)


def to_size(points: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    return (points + 0.5) * (np.array(new) / np.array(old)) - 0.5


# ---------------------------------------------------------------- from COLMAP
def test_tracks_of_a_real_model_lie_on_the_epipolar_lines_of_the_written_files(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shared_data("sfm_lund_door")
    built = build_from_colmap(folder / "sparse", folder / "images", tmp_path, scene="lund", config=SMALL)
    assert (built.images, built.pairs, built.left_out) == (12, 66, ())
    assert verify_folder(built.folder) == []
    scene = read_scene(tmp_path, "lund")
    model: list[ColmapImage] = list(read_colmap(folder / "sparse").values())
    assert len(scene.candidate_pairs or ()) == 66
    distances = []
    for i, j in scene.candidate_pairs or ():
        assert read_image(scene.images[i].image_path).shape == (240, 320, 3)
        _, rows0, rows1 = np.intersect1d(model[i].point_ids, model[j].point_ids, return_indices=True)
        assert len(rows0) >= SMALL.min_covisible
        points0 = to_size(model[i].keypoints[rows0], model[i].camera.size, SMALL.size)
        points1 = to_size(model[j].keypoints[rows1], model[j].camera.size, SMALL.size)
        distances.append(line_distances(scene, i, j, points0, points1))
    together = np.concatenate(distances)
    assert len(together) > 100_000
    assert np.median(together) < 0.1  # 320 x 240 px; the model's own error is 0.15 px at 648 x 968
    assert np.quantile(together, 0.99) < 0.5


def sacre_coeur_model(folder: Path, model: Path, *, points: int = 60) -> None:
    """A text model of the given cameras; the scene has no tracks, so points before all cameras stand in."""
    names = sorted(path.stem.removeprefix("calibration_") for path in (folder / "calibration").glob("*.h5"))
    cameras, images, Ks, Rs, ts = [], [], [], [], []
    for name in names:
        with h5py.File(folder / "calibration" / f"calibration_{name}.h5") as file:
            Ks.append(file["K"][()])
            Rs.append(file["R"][()])
            ts.append(np.ravel(file["T"][()]))
    centres = np.stack([-R.T @ t for R, t in zip(Rs, ts, strict=True)])
    ahead = np.mean([R[2] for R in Rs], axis=0)
    rng = np.random.default_rng(0)
    world = centres.mean(0) + 3 * np.ptp(centres, axis=0).max() * ahead + rng.normal(0, 0.1, (points, 3))
    for number, (name, K, R, t) in enumerate(zip(names, Ks, Rs, ts, strict=True), start=1):
        height, width = read_image(folder / "images" / f"{name}.jpg").shape[:2]
        cameras.append(f"{number} PINHOLE {width} {height} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}")
        x, y, z, w = Rotation.from_matrix(R).as_quat()
        images.append(f"{number} {w} {x} {y} {z} {t[0]} {t[1]} {t[2]} {number} {name}.jpg")
        seen = (world @ R.T + t) @ K.T
        images.append(" ".join(f"{u / v} {s / v} {p + 1}" for p, (u, s, v) in enumerate(seen)))
    track = " ".join(f"{number} {{p}}" for number in range(1, len(names) + 1))
    rows = [f"{p + 1} {x} {y} {z} 0 0 0 0.1 {track.format(p=p)}" for p, (x, y, z) in enumerate(world)]
    model.mkdir()
    for file_name, lines in (("cameras", cameras), ("images", images), ("points3D", rows)):
        (model / f"{file_name}.txt").write_text("\n".join(lines) + "\n")


def test_cameras_and_images_of_real_photographs_of_many_sizes_agree(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Cameras against the pairs that came with the data, images by what SIFT finds in them."""
    folder = shared_data("sfm_sacre_coeur")
    sacre_coeur_model(folder, tmp_path / "model")
    out = tmp_path / "out"
    built = build_from_colmap(tmp_path / "model", folder / "images", out, scene="0000", phase="val")
    assert (built.images, built.pairs) == (10, 45)
    assert list_scenes(out, "val") == ("0000",)
    scene = read_scene(out, "0000")
    index_of = {image.image_path.name: index for index, image in scene.images.items()}
    points = np.random.default_rng(0).uniform(0, (640, 480), (50, 2))
    for row in (folder / "pairs_with_gt.txt").read_text().splitlines():
        name0, name1, *words = row.split()
        K0, K1, T = (np.array(words[a:b], float) for a, b in ((2, 11), (11, 20), (20, 36)))
        # The principal point is half the size, counted from the corner; from there to 640 x 480, counted from 0:
        K0, K1 = (
            np.array([[640 / (2 * K[2]), 0, -0.5], [0, 480 / (2 * K[5]), -0.5], [0, 0, 1]]) @ K.reshape(3, 3)
            for K in (K0, K1)
        )
        F = fundamental_from_pose(*map(torch.from_numpy, (T.reshape(4, 4), K0, K1))).numpy()
        a, b, c = F @ np.column_stack([points, np.ones(50)]).T
        x = np.linspace(0, 640, 50)
        on_lines = np.column_stack([x, -(a * x + c) / b])
        distances = line_distances(scene, index_of[name0], index_of[name1], points, on_lines)
        assert distances.max() < 0.01
    right, wrong = sift_agreement(scene, 4)
    assert right > 0.2  # 0.41 at full size and true aspect (portrait and landscape are squeezed differently)
    assert right > 5 * wrong


def sift_agreement(scene: Scene, images: int) -> tuple[float, float]:
    """Share of SIFT matches of the written images within 2 px of their epipolar line, and of shuffled matches."""
    sift, near, far = cv2.SIFT_create(2000), [], []
    found = {}
    for index in list(scene.images)[:images]:
        grey = cv2.cvtColor(read_image(scene.images[index].image_path), cv2.COLOR_RGB2GRAY)
        found[index] = sift.detectAndCompute(grey, None)
    for i, j in [(i, j) for i, j in scene.candidate_pairs or () if i in found and j in found]:
        candidates = cv2.BFMatcher().knnMatch(found[i][1], found[j][1], k=2)
        matches = [best for best, second in candidates if best.distance < 0.75 * second.distance]
        points0 = np.array([found[i][0][match.queryIdx].pt for match in matches])
        points1 = np.array([found[j][0][match.trainIdx].pt for match in matches])
        near.append(line_distances(scene, i, j, points0, points1) < 2)
        far.append(line_distances(scene, i, j, points0, points1[::-1]) < 2)
    return float(np.concatenate(near).mean()), float(np.concatenate(far).mean())


def test_an_interrupted_build_goes_on_and_a_finished_one_is_left_alone(
    shared_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_data("sfm_lund_door")
    written: list[str] = []
    write = caps.write_image

    def until_the_fourth(path: Path, *rest: object) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)  # type: ignore[arg-type]

    def build(out: Path, config: CapsBuildConfig = SMALL) -> caps.BuiltScene:
        return build_from_colmap(folder / "sparse", folder / "images", out, scene="0001", config=config)

    monkeypatch.setattr(caps, "write_image", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cut")
    assert not (tmp_path / "cut" / "train" / "0001" / MARKER).exists()
    with pytest.raises(DataError):  # nothing half-written lies where a reader looks
        list_scenes(tmp_path / "cut", "all")
    monkeypatch.setattr(
        caps, "write_image", lambda path, *rest: written.append(path.name) or write(path, *rest)
    )
    build(tmp_path / "cut")
    assert len(written) == len(set(written)) == 12
    build(tmp_path / "whole")
    cut, whole = ((tmp_path / name / "train" / "0001") for name in ("cut", "whole"))
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file())
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in names)
    count = len(written)
    assert build(tmp_path / "whole").pairs == 66
    assert len(written) == count
    fewer = build(tmp_path / "whole", replace(SMALL, max_rotation_deg=15.0))
    assert 0 < fewer.pairs < 66
    assert len(read_scene(tmp_path / "whole", "0001").candidate_pairs or ()) == fewer.pairs


def test_images_that_cannot_be_read_are_named_and_too_many_stop_the_build(
    shared_data: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shared_data("sfm_lund_door")
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    (images / "DSC_0003.JPG").unlink()
    out = tmp_path / "out"
    built = build_from_colmap(folder / "sparse", images, out, scene="0000", config=SMALL)
    assert (built.images, built.pairs, built.left_out) == (11, 55, ("DSC_0003.jpg",))
    assert "1 of 12 images cannot be used, the first:" in caplog.text
    assert not any("DSC_0003" in image.image_path.name for image in read_scene(out, "0000").images.values())
    (images / "DSC_0004.JPG").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 12 images cannot be used, the first: .*DSC_0003"):
        build_from_colmap(folder / "sparse", images, out, scene="0002", config=SMALL)
    with pytest.raises(DataError, match="no pair of 11 images is left; lower min_covisible"):
        config = replace(SMALL, min_covisible=10**6, max_unreadable_share=0.5, size=(64, 48))
        shutil.copy(folder / "images" / "DSC_0004.JPG", images)
        build_from_colmap(folder / "sparse", images, out, scene="0003", config=config)


# ---------------------------------------------------------------- from depth
@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    """A scene of the demo world as BlendedMVS, and the scene itself."""
    world = build_scene(
        seed=5,
        dataset="caps-job",
        index=0,
        pool="training",
        images=4,
        image_size=(160, 120),
        texture_px=128,
        lighting_conditions=1,
    )
    root = tmp_path_factory.mktemp("blendedmvs")
    write_blendedmvs_scene(root, world, BlendedMVSMirrorConfig(), seed=0, supersampling=1)
    return root, world


def test_a_scene_with_depth_becomes_one_with_poses(demo, tmp_path: Path) -> None:
    root, world = demo
    config = CapsBuildConfig(size=(96, 80), min_overlap=0.2)
    built = build_from_dataset("blendedmvs", root, world.name, tmp_path, config=config)
    scene = read_scene(tmp_path, world.name)
    assert (built.images, built.pairs) == (len(scene.images), len(scene.candidate_pairs or ()))
    assert built.pairs >= 3
    grid = np.stack(np.meshgrid(np.linspace(5, 150, 12), np.linspace(5, 110, 9)), axis=-1).reshape(-1, 2)
    for i, j in scene.candidate_pairs or ():
        points1, visible = warp_points(world.world, world.cameras[i], world.cameras[j], grid)
        share = visible.mean()
        assert share > 0.1  # truly covisible, by exact depth
        small = (to_size(points[visible], (160, 120), (96, 80)) for points in (grid, points1))
        assert line_distances(scene, i, j, *small).max() < 1e-6
    original = read_image(read_blendedmvs(root, world.name).images[0].image_path)
    expected = cv2.resize(original, (96, 80), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(read_image(scene.images[0].image_path) - expected).mean() < 3  # JPEG


def test_pairs_turned_too_far_and_pairs_from_one_place_are_left_out(
    demo, caplog: pytest.LogCaptureFixture
) -> None:
    def camera(turn_deg: float, x: float) -> Camera:
        T = np.eye(4)
        T[:3, :3] = Rotation.from_euler("z", turn_deg, degrees=True).as_matrix()
        T[:3, 3] = [x, 0, 0]
        return Camera(K=np.eye(3), T_world_to_cam=T, size=(9, 9))

    cameras = [camera(0, 0), camera(0, 0), camera(70, 1), camera(90, 2)]
    every = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    with caplog.at_level(logging.INFO):
        assert from_different_views(every, cameras, 80.0) == [(0, 2), (1, 2), (2, 3)]
    assert "of 6 pairs left out: 2 turned by more than 80 deg, 1 from one place" in caplog.text


@given(st.lists(st.lists(st.integers(0, 12), max_size=15), min_size=1, max_size=6))
def test_common_points_are_counted_once(points: list[list[int]]) -> None:
    counts = covisible_counts([np.array(ids, dtype=np.int64) for ids in points])
    assert counts.tolist() == [[len(set(a) & set(b)) for b in points] for a in points]


def test_cameras_follow_the_corners_of_the_image() -> None:
    camera = Camera(
        K=np.array([[300.0, 0, 319.5], [0, 310, 239.5], [0, 0, 1]]), T_world_to_cam=np.eye(4), size=(640, 480)
    )
    small = resized(camera, (320, 120))
    point = np.array([0.3, -0.2, 1.0])
    before, after = (camera.K @ point)[:2], (small.K @ point)[:2]
    assert after == pytest.approx(to_size(before, (640, 480), (320, 120)))
    assert small.K[:2, 2] == pytest.approx([159.5, 59.5])  # the middle stays the middle


def test_images_stored_smaller_than_their_cameras_say_are_taken_as_stored(tmp_path: Path) -> None:
    """GL3D: K refers to the original, the stored image is 1000 x 1000 and follows the dataset's own rule."""
    K = np.array([[300.0, 0, 99.5], [0, 310, 74.5], [0, 0, 1]])
    images = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        images.append(
            SceneImage(
                index=number, image_path=path, camera=Camera(K=K, T_world_to_cam=np.eye(4), size=(200, 150))
            )
        )
    write_image(tmp_path / "1.png", np.zeros((100, 100, 3), np.uint8))  # the first one is missing
    for camera in caps._stored_cameras(images):
        assert camera.size == (100, 100)
        assert pytest.approx(np.diag([1 / 2, 2 / 3, 1]) @ K) == camera.K
    write_image(tmp_path / "0.png", np.zeros((150, 200, 3), np.uint8))
    assert caps._stored_cameras(images) == [image.camera for image in images]


def test_names_become_those_of_the_layout() -> None:
    names = ["day 1/cam0/a.b.png", "day 1/cam1/a.b.png", "#c.JPG"]
    assert list(caps._flat_names(names).values()) == ["day_1_cam0_a.b.jpg", "day_1_cam1_a.b.jpg", "c.jpg"]
    with pytest.raises(DataError, match=r"images a/b\.png and a_b\.jpg would both be written as a_b\.jpg"):
        caps._flat_names(["a/b.png", "a_b.jpg"])


# ---------------------------------------------------------------- by command
def test_by_command(demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, world = demo
    where = ["--root", str(root), "--out", str(tmp_path)]
    words = ["caps-dataset", "--dataset", "blendedmvs", *where, "--size", "64", "48"]
    assert main(words) == 0
    assert f"{tmp_path / 'train' / world.name}: 4 images" in capsys.readouterr().out
    assert list_scenes(tmp_path, "all") == (world.name,)
    for wrong in (["--scene", "0000"], ["--max-rotation", "0"]):
        with pytest.raises(SystemExit, match="1"):
            main([*words, *wrong])
    errors = capsys.readouterr().err
    assert "--scene: has no meaning with --dataset" in errors
    assert "max_rotation_deg: expected above 0 to 180, got 0.0" in errors


def test_formats_without_depth_and_unknown_phases_are_refused(tmp_path: Path, demo) -> None:
    with pytest.raises(ConfigError, match="caps_megadepth gives pose"):
        build_from_dataset("caps_megadepth", tmp_path, "0000", tmp_path)
    root, world = demo
    with pytest.raises(ConfigError, match="phase: expected one of train, val, test, got 'training'"):
        build_from_dataset("blendedmvs", root, world.name, tmp_path, phase="training")
