"""Homographic adaptation with detectors whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from matchlib.errors import ShapeError
from matchlib.geometry.homography import warp_points
from matchlib.methods.superpoint.adaptation import AdaptationLabeller, adapted_heatmap, frame_of
from matchlib.methods.superpoint.config import (
    AdaptationConfig,
    DetectionConfig,
    NetworkConfig,
    SuperPointConfig,
)
from matchlib.methods.superpoint.inference import build_labeller
from matchlib.methods.superpoint.network import SuperPointNetwork, grey_from_image
from matchlib.methods.superpoint.postprocess import heatmap, select_keypoints
from matchlib.photo_pairs.config import AdaptationWarpConfig
from matchlib.photo_pairs.homographies import adaptation_homographies

SMALL = NetworkConfig(variant="small")
SIZE = (64, 48)
PLAIN = AdaptationConfig(views=1, size=SIZE)
DOTS = torch.tensor([[14.0, 11.0], [40.0, 20.0], [25.0, 35.0], [50.0, 38.0]])


def brightness(views: torch.Tensor) -> torch.Tensor:
    """A detector that calls bright pixels points."""
    return views[:, 0]


def homographies(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(adaptation_homographies(count, size, generator, AdaptationWarpConfig()))


def dots_at(points: torch.Tensor, size: tuple[int, int], sigma: float = 1.2) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(float(size[1])), torch.arange(float(size[0])), indexing="ij")
    squared = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return torch.exp(-squared / (2 * sigma**2)).sum(0).clamp(max=1)[None, None]


def small_network() -> SuperPointNetwork:
    network = SuperPointNetwork(SMALL)
    network.initialise(torch.Generator().manual_seed(0))
    return network.eval()


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---------------------------------------------------------------- the aggregated map
@pytest.mark.parametrize("aggregate", ["sum", "max"])
def test_identity_alone_is_plain_detection_to_the_bit(aggregate: str) -> None:
    network = small_network()
    grey = torch.rand(1, 1, 48, 64, generator=torch.Generator().manual_seed(1))

    def detect(views: torch.Tensor) -> torch.Tensor:
        return heatmap(network.detector_logits(views))

    with torch.no_grad():
        found = adapted_heatmap(detect, grey, homographies(1), replace(PLAIN, aggregate=aggregate))
        assert torch.equal(found, detect(grey)[0])


@pytest.mark.parametrize("aggregate", ["sum", "max"])
def test_dots_stay_where_they_are(aggregate: str) -> None:
    """A detector that commutes with warps: every view says the same about the frame."""
    config = replace(PLAIN, aggregate=aggregate, detection=DetectionConfig(threshold=0.3, border=0))
    heat = adapted_heatmap(brightness, dots_at(DOTS, SIZE), homographies(40), config)
    points, _ = select_keypoints(heat, config.detection)
    assert sorted(points.tolist()) == sorted(DOTS.tolist())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 3]))
def test_a_constant_answer_is_its_own_mean(seed: int, erosion: int) -> None:
    """The count is the sum of the weights, so the mean of 1/4 is 1/4 wherever any view counts."""
    config = replace(PLAIN, border_erosion=erosion)
    H = homographies(6, seed)[1:]
    heat = adapted_heatmap(
        lambda views: torch.full_like(views[:, 0], 0.25), torch.zeros(1, 1, 48, 64), H, config
    )
    counted = heat > 0
    assert counted.any()
    torch.testing.assert_close(heat[counted], torch.full_like(heat[counted], 0.25), atol=1e-5, rtol=0)


def test_detections_fade_if_only_some_views_have_them() -> None:
    """Two of three views answer: the mean is 2/3, the maximum 1."""
    H = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    answers = iter([torch.ones(2, 48, 64), torch.zeros(1, 48, 64)])
    config = replace(PLAIN, views=3, batch_size=2)
    mean = adapted_heatmap(lambda views: next(answers), torch.zeros(1, 1, 48, 64), H, config)
    torch.testing.assert_close(mean, torch.full((48, 64), 2 / 3))
    answers = iter([torch.ones(2, 48, 64), torch.zeros(1, 48, 64)])
    largest = adapted_heatmap(
        lambda views: next(answers), torch.zeros(1, 1, 48, 64), H, replace(config, aggregate="max")
    )
    assert torch.equal(largest, torch.ones(48, 64))


def test_the_edge_of_the_frame_is_no_detection() -> None:
    """A detector of edges, on a bright frame without any: warps make edges against black, erosion hides them."""

    def edges(views: torch.Tensor) -> torch.Tensor:
        step_x = views[:, 0].diff(dim=2, append=views[:, 0, :, -1:]).abs()
        return step_x.maximum(views[:, 0].diff(dim=1, append=views[:, 0, -1:]).abs())

    H, bright = homographies(20)[1:], torch.ones(1, 1, 48, 64)
    assert adapted_heatmap(edges, bright, H, replace(PLAIN, border_erosion=0)).max() > 0.2
    assert adapted_heatmap(edges, bright, H, PLAIN).max() < 1e-4


def test_min_views_drops_what_few_views_show() -> None:
    shift = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    shift[1, 0, 2] = 16.0  # the second view shows the left three quarters of the frame
    config = replace(PLAIN, views=2, border_erosion=0)
    ones = torch.ones(1, 1, 48, 64)
    everywhere = adapted_heatmap(brightness, ones, shift, config)
    assert torch.equal(everywhere, torch.ones(48, 64))
    both = adapted_heatmap(brightness, ones, shift, replace(config, min_views=2))
    assert torch.equal(both, torch.ones(48, 64) * (torch.arange(64) < 48))


def test_views_show_the_frame_where_the_homography_says() -> None:
    """A view's brightest pixels lie where the frame's dots are mapped to."""
    H, seen = homographies(8, seed=3)[1:], []

    def record(views: torch.Tensor) -> torch.Tensor:
        seen.extend(views[:, 0])
        return views[:, 0]

    adapted_heatmap(record, dots_at(DOTS, SIZE), H, PLAIN)
    checked = 0
    for view, H_33 in zip(seen, H, strict=True):
        for x, y in warp_points(DOTS.double(), H_33).round().long().tolist():
            if 2 <= x < 62 and 2 <= y < 46:
                checked += 1
                assert view[y, x] > 0.6  # within half a pixel of the centre, scaled
    assert checked > 10


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing_but_rounding(batch_size: int) -> None:
    grey = torch.rand(1, 1, 48, 64, generator=torch.Generator().manual_seed(1))
    whole = adapted_heatmap(brightness, grey, homographies(7), replace(PLAIN, batch_size=7))
    found = adapted_heatmap(brightness, grey, homographies(7), replace(PLAIN, batch_size=batch_size))
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="grey: expected"):
        adapted_heatmap(brightness, torch.zeros(1, 48, 64), homographies(2), PLAIN)
    with pytest.raises(ShapeError, match="homographies: expected"):
        adapted_heatmap(brightness, torch.zeros(1, 1, 48, 64), torch.eye(3), PLAIN)


# ---------------------------------------------------------------- frames
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["crop", "whole"]))
def test_frames_lie_in_the_photograph_and_keep_its_shape(height: int, width: int, kind: str) -> None:
    config = replace(PLAIN, frame=kind)
    frame = frame_of(np.zeros((height, width, 3), np.uint8), config)
    h, w = frame.image.shape[:2]
    assert h % 8 == 0 and w % 8 == 0
    if kind == "crop":
        assert (w, h) == SIZE
    else:
        assert frame.extent == (width, height)
    area = np.array([[-0.5, -0.5], [w - 0.5, h - 0.5]], np.float32)
    (left, top), (right, bottom) = frame.to_original(area)
    assert left >= -0.5 and top >= -0.5 and right <= width - 0.5 and bottom <= height - 0.5
    np.testing.assert_allclose([right - left, bottom - top], frame.extent, rtol=1e-5)
    # Centred, and of one scale up to whole pixels (crop) or whole cells (whole).
    assert (
        abs((left + right) / 2 - (width - 1) / 2) <= 0.5 and abs((top + bottom) / 2 - (height - 1) / 2) <= 0.5
    )
    scale_x, scale_y = frame.extent[0] / w, frame.extent[1] / h
    unit = 1 if kind == "crop" else 8 * max(scale_x, scale_y)
    assert min(abs(scale_x * h - frame.extent[1]), abs(scale_y * w - frame.extent[0])) <= unit


def test_crop_is_the_largest_centred_part() -> None:
    frame = frame_of(np.zeros((100, 300, 3), np.uint8), replace(PLAIN, frame="crop", size=(64, 64)))
    assert (frame.origin, frame.extent) == ((100, 0), (100, 100))


@pytest.mark.parametrize("kind", ["crop", "whole"])
@pytest.mark.parametrize("shape", [(90, 160), (240, 135), (31, 44)])
def test_a_dot_of_the_photograph_is_found_where_it_is(kind: str, shape: tuple[int, int]) -> None:
    height, width = shape
    x, y = width * 0.52, height * 0.46
    yy, xx = np.mgrid[:height, :width]
    sigma = 0.03 * max(shape)
    value = 255 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
    image = np.repeat(value.astype(np.uint8)[..., None], 3, axis=2)
    frame = frame_of(image, replace(PLAIN, frame=kind, size=(160, 120)))
    grey = grey_from_image(frame.image, "cpu")[0, 0]
    weight = (grey**4).numpy()
    rows, columns = np.indices(weight.shape)
    centre = np.array([[(columns * weight).sum(), (rows * weight).sum()]]) / weight.sum()
    np.testing.assert_allclose(frame.to_original(centre.astype(np.float32)), [[x, y]], atol=0.15)


# ---------------------------------------------------------------- the labeller
def labeller(tmp_path: Path, **adaptation) -> AdaptationLabeller:
    config = SuperPointConfig(network=SMALL, adaptation=AdaptationConfig(**adaptation))
    state = {f"network.{name}": tensor for name, tensor in small_network().state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    return build_labeller(config, tmp_path / "weights.safetensors", "cpu")


def test_one_view_labels_as_plain_detection_does(tmp_path: Path) -> None:
    """Frame of the photograph's own size: nothing is resized, nothing is warped."""
    detection = DetectionConfig(threshold=0.015, max_keypoints=30)
    image = texture(48, 64)
    found = labeller(tmp_path, views=1, size=SIZE, detection=detection).label(image, seed=0)
    with torch.no_grad():
        heat = heatmap(small_network()(grey_from_image(image, "cpu")).logits)[0]
    points, scores = select_keypoints(heat, detection)
    assert len(found) > 5
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :2], points.numpy())
    np.testing.assert_allclose(found[:, 2], scores.numpy(), rtol=1e-4)


