from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest

from matchlib.completion import read_marker, verify_folder
from matchlib.datasets.gl3d import affine_to_pixel, read_cameras, read_corr, read_keypoints
from matchlib.errors import ConfigError
from matchlib.match_sets.build import build_match_set
from matchlib.match_sets.config import MatchSetConfig
from matchlib.match_sets.index import RECORDS, read_images, read_pairs, slots_of
from matchlib.match_sets.layout import decode_record, map_records

SCENE = "0123456789abcdef01234567"


def load(folder):
    slots = slots_of(folder)
    return read_pairs(folder), [decode_record(r, slots) for r in map_records(folder / RECORDS, slots)]


def test_which_pairs_are_kept_and_why_others_are_not(build_corr, caplog):
    """Pair 4 turns by 2 degrees; pair 2 has 3 correspondences, and 64 slots times 0.1 asks for 7."""
    caplog.set_level(logging.INFO)
    rows, _ = load(build_corr())
    assert [(r.pair, r.index0, r.index1, r.inliers) for r in rows] == [
        (0, 0, 1, 30),
        (1, 0, 2, 12),
        (3, 2, 3, 64),
    ]
    assert [round(r.rotation_deg, 4) for r in rows] == [10, 25, 23]
    closing = "3 pairs kept, 2 dropped: 1 fewer than 7 correspondences, 1 rotation below 3 deg"
    assert closing in caplog.text


def test_geometry_of_a_record_against_the_camera_file(build_corr, corr_scene):
    rows, records = load(build_corr())
    cameras = read_cameras(corr_scene / "data" / SCENE / "geolabel" / "cameras.txt")
    for row, record in zip(rows, records, strict=True):
        camera0, camera1 = cameras[row.index0], cameras[row.index1]
        geometry = record.geometry
        assert geometry.global_index == (10 + row.index0, 10 + row.index1)
        assert geometry.size0 == geometry.size1 == (800, 600) and geometry.inliers == row.inliers
        np.testing.assert_allclose(geometry.K0, camera0.K, rtol=1e-6)
        expected = camera1.T_world_to_cam @ np.linalg.inv(camera0.T_world_to_cam)
        np.testing.assert_allclose(geometry.T_0to1, expected, atol=1e-6)
        t = expected[:3, 3]
        E = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]]) @ expected[:3, :3]
        np.testing.assert_allclose(geometry.E_0to1, E / np.linalg.norm(E), atol=1e-6)


def test_rows_are_undistorted_keypoints_matched_first_and_noise_after(build_corr, corr_scene):
    rows, records = load(build_corr())
    folder = corr_scene / "data" / SCENE
    cameras = read_cameras(folder / "geolabel" / "cameras.txt")
    corr = list(read_corr(folder / "geolabel" / "corr.bin"))
    for row, record in zip(rows[:2], records[:2], strict=True):
        matched = corr[row.pair].rows[:, 13:15].astype(int)
        for side, (index, block) in enumerate(((row.index0, record.affine0), (row.index1, record.affine1))):
            frames, camera = read_keypoints(folder / "img_kpts" / f"{index:08d}.bin"), cameras[index]
            pixels = affine_to_pixel(frames, camera.size)
            k1, k2, k3 = camera.distortion
            # OpenCV knows no skew: undistort on the plane z = 1.
            plane = np.linalg.solve(camera.K, np.c_[pixels, np.ones(120)].T).T[:, None, :2]
            criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-14)
            plane = cv2.undistortPoints(plane, np.eye(3), np.array([k1, k2, 0, 0, k3]), criteria=criteria)
            straight = (np.c_[plane[:, 0], np.ones(120)] @ camera.K.T)[:, :2]
            stored = affine_to_pixel(block, camera.size)
            np.testing.assert_allclose(stored[: row.inliers], straight[matched[:, side]], atol=1e-3)
            np.testing.assert_array_equal(
                block[: row.inliers, [0, 1, 3, 4]], frames[matched[:, side]][:, [0, 1, 3, 4]]
            )
            # Noise: every row is a keypoint that has no match, and none occurs twice.
            nearest = np.linalg.norm(stored[row.inliers :, None] - straight[None], axis=2)
            assert nearest.min(axis=1).max() < 1e-3
            noise = nearest.argmin(axis=1)
            assert len(set(noise.tolist())) == 64 - row.inliers
            assert not set(noise.tolist()) & set(matched[:, side].tolist())
        similarity = corr[row.pair].rows[:, 12]
        np.testing.assert_array_equal(
            record.labels[: row.inliers], np.where(np.isnan(similarity), 1, similarity)
        )
        assert not record.labels[row.inliers :].any()


