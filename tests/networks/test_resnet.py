"""Residual networks against published sizes, torchvision's names and a plain transcription."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from matchlib.errors import DataError, ShapeError
from matchlib.networks.resnet import LAYOUTS, ResNet, initialise, load_imagenet_weights
from matchlib.ops import batch_norm
from matchlib.ops.batch_norm import BatchNorm

# torchvision's documented numbers of parameters (model pages), and those of the classifier.
PUBLISHED = {
    "resnet18": (11_689_512, 513_000),
    "resnet34": (21_797_672, 513_000),
    "resnet50": (25_557_032, 2_049_000),
    "resnet101": (44_549_160, 2_049_000),
    "resnet152": (60_192_808, 2_049_000),
    "wide_resnet50_2": (68_883_240, 2_049_000),
}


def network(name="resnet18", *, seed=0, **options) -> ResNet:
    built = ResNet(name, **options)
    generator = torch.Generator().manual_seed(seed)
    initialise(built, generator)
    with torch.no_grad():  # statistics and scales as after training, so that none of them is trivial
        for key, tensor in built.state_dict().items():
            if ".bn" in f".{key}" or "downsample.1" in key:
                low = 0.5 if key.endswith(("var", "weight")) else -0.5
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return built


def as_torchvision_saves(built: ResNet) -> dict[str, torch.Tensor]:
    state = dict(built.state_dict())
    for name in list(state):
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):
        built = ResNet(name)
    published, classifier = PUBLISHED[name]
    assert sum(parameter.numel() for parameter in built.parameters()) == published - classifier


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet50", "conv1.weight", (64, 3, 7, 7)),
        ("resnet50", "bn1.running_var", (64,)),
        ("resnet50", "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("resnet50", "layer3.5.conv3.weight", (1024, 256, 1, 1)),
        ("resnet50", "layer4.0.downsample.1.running_mean", (2048,)),
        ("resnet18", "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("resnet101", "layer3.22.bn2.bias", (256,)),
        ("wide_resnet50_2", "layer2.1.conv2.weight", (256, 256, 3, 3)),
    ],
)
def test_names_and_shapes_are_torchvisions(name, key, shape):
    with torch.device("meta"):
        state = ResNet(name).state_dict()
    assert tuple(state[key].shape) == shape


def test_shortcuts_stand_where_torchvision_has_them():
    with torch.device("meta"):
        shallow, deep = ResNet("resnet34").state_dict(), ResNet("resnet50").state_dict()
    assert len(deep) == 320 - 53 - 2  # its state dict without the counters of batch norm and the classifier
    assert "layer1.0.downsample.0.weight" not in shallow
    assert "layer4.1.downsample.0.weight" not in deep


def transcribed(state, images, name, stages):
    """The network once more, as a function of its weights by name; evaluation mode."""

    def norm(x, key):
        part = [state[f"{key}.{field}"] for field in ("running_mean", "running_var", "weight", "bias")]
        mean, var, scale, shift = (value[:, None, None] for value in part)
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = norm(F.conv2d(images, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = [x]
    for stage in range(stages):
        for block in range(LAYOUTS[name].blocks[stage]):
            key, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            inner = ["conv1", "conv2", "conv3"] if LAYOUTS[name].bottleneck else ["conv1", "conv2"]
            strided = "conv2" if LAYOUTS[name].bottleneck else "conv1"
            y = x
            for conv in inner:
                weight = state[f"{key}.{conv}.weight"]
                y = F.conv2d(
                    y, weight, stride=stride if conv == strided else 1, padding=weight.shape[-1] // 2
                )
                y = norm(y, f"{key}.bn{conv[-1]}")
                y = y if conv == inner[-1] else y.relu()
            if f"{key}.downsample.0.weight" in state:
                x = norm(
                    F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride), f"{key}.downsample.1"
                )
            x = (x + y).relu()
        maps.append(x)
    return maps


@pytest.mark.parametrize(("name", "stages"), [("resnet18", 4), ("resnet50", 3)])
def test_agrees_with_a_transcription(name, stages):
    built = network(name, stages=stages).double().eval()
    images = torch.randn(1, 3, 37, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = built(images)
        expected = transcribed(built.state_dict(), images, name, stages)
    for ours, theirs in zip((maps.stem, *maps.stages), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert [m.shape[1] for m in maps.stages] == list(LAYOUTS[name].channels[:stages])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_weights_fit_by_name(tmp_path, suffix):
    source, path = network(seed=3), tmp_path / f"resnet18{suffix}"
    state = as_torchvision_saves(source)
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    built = network(seed=4, stages=3)
    load_imagenet_weights(built, path)
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)},
            r"layer2\.0\.conv1\.weight.*\(128, 64, 3, 3\)",
        ),
        ({"layer1.1.bn2.bias": None}, r"'layer1\.1\.bn2\.bias' is missing"),
        ({"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, r"'layer1\.2\.conv1\.weight' is not part"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    path = tmp_path / "w.pth"
    state = {**as_torchvision_saves(network()), **change}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    with pytest.raises(DataError, match=message):
        load_imagenet_weights(network(), path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"conv1.weight": print}, path)
    with pytest.raises(DataError, match=str(path)):
        load_imagenet_weights(network(), path)


def test_towers_are_separate_calls_in_one():
    images = torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    images[2:] *= 3  # else both towers would have nearly the same statistics
    joined, separate = network(stages=3), network(stages=3)
    together = joined(images, towers=2).stages[-1]
    apart = torch.cat([separate(part).stages[-1] for part in images.chunk(2)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    for (key, one), two in zip(joined.state_dict().items(), separate.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=key)
    assert not torch.allclose(network(stages=3)(images).stages[-1], apart, atol=1e-2)


def test_towers_change_nothing_in_evaluation_and_must_divide_the_batch():
    layer, x = BatchNorm(2, momentum=0.1).eval(), torch.randn(4, 2, 3, 3)
    assert torch.equal(layer(x, towers=2), layer(x))
    with pytest.raises(ShapeError, match="2 towers"):
        layer(x[:3], towers=2)


def test_statistics_that_are_not_synchronised_exchange_nothing(monkeypatch):
    exchanges = []
    monkeypatch.setattr(batch_norm, "is_distributed", lambda: True)
    monkeypatch.setattr(batch_norm, "all_reduce_sum", lambda tensor: exchanges.append(1) or tensor)
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    own = BatchNorm(3, momentum=0.1, synchronise=False)
    torch.testing.assert_close(own(x), F.batch_norm(x, None, None, training=True))
    assert not exchanges
    BatchNorm(3, momentum=0.1)(x)
    assert len(exchanges) == 3


@pytest.mark.parametrize("stages", [0, 5])
def test_a_number_of_stages_that_does_not_exist_is_refused(stages):
    with pytest.raises(ShapeError, match="1 to 4 stages"):
        ResNet("resnet18", stages=stages)
