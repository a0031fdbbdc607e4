"""Inference: coordinates through every resize, weights files, and images of any size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import save_file

from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.methods import aslfeat
from matchlib.methods.aslfeat.config import ASLFeatConfig, DetectionConfig, InferenceConfig, NetworkConfig
from matchlib.methods.aslfeat.inference import ASLFeatExtractor, build, number_of_scales, pad_for_network
from matchlib.methods.aslfeat.model import ASLFeat, DenseFeatures
from matchlib.methods.aslfeat.training import build as build_trainable

SMALL = NetworkConfig(variant="small")


class Brightness(ASLFeat):
    """Stands in for a trained network: the score is the brightness, so that a bright blob is a keypoint."""

    def forward(self, grey: torch.Tensor, *, tower: int = 0) -> DenseFeatures:
        height, width = grey.shape[2:]
        assert height % 4 == 0 and width % 4 == 0, "the network gets aligned sizes"
        flat = torch.zeros(1, self.network.descriptor_dim, height // 4, width // 4)
        flat[0, 0] = 1.0
        return DenseFeatures(flat, (grey[:, 0],), (1.0,), (height, width))


def blob_image(height: int, width: int, centres: np.ndarray, sigma: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    squared = (x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2
    value = 20 + 200 * np.exp(-squared / (2 * sigma**2)).sum(0)
    return np.repeat(value.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def brightness_extractor(**settings) -> ASLFeatExtractor:
    config = ASLFeatConfig(network=SMALL, inference=InferenceConfig(score_threshold=1.0, **settings))
    return ASLFeatExtractor(Brightness(config, deformable=False).eval(), weights_digest="none")


def check_found(keypoints: np.ndarray, centres: np.ndarray, *, times: int) -> None:
    """Every centre is found so often at least (8-bit blobs have flat tops), and nothing else is."""
    distance = np.abs(keypoints[:, None] - centres[None]).max(axis=2)
    assert distance.min(axis=1).max() < 0.5
    assert (np.bincount(distance.argmin(axis=1), minlength=len(centres)) >= times).all()


CENTRES = np.array([[61.3, 40.8], [150.0, 90.5], [97.6, 121.2]])


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (3, 3)])
@pytest.mark.parametrize("max_image_side", [2000, 160, 131, 97])
def test_a_blob_is_found_at_its_true_position_at_any_size(shift, max_image_side):
    image = blob_image(170 + shift[0], 210 + shift[1], CENTRES, sigma=6.0)
    features = brightness_extractor(max_image_side=max_image_side).extract(image)
    check_found(features.keypoints, CENTRES, times=1)
    assert features.image_size == (210 + shift[1], 170 + shift[0])


@pytest.mark.parametrize("max_image_side", [2000, 333])
def test_a_blob_is_found_at_its_true_position_at_every_scale(max_image_side):
    centres = 2.0 * CENTRES
    image = blob_image(341, 422, centres, sigma=7.0)
    features = brightness_extractor(max_image_side=max_image_side, multi_scale=True).extract(image)
    scales = number_of_scales(341, 422) if max_image_side == 2000 else number_of_scales(269, 333)
    assert scales >= 2
    check_found(features.keypoints, centres, times=scales)


def test_larger_dilations_need_and_get_larger_maps():
    detection = DetectionConfig(dilations=(3, 5, 4))
    config = ASLFeatConfig(network=SMALL, detection=detection)
    with pytest.raises(ShapeError, match="at least 20, got"):
        ASLFeat(config, deformable=False).eval()(torch.zeros(1, 1, 16, 40))
    image = np.random.default_rng(0).integers(0, 256, (13, 40, 3), dtype=np.uint8)
    assert build(config, None, "cpu").extract(image).image_size == (40, 13)


def test_number_of_scales_is_the_described_one():
    assert number_of_scales(480, 640) == 3  # 1, 0.71, 0.5
    assert number_of_scales(2000, 1500) == 3
    assert number_of_scales(256, 256) == 2
    assert number_of_scales(100, 80) == 1


@pytest.mark.parametrize("size", [(0, 0), (0, 30), (1, 1), (5, 9), (11, 11), (33, 18)])
@pytest.mark.parametrize("multi_scale", [False, True])
def test_images_of_any_size_are_accepted(size, multi_scale):
    config = ASLFeatConfig(network=SMALL, inference=InferenceConfig(multi_scale=multi_scale))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    features = build(config, None, "cpu").extract(image)
    assert features.image_size == (size[1], size[0])
    assert features.descriptors.shape == (len(features), 64)
    if min(size) < 11:
        assert len(features) == 0


def test_a_uniform_image_has_no_features():
    features = build(ASLFeatConfig(network=SMALL), None, "cpu").extract(np.full((40, 50, 3), 90, np.uint8))
    assert len(features) == 0 and features.descriptors.shape == (0, 64)


def test_features_keep_their_promises():
    image = np.random.default_rng(1).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    extractor = build(ASLFeatConfig(network=SMALL, inference=InferenceConfig(max_keypoints=40)), None, "cpu")
    features = extractor.extract(image)
    assert 10 < len(features) <= 40
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    assert (np.diff(features.scores) <= 0).all()
    assert (features.keypoints >= 4.5).all() and (features.keypoints <= np.array([82, 60]) - 4.5).all()
    again = extractor.extract(image)
    np.testing.assert_array_equal(features.keypoints, again.keypoints)
    np.testing.assert_array_equal(features.descriptors, again.descriptors)


def test_padding_repeats_the_border_to_a_multiple_of_four():
    image = torch.arange(5.0 * 9).view(1, 1, 5, 9)
    padded = pad_for_network(image, 8)
    assert padded.shape == (1, 1, 8, 12)
    assert torch.equal(padded[0, 0, :5, :9], image[0, 0])
    assert torch.equal(padded[0, 0, 7, :9], image[0, 0, 4])
    assert pad_for_network(torch.zeros(1, 1, 16, 20), 8).shape == (1, 1, 16, 20)


@pytest.mark.parametrize("bad", [np.zeros((10, 10), np.uint8), np.zeros((10, 10, 3), np.float32)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(ShapeError, match="image: expected"):
        build(ASLFeatConfig(network=SMALL), None, "cpu").extract(bad)


@pytest.mark.parametrize("stage", ["base", "dcn"])
def test_saved_weights_of_either_stage_give_the_model_back(tmp_path: Path, stage):
    config = ASLFeatConfig(network=SMALL)
    model = build_trainable(config, stage, seed=5)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    image = np.random.default_rng(2).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    expected = ASLFeatExtractor(model.eval(), weights_digest="").extract(image)
    found = build(config, path, "cpu").extract(image)
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    np.testing.assert_array_equal(found.descriptors, expected.descriptors)


def test_bad_weights_are_named(tmp_path: Path):
    config = ASLFeatConfig(network=SMALL)
    with pytest.raises(DataError, match=r"absent\.safetensors: weights not found"):
        build(config, tmp_path / "absent.safetensors", "cpu")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(DataError, match=r"broken\.safetensors: expected a safetensors file"):
        build(config, tmp_path / "broken.safetensors", "cpu")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"other\.safetensors: expected weights of aslfeat, variant 'small'"):
        build(config, tmp_path / "other.safetensors", "cpu")
    save_file(build_trainable(ASLFeatConfig(), "base", seed=0).state_dict(), tmp_path / "full.safetensors")
    with pytest.raises(DataError, match="variant 'small'"):
        build(config, tmp_path / "full.safetensors", "cpu")


def test_the_first_tensor_that_differs_is_named(tmp_path: Path):
    config, path = ASLFeatConfig(network=SMALL), tmp_path / "w.safetensors"
    state = build_trainable(config, "base", seed=0).state_dict()
    names = [name for name in state if name.endswith("weight")]
    save_file(state | {names[1]: torch.zeros(1, 2), names[4]: torch.zeros(3)}, path)
    with pytest.raises(DataError, match=rf"'{names[1]}': expected shape \(.*\), got \(1, 2\)"):
        build(config, path, "cpu")
    save_file({"another.weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=rf"'{names[0]}' is missing"):
        build(config, path, "cpu")


def test_fingerprint_follows_weights_and_inference_settings_only(tmp_path: Path):
    config = ASLFeatConfig(network=SMALL)
    path = tmp_path / "w.safetensors"
    save_file(build_trainable(config, "base", seed=1).state_dict(), path)
    fingerprints = [
        build(config, None, "cpu").fingerprint,
        build(config, path, "cpu").fingerprint,
        build(dataclasses.replace(config, inference=InferenceConfig(nms_size=5)), path, "cpu").fingerprint,
    ]
    assert len(set(fingerprints)) == 3
    other_validation = dataclasses.replace(config, validation_keypoints=7)
    assert build(other_validation, path, "cpu").fingerprint == fingerprints[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nms_size": 4}, r"aslfeat\.inference\.nms_size: expected an odd number"),
        ({"score_threshold": float("nan")}, r"aslfeat\.inference\.score_threshold"),
        ({"edge_threshold": 0.5}, r"aslfeat\.inference\.edge_threshold"),
        ({"border": 0}, r"aslfeat\.inference\.border"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        InferenceConfig(**settings)


def test_the_settings_shown_in_the_readme_are_valid():
    readme = (Path(aslfeat.__file__).parent / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in readme.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        config = TypeAdapter(ASLFeatConfig).validate_python(yaml.safe_load(block), strict=False)
        assert config != ASLFeatConfig()
