"""PoSFeat on whole images: coordinates through padding and resizing, detectors, memory, broken weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from matchlib.cli import main
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError, MatchlibError, ShapeError
from matchlib.features.config import SiftConfig
from matchlib.features.sift import SiftExtractor
from matchlib.features.store import FeatureReader
from matchlib.features.types import Features
from matchlib.methods.posfeat.config import InferenceConfig, NetworkConfig, PoSFeatConfig
from matchlib.methods.posfeat.inference import (
    PoSFeatDescriber,
    PoSFeatExtractor,
    build,
    build_dense,
    load_model,
)
from matchlib.methods.posfeat.maps import image_maps, needed_bytes, pad_for_network
from matchlib.methods.posfeat.model import PoSFeat
from matchlib.methods.posfeat.network import DescriptorMaps

SMALL = NetworkConfig(encoder="resnet18", decoder_channels=(16, 16), head_channels=(8, 16))
HEAD = PoSFeatConfig(network=SMALL, inference=InferenceConfig(detector="network"))
SETTINGS = "network.encoder=resnet18 network.decoder_channels=[16,16] network.head_channels=[8,16]".split()
SIZES = [(1, 1), (1, 50), (2, 3), (15, 17), (33, 7), (45, 61), (48, 64)]


class Brightness(PoSFeat):
    """Stands in for trained networks: bright pixels are keypoints; descriptors are the place of the cell."""

    def maps(self, image: Tensor) -> DescriptorMaps:
        height, width = image.shape[2:]
        assert height % 16 == 0 and width % 16 == 0, "the network gets whole cells"
        y, x = torch.meshgrid(torch.arange(height / 4), torch.arange(width / 4), indexing="ij")
        place = torch.zeros(1, 128, height // 4, width // 4)
        place[0, 0], place[0, 1], place[0, 2] = 4 * x + 1.5, 4 * y + 1.5, 1.0
        return DescriptorMaps(place, place[:, :64])

    def scores(self, image: Tensor, maps: DescriptorMaps) -> Tensor:
        return 2 * (image.mean(dim=1, keepdim=True) - 20 / 255).clamp_min(0)


def bright(**inference: object) -> Brightness:
    settings = {"score_threshold": 0.5, **inference}
    config = replace(HEAD, inference=InferenceConfig(**settings))  # type: ignore[arg-type]
    return Brightness(config, with_head=True).eval()


def blobs(height: int, width: int, centres: np.ndarray, sigma: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    squared = (x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2
    value = 20 + 220 * np.exp(-squared / (2 * sigma**2)).sum(0)
    return np.repeat(value.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.0).reshape(height, width, 3)


def by_x(points: np.ndarray) -> np.ndarray:
    return points[np.argsort(points[:, 0])]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights as the stages write them: of the description net alone, and with a head."""
    folder = tmp_path_factory.mktemp("weights")
    model = load_model(HEAD, None, "cpu")[0]
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(
        {name: value for name, value in state.items() if name.startswith("backbone.")}, folder / "desc.st"
    )
    save_file(state, folder / "kp.st")
    return folder / "desc.st", folder / "kp.st"


# ---------------------------------------------------------------- coordinates
@pytest.mark.parametrize("shape", [(64, 80), (61, 83), (64, 77)])
def test_points_and_descriptors_of_padded_images_are_in_place(shape: tuple[int, int]) -> None:
    centres = np.array([[20.0, 30.0], [41.0, 12.0], [60.0, 44.0], [70.0, 55.0]])
    features = PoSFeatExtractor(bright(), weights_digest="none").extract(blobs(*shape, centres, 1.5))
    assert features.image_size == (shape[1], shape[0])
    np.testing.assert_allclose(by_x(features.keypoints), centres, atol=2e-3)
    places = features.descriptors[:, :2] / features.descriptors[:, 2:3]
    np.testing.assert_allclose(places, features.keypoints, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-6)


def test_points_of_reduced_images_are_in_pixels_of_the_original() -> None:
    # middles of whole pixels of the image that is a third as large
    centres = np.array([[61.0, 91.0], [199.0, 130.0], [280.0, 40.0]])
    model = bright(max_image_side=110, score_threshold=0.3)
    features = PoSFeatExtractor(model, weights_digest="none").extract(blobs(171, 330, centres, 4.0))
    assert features.image_size == (330, 171)
    np.testing.assert_allclose(by_x(features.keypoints), centres, atol=2e-2)
    described = PoSFeatDescriber(model, weights_digest="none").describe(blobs(171, 330, centres, 4.0))
    again = described.at(torch.from_numpy(features.keypoints))[:, 0]
    np.testing.assert_allclose(again, features.descriptors, atol=1e-5)
    seen = (centres + 0.5) / 3 - 0.5
    places = by_x(features.descriptors[:, :2] / features.descriptors[:, 2:3])
    np.testing.assert_allclose(places, seen, atol=1e-2)


