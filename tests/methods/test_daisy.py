"""DAISY: scikit-image's values, in strips or whole, at any place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import skimage.feature
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import ConfigError, ShapeError
from matchlib.features.config import DetectorConfig
from matchlib.features.types import Features, Float32, Image
from matchlib.geometry.sampling import pixel_grid
from matchlib.matching.mutual_nearest import match_mutual_nearest
from matchlib.methods.daisy import daisy as module
from matchlib.methods.daisy.config import DaisyConfig
from matchlib.methods.daisy.daisy import build, build_dense, halo_rows
from matchlib.methods.spec import METHODS

SMALL = DaisyConfig(radius=6, rings=2, histograms=4, orientations=4)


@pytest.fixture(scope="module")
def photo() -> Image:
    image: Image = cv2.resize(skimage.data.astronaut(), (150, 110), interpolation=cv2.INTER_AREA)
    return image


def whole_map(image: Image, config: DaisyConfig, normalization: str) -> Float32:
    """What scikit-image gives for the padded image, called directly."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    padded = cv2.copyMakeBorder(grey, *[config.radius] * 4, cv2.BORDER_REFLECT_101)
    layout = {key: getattr(config, key) for key in ("radius", "rings", "histograms", "orientations")}
    values: Float32 = skimage.feature.daisy(padded, step=1, normalization=normalization, **layout)
    return values


def unit(vectors: Float32) -> Float32:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("normalization", ["l2", "l1", "daisy", "raw"])
def test_integer_positions_give_scikit_images_values(photo: Image, normalization: Any) -> None:
    config = replace(DaisyConfig(), normalization=normalization)
    points = torch.tensor([[0.0, 0.0], [40, 50], [149, 109], [75, 3], [1, 100]])
    ours = build_dense(config, None, "cpu").describe(photo).at(points)
    assert ours.shape == (5, 1, 200) and ours.dtype == torch.float32
    expected = unit(whole_map(photo, config, "off" if normalization == "raw" else normalization))
    columns, rows = points.numpy().astype(int).T
    np.testing.assert_allclose(ours[:, 0].numpy(), expected[rows, columns], atol=2e-6)


def test_positions_between_pixels_mix_the_four_around(photo: Image) -> None:
    expected = whole_map(photo, SMALL, "l2")
    mixed = 0.75 * (0.5 * expected[20, 30] + 0.5 * expected[20, 31]) + 0.25 * (
        0.5 * expected[21, 30] + 0.5 * expected[21, 31]
    )
    ours = build_dense(SMALL, None, "cpu").describe(photo).at(torch.tensor([[30.5, 20.25]]))
    np.testing.assert_allclose(ours[0, 0].numpy(), unit(mixed), atol=2e-6)


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 50), seed=st.integers(0, 1000), radius=st.integers(2, 9))
def test_strips_give_what_the_whole_map_gives(rows: int, seed: int, radius: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (70, 24, 3), np.uint8)
    config = replace(SMALL, radius=radius)
    descriptors = build_dense(config, None, "cpu").describe(noise)
    whole = descriptors.rows(0, 70)
    assert whole.shape == (70, 24, 36)
    for first in range(0, 70, rows):
        strip = descriptors.rows(first, min(first + rows, 70))
        np.testing.assert_allclose(strip, whole[first : first + rows], atol=1e-6)


def test_points_are_computed_in_strips_in_any_order(photo: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = pixel_grid(110, 150)[::7] + torch.tensor([0.3, 0.45])
    shuffled = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))]
    in_one = build_dense(SMALL, None, "cpu").describe(photo).at(shuffled)
    monkeypatch.setattr(module, "_STRIP_BYTES", 0)
    in_strips = build_dense(SMALL, None, "cpu").describe(photo)
    calls: list[tuple[int, int]] = []
    rows = in_strips.rows
    monkeypatch.setattr(
        in_strips, "rows", lambda first, last: calls.append((first, last)) or rows(first, last)
    )
    torch.testing.assert_close(in_strips.at(shuffled), in_one, rtol=0, atol=2e-6)
    assert calls == [(0, 33), (32, 65), (64, 97), (96, 110)]
    calls.clear()
    in_strips.at(torch.tensor([[5.0, 70.0], [9.0, 31.9]]))
    assert calls == [(0, 33), (64, 97)], "only strips that hold points are computed"


