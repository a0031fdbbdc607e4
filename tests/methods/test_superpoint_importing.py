"""Weights that other programs wrote, against modules built as those programs build them; and wrong files."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matchlib.errors import ConfigError, DataError
from matchlib.methods.superpoint.config import NetworkConfig, SuperPointConfig
from matchlib.methods.superpoint.importing import import_weights, load_network
from matchlib.methods.superpoint.network import SuperPointNetwork
from matchlib.methods.superpoint.training import build as build_trainable

VGG = SuperPointConfig(network=NetworkConfig(layout="vgg"))
VGG_BN = SuperPointConfig(network=NetworkConfig(layout="vgg_bn"))


class DemoNetwork(nn.Module):
    """The names and order of the layers behind `superpoint_v1.pth`, from its published table."""

    def __init__(self) -> None:
        super().__init__()
        widths = {"1": (1, 64), "2": (64, 64), "3": (64, 128), "4": (128, 128)}
        for stage, (channels, width) in widths.items():
            self.add_module(f"conv{stage}a", nn.Conv2d(channels, width, 3, 1, 1))
            self.add_module(f"conv{stage}b", nn.Conv2d(width, width, 3, 1, 1))
        for head, width in (("P", 65), ("D", 256)):
            self.add_module(f"conv{head}a", nn.Conv2d(128, 256, 3, 1, 1))
            self.add_module(f"conv{head}b", nn.Conv2d(256, width, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layers = dict(self.named_children())
        for stage in "1234":
            x = layers[f"conv{stage}b"](layers[f"conv{stage}a"](x).relu()).relu()
            if stage != "4":
                x = nn.functional.max_pool2d(x, 2, 2)
        logits = layers["convPb"](layers["convPa"](x).relu())
        return logits, layers["convDb"](layers["convDa"](x).relu())


def mit_block(channels: int, width: int, kernel: int, *, activated: bool = True) -> nn.Sequential:
    layers = OrderedDict(conv=nn.Conv2d(channels, width, kernel, padding=kernel // 2))
    if activated:
        layers["activation"] = nn.ReLU()
    layers["bn"] = nn.BatchNorm2d(width, eps=0.001)
    return nn.Sequential(layers)


class MitNetwork(nn.Module):
    """The names and order of the layers behind `superpoint_v6_from_tf.pth`."""

    def __init__(self) -> None:
        super().__init__()
        stages, channels = [], 1
        for index, width in enumerate((64, 64, 128, 128)):
            layers = [mit_block(channels, width, 3), mit_block(width, width, 3)]
            stages.append(nn.Sequential(*layers, *([nn.MaxPool2d(2, 2)] if index < 3 else [])))
            channels = width
        self.backbone = nn.Sequential(*stages)
        self.detector = nn.Sequential(mit_block(128, 256, 3), mit_block(256, 65, 1, activated=False))
        self.descriptor = nn.Sequential(mit_block(128, 256, 3), mit_block(256, 256, 1, activated=False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.backbone(x)
        return self.detector(x), self.descriptor(x)


def with_random_tensors(module: nn.Module) -> nn.Module:
    """Every tensor random, statistics and scales included: equal outputs then prove the order of layers."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 4:
            deviation = (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif not name.endswith("num_batches_tracked"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def check_same_outputs(config: SuperPointConfig, path: Path, reference: nn.Module, tmp_path: Path) -> None:
    """Import, save as a stage's weights, load, run."""
    state = import_weights(config, path)
    stage = tmp_path / "weights.safetensors"
    save_file(state, stage)
    grey = torch.rand(2, 1, 40, 56, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        logits, descriptors = reference.double()(grey)
        maps = load_network(config, stage).double()(grey)
    torch.testing.assert_close(maps.logits, logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(maps.descriptors, descriptors, atol=1e-9, rtol=1e-9)
    assert logits.std() > 0.1 and descriptors.std() > 0.1


@pytest.mark.parametrize("zipped", [True, False])
def test_demo_layout_gives_the_same_outputs(tmp_path: Path, zipped: bool) -> None:
    reference = with_random_tensors(DemoNetwork())
    assert len(reference.state_dict()) == 24
    path = tmp_path / "superpoint_v1.pth"
    torch.save(reference.state_dict(), path, _use_new_zipfile_serialization=zipped)
    check_same_outputs(VGG, path, reference, tmp_path)


def test_mit_layout_gives_the_same_outputs(tmp_path: Path) -> None:
    reference = with_random_tensors(MitNetwork())
    assert len(reference.state_dict()) == 84
    path = tmp_path / "superpoint_v6_from_tf.pth"
    torch.save(reference.state_dict(), path)
    check_same_outputs(VGG_BN, path, reference, tmp_path)


def test_safetensors_files_are_imported_too(tmp_path: Path) -> None:
    reference = with_random_tensors(MitNetwork())
    path = tmp_path / "converted.safetensors"
    save_file(reference.state_dict(), path)
    check_same_outputs(VGG_BN, path, reference, tmp_path)


def test_double_and_half_become_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save(with_random_tensors(DemoNetwork()).half().state_dict(), path)
    assert {tensor.dtype for tensor in import_weights(VGG, path).values()} == {torch.float32}


# ---------------------------------------------------------------- wrong files
def saved(tmp_path: Path, state: object) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("config", "module", "layout"), [(VGG, MitNetwork, "vgg_bn"), (VGG_BN, DemoNetwork, "vgg")]
)
def test_the_other_layout_names_the_setting(
    tmp_path: Path, config: SuperPointConfig, module: type, layout: str
) -> None:
    path = saved(tmp_path, module().state_dict())
    with pytest.raises(ConfigError, match=rf"^superpoint.network.layout: expected '{layout}' for .*weights"):
        import_weights(config, path)


def test_first_missing_tensor_is_named_with_its_shape(tmp_path: Path) -> None:
    state = DemoNetwork().state_dict()
    del state["conv3b.bias"], state["convDa.weight"]
    expected = r"network.backbone.2.1.conv.bias of shape \(128,\), got no such tensor"
    with pytest.raises(DataError, match=expected):
        import_weights(VGG, saved(tmp_path, state))


def test_first_differing_shape_is_named(tmp_path: Path) -> None:
    state = MitNetwork().state_dict()
    state["detector.1.conv.weight"] = torch.zeros(64, 256, 1, 1)
    state["detector.1.bn.weight"] = torch.zeros(64)
    expected = r"network.detector.1.conv.weight: expected shape \(65, 256, 1, 1\), got \(64, 256, 1, 1\)"
    with pytest.raises(DataError, match=expected):
        import_weights(VGG_BN, saved(tmp_path, state))


def test_unexpected_tensor_is_named(tmp_path: Path) -> None:
    state = {**MitNetwork().state_dict(), "scale_head.weight": torch.zeros(3)}
    with pytest.raises(DataError, match=r"unexpected network.scale_head.weight of shape \(3,\)"):
        import_weights(VGG_BN, saved(tmp_path, state))


def test_full_weights_do_not_fit_the_small_variant(tmp_path: Path) -> None:
    small = SuperPointConfig(network=NetworkConfig(layout="vgg", variant="small"))
    with pytest.raises(
        DataError, match=r"expected shape \(32, 1, 3, 3\), got \(64, 1, 3, 3\).*variant 'small'"
    ):
        import_weights(small, saved(tmp_path, DemoNetwork().state_dict()))


def test_weights_of_another_method_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"features.0.weight": torch.zeros(2)})
    with pytest.raises(
        DataError, match=r"conv1a.weight or backbone.0.0.conv.weight, got 1 tensors, first feat"
    ):
        import_weights(VGG, path)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (torch.zeros(3), "got Tensor"),
        ({"model": {"a": torch.zeros(1)}}, "got a dictionary whose 'model' is of type dict"),
        ([], "got list"),
    ],
)
def test_files_that_hold_something_else_say_what(tmp_path: Path, state: object, found: str) -> None:
    with pytest.raises(DataError, match=f"expected a flat dictionary of tensors, {found}"):
        import_weights(VGG, saved(tmp_path, state))


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, DemoNetwork())  # a pickled module
    with pytest.raises(DataError, match="expected PyTorch weights"):
        import_weights(VGG, path)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected"):
        import_weights(VGG, path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_absent_files_are_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match="weights not found"):
        import_weights(VGG, tmp_path / f"nothing.{ending}")