def test_no_keypoint_lies_in_the_padding_or_on_the_border() -> None:
    model = bright(score_threshold=0.0, nms_radius=0, subpixel=False, max_keypoints=10**5)
    features = PoSFeatExtractor(model, weights_digest="none").extract(np.full((21, 35, 3), 200, np.uint8))
    assert len(features) == 19 * 33
    assert features.keypoints.min() == 1
    assert features.keypoints[:, 0].max() == 33 and features.keypoints[:, 1].max() == 19


def test_padding_repeats_the_last_row_and_column() -> None:
    image = torch.arange(3 * 5 * 18, dtype=torch.uint8).view(3, 5, 18)
    padded = pad_for_network(image)
    assert padded.shape == (3, 16, 32)
    expected = np.pad(image.numpy(), ((0, 0), (0, 11), (0, 14)), mode="edge")
    np.testing.assert_array_equal(padded, expected)


# ---------------------------------------------------------------- the networks themselves
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("detector", ["network", "sift"])
def test_images_of_any_size(shape: tuple[int, int], detector: str) -> None:
    config = replace(HEAD, inference=InferenceConfig(detector=detector))  # type: ignore[arg-type]
    features = build(config, None, "cpu").extract(texture(*shape))
    assert features.descriptors.shape == (len(features), 128)
    assert features.image_size == (shape[1], shape[0])
    assert np.isfinite(features.keypoints).all() and np.isfinite(features.descriptors).all()
    assert (np.diff(features.scores) <= 0).all()
    dense = build_dense(config, None, "cpu").describe(texture(*shape)).at(torch.zeros(2, 2))
    assert dense.shape == (2, 1, 128) and dense.isfinite().all()


def test_images_without_pixels_or_of_another_kind() -> None:
    extractor, describer = build(HEAD, None, "cpu"), build_dense(HEAD, None, "cpu")
    empty = extractor.extract(np.zeros((0, 5, 3), np.uint8))
    assert len(empty) == 0 and empty.descriptors.shape == (0, 128) and empty.image_size == (5, 0)
    with pytest.raises(ShapeError, match="at least one pixel"):
        describer.describe(np.zeros((0, 5, 3), np.uint8))
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ShapeError, match="image: expected"):
            extractor.extract(wrong)


def test_without_texture_the_head_finds_points_all_the_same_and_sift_none() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    by_sift = build(replace(HEAD, inference=InferenceConfig(detector="sift")), None, "cpu").extract(grey)
    assert len(by_sift) == 0 and by_sift.descriptors.shape == (0, 128)
    # known property of the published head: its scores are relative within the image
    assert len(build(HEAD, None, "cpu").extract(grey)) > 0


def test_extraction_is_repeatable_and_keeps_to_the_limit() -> None:
    config = replace(HEAD, inference=replace(HEAD.inference, max_keypoints=20))
    image = texture(70, 90)
    first, second = (build(config, None, "cpu").extract(image) for _ in range(2))
    assert len(first) == 20
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    np.testing.assert_array_equal(first.descriptors, second.descriptors)


class LocalMaps(PoSFeat):
    """A stand-in for the description net that sees single cells, so that tiles must not change anything."""

    def maps(self, image: Tensor) -> DescriptorMaps:
        cells = torch.nn.functional.avg_pool2d(image, 4)
        fine = torch.cat([cells.sin(), cells.cos(), cells.square()], dim=1).repeat(1, 15, 1, 1)[:, :128]
        return DescriptorMaps(fine, fine[:, :64])


@pytest.mark.parametrize("shape", [(112, 160), (70, 201)])
def test_tiles_find_the_keypoints_of_the_whole_image_once(shape: tuple[int, int]) -> None:
    image = texture(*shape)

    def features(**inference: object) -> Features:
        settings = InferenceConfig(detector="network", **inference)  # type: ignore[arg-type]
        model = LocalMaps(replace(HEAD, inference=settings), with_head=True).eval()
        assert model.head is not None
        model.head.initialise(torch.Generator().manual_seed(5))
        return PoSFeatExtractor(model, weights_digest="none").extract(image)

    whole, tiled = features(), features(tile_px=64, tile_overlap_px=16)
    assert len(tiled) == len(whole) > 100
    order, same = (np.lexsort(one.keypoints.round(2).T) for one in (whole, tiled))
    np.testing.assert_allclose(tiled.keypoints[same], whole.keypoints[order], atol=1e-3)
    np.testing.assert_allclose(tiled.descriptors[same], whole.descriptors[order], atol=1e-4)


