"""SIFT and RootSIFT: positions, order, lengths, edges."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from matchlib.errors import ConfigError, ShapeError
from matchlib.features.config import SiftConfig
from matchlib.features.sift import SiftExtractor, build_rootsift, build_sift
from matchlib.features.types import Image
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol


@pytest.fixture(scope="module")
def photo() -> Image:
    image: Image = cv2.resize(skimage.data.astronaut(), (256, 256), interpolation=cv2.INTER_AREA)
    return image


def test_finds_a_blob_at_its_centre() -> None:
    columns, rows = np.meshgrid(np.arange(120), np.arange(90))
    grey = 255 * np.exp(-((columns - 71) ** 2 + (rows - 38) ** 2) / (2 * 6.0**2))
    image = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    for is_precise, tolerance in ((True, 0.1), (False, 0.35)):
        features = build_sift(SiftConfig(precise_upscale=is_precise), None, "cpu").extract(image)
        assert len(features) >= 1 and features.image_size == (120, 90)
        assert features.keypoints[0] == pytest.approx([71, 38], abs=tolerance)


def test_agrees_with_opencv(photo: Image) -> None:
    features = build_sift(SiftConfig(max_keypoints=0), None, "cpu").extract(photo)
    keypoints, descriptors = cv2.SIFT.create().detectAndCompute(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), None)
    order = sorted(range(len(keypoints)), key=lambda row: -keypoints[row].response)
    expected = descriptors[order] / np.linalg.norm(descriptors[order], axis=1, keepdims=True)
    np.testing.assert_array_equal(features.keypoints, np.float32([keypoints[row].pt for row in order]))
    np.testing.assert_allclose(features.descriptors, expected, atol=1e-6)


@pytest.mark.parametrize("build", [build_sift, build_rootsift])
def test_best_first_exact_limit_and_unit_length(photo: Image, build: type[SiftExtractor]) -> None:
    features = build(SiftConfig(max_keypoints=100), None, "cpu").extract(photo)  # type: ignore[arg-type]
    assert len(features) == 100
    assert (np.diff(features.scores) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    assert features.descriptors.dtype == np.float32


def test_rootsift_is_the_root_of_l1_normalised_sift(photo: Image) -> None:
    sift = build_sift(SiftConfig(max_keypoints=50), None, "cpu").extract(photo).descriptors.astype(np.float64)
    root = build_rootsift(SiftConfig(max_keypoints=50), None, "cpu").extract(photo).descriptors
    np.testing.assert_allclose(root**2, sift / sift.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 30, 3), (1, 1, 3), (7, 300, 3), (0, 5, 3)])
def test_a_featureless_image_gives_no_features(shape: tuple[int, int, int]) -> None:
    features = build_rootsift(SiftConfig(), None, "cpu").extract(np.full(shape, 128, np.uint8))
    assert features.keypoints.shape == (0, 2) and features.descriptors.shape == (0, 128)


def test_wrong_images_and_settings_are_refused(photo: Image) -> None:
    with pytest.raises(ShapeError, match=r"image: expected shape \(H, W, 3\)"):
        build_sift(SiftConfig(), None, "cpu").extract(photo[:, :, 0])
    with pytest.raises(ShapeError, match="image: expected uint8, got float64"):
        build_sift(SiftConfig(), None, "cpu").extract(photo / 255)
    with pytest.raises(ConfigError, match="sift has no weights"):
        build_sift(SiftConfig(), Path("weights.pt"), "cpu")
    with pytest.raises(ConfigError, match="sift.sigma"):
        SiftConfig(sigma=0)


def test_fingerprint_follows_method_and_settings() -> None:
    same = build_sift(SiftConfig(), None, "cpu").fingerprint
    assert same == build_sift(SiftConfig(), None, "cuda").fingerprint
    others = [
        build_rootsift(SiftConfig(), None, "cpu").fingerprint,
        build_sift(SiftConfig(max_keypoints=10), None, "cpu").fingerprint,
    ]
    assert len({same, *others}) == 3


@pytest.mark.parametrize("name", ["sift", "rootsift"])
def test_registered_as_methods_without_stages(name: str, photo: Image) -> None:
    spec = METHODS.get(name)
    build = load_symbol(spec.extractor)
    extractor = build(spec.config(), None, "cpu")  # type: ignore[operator]
    assert extractor.name == name and not spec.stages and spec.trainable is None
    assert len(extractor.extract(photo)) > 0
