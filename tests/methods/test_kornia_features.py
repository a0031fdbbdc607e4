"""Published networks through kornia: weights by path, kornia's own results, matchlib's conventions.

Without published weights: a kornia module with random weights writes the file that our builder reads.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from kornia.color import rgb_to_grayscale
from kornia.feature import (
    ALIKED,
    DISK,
    DeDoDe,
    HardNet,
    KeyNetDetector,
    LAFAffNetShapeEstimator,
    LAFDescriptor,
    LAFOrienter,
    LocalFeature,
    MultiResolutionDetector,
    OriNet,
    XFeat,
    get_laf_center,
    laf_is_filled,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from matchlib.errors import ConfigError, DataError, ShapeError
from matchlib.features.foreign import to_tensor
from matchlib.features.foreign_weights import load_weights, read_state_dict
from matchlib.features.types import Features, Image
from matchlib.geometry.sampling import sample_bilinear
from matchlib.methods.kornia_features import aliked, dedode, disk, keynet_hardnet, xfeat
from matchlib.methods.kornia_features.config import (
    AlikedConfig,
    DeDoDeConfig,
    DiskConfig,
    KeyNetHardNetConfig,
    XFeatConfig,
)
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a method that gets its weights by path used the network")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_cache"))


@pytest.mark.filterwarnings("ignore:Failed to load weights")
def test_the_network_guard_guards() -> None:
    with pytest.raises(RuntimeError, match="used the network"):
        HardNet(pretrained=True)


def photo_of(width: int, height: int) -> Image:
    image: Image = cv2.resize(skimage.data.astronaut(), (width, height), interpolation=cv2.INTER_AREA)
    return image


def randomised(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    """The module with random weights and random statistics, so that a tensor that is not loaded shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.05)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module.eval()


@dataclass(frozen=True)
class Published:
    """What is needed to use a method: kornia's module, its file, our settings and builders."""

    module: Any
    config: Any
    path: Path
    build: Callable[..., Any]
    build_dense: Callable[..., Any] | None = None


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Published]:
    folder = tmp_path_factory.mktemp("weights")
    made: dict[str, Published] = {}

    def save(name: str, content: Any) -> Path:
        torch.save(content, folder / name)
        return folder / name

    def make(name: str) -> Published:
        if name == "disk":
            module = randomised(DISK)
            path = save("disk.pth", {"extractor": module.state_dict(), "epoch": 3})
            return Published(module, DiskConfig(max_keypoints=200), path, disk.build, disk.build_dense)
        if name == "aliked":
            config = AlikedConfig(variant="aliked-t16", max_keypoints=150)
            module = randomised(lambda: ALIKED("aliked-t16", 150, 0.2, 2))
            state = {key: value for key, value in module.state_dict().items() if key != "dkd.hw_grid"}
            return Published(module, config, save("aliked.pth", state), aliked.build, aliked.build_dense)
        if name == "xfeat":
            config = XFeatConfig(max_keypoints=120, detection_threshold=0.0)
            module = randomised(lambda: XFeat(120, 0.0))
            path = save("xfeat.pt", module.net.state_dict())
            return Published(module, config, path, xfeat.build, xfeat.build_dense)
        if name == "dedode":
            module = randomised(lambda: DeDoDe("L", "B", torch.float32))
            second = save("descriptor.pth", module.descriptor.state_dict())
            path = save("detector.pth", module.detector.state_dict())
            config = DeDoDeConfig(descriptor_weights=str(second), max_keypoints=80)
            return Published(module, config, path, dedode.build, dedode.build_dense)
        detector = randomised(lambda: KeyNetDetector(False, num_features=100))
        detector.model.last_conv[0].weight.data.abs_()  # its last layer is a ReLU: random signs give nothing
        hardnet = randomised(lambda: HardNet(False), seed=1)
        second = save("hardnet.pth", {"state_dict": hardnet.state_dict()})
        path = save("keynet.pth", {"state_dict": detector.model.state_dict()})
        config = KeyNetHardNetConfig(hardnet_weights=str(second), max_keypoints=100, level_origin="corner")
        return Published((detector, hardnet), config, path, keynet_hardnet.build)

    def get(name: str) -> Published:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return get