# ---------------------------------------------------------------- detectors and weights
def test_sift_keypoints_with_posfeat_descriptors(stages: tuple[Path, Path]) -> None:
    image = blobs(90, 110, np.array([[20.0, 30.0], [41.0, 62.0], [80.0, 44.0]]), 3.0)
    extractor = build(PoSFeatConfig(network=SMALL), stages[0], "cpu")
    features = extractor.extract(image)
    expected = SiftExtractor(SiftConfig(max_keypoints=8192, precise_upscale=True), is_root=False).extract(
        image
    )
    assert extractor.name == "posfeat+sift" and len(features) == len(expected) > 2
    np.testing.assert_allclose(features.keypoints, expected.keypoints, atol=1e-4)
    np.testing.assert_array_equal(features.scores, expected.scores)
    described = build_dense(PoSFeatConfig(network=SMALL), stages[0], "cpu").describe(image)
    again = described.at(torch.from_numpy(expected.keypoints))[:, 0]
    np.testing.assert_allclose(features.descriptors, again, atol=1e-5)


def test_which_detector_is_used(stages: tuple[Path, Path]) -> None:
    desc, kp = stages

    def name(detector: str, weights: Path | None) -> str:
        inference = InferenceConfig(detector=detector)  # type: ignore[arg-type]
        return build(PoSFeatConfig(network=SMALL, inference=inference), weights, "cpu").name

    assert (
        name("auto", desc) == name("auto", None) == name("sift", kp) == name("sift", None) == "posfeat+sift"
    )
    assert name("auto", kp) == name("network", kp) == name("network", None) == "posfeat"
    with pytest.raises(
        ConfigError, match=r"posfeat\.inference\.detector: expected weights with a keypoint head"
    ):
        name("network", desc)
    described = build_dense(replace(HEAD, inference=InferenceConfig(detector="network")), desc, "cpu")
    assert described.describe(texture(20, 20)).at(torch.ones(1, 2)).shape == (1, 1, 128)


def test_the_trained_weights_are_the_ones_used(stages: tuple[Path, Path]) -> None:
    image = texture(48, 64)
    trained = build(HEAD, stages[1], "cpu").extract(image)
    untrained = build(HEAD, None, "cpu").extract(image)  # the file was made from those
    np.testing.assert_array_equal(trained.keypoints, untrained.keypoints)
    assert trained.descriptors.tobytes() == untrained.descriptors.tobytes()


def test_the_fingerprint_names_all_that_changes_the_result(stages: tuple[Path, Path]) -> None:
    def fingerprint(weights: Path | None = stages[1], **inference: object) -> str:
        settings = InferenceConfig(**inference)  # type: ignore[arg-type]
        return build(PoSFeatConfig(network=SMALL, inference=settings), weights, "cpu").fingerprint

    changes: list[dict[str, object]] = [
        {"max_keypoints": 7},
        {"nms_radius": 2},
        {"score_threshold": 0.5},
        {"score_reference": "max"},
        {"min_keypoints": 128},
        {"subpixel": False},
        {"max_image_side": 64},
        {"tile_px": 64, "tile_overlap_px": 16},
        {"tile_px": 64, "tile_overlap_px": 8},
        {"detector": "sift"},
    ]
    seen = [
        fingerprint(),
        fingerprint(None, detector="network"),
        *(fingerprint(**change) for change in changes),
    ]
    assert len(set(seen)) == len(seen)
    assert fingerprint(max_memory_gb=3.0) == fingerprint() == fingerprint(detector="network")
    assert fingerprint(tile_overlap_px=8) == fingerprint()
    legacy = PoSFeatConfig(network=replace(SMALL, sampling="legacy"))
    assert build(legacy, stages[1], "cpu").fingerprint != fingerprint()
    assert (
        build_dense(legacy, stages[1], "cpu").fingerprint != build_dense(HEAD, stages[1], "cpu").fingerprint
    )


def test_weights_that_do_not_fit_are_refused(stages: tuple[Path, Path], tmp_path: Path) -> None:
    other = PoSFeatConfig(network=replace(SMALL, decoder_channels=(16, 8)))
    with pytest.raises(DataError, match=r"kp\.st: expected weights of posfeat, encoder 'resnet18'"):
        build(other, stages[1], "cpu")
    (tmp_path / "noise.st").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"noise\.st: expected a safetensors file"):
        build(HEAD, tmp_path / "noise.st", "cpu")
    with pytest.raises(DataError, match="weights not found"):
        build(HEAD, tmp_path / "absent.st", "cpu")


@pytest.mark.parametrize("broken", ["backbone.conv_fine.conv.bias", "head.conv3.weight"])
def test_weights_that_are_not_finite_are_named(broken: str) -> None:
    model = load_model(HEAD, None, "cpu")[0]
    model.get_parameter(broken).data.fill_(torch.nan)
    with pytest.raises(DataError, match="output is not finite; its weights are damaged"):
        PoSFeatExtractor(model, weights_digest="x").extract(texture(32, 32))


