"""From score maps to keypoints: against a direct transcription of the published description, and its rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ShapeError
from matchlib.methods.posfeat.config import InferenceConfig
from matchlib.methods.posfeat.detection import is_peak, select_keypoints

ALL = InferenceConfig(max_keypoints=10**6, score_threshold=0.0)
Found = list[tuple[float, float, float]]


def published(scores: npt.NDArray[np.float32], config: InferenceConfig) -> Found:
    """(x, y, score) by loops, in the words of the published description; fewer than wanted stay fewer."""
    inner = scores[1:-1, 1:-1].astype(np.float64)
    radius = config.nms_radius
    reference = {"abs": 1.0, "max": inner.max(), "mean": inner.mean()}[config.score_reference]
    found: Found = []
    # numpy's "reflect" needs windows no larger than the map; the sizes of the test keep to that
    padded = np.pad(inner, radius, mode="reflect")
    for row in range(inner.shape[0]):
        for column in range(inner.shape[1]):
            window = padded[row : row + 2 * radius + 1, column : column + 2 * radius + 1]
            value = inner[row, column]
            if value != window.max() or value <= config.score_threshold * reference:
                continue
            around = scores[row : row + 3, column : column + 3].astype(np.float64)
            x, y = column + 1.0, row + 1.0
            if config.subpixel:
                x += (around * np.array([[-1, 0, 1]])).sum() / around.sum()
                y += (around * np.array([[-1], [0], [1]])).sum() / around.sum()
            found.append((x, y, float(value)))
    return sorted(found, key=lambda one: -one[2])[: config.max_keypoints]


@pytest.mark.parametrize("subpixel", [True, False])
@pytest.mark.parametrize(("reference", "threshold"), [("abs", 0.9), ("max", 0.5), ("mean", 1.2)])
@pytest.mark.parametrize("radius", [0, 1, 3])
def test_agrees_with_the_published_description(
    radius: int, reference: str, threshold: float, subpixel: bool
) -> None:
    scores = torch.rand(23, 31, generator=torch.Generator().manual_seed(radius)) * 2
    config = InferenceConfig(
        nms_radius=radius,
        score_threshold=threshold,
        score_reference=reference,  # type: ignore[arg-type]
        subpixel=subpixel,
        max_keypoints=40,
    )
    points, values = select_keypoints(scores, config)
    expected = np.array(published(scores.numpy(), config))
    assert len(expected) > 5, "the case shows something"
    np.testing.assert_allclose(points, expected[:, :2], atol=1e-5)
    np.testing.assert_allclose(values, expected[:, 2], rtol=1e-6)
    assert points.dtype == values.dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(3, 20),
    width=st.integers(3, 20),
    radius=st.integers(0, 4),
    levels=st.sampled_from([1, 2, 5, 1000]),
)
def test_peaks_keep_their_distance_also_on_plateaus(
    seed: int, height: int, width: int, radius: int, levels: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(1, levels + 1, (height, width), generator=generator) / levels
    config = replace(ALL, nms_radius=radius, subpixel=False)
    points, values = select_keypoints(scores, config)
    assert len(points), "the largest score is a peak"
    apart = (points[:, None] - points).abs().amax(dim=-1) + 1e6 * torch.eye(len(points))
    assert apart.min() > radius
    assert points.min() >= 1 and points[:, 0].max() <= width - 2 and points[:, 1].max() <= height - 2
    assert values.diff().max() <= 0 if len(values) > 1 else True
    refined, same = select_keypoints(scores, replace(config, subpixel=True))
    assert torch.equal(values, same)
    assert (refined - points).abs().max() <= 1


def test_of_equal_neighbours_the_first_wins() -> None:
    scores = torch.full((7, 9), 0.1)
    scores[3, 3:6] = 2.0
    points, _ = select_keypoints(scores, InferenceConfig(subpixel=False))
    assert points.tolist() == [[3.0, 3.0]]
    flat = is_peak(torch.ones(7, 9), 1)
    assert flat.nonzero().tolist() == [[1, 1]]


def test_a_peak_beside_the_border_competes_with_the_inside_only() -> None:
    scores = torch.zeros(6, 6)
    scores[0, 2], scores[1, 2], scores[1, 3] = 9.0, 2.0, 1.0
    points, values = select_keypoints(scores, InferenceConfig(subpixel=False))
    assert points.tolist() == [[2.0, 1.0]] and values.tolist() == [2.0]
    # but the centroid sees the border
    refined, _ = select_keypoints(scores, InferenceConfig())
    np.testing.assert_allclose(refined, [[2 + 1 / 12, 1 - 9 / 12]], rtol=1e-6)


def test_refinement_finds_the_centre_of_a_symmetric_spot() -> None:
    y, x = torch.meshgrid(torch.arange(15.0), torch.arange(15.0), indexing="ij")
    spot = torch.exp(-((x - 7) ** 2 + (y - 6) ** 2) / 2)
    points, _ = select_keypoints(spot, replace(ALL, score_threshold=0.5))
    np.testing.assert_allclose(points, [[7, 6]], atol=1e-6)
    moved = torch.exp(-((x - 7.3) ** 2 + (y - 5.8) ** 2) / 2)
    points, _ = select_keypoints(moved, replace(ALL, score_threshold=0.5))
    assert 7 < points[0, 0] < 7.3 and 5.8 < points[0, 1] < 6


def test_fewer_than_wanted_unless_asked_for() -> None:
    scores = torch.zeros(12, 14)
    scores[4, 5], scores[8, 9] = 2.0, 3.0
    assert len(select_keypoints(scores, InferenceConfig())[0]) == 2
    points, values = select_keypoints(scores, InferenceConfig(min_keypoints=6))
    assert points[:2].tolist() == [[9.0, 8.0], [5.0, 4.0]] and values.tolist() == [3, 2, 0, 0, 0, 0]
    assert points[2:].tolist() == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]
    everything = select_keypoints(scores, InferenceConfig(min_keypoints=10**4))[0]
    assert len(everything) == 10 * 12 and everything.isfinite().all()
    assert len(select_keypoints(scores, InferenceConfig(min_keypoints=6, max_keypoints=3))[0]) == 3


def test_equal_scores_come_in_reading_order() -> None:
    scores = torch.zeros(130, 170)
    scores[2:-2:3, 2:-2:3] = 1.0
    scores[2:-2:6, 2:-2:6] = 2.0
    points, values = select_keypoints(scores, replace(ALL, max_keypoints=1500))
    order = [(-value, y, x) for value, (x, y) in zip(values.tolist(), points.tolist(), strict=True)]
    assert len(order) == 1500 and set(values.tolist()) == {1.0, 2.0}
    assert order == sorted(order)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (2, 40), (3, 3)])
@pytest.mark.parametrize("reference", ["abs", "max", "mean"])
def test_small_maps(shape: tuple[int, int], reference: str) -> None:
    config = InferenceConfig(score_threshold=0.5, score_reference=reference, nms_radius=3)  # type: ignore[arg-type]
    points, values = select_keypoints(torch.ones(shape), config)
    assert points.shape == (int(min(shape) >= 3), 2) and len(values) == len(points)


def test_a_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match="scores: expected shape"):
        select_keypoints(torch.zeros(1, 4, 4), InferenceConfig())
