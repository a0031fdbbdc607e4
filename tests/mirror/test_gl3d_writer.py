"""The written GL3D files, read back from the archives, against each other."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from matchlib.datasets.gl3d import (
    affine_radius_angle,
    affine_to_pixel,
    list_scenes,
    read_corr,
    read_keypoints,
    read_scene,
)
from matchlib.datasets.images import read_image
from matchlib.datasets.pfm import read_pfm
from matchlib.datasets.types import Camera
from matchlib.mirror.build import draw_scene
from matchlib.mirror.gl3d_writer import distort_points, without_edges
from matchlib.mirror.render import cast_depth
from matchlib.mirror.sift import mutual_matches


@pytest.fixture(scope="module")
def scene(mirror):
    return read_scene(mirror.gl3d, list_scenes(mirror.gl3d, "comb/train")[0])


def undistorted(scene, index):
    """Keypoints of an image in pixels of the undistorted original, by OpenCV."""
    camera = scene.images[index].camera
    xy = affine_to_pixel(read_keypoints(scene.images[index].keypoints_path), camera.size)
    k1, k2, k3 = camera.distortion
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-12)
    return cv2.undistortPoints(
        xy[:, None], camera.K, np.array([k1, k2, 0, 0, k3]), P=camera.K, criteria=criteria
    )[:, 0]


def test_lists_and_sizes(mirror, scene, tiny_config):
    train, test = (list_scenes(mirror.gl3d, f"comb/{part}") for part in ("train", "test"))
    assert len(train) == 1
    assert len(test) == 1
    assert train != test
    assert list_scenes(mirror.gl3d, "gl3d/all") == (*train, *test)
    assert list(scene.images) == [0, 1, 2]
    for image in scene.images.values():
        assert image.camera.size == tiny_config.gl3d.original_size
        assert read_image(image.image_path).shape == (160, 160, 3)
        assert read_pfm(image.depth_path).shape == (80, 80)
    assert (mirror.gl3d / "list/comb/image_list.txt").read_text().count("\n") == 6
    for line in (mirror.gl3d / "list/comb/depth_list.txt").read_text().split():
        assert (mirror.gl3d / line).is_file()


def test_distortion_agrees_with_opencv(scene):
    camera = scene.images[0].camera
    assert camera.distortion[0] != 0
    points = np.random.default_rng(0).uniform(0, 180, (40, 2))
    k1, k2, k3 = camera.distortion
    rays = np.column_stack([points, np.ones(40)]) @ np.linalg.inv(camera.K).T
    expected, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), camera.K, np.array([k1, k2, 0, 0, k3]))
    np.testing.assert_allclose(distort_points(points, camera), expected[:, 0], atol=1e-9)


def test_keypoints_are_the_sift_of_the_undistorted_scene(scene):
    xy = undistorted(scene, 0)
    assert len(xy) > 200
    assert (xy > -0.01).all()
    assert (xy < np.array(scene.images[0].camera.size)).all()
    distorted = affine_to_pixel(read_keypoints(scene.images[0].keypoints_path), scene.images[0].camera.size)
    assert np.abs(distorted - xy).max() > 0.5  # the stored ones are those of the distorted original


def test_depth_maps_and_poses_agree_between_images(scene):
    """Files only: depth of image 0, through the poses, predicts the depth of image 1."""
    width, height = 80, 80
    depths = [read_pfm(image.depth_path).astype(np.float64) for image in scene.images.values()]
    K0, K1 = (scene.images[i].camera.scaled_K(width, height) for i in (0, 1))
    T = scene.images[1].camera.T_world_to_cam @ np.linalg.inv(scene.images[0].camera.T_world_to_cam)
    y, x = np.nonzero(depths[0] > 0)
    rays = np.column_stack([x, y, np.ones(len(x))]) @ np.linalg.inv(K0).T
    in1 = (rays * depths[0][y, x][:, None]) @ T[:3, :3].T + T[:3, 3]
    u, v = ((in1 @ K1.T)[:, :2] / in1[:, 2:]).T
    inside = (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1) & (in1[:, 2] > 0)
    stored = depths[1][np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)]
    error = np.abs(stored - in1[inside, 2]) / in1[inside, 2]
    same = error[stored > 0] < 0.05
    assert inside.mean() > 0.3
    assert same.mean() > 0.5
    assert np.median(error[stored > 0][same]) < 0.01


def test_undistorted_pictures_follow_depth_and_pose(mirror, scene):
    """Grey values of the stored pictures correlate where the stored depth leads from one to the other."""
    folder = mirror.gl3d / "data" / scene.name
    depth0, depth1 = (
        cv2.resize(_rendered(folder, i), (160, 160), interpolation=cv2.INTER_NEAREST) for i in (0, 1)
    )
    K0, K1 = (scene.images[i].camera.scaled_K(160, 160) for i in (0, 1))
    T = scene.images[1].camera.T_world_to_cam @ np.linalg.inv(scene.images[0].camera.T_world_to_cam)
    x, y = np.meshgrid(np.arange(160), np.arange(160))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K0).T
    in1 = (rays * depth0[..., None]) @ T[:3, :3].T + T[:3, 3]
    uv = ((in1 @ K1.T)[..., :2] / np.maximum(in1[..., 2:], 1e-6)).astype(np.float32)
    pictures = [cv2.cvtColor(read_image(scene.images[i].image_path), cv2.COLOR_RGB2GRAY) for i in (0, 1)]
    smooth = [cv2.GaussianBlur(picture, (0, 0), 1.0).astype(np.float32) for picture in pictures]
    seen = cv2.remap(depth1, uv, None, cv2.INTER_NEAREST)
    covisible = (depth0 > 0) & (in1[..., 2] > 0) & (np.abs(seen - in1[..., 2]) < 0.02 * in1[..., 2])
    assert covisible.mean() > 0.2
    values1 = cv2.remap(smooth[1], uv, None, cv2.INTER_LINEAR)
    assert (
        np.corrcoef(smooth[0][covisible], values1[covisible])[0, 1] > 0.8
    )  # two jpegs, half-size depth, another sun


def _rendered(folder, index):
    return read_pfm(folder / "rendered_depths" / f"{index:08d}.pfm")


def test_stereo_depth_is_exact_or_unknown(mirror, scene):
    folder = mirror.gl3d / "data" / scene.name
    for index, image in scene.images.items():
        exact, stereo = _rendered(folder, index), read_pfm(image.depth_path)
        known = stereo > 0
        np.testing.assert_array_equal(stereo[known], exact[known])
        assert 0.5 < known.sum() / (exact > 0).sum() < 1


def test_without_edges_removes_both_sides_of_a_step():
    depth = np.full((6, 8), 2.0, np.float32)
    depth[:, 4:] = 3.0
    kept = without_edges(depth) > 0
    np.testing.assert_array_equal(kept[2], [True, True, True, False, False, True, True, True])


def test_correspondences_show_the_same_point(mirror, scene, tiny_config):
    """Depth of the drawn world, which is not in the files, carries each row's keypoint to the other."""
    world = draw_scene(tiny_config, "gl3d", 0).world
    records = list(read_corr(scene.corr_path))
    assert len(records) >= 2
    for record in records:
        cameras = [scene.images[index].camera for index in (record.index0, record.index1)]
        rows = record.rows[:, 13:].astype(int)
        frames = [read_keypoints(scene.images[i].keypoints_path) for i in (record.index0, record.index1)]
        np.testing.assert_array_equal(record.rows[:, :6], frames[0][rows[:, 0]])
        np.testing.assert_array_equal(record.rows[:, 6:12], frames[1][rows[:, 1]])
        xy0, xy1 = (
            undistorted(scene, record.index0)[rows[:, 0]],
            undistorted(scene, record.index1)[rows[:, 1]],
        )
        pinhole = Camera(K=cameras[0].K, T_world_to_cam=cameras[0].T_world_to_cam, size=cameras[0].size)
        depth = cast_depth(world, pinhole, xy0.astype(np.float64))
        T = cameras[1].T_world_to_cam @ np.linalg.inv(cameras[0].T_world_to_cam)
        rays = np.column_stack([xy0, np.ones(len(xy0))]) @ np.linalg.inv(cameras[0].K).T * depth[:, None]
        moved = (rays @ T[:3, :3].T + T[:3, 3]) @ cameras[1].K.T
        error = np.linalg.norm(moved[:, :2] / moved[:, 2:] - xy1, axis=1)
        # A thousandth of a pixel can decide which side of an edge a ray hits: for less than one in fifty.
        assert (error <= tiny_config.gl3d.match_threshold_px + 0.01).mean() > 0.98
        assert (record.rows[:, 12] > 0).all()
        assert (record.rows[:, 12] <= 1).all()
        assert len(np.unique(rows[:, 0])) == len(rows)