NAMES = ("disk", "aliked", "xfeat", "dedode", "keynet_hardnet")
DENSE = ("disk", "aliked", "xfeat", "dedode")
# DeDoDe's networks are large; Key.Net keeps 15 pixels from the border and from one keypoint to the next.
SIZES = {"dedode": (58, 45), "keynet_hardnet": (250, 215)}


@pytest.fixture(scope="module")
def extracted(published: Callable[[str], Published]) -> Callable[[str], tuple[Image, Features]]:
    made: dict[str, tuple[Image, Features]] = {}

    def get(name: str) -> tuple[Image, Features]:
        if name not in made:
            image = photo_of(*SIZES.get(name, (125, 107)))
            it = published(name)
            made[name] = image, it.build(it.config, it.path, "cpu").extract(image)
        return made[name]

    return get


def kornias(name: str, module: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points in kornia's frame, scores, descriptors, from kornia's public entry point."""
    if name == "disk":
        (found,) = module(image, n=200, pad_if_not_divisible=True)
        return found.keypoints, found.detection_scores, found.descriptors
    if name == "aliked":
        (found,) = module(image)
        return found.keypoints, found.keypoint_scores, found.descriptors
    if name == "xfeat":
        (found,) = module.detectAndCompute(image)
        return found["keypoints"], found["scores"], found["descriptors"]
    if name == "dedode":
        points, scores, descriptors = module(image, n=80)
        return points[0], scores[0], descriptors[0]
    detector, hardnet = module
    frames, responses, descriptors = LocalFeature(detector, LAFDescriptor(hardnet))(rgb_to_grayscale(image))
    filled = laf_is_filled(frames)[0]
    return get_laf_center(frames)[0, filled], responses[0, filled], descriptors[0, filled]


@pytest.mark.parametrize("name", NAMES)
def test_gives_what_kornia_gives_in_pixels_of_the_image(
    published: Callable[[str], Published], extracted: Callable[[str], tuple[Image, Features]], name: str
) -> None:
    image, features = extracted(name)
    height, width = image.shape[:2]
    with torch.no_grad():
        points, scores, descriptors = kornias(name, published(name).module, to_tensor(image, "cpu"))
    if name == "xfeat":  # pixel i of the image shrunk to multiples of 32 is reported at i * ratio
        ratio = points.new_tensor([width / (width // 32 * 32), height / (height // 32 * 32)])
        assert (points / ratio - (points / ratio).round()).abs().max() < 1e-3
        points = ((points / ratio).round() + 0.5) * ratio - 0.5
    if name == "dedode":  # pixel i is reported at i + 1/2
        points = points - 0.5
    order = torch.argsort(-scores, stable=True)
    assert len(features) == len(points) >= 20
    np.testing.assert_allclose(features.keypoints, points[order].numpy(), atol=1e-4)
    np.testing.assert_allclose(features.scores, scores[order].numpy(), rtol=1e-5)
    expected = nn.functional.normalize(descriptors[order], dim=1).numpy()
    np.testing.assert_allclose(features.descriptors, expected, atol=1e-5)
    assert features.image_size == (width, height)
    assert (features.keypoints >= -0.5).all() and (
        features.keypoints <= np.array([width, height]) - 0.5
    ).all()


@pytest.mark.parametrize("name", DENSE)
def test_dense_descriptors_at_the_keypoints_are_those_of_extraction(
    published: Callable[[str], Published], extracted: Callable[[str], tuple[Image, Features]], name: str
) -> None:
    it = published(name)
    image, features = extracted(name)
    assert it.build_dense is not None
    describer = it.build_dense(it.config, it.path, "cpu")
    descriptors = describer.describe(image).at(torch.from_numpy(features.keypoints))
    assert descriptors.shape == (len(features), 1, describer.descriptor_dim)
    np.testing.assert_allclose(descriptors[:, 0].numpy(), features.descriptors, atol=1e-4)
    corners = torch.tensor([[0.0, 0.0], [image.shape[1] - 1, image.shape[0] - 1]])
    assert torch.isfinite(describer.describe(image).at(corners)).all()
    assert describer.describe(image).at(torch.zeros(0, 2)).shape == (0, 1, describer.descriptor_dim)
    assert describer.fingerprint != it.build(it.config, it.path, "cpu").fingerprint
    with pytest.raises(ShapeError, match="expected sides of at least 32 pixels"):
        describer.describe(photo_of(31, 60))


def test_disk_and_aliked_keypoints_stand_where_the_score_map_has_their_scores(
    published: Callable[[str], Published], extracted: Callable[[str], tuple[Image, Features]]
) -> None:
    """Half a pixel of misunderstanding would show: the map of random weights is rough."""
    image, features = extracted("disk")
    with torch.no_grad():
        padded = nn.functional.pad(to_tensor(image, "cpu"), (0, 3, 0, 5))
        heatmap, _ = published("disk").module.heatmap_and_dense_descriptors(padded)
    columns, rows = features.keypoints.astype(int).T
    np.testing.assert_allclose(heatmap[0, 0].numpy()[rows, columns], features.scores, rtol=1e-5)

    image, features = extracted("aliked")
    with torch.no_grad():
        _, score_map = published("aliked").module.extract_dense_map(to_tensor(image, "cpu"))
    points = torch.from_numpy(features.keypoints)
    np.testing.assert_allclose(sample_bilinear(score_map[0], points)[0].numpy(), features.scores, rtol=1e-4)


def test_dedode_reads_descriptors_at_the_centres_of_pixels(
    published: Callable[[str], Published], extracted: Callable[[str], tuple[Image, Features]]
) -> None:
    image, features = extracted("dedode")
    with torch.no_grad():
        dense = published("dedode").module.describe(to_tensor(image, "cpu"))[0]
    np.testing.assert_allclose(features.keypoints, features.keypoints.round(), atol=1e-4)
    columns, rows = features.keypoints.round().astype(int).T
    expected = nn.functional.normalize(dense[:, rows, columns].T, dim=1).numpy()
    np.testing.assert_allclose(features.descriptors, expected, atol=1e-4)


class PeakAndRamp(nn.Module):
    """A response with one peak per level that notes the value of the level's image there."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[float] = []

    def forward(self, level: Tensor) -> Tensor:
        row, column = level.shape[2] // 2, level.shape[3] * 2 // 5
        self.noted.append(float(level[0, 0, row, column]))
        response = torch.zeros_like(level)
        response[0, 0, row, column] = 10.0 + len(self.noted)
        return response


@pytest.mark.parametrize("axis", [0, 1])
def test_keynet_frames_are_moved_to_where_their_pixels_are(axis: int) -> None:
    """The image holds its own coordinate, so each level's image says where its pixels are."""
    ramp = (
        torch.arange(240.0)[None, :].expand(200, -1)
        if axis == 0
        else torch.arange(200.0)[:, None].expand(-1, 240)
    )
    model = PeakAndRamp()
    detector = MultiResolutionDetector(model, num_features=6)
    _, frames = detector.detect(ramp[None, None].contiguous())
    truth = torch.tensor(model.noted).flip(
        0
    )  # responses rise from level to level, detections come best first
    kornia_position = get_laf_center(frames)[0, :, axis]
    ours = get_laf_center(keynet_hardnet.centred(frames, detector.mr_size))[0, :, axis]
    assert len(truth) == 6
    torch.testing.assert_close(ours, truth, rtol=0, atol=0.02)
    assert (truth - kornia_position).abs().max() > 1.2


def test_keynet_uses_centres_by_default_and_describes_there(published: Callable[[str], Published]) -> None:
    it, image = published("keynet_hardnet"), photo_of(*SIZES["keynet_hardnet"])
    corner, centre = (
        keynet_hardnet.build(replace(it.config, level_origin=origin), it.path, "cpu").extract(image)
        for origin in ("corner", "centre")
    )
    assert KeyNetHardNetConfig().level_origin == "centre"
    shift = centre.keypoints - corner.keypoints
    assert (
        shift.min() > -0.2 and shift.max() > 0.3
    )  # -0.15 at the enlarged level, (s - 1) / 2 at the shrunk ones
    is_moved = np.abs(shift).max(axis=1) > 0.1
    assert is_moved.any() and not is_moved.all()
    differs = np.abs(centre.descriptors - corner.descriptors).max(axis=1) > 1e-4
    np.testing.assert_array_equal(differs[~is_moved], False)
    assert differs[is_moved].mean() > 0.9


def test_keynet_with_affnet_and_orinet_is_kornias(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    it, image = published("keynet_hardnet"), photo_of(*SIZES["keynet_hardnet"])
    shape = randomised(lambda: LAFAffNetShapeEstimator(False), seed=2)
    angle = randomised(lambda: OriNet(False), seed=3)
    for name, module in (("affnet", shape), ("orinet", angle)):
        torch.save({"state_dict": module.state_dict()}, tmp_path / f"{name}.pth")
    config = replace(
        it.config, affnet_weights=str(tmp_path / "affnet.pth"), orinet_weights=str(tmp_path / "orinet.pth")
    )
    ours = keynet_hardnet.build(config, it.path, "cpu")
    features = ours.extract(image)
    whole = KeyNetDetector(False, 100, aff_module=shape, ori_module=LAFOrienter(angle_detector=angle)).eval()
    detector, hardnet = it.module
    whole.model = detector.model
    with torch.no_grad():
        points, _, descriptors = kornias("keynet_hardnet", (whole, hardnet), to_tensor(image, "cpu"))
    np.testing.assert_allclose(features.keypoints, points.numpy(), atol=1e-4)
    np.testing.assert_allclose(features.descriptors, descriptors.numpy(), atol=1e-4)
    assert ours.fingerprint != keynet_hardnet.build(it.config, it.path, "cpu").fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_empty_tiny_and_wrong_images(published: Callable[[str], Published], name: str) -> None:
    it = published(name)
    extractor = it.build(it.config, it.path, "cpu")
    for image in (np.full((64, 48, 3), 130, np.uint8), photo_of(31, 90), photo_of(1, 1)):
        features = extractor.extract(image)
        assert features.keypoints.shape == (0, 2)
        assert features.descriptors.shape == (0, extractor.descriptor_dim)
    smallest = extractor.extract(photo_of(32, 33))
    assert smallest.image_size == (32, 33) and smallest.descriptors.shape[1] == extractor.descriptor_dim
    with pytest.raises(ShapeError, match=r"image: expected shape \(H, W, 3\)"):
        extractor.extract(photo_of(64, 64)[:, :, 0])
    with pytest.raises(ShapeError, match="expected uint8"):
        extractor.extract(photo_of(64, 64).astype(np.float32))


@pytest.mark.parametrize("name", ["disk", "aliked", "xfeat", "keynet_hardnet"])
def test_fewer_keypoints_are_the_best_of_more(published: Callable[[str], Published], name: str) -> None:
    it = published(name)
    image = photo_of(*SIZES.get(name, (125, 107)))
    few = it.build(replace(it.config, max_keypoints=15), it.path, "cpu").extract(image)
    more = it.build(it.config, it.path, "cpu").extract(image)
    assert len(few) == 15 < len(more)
    assert (np.diff(more.scores) <= 0).all()
    np.testing.assert_array_equal(few.scores, more.scores[:15])


@pytest.mark.parametrize("name", NAMES)
def test_registered_with_foreign_weights_that_are_needed(
    published: Callable[[str], Published], name: str
) -> None:
    spec, it = METHODS.get(name), published(name)
    assert spec.weights == "foreign" and load_symbol(spec.extractor) is it.build
    assert (spec.dense is None) == (it.build_dense is None)
    with pytest.raises(
        ConfigError, match="weights: expected a file with the published weights of .*, got none"
    ):
        it.build(spec.config(), None, "cpu")
    with pytest.raises(DataError, match="nowhere.pth: weights not found"):
        it.build(it.config, Path("nowhere.pth"), "cpu")


def test_methods_of_two_files_need_both(published: Callable[[str], Published]) -> None:
    for name, option in (
        ("dedode", "dedode.descriptor_weights"),
        ("keynet_hardnet", "keynet_hardnet.hardnet_weights"),
    ):
        it = published(name)
        with pytest.raises(ConfigError, match=f"^{option}: expected a file"):
            it.build(type(it.config)(), it.path, "cpu")
    swapped = replace(published("dedode").config, descriptor_weights=str(published("dedode").path))
    with pytest.raises(
        DataError, match="detector.pth: expected weights of DeDoDe's descriptor B; first difference"
    ):
        dedode.build(swapped, published("dedode").path, "cpu")


def test_fingerprint_follows_the_content_of_files_and_the_settings(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    it = published("keynet_hardnet")
    moved = tmp_path / "elsewhere.pth"
    moved.write_bytes(it.path.read_bytes())
    second = tmp_path / "hardnet.pth"
    second.write_bytes(Path(it.config.hardnet_weights).read_bytes())
    same = keynet_hardnet.build(replace(it.config, hardnet_weights=str(second)), moved, "cpu").fingerprint
    assert same == keynet_hardnet.build(it.config, it.path, "cpu").fingerprint
    other_weights = randomised(lambda: HardNet(False), seed=9)
    torch.save(other_weights.state_dict(), second)
    others = {
        keynet_hardnet.build(replace(it.config, hardnet_weights=str(second)), moved, "cpu").fingerprint,
        keynet_hardnet.build(replace(it.config, max_keypoints=7), moved, "cpu").fingerprint,
        same,
    }
    assert len(others) == 3


def test_building_leaves_the_global_generator_alone(published: Callable[[str], Published]) -> None:
    before = torch.random.get_rng_state()
    for name in NAMES:
        it = published(name)
        it.build(it.config, it.path, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- weights files
@pytest.mark.parametrize("kind", ["plain", "wrapped", "twice", "data_parallel", "safetensors"])
def test_usual_layouts_of_files_are_read(tmp_path: Path, kind: str) -> None:
    source, target = randomised(lambda: HardNet(False), seed=4), HardNet(False)
    state = dict(source.state_dict())
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        prefixed = {f"module.{key}": value for key, value in state.items()}
        content: dict[str, Any] = {
            "plain": state,
            "wrapped": {"epoch": 7, "state_dict": state},
            "twice": {"model": {"state_dict": state, "note": "x"}},
            "data_parallel": {"net": prefixed},
        }
        torch.save(content[kind], path)
    load_weights(target, path, what="HardNet")
    for key, value in target.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_counters_may_be_missing_but_nothing_else(tmp_path: Path) -> None:
    state = dict(randomised(lambda: HardNet(False)).state_dict())
    path = tmp_path / "old.pth"
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)
    load_weights(HardNet(False), path, what="HardNet")
    del state["features.4.running_var"]
    torch.save(state, path)
    with pytest.raises(
        DataError, match=r"'features\.4\.running_var' is missing \(1 tensors missing, 0 unexpected\)"
    ):
        load_weights(HardNet(False), path, what="HardNet")


def test_a_buffer_that_the_constructor_computes_is_not_read_from_the_file(tmp_path: Path) -> None:
    """kornia saves the grid of the soft maximum for the radius that it had; another radius needs another grid."""
    state = randomised(lambda: ALIKED("aliked-t16", 150, 0.2, 2)).state_dict()
    torch.save(state, tmp_path / "w.pth")
    config = AlikedConfig(variant="aliked-t16", detection_threshold=0.0, nms_radius=4)
    found = [aliked.build(config, tmp_path / "w.pth", "cpu").extract(photo_of(96, 64))]
    del state["dkd.hw_grid"]
    torch.save(state, tmp_path / "w.pth")
    found.append(aliked.build(config, tmp_path / "w.pth", "cpu").extract(photo_of(96, 64)))
    assert len(found[0]) > 0
    np.testing.assert_array_equal(found[0].keypoints, found[1].keypoints)


def test_the_first_difference_in_the_networks_order_is_named(tmp_path: Path) -> None:
    path, target = tmp_path / "w.pth", HardNet(False)
    state = dict(target.state_dict())
    wrong = state | {"features.6.weight": torch.zeros(64, 32, 5, 5)}
    del wrong["features.9.weight"]
    torch.save(wrong, path)
    message = (
        r"'features\.6\.weight': expected shape \(64, 32, 3, 3\), got \(64, 32, 5, 5\) \(1 tensors missing"
    )
    with pytest.raises(DataError, match=message):
        load_weights(target, path, what="HardNet")
    torch.save(state | {"extra.weight": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"HardNet; first difference: 'extra\.weight' is not part of it"):
        load_weights(target, path, what="HardNet")


def test_unexpected_tensors_are_logged_where_they_are_tolerated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pth"
    torch.save(dict(OriNet(False).state_dict()) | {"extra": torch.zeros(1)}, path)
    load_weights(OriNet(False), path, what="OriNet", ignore_unexpected=True)
    assert "1 tensors that OriNet does not have: ['extra']" in caplog.text


class Payload:
    """What a hostile file would hold: code that runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("executed.txt", "w"))


def test_broken_and_hostile_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.pth"
    torch.save(HardNet(False).state_dict(), good)
    torch.save({"state_dict": Payload()}, tmp_path / "hostile.pth")
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "later.pth").write_bytes(good.read_bytes()[:59_811])  # torch says OSError here
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("hostile", "cut", "later", "text", "empty"):
        with pytest.raises(
            DataError, match=f"{name}.pth: expected weights that torch.load reads without running"
        ):
            read_state_dict(tmp_path / f"{name}.pth")
    assert not (tmp_path / "executed.txt").exists()
    (tmp_path / "text.safetensors").write_text("no header")
    with pytest.raises(DataError, match="text.safetensors: expected a safetensors file"):
        read_state_dict(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="expected a state dict, got list"):
        read_state_dict(tmp_path / "list.pth")
    torch.save({"epoch": 1, "weights": [1]}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="got keys epoch, weights"):
        read_state_dict(tmp_path / "other.pth")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["alike-t.pth", "r2d2_WAF_N16.pt"])
def test_published_weights_of_another_network_are_refused(
    shared_data: Callable[[str], Path], published: Callable[[str], Published], name: str, file: str
) -> None:
    it, path = published(name), shared_data("weights") / file
    with pytest.raises(
        DataError, match=f"{file}: expected weights of .*; first difference: '.*' (is missing|: exp)"
    ):
        it.build(it.config, path, "cpu")


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (DiskConfig, "disk.window_size", 4),
        (DiskConfig, "disk.max_keypoints", 0),
        (AlikedConfig, "aliked.nms_radius", 0),
        (XFeatConfig, "xfeat.detection_threshold", -0.1),
        (DeDoDeConfig, "dedode.max_keypoints", 0),
        (KeyNetHardNetConfig, "keynet_hardnet.score_threshold", -1),
    ],
)
def test_wrong_settings_are_refused(make: Callable[..., Any], key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: expected"):
        make(**{key.split(".")[1]: value})
