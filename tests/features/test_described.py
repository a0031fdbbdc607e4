"""Keypoints of a detector with descriptors of a describer."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from matchlib.errors import ConfigError
from matchlib.features.config import DetectorConfig
from matchlib.features.dense import MemberPairs
from matchlib.features.described import DescribedKeypoints
from matchlib.features.detectors import detect_keypoints
from matchlib.features.types import Float32, Image


class Positions:
    """Descriptors that say where they were taken: the unit vector at angle x / 100 and, second, y / 100."""

    def at(self, points_N2: Tensor) -> Tensor:
        angles = points_N2.double() / 100
        return torch.stack([angles.cos(), angles.sin()], dim=2).float()


class PositionDescriber:
    name = "position"
    fingerprint = "p1"
    descriptor_dim = 2
    members: tuple[str, ...] = ("x", "y")
    member_pairs: MemberPairs = "all"
    uses_true_scale = False

    def describe(self, image: Image, *, scale: Float32 | None = None) -> Positions:
        return Positions()


@pytest.fixture(scope="module")
def photo() -> Image:
    image: Image = cv2.resize(skimage.data.astronaut(), (150, 120), interpolation=cv2.INTER_AREA)
    return image


def test_gives_the_first_member_at_the_detectors_keypoints(photo: Image) -> None:
    detector = DetectorConfig(kind="harris", max_keypoints=20)
    features = DescribedKeypoints(PositionDescriber(), detector).extract(photo)
    points, scores = detect_keypoints(photo, detector)
    np.testing.assert_array_equal(features.keypoints, points)
    np.testing.assert_array_equal(features.scores, scores)
    angle = points[:, 0] / 100
    np.testing.assert_allclose(features.descriptors, np.stack([np.cos(angle), np.sin(angle)], 1), atol=1e-6)
    assert features.image_size == (150, 120)


def test_an_empty_image_gives_empty_features() -> None:
    extractor = DescribedKeypoints(PositionDescriber(), DetectorConfig())
    features = extractor.extract(np.full((30, 40, 3), 9, np.uint8))
    assert features.keypoints.shape == (0, 2) and features.descriptors.shape == (0, 2)
    assert features.image_size == (40, 30)


def test_name_and_fingerprint_say_both_parts() -> None:
    describer = PositionDescriber()
    harris = DescribedKeypoints(describer, DetectorConfig(kind="harris"))
    assert harris.name == "position-harris"
    assert DescribedKeypoints(describer, DetectorConfig(), name="mine").name == "mine"
    other = PositionDescriber()
    other.fingerprint = "p2"
    different = [
        DescribedKeypoints(describer, DetectorConfig()),
        DescribedKeypoints(describer, DetectorConfig(kind="harris", max_keypoints=1)),
        DescribedKeypoints(other, DetectorConfig(kind="harris")),
    ]
    assert len({harris.fingerprint, *(extractor.fingerprint for extractor in different)}) == 4
    assert DescribedKeypoints(describer, DetectorConfig(kind="harris")).fingerprint == harris.fingerprint


def test_a_describer_that_is_told_the_true_scale_is_refused() -> None:
    oracle = PositionDescriber()
    oracle.uses_true_scale = cast(bool, True)
    with pytest.raises(ConfigError, match="position: expected a describer that needs one image only"):
        DescribedKeypoints(oracle, DetectorConfig())