def test_orientations_turn_with_the_camera(scene):
    """The rotation between the frames of a pair agrees with the roll between its cameras."""
    for record in read_corr(scene.corr_path):
        size = scene.images[0].camera.size
        angles = [affine_radius_angle(part, size)[1] for part in (record.rows[:, :6], record.rows[:, 6:12])]
        turn = np.angle(np.exp(1j * (angles[1] - angles[0])))
        R = (
            scene.images[record.index1].camera.T_world_to_cam[:3, :3]
            @ scene.images[record.index0].camera.T_world_to_cam[:3, :3].T
        )
        roll = np.arctan2(R[1, 0] - R[0, 1], R[0, 0] + R[1, 1])
        # GL3D counts orientation from x towards minus y, so it turns against the image's axes.
        assert np.median(np.abs(np.angle(np.exp(1j * (turn + roll))))) < np.radians(15)


def test_tracks_and_overlaps_are_shares_in_both_orders(mirror, scene):
    labels = mirror.gl3d / "data" / scene.name / "geolabel"
    for name in ("common_track.txt", "mesh_overlap.txt"):
        rows = np.loadtxt(labels / name)
        assert {(int(i), int(j)) for i, j, _ in rows} == {(int(j), int(i)) for i, j, _ in rows}
        assert ((rows[:, 2] >= 0) & (rows[:, 2] <= 1)).all()
        assert rows[:, 2].max() > 0.2


def test_mutual_matches_are_mutual_and_empty_input_gives_none():
    rng = np.random.default_rng(0)
    descriptors = rng.standard_normal((30, 8)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    order = rng.permutation(30)
    pairs = mutual_matches(descriptors, descriptors[order])
    np.testing.assert_array_equal(order[pairs[:, 1]], pairs[:, 0])
    assert len(pairs) == 30
    assert mutual_matches(descriptors, descriptors[:0]).shape == (0, 2)
