"""Random homographies: closed forms, the published distribution, and what each sampler promises."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.geometry import homography as geometry
from matchlib.photo_pairs.config import AdaptationWarpConfig, DescriptorSpaceWarpConfig, WarpConfig
from matchlib.photo_pairs.homographies import (
    adaptation_homographies,
    descriptor_space_homography,
    frame_corners,
    homography_from_corners,
    inverse,
    overlap_share,
    superpoint_homography,
    view_homographies,
    warp_points,
    with_integer_corners,
)

SIZE = (320, 240)
SEEDS = st.integers(0, 2**32)


def grid(size=SIZE, step=1):
    y, x = np.mgrid[0 : size[1] : step, 0 : size[0] : step]
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)


def is_inside(points, size=SIZE, margin=1e-6):
    limit = np.array(size) - 1
    return ((points >= -margin) & (points <= limit + margin)).all(axis=1)


# ---------------------------------------------------------------- closed forms
@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_four_points_determine_the_homography_as_in_opencv(seed):
    random = np.random.default_rng(seed)
    points0 = frame_corners(SIZE) + random.uniform(-30, 30, (4, 2))
    points1 = frame_corners(SIZE) + random.uniform(-30, 30, (4, 2))
    H = homography_from_corners(points0, points1)
    np.testing.assert_allclose(warp_points(points0, H), points1, atol=1e-9)
    expected = cv2.getPerspectiveTransform(points0.astype(np.float32), points1.astype(np.float32))
    np.testing.assert_allclose(warp_points(grid(step=40), H), warp_points(grid(step=40), expected), atol=1e-2)


def test_the_perspective_factor_alone_stretches_the_shorter_side_to_the_frame():
    config = DescriptorSpaceWarpConfig(max_angle_rad=0.0, scale_ratio=(1.0, 1.0))
    for view, x in ((0, 0.0), (1, 319.0)):
        H = descriptor_space_homography(SIZE, np.random.default_rng(0), config, view=view)
        shorter = np.array([[x, 0.2 * 239], [x, 0.8 * 239]])
        np.testing.assert_allclose(warp_points(shorter, H), [[x, 0], [x, 239]], atol=1e-9)
        whole = np.array([[319 - x, 0], [319 - x, 239.0]])
        np.testing.assert_allclose(warp_points(whole, H), whole, atol=1e-9)


def test_the_rotation_factor_alone_is_a_similarity_that_shows_no_border():
    config = DescriptorSpaceWarpConfig(
        perspective_ratio=(1.0, 1.0), scale_ratio=(1.0, 1.0), max_angle_rad=0.6
    )
    for seed in range(20):
        H = descriptor_space_homography(SIZE, np.random.default_rng(seed), config, view=0)
        np.testing.assert_allclose(H[2], [0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(H[0, :2], [H[1, 1], -H[1, 0]], atol=1e-9)  # turns and scales, no more
        np.testing.assert_allclose(warp_points(np.array([[159.5, 119.5]]), H), [[159.5, 119.5]], atol=1e-9)
        back = warp_points(frame_corners(SIZE), inverse(H))
        assert is_inside(back).all()
        on_edge = np.isclose(back, 0, atol=1e-6) | np.isclose(back, [319, 239], atol=1e-6)
        assert on_edge.any()  # the largest that fits


def test_the_scale_factor_alone_is_a_rectangle_inside_the_frame():
    config = DescriptorSpaceWarpConfig(
        perspective_ratio=(1.0, 1.0), max_angle_rad=0.0, scale_ratio=(0.5, 0.8)
    )
    for seed in range(20):
        H = descriptor_space_homography(SIZE, np.random.default_rng(seed), config, view=0)
        back = warp_points(frame_corners(SIZE), inverse(H))
        assert is_inside(back).all()
        ratio = (back[2] - back[0]) / (319, 239)
        assert ratio[0] == pytest.approx(ratio[1])
        assert 0.5 <= ratio[0] <= 0.8


def test_without_any_amplitude_both_samplers_give_what_is_left():
    still = AdaptationWarpConfig(
        patch_ratio=1.0,
        perspective_amplitude_x=0.0,
        perspective_amplitude_y=0.0,
        scale_amplitude=0.0,
        translation=False,
        max_angle_rad=0.0,
    )
    H = superpoint_homography(SIZE, np.random.default_rng(0), still)
    np.testing.assert_allclose(H, np.eye(3), atol=1e-12)
    # A patch of half the size moves within the frame but is not enlarged: patch and view have the same pitch.
    shifted = dataclasses.replace(still, patch_ratio=0.5, translation=True)
    H = superpoint_homography(SIZE, np.random.default_rng(0), shifted)
    np.testing.assert_allclose(H[:2, :2], np.eye(2), atol=1e-12)
    assert 0 < np.abs(H[0, 2]) <= 80 and 0 < np.abs(H[1, 2]) <= 60


def test_integer_corners_are_cut_toward_zero():
    H = descriptor_space_homography(SIZE, np.random.default_rng(3), DescriptorSpaceWarpConfig(), view=0)
    corners = warp_points(frame_corners(SIZE), H)
    refined = warp_points(frame_corners(SIZE), with_integer_corners(H, SIZE))
    np.testing.assert_allclose(refined, np.fix(corners), atol=1e-8)
    assert (np.abs(refined) <= np.abs(corners) + 1e-8).all() and not np.allclose(refined, corners)


# ---------------------------------------------------------------- the published distribution
def test_descriptor_space_views_are_distributed_as_measured_on_the_original():
    overlaps, scales, angles = [], [], []
    for seed in range(300):
        H_0, H_1 = view_homographies(SIZE, np.random.default_rng(seed), WarpConfig())
        H = H_1 @ inverse(H_0)
        points = grid(step=4)
        overlaps.append(overlap_share(H_0, H_1, SIZE))
        seen = points[is_inside(warp_points(points, H))]
        scales.append(geometry.local_scale(torch.from_numpy(H), torch.from_numpy(seen)).numpy())
        start, end = warp_points(np.array([[159.5, 119.5], [160.5, 119.5]]), H)
        angles.append(np.degrees(np.arctan2(*(end - start)[::-1])))
        for view in (H_0, H_1):  # no black border
            assert is_inside(warp_points(points, inverse(view))).all()
    quantiles = np.quantile(np.concatenate(scales), [0, 0.05, 0.5, 0.95, 1])
    assert np.mean(overlaps) == pytest.approx(0.84, abs=0.025)
    assert 0.5 < np.min(overlaps) < 0.7  # measured: 0.63
    np.testing.assert_allclose(quantiles, [0.40, 0.56, 0.85, 1.63, 2.43], rtol=0.06)
    assert np.std(angles) == pytest.approx(6.7, abs=0.5)
    assert np.abs(angles).max() < 20  # measured: 16


# ---------------------------------------------------------------- what the samplers promise
@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([(320, 240), (240, 320), (64, 64)]))
def test_without_artefacts_the_patch_stays_in_the_frame(seed, size):
    config = AdaptationWarpConfig(allow_artifacts=False, patch_ratio=0.6)
    H = superpoint_homography(size, np.random.default_rng(seed), config)
    low, high = 0.2 * np.array(size) - 0.5, 0.8 * np.array(size) - 0.5
    patch = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    source = warp_points(patch, inverse(H))
    assert (source >= -0.5 - 1e-6).all() and (source <= np.array(size) - 0.5 + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["descriptor_space", "superpoint"]))
def test_views_show_what_lies_before_the_horizon_upright_in_orientation(seed, sampler):
    strong = AdaptationWarpConfig(
        patch_ratio=0.5, perspective_amplitude_x=0.24, perspective_amplitude_y=0.24, scale_amplitude=0.9
    )
    middle = np.array([[159.5, 119.5]])
    for superpoint in (AdaptationWarpConfig(), strong):
        config = WarpConfig(sampler=sampler, superpoint=superpoint)
        for H in view_homographies(SIZE, np.random.default_rng(seed), config):
            assert H[2, 2] == pytest.approx(1)
            shown = warp_points(middle, inverse(H))
            assert (shown @ H[2, :2] + H[2, 2] > 0).all() and np.linalg.det(H) > 0


def test_adaptation_starts_with_the_identity_and_follows_its_generator():
    config = AdaptationWarpConfig()
    first = adaptation_homographies(5, SIZE, np.random.default_rng(1), config)
    again = adaptation_homographies(5, SIZE, np.random.default_rng(1), config)
    assert first.shape == (5, 3, 3) and first.dtype == np.float64
    np.testing.assert_array_equal(first[0], np.eye(3))
    np.testing.assert_array_equal(first, again)
    assert len({H.tobytes() for H in first}) == 5
    assert adaptation_homographies(1, SIZE, np.random.default_rng(1), config).shape == (1, 3, 3)


def test_superpoint_angles_reach_both_sides():
    config = AdaptationWarpConfig(
        perspective_amplitude_x=0, perspective_amplitude_y=0, scale_amplitude=0, translation=False
    )
    angles = []
    for seed in range(200):
        H = superpoint_homography((200, 200), np.random.default_rng(seed), config)
        angles.append(np.arctan2(H[1, 0], H[0, 0]))
    assert len({round(angle, 6) for angle in angles}) == 25
    assert max(angles) == pytest.approx(1.57) and min(angles) == pytest.approx(-1.57)


def test_overlap_counts_pixels_that_both_views_show():
    shift = np.eye(3)
    shift[0, 2] = 80.0  # view 1 shows the photograph 80 px further right
    assert overlap_share(np.eye(3), shift, SIZE, step=1) == pytest.approx(240 / 320)
    assert overlap_share(shift, shift, SIZE, step=1) == pytest.approx(240 / 320)  # black on the left of both
    away = np.eye(3)
    away[0, 2] = 1000.0
    assert overlap_share(np.eye(3), away, SIZE) == 0


# ---------------------------------------------------------------- local scale
@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_local_scale_is_the_root_of_the_jacobian_determinant(seed):
    random = np.random.default_rng(seed)
    H = torch.from_numpy(view_homographies(SIZE, random, WarpConfig(sampler="superpoint"))[1])
    points = torch.from_numpy(random.uniform(0, 200, (7, 2)))
    step = 1e-4
    columns = [
        (geometry.warp_points(points + move, H) - geometry.warp_points(points - move, H)) / (2 * step)
        for move in step * torch.eye(2, dtype=torch.float64)
    ]
    jacobian = torch.stack(columns, dim=-1)
    expected = torch.linalg.det(jacobian).abs().sqrt()
    torch.testing.assert_close(geometry.local_scale(H, points), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(geometry.local_scale(-3 * H, points), expected, rtol=1e-6, atol=0)


def test_local_scale_takes_batches_of_points_and_of_grids():
    H = torch.stack([torch.diag(torch.tensor([2.0, 2.0, 1.0])), torch.diag(torch.tensor([3.0, 3.0, 1.0]))])
    points = torch.rand(2, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    scale = geometry.local_scale(H, points)
    assert scale.shape == (2, 5, 4)
    torch.testing.assert_close(scale[0], torch.full((5, 4), 2.0))
    torch.testing.assert_close(geometry.local_scale(H, points[:, 0])[1], torch.full((4,), 3.0))
    torch.testing.assert_close(geometry.local_scale(H[1], points[0, 0]), torch.full((4,), 3.0))
    with pytest.raises(ShapeError, match="H_0to1"):
        geometry.local_scale(H, points[:1])
