"""Synthetic Shapes: what is drawn against what is labelled, and the pictures that training reads."""

from __future__ import annotations

import dataclasses
import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError, ShapeError
from matchlib.methods.superpoint.config import SuperPointConfig
from matchlib.methods.superpoint.shapes import PRIMITIVES, draw_shape, render_shape
from matchlib.methods.superpoint.shapes_canvas import contrasting_grey, draw_background
from matchlib.methods.superpoint.shapes_lattices import draw_checkerboard, draw_cube, draw_stripes
from matchlib.methods.superpoint.shapes_pairs import (
    ShapesBatch,
    ShapesPictures,
    build_pairs,
    picture_count,
    warp_picture,
)
from matchlib.methods.superpoint.shapes_primitives import (
    corner_angles,
    draw_ellipses,
    draw_lines,
    draw_polygon,
    draw_polygons,
    draw_star,
)
from matchlib.methods.superpoint.training_config import ShapesConfig, TrainingConfig
from matchlib.photo_pairs.config import AdaptationWarpConfig
from matchlib.photo_pairs.homographies import superpoint_homography
from matchlib.randomness import generator_for

WIDTH, HEIGHT = 640, 480
SMALL = ShapesConfig(draw_size=(WIDTH, HEIGHT))
WITH_CORNERS = tuple(name for name in PRIMITIVES if name not in ("ellipses", "noise"))


def blank(grey: int = 100) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), grey, np.uint8)


def labels_per_component(image: np.ndarray, labels: np.ndarray) -> list[int]:
    """How many labels lie on each connected drawn part of an image that was plain 100 before."""
    count, parts = cv2.connectedComponents((image != 100).astype(np.uint8), connectivity=8)
    owner = parts[labels[:, 1].astype(int), labels[:, 0].astype(int)]
    return [int((owner == part).sum()) for part in range(count)]


# ---------------------------------------------------------------- all kinds
@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("size", [(320, 240), (203, 301), (64, 64)])
def test_every_kind_draws_with_labels_inside(primitive, size):
    config = ShapesConfig(draw_size=size)
    for seed in range(20):
        image, points = draw_shape(primitive, generator_for(seed, primitive), config)
        assert image.shape == size[::-1] and image.dtype == np.uint8
        assert points.dtype == np.float32 and points.shape[1:] == (2,)
        assert (points >= 0).all() and (points <= np.array(size) - 1).all()
        assert image.std() > 0


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_picture_is_a_function_of_its_seed(primitive):
    first, again, other = (
        render_shape(primitive, generator_for(seed, "same"), SMALL, size=(80, 64)) for seed in (3, 3, 4)
    )
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("primitive", ["ellipses", "noise"])
def test_what_has_no_corners_has_no_labels(primitive):
    for seed in range(5):
        assert len(draw_shape(primitive, generator_for(seed), SMALL)[1]) == 0


@pytest.mark.parametrize("primitive", WITH_CORNERS)
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (160, 120)])
def test_labels_lie_on_corners_of_the_picture(primitive, size):
    """The smaller eigenvalue of the structure tensor, near labels against near random places."""
    at_labels, elsewhere = [], []
    for seed in range(25):
        generator = generator_for(seed, primitive, "corners")
        image, points = render_shape(primitive, generator, SMALL, size=size)
        response = cv2.dilate(cv2.cornerMinEigenVal(image, 5), np.ones((5, 5)))
        random = generator.integers(0, size, (40, 2))
        column, row = points.round().astype(int).T
        at_labels += list(response[row, column])
        elsewhere += list(response[random[:, 1], random[:, 0]])
    assert len(at_labels) >= 25
    # Textured polygons may happen to have the grey of what lies behind a corner; the others may not.
    share = 0.6 if primitive == "polygons" else 0.9
    assert np.mean(np.array(at_labels) > np.percentile(elsewhere, 80)) >= share


def test_an_unknown_kind_is_refused():
    with pytest.raises(ShapeError, match="expected one of lines, .*got 'triangle'"):
        draw_shape("triangle", generator_for(0), SMALL)


