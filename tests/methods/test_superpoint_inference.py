"""Whole images: coordinates through padding and every resize, descriptors at any place, images of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, ShapeError
from matchlib.methods.superpoint.config import (
    AdaptationConfig,
    DescriptorConfig,
    DetectionConfig,
    InferenceConfig,
    NetworkConfig,
    SuperPointConfig,
)
from matchlib.methods.superpoint.inference import (
    SuperPointDescriber,
    SuperPointExtractor,
    build,
    build_dense,
    build_labeller,
)
from matchlib.methods.superpoint.network import SuperPointMaps, SuperPointNetwork

SMALL = SuperPointConfig(network=NetworkConfig(variant="small"))
SIZES = [(8, 8), (1, 1), (1, 50), (33, 7), (40, 64), (45, 61)]


class Brightness(SuperPointNetwork):
    """Stands in for a trained network: bright pixels are points; descriptors are the place of the cell."""

    def forward(self, grey: torch.Tensor) -> SuperPointMaps:
        height, width = grey.shape[2:]
        assert height % 8 == 0 and width % 8 == 0, "the network gets whole cells"
        cells = F.pixel_unshuffle(60 * grey - 40, 8)
        logits = torch.cat([cells, torch.zeros_like(cells[:, :1])], dim=1)
        y, x = torch.meshgrid(torch.arange(height / 8), torch.arange(width / 8), indexing="ij")
        place = torch.zeros(1, self.descriptor_dim, height // 8, width // 8)
        place[0, 0], place[0, 1], place[0, 2] = 8 * x + 3.5, 8 * y + 3.5, 1.0
        return SuperPointMaps(logits, place)


def blobs(height: int, width: int, centres: np.ndarray, sigma: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    squared = (x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2
    value = 20 + 220 * np.exp(-squared / (2 * sigma**2)).sum(0)
    return np.repeat(value.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.0).reshape(height, width, 3)


def place_of(descriptors: torch.Tensor) -> torch.Tensor:
    """What `Brightness` put into a descriptor, whatever its length."""
    return descriptors[..., :2] / descriptors[..., 2:3]


@pytest.mark.parametrize("shape", [(64, 80), (61, 83), (64, 77)])
def test_points_and_descriptors_of_padded_images_are_in_place(shape: tuple[int, int]) -> None:
    centres = np.array([[20.0, 30.0], [60.0, 44.0], [41.0, 12.0], [70.0, 55.0]])
    config = replace(SMALL, detection=DetectionConfig(threshold=0.5))
    features = SuperPointExtractor(Brightness(config.network), config, "none").extract(
        blobs(*shape, centres, 1.5)
    )
    assert features.image_size == (shape[1], shape[0])
    found = features.keypoints[np.lexsort(features.keypoints.T)]
    np.testing.assert_array_equal(found, centres[np.lexsort(centres.T)])
    # bilinear reading of a linear map is exact, between the centres of the outermost cells
    places = place_of(torch.from_numpy(features.descriptors)).numpy()
    inner = (features.keypoints < np.array(shape[::-1]) // 8 * 8 - 4.5).all(axis=1)
    np.testing.assert_allclose(places[inner], features.keypoints[inner], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-6)


def test_no_keypoint_lies_in_the_padding() -> None:
    config = replace(
        SMALL, detection=DetectionConfig(threshold=0.0, nms_radius=0, border=0, max_keypoints=10**5)
    )
    features = build(config, None, "cpu").extract(texture(21, 35))
    assert features.keypoints[:, 0].max() <= 34 and features.keypoints[:, 1].max() <= 20
    assert len(features) == 21 * 35


def test_points_of_reduced_images_are_in_pixels_of_the_original() -> None:
    centres = np.array(
        [[61.0, 91.0], [199.0, 130.0], [280.0, 40.0]]
    )  # middles of whole pixels of the reduced
    config = replace(
        SMALL, detection=DetectionConfig(threshold=0.3), inference=InferenceConfig(max_image_side=110)
    )
    extractor = SuperPointExtractor(Brightness(SMALL.network), config, "none")
    features = extractor.extract(blobs(171, 330, centres, 4.0))
    assert features.image_size == (330, 171)
    found = features.keypoints[np.argsort(features.keypoints[:, 0])]
    np.testing.assert_allclose(found, centres, atol=1e-4)


def test_scores_descend_and_keep_to_the_limit() -> None:
    config = replace(SMALL, detection=DetectionConfig(max_keypoints=20))
    features = build(config, None, "cpu").extract(texture(80, 100))
    assert len(features) == 20
    assert (np.diff(features.scores) <= 0).all()


@pytest.mark.parametrize("shape", SIZES)
def test_images_of_any_size(shape: tuple[int, int]) -> None:
    image = texture(*shape)
    features = build(SMALL, None, "cpu").extract(image)
    assert features.descriptors.shape == (len(features), 128)
    described = build_dense(SMALL, None, "cpu").describe(image)
    assert described.at(torch.zeros(1, 2)).shape == (1, 1, 128)


@pytest.mark.parametrize("shape", [(0, 10, 3), (10, 0, 3), (0, 0, 3)])
def test_images_without_pixels(shape: tuple[int, int, int]) -> None:
    image = np.zeros(shape, np.uint8)
    features = build(SMALL, None, "cpu").extract(image)
    assert features.keypoints.shape == (0, 2) and features.descriptors.shape == (0, 128)
    with pytest.raises(ShapeError, match="image: expected at least one pixel"):
        build_dense(SMALL, None, "cpu").describe(image)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((2000, 8, 3), np.float32)]
)
def test_images_that_are_not_rgb_bytes_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="image: expected"):
        build(SMALL, None, "cpu").extract(image)
    with pytest.raises(ShapeError, match="image: expected"):
        build_dense(SMALL, None, "cpu").describe(image)


# ---------------------------------------------------------------- descriptors at any place
@pytest.mark.parametrize("max_side", [1600, 60])
def test_dense_descriptors_are_read_where_asked(max_side: int) -> None:
    config = replace(SMALL, inference=InferenceConfig(max_image_side=max_side))
    described = SuperPointDescriber(Brightness(SMALL.network), config, "none").describe(texture(93, 121))
    points = torch.tensor([[30.0, 40.0], [80.25, 61.5], [55.5, 33.125]])
    seen = torch.tensor([60.0, 46.0] if max_side == 60 else [121.0, 93.0])
    # The map tells places in what the network saw; its area and the image's have the same corners.
    places = (place_of(described.at(points)[:, 0]) + 0.5) * torch.tensor([121.0, 93.0]) / seen - 0.5
    torch.testing.assert_close(places, points, atol=2e-3, rtol=0)
    assert described.at(torch.zeros(0, 2)).shape == (0, 1, 128)


def test_dense_and_sparse_descriptors_are_the_same() -> None:
    image = texture(61, 83)
    features = build(SMALL, None, "cpu").extract(image)
    described = build_dense(SMALL, None, "cpu").describe(image)
    assert len(features) > 5
    dense = described.at(torch.from_numpy(features.keypoints))[:, 0].numpy()
    np.testing.assert_allclose(dense, features.descriptors, atol=1e-5)


def test_describer_says_what_it_is() -> None:
    describer = build_dense(SMALL, None, "cpu")
    assert (describer.members, describer.member_pairs, describer.uses_true_scale) == (
        ("descriptor",),
        "all",
        False,
    )


# ---------------------------------------------------------------- fingerprints
def test_fingerprints_follow_what_is_used(tmp_path: Path) -> None:
    network = SuperPointNetwork(SMALL.network)
    save_file({f"network.{k}": v for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    weights = tmp_path / "w.safetensors"

    def of(builder, config=SMALL, path=weights) -> str:
        return builder(config, path, "cpu").fingerprint

    other_detection = replace(SMALL, detection=DetectionConfig(threshold=0.1))
    other_reading = replace(SMALL, descriptor=DescriptorConfig(sampling="superglue"))
    other_adaptation = replace(SMALL, adaptation=AdaptationConfig(views=3))
    assert of(build) == of(build) == of(build, other_adaptation)
    assert len({of(build), of(build, other_detection), of(build, other_reading), of(build, path=None)}) == 4
    assert of(build_dense) == of(build_dense, other_detection) != of(build_dense, other_reading)
    assert of(build_labeller) == of(build_labeller, other_detection) != of(build_labeller, other_adaptation)


def test_labelling_without_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs trained weights"):
        build_labeller(SMALL, None, "cpu")


# ---------------------------------------------------------------- real photographs
def test_a_real_photograph_and_itself_moved_by_whole_cells(shared_data) -> None:
    """Away from the borders, the network sees the same picture: same points, same descriptors."""
    first = next(
        path for path in sorted(shared_data("hpatches").rglob("1.*")) if path.suffix in (".ppm", ".png")
    )
    image = read_image(first)[:240, :320]
    extractor = build(SMALL, None, "cpu")
    whole, part = extractor.extract(image), extractor.extract(np.ascontiguousarray(image[16:, 24:]))
    shift = np.array([24.0, 16.0], np.float32)
    # A cell sees 42 pixels in each direction; suppression and recovery look a few pixels further.
    inner = ((part.keypoints >= 64) & (part.keypoints < np.array([232, 160]))).all(axis=1)
    assert inner.sum() >= 10
    positions = {tuple(p): i for i, p in enumerate(whole.keypoints.tolist())}
    for point, descriptor in zip(part.keypoints[inner], part.descriptors[inner], strict=True):
        index = positions[tuple((point + shift).tolist())]
        np.testing.assert_allclose(descriptor, whole.descriptors[index], atol=1e-4)
