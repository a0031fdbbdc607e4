"""Figures of SuperPoint's validation, against hand-made cases and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.methods.superpoint.metrics import (
    Detections,
    average_precision,
    check_matches,
    matching_accuracy,
    one_pair,
    repeatability,
    swapped,
    true_detections,
)
from matchlib.methods.superpoint.training_config import ValidationConfig
from matchlib.methods.superpoint.validation import askable_labels, detect, pair_repeatability
from matchlib.photo_pairs.batch import HomographyBatch


def points(*places: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float32).reshape(-1, 2)


def shifted_pair(dx: int, dy: int, *, height: int = 48, width: int = 64, count: int = 1) -> HomographyBatch:
    """Views of which the second shows everything `dx`, `dy` pixels further; all of both is valid."""
    H = torch.eye(3, dtype=torch.float64)
    H[0, 2], H[1, 2] = dx, dy
    image = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    return HomographyBatch(
        image0=image,
        image1=image.roll((dy, dx), (2, 3)),
        H_0to1=H.expand(count, 3, 3).clone(),
        valid0=torch.ones(count, height, width, dtype=torch.bool),
        valid1=torch.ones(count, height, width, dtype=torch.bool),
        seeds=tuple(range(count)),
        names=tuple(f"pair {index}" for index in range(count)),
    )


# ---------------------------------------------------------------- average precision
def test_average_precision_by_hand():
    """Scores .9 true, .8 false, .7 true, .6 false over two pictures with 3 labels: 1/3 * 1 + 1/3 * 2/3."""
    first = Detections(points((10, 10), (30, 30)), torch.tensor([0.9, 0.8]))
    second = Detections(points((5, 7), (40, 40)), torch.tensor([0.7, 0.6]))
    labels = [points((12, 10)), points((5, 5), (20, 20))]
    figure = average_precision([first, second], labels, threshold_px=3.0)
    assert figure == pytest.approx(1 / 3 + 2 / 9)


def test_a_later_gain_of_precision_counts_for_lower_recalls():
    """False, then two true: precision 0, 1/2, 2/3; the envelope is 2/3 at both recalls."""
    found = Detections(points((50, 50), (0, 0), (9, 9)), torch.tensor([0.9, 0.8, 0.7]))
    assert average_precision([found], [points((0, 0), (9, 9))], threshold_px=3.0) == pytest.approx(2 / 3)


def test_a_label_is_found_once_and_by_the_best():
    found = points((10, 10), (11, 10), (10, 13))
    assert true_detections(found, points((10, 11)), threshold_px=3.0).tolist() == [True, False, False]
    both = true_detections(found, points((10, 11), (12, 10)), threshold_px=3.0)
    assert both.tolist() == [True, True, False]


def test_a_distance_of_exactly_the_threshold_counts():
    assert true_detections(points((3, 0)), points((0, 0)), threshold_px=3.0).item()
    assert not true_detections(points((3.001, 0)), points((0, 0)), threshold_px=3.0).item()


def test_average_precision_without_labels_or_detections():
    some, none = Detections(points((1, 1)), torch.ones(1)), Detections(points(), torch.empty(0))
    assert math.isnan(average_precision([some], [points()], threshold_px=3.0))
    assert average_precision([none], [points((1, 1))], threshold_px=3.0) == 0.0
    with pytest.raises(ShapeError, match="labels: expected 1"):
        average_precision([some], [], threshold_px=3.0)


def loop_average_precision(pictures, threshold_px) -> float:
    """Raise the score threshold over all values; the best precision at each recall or a higher one."""
    labels = sum(len(true) for _, _, true in pictures)
    curve = []
    for least in sorted({score for _, scores, _ in pictures for score in scores}):
        right = kept = 0
        for places, scores, true in pictures:
            free = list(range(len(true)))
            for index in np.argsort(scores)[::-1]:
                if scores[index] < least:
                    continue
                kept += 1
                near = [(math.dist(places[index], true[label]), label) for label in free]
                near = [(d, label) for d, label in near if d <= threshold_px]
                if near:
                    right += 1
                    free.remove(min(near)[1])
        curve.append((right / labels, right / kept))
    recalls = sorted({recall for recall, _ in curve} | {0.0})
    return sum(
        (high - low) * max(precision for recall, precision in curve if recall >= high)
        for low, high in zip(recalls, recalls[1:], strict=False)
    )


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_average_precision_against_a_sweep_of_thresholds(seed):
    random = np.random.default_rng(seed)
    order = iter(random.permutation(100) / 100 + 0.001)
    pictures = []
    for _ in range(random.integers(1, 4)):
        count = random.integers(0, 12)
        scores = sorted((float(next(order)) for _ in range(count)), reverse=True)
        pictures.append(
            (random.uniform(0, 15, (count, 2)), scores, random.uniform(0, 15, (random.integers(1, 6), 2)))
        )
    figure = average_precision(
        [Detections(torch.from_numpy(p), torch.tensor(s).reshape(-1)) for p, s, _ in pictures],
        [torch.from_numpy(true) for _, _, true in pictures],
        threshold_px=3.0,
    )
    assert figure == pytest.approx(loop_average_precision(pictures, 3.0), abs=1e-9)


# ---------------------------------------------------------------- repeatability
def test_repeatability_by_hand():
    """Of 3 points two have a partner; of 2 points one has: 3 of 5."""
    warped0, points1 = points((0, 0), (2, 0), (50, 50)), points((1, 0), (20, 20))
    assert repeatability(warped0, points1, threshold_px=3.0) == pytest.approx(3 / 5)
    assert repeatability(points1, warped0, threshold_px=3.0) == pytest.approx(3 / 5)
    assert repeatability(points(), points(), threshold_px=3.0) == 0.0
    assert repeatability(warped0, points(), threshold_px=3.0) == 0.0


def test_points_that_one_view_does_not_show_are_not_asked_for():
    batch = shifted_pair(16, 0)
    found0 = Detections(points((20, 20), (60, 20)), torch.tensor([0.9, 0.8]))  # the second leaves the frame
    found1 = Detections(points((5, 30), (36, 21)), torch.tensor([0.9, 0.8]))  # the first was outside view 0
    assert pair_repeatability(batch, 0, (found0, found1), ValidationConfig()) == 1.0
    assert pair_repeatability(swapped(batch), 0, (found1, found0), ValidationConfig()) == 1.0
    # Chosen after the unseen ones are gone, so that one point of each view remains.
    assert pair_repeatability(batch, 0, (found0, found1), ValidationConfig(max_points=1)) == 1.0


def test_pairs_are_told_apart():
    batch = shifted_pair(4, 0, count=2)
    batch.H_0to1[1, 1, 2] = 9.0
    found0, found1 = Detections(points((20, 20)), torch.ones(1)), Detections(points((24, 20)), torch.ones(1))
    assert one_pair(batch, 1).names == ("pair 1",)
    shares = [pair_repeatability(batch, pair, (found0, found1), ValidationConfig()) for pair in range(2)]
    assert shares == [1.0, 0.0]


def test_swapping_twice_changes_nothing():
    batch = shifted_pair(3, 2, count=2)
    batch.H_0to1[:, 2, 0] = 1e-3
    back = swapped(swapped(batch))
    torch.testing.assert_close(back.H_0to1, batch.H_0to1)
    assert torch.equal(back.image0, batch.image0)
    there, known = batch.warp(points((20, 20)).expand(2, 1, 2))
    again, _ = swapped(batch).warp(there)
    torch.testing.assert_close(again, points((20, 20)).expand(2, 1, 2), atol=1e-4, rtol=0)
    assert known.all()


# ---------------------------------------------------------------- matching
def test_matches_are_checked_against_the_true_warp():
    batch = shifted_pair(8, 0)
    descriptors = torch.eye(4)
    points0 = points((10, 10), (20, 20), (30, 30), (60, 40))
    points1 = points((18, 10), (28, 22), (50, 30), (4, 40))  # exact, 2 px off, 12 px off, unknown
    found = check_matches(batch, points0, points1, descriptors, descriptors)
    assert found.error_px[:3].tolist() == [0, 2, 12] and found.error_px[3].isnan()
    assert matching_accuracy(found, threshold_px=3.0) == pytest.approx(2 / 3)
    assert matching_accuracy(found, threshold_px=1.0) == pytest.approx(1 / 3)


def test_no_matches_are_no_success():
    batch, nothing = shifted_pair(0, 0), torch.empty(0, 2)
    found = check_matches(batch, nothing, points((1, 1)), torch.empty(0, 4), F.normalize(torch.ones(1, 4)))
    assert matching_accuracy(found, threshold_px=3.0) == 0.0


# ---------------------------------------------------------------- detections
def test_detections_are_suppressed_sorted_and_within_the_picture():
    heat = torch.zeros(40, 48)
    for row, column, value in ((10, 10, 0.5), (12, 12, 0.9), (30, 30, 0.7), (30, 2, 0.8), (20, 40, 0.6)):
        heat[row, column] = value
    valid = torch.ones(40, 48, dtype=torch.bool)
    valid[:, 38:] = False
    found = detect(heat, valid, ValidationConfig())
    assert found.points.tolist() == [[12, 12], [30, 30]]  # others: suppressed, at the border, not valid
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    assert found.best(1).points.tolist() == [[12, 12]]


def test_labels_that_cannot_be_detected_are_not_asked_for():
    valid = torch.ones(40, 48, dtype=torch.bool)
    valid[20, 20] = False
    labels = points((3.4, 10), (4, 10), (20.3, 19.6), (43, 35), (44, 35), (47.8, 10), (-1, 10))
    kept = askable_labels(labels, valid, ValidationConfig())
    torch.testing.assert_close(kept, points((4, 10), (43, 35)))
    everywhere = askable_labels(labels, valid, ValidationConfig(border=0))
    torch.testing.assert_close(everywhere, points((3.4, 10), (4, 10), (43, 35), (44, 35)))