# ---------------------------------------------------------------- each kind
@pytest.mark.parametrize("seed", range(15))
def test_each_line_is_a_part_of_its_own_with_two_ends(seed):
    image = blank()
    ends = draw_lines(image, generator_for(seed, "lines"))
    background, *lines = labels_per_component(image, ends)
    assert background == 0
    assert lines == [2] * (len(ends) // 2)


@pytest.mark.parametrize("seed", range(15))
def test_a_star_is_one_part_whose_tips_are_its_farthest_points(seed):
    image = blank()
    centre, *tips = draw_star(image, generator_for(seed, "star"))
    assert labels_per_component(image, np.array([centre, *tips])) == [0, 1 + len(tips)]
    assert 3 <= len(tips) <= 5
    row, column = np.nonzero(image != 100)
    reach = np.hypot(column - centre[0], row - centre[1]).max()
    thickness = 0.02 * HEIGHT
    assert reach <= max(np.hypot(*(tip - centre)) for tip in tips) + thickness


@pytest.mark.parametrize("seed", range(15))
def test_a_polygon_covers_the_area_between_its_labels_and_has_no_blunt_corner(seed):
    image = blank()
    corners = draw_polygon(image, generator_for(seed, "polygon"))
    assert 3 <= len(corners) <= 7
    assert corner_angles(corners).max() < np.deg2rad(120)
    area = cv2.contourArea(corners.astype(np.float32))
    rim = cv2.arcLength(corners.astype(np.float32), True)
    assert area <= (image != 100).sum() <= area + rim + 2  # filling includes the pixels of the outline


def test_polygons_have_different_numbers_of_corners():
    counts = {len(draw_polygon(blank(), generator_for(seed, "polygon"))) for seed in range(60)}
    assert {3, 4, 5} <= counts


def test_angles_of_a_known_polygon():
    arrow = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [3.0, 1.0]])  # the last corner points inward
    expected = [np.arctan2(1, 3), np.pi / 2, np.arctan2(1, 3), np.pi / 2 + 2 * np.arctan2(1, 3)]
    np.testing.assert_allclose(corner_angles(arrow), expected)


@pytest.mark.parametrize("seed", range(10))
def test_several_polygons_do_not_touch(seed):
    """Each connected part of the drawing has the corners of one polygon."""
    image = blank()
    corners = draw_polygons(image, generator_for(seed, "polygons"))
    assert len(corners) >= 6
    _, parts = cv2.connectedComponents((image != 100).astype(np.uint8))
    owner = parts[corners[:, 1].astype(int), corners[:, 0].astype(int)]
    # Labels come polygon by polygon; a texture may leave a corner at the grey of the background (owner 0).
    changes = [part for part in owner if part]
    runs = [part for index, part in enumerate(changes) if index == 0 or changes[index - 1] != part]
    assert len(runs) == len(set(runs))


def test_ellipses_do_not_touch_the_border():
    for seed in range(10):
        image = blank()
        draw_ellipses(image, generator_for(seed))
        drawn = image != 100
        assert drawn.any()
        assert not (drawn[0].any() or drawn[-1].any() or drawn[:, 0].any() or drawn[:, -1].any())


