from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.completion import read_marker
from matchlib.datasets.gl3d import affine_radius_angle, affine_to_pixel
from matchlib.datasets.pfm import write_pfm
from matchlib.datasets.types import Camera
from matchlib.errors import DataError
from matchlib.match_sets.build import build_match_set
from matchlib.match_sets.config import DepthSourceConfig, MatchSetConfig
from matchlib.match_sets.index import RECORDS, read_pairs, slots_of
from matchlib.match_sets.layout import decode_record, map_records
from matchlib.match_sets.neighbours import mutual_best, pairs_within
from matchlib.match_sets.overlap import overlap_matrix, overlapping_pairs, sparse_view
from matchlib.match_sets.pairs import DepthPosePairs, MatchSetSource
from matchlib.match_sets.sift_frames import detect_frames

OVERLAP = DepthSourceConfig(candidates="overlap")


def load(folder):
    slots = slots_of(folder)
    return read_pairs(folder), [decode_record(r, slots) for r in map_records(folder / RECORDS, slots)]


def plane_map(record):
    """Pixels of image 0 to image 1 over the plane z = 4 of camera 0's world (camera 0 is the world)."""
    T = record.geometry.T_0to1
    normal = np.array([0, 0, 1.0])
    return (
        record.geometry.K1 @ (T[:3, :3] + np.outer(T[:3, 3], normal) / 4) @ np.linalg.inv(record.geometry.K0)
    )


def test_correspondences_lie_on_the_same_point_of_the_plane(build_plane):
    rows, records = load(build_plane(depth=OVERLAP))
    assert [(row.index0, row.index1) for row in rows] == [(0, 1), (0, 2), (1, 2)]
    for row, record in zip(rows[:2], records[:2], strict=True):
        n = row.inliers
        assert n > 60
        first = affine_to_pixel(record.affine0[:n], record.geometry.size0)
        second = affine_to_pixel(record.affine1[:n], record.geometry.size1)
        expected = cv2.perspectiveTransform(first[:, None], plane_map(record))[:, 0]
        error = np.linalg.norm(second - expected, axis=1)
        assert error.max() <= 2.01 and np.median(error) < 1
        assert len(np.unique(first.round(3), axis=0)) > 0.6 * n
        assert (record.labels[:n] == 1).all() and not record.labels[n:].any()


def test_scale_and_orientation_of_correspondences_agree_with_the_warp(build_plane):
    """Camera 2 rolls by 10 degrees, so orientations must turn by about that."""
    rows, records = load(build_plane(depth=OVERLAP))
    n, record = rows[1].inliers, records[1]
    radius0, angle0 = affine_radius_angle(record.affine0[:n], record.geometry.size0)
    radius1, angle1 = affine_radius_angle(record.affine1[:n], record.geometry.size1)
    turned = np.rad2deg(np.angle(np.exp(1j * (angle1 - angle0))))
    assert abs(abs(np.median(turned)) - 10) < 3 and np.ptp(turned) < 70
    assert 0.8 < np.median(radius1 / radius0) < 1.25
    assert rows[1].rot_diff_deg == pytest.approx(np.abs(turned).mean(), rel=1e-3)
    # A carried-over orientation of the wrong sign would be 20 degrees off.
    strict, _ = load(build_plane(out="strict", depth=DepthSourceConfig(max_angle_difference_deg=8)))
    assert strict[1].inliers > 0.5 * n


def cut_patches(image, frames):
    """(N, 16, 16) patches: the square [-1, 1]^2 sampled through each frame, as GL3D defines it."""
    u, v = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16))
    half = np.array(image.shape[::-1]) / 2
    patches = []
    for a in frames.astype(np.float64):
        x = (a[0] * u + a[1] * v + a[2] + 1) * half[0]
        y = (a[3] * u + a[4] * v + a[5] + 1) * half[1]
        patches.append(cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR))
    return np.array(patches, dtype=np.float64)


