from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from matchlib.errors import DataError, ShapeError
from matchlib.features.types import Features
from matchlib.matching.types import Matches
from matchlib.visualization.draw import BAD, GOOD, NEUTRAL, save_png
from matchlib.visualization.match_picture import match_picture


def features(points: list[list[float]], size: tuple[int, int]) -> Features:
    count = len(points)
    return Features(
        keypoints=np.array(points, dtype=np.float32).reshape(count, 2),
        scores=np.ones(count, dtype=np.float32),
        descriptors=np.eye(max(count, 2), dtype=np.float32)[:count],
        image_size=size,
    )


def matches(*pairs: tuple[int, int]) -> Matches:
    index = np.array(pairs, dtype=np.int64).reshape(len(pairs), 2)
    return Matches(index=index, scores=np.ones(len(pairs), dtype=np.float32))


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    save_png(tmp_path / "a.png", np.full((40, 60, 3), 100, dtype=np.uint8))
    save_png(tmp_path / "b.png", np.full((30, 50, 3), 100, dtype=np.uint8))
    return tmp_path / "a.png", tmp_path / "b.png"


FEATURES0 = features([[5, 5], [30, 30]], (60, 40))
FEATURES1 = features([[40, 20], [10, 10]], (50, 30))


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def test_matches_are_drawn_where_their_keypoints_are(images, tmp_path: Path):
    out = tmp_path / "out" / "picture.png"
    match_picture(*images, FEATURES0, FEATURES1, matches((0, 1), (1, 0)), out, errors=np.array([0.0, 7.0]))
    picture = read(out)
    left = picture.shape[1] - 50
    assert tuple(picture[5, 5]) == tuple(picture[10, left + 10]) == GOOD
    assert tuple(picture[30, 30]) == tuple(picture[20, left + 40]) == BAD


def test_without_truth_all_matches_have_one_colour(images, tmp_path: Path):
    match_picture(*images, FEATURES0, FEATURES1, matches((0, 0)), tmp_path / "picture.png")
    assert tuple(read(tmp_path / "picture.png")[5, 5]) == NEUTRAL


def test_no_match_gives_a_picture_of_both_images(images, tmp_path: Path):
    nothing = features([], (60, 40))
    match_picture(*images, nothing, FEATURES1, matches(), tmp_path / "picture.png")
    assert (read(tmp_path / "picture.png")[:40, :60] == 100).all()


def test_another_image_than_the_extracted_one_is_refused(images, tmp_path: Path):
    with pytest.raises(DataError, match=r"b\.png: expected the image .* 60 x 40 pixels, got 50 x 30"):
        match_picture(images[0], images[1], FEATURES0, FEATURES0, matches(), tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_a_match_of_a_missing_keypoint_is_refused(images, tmp_path: Path):
    with pytest.raises(
        DataError, match=r"a\.png: expected matches of its 2 keypoints, got one of keypoint 2"
    ):
        match_picture(*images, FEATURES0, FEATURES1, matches((2, 0)), tmp_path / "picture.png")


def test_errors_that_do_not_fit_are_refused(images, tmp_path: Path):
    with pytest.raises(ShapeError):
        match_picture(*images, FEATURES0, FEATURES1, matches((0, 0)), tmp_path / "p.png", errors=np.zeros(2))


def test_an_unreadable_image_is_named(images, tmp_path: Path):
    images[1].write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png"):
        match_picture(*images, FEATURES0, FEATURES1, matches((0, 0)), tmp_path / "picture.png")