def fitted_board(points: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Rows, columns and homography (cell units to pixels) of a lattice given row by row."""
    fits = []
    for rows in range(3, 7):
        columns = len(points) // (rows + 1) - 1
        if (rows + 1) * (columns + 1) != len(points) or not 3 <= columns <= 6:
            continue
        y, x = np.mgrid[: rows + 1, : columns + 1]
        flat = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
        H, _ = cv2.findHomography(flat, points)
        mapped = cv2.perspectiveTransform(flat[None], H)[0]
        fits.append((float(np.abs(mapped - points).max()), rows, columns, H))
    error, rows, columns, H = min(fits, key=lambda fit: fit[0])
    assert error < 1.0  # corners are whole pixels
    return rows, columns, H


@pytest.mark.parametrize("seed", range(15))
def test_a_checkerboard_is_a_plane_lattice_whose_neighbours_differ(seed):
    image = blank()
    points = draw_checkerboard(image, generator_for(seed, "board"))
    rows, columns, H = fitted_board(points)
    centres = np.stack(np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5), axis=-1)
    places = cv2.perspectiveTransform(centres.reshape(1, -1, 2), H)[0].round().astype(int)
    inside = ((places >= 0) & (places < (WIDTH, HEIGHT))).all(axis=1)
    clipped = places.clip(0, (WIDTH - 1, HEIGHT - 1))
    grey = np.where(inside, image[clipped[:, 1], clipped[:, 0]].astype(float), np.nan).reshape(rows, columns)
    steps = np.concatenate([np.diff(grey, axis=0).ravel(), np.diff(grey, axis=1).ravel()])
    # 50 wherever 256 levels allow it; three levels can be spaced so that no fourth is 50 from all of them.
    assert np.nanmin(np.abs(steps)) >= 42


@pytest.mark.parametrize("seed", range(15))
def test_stripes_end_on_two_straight_lines(seed):
    ends = draw_stripes(blank(), generator_for(seed, "stripes"))
    for side in (ends[: len(ends) // 2], ends[len(ends) // 2 :]):
        centred = side - side.mean(axis=0)
        assert np.linalg.svd(centred, compute_uv=False)[1] / np.sqrt(len(side)) < 0.6  # whole pixels


@pytest.mark.parametrize("seed", range(20))
def test_a_cube_shows_the_seven_corners_of_a_parallel_projection(seed):
    image = blank()
    points = draw_cube(image, generator_for(seed, "cube"))
    assert points.shape == (7, 2)
    outline = cv2.convexHull(points.astype(np.float32), returnPoints=False).ravel()
    assert len(outline) == 6
    v = points[outline]
    for side in range(3):  # opposite edges of the outline are the same edge of the box, moved
        np.testing.assert_allclose(v[side + 1] - v[side], v[side + 3] - v[(side + 4) % 6], atol=2.01)
    inner = points[np.setdiff1d(np.arange(7), outline)[0]]
    candidates = [v[k] + v[(k + 2) % 6] - v[(k + 1) % 6] for k in (0, 1)]  # the visible and the hidden one
    assert min(np.abs(inner - candidate).max() for candidate in candidates) <= 2.01


# ---------------------------------------------------------------- canvas
@given(
    others=st.lists(st.integers(0, 255), max_size=5),
    contrast=st.integers(1, 128),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_a_contrasting_grey_differs_as_much_as_asked_or_as_possible(others, contrast, seed):
    grey = contrasting_grey(generator_for(seed), *others, least_contrast=contrast)
    possible = max(min((abs(level - other) for other in others), default=255) for level in range(256))
    assert 0 <= grey <= 255
    assert min((abs(grey - other) for other in others), default=255) >= min(contrast, possible)


def test_a_background_is_soft():
    background = draw_background((WIDTH, HEIGHT), generator_for(0)).astype(float)
    assert np.abs(np.diff(background, axis=0)).max() <= 8
    assert background.std() > 1


# ---------------------------------------------------------------- resizing
def test_labels_move_with_the_picture_when_it_is_resized():
    config = dataclasses.replace(SMALL, blur=1)
    for seed in range(10):
        drawn, sharp = draw_shape("checkerboard", generator_for(seed), config)
        resized, points = render_shape("checkerboard", generator_for(seed), config, size=(320, 120))
        expected = (sharp + 0.5) * [0.5, 0.25] - 0.5
        kept = (expected >= 0).all(axis=1) & (expected <= [319, 119]).all(axis=1)
        np.testing.assert_allclose(points, expected[kept], atol=1e-4)
        # Independent of the formula: averages of 2 x 4 pixels are what area interpolation gives.
        means = drawn.reshape(120, 4, 320, 2).mean(axis=(1, 3))
        assert np.abs(resized - means).max() <= 1


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draw_size": (1280, 40)}, "shapes.draw_size"),
        ({"blur": 0}, "shapes.blur"),
        ({"train_pictures": 0}, "shapes.train_pictures"),
        ({"noise_share": 1.5}, "shapes.noise_share"),
        ({"border_px": -1}, "shapes.border_px"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ShapesConfig(**change)


# ---------------------------------------------------------------- pairs
def pictures(subset="train", size=(80, 56), **changes) -> ShapesPictures:
    shapes = ShapesConfig(draw_size=(320, 240), train_pictures=10, validation_pictures=4, **changes)
    return build_pairs(SuperPointConfig(training=TrainingConfig(shapes=shapes)), subset, size, 0)


def test_published_numbers_of_pictures():
    counts = {kind: picture_count(kind, ShapesConfig(), "train") for kind in PRIMITIVES}
    cut = {"ellipses": 3000, "stripes": 2000, "noise": 1000}
    assert counts == {kind: cut.get(kind, 10_000) for kind in PRIMITIVES}
    assert picture_count("star", ShapesConfig(), "validation") == 200


def test_every_picture_has_one_address():
    source = pictures()
    addresses = [source.address(index) for index in range(len(source))]
    expected = {kind: picture_count(kind, source.config, "train") for kind in PRIMITIVES}
    assert set(addresses) == {(kind, number) for kind, count in expected.items() for number in range(count)}
    assert len(set(addresses)) == len(source)
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source.address(index)


def test_a_picture_keeps_its_content_when_the_mixture_changes():
    source, other = pictures("validation"), pictures("validation", ellipses_share=1.0, noise_share=0.0)
    place, other_place = (
        next(i for i in range(len(s)) if s.address(i) == ("cube", 2)) for s in (source, other)
    )
    assert place != other_place
    assert torch.equal(source.load(place, 0).image, other.load(other_place, 1).image)
    assert source.digest != other.digest


def test_training_pictures_follow_the_seed_and_validation_pictures_do_not():
    train, validation = pictures(), pictures("validation")
    first, again, other = (train.load(5, seed) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image) and torch.equal(first.keypoints[0], again.keypoints[0])
    assert not torch.equal(first.image, other.image)
    assert torch.equal(validation.load(5, 1).image, validation.load(5, 2).image)
    assert validation.load(5, 1).valid.all()


def test_changes_can_be_switched_off():
    plain = pictures(warped=False, photometric_changes=False)
    assert torch.equal(plain.load(3, 1).image, plain.load(3, 2).image)
    only_warped = pictures(photometric_changes=False).load(3, 1)
    assert not torch.equal(only_warped.image, plain.load(3, 1).image)


@pytest.mark.parametrize("seed", range(10))
def test_labels_of_training_pictures_lie_where_the_picture_is(seed):
    source = pictures()
    for index in range(seed, len(source), 10):
        batch = source.load(index, seed)
        assert batch.image.min() >= 0 and batch.image.max() <= 1
        points = batch.keypoints[0].round().long()
        assert batch.valid[0][points[:, 1], points[:, 0]].all()


def test_warped_labels_follow_what_they_label():
    """Bright dots instead of shapes: their centroids in the warped picture against the moved labels."""
    points = np.array([[30.0, 20.0], [80.0, 30.0], [50.0, 60.0], [95.0, 70.0], [20.0, 70.0]], np.float32)
    y, x = np.mgrid[:96, :120]
    image = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8.0) for px, py in points).astype(np.float32)
    checked = 0
    for seed in range(8):
        H = superpoint_homography((120, 96), generator_for(seed), AdaptationWarpConfig())
        warped, _, moved = warp_picture(image, points, H, border_px=0)
        for px, py in moved:
            left, top = round(float(px)) - 3, round(float(py)) - 3
            if left < 0 or top < 0 or left + 7 > 120 or top + 7 > 96:
                continue
            window = warped[top : top + 7, left : left + 7].astype(np.float64)
            dy, dx = np.mgrid[:7, :7]
            centroid = np.array([(window * dx).sum(), (window * dy).sum()]) / window.sum() + [left, top]
            assert np.abs(centroid - [px, py]).max() < 0.7  # warping a dot shears it, the window cuts it
            checked += 1
    assert checked >= 15


@pytest.mark.parametrize("seed", range(5))
def test_the_mask_of_a_warp_is_exact(seed):
    H = superpoint_homography((64, 48), generator_for(seed, "mask"), AdaptationWarpConfig())
    _, valid, _ = warp_picture(np.ones((48, 64), np.float32), np.empty((0, 2), np.float32), H, border_px=0)
    backward = np.linalg.inv(H)
    for row in range(48):
        for column in range(64):
            u, v, w = backward @ [column, row, 1.0]
            in_front = w * backward[2, 2] > 0
            assert valid[row, column] == (in_front and 0 <= u / w <= 63 and 0 <= v / w <= 47)


def test_the_border_of_a_warp_is_widened_but_not_the_frame():
    H = np.array([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]])  # moved right: columns 0 to 19 show nothing
    points = np.array([[0.0, 10.0], [3.0, 10.0], [43.0, 5.0], [60.0, 5.0]], np.float32)
    _, valid, moved = warp_picture(np.ones((48, 64), np.float32), points, H, border_px=2)
    assert not valid[:, :22].any() and valid[:, 22:].all()
    np.testing.assert_allclose(moved, [[23, 10], [63, 5]])


def test_batches_join_and_travel():
    source = pictures()
    batch = ShapesBatch.stack([source.load(index, index) for index in (0, 11, 25)])
    assert len(batch) == 3 and len(batch.keypoints) == 3 and batch.seeds == (0, 11, 25)
    assert batch.names[0] == "lines 0"
    travelled = pickle.loads(pickle.dumps(batch.to("cpu")))
    assert torch.equal(travelled.image, batch.image)
    assert pickle.loads(pickle.dumps(source)).digest == source.digest


def test_sizes_that_are_no_multiples_of_a_cell_are_refused():
    with pytest.raises(ConfigError, match=r"image_size: expected .*multiples of 8.*\[80, 60\]"):
        pictures(size=(80, 60))


@pytest.mark.parametrize("change", [{"seed": 1}, {"blur": 11}, {"warp": AdaptationWarpConfig()}])
def test_the_digest_follows_the_settings(change):
    assert pictures(**change).digest != pictures().digest
    assert pictures("validation").digest != pictures().digest
