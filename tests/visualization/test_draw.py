from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import DataError, ShapeError
from matchlib.visualization.draw import (
    BAD,
    GOOD,
    MIDDLE,
    NEUTRAL,
    UNKNOWN,
    decode_image,
    draw_keypoints,
    draw_matches,
    draw_score_map,
    encode_jpeg,
    encode_png,
    error_colours,
    fit_into,
    save_png,
)

GREY = np.full((60, 80, 3), 128, dtype=np.uint8)


def test_error_colours_at_the_ends_in_the_middle_and_unknown():
    errors = np.array([0.0, 1.0, 3.0, 5.0, 80.0, np.inf, np.nan])
    expected = [GOOD, GOOD, MIDDLE, BAD, BAD, BAD, UNKNOWN]
    np.testing.assert_array_equal(error_colours(errors), expected)


def test_error_colours_change_steadily_from_green_to_orange():
    red_minus_blue = error_colours(np.linspace(0, 6, 200)).astype(int) @ (1, 0, -1)
    assert (np.diff(red_minus_blue) >= 0).all()


def test_a_keypoint_is_drawn_at_its_pixel_and_nowhere_else():
    drawn = draw_keypoints(GREY, np.array([[20.0, 10.0]]), radius_px=2)
    assert tuple(drawn[10, 20]) == NEUTRAL
    changed_y, changed_x = np.nonzero((drawn != GREY).any(axis=-1))
    assert np.abs(changed_x - 20).max() <= 3 and np.abs(changed_y - 10).max() <= 3
    assert (GREY == 128).all(), "the image that was given is left alone"


def test_the_best_keypoint_is_yellow_and_on_top():
    drawn = draw_keypoints(GREY, np.array([[30.0, 30.0], [30.0, 30.0]]), np.array([0.9, 0.1]))
    viridis_last = cv2.applyColorMap(np.array([[255]], dtype=np.uint8), cv2.COLORMAP_VIRIDIS)[0, 0, ::-1]
    np.testing.assert_array_equal(drawn[30, 30], viridis_last)


def test_matches_have_dots_in_the_colour_of_their_error_in_both_images():
    left, right = GREY, np.full((40, 50, 3), 60, dtype=np.uint8)
    points0, points1 = np.array([[10.0, 10.0], [10.0, 40.0]]), np.array([[25.0, 8.0], [30.0, 30.0]])
    drawn = draw_matches(left, right, points0, points1, errors_px=np.array([0.5, 9.0]), legend=False)
    assert drawn.shape[0] == 60 and drawn.shape[1] > 80 + 50
    start = drawn.shape[1] - 50
    assert tuple(drawn[10, 10]) == GOOD and tuple(drawn[8, start + 25]) == GOOD
    assert tuple(drawn[40, 10]) == BAD and tuple(drawn[30, start + 30]) == BAD
    assert not (drawn[50:60, start:] == 60).any(), "below the smaller image is background"


def test_scaling_to_a_height_keeps_keypoints_on_their_pixels():
    # A white 4 x 4 block, enlarged eight times; its centre lies between pixels, where a keypoint marks it.
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[8:12, 16:20] = 255
    centre = np.array([[17.5, 9.5]])
    drawn = draw_matches(image, image, centre, centre, height_px=256, legend=False)
    dot_rows = np.nonzero((drawn[:, :256] == NEUTRAL).all(axis=2).any(axis=1))[0]
    block_rows = np.nonzero((drawn[:, 130] > 128).all(axis=1))[0]
    assert dot_rows.mean() == pytest.approx(79.5, abs=0.6)
    assert block_rows.mean() == pytest.approx(79.5, abs=0.6), "so the image was scaled about the same centre"


@pytest.mark.parametrize("errors", [None, np.zeros(0)])
def test_no_matches_is_a_picture_too(errors):
    drawn = draw_matches(GREY, GREY, np.zeros((0, 2)), np.zeros((0, 2)), errors_px=errors)
    np.testing.assert_array_equal(drawn[:60, :80], GREY)
    assert drawn.shape[0] > 60, "the legend says that there are none"