def test_patches_cut_by_frames_do_not_see_that_the_picture_was_turned(texture):
    """A wrong sign of the orientation would leave the patches of a quarter turn 180 degrees apart."""
    image = np.ascontiguousarray(texture[300:500, 400:640])
    turned = np.ascontiguousarray(np.rot90(image))  # (x, y) goes to (y, 239 - x)
    config = DepthSourceConfig(max_keypoints=300)
    frames0, frames1 = (detect_frames(np.repeat(im[:, :, None], 3, axis=2), config) for im in (image, turned))
    xy0, xy1 = affine_to_pixel(frames0, (240, 200)), affine_to_pixel(frames1, (200, 240))
    radius0, angle0 = affine_radius_angle(frames0, (240, 200))
    radius1, angle1 = affine_radius_angle(frames1, (200, 240))
    expected = np.stack([xy0[:, 1], 239 - xy0[:, 0]], axis=1)
    i, j, _ = pairs_within(expected, xy1, 1.0)
    same = np.abs(np.log(radius1[j] / radius0[i])) < 0.05
    quarter = np.angle(np.exp(1j * (angle1[j] - angle0[i])))
    # A picture turned anticlockwise turns gradients anticlockwise: +90 degrees where the angle grows that
    # way.
    assert np.mean(np.abs(quarter[same] - np.pi / 2) < 0.1) > 0.5
    same &= np.abs(quarter - np.pi / 2) < 0.1
    patches0, patches1 = cut_patches(image, frames0[i[same]]), cut_patches(turned, frames1[j[same]])
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(patches0, patches1, strict=True)]
    assert len(correlation) > 50 and np.median(correlation) > 0.95


def test_frames_measure_the_size_of_a_blob():
    y, x = np.mgrid[0:101, 0:101]
    image = 200 * np.exp(-((x - 50) ** 2 + (y - 50) ** 2) / (2 * 6**2)) + 0.5 * (0.8 * x + 0.6 * y)
    frames = detect_frames(np.repeat(image.astype(np.uint8)[:, :, None], 3, axis=2), DepthSourceConfig())
    centres = affine_to_pixel(frames, (101, 101))
    best = int(np.linalg.norm(centres - 50, axis=1).argmin())
    np.testing.assert_allclose(centres[best], [50, 50], atol=2.5)
    radius, _ = affine_radius_angle(frames, (101, 101))
    assert 6 * 6 < radius[best] < 6 * 16  # 10.6 sigma of a blob whose sigma is about 6


def test_pairs_come_from_the_dataset_or_from_overlap(build_plane, caplog):
    caplog.set_level(logging.INFO)
    proposed, _ = load(build_plane(out="a"))
    assert [(row.index0, row.index1, row.overlap) for row in proposed] == [(0, 1, None), (0, 2, None)]
    assert (
        "1 fewer than 3 correspondences" in caplog.text
    )  # the proposed pair with the camera that looks away
    measured, _ = load(build_plane(out="b", depth=OVERLAP))
    assert all(0.3 < row.overlap <= 1 for row in measured)


def test_the_absolute_check_and_the_radius_are_what_they_say(build_plane):
    def inliers(out: str, **depth: object) -> list[int]:
        folder = build_plane(out=out, slots=4096, depth=DepthSourceConfig(**depth))
        return [row.inliers for row in load(folder)[0]] or [0]

    wide, narrow = inliers("a")[0], inliers("b", match_radius_px=0.5)[0]
    absolute = inliers("c", depth_check="absolute", depth_threshold=1e-9)[0]
    assert narrow < wide
    assert absolute < narrow


