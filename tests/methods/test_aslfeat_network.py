"""The network against the published layer table and hand-computed values."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.methods.aslfeat.config import NetworkConfig
from matchlib.methods.aslfeat.network import (
    ASLFeatNetwork,
    DeformConv2d,
    StridedConv2d,
    grey_from_rgb,
    same_padding,
    standardise,
)


def make_network(*, deformable: bool = False, **settings) -> ASLFeatNetwork:
    network = ASLFeatNetwork(NetworkConfig(**settings), deformable=deformable)
    network.initialise(torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize(("deformable", "expected"), [(False, 728_352), (True, 821_745)])
def test_parameter_counts_are_the_published_ones(deformable, expected):
    network = ASLFeatNetwork(NetworkConfig(), deformable=deformable)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("deformable", [False, True])
def test_each_layer_has_the_size_of_the_table(deformable):
    network = make_network(deformable=deformable)
    sizes = {}
    for name, module in network.named_children():
        module.register_forward_hook(
            lambda _m, _i, out, name=name: sizes.__setitem__(name, tuple(out.shape[1:]))
        )
    network(torch.randn(2, 1, 24, 32))
    expected = {
        "conv0": (32, 24, 32),
        "conv1": (32, 24, 32),
        "conv2": (64, 12, 16),
        "conv3": (64, 12, 16),
        **dict.fromkeys(("conv4", "conv5", "conv6_0", "conv6_1", "conv6"), (128, 6, 8)),
    }
    assert {name: size for name, size in sizes.items() if not name.endswith("_bn")} == expected
    assert {name for name in sizes if name.endswith("_bn")} == {f"{n}_bn" for n in expected if n != "conv6"}


def test_levels_are_raw_convolution_outputs():
    network = make_network()
    outputs = {}
    for name in ("conv1", "conv3", "conv6"):
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, n=name: outputs.__setitem__(n, out)
        )
    maps = network(torch.randn(1, 1, 16, 16))
    for level, name in zip(maps.levels, ("conv1", "conv3", "conv6"), strict=True):
        assert torch.equal(level, outputs[name])
        assert (level < 0).any(), f"{name} looks rectified"


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (13, 8)])
def test_odd_sizes_halve_rounding_up(size):
    maps = make_network().eval()(torch.randn(1, 1, *size))
    half = tuple(-(-s // 2) for s in size)
    quarter = tuple(-(-s // 2) for s in half)
    assert [tuple(level.shape[2:]) for level in maps.levels] == [size, half, quarter]


def centre_tap(layer: torch.nn.Conv2d) -> torch.nn.Conv2d:
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 1] = 1.0
    return layer


def test_stride_two_pads_like_tensorflow():
    ramp = torch.arange(36.0).view(1, 1, 6, 6)
    layer = centre_tap(StridedConv2d(1, 1, stride2_padding="bottom_right"))
    assert layer(ramp)[0, 0].tolist() == [[7, 9, 11], [19, 21, 23], [31, 33, 35]]
    assert same_padding(6, 6) == (0, 1, 0, 1)
    assert same_padding(7, 6) == (0, 1, 1, 1)


def test_odd_sizes_are_centred_in_both_paddings():
    ramp = torch.arange(25.0).view(1, 1, 5, 5)
    for padding in ("bottom_right", "centred"):
        layer = centre_tap(StridedConv2d(1, 1, stride2_padding=padding))
        assert layer(ramp)[0, 0].tolist() == [[0, 2, 4], [10, 12, 14], [20, 22, 24]]


def test_two_stride_two_layers_see_the_documented_centres():
    columns = torch.arange(16.0).expand(1, 1, 16, 16)
    for padding, bias in (("bottom_right", 3), ("centred", 0)):
        layer = centre_tap(StridedConv2d(1, 1, stride2_padding=padding))
        assert layer(layer(columns))[0, 0, 0].tolist() == [4 * o + bias for o in range(4)]


def test_deformable_layer_starts_at_half_the_plain_response():
    layer = DeformConv2d(8)
    x = torch.randn(2, 8, 9, 11)
    plain = F.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), 0.5 * plain, rtol=1e-5, atol=1e-5)


def test_initial_weights_are_glorot_uniform_and_follow_the_generator():
    network, again = make_network(deformable=True), make_network(deformable=True)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        if "deform_param" in name:
            assert not parameter.any(), name
        else:
            fan = 9 * (parameter.shape[0] + parameter.shape[1])
            bound = (6 / fan) ** 0.5
            assert 0.8 * bound < parameter.detach().abs().max() <= bound, name


def test_standardised_images_have_mean_zero_and_variance_one():
    grey = 40 + 30 * torch.rand(3, 1, 20, 30)
    result = standardise(grey)
    torch.testing.assert_close(result.mean((1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.square().mean((1, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)
    assert not standardise(torch.full((1, 1, 4, 4), 7.0)).any()


def test_grey_is_the_luma_of_jpeg():
    colours = torch.eye(3).view(3, 3, 1, 1)
    expected = torch.tensor([76.245, 149.685, 29.07])
    torch.testing.assert_close(grey_from_rgb(colours).flatten(), expected)
    with pytest.raises(ShapeError, match="rgb: expected shape"):
        grey_from_rgb(torch.zeros(3, 4, 4))
