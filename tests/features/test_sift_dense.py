"""Upright SIFT at any place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from matchlib.errors import ConfigError, ShapeError
from matchlib.features.config import SiftConfig
from matchlib.features.sift import build_rootsift_dense, build_sift, build_sift_dense
from matchlib.features.types import Float32, Image
from matchlib.geometry.sampling import pixel_grid
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol


@pytest.fixture(scope="module")
def photo() -> Image:
    image: Image = cv2.resize(skimage.data.astronaut(), (240, 240), interpolation=cv2.INTER_AREA)
    return image


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    return torch.tensor([[60, 70], [120.0, 100], [151, 99], [90, 180], [200, 48]])


def of_octaves(photo: Image, points: torch.Tensor, octave: int, layer: int) -> Float32:
    """OpenCV's own upright descriptors with the pyramid that detection uses, at a keypoint scale of a layer."""
    size = 2 * 1.6 * 2 ** (octave + layer / 3)
    keypoints = [cv2.KeyPoint(x, y, size, 0.0, 1.0, octave | layer << 8) for x, y in points.tolist()]
    raw = cv2.SIFT.create().compute(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), keypoints)[1]
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


@pytest.mark.parametrize(("octave", "layer"), [(0, 1), (0, 3), (1, 2)])
def test_is_sift_of_the_scale_space_at_the_same_size(
    photo: Image, points: torch.Tensor, octave: int, layer: int
) -> None:
    config = SiftConfig(dense_size_px=2 * 1.6 * 2 ** (octave + layer / 3))
    ours = build_sift_dense(config, None, "cpu").describe(photo).at(points)[:, 0].numpy()
    similarity = (ours * of_octaves(photo, points, octave, layer)).sum(axis=1)
    # The pyramid halves the resolution of octave 1, so there the two are close but not equal.
    assert similarity.min() > (0.999 if octave == 0 else 0.97), similarity
    shifted = points + torch.tensor([3.0, 0.0])
    elsewhere = build_sift_dense(config, None, "cpu").describe(photo).at(shifted)[:, 0].numpy()
    assert ((ours * elsewhere).sum(axis=1) < similarity).all()


def test_follows_a_shifted_image_and_ignores_contrast(photo: Image, points: torch.Tensor) -> None:
    describer = build_rootsift_dense(SiftConfig(), None, "cpu")
    expected = describer.describe(photo).at(points)
    darker = (photo * 0.5 + 60).astype(np.uint8)
    assert (describer.describe(darker).at(points) * expected).sum(dim=2).min() > 0.98
    shifted = np.ascontiguousarray(np.pad(photo, ((5, 0), (11, 0), (0, 0)), mode="reflect"))
    moved = describer.describe(shifted).at(points + torch.tensor([11.0, 5.0]))
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-2)


def test_every_place_has_a_unit_descriptor_in_order(photo: Image) -> None:
    describer = build_sift_dense(SiftConfig(dense_size_px=4), None, "cpu")
    small = np.ascontiguousarray(photo[:20, :30])
    grid = pixel_grid(20, 30)
    whole = describer.describe(small).at(grid)
    assert whole.shape == (600, 1, 128) and whole.dtype == torch.float32
    torch.testing.assert_close(whole.norm(dim=2), torch.ones(600, 1))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(describer.describe(small).at(grid[order]), whole[order], rtol=0, atol=0)
    assert describer.describe(small).at(torch.zeros(0, 2)).shape == (0, 1, 128)


def test_flat_images_give_finite_descriptors() -> None:
    flat = build_rootsift_dense(SiftConfig(), None, "cpu").describe(np.full((40, 40, 3), 7, np.uint8))
    assert torch.isfinite(flat.at(torch.tensor([[0.0, 0.0], [20.0, 20.0]]))).all()


def test_the_dense_size_changes_dense_results_only() -> None:
    default, other = SiftConfig(), replace(SiftConfig(), dense_size_px=20.0)
    assert build_sift(default, None, "cpu").fingerprint == build_sift(other, None, "cpu").fingerprint
    prints = {
        build_sift_dense(default, None, "cpu").fingerprint,
        build_sift_dense(other, None, "cpu").fingerprint,
        build_rootsift_dense(default, None, "cpu").fingerprint,
    }
    assert len(prints) == 3


def test_registered_and_strict(photo: Image) -> None:
    assert load_symbol(METHODS.get("sift").dense or "") is build_sift_dense
    assert load_symbol(METHODS.get("rootsift").dense or "") is build_rootsift_dense
    with pytest.raises(ConfigError, match="rootsift has no weights"):
        build_rootsift_dense(SiftConfig(), Path("w.pt"), "cpu")
    with pytest.raises(ConfigError, match="sift.dense_size_px: expected at least 2"):
        SiftConfig(dense_size_px=1)
    with pytest.raises(ShapeError, match="points: expected shape"):
        build_sift_dense(SiftConfig(), None, "cpu").describe(photo).at(torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="at least one pixel"):
        build_sift_dense(SiftConfig(), None, "cpu").describe(np.zeros((0, 4, 3), np.uint8))
