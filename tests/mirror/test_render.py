"""Pictures, depth and poses of a scene must tell the same story."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from matchlib.datasets.types import Camera
from matchlib.mirror.lighting import Lighting
from matchlib.mirror.render import World, build_atlas, cast_depth, render_depth, render_image, resized_camera
from matchlib.mirror.scene import build_scene, look_at, scene_name
from matchlib.mirror.surfaces import Quad
from matchlib.mirror.textures import load_photograph
from matchlib.mirror.tiny import tiny_world
from matchlib.mirror.visibility import covisible_shares, transfer, warp_points

NOON = Lighting(sun_direction=np.array([0.0, 0.0, 1.0]), ambient=1.0)


def pixel_grid(size):
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float64), np.arange(size[1], dtype=np.float64))
    return np.column_stack([x.ravel(), y.ravel()])


def grey(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    return tiny_world(5, size=(240, 180))


def test_depth_is_the_same_by_picture_and_by_point(world):
    points = pixel_grid(world.camera0.size)
    exact = cast_depth(world.world, world.camera0, points).reshape(world.depth0.shape)
    np.testing.assert_allclose(world.depth0, exact, rtol=1e-6)
    assert 0.7 < (world.depth0 > 0).mean() <= 1
    assert world.depth0[world.depth0 > 0].min() > 0.5


def test_transfer_agrees_with_opencv_projection(world):
    rng = np.random.default_rng(0)
    points0 = rng.uniform(20, 160, (50, 2))
    depth0 = rng.uniform(2, 9, 50)
    points1, depth1 = transfer(world.camera0, world.camera1, points0, depth0)
    in0 = np.column_stack([points0, np.ones(50)]) @ np.linalg.inv(world.camera0.K).T * depth0[:, None]
    rotation, _ = cv2.Rodrigues(np.ascontiguousarray(world.T_0to1[:3, :3]))
    projected, _ = cv2.projectPoints(in0, rotation, world.T_0to1[:3, 3], world.camera1.K, None)
    np.testing.assert_allclose(points1, projected[:, 0], atol=1e-6)
    np.testing.assert_allclose(depth1, (in0 @ world.T_0to1[:3, :3].T + world.T_0to1[:3, 3])[:, 2], rtol=1e-9)


def test_warping_by_depth_and_pose_lands_on_the_same_picture_and_depth(world):
    points0 = pixel_grid(world.camera0.size)
    points1, visible = warp_points(world.world, world.camera0, world.camera1, points0)
    assert visible.mean() > 0.3
    x, y = points1[visible].T.astype(np.float32)[:, None]
    values0 = grey(world.image0).ravel()[visible]
    values1 = cv2.remap(grey(world.image1), x, y, cv2.INTER_LINEAR).ravel()
    assert np.corrcoef(values0, values1)[0, 1] > 0.9
    _, predicted = transfer(world.camera0, world.camera1, points0, world.depth0.ravel().astype(np.float64))
    stored = cv2.remap(world.depth1, x, y, cv2.INTER_NEAREST).ravel()
    # Half a pixel of position is allowed to matter at edges and on grazing slopes, hence the median.
    assert np.median(np.abs(stored - predicted[visible]) / predicted[visible]) < 0.01
    seen = cast_depth(world.world, world.camera1, points1[visible])
    assert np.abs(seen / predicted[visible] - 1).max() < 0.01


def test_a_wrong_pose_is_noticed(world):
    """The correlation above is no accident of smooth pictures: half a degree of error destroys it."""
    turned = (
        look_at(np.zeros(3), np.array([np.sin(0.03), 0.0, np.cos(0.03)]), 0.0) @ world.camera1.T_world_to_cam
    )
    wrong = Camera(K=world.camera1.K, T_world_to_cam=turned, size=world.camera1.size)
    points1, visible = warp_points(world.world, world.camera0, wrong, pixel_grid(world.camera0.size))
    x, y = points1[visible].T.astype(np.float32)[:, None]
    values1 = cv2.remap(grey(world.image1), x, y, cv2.INTER_LINEAR).ravel()
    assert np.corrcoef(grey(world.image0).ravel()[visible], values1)[0, 1] < 0.7


def test_occlusions_and_depth_steps_occur(world):
    points1, visible = warp_points(world.world, world.camera0, world.camera1, pixel_grid(world.camera0.size))
    inside = ((points1 > 0) & (points1 < np.array(world.camera1.size) - 1)).all(axis=1)
    hidden = inside & ~visible & (world.depth0.ravel() > 0)
    assert hidden.mean() > 0.01
    steps = np.abs(np.diff(world.depth0, axis=1)) > 0.5
    assert steps.mean() > 0.003


def test_covisible_shares_agree_with_warping_every_pixel(world):
    shares = covisible_shares(world.world, [world.camera0, world.camera1], grid=40)
    _, visible = warp_points(world.world, world.camera0, world.camera1, pixel_grid(world.camera0.size))
    assert shares[0, 1] == pytest.approx(visible.mean(), abs=0.03)
    assert shares[0, 0] == pytest.approx((world.depth0 > 0).mean(), abs=0.03)


def test_depth_of_another_size_samples_the_same_scene(world):
    small = resized_camera(world.camera0, (80, 90))
    depth = render_depth(world.world, small)
    assert depth.shape == (90, 80)
    points = pixel_grid((80, 90)) * (240 / 80, 180 / 90)  # no half-pixel term, as the datasets scale K
    np.testing.assert_allclose(depth.ravel(), cast_depth(world.world, world.camera0, points), rtol=1e-6)


def test_a_facing_photograph_is_seen_where_the_camera_model_says():
    """One textured quad: the picture equals OpenCV's warp of the texture by the exact homography."""
    photo = np.ascontiguousarray(load_photograph("camera.png")[:512, :512])
    quad = Quad(
        corner=np.array([-1.0, -1.0, 0.3]),
        edge_u=np.array([2.0, 0.0, 0.0]),
        edge_v=np.array([0.0, 2.0, 0.0]),
        texture=0,
    )
    world = World(surfaces=(quad,), atlases=(build_atlas(photo),))
    size = (200, 160)
    K = np.array([[230.0, 0, 98.0], [0, 235.0, 81.0], [0, 0, 1]])
    pose = look_at(np.array([0.5, -0.3, -2.6]), np.array([0.05, 0.0, 0.3]), 0.2)
    camera = Camera(K=K, T_world_to_cam=pose, size=size)
    picture = render_image(world, camera, NOON, np.random.default_rng(0), supersampling=4)
    # texel (i, j) has its centre at ((i + 0.5) / 512, (j + 0.5) / 512) of the quad
    texel_to_world = np.array([[2 / 512, 0, 1 / 512 - 1], [0, 2 / 512, 1 / 512 - 1], [0, 0, 0.3], [0, 0, 1]])
    to_pixel = K @ pose[:3] @ texel_to_world
    smooth = cv2.GaussianBlur(photo, (0, 0), 1.2)
    expected = cv2.warpPerspective(smooth, to_pixel, size, flags=cv2.INTER_LINEAR)
    mask = cv2.warpPerspective(np.full((512, 512), 255, np.uint8), to_pixel, size)
    inside = cv2.erode(mask, np.ones((7, 7), np.uint8)) == 255
    assert inside.sum() > 5000
    difference = picture.astype(int)[inside] - expected.astype(int)[inside]
    assert np.abs(difference).mean() < 6
    shift, _ = cv2.phaseCorrelate(
        np.where(inside, grey(picture), 128).astype(np.float64),
        np.where(inside, grey(expected), 128).astype(np.float64),
    )
    assert np.abs(shift).max() < 0.1


