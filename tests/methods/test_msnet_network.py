"""The network: its layer table, where its cells stand, and what dilation keeps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from matchlib.errors import ConfigError, ShapeError
from matchlib.methods.msnet.config import LossConfig, MSNetConfig, NetworkConfig, ValidationConfig
from matchlib.methods.msnet.model import MSNet
from matchlib.methods.msnet.network import MSNetNetwork
from matchlib.ops.batch_norm import BatchNorm


def network(dilation: int = 1, seed: int = 0) -> MSNetNetwork:
    model = MSNet(MSNetConfig(network=NetworkConfig(dilation=dilation)))
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():  # statistics of a trained network, to notice where they are used
        if isinstance(module, BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.network.eval()


def test_layers_are_those_of_the_published_table():
    layers = {name: tuple(p.shape) for name, p in network().named_parameters() if p.ndim == 4}
    blocks = {
        f"backbone.layer{stage}.{block}.conv{conv}.weight": (
            64 * stage,
            64 if stage == 1 or (block, conv) == (0, 1) else 128,
            3,
            3,
        )
        for stage in (1, 2)
        for block in (0, 1)
        for conv in (1, 2)
    }
    assert layers == {
        "backbone.conv1.weight": (64, 3, 7, 7),
        **blocks,
        "backbone.layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "head.0.weight": (256, 128, 3, 3),
        "head.2.weight": (128, 256, 3, 3),
        "head.4.weight": (128, 128, 1, 1),
    }


@pytest.mark.parametrize("variant", ["v0", "v1", "v2", "sum"])
def test_the_published_variants_have_1289792_parameters_and_the_same_weights(variant):
    model, v0 = MSNet(MSNetConfig(variant=variant)), MSNet(MSNetConfig())
    model.initialise(3)
    v0.initialise(3)
    assert sum(p.numel() for p in model.parameters()) == 1_289_792
    assert len(model.state_dict()) == 50 + 6
    assert model.state_dict().keys() == v0.state_dict().keys()
    assert all(torch.equal(v0.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_heads_of_other_variants_leave_the_shared_weights_as_they_are():
    v0 = MSNet(MSNetConfig())
    v0.initialise(3)
    for config in (MSNetConfig(variant="attention"), MSNetConfig(variant="v2", scale="predicted")):
        model = MSNet(config)
        model.initialise(3)
        extra = model.state_dict().keys() - v0.state_dict().keys()
        assert extra and all(name.split("_")[0] in ("scale", "attention") for name in extra)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in v0.state_dict().items())


@pytest.mark.parametrize("size", [(48, 64), (45, 61), (1, 1), (240, 320)])
def test_a_cell_for_every_four_pixels(size):
    with torch.no_grad():
        maps = network()(torch.zeros(1, 3, *size))
    assert maps.shape == (1, 128, -(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize("dilation", [1, 2])
def test_cell_i_stands_at_pixel_4i(dilation):
    """With mirrored kernels a mirrored image has a mirrored map: over 4 k + 1 pixels only if cell i is at 4
    i.
    """
    net = network(dilation)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.copy_(0.5 * (parameter + parameter.flip(2)))
                parameter.copy_(0.5 * (parameter + parameter.flip(3)))
        image = torch.rand(1, 3, 33, 41, generator=torch.Generator().manual_seed(1))
        maps, mirrored = net(image), net(image.flip(2, 3))
        off_grid = net(image[..., :40].flip(3))
    assert maps.shape[2:] == (9, 11) and maps.std() > 0
    torch.testing.assert_close(mirrored.flip(2, 3), maps, rtol=1e-4, atol=1e-4)
    assert (off_grid.flip(3) - net(image[..., :40])).abs().max() > 0.05  # 40 pixels have no cell at their end


def test_dilated_layer2_gives_at_every_second_cell_what_stride_2_gave():
    net = network(dilation=2)
    first, second = net.backbone.layer2

    def norm(x: torch.Tensor, layer: BatchNorm) -> torch.Tensor:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    x = torch.rand(2, 64, 12, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        inner = F.relu(norm(F.conv2d(x, first.conv1.weight, stride=2, padding=1), first.bn1))
        shortcut = norm(F.conv2d(x, first.downsample[0].weight, stride=2), first.downsample[1])
        y = F.relu(norm(F.conv2d(inner, first.conv2.weight, padding=1), first.bn2) + shortcut)
        inner = F.relu(norm(F.conv2d(y, second.conv1.weight, padding=1), second.bn1))
        expected = F.relu(norm(F.conv2d(inner, second.conv2.weight, padding=1), second.bn2) + y)
        found = net.backbone.layer2(x)
        plain = network(dilation=1).backbone.layer2(x)
    torch.testing.assert_close(found[:, :, ::2, ::2], expected, rtol=1e-4, atol=1e-4)
    assert (plain[:, :, ::2, ::2] - expected).abs().max() > 0.1


def test_colours_are_normalised_by_the_settings():
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (2.0, 0.5, 1.5)
    model, plain = (
        MSNet(MSNetConfig(network=config)).eval()
        for config in (NetworkConfig(mean=mean, std=std), NetworkConfig(mean=(0, 0, 0), std=(1, 1, 1)))
    )
    model.initialise(0)
    plain.load_state_dict(model.state_dict())
    by_hand = torch.stack([(image[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model.network(image), plain.network(by_hand))


def test_other_tensors_are_refused():
    with pytest.raises(ShapeError, match="images: expected shape"):
        network()(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MSNetConfig(members="predicted_blend"), "^members: predicted_blend needs"),
        (lambda: MSNetConfig(variant="v2", members="predicted_blend"), "^members: predicted_blend needs"),
        (lambda: MSNetConfig(variant="sum", members="attention"), "^members: attention needs"),
        (lambda: MSNetConfig(max_image_side=8), "^max_image_side: expected at least 16, got 8"),
        (lambda: MSNetConfig(weight_decay=-1.0), "^weight_decay: expected"),
        (lambda: NetworkConfig(batch_norm_momentum=0.0), "^batch_norm_momentum: expected"),
        (lambda: NetworkConfig(std=(1.0, 0.0, 1.0)), "^std: expected"),
        (lambda: LossConfig(correspondences=10), "^correspondences: expected at least 32, got 10"),
        (lambda: LossConfig(margin=0.0), "^margin: expected"),
        (lambda: LossConfig(mining_interval=0), "^mining_interval: expected"),
        (lambda: LossConfig(mining_radius_cells=-1.0), "^mining_radius_cells: expected"),
        (lambda: LossConfig(scale_transition_octaves=0.0), "^scale_transition_octaves: expected"),
        (lambda: ValidationConfig(points=0), "^points: expected"),
        (lambda: ValidationConfig(threshold_px=0.0), "^threshold_px: expected"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "trained", "used", "pairs"),
    [
        ({}, "fine", "fine", "all"),
        ({"variant": "v1"}, "fine", "set2", "all"),
        ({"variant": "v2"}, "oracle_blend", "oracle_blend", "all"),
        ({"variant": "v2", "scale": "predicted"}, "predicted_blend", "predicted_blend", "all"),
        ({"variant": "attention"}, "attention", "attention", "all"),
        ({"variant": "sum"}, "sum", "sum", "all"),
        ({"variant": "v2", "members": "set2_3pairs"}, "oracle_blend", "set2_3pairs", "not_coarse_coarse"),
    ],
)
def test_what_is_trained_and_read_follows_from_the_variant(settings, trained, used, pairs):
    config = MSNetConfig(**settings)
    assert (config.trained_members, config.used_members, config.member_pairs) == (trained, used, pairs)
