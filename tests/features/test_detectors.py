"""Keypoints without descriptors: places, order, ties, edges."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError, ShapeError
from matchlib.features.config import DetectorConfig
from matchlib.features.detectors import detect_keypoints
from matchlib.features.types import Image

KINDS = ("sift", "harris")


def rgb(grey: Any) -> Image:
    return np.repeat(np.asarray(grey).clip(0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def photo() -> Image:
    image: Image = cv2.resize(skimage.data.astronaut(), (200, 160), interpolation=cv2.INTER_AREA)
    return image


@pytest.mark.parametrize("centre", [(71.0, 38.0), (60.3, 44.6)])
def test_sift_finds_a_blob_at_its_centre_once(centre: tuple[float, float]) -> None:
    columns, rows = np.meshgrid(np.arange(120), np.arange(90))
    blob = 255 * np.exp(-((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / (2 * 6.0**2))
    points, scores = detect_keypoints(rgb(blob), DetectorConfig(kind="sift"))
    assert points[0] == pytest.approx(centre, abs=0.15)
    assert scores[0] > 0 and points.dtype == scores.dtype == np.float32


def test_harris_finds_the_corners_of_a_square() -> None:
    image = np.zeros((60, 80), np.uint8)
    image[20:40, 30:55] = 200
    points, _ = detect_keypoints(rgb(image), DetectorConfig(kind="harris", max_keypoints=4))
    # OpenCV's block of two pixels reaches to the upper left: half a pixel more on both axes.
    corners = np.array([[29.5, 19.5], [54.5, 19.5], [29.5, 39.5], [54.5, 39.5]]) + 0.5
    distance = np.linalg.norm(points[:, None] - corners[None], axis=2)
    assert sorted(distance.argmin(axis=1)) == [0, 1, 2, 3] and distance.min(axis=1).max() < 1.5


def test_harris_response_is_opencvs(photo: Image) -> None:
    points, scores = detect_keypoints(photo, DetectorConfig(kind="harris", max_keypoints=50))
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    response = cv2.cornerHarris(grey, 2, 3, 0.04)
    columns, rows = points.astype(int).T
    np.testing.assert_array_equal(scores, response[rows, columns])
    for x, y, score in zip(columns, rows, scores, strict=True):
        assert score == response[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].max()


def test_harris_keeps_one_of_equal_neighbours() -> None:
    image = np.zeros((50, 50), np.uint8)
    image[20:30, 20:30] = 255  # symmetric: the four corners of the response are plateaus of equal values
    points, _ = detect_keypoints(rgb(image), DetectorConfig(kind="harris", suppression_radius=3))
    apart = np.abs(points[:, None] - points[None]).max(axis=2) + 99 * np.eye(len(points))
    assert len(points) >= 4 and apart.min() > 3


def test_orientations_of_one_place_are_merged(photo: Image) -> None:
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    with_orientations = cv2.SIFT.create(contrastThreshold=0.02, enable_precise_upscale=True).detect(
        grey, None
    )
    places = {keypoint.pt for keypoint in with_orientations}
    assert len(places) < len(with_orientations), "the picture has no keypoint with two orientations"
    points, _ = detect_keypoints(photo, DetectorConfig(max_keypoints=0, border=0))
    inside = {place for place in places if 0 <= place[0] <= 199 and 0 <= place[1] <= 159}
    assert {tuple(point) for point in points.tolist()} == inside and len(points) == len(inside)


@pytest.mark.parametrize("kind", KINDS)
def test_best_first_exact_limit_and_border(photo: Image, kind: Any) -> None:
    everything, _ = detect_keypoints(photo, DetectorConfig(kind=kind, max_keypoints=0, border=20))
    points, scores = detect_keypoints(photo, DetectorConfig(kind=kind, max_keypoints=30, border=20))
    assert len(points) == 30 < len(everything)
    assert (np.diff(scores) <= 0).all() and len(np.unique(points, axis=0)) == 30
    assert (points >= 20).all() and (points <= np.array([179, 139])).all()
    np.testing.assert_array_equal(points, everything[:30])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), value=st.integers(0, 255))
def test_a_featureless_image_gives_nothing(kind: Any, height: int, width: int, value: int) -> None:
    points, scores = detect_keypoints(np.full((height, width, 3), value, np.uint8), DetectorConfig(kind=kind))
    assert points.shape == (0, 2) and scores.shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 24), width=st.integers(1, 24), seed=st.integers(0, 1000))
def test_noise_of_any_size_is_safe(kind: Any, height: int, width: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    points, scores = detect_keypoints(noise, DetectorConfig(kind=kind, border=0))
    assert (points >= 0).all() and (points <= np.array([width - 1, height - 1])).all()
    assert np.isfinite(scores).all() and (scores > 0).all()


def test_wrong_images_and_settings_are_refused(photo: Image) -> None:
    with pytest.raises(ShapeError, match=r"image: expected shape \(H, W, 3\)"):
        detect_keypoints(photo[:, :, 0], DetectorConfig())
    with pytest.raises(ShapeError, match="expected uint8, got float32"):
        detect_keypoints(photo.astype(np.float32), DetectorConfig())  # type: ignore[arg-type]
    wrong: dict[str, Any] = {"border": -1, "quality": 1.0, "suppression_radius": 0, "max_keypoints": -1}
    for key, value in wrong.items():
        with pytest.raises(ConfigError, match=f"^detector.{key}: expected"):
            DetectorConfig(**{key: value})