def test_labels_are_a_function_of_the_seed(tmp_path: Path) -> None:
    label = labeller(tmp_path, views=4, size=SIZE, detection=DetectionConfig(threshold=0.0)).label
    image = texture(60, 80)
    torch.manual_seed(1)
    first = label(image, 7)
    torch.manual_seed(2)
    assert np.array_equal(first, label(image, 7))
    assert not np.array_equal(first, label(image, 8))
    assert (np.diff(first[:, 2]) <= 0).all()
    assert (first[:, :2] >= -0.5).all() and (first[:, :2] <= np.array([79.5, 59.5])).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 200, 3), (300, 2, 3), (17, 23, 3)])
@pytest.mark.parametrize("frame", ["crop", "whole"])
def test_photographs_of_any_size(tmp_path: Path, shape: tuple[int, int, int], frame: str) -> None:
    found = labeller(tmp_path, views=2, size=SIZE, frame=frame).label(texture(*shape[:2]), 0)
    assert found.ndim == 2 and found.shape[1] == 3


def test_a_photograph_without_pixels_has_no_points(tmp_path: Path) -> None:
    label = labeller(tmp_path, views=2, size=SIZE).label
    assert label(np.zeros((0, 5, 3), np.uint8), 0).shape == (0, 3)
    with pytest.raises(ShapeError, match="image: expected uint8"):
        label(np.zeros((5, 5, 3), np.float32), 0)
