"""Inference: exact reading, images of any size, scale maps, weights of every origin."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from safetensors.torch import save_file

from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.features.config import DetectorConfig
from matchlib.methods import msnet
from matchlib.methods.msnet.config import MSNetConfig, NetworkConfig
from matchlib.methods.msnet.importing import import_weights
from matchlib.methods.msnet.inference import (
    MSNetDescriber,
    MSNetDescriptors,
    build,
    build_dense,
    pad_for_reading,
    shrink,
)
from matchlib.methods.msnet.model import DescriptorMaps, MSNet, cells_of_pixels
from matchlib.methods.msnet.training import build as build_trainable
from matchlib.methods.spec import METHODS


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Position(MSNet):
    """Stands in for a trained network: descriptor (x, y, 1) in cells, so that a reading tells where it was
    taken.
    """

    def forward(self, images, *, members, scale=None):
        height, width = images.shape[2] // 4, images.shape[3] // 4
        y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        return DescriptorMaps((torch.stack([x, y, torch.ones_like(x)])[None],), None)


def read_cells(describer: MSNetDescriber, image: np.ndarray, points: torch.Tensor) -> torch.Tensor:
    sets = describer.describe(image).at(points)[:, 0]
    return sets[:, :2] / sets[:, 2:]


@functools.cache
def position_describer(**settings_) -> MSNetDescriber:
    return MSNetDescriber(Position(MSNetConfig(**settings_)).eval(), weights_digest="none")


# ---------------------------------------------------------------- sampling
@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_pixel_x_is_read_at_cell_x_over_4_anywhere_in_any_image(size, share):
    height, width = size
    point = torch.tensor([[share[0] * (width - 1), share[1] * (height - 1)]])
    found = read_cells(position_describer(), np.zeros((height, width, 3), np.uint8), point)
    torch.testing.assert_close(found, point / 4, rtol=1e-4, atol=1e-4)


def test_the_two_published_misplacements():
    points = torch.tensor([[0.0, 0.0], [160.0, 120.0], [319.0, 239.0]])
    found = {
        sampling: cells_of_pixels(points, sampling, image_size=(320, 240))
        for sampling in ("exact", "legacy_corner_aligned", "legacy_half_pixel")
    }
    torch.testing.assert_close(found["exact"][:, 0], torch.tensor([0.0, 40.0, 79.75]))
    # error -x/W cells: none at the left, one cell at the right edge
    error = found["legacy_corner_aligned"] - found["exact"]
    torch.testing.assert_close(error, -points / torch.tensor([320.0, 240.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["legacy_half_pixel"], found["exact"] - 0.5)


@pytest.mark.parametrize("sampling", ["legacy_corner_aligned", "legacy_half_pixel"])
def test_legacy_sampling_is_what_grid_sample_does(sampling):
    """The published x / (W / 2) - 1, given to `grid_sample` as either release of PyTorch read it."""
    ramp = torch.arange(16.0).expand(1, 1, 12, 16)
    points = torch.tensor([[10.0, 20.0], [33.0, 9.5], [50.0, 31.0]])
    grid = points / torch.tensor([32.0, 24.0]) - 1
    theirs = torch.nn.functional.grid_sample(
        ramp, grid[None, None], align_corners=sampling == "legacy_corner_aligned"
    )[0, 0, 0]
    torch.testing.assert_close(cells_of_pixels(points, sampling, image_size=(64, 48))[:, 0], theirs)


def test_legacy_sampling_moves_the_descriptors_of_an_image():
    image, points = noise_image(48, 64), torch.tensor([[50.3, 20.0]])
    exact, moved = (
        build_dense(MSNetConfig(sampling=s), None, "cpu").describe(image).at(points)
        for s in ("exact", "legacy_half_pixel")
    )
    aside = build_dense(MSNetConfig(), None, "cpu").describe(image).at(points - 2.0)
    assert (exact - moved).abs().max() > 1e-3
    torch.testing.assert_close(moved, aside)


@pytest.mark.parametrize(("height", "width"), [(100, 161), (333, 80)])
def test_points_of_a_shrunk_image_stay_in_pixels_of_the_original(height, width):
    points = torch.tensor([[10.0, 20.0], [70.5, 61.25], [width - 2.0, height - 2.0]])
    image = np.zeros((height, width, 3), np.uint8)
    seen = shrink(image, 64)
    assert max(seen.shape) == 64
    found = read_cells(position_describer(max_image_side=64), image, points)
    factor = torch.tensor([seen.shape[1] / width, seen.shape[0] / height])
    torch.testing.assert_close(found * 4, (points + 0.5) * factor - 0.5, rtol=1e-4, atol=1e-3)


def test_padding_repeats_the_border_and_leaves_a_cell_beyond_the_last_pixel():
    image = torch.arange(5.0 * 9).view(1, 1, 5, 9)
    padded = pad_for_reading(image)
    assert padded.shape == (1, 1, 16, 16)
    assert torch.equal(padded[0, 0, :5, :9], image[0, 0])
    assert torch.equal(padded[0, 0, 11, :9], image[0, 0, 4])
    for size in range(14, 40):
        cells = pad_for_reading(torch.zeros(1, 1, 20, size)).shape[3] / 4
        assert cells == int(cells) and 4 * (cells - 1) >= size - 1 > 4 * (cells - 2)


# ---------------------------------------------------------------- images
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 18), (64, 48)])
@pytest.mark.parametrize("members", ["fine", "set2_3pairs", "sum"])
def test_images_of_any_size_are_described(size, members):
    describer = build_dense(MSNetConfig(members=members), None, "cpu")
    points = torch.tensor([[0.0, 0.0], [size[1] - 1.0, size[0] - 1.0]])
    found = describer.describe(noise_image(*size)).at(points)
    assert found.shape == (2, len(describer.members), 128) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=2), torch.ones(found.shape[:2]))
    assert describer.describe(noise_image(*size)).at(torch.zeros(0, 2)).shape == (
        0,
        len(describer.members),
        128,
    )


def test_what_a_describer_says_of_itself():
    def facts(**settings_):
        describer = build_dense(MSNetConfig(**settings_), None, "cpu")
        return describer.name, describer.members, describer.member_pairs, describer.uses_true_scale

    assert facts() == ("msnet-v0-fine", ("fine",), "all", False)
    assert facts(variant="v1") == ("msnet-v1-set2", ("fine", "coarse"), "all", False)
    assert facts(members="set2_3pairs")[1:] == (("fine", "coarse"), "not_coarse_coarse", False)
    assert facts(variant="v2") == ("msnet-v2-oracle_blend", ("oracle_blend",), "all", True)
    predicted = facts(variant="v2", scale="predicted")
    assert predicted == ("msnet-v2-predicted_blend", ("predicted_blend",), "all", False)


def test_the_first_member_is_fine_and_the_second_coarse():
    image, points = noise_image(48, 64), torch.tensor([[13.2, 20.0], [40.0, 7.9]])
    read = {
        members: build_dense(MSNetConfig(members=members), None, "cpu").describe(image).at(points)
        for members in ("fine", "coarse", "set2")
    }
    torch.testing.assert_close(read["set2"], torch.cat([read["fine"], read["coarse"]], dim=1))
    assert (read["fine"] - read["coarse"]).abs().max() > 1e-3


def test_the_oracle_reads_the_scale_of_each_place():
    """Left half fine, right half coarse, by the scale map alone."""
    image = noise_image(48, 64)
    scale = np.ones((48, 64), np.float32)
    scale[:, 32:] = 3.0
    scale[10, 3], scale[11, 3] = np.nan, -1.0  # unknown
    points = torch.tensor([[4.0, 12.0], [20.0, 20.0], [44.0, 20.0], [61.0, 45.0]])

    def read(**settings_):
        return (
            build_dense(MSNetConfig(**settings_), None, "cpu").describe(image, scale=scale).at(points)[:, 0]
        )

    blended, fine, coarse = read(variant="v2"), read(members="fine"), read(members="coarse")
    torch.testing.assert_close(blended[:2], fine[:2])
    # coarse members get unit length before they are blended, and after they are read otherwise
    assert ((blended[2:] * coarse[2:]).sum(1) > 0.999).all()
    assert ((blended[2:] * fine[2:]).sum(1) < 0.999).all()


def test_the_oracle_refuses_an_image_that_it_would_shrink():
    describer = build_dense(MSNetConfig(variant="v2", max_image_side=40), None, "cpu")
    with pytest.raises(ConfigError, match="max_image_side: expected at least 64 for members oracle_blend"):
        describer.describe(noise_image(48, 64), scale=np.ones((48, 64), np.float32))


def test_the_oracle_wants_the_scale_in_the_right_size():
    describer = build_dense(MSNetConfig(variant="v2"), None, "cpu")
    with pytest.raises(ConfigError, match="oracle_blend needs the true scale"):
        describer.describe(noise_image(16, 20))
    with pytest.raises(ShapeError, match=r"scale: expected shape \(16, 20\)"):
        describer.describe(noise_image(16, 20), scale=np.ones((20, 16), np.float32))


@pytest.mark.parametrize(
    "bad", [np.zeros((10, 10), np.uint8), np.zeros((10, 10, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(bad):
    with pytest.raises(ShapeError, match="image: expected"):
        build_dense(MSNetConfig(), None, "cpu").describe(bad)


@pytest.mark.parametrize("variant", ["v0", "v1", "v2"])
def test_the_extractor_gives_the_detectors_keypoints_the_first_member(variant):
    image = np.kron(noise_image(12, 16), np.ones((6, 6, 1), np.uint8))
    config = MSNetConfig(variant=variant, detector=DetectorConfig(max_keypoints=50))
    extractor = build(config, None, "cpu")
    assert extractor.name.startswith(f"msnet-{variant}-{'set2' if variant == 'v1' else 'fine'}")
    features = extractor.extract(image)
    assert 5 < len(features) <= 50 and features.image_size == (96, 72)
    fine = build_dense(dataclasses.replace(config, members="fine"), None, "cpu").describe(image)
    expected = fine.at(torch.from_numpy(features.keypoints))[:, 0].numpy()
    np.testing.assert_allclose(features.descriptors, expected, atol=1e-6)
    assert len(extractor.extract(np.full((40, 50, 3), 90, np.uint8))) == 0


def test_fingerprint_follows_weights_and_what_is_read_only(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_file(build_trainable(MSNetConfig(), "descriptor", 1).state_dict(), path)

    def fingerprint(weights: Path | None = path, **settings_) -> str:
        return build_dense(MSNetConfig(**settings_), weights, "cpu").fingerprint

    different = [
        fingerprint(),
        fingerprint(None),
        fingerprint(members="coarse"),
        fingerprint(members="set2"),
        fingerprint(members="set2_3pairs"),
        fingerprint(variant="v2"),
        fingerprint(variant="v2", blend="legacy"),
        fingerprint(sampling="legacy_half_pixel"),
        fingerprint(max_image_side=640),
        fingerprint(network=NetworkConfig(dilation=2)),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(blend="legacy", weight_decay=0.0) == fingerprint()
    assert fingerprint(variant="v1") == fingerprint(members="set2")


# ---------------------------------------------------------------- weights
@pytest.mark.parametrize("settings_", [{}, {"variant": "v2", "scale": "predicted"}, {"variant": "attention"}])
def test_saved_weights_give_the_model_back(tmp_path: Path, settings_):
    config = MSNetConfig(**settings_)
    model = build_trainable(config, "descriptor", seed=5)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    image, points = noise_image(48, 64), torch.tensor([[3.0, 4.0], [50.5, 40.25]])
    expected = MSNetDescriber(model.eval(), weights_digest="").describe(image).at(points)
    found = build_dense(config, tmp_path / "weights.safetensors", "cpu").describe(image).at(points)
    assert torch.equal(found, expected)


def test_weights_of_v0_serve_every_reading_that_needs_no_head(tmp_path: Path):
    path = tmp_path / "v0.safetensors"
    save_file(build_trainable(MSNetConfig(), "descriptor", 0).state_dict(), path)
    for settings_ in ({"variant": "v1"}, {"variant": "v2"}, {"variant": "sum"}, {"members": "coarse"}):
        build_dense(MSNetConfig(**settings_), path, "cpu")
    with pytest.raises(DataError, match=r"scale_head\.layers\.0\.weight: expected shape .*, got nothing"):
        build_dense(MSNetConfig(variant="v2", scale="predicted"), path, "cpu")


def test_bad_weights_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent\.safetensors: weights not found"):
        build_dense(MSNetConfig(), tmp_path / "absent.safetensors", "cpu")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(DataError, match=r"broken\.safetensors: expected a safetensors file"):
        build_dense(MSNetConfig(), tmp_path / "broken.safetensors", "cpu")
    state = build_trainable(MSNetConfig(), "descriptor", 0).state_dict()
    state["network.backbone.layer1.0.conv2.weight"] = torch.zeros(64, 32, 3, 3)
    state["network.head.0.bias"] = torch.zeros(3)  # differs too, but later
    save_file(state, tmp_path / "other.safetensors")
    message = (
        r"other\.safetensors: not weights of msnet, variant v0: "
        r"network\.backbone\.layer1\.0\.conv2\.weight: expected shape \(64, 64, 3, 3\), got \(64, 32, 3, 3\)"
    )
    with pytest.raises(DataError, match=message):
        build_dense(MSNetConfig(), tmp_path / "other.safetensors", "cpu")


# The published keys, written out from the description of the checkpoints: our name -> theirs.
PARTS = [
    ("network.backbone.conv1.", "desc_extractor.backbone.model.0."),
    ("network.backbone.bn1.", "desc_extractor.backbone.model.1."),
    ("network.backbone.layer1.", "desc_extractor.backbone.model.4."),
    ("network.backbone.layer2.", "desc_extractor.backbone.model.5."),
    ("network.head.", "desc_extractor.regress."),
]


def published_state(seed: int, prefix: str = "") -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in build_trainable(MSNetConfig(), "descriptor", seed).state_dict().items():
        ours, theirs = next(pair for pair in PARTS if name.startswith(pair[0]))
        found[prefix + theirs + name.removeprefix(ours)] = tensor
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked").removeprefix(ours)
            found[prefix + theirs + counter] = torch.tensor(7)
    return found


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_published_checkpoints_are_imported(tmp_path: Path, prefix, wrapped):
    state = published_state(4, prefix)
    assert len(state) == 60 + 6  # the published numbers of backbone and head tensors
    path = tmp_path / "model_00002_0000009.pth"
    torch.save({"model": state, "optimizer": {}, "epoch": 2, "iteration": 9} if wrapped else state, path)
    imported = import_weights(MSNetConfig(variant="v1"), path)
    expected = build_trainable(MSNetConfig(), "descriptor", 4).state_dict()
    assert imported.keys() == expected.keys()
    assert all(torch.equal(imported[name], tensor) for name, tensor in expected.items())
    save_file(imported, tmp_path / "imported.safetensors")
    build_dense(MSNetConfig(variant="v1"), tmp_path / "imported.safetensors", "cpu")


def test_foreign_checkpoints_are_refused_by_the_first_difference(tmp_path: Path):
    path = tmp_path / "model.pth"
    state = published_state(0)
    state["desc_extractor.backbone.model.5.0.downsample.0.weight"] = torch.zeros(128, 64, 3, 3)
    torch.save({"model": state}, path)
    message = (
        r"model\.pth: not weights of MSNet: desc_extractor\.backbone\.model\.5\.0\.downsample\.0\.weight: "
        r"expected shape \(128, 64, 1, 1\), got \(128, 64, 3, 3\)"
    )
    with pytest.raises(DataError, match=message):
        import_weights(MSNetConfig(), path)
    torch.save({"conv1a.weight": torch.zeros(64, 1, 3, 3)}, path)
    with pytest.raises(DataError, match=r"model\.0\.weight: expected shape \(64, 3, 7, 7\), got nothing"):
        import_weights(MSNetConfig(), path)
    torch.save(published_state(0) | {"more": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=r"more: expected nothing, got shape \(2,\)"):
        import_weights(MSNetConfig(), path)
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="expected tensors by name"):
        import_weights(MSNetConfig(), path)
    path.write_bytes(b"neither zip nor pickle")
    with pytest.raises(DataError, match="expected weights saved by PyTorch"):
        import_weights(MSNetConfig(), path)
    with pytest.raises(DataError, match="weights not found"):
        import_weights(MSNetConfig(), tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match=r"^variant: published weights have no head"):
        import_weights(MSNetConfig(variant="attention"), path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Touch()}, tmp_path / "hostile.pth")
    with pytest.raises(DataError, match="expected weights saved by PyTorch"):
        import_weights(MSNetConfig(), tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


def imagenet_state() -> dict[str, torch.Tensor]:
    """The layout of torchvision's resnet18, as far as it concerns us, and something of the rest."""
    state = build_trainable(MSNetConfig(), "descriptor", 9).network.backbone.state_dict()
    state["bn1.num_batches_tracked"] = torch.tensor(1)
    rest = {"layer3.0.conv1.weight": torch.zeros(256, 128, 3, 3), "fc.weight": torch.zeros(1000, 512)}
    return dict(state) | rest