def test_too_many_correspondences_are_thinned_at_random_but_stay_pairs(build_corr, corr_scene):
    rows, records = load(build_corr())
    other = load(build_corr(out="other", seed=1))[1]
    assert rows[2].inliers == 64 and not np.array_equal(records[2].affine0, other[2].affine0)
    corr = list(read_corr(corr_scene / "data" / SCENE / "geolabel" / "corr.bin"))[3].rows
    # The 2x2 parts are copied unchanged, so they tell which correspondence a row came from.
    known = {tuple(r[[0, 1, 3, 4]]): tuple(r[[6, 7, 9, 10]]) for r in corr}
    for affine0, affine1 in zip(records[2].affine0, records[2].affine1, strict=True):
        assert known[tuple(affine0[[0, 1, 3, 4]])] == tuple(affine1[[0, 1, 3, 4]])


def test_equal_seeds_give_equal_bytes(build_corr):
    first, second, third = build_corr(), build_corr(out="second"), build_corr(out="third", seed=7)
    assert read_marker(first) == read_marker(second)
    assert read_marker(first).files[RECORDS] != read_marker(third).files[RECORDS]
    assert verify_folder(first) == []


def test_a_draw_depends_on_its_pair_only(build_corr):
    """Other thresholds drop other pairs; the pairs that stay keep their bytes."""
    few = dict(
        zip([r.pair for r in load(build_corr())[0]], map_records(build_corr() / RECORDS, 64), strict=True)
    )
    folder = build_corr(out="more", min_rotation_deg=0)
    rows, _ = load(folder)
    assert len(rows) == 4
    for row, record in zip(rows, map_records(folder / RECORDS, 64), strict=True):
        if row.pair in few:
            np.testing.assert_array_equal(record, few[row.pair])


def test_tfmatch_angles_are_whole_degrees_and_unwrapped(build_corr, corr_scene):
    exact, _ = load(build_corr())
    upstream, records = load(build_corr(out="tf", angles="tfmatch"))
    th0 = np.arctan2(records[0].affine0[:30, 1], records[0].affine0[:30, 0])
    th1 = np.arctan2(records[0].affine1[:30, 1], records[0].affine1[:30, 0])
    assert upstream[0].rot_diff_deg == int(np.abs(th0 - th1).mean() * 180 / 3.14)
    wrapped = np.abs(np.angle(np.exp(1j * (th0 - th1).astype(np.float64))))
    assert exact[0].rot_diff_deg == pytest.approx(np.rad2deg(wrapped.mean()), rel=1e-4)
    assert exact[0].rot_diff_deg < upstream[0].rot_diff_deg  # random orientations wrap often
    assert [r.rotation_deg for r in upstream] == [10, 25, 23]


def test_limits_and_noise_can_be_switched(build_corr):
    assert len(load(build_corr(out="a", max_pairs=1))[0]) <= 1
    assert len(load(build_corr(out="b", max_rotation_deg=24))[0]) == 2
    assert len(load(build_corr(out="c", min_keypoints=121))[0]) == 0
    rows, records = load(build_corr(out="d", noise=False))
    assert (rows[0].rows0, rows[0].rows1) == (30, 30) and not records[0].affine0[30:].any()
    rows, records = load(build_corr(out="e", slots=110))
    assert (rows[0].rows0, rows[0].inliers) == (110, 30)
    rows, records = load(build_corr(out="f", slots=128))
    assert (rows[0].rows0, rows[0].rows1) == (120, 120) and not records[0].affine1[120:].any()


def test_by_default_an_image_needs_as_many_keypoints_as_there_are_slots(build_corr):
    assert len(load(build_corr(out="a", min_keypoints=None, slots=120))[0]) == 3
    assert len(load(build_corr(out="b", min_keypoints=None, slots=121))[0]) == 0


def test_images_are_named_relative_to_the_root(build_corr, corr_scene, tmp_path):
    folder = build_corr()
    assert "undist_images/00000003.jpg" in (folder / "images.csv").read_text()
    assert str(tmp_path) not in (folder / "images.csv").read_text()
    image, depth = read_images(folder, corr_scene)[3]
    assert image.is_file() and depth is not None and depth.is_file()


def test_a_format_without_scenes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="format 'hpatches' gives homography"):
        build_match_set(
            dataset_format="hpatches",
            root=tmp_path,
            scene="x",
            out=tmp_path / "o",
            config=MatchSetConfig(),
            seed=0,
        )
    with pytest.raises(ConfigError, match="unknown dataset format 'gl4d'"):
        build_match_set(
            dataset_format="gl4d",
            root=tmp_path,
            scene="x",
            out=tmp_path / "o",
            config=MatchSetConfig(),
            seed=0,
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 0},
        {"min_rotation_deg": 50, "max_rotation_deg": 40},
        {"min_inlier_ratio": 2},
        {"max_pairs": 0},
    ],
)
def test_impossible_settings_name_the_key(settings):
    with pytest.raises(ConfigError, match=f"match_sets.{next(iter(settings))}"):
        MatchSetConfig(**settings)