def test_scores_need_a_head() -> None:
    model = PoSFeat(PoSFeatConfig(network=SMALL), with_head=False)
    with pytest.raises(MatchlibError, match="expected weights with a keypoint head"):
        image_maps(model, torch.zeros(3, 16, 16, dtype=torch.uint8), InferenceConfig(), with_scores=True)


# ---------------------------------------------------------------- memory
def test_an_image_that_is_too_large_is_refused_before_anything_is_computed() -> None:
    model = bright(max_memory_gb=0.007)

    def never(image: Tensor) -> DescriptorMaps:
        raise AssertionError("the network was run")

    model.maps = never  # type: ignore[method-assign]
    expected = r"image of 120 x 80 pixels: expected .*max_memory_gb = 0\.007 GB.*max_image_side.*tile_px"
    with pytest.raises(DataError, match=expected):
        PoSFeatExtractor(model, weights_digest="x").extract(texture(80, 120))
    for remedy in ({"max_image_side": 64}, {"tile_px": 64, "tile_overlap_px": 16}):
        PoSFeatExtractor(bright(max_memory_gb=0.007, **remedy), weights_digest="x").extract(texture(80, 120))


def test_a_full_device_is_reported_with_what_to_do() -> None:
    model = bright()

    def full(image: Tensor) -> DescriptorMaps:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    model.maps = full  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"does not fit into the memory .*9 GiB.*inference\.tile_px"):
        PoSFeatExtractor(model, weights_digest="x").extract(texture(20, 20))


def test_the_memory_estimate_grows_as_it_should() -> None:
    network, whole, tiled = NetworkConfig(), InferenceConfig(), InferenceConfig(tile_px=512)
    assert needed_bytes((640, 480), network, whole, with_scores=True) == 640 * 480 * (3072 + 3)
    assert needed_bytes((639, 465), network, whole, with_scores=True) == 640 * 480 * (3072 + 3)
    without = needed_bytes((640, 480), network, whole, with_scores=False)
    assert without < needed_bytes((640, 480), network, whole, with_scores=True) / 3
    large = needed_bytes((8000, 6000), network, tiled, with_scores=True)
    assert large < needed_bytes((8000, 6000), network, whole, with_scores=True) / 10
    assert large > 8000 * 6000 * 200  # its own maps remain


# ---------------------------------------------------------------- commands
def test_commands_on_a_folder_an_image_and_a_pair(
    stages: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for name, shift in (("a.png", 0), ("b.png", 5)):
        cv2.imwrite(str(tmp_path / "images" / name), texture(70, 100)[:, shift : shift + 90])
    method = ["--method", "posfeat", "--weights", str(stages[1]), "--device", "cpu"]
    out = tmp_path / "features.h5"
    extract = ["extract", *method, "--images", str(tmp_path / "images"), "--out", str(out), *SETTINGS]
    assert main([*extract, "inference.max_keypoints=50"]) == 0
    with FeatureReader(out) as reader:
        assert reader.names == ("a.png", "b.png") and reader.header is not None
        assert reader.header.method == "posfeat" and len(reader.read("a.png")) == 50
    one = ["--images", str(tmp_path / "images" / "b.png"), "--out", str(tmp_path / "one.h5")]
    assert main(["extract", *method, *one, *SETTINGS, "inference.max_keypoints=50"]) == 0
    with FeatureReader(out) as all_images, FeatureReader(tmp_path / "one.h5") as one_image:
        assert one_image.names == ("b.png",)
        np.testing.assert_array_equal(one_image.read("b.png").keypoints, all_images.read("b.png").keypoints)
    pair = [str(tmp_path / "images" / name) for name in ("a.png", "b.png")]
    assert main(["match", *pair, *method, "--out", str(tmp_path / "m.png"), *SETTINGS]) == 0
    assert (tmp_path / "m.png").stat().st_size > 1000
    assert "mutual nearest neighbours" in capsys.readouterr().out


def test_a_real_image(shared_data: Callable[[str], Path]) -> None:
    image = read_image(shared_data("hpatches") / "i_leuven" / "1.ppm")
    config = replace(
        HEAD, inference=InferenceConfig(detector="network", max_image_side=240, max_keypoints=200)
    )
    features = build(config, None, "cpu").extract(image)
    assert len(features) == 200 and features.image_size == (image.shape[1], image.shape[0])
    assert (features.keypoints >= 0).all() and (features.keypoints <= np.array(features.image_size) - 1).all()
    apart = np.abs(features.keypoints[:, None] - features.keypoints).max(-1) + 1e6 * np.eye(200)
    assert apart.min() > 0
