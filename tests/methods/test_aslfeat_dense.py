"""ASLFeat's descriptors at any place are those that its extraction reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import save_file

from matchlib.errors import DataError, ShapeError
from matchlib.features.types import Image
from matchlib.methods.aslfeat.config import ASLFeatConfig, InferenceConfig, NetworkConfig
from matchlib.methods.aslfeat.inference import build, build_dense
from matchlib.methods.aslfeat.model import ASLFeat
from matchlib.methods.spec import METHODS
from matchlib.randomness import torch_generator_for
from matchlib.registry import load_symbol

SMALL = ASLFeatConfig(network=NetworkConfig(variant="small"), inference=InferenceConfig(score_threshold=0.0))


@pytest.fixture(scope="module")
def photo() -> Image:
    image: Image = cv2.resize(skimage.data.astronaut(), (101, 82), interpolation=cv2.INTER_AREA)
    return image


@pytest.mark.parametrize("max_side", [2048, 64])
def test_keypoints_have_the_descriptors_of_extraction(photo: Image, max_side: int) -> None:
    config = replace(SMALL, inference=replace(SMALL.inference, max_image_side=max_side))
    features = build(config, None, "cpu").extract(photo)
    assert len(features) > 20
    dense = build_dense(config, None, "cpu").describe(photo).at(torch.from_numpy(features.keypoints))
    assert dense.shape == (len(features), 1, features.descriptors.shape[1])
    np.testing.assert_allclose(dense[:, 0].numpy(), features.descriptors, atol=1e-5)


def test_is_one_scale_whatever_extraction_uses(photo: Image) -> None:
    multi = replace(SMALL, inference=replace(SMALL.inference, multi_scale=True))
    points = torch.tensor([[0.0, 0.0], [100.0, 81.0], [33.3, 40.1]])
    one, several = (build_dense(config, None, "cpu") for config in (SMALL, multi))
    torch.testing.assert_close(several.describe(photo).at(points), one.describe(photo).at(points))
    assert one.fingerprint == several.fingerprint != build(SMALL, None, "cpu").fingerprint
    assert one.describe(photo).at(torch.zeros(0, 2)).shape == (0, 1, one.descriptor_dim)


def test_weights_come_from_a_file(photo: Image, tmp_path: Path) -> None:
    model = ASLFeat(SMALL, deformable=True)
    model.network.initialise(torch_generator_for(3, "test"))
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    points = torch.tensor([[20.0, 30.0]])
    from_file = build_dense(SMALL, path, "cpu")
    untrained = build_dense(SMALL, None, "cpu")
    assert from_file.fingerprint != untrained.fingerprint
    assert (from_file.describe(photo).at(points) - untrained.describe(photo).at(points)).abs().max() > 1e-3
    with pytest.raises(DataError, match="variant 'full'"):
        build_dense(ASLFeatConfig(), path, "cpu")


def test_registered_and_strict(photo: Image) -> None:
    assert load_symbol(METHODS.get("aslfeat").dense or "") is build_dense
    describer = build_dense(SMALL, None, "cpu")
    with pytest.raises(ShapeError, match="at least one pixel"):
        describer.describe(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(ShapeError, match="points: expected shape"):
        describer.describe(photo).at(torch.zeros(3))