# ---------------------------------------------------------------- weights of a stage
def stage_state(config: SuperPointConfig) -> dict[str, Tensor]:
    return {
        f"network.{name}": tensor for name, tensor in SuperPointNetwork(config.network).state_dict().items()
    }


@pytest.mark.parametrize("stage", ["shapes", "superpoint"])
def test_what_a_stage_saves_is_what_inference_and_import_speak_of(tmp_path: Path, stage: str) -> None:
    trained = build_trainable(VGG_BN, stage, 0)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    network = load_network(VGG_BN, tmp_path / "w.safetensors")
    assert torch.equal(network.detector[1].conv.weight, trained.network.detector[1].conv.weight)
    published = import_weights(VGG_BN, saved(tmp_path, with_random_tensors(MitNetwork()).state_dict()))
    trained.load_state_dict(published)
    assert torch.equal(trained.network.detector[1].conv.weight, published["network.detector.1.conv.weight"])


@pytest.mark.parametrize("layout", ["vgg", "vgg_bn"])
def test_stage_weights_come_back_exactly(tmp_path: Path, layout: str) -> None:
    config = SuperPointConfig(network=NetworkConfig(layout=layout, variant="small"))
    state = stage_state(config)
    save_file(state, tmp_path / "w.safetensors")
    network = load_network(config, tmp_path / "w.safetensors")
    assert not network.training
    assert all(torch.equal(state[f"network.{name}"], tensor) for name, tensor in network.state_dict().items())


def test_stage_weights_of_another_layout_are_refused(tmp_path: Path) -> None:
    save_file(stage_state(VGG), tmp_path / "w.safetensors")
    expected = r"network.backbone.0.0.bn.weight of shape \(64,\), got no such tensor.*layout 'vgg_bn'"
    with pytest.raises(DataError, match=expected):
        load_network(VGG_BN, tmp_path / "w.safetensors")


def test_no_weights_give_the_untrained_network_of_seed_0() -> None:
    first, second = load_network(VGG, None), load_network(VGG, None)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