def test_the_halo_is_needed(photo: Image) -> None:
    """A change just inside the halo changes a descriptor, a change beyond it does not."""
    config, row = DaisyConfig(radius=4, rings=1, histograms=4, orientations=4), 60
    reach = config.radius + halo_rows(config)
    for distance, changes in ((reach + 1, False), (config.radius, True)):
        changed = photo.copy()
        changed[row + distance] = 255 - changed[row + distance]
        before, after = (
            build_dense(config, None, "cpu").describe(image).rows(row, row + 1) for image in (photo, changed)
        )
        assert (np.abs(before - after).max() > 1e-7) == changes


def test_large_images_are_shrunk_with_their_points(photo: Image) -> None:
    config = replace(SMALL, max_image_side=75)
    small = cv2.resize(photo, (75, 55), interpolation=cv2.INTER_AREA)
    points = torch.tensor(
        [[20.5, 40.5], [100.5, 60.5]]
    )  # the corners between four pixels: centres of the small
    ours = build_dense(config, None, "cpu").describe(photo).at(points)
    expected = build_dense(config, None, "cpu").describe(small).at((points - 0.5) / 2)
    assert (ours * expected).sum(dim=2).min() > 0.999  # grey before or after shrinking: rounding differs


def test_swapped_channels_are_swapped(photo: Image) -> None:
    points = torch.tensor([[30.0, 30.0], [80.0, 50.0]])
    swapped = build_dense(replace(SMALL, swap_red_blue=True), None, "cpu").describe(photo).at(points)
    straight = build_dense(SMALL, None, "cpu")
    mirrored = straight.describe(np.ascontiguousarray(photo[:, :, ::-1])).at(points)
    torch.testing.assert_close(swapped, mirrored, rtol=0, atol=0)
    assert (swapped - straight.describe(photo).at(points)).abs().max() > 1e-3


@pytest.mark.parametrize("normalization", ["l2", "l1", "daisy", "raw"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 40, 3), (40, 2, 3)])
def test_tiny_and_flat_images_are_safe(shape: tuple[int, int, int], normalization: Any) -> None:
    describer = build_dense(replace(DaisyConfig(), normalization=normalization), None, "cpu")
    for image in (np.full(shape, 90, np.uint8), np.random.default_rng(0).integers(0, 256, shape, np.uint8)):
        found = describer.describe(image).at(torch.tensor([[0.0, 0.0], [shape[1] - 1, shape[0] - 1]]))
        assert torch.isfinite(found).all() and (found.norm(dim=2) < 1 + 1e-5).all()
    assert describer.describe(image).at(torch.zeros(0, 2)).shape == (0, 1, 200)


def test_extractor_matches_a_shifted_photograph(photo: Image) -> None:
    extractor = build(DaisyConfig(detector=DetectorConfig(kind="harris", max_keypoints=60)), None, "cpu")
    assert extractor.name == "daisy-skimage-harris" and extractor.descriptor_dim == 200
    features: list[Features] = [
        extractor.extract(np.ascontiguousarray(photo[y : y + 90, x : x + 120])) for x, y in ((0, 0), (13, 6))
    ]
    first, second = match_mutual_nearest(features[0], features[1]).index.T
    shift = features[0].keypoints[first] - features[1].keypoints[second]
    right = (np.abs(shift - [13, 6]) < 1).all(axis=1)
    assert right.sum() >= 30 and right.mean() > 0.7
    assert extractor.extract(np.zeros((50, 50, 3), np.uint8)).descriptors.shape == (0, 200)


def test_registered_and_strict(photo: Image) -> None:
    spec = METHODS.get("daisy")
    assert spec.config is DaisyConfig and spec.weights == "none" and spec.dense is not None
    with pytest.raises(ConfigError, match="daisy has no weights"):
        build_dense(DaisyConfig(), Path("w.pt"), "cpu")
    with pytest.raises(ShapeError, match="expected uint8"):
        build_dense(DaisyConfig(), None, "cpu").describe(photo.astype(np.float32))  # type: ignore[arg-type]
    for wrong in ({"rings": 0}, {"radius": 2}, {"max_image_side": 1}):
        with pytest.raises(ConfigError, match=f"^daisy.{next(iter(wrong))}: expected"):
            DaisyConfig(**wrong)


def test_fingerprint_follows_the_descriptor_not_the_detector() -> None:
    default = build_dense(DaisyConfig(), None, "cpu").fingerprint
    assert (
        default == build_dense(DaisyConfig(detector=DetectorConfig(kind="harris")), None, "cuda").fingerprint
    )
    assert default != build_dense(DaisyConfig(normalization="raw"), None, "cpu").fingerprint
