"""Mutual nearest neighbours against a loop over the definition and against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError, ShapeError
from matchlib.features.types import Features, Float32
from matchlib.matching.mutual_nearest import match_mutual_nearest
from matchlib.matching.types import Matches


def features_of(descriptors: Float32) -> Features:
    n = len(descriptors)
    return Features(
        keypoints=np.zeros((n, 2), np.float32),
        scores=np.zeros(n, np.float32),
        descriptors=descriptors,
        image_size=(10, 10),
    )


def unit_rows(seed: int, n: int, d: int) -> Float32:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(0, 30), m=st.integers(0, 30), d=st.integers(2, 16))
def test_matches_are_exactly_the_mutual_nearest_pairs(seed: int, n: int, m: int, d: int) -> None:
    a, b = unit_rows(seed, n, d), unit_rows(seed + 1, m, d)
    similarity = a.astype(np.float64) @ b.T.astype(np.float64)
    expected = [
        [i, j]
        for i in range(n)
        for j in range(m)
        if j == similarity[i].argmax() and i == similarity[:, j].argmax()
    ]
    matches = match_mutual_nearest(features_of(a), features_of(b))
    assert matches.index.tolist() == expected
    np.testing.assert_allclose(matches.scores, [similarity[i, j] for i, j in expected], atol=1e-5)


def test_swapping_the_images_swaps_the_matches() -> None:
    a, b = features_of(unit_rows(0, 200, 32)), features_of(unit_rows(1, 150, 32))
    there, back = match_mutual_nearest(a, b), match_mutual_nearest(b, a)
    assert sorted(map(tuple, there.index)) == sorted((i, j) for j, i in back.index)


@pytest.mark.parametrize("ratio", [0.7, 0.85, 0.95])
def test_ratio_test_agrees_with_opencv(ratio: float) -> None:
    a = unit_rows(0, 300, 8)
    b = np.concatenate([a[:100] + 0.05 * unit_rows(1, 100, 8), unit_rows(2, 200, 8)])
    b = (b / np.linalg.norm(b, axis=1, keepdims=True)).astype(np.float32)
    two_nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(a, b, k=2)
    passing = {
        (one.queryIdx, one.trainIdx) for one, two in two_nearest if one.distance <= ratio * two.distance
    }
    mutual = {(m.queryIdx, m.trainIdx) for m in cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(a, b)}
    found = match_mutual_nearest(features_of(a), features_of(b), ratio=ratio)
    assert {tuple(row) for row in found.index.tolist()} == passing & mutual
    assert 0 < len(found) < len(match_mutual_nearest(features_of(a), features_of(b)))


def test_ratio_with_a_single_candidate_keeps_the_match() -> None:
    matches = match_mutual_nearest(
        features_of(unit_rows(0, 5, 4)), features_of(unit_rows(1, 1, 4)), ratio=0.5
    )
    assert len(matches) == 1


@pytest.mark.parametrize("n, m", [(0, 0), (0, 5), (5, 0)])
def test_no_keypoints_give_no_matches(n: int, m: int) -> None:
    matches = match_mutual_nearest(
        features_of(unit_rows(0, n, 4)), features_of(unit_rows(1, m, 4)), ratio=0.9
    )
    assert matches.index.shape == (0, 2) and matches.index.dtype == np.int64 and len(matches) == 0


def test_bad_arguments_are_refused() -> None:
    a = features_of(unit_rows(0, 3, 4))
    with pytest.raises(ShapeError, match="expected equal dimensions, got 4 and 8"):
        match_mutual_nearest(a, features_of(unit_rows(0, 3, 8)))
    with pytest.raises(ConfigError, match="ratio"):
        match_mutual_nearest(a, a, ratio=1.5)
    with pytest.raises(ShapeError, match="index: expected int64"):
        Matches(index=np.zeros((1, 2), np.int32), scores=np.zeros(1, np.float32))  # type: ignore[arg-type]


def test_top_keeps_the_best_in_order() -> None:
    matches = Matches(
        index=np.array([[0, 3], [1, 1], [2, 0], [3, 2]]), scores=np.array([0.1, 0.9, 0.5, 0.9], np.float32)
    )
    assert matches.top(3).index.tolist() == [[1, 1], [2, 0], [3, 2]]
    assert matches.top(1).index.tolist() == [[1, 1]] and len(matches.top(9)) == 4
