"""The network against its published table, and what it does with sizes and seeds."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from torch.nn import functional as F

from matchlib.errors import ConfigError, ShapeError
from matchlib.methods.superpoint import SPECS
from matchlib.methods.superpoint.config import (
    AdaptationConfig,
    DetectionConfig,
    InferenceConfig,
    NetworkConfig,
    SuperPointConfig,
)
from matchlib.methods.superpoint.network import (
    SuperPointNetwork,
    check_image,
    grey_from_image,
    grey_from_rgb,
    pad_to_cells,
)

TABLE = (  # name in our network, channels in and out, kernel, parameters: DeTone et al., Magic Leap's release
    ("backbone.0.0", 1, 64, 3, 640),
    ("backbone.0.1", 64, 64, 3, 36_928),
    ("backbone.1.0", 64, 64, 3, 36_928),
    ("backbone.1.1", 64, 64, 3, 36_928),
    ("backbone.2.0", 64, 128, 3, 73_856),
    ("backbone.2.1", 128, 128, 3, 147_584),
    ("backbone.3.0", 128, 128, 3, 147_584),
    ("backbone.3.1", 128, 128, 3, 147_584),
    ("detector.0", 128, 256, 3, 295_168),
    ("detector.1", 256, 65, 1, 16_705),
    ("descriptor.0", 128, 256, 3, 295_168),
    ("descriptor.1", 256, 256, 1, 65_792),
)


def network_of(seed: int = 0, **settings) -> SuperPointNetwork:
    network = SuperPointNetwork(NetworkConfig(**settings))
    network.initialise(torch.Generator().manual_seed(seed))
    return network.eval()


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_layers_are_those_of_the_table() -> None:
    plain, normalised = network_of(layout="vgg"), network_of(layout="vgg_bn")
    assert len(plain.state_dict()) == 24
    assert count(plain) == 1_300_865
    assert count(normalised) == 1_304_067
    for name, channels, width, kernel, parameters in TABLE:
        conv = plain.get_submodule(f"{name}.conv")
        assert conv.weight.shape == (width, channels, kernel, kernel)
        assert count(conv) == parameters
        assert normalised.get_submodule(f"{name}.bn").eps == 1e-3


def test_forward_is_the_table_written_out() -> None:
    """Against plain functional calls: order of layers, pools, activations, bare ends of the heads."""
    network = network_of(layout="vgg")
    state = network.state_dict()

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    grey = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(1))
    x = conv("backbone.0.1", conv("backbone.0.0", grey).relu()).relu()
    for stage in (1, 2, 3):
        x = F.max_pool2d(x, 2)
        x = conv(f"backbone.{stage}.1", conv(f"backbone.{stage}.0", x).relu()).relu()
    with torch.no_grad():
        maps = network(grey)
        torch.testing.assert_close(maps.logits, conv("detector.1", conv("detector.0", x).relu()))
        torch.testing.assert_close(maps.descriptors, conv("descriptor.1", conv("descriptor.0", x).relu()))
        assert torch.equal(network.detector_logits(grey), maps.logits)
    assert maps.logits.shape == (2, 65, 4, 6)
    assert maps.descriptors.shape == (2, 256, 4, 6)


@pytest.mark.parametrize("layout", ["vgg", "vgg_bn"])
def test_small_variant_is_about_a_quarter(layout: str) -> None:
    small = network_of(layout=layout, variant="small")
    assert 0.2 < count(small) / count(network_of(layout=layout)) < 0.3
    assert small(torch.zeros(1, 1, 16, 16)).descriptors.shape == (1, small.descriptor_dim, 2, 2)


def test_initial_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = network_of(seed=5).state_dict()
    torch.manual_seed(2)
    same, other = network_of(seed=5).state_dict(), network_of(seed=6).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["backbone.0.0.conv.weight"], other["backbone.0.0.conv.weight"])


@pytest.mark.parametrize("layout", ["vgg", "vgg_bn"])
def test_signal_neither_vanishes_nor_explodes_at_the_start(layout: str) -> None:
    maps = network_of(layout=layout)(torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    for values in (maps.logits, maps.descriptors):
        assert 0.2 < values.std().item() < 5.0


def test_training_mode_moves_statistics_and_evaluation_mode_does_not() -> None:
    network = network_of(variant="small", batch_norm_momentum=0.5)
    before = network.backbone[0][0].bn.running_mean.clone()
    grey = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    network(grey)
    assert torch.equal(network.backbone[0][0].bn.running_mean, before)
    network.train()(grey)
    assert not torch.equal(network.backbone[0][0].bn.running_mean, before)


@pytest.mark.parametrize("shape", [(1, 1, 32, 36), (1, 1, 30, 32), (1, 3, 32, 32), (1, 32, 32), (1, 1, 0, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="grey: expected"):
        network_of(variant="small")(torch.zeros(shape))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (7, 9), (16, 17), (3, 40)])
def test_padding_repeats_the_border_up_to_whole_cells(height: int, width: int) -> None:
    image = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    padded = pad_to_cells(image)
    assert padded.shape[2] % 8 == 0 and padded.shape[3] % 8 == 0
    assert padded.shape[2] - height < 8 and padded.shape[3] - width < 8
    rows = torch.arange(padded.shape[2]).clamp(max=height - 1)
    columns = torch.arange(padded.shape[3]).clamp(max=width - 1)
    assert torch.equal(padded[0, 0], image[0, 0][rows[:, None], columns])


def test_grey_is_luma() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    expected = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY) / 255
    np.testing.assert_allclose(grey_from_image(image, "cpu")[0, 0].numpy(), expected, atol=1e-6)
    assert grey_from_rgb(torch.ones(1, 3, 2, 2)).sub(1).abs().max() < 1e-6


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_images_that_are_not_rgb_bytes_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="image: expected"):
        check_image(image)


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("part", "settings", "key"),
    [
        (NetworkConfig, {"batch_norm_momentum": 0.0}, "superpoint.network.batch_norm_momentum"),
        (DetectionConfig, {"threshold": 1.0}, "superpoint.detection.threshold"),
        (DetectionConfig, {"nms_radius": -1}, "superpoint.detection.nms_radius"),
        (DetectionConfig, {"nms_iou": 1.0}, "superpoint.detection.nms_iou"),
        (DetectionConfig, {"border": -1}, "superpoint.detection.border"),
        (DetectionConfig, {"max_keypoints": 0}, "superpoint.detection.max_keypoints"),
        (InferenceConfig, {"max_image_side": 8}, "superpoint.inference.max_image_side"),
        (AdaptationConfig, {"views": 0}, "superpoint.adaptation.views"),
        (AdaptationConfig, {"size": (320, 250)}, "superpoint.adaptation.size"),
        (AdaptationConfig, {"views": 3, "min_views": 4}, "superpoint.adaptation.min_views"),
        (AdaptationConfig, {"border_erosion": -1}, "superpoint.adaptation.border_erosion"),
        (AdaptationConfig, {"batch_size": 0}, "superpoint.adaptation.batch_size"),
    ],
)
def test_impossible_settings_name_their_key(part: type, settings: dict, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part(**settings)
    assert str(caught.value).startswith(f"{key}: expected ")


def test_settings_survive_yaml() -> None:
    adapter = TypeAdapter(SuperPointConfig)
    config = SuperPointConfig(adaptation=AdaptationConfig(views=7, frame="crop"))
    text = yaml.safe_dump(adapter.dump_python(config, mode="json"))
    assert adapter.validate_python(yaml.safe_load(text)) == config


def test_the_graph_reads_the_method_without_torch() -> None:
    code = "import sys; import matchlib.methods.superpoint as m; m.SPECS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stages_follow_each_other() -> None:
    (spec,) = SPECS
    assert list(spec.stages) == ["shapes", "magicpoint", "superpoint"]
    assert [stage.init_from for stage in spec.stages.values()] == [None, "shapes", "magicpoint"]
    assert [stage.labels_from for stage in spec.stages.values()] == [None, "shapes", "magicpoint"]
