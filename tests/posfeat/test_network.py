"""The description net of PoSFeat against the published table, a transcription and PyTorch's own sampling."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from matchlib.errors import DataError, ShapeError
from matchlib.methods.posfeat.config import NetworkConfig
from matchlib.methods.posfeat.network import DescriptionNet, descriptors_at, map_positions, normalise
from matchlib.networks.resnet import ResNet
from matchlib.randomness import torch_generator_for

SMALL = NetworkConfig(encoder="resnet18", decoder_channels=(16, 8))


def network(config=SMALL, seed=0) -> DescriptionNet:
    built = DescriptionNet(config)
    built.initialise(torch_generator_for(seed, "test"))
    return built


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return DescriptionNet(NetworkConfig()).eval()


def test_there_are_as_many_parameters_as_published(published):
    assert sum(parameter.numel() for parameter in published.parameters()) == 20_508_992


@pytest.mark.parametrize(
    ("part", "parameters"),
    [
        ("layer1", 215_808),
        ("layer2", 1_219_584),
        ("layer3", 7_098_368),
        ("conv_coarse", 131_456),
        ("upconv3", 4_720_128),
        ("iconv3", 4_720_128),
        ("upconv2", 1_180_416),
        ("iconv2", 1_180_416),
        ("conv_fine", 33_152),
    ],
)
def test_each_part_has_its_published_size(published, part, parameters):
    assert sum(parameter.numel() for parameter in published.get_submodule(part).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("firstconv.weight", (64, 3, 7, 7)),
        ("firstbn.running_mean", (64,)),
        ("layer3.5.bn3.bias", (1024,)),
        ("conv_coarse.conv.bias", (128,)),
        ("conv_coarse.bn.weight", (128,)),
        ("upconv3.conv.conv.weight", (512, 1024, 3, 3)),
        ("iconv3.conv.weight", (512, 1024, 3, 3)),
        ("upconv2.conv.bn.running_var", (256,)),
        ("iconv2.conv.weight", (256, 512, 3, 3)),
        ("conv_fine.conv.weight", (128, 256, 1, 1)),
    ],
)
def test_names_are_those_of_the_release(published, name, shape):
    assert tuple(published.state_dict()[name].shape) == shape


def test_shapes_at_the_training_size(published):
    batch = torch.empty(2, 3, 480, 640, device="meta")
    maps = published(batch)
    assert maps.fine.shape == (2, 128, 120, 160)
    assert maps.early.shape == (2, 64, 120, 160)
    assert published.coarse(batch).shape == (2, 128, 30, 40)


def transcribed(net, x):
    """The decoder by the table, on the encoder's maps; evaluation mode."""
    state = net.state_dict()
    encoder = ResNet(net.config.encoder, stages=3).double().eval()
    encoder.load_state_dict(
        {
            name.replace("firstconv", "conv1").replace("firstbn", "bn1"): value
            for name, value in state.items()
            if name.startswith(("first", "layer"))
        }
    )
    maps = encoder(x)

    def conv(x, name):
        weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        x = F.conv2d(x, weight, bias, padding=(weight.shape[-1] - 1) // 2)
        fields = [state[f"{name}.bn.{field}"] for field in ("running_mean", "running_var", "weight", "bias")]
        return F.elu(F.batch_norm(x, *fields))

    def join(skip, x):
        rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return torch.cat([skip, x], dim=1)

    x1, x2, x = maps.stages
    for number, skip in ((3, x2), (2, x1)):
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        x = conv(F.interpolate(x, size, mode="bilinear", align_corners=True), f"upconv{number}.conv")
        x = conv(join(skip, x), f"iconv{number}")
    return conv(x, "conv_fine"), maps.stem


@pytest.mark.parametrize("size", [(32, 48), (33, 50), (37, 63), (5, 7)])
def test_agrees_with_a_transcription_at_even_and_odd_sizes(size):
    net = network()
    net(images(4, 3, 32, 32))  # running statistics that are not trivial
    net = net.double().eval()
    x = images(2, 3, *size).double()
    with torch.no_grad():
        maps = net(x)
        fine, early = transcribed(net, x)
    torch.testing.assert_close(maps.fine, fine, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps.early, early, rtol=1e-9, atol=1e-9)
    assert maps.fine.shape[2:] == tuple(-(-side // 4) for side in size)
    assert maps.fine.min() >= -1


def test_every_trainable_parameter_has_a_gradient_and_the_coarse_map_is_frozen():
    net = network()
    maps = net(images(2, 3, 32, 32))
    (maps.fine * images(*maps.fine.shape)).sum().backward()
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"conv_coarse.{part}" for part in ("conv.weight", "conv.bias", "bn.weight", "bn.bias")}
    silent = [name for name, p in net.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert not silent


def test_both_images_in_one_forward_are_as_one_after_the_other():
    joined, separate = network(), network()
    first, second = images(2, 3, 32, 48, seed=1), 2 * images(2, 3, 32, 48, seed=2) + 1
    together = joined(torch.cat([first, second]), towers=2).fine
    apart = torch.cat([separate(first).fine, separate(second).fine])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)
    for (name, one), two in zip(joined.state_dict().items(), separate.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5, msg=name)


def test_fresh_weights_depend_on_the_generator_alone():
    one, same, other = network(seed=1), network(seed=1), network(seed=2)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    differing = [name for name, p in one.named_parameters() if not torch.equal(p, other.state_dict()[name])]
    assert len(differing) == sum("bn" not in n and "downsample.1" not in n for n, _ in one.named_parameters())


def test_encoder_weights_are_taken_over_and_the_decoder_stays(tmp_path):
    source = ResNet("resnet18")
    torch.save(source.state_dict() | {"fc.weight": torch.zeros(1000, 512)}, tmp_path / "imagenet.pth")
    config = NetworkConfig(
        encoder="resnet18", decoder_channels=(16, 8), encoder_weights=str(tmp_path / "imagenet.pth")
    )
    net = network(config)
    assert torch.equal(net.get_submodule("firstconv").weight, source.conv1.weight)
    assert torch.equal(
        net.state_dict()["layer3.1.conv2.weight"], source.state_dict()["layer3.1.conv2.weight"]
    )
    assert torch.equal(net.iconv2.conv.weight, network().iconv2.conv.weight)


def test_missing_encoder_weights_are_an_error():
    config = NetworkConfig(encoder="resnet18", encoder_weights="nowhere/resnet18.pth")
    with pytest.raises(DataError, match=r"nowhere/resnet18\.pth"):
        network(config)


def test_other_shapes_are_refused():
    with pytest.raises(ShapeError, match="normalised"):
        network()(torch.zeros(3, 32, 32))


def test_normalised_by_the_statistics_of_imagenet():
    image = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(1, 3, 2, 2)
    assert normalise(image).abs().max() < 1e-6
    shifted = normalise(image + torch.tensor([0.229, 0.224, 0.225])[:, None, None])
    torch.testing.assert_close(shifted, torch.ones(1, 3, 2, 2))


def test_exact_positions_are_those_of_a_resize():
    """A ramp of x, made smaller by area averaging, holds at each cell the x that this cell stands for."""
    ramp = np.tile(np.arange(64, dtype=np.float32), (8, 1))
    small = cv2.resize(ramp, (16, 2), interpolation=cv2.INTER_AREA)
    points = torch.from_numpy(np.stack([small[0], np.zeros(16, np.float32)], axis=-1))
    cells = map_positions(points, (64, 8), (16, 2), "exact")
    torch.testing.assert_close(cells[:, 0], torch.arange(16.0))


def test_the_exact_convention_keeps_cell_centres_and_the_legacy_one_drifts():
    points = torch.tensor([[1.5, 1.5], [319.5, 239.5], [637.5, 477.5]])
    exact = map_positions(points, (640, 480), (160, 120), "exact")
    torch.testing.assert_close(exact, torch.tensor([[0, 0], [79.5, 59.5], [159, 119.0]]))
    legacy = map_positions(
        torch.tensor([[0.0, 0], [319.5, 239.5], [639, 479]]), (640, 480), (160, 120), "legacy"
    )
    torch.testing.assert_close(legacy, torch.tensor([[-0.5, -0.5], [79.5, 59.5], [159.5, 119.5]]))


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_legacy_descriptors_are_those_of_the_released_sampling(padding):
    """x / ((W - 1) / 2) - 1 into grid_sample without aligned corners; after normalisation its padding is the same."""
    fine = images(8, 6, 10)
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([39.0, 23.0])
    points = torch.cat([points, torch.tensor([[0.0, 0], [39, 23], [0, 23]])])
    grid = points / torch.tensor([39.0, 23.0]) * 2 - 1
    read = F.grid_sample(fine[None], grid[None, None], padding_mode=padding, align_corners=False)[0, :, 0].T
    expected = F.normalize(read, dim=1)
    torch.testing.assert_close(
        descriptors_at(fine, points, (40, 24), "legacy"), expected, rtol=1e-4, atol=1e-5
    )


def test_exact_descriptors_at_cell_centres_are_the_cells():
    fine = images(8, 6, 10)
    points = torch.tensor([[1.5, 1.5], [37.5, 21.5], [21.5, 9.5]])
    expected = F.normalize(fine[:, [0, 5, 2], [0, 9, 5]].T, dim=1)
    torch.testing.assert_close(descriptors_at(fine, points, (40, 24), "exact"), expected)


def test_descriptors_have_gradients_and_half_precision_is_raised():
    fine = images(3, 4, 5).double().requires_grad_()
    points = torch.tensor([[0.3, 1.2], [12.1, 9.7]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: descriptors_at(f, points, (20, 16), "exact"), (fine,))
    assert descriptors_at(fine.detach().bfloat16(), points, (20, 16), "exact").dtype == torch.float32
    assert descriptors_at(fine.detach(), points[:0], (20, 16), "exact").shape == (0, 3)