def test_light_changes_the_picture_but_not_the_depth():
    scene = build_scene(
        seed=0,
        dataset="t",
        index=0,
        pool="training",
        images=3,
        image_size=(96, 72),
        texture_px=128,
        lighting_conditions=2,
    )
    camera = scene.cameras[1]
    dim = Lighting(sun_direction=np.array([1.0, 0, 0]), brightness=0.5)
    bright = Lighting(sun_direction=np.array([0, 0, 1.0]), brightness=1.2)
    pictures = [render_image(scene.world, camera, light, np.random.default_rng(0)) for light in (dim, bright)]
    assert pictures[0].mean() < 0.7 * pictures[1].mean()


def test_world_is_a_function_of_its_address():
    first, again, other = (tiny_world(seed, size=(64, 48)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image0, again.image0)
    np.testing.assert_array_equal(first.depth1, again.depth1)
    assert (first.depth0 != other.depth0).mean() > 0.5
    name = scene_name(0, "gl3d", 1)
    assert len(name) == 24
    assert int(name, 16) >= 0
    assert name != scene_name(0, "gl3d", 2)


def test_cameras_turn_by_enough_and_not_too_much():
    scene = build_scene(
        seed=1,
        dataset="t",
        index=0,
        pool="training",
        images=8,
        image_size=(64, 48),
        texture_px=64,
        lighting_conditions=1,
        distorted=True,
    )
    neighbours = []
    for camera0, camera1 in zip(scene.cameras[:-1], scene.cameras[1:], strict=True):
        R = camera1.T_world_to_cam[:3, :3] @ camera0.T_world_to_cam[:3, :3].T
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(R) == pytest.approx(1)
        neighbours.append(np.degrees(np.arccos((np.trace(R) - 1) / 2)))
    assert max(neighbours) < 60
    assert np.median(neighbours) > 5
    assert scene.cameras[0].distortion[0] < 0