def test_the_legend_shows_both_ends_of_the_scale():
    wide = np.full((40, 400, 3), 200, dtype=np.uint8)
    drawn = draw_matches(
        wide, wide, np.array([[5.0, 5.0]]), np.array([[5.0, 5.0]]), errors_px=np.array([3.0])
    )
    legend = drawn[40:].reshape(-1, 3)
    for colour in (GOOD, BAD):
        assert (legend == colour).all(axis=1).any()


@given(count=st.integers(1, 300), limit=st.integers(1, 60), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_subset_of_lines_keeps_the_mix_of_errors(count, limit, share):
    """One dot per drawn match on a row of its own: the share of bad dots is that of all, up to one dot."""
    from matchlib.visualization.draw import _evenly_chosen

    errors = np.where(np.arange(count) < share * count, 9.0, 0.0)
    chosen = _evenly_chosen(errors, count, limit)
    assert len(chosen) == min(count, limit) == len(set(chosen.tolist()))
    assert abs((errors[chosen] > 5).mean() - (errors > 5).mean()) <= 1.0 / len(chosen)


def test_keypoints_far_outside_are_clipped_not_wrapped_around():
    far = np.array([[1e9, -1e9]])
    np.testing.assert_array_equal(draw_keypoints(GREY, far), GREY)


@pytest.mark.parametrize(
    "call",
    [
        lambda: draw_keypoints(GREY[..., 0], np.zeros((1, 2))),
        lambda: draw_keypoints(GREY.astype(np.float32), np.zeros((1, 2))),
        lambda: draw_keypoints(GREY, np.zeros((1, 3))),
        lambda: draw_keypoints(GREY, np.array([[np.nan, 0.0]])),
        lambda: draw_keypoints(GREY, np.zeros((2, 2)), np.zeros(3)),
        lambda: draw_matches(GREY, GREY, np.zeros((2, 2)), np.zeros((3, 2))),
        lambda: draw_matches(GREY, GREY, np.zeros((2, 2)), np.zeros((2, 2)), errors_px=np.zeros(3)),
        lambda: draw_score_map(np.zeros((2, 2, 2))),
        lambda: encode_png(np.zeros((0, 5, 3), dtype=np.uint8)),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ShapeError):
        call()


def test_score_map_is_brightest_at_the_peak_and_grey_where_unknown():
    scores = np.random.default_rng(0).random((20, 30))
    scores[4, 7], scores[5, 5] = 50.0, np.nan
    heat = draw_score_map(scores)
    assert tuple(heat[5, 5]) == UNKNOWN
    brightness = heat.astype(int) @ (2, 7, 1)
    assert brightness[4, 7] == brightness.max()


def test_score_map_over_an_image_has_its_size_and_shows_it():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:, 30:] = 255
    drawn = draw_score_map(np.zeros((4, 6)), image, opacity=0.5)
    assert drawn.shape == image.shape
    assert drawn[:, 45].mean() > drawn[:, 15].mean() + 100


def test_png_round_trip_is_exact_and_deterministic(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", image)
    save_png(tmp_path / "b.png", image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], image)
    np.testing.assert_array_equal(decode_image((tmp_path / "a.png").read_bytes(), where="a.png"), image)


def test_jpeg_is_close():
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    decoded = decode_image(encode_jpeg(smooth, quality=95), where="smooth")
    assert np.abs(decoded.astype(int) - smooth).max() < 8


def test_a_file_that_is_no_picture_is_named():
    with pytest.raises(DataError, match=r"pictures/x\.png: expected a PNG or JPEG"):
        decode_image(b"<html>", where="pictures/x.png")


def test_fit_into_shrinks_the_long_side_only_when_needed():
    assert fit_into(GREY, 40).shape == (30, 40, 3)
    assert fit_into(GREY, 500) is GREY