def test_bad_files_are_counted_and_named(build_plane, plane_scene, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    write_pfm(
        plane_scene / "plane" / "rendered_depth_maps" / "00000001.pfm", np.zeros((180, 240), np.float32)
    )
    jpeg = plane_scene / "plane" / "blended_images" / "00000002.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:500])
    with pytest.raises(DataError, match="2 of 4 images cannot be used"):
        build_plane()
    assert not (tmp_path / "out" / ".complete").exists()
    rows, _ = load(build_plane(max_unreadable_share=0.5))
    assert rows == []
    assert "00000001.pfm: no depth above 0" in caplog.text and "00000002.jpg: truncated JPEG" in caplog.text
    assert "0 pairs kept, 3 dropped: 1 depth all zero" in caplog.text


def test_keypoints_are_not_detected_twice_and_results_are_reproducible(build_plane, monkeypatch):
    import matchlib.match_sets.from_depth as from_depth

    undisturbed = read_marker(build_plane(out="undisturbed"))
    calls = []
    detect = from_depth.detect_frames

    def counted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return detect(*args)

    monkeypatch.setattr(from_depth, "detect_frames", counted)
    with pytest.raises(KeyboardInterrupt):
        build_plane()
    assert read_marker(build_plane()) == undisturbed
    assert len(calls) == 3 + 2  # two were kept, the third and fourth are detected now


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.05, 4), st.integers(0, 10_000))
def test_pairs_within_a_radius_are_all_pairs_within_it(n, m, radius, seed):
    rng = np.random.default_rng(seed)
    points0, points1 = rng.uniform(-5, 5, (n, 2)), rng.uniform(-5, 5, (m, 2))
    i, j, distance = pairs_within(points0, points1, radius)
    all_distances = np.linalg.norm(points0[:, None] - points1[None], axis=2)
    expected = np.argwhere(all_distances <= radius)
    np.testing.assert_array_equal(np.stack([i, j], axis=1).reshape(-1, 2), expected)
    np.testing.assert_allclose(distance, all_distances[i, j])


def test_mutual_best_needs_both_sides():
    i, j = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 0, 2, 3])
    cost = np.array([1.0, 2.0, 0.5, 3.0, 3.0])
    assert mutual_best(i, j, cost).tolist() == [False, False, True, True, False]


def test_overlap_of_the_same_view_is_one_and_of_opposite_views_zero():
    K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    same = Camera(K=K, T_world_to_cam=np.eye(4), size=(100, 80))
    behind = Camera(K=K, T_world_to_cam=np.diag([-1.0, 1, -1, 1]), size=(100, 80))
    aside = np.eye(4)
    aside[0, 3] = -1.0  # at depth 2 and f = 100 this shifts by half of the 100 px
    depth = np.full((80, 100), 2.0, np.float32)
    cameras = (same, same, behind, Camera(K=K, T_world_to_cam=aside, size=(100, 80)))
    views = [sparse_view(depth, camera, 20) for camera in cameras]
    overlap = overlap_matrix(views)
    assert overlap[0, 1] == 1 and overlap[0, 2] == 0 and overlap[0, 3] == pytest.approx(0.5, abs=0.06)
    first, second, share = overlapping_pairs(overlap, np.array([4, 5, 6, 9]), 0.3)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(4, 5), (4, 9), (5, 9)]
    assert share[0] == 1
    unknown = sparse_view(np.zeros_like(depth), same, 20)
    assert not overlap_matrix([unknown, views[0]]).any()


def test_a_real_scene_becomes_a_match_set_and_training_pairs(shared_data, tmp_path):
    root = shared_data("rgbd_box")
    build_match_set(
        dataset_format="rgbd",
        root=root,
        scene=".",
        out=tmp_path / "box",
        config=MatchSetConfig(slots=256),
        seed=0,
    )
    rows, _ = load(tmp_path / "box")
    assert len(rows) == 6 and all(row.inliers >= 30 for row in rows)
    # Pose files say how the cameras turned; 5.16 degrees between the first two frames.
    assert rows[0].rotation_deg == pytest.approx(5.16, abs=0.01)
    source = MatchSetSource(dataset_format="rgbd", root=root, scene=".", folder=tmp_path / "box")
    batch = DepthPosePairs([source], size=(240, 240)).load(0, 3)
    assert batch.names == ("rgbd_box/00000000-00000001",) and batch.seeds == (3,)
    assert batch.image0.shape == (1, 3, 240, 240) and (batch.depth0 > 0).float().mean() > 0.5