@pytest.mark.parametrize("zipped", [True, False])  # the well-known file of 2018 is not a zip archive
def test_imagenet_weights_start_the_backbone(tmp_path: Path, zipped):
    path = tmp_path / "resnet18.pth"
    torch.save(imagenet_state(), path, _use_new_zipfile_serialization=zipped)
    config = MSNetConfig(network=NetworkConfig(backbone_weights=str(path)))
    model, plain = build_trainable(config, "descriptor", 1), build_trainable(MSNetConfig(), "descriptor", 1)
    for name, tensor in model.network.backbone.state_dict().items():
        assert torch.equal(tensor, imagenet_state()[name]), name
    for name, tensor in model.network.head.state_dict().items():
        assert torch.equal(tensor, plain.network.head.state_dict()[name]), name
    assert build_dense(config, None, "cpu").fingerprint != build_dense(MSNetConfig(), None, "cpu").fingerprint


def test_other_backbones_are_refused(tmp_path: Path):
    path = tmp_path / "resnet50.pth"
    torch.save(imagenet_state() | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, path)
    config = MSNetConfig(network=NetworkConfig(backbone_weights=str(path)))
    message = (
        r"resnet50\.pth: not weights of ResNet-18: layer1\.0\.conv1\.weight: "
        r"expected shape \(64, 64, 3, 3\), got \(64, 64, 1, 1\)"
    )
    with pytest.raises(DataError, match=message):
        build_trainable(config, "descriptor", 0)


# ---------------------------------------------------------------- registry and README
def test_the_registry_knows_it():
    spec = METHODS.get("msnet")
    assert spec.stages["descriptor"].needs == "homography" and spec.stages["descriptor"].metric == "pck"


def test_the_settings_shown_in_the_readme_are_valid():
    readme = (Path(msnet.__file__).parent / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in readme.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        config = TypeAdapter(MSNetConfig).validate_python(yaml.safe_load(block), strict=False)
        assert config != MSNetConfig()


def test_real_images_have_distinct_descriptors(shared_data):
    from matchlib.datasets.images import read_image

    first = sorted(shared_data("hpatches").rglob("1.ppm"))[0]
    image = read_image(first)
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [image.shape[1] - 1.0, image.shape[0] - 1.0]
    )
    described = build_dense(MSNetConfig(max_image_side=320), None, "cpu").describe(image)
    assert isinstance(described, MSNetDescriptors)
    found = described.at(points)[:, 0]
    similarity = found @ found.T
    assert (similarity.argmax(dim=1) == torch.arange(50)).all()
